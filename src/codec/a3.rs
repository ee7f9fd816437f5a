//! `a3`: 3-bit integers, scale and minimum of groups of 16; 3 + 1/2 + 32/depth bits a weight.

use super::affine::{Affine, scales::Fifteenths};

/// A plane of two bits and one of one.
#[derive(Debug)]
pub(super) struct A3;

impl Affine for A3 {
    const NAME: &'static str = "a3";
    const CODE: u64 = 0xa3;
    const DEPTH: usize = 16;
    const LOW_BITS: usize = 2;
    const HIGH_BITS: usize = 1;
    const CLIP: f32 = 0.31;
    type Scales = Fifteenths;
}
