//! `a5`: 5-bit integers, scale and minimum of groups of 32; 5 + 1/2 + 16/depth bits a weight.

use super::affine::{Affine, scales::Floats};

/// A plane of four bits and one of one.
#[derive(Debug)]
pub(super) struct A5;

impl Affine for A5 {
    const NAME: &'static str = "a5";
    const CODE: u64 = 0xa5;
    const DEPTH: usize = 32;
    const LOW_BITS: usize = 4;
    const HIGH_BITS: usize = 1;
    const CLIP: f32 = 0.1;
    type Scales = Floats<8>;
}
