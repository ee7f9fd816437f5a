//! `a4`: 4-bit integers, scale and minimum of groups of 16; 4 + 1/2 + 32/depth bits a weight.

use super::affine::{Affine, scales::Fifteenths};

/// Two steps of a group share a byte.
#[derive(Debug)]
pub(super) struct A4;

impl Affine for A4 {
    const NAME: &'static str = "a4";
    const CODE: u64 = 0xa4;
    const DEPTH: usize = 16;
    const LOW_BITS: usize = 4;
    const HIGH_BITS: usize = 0;
    const CLIP: f32 = 0.18;
    type Scales = Fifteenths;
}
