//! HTTP and JSON: the Open Inference Protocol v2 and OpenAI's embeddings on Unix sockets and ports.
//!
//! Requests are bounded, parsed into [`crate::engine::Request`]s and answered from the engine's
//! callbacks; on the event loop nothing opens, reads or lists a file. Nothing below this module knows
//! HTTP, and of JSON only the manifest and the profile; nothing here knows tract, blocks or windows.

mod activity;
mod body;
mod caller;
mod choice;
mod connections;
mod deadline;
mod departure;
mod docs;
mod embed;
pub mod embeddings_json;
mod envelope;
mod error;
mod events;
mod gate;
mod generate;
mod generation_fields;
pub mod generation_json;
mod granted;
mod helpers;
mod install;
mod job;
mod kinds;
mod language;
mod listeners;
mod metadata;
mod metrics;
mod oip;
mod openai;
mod pieces;
mod places;
mod plan;
mod replies;
mod repository;
mod rights;
mod routes;
mod server;
mod show;
mod speed;
mod stall;
mod state;
mod stats;
mod target;
mod texts;
mod tokenizer;
mod tokenizers;
mod trace;
mod traffic;
mod vectors;
mod versions;
mod writing;

pub use error::ApiError;
pub use helpers::HELPER_THREADS;
pub use routes::routes;
pub use server::{ServeError, serve};
