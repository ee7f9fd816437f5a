//! `q8`: 8-bit integers, groups of 32; 8.5 bits a weight.

use super::{
    GROUP_DEPTH,
    grouped::{Grouped, VECTOR},
    simd::lanes::Lanes,
};

/// Bytes in the order of the run.
#[derive(Debug)]
pub(super) struct Q8;

impl Grouped for Q8 {
    const NAME: &'static str = "q8";
    const CODE: u64 = 8;
    const BITS: usize = 8;
    const LOWEST: f32 = -128.0;
    const HIGHEST: f32 = 127.0;
    const TARGETS: &'static [f32] = &[127.0, 126.4, 127.6, -128.0, -127.4, -128.6];

    fn pack<const LANES: usize>(integers: &[[i8; LANES]; GROUP_DEPTH], stored: &mut Vec<u8>) {
        stored.extend(integers.as_flattened().iter().map(|integer| integer.cast_unsigned()));
    }

    #[inline(always)]
    fn vector<L: Lanes>(packed: &[[u8; VECTOR]], index: usize) -> L {
        L::signed(L::bytes(&packed[index]))
    }
}
