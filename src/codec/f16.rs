//! `f16`: IEEE half precision, rounded to nearest even.

use super::{
    Codec, Sums,
    columns::{self, Columns},
    simd::{
        self,
        lanes::{self, LaneKernel, Lanes},
    },
    steps::steps_of_values,
};
use half::slice::HalfFloatSliceExt;

/// Half precision: 11 significant bits between 6e-8 and 65504.
#[derive(Debug)]
pub(super) struct F16;

/// Largest finite value.
const LARGEST: f32 = 65504.0;

impl Codec for F16 {
    fn name(&self) -> &'static str {
        "f16"
    }

    fn code(&self) -> u64 {
        2
    }

    fn stored_bytes(&self, depth: usize, lanes: usize) -> usize {
        depth * lanes * 2
    }

    fn encode(&self, values: &[f32], _lanes: usize, stored: &mut Vec<u8>) {
        const CHUNK: usize = 256;
        stored.reserve(values.len() * 2);
        let mut halves = [half::f16::ZERO; CHUNK];
        let mut saturated = [0f32; CHUNK];
        for values in values.chunks(CHUNK) {
            let saturated = &mut saturated[..values.len()];
            let halves = &mut halves[..values.len()];
            for (saturated, value) in saturated.iter_mut().zip(values) {
                *saturated = saturate(*value);
            }
            halves.convert_from_f32_slice(saturated);
            stored.extend(halves.iter().flat_map(|half| half.to_le_bytes()));
        }
    }

    fn decode(&self, stored: &[u8], _lanes: usize, values: &mut [f32]) {
        assert_eq!(stored.len(), values.len() * 2, "stored bytes of an f16 run");
        simd::run_lanes(Decode { stored, values });
    }

    fn multiply(&self, stored: &[u8], columns: &Columns, sums: &mut Sums) {
        columns::multiply::<F16>(stored, columns, sums);
    }

    fn error_bound(&self, max_abs: f32, _: f32) -> f32 {
        const RELATIVE: f32 = 1.0 / 2048.0;
        const HALF_SMALLEST: f32 = 2.980_232_2e-8; // 2^-25
        (max_abs * RELATIVE + HALF_SMALLEST).max((max_abs - LARGEST).next_up())
    }
}

/// Finite values stay finite: those out of range become the largest one.
#[inline(always)]
fn saturate(value: f32) -> f32 {
    if value.is_finite() { value.clamp(-LARGEST, LARGEST) } else { value }
}

/// Moves 2 bytes in and 4 out per value, by the processor's own conversion where it has one. What is no
/// number may have other bits there.
struct Decode<'a> {
    stored: &'a [u8],
    values: &'a mut [f32],
}

impl LaneKernel for Decode<'_> {
    #[inline(always)]
    fn run<L: Lanes>(self) {
        let (stored, stored_rest) = self.stored.as_chunks();
        let (values, rest) = self.values.as_chunks_mut();
        for (values, stored) in values.iter_mut().zip(stored) {
            L::halves(stored).store(values);
        }
        for (value, bytes) in rest.iter_mut().zip(stored_rest.as_chunks().0) {
            *value = lanes::half(u16::from_le_bytes(*bytes));
        }
    }
}

steps_of_values!(F16, 2, halves);

#[cfg(test)]
mod tests {
    use super::*;
    use half::f16;

    #[test]
    fn every_f16_survives_the_round_trip() {
        for bits in 0..=u16::MAX {
            let expected = f16::from_bits(bits).to_f32();
            // One by the plain loop, and as many as the processor converts at once.
            let mut values = [0.0; 17];
            F16.decode(&[bits.to_le_bytes(); 17].concat(), 1, &mut values);
            let [first, .., last] = values;
            assert!(first.is_nan() && last.is_nan() || first.to_bits() == last.to_bits());
            let mut stored = Vec::new();
            F16.encode(&values[..1], 1, &mut stored);
            if expected.is_nan() {
                assert!(values[0].is_nan(), "{bits:04x}");
                assert!(f16::from_le_bytes([stored[0], stored[1]]).is_nan(), "{bits:04x}");
            } else {
                assert_eq!(values[0].to_bits(), expected.to_bits(), "{bits:04x}");
                assert_eq!(stored, bits.to_le_bytes(), "{bits:04x}");
            }
        }
    }

    #[test]
    fn finite_values_out_of_range_become_the_largest() {
        let mut stored = Vec::new();
        F16.encode(&[1e6, f32::MIN, f32::INFINITY, 65519.0], 1, &mut stored);
        let mut values = [0.0; 4];
        F16.decode(&stored, 1, &mut values);
        assert_eq!(values, [LARGEST, -LARGEST, f32::INFINITY, LARGEST]);
    }
}
