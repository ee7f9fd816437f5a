//! `q4`: 4-bit integers, groups of 32; 4.5 bits a weight.

use super::{
    GROUP_DEPTH,
    grouped::{Grouped, VECTOR},
    simd::lanes::Lanes,
};

/// Steps j and j + 16 of a group share a byte, so that both halves decode with whole vectors.
#[derive(Debug)]
pub(super) struct Q4;

/// Steps whose integers are the low nibbles; those of the others are the high ones.
const HALF: usize = GROUP_DEPTH / 2;

/// What is added to an integer to store it without a sign.
const BIAS: i8 = 8;

impl Grouped for Q4 {
    const NAME: &'static str = "q4";
    const CODE: u64 = 4;
    const BITS: usize = 4;
    const LOWEST: f32 = -8.0;
    const HIGHEST: f32 = 7.0;
    const TARGETS: &'static [f32] =
        &[-8.0, -7.0, -7.2, -7.4, -7.6, -7.8, -8.2, -8.4, -8.6, -8.8, 6.6, 6.8, 7.0, 7.2, 7.4, 7.6];

    fn pack<const LANES: usize>(integers: &[[i8; LANES]; GROUP_DEPTH], stored: &mut Vec<u8>) {
        let (low, high) = integers.split_at(HALF);
        let pairs = low.as_flattened().iter().zip(high.as_flattened());
        let nibble = |integer: i8| (integer + BIAS).cast_unsigned();
        stored.extend(pairs.map(|(low, high)| nibble(*low) | nibble(*high) << 4));
    }

    #[inline(always)]
    fn vector<L: Lanes>(packed: &[[u8; VECTOR]], index: usize) -> L {
        let is_high = index >= packed.len();
        let bytes = L::bytes(&packed[if is_high { index - packed.len() } else { index }]);
        let nibbles = L::field(bytes, if is_high { 4 } else { 0 }, 15);
        L::unsigned(nibbles).exactly_times_plus(L::splat(1.0), L::splat(-f32::from(BIAS)))
    }
}
