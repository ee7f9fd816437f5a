//! HTTP and JSON: the Open Inference Protocol v2 and OpenAI's embeddings on a Unix socket.
//!
//! Requests are bounded, parsed into [`crate::engine::Request`]s and answered from the engine's
//! callbacks; on the event loop nothing opens, reads or lists a file. Nothing below this module knows
//! HTTP, and of JSON only the manifest and the profile; nothing here knows tract, blocks or windows.

mod activity;
mod body;
mod connections;
mod deadline;
mod embed;
pub mod embeddings_json;
mod envelope;
mod error;
mod granted;
mod helpers;
pub mod infer_json;
pub mod infer_reply;
pub mod infer_tensor;
mod install;
pub mod json;
mod metrics;
mod oip;
mod openai;
mod pieces;
mod plan;
mod quote;
mod repository;
mod rights;
mod routes;
mod server;
mod stall;
mod state;
mod stats;
pub mod table;
pub mod tensor_json;
mod tokenizer;
mod trace;
mod versions;
mod vocabulary;

pub use crate::daemon::size;
pub use body::JSON_BYTES_HEADER;
pub use error::ApiError;
pub use helpers::HELPER_THREADS;
pub use routes::routes;
pub use server::{ServeError, serve};
