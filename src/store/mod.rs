//! The model on disk: element types, manifest, layer files, the store's folders and versions.
//!
//! Everything read here is untrusted until parsed: no length, offset, name or checksum is
//! believed before it was verified. Nothing here knows tract, windows or HTTP.

mod amend;
mod archive;
mod batch;
mod decoder;
mod demand;
mod dtype;
mod error;
mod field;
mod folder;
mod generation;
mod install;
pub mod layer_file;
pub mod manifest;
mod package;
#[cfg(test)]
mod power_tests;
mod precision;
mod precision_summary;
mod rehearsal;
mod served;
pub mod tar;
mod text;
mod verify;
mod versions;

pub use amend::amend;
pub use archive::{Archive, BUFFER_BYTES, Progress, Received, Verified};
pub use decoder::{Cache, Decoder, NoDecoder};
pub use demand::Demand;
pub use dtype::Dtype;
pub use error::{FormatError, StoreError};
pub use folder::{ModelDir, Serving, Store, check_room};
pub use generation::{
    GENERATION_FORMAT, GENERATION_HEAP_BYTES_PER_BYTE, GENERATION_NAME, Generation,
    MAX_GENERATION_BYTES, SamplingDefaults,
};
pub use install::{Staging, check_writable, install, staging};
pub use layer_file::block_rows;
pub use package::Package;
pub use precision::{
    Calibration, Measure, PRECISION_FORMAT, PRECISION_NAME, Precision, Probe, TensorPrecision,
};
pub use precision_summary::{Loud, PrecisionSummary};
pub use rehearsal::Rehearsal;
pub use served::Served;
pub use text::check_length;
pub use verify::Problem;
pub use versions::{Collected, Removed, RemovedModel, Role, VersionInfo};
