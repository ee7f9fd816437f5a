//! Variants of a weight: how values are encoded on disk and decoded under the kernels.
//!
//! A codec encodes a *run*: `depth` steps of `lanes` interleaved values (value `i` of lane `l`
//! stands at `i * lanes + l`). A panel of a matrix is a run of 16 lanes and depth k; a row of an
//! embedding table, or a flat tensor, is a run of one lane. Nothing here does I/O or knows the
//! graph.
//!
//! A new codec is one file here and one line in [`ALL`].

mod bf16;
mod f16;
mod f32;
mod grouped;
mod q4;
mod q8;
mod simd;

use std::fmt;

/// Rows of a panel: the lanes of tract's `PackedFormat` with r = 16, for which every supported
/// processor has kernels.
pub const PANEL_ROWS: usize = 16;

/// Depth of a quantized group: the values of one lane that share a scale.
pub const GROUP_DEPTH: usize = 32;

/// Code of tensors that are stored as their own bytes, of whatever dtype; not a [`Codec`], since
/// nothing is encoded.
pub const RAW: u64 = 0;

/// Name of [`RAW`].
pub const RAW_NAME: &str = "raw";

/// Every codec, best first.
pub const ALL: &[&dyn Codec] = &[&f32::F32, &bf16::Bf16, &f16::F16, &q8::Q8, &q4::Q4];

/// The codec that users call `name`.
pub fn by_name(name: &str) -> Option<&'static dyn Codec> {
    ALL.iter().copied().find(|codec| codec.name() == name)
}

/// The codec that a layer file calls `code`; `None` for [`RAW`] too.
pub fn by_code(code: u64) -> Option<&'static dyn Codec> {
    ALL.iter().copied().find(|codec| codec.code() == code)
}

/// Index of the first infinity or NaN.
pub fn first_non_finite(values: &[f32]) -> Option<usize> {
    const CHUNK: usize = 64;
    let is_suspect = |chunk: &[f32]| chunk.iter().fold(false, |found, v| found | !v.is_finite());
    let index = values.chunks(CHUNK).position(is_suspect)? * CHUNK;
    let inside = values[index..].iter().position(|v| !v.is_finite())?;
    Some(index + inside)
}

/// One encoding of a run of values.
pub trait Codec: Send + Sync + fmt::Debug {
    /// The name users write: `f32`, `q8`.
    fn name(&self) -> &'static str;

    /// The code that stands for it in a layer file.
    fn code(&self) -> u64;

    /// Stored bytes of a run of `depth` steps of `lanes` values.
    fn stored_bytes(&self, depth: usize, lanes: usize) -> usize;

    /// Appends the encoding of `values` (`depth * lanes` of them) to `stored`.
    ///
    /// Codecs with scales cannot express infinities and NaN: they panic on them, so check untrusted
    /// weights with [`first_non_finite`] before.
    fn encode(&self, values: &[f32], lanes: usize, stored: &mut Vec<u8>);

    /// Decodes a whole run; `stored.len()` and `values.len()` agree with [`Codec::stored_bytes`].
    ///
    /// Panics where they do not.
    fn decode(&self, stored: &[u8], lanes: usize, values: &mut [f32]);

    /// Largest absolute error of a decoded value in a group of largest magnitude `max_abs`.
    fn error_bound(&self, max_abs: f32) -> f32;

    /// Whether the stored bytes of a run are its `f32` values, so that nothing need be decoded.
    fn is_plain_f32(&self) -> bool {
        false
    }
}
