//! `bf16`: the upper half of an `f32`, rounded to nearest even.

use super::{
    Codec,
    simd::{self, Kernel},
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

    fn error_bound(&self, max_abs: f32) -> f32 {
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
