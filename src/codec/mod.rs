//! Variants of a weight: how values are encoded on disk and decoded under the kernels.
//!
//! A codec encodes a *run*: `depth` steps of `lanes` interleaved values (value `i` of lane `l`
//! stands at `i * lanes + l`). A panel of a matrix is a run of 16 lanes and depth k; a row of an
//! embedding table, or a flat tensor, is a run of one lane. Nothing here does I/O or knows the
//! graph.
//!
//! A new codec is one file here and one line in [`ALL`].

mod a2;
mod a3;
mod a4;
mod a5;
mod a6;
mod affine;
mod bf16;
mod columns;
mod f16;
mod f32;
mod feedback;
mod grouped;
mod moments;
mod q4;
mod q8;
pub mod simd;
mod steps;

pub use columns::{Columns, FEW_COLUMNS, has_fused_addition};
pub use feedback::Feedback;
pub use moments::{add_moments, squared_products};

use affine::Framed;
use std::fmt;

/// Rows of a panel: the lanes of tract's `PackedFormat` with r = 16, for which every supported
/// processor has kernels.
pub const PANEL_ROWS: usize = 16;

/// What the products of a panel with a few columns come to: of each column the sum of each row.
pub type Sums = [[f32; PANEL_ROWS]; FEW_COLUMNS];

/// Depth of a quantized group: the values of one lane that share a scale.
pub const GROUP_DEPTH: usize = 32;

/// Code of tensors that are stored as their own bytes, of whatever dtype; not a [`Codec`], since
/// nothing is encoded.
pub const RAW: u64 = 0;

/// Name of [`RAW`].
pub const RAW_NAME: &str = "raw";

/// Every codec, best first.
pub const ALL: &[&dyn Codec] = &[
    &f32::F32,
    &bf16::Bf16,
    &f16::F16,
    &q8::Q8,
    &Framed(a6::A6),
    &Framed(a5::A5),
    &Framed(a4::A4),
    &q4::Q4,
    &Framed(a3::A3),
    &Framed(a2::A2),
];

/// The codec that users call `name`.
pub fn by_name(name: &str) -> Option<&'static dyn Codec> {
    ALL.iter().copied().find(|codec| codec.name() == name)
}

/// The codec that a layer file calls `code`; `None` for [`RAW`] too.
pub fn by_code(code: u64) -> Option<&'static dyn Codec> {
    ALL.iter().copied().find(|codec| codec.code() == code)
}

/// Index of the first infinity or NaN.
pub fn first_non_finite(values: &[f32]) -> Option<usize> {
    const CHUNK: usize = 64;
    let is_suspect = |chunk: &[f32]| chunk.iter().fold(false, |found, v| found | !v.is_finite());
    let index = values.chunks(CHUNK).position(is_suspect)? * CHUNK;
    let inside = values[index..].iter().position(|v| !v.is_finite())?;
    Some(index + inside)
}

/// One encoding of a run of values.
pub trait Codec: Send + Sync + fmt::Debug {
    /// The name users write: `f32`, `q8`.
    fn name(&self) -> &'static str;

    /// The code that stands for it in a layer file.
    fn code(&self) -> u64;

    /// Stored bytes of a run of `depth` steps of `lanes` values.
    fn stored_bytes(&self, depth: usize, lanes: usize) -> usize;

    /// Appends the encoding of `values` (`depth * lanes` of them) to `stored`.
    ///
    /// Codecs with scales cannot express infinities and NaN: they panic on them, so check untrusted
    /// weights with [`first_non_finite`] before.
    fn encode(&self, values: &[f32], lanes: usize, stored: &mut Vec<u8>);

    /// The same, making the least error where step `i`'s inputs have the mean square `weights[i]`, or
    /// any multiple of it; a single value may be beyond [`Codec::error_bound`]. A codec without
    /// minima encodes as it does without weights.
    ///
    /// Panics as [`Codec::encode`], and on weights that are negative or not finite.
    fn encode_weighted(&self, values: &[f32], lanes: usize, weights: &[f32], stored: &mut Vec<u8>) {
        let _ = weights;
        self.encode(values, lanes, stored);
    }

    /// The same, with what each step's error does to products made good by the steps after it, as far
    /// as `feedback`, that of as many steps, says. Decoded values are farther from `values` than
    /// without.
    fn encode_fed(
        &self,
        values: &[f32],
        lanes: usize,
        weights: &[f32],
        feedback: &Feedback,
        stored: &mut Vec<u8>,
    ) {
        let _ = feedback;
        self.encode_weighted(values, lanes, weights, stored);
    }

    /// Decodes a whole run; `stored.len()` and `values.len()` agree with [`Codec::stored_bytes`].
    ///
    /// Panics where they do not.
    fn decode(&self, stored: &[u8], lanes: usize, values: &mut [f32]);

    /// Adds to `sums` the products of a panel, a run of [`PANEL_ROWS`] lanes, with `columns`: those of a
    /// row and a column one after the other along k, each multiplied and added in one operation. So a
    /// column has the same bits whatever stands beside it and whichever processor computes it. Sums
    /// beyond the columns that there are get anything.
    ///
    /// Panics where `stored` has another depth than `columns`.
    fn multiply(&self, stored: &[u8], columns: &Columns, sums: &mut Sums);

    /// Largest absolute error of a decoded value: `group_max` is the largest magnitude of the
    /// [`GROUP_DEPTH`] steps of its lane that it is of, and `run_max` that of the lane.
    fn error_bound(&self, group_max: f32, run_max: f32) -> f32;

    /// Whether the stored bytes of a run are its `f32` values, so that nothing need be decoded.
    fn is_plain_f32(&self) -> bool {
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn codecs_are_found_by_name_and_by_code() {
        for codec in ALL {
            assert_eq!(by_name(codec.name()).map(|found| found.code()), Some(codec.code()));
            assert_eq!(by_code(codec.code()).map(|found| found.name()), Some(codec.name()));
        }
        assert!(by_code(RAW).is_none() && by_name(RAW_NAME).is_none());
        assert!(by_code(u64::MAX).is_none() && by_name("Q8").is_none());
    }

    #[test]
    fn the_first_non_finite_value_is_found_wherever_it_is() {
        let mut values = vec![1.0f32; 200];
        assert_eq!(first_non_finite(&values), None);
        assert_eq!(first_non_finite(&[]), None);
        for (index, bad) in [(199, f32::NAN), (64, f32::INFINITY), (3, f32::NEG_INFINITY)] {
            values[index] = bad;
            assert_eq!(first_non_finite(&values), Some(index));
        }
    }

    /// What `values` are after a round trip; the encoding is appended and as long as it says.
    fn round_trip(codec: &dyn Codec, values: &[f32], lanes: usize) -> Vec<f32> {
        let mut stored = vec![0xaa; 3];
        codec.encode(values, lanes, &mut stored);
        assert_eq!(stored[..3], [0xaa; 3]);
        assert_eq!(stored.len() - 3, codec.stored_bytes(values.len() / lanes, lanes));
        let mut decoded = vec![f32::NAN; values.len()];
        codec.decode(&stored[3..], lanes, &mut decoded);
        decoded
    }

    /// Each lane's errors by group, and the bound for them.
    fn check_bound(codec: &dyn Codec, values: &[f32], lanes: usize) {
        let decoded = round_trip(codec, values, lanes);
        let groups = values.chunks(GROUP_DEPTH * lanes).zip(decoded.chunks(GROUP_DEPTH * lanes));
        for (lane, (group, decoded)) in (0..lanes).flat_map(|l| groups.clone().map(move |g| (l, g)))
        {
            let of_lane = |run: &[f32]| -> Vec<f32> {
                run.iter().skip(lane).step_by(lanes).copied().collect()
            };
            let largest = |run: &[f32]| run.iter().fold(0f32, |max, value| max.max(value.abs()));
            let (group, decoded) = (of_lane(group), of_lane(decoded));
            let max_abs = largest(&group);
            let bound = codec.error_bound(max_abs, largest(&of_lane(values)));
            for (value, decoded) in group.iter().zip(&decoded) {
                let error = (f64::from(*value) - f64::from(*decoded)).abs();
                assert!(
                    error <= f64::from(bound),
                    "{codec:?}: {value:e} became {decoded:e}, bound {bound:e}, largest {max_abs:e}"
                );
                assert!(max_abs != 0.0 || *decoded == 0.0, "{codec:?}: zero became {decoded:e}");
            }
        }
    }

    #[test]
    fn magnitudes_at_the_ends_of_f32_stay_in_bounds() {
        let extremes = [
            0.0,
            -0.0,
            f32::MAX,
            f32::MIN,
            f32::MIN_POSITIVE,
            1e-45,
            1e-40,
            -1.93e-34,
            1.92e-34,
            1e-30,
            -1e30,
            65504.0,
            65520.0,
            6e-8,
            1.0,
        ];
        for codec in ALL {
            for peak in extremes {
                for other in extremes {
                    let values: Vec<f32> = (0..GROUP_DEPTH * PANEL_ROWS)
                        .map(|i| if i % 7 == 0 { peak } else { other })
                        .collect();
                    check_bound(*codec, &values, PANEL_ROWS);
                    check_bound(*codec, &values, 1);
                }
            }
        }
    }

    fn values() -> impl Strategy<Value = (usize, Vec<f32>)> {
        let scale = prop_oneof![Just(0.0), Just(1.0), (-45f32..38.0).prop_map(|e| 10f32.powf(e))];
        let run = (prop_oneof![Just(1), Just(PANEL_ROWS)], 1usize..100, scale);
        run.prop_flat_map(|(lanes, depth, scale)| {
            let value = prop_oneof![4 => -1f32..1.0, 1 => Just(0.0), 1 => Just(1.0)];
            let value = value.prop_map(move |value| value * scale);
            (Just(lanes), prop::collection::vec(value, lanes * depth))
        })
    }

    proptest! {
        #[test]
        fn every_codec_keeps_its_error_bound((lanes, values) in values()) {
            for codec in ALL {
                check_bound(*codec, &values, lanes);
            }
        }

        #[test]
        fn plain_f32_keeps_every_bit(bits in prop::collection::vec(any::<u32>(), 1..50)) {
            let values: Vec<f32> = bits.iter().copied().map(f32::from_bits).collect();
            let codec = by_name("f32").unwrap();
            let decoded: Vec<u32> =
                round_trip(codec, &values, 1).into_iter().map(f32::to_bits).collect();
            prop_assert!(codec.is_plain_f32());
            prop_assert_eq!(decoded, bits);
        }
    }
}
