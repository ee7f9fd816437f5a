//! The model on disk: element types, manifest, layer files, the store's folders and versions.
//!
//! Everything read here is untrusted until parsed: no length, offset, name or checksum is
//! believed before it was verified. Nothing here knows tract, windows or HTTP.

mod dtype;
pub mod layer_file;
pub mod manifest;

pub use dtype::Dtype;
