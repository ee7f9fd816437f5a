//! Arrays, and the text and bytes that they travel as: what clients and the daemon share of the
//! Open Inference Protocol v2, without HTTP.

mod array;
pub mod infer_json;
pub mod infer_reply;
pub mod infer_tensor;
pub mod json;
pub mod npy;
pub mod pooling;
pub mod python_json;
pub mod quote;
pub mod table;
pub mod tensor_json;

pub use array::{Array, ArrayError};

/// The header that says how many bytes of JSON come before binary tensor data, in requests and
/// replies.
pub const JSON_BYTES_HEADER: &str = "inference-header-content-length";

/// About what one piece of a body holds that is made as its client takes it.
pub const PIECE_BYTES: usize = 32 << 10;
