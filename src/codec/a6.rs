//! `a6`: 6-bit integers, scale and minimum of groups of 32; 6 + 1/2 + 16/depth bits a weight.

use super::affine::{Affine, scales::Floats};

/// A plane of four bits and one of two.
#[derive(Debug)]
pub(super) struct A6;

impl Affine for A6 {
    const NAME: &'static str = "a6";
    const CODE: u64 = 0xa6;
    const DEPTH: usize = 32;
    const LOW_BITS: usize = 4;
    const HIGH_BITS: usize = 2;
    const CLIP: f32 = 0.06;
    type Scales = Floats<4>;
}
