//! `bf16`: the upper half of an `f32`, rounded to nearest even.

use super::{
    Codec, Sums,
    columns::{self, Columns},
    simd::{self, Kernel},
    steps::steps_of_values,
};

/// Brain floating point: the range of `f32` with 8 significant bits.
#[derive(Debug)]
pub(super) struct Bf16;

impl Codec for Bf16 {
    fn name(&self) -> &'static str {
        "bf16"
    }

    fn code(&self) -> u64 {
        3
    }

    fn stored_bytes(&self, depth: usize, lanes: usize) -> usize {
        depth * lanes * 2
    }

    fn encode(&self, values: &[f32], _lanes: usize, stored: &mut Vec<u8>) {
        let start = stored.len();
        stored.resize(start + values.len() * 2, 0);
        let stored = &mut stored[start..];
        simd::run(Encode { values, stored });
    }

    fn decode(&self, stored: &[u8], _lanes: usize, values: &mut [f32]) {
        assert_eq!(stored.len(), values.len() * 2, "stored bytes of a bf16 run");
        simd::run(Decode { stored, values });
    }

    fn multiply(&self, stored: &[u8], columns: &Columns, sums: &mut Sums) {
        columns::multiply::<Bf16>(stored, columns, sums);
    }

    fn error_bound(&self, max_abs: f32, _: f32) -> f32 {
        const RELATIVE: f32 = 1.0 / 256.0;
        const HALF_SMALLEST: f32 = f32::from_bits(1 << 15); // 2^-134
        max_abs * RELATIVE + HALF_SMALLEST
    }
}

/// Moves 2 bytes in and 4 out per value; bound by memory.
struct Decode<'a> {
    stored: &'a [u8],
    values: &'a mut [f32],
}

impl Kernel for Decode<'_> {
    #[inline(always)]
    fn run(self) {
        for (value, bytes) in self.values.iter_mut().zip(self.stored.as_chunks::<2>().0) {
            *value = f32::from_bits(u32::from(u16::from_le_bytes(*bytes)) << 16);
        }
    }
}

steps_of_values!(Bf16, 2, uppers);

struct Encode<'a> {
    values: &'a [f32],
    stored: &'a mut [u8],
}

impl Kernel for Encode<'_> {
    #[inline(always)]
    fn run(self) {
        for (value, bytes) in self.values.iter().zip(self.stored.as_chunks_mut::<2>().0) {
            *bytes = from_f32(*value).to_le_bytes();
        }
    }
}

/// Nearest bf16, ties to even. Finite values stay finite: what would round to infinity becomes the
/// largest value; infinities and NaN stay what they are.
#[inline(always)]
fn from_f32(value: f32) -> u16 {
    const INFINITY: u32 = 0x7f80_0000;
    const LARGEST: u32 = 0x7f7f_0000;
    const QUIET: u32 = 0x0040_0000;
    let bits = value.to_bits();
    let sign = bits & 0x8000_0000;
    let magnitude = bits & 0x7fff_ffff;
    let rounded = magnitude + 0x7fff + ((magnitude >> 16) & 1);
    let finite = if rounded < INFINITY { rounded } else { LARGEST };
    let special = if magnitude == INFINITY { INFINITY } else { magnitude | QUIET };
    let magnitude = if magnitude < INFINITY { finite } else { special };
    ((sign | magnitude) >> 16) as u16
}

#[cfg(test)]
mod tests {
    use super::*;
    use half::bf16;

    #[test]
    fn every_bf16_survives_the_round_trip() {
        for bits in 0..=u16::MAX {
            let expected = bf16::from_bits(bits).to_f32();
            let mut values = [0.0];
            Bf16.decode(&bits.to_le_bytes(), 1, &mut values);
            assert_eq!(values[0].to_bits(), u32::from(bits) << 16, "{bits:04x}");
            let mut stored = Vec::new();
            Bf16.encode(&values, 1, &mut stored);
            let quiet = if expected.is_nan() { bits | 0x0040 } else { bits };
            assert_eq!(stored, quiet.to_le_bytes(), "{bits:04x}");
        }
    }

    #[test]
    fn rounding_is_to_nearest_even_and_never_to_infinity() {
        for bits in (0..=u32::MAX).step_by(9973) {
            let value = f32::from_bits(bits);
            let nearest = bf16::from_f32(value);
            let has_overflown = value.is_finite() && !nearest.is_finite();
            let largest = bf16::from_f32(f32::MAX.copysign(value)).to_bits() - 1;
            let expected = if has_overflown { largest } else { nearest.to_bits() };
            assert_eq!(from_f32(value), expected, "{value:e}");
        }
        assert_eq!(from_f32(f32::MAX), bf16::MAX.to_bits());
        assert_eq!(from_f32(f32::MIN), bf16::MIN.to_bits());
    }
}
