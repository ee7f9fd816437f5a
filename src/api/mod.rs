//! HTTP and JSON: the Open Inference Protocol v2 and OpenAI's embeddings on a Unix socket.
//!
//! Requests are bounded, parsed into [`crate::engine::Request`]s and answered from the engine's
//! callbacks. Nothing below this module knows HTTP or JSON, and nothing here knows tract, blocks or
//! windows.

mod body;
pub mod client;
mod embed;
mod embeddings_json;
mod error;
pub mod infer_json;
mod install;
pub mod json;
mod oip;
mod openai;
mod pieces;
mod rights;
mod routes;
mod server;
pub use crate::daemon::size;
mod stall;
pub mod tensor_json;
mod tokenizer;
mod versions;

pub use error::ApiError;
pub use server::{ServeError, serve};
