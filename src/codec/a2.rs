//! `a2`: 2-bit integers, scale and minimum of groups of 16; 2 + 1/2 + 32/depth bits a weight.

use super::affine::{Affine, scales::Fifteenths};

/// Four steps of a group share a byte.
#[derive(Debug)]
pub(super) struct A2;

impl Affine for A2 {
    const NAME: &'static str = "a2";
    const CODE: u64 = 0xa2;
    const DEPTH: usize = 16;
    const LOW_BITS: usize = 2;
    const HIGH_BITS: usize = 0;
    const CLIP: f32 = 0.5;
    type Scales = Fifteenths;
}
