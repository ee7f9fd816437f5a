//! Models under one budget, and the passes that use them.
//!
//! `service` owns the threads and the queue, `model` what is loaded, `tape` where its weights
//! lie, `pass` one traversal. Nothing here knows HTTP or JSON; nothing below knows requests.

mod array;
mod error;
mod model;
mod pass;
mod progress;
mod service;
mod tape;

pub use array::{Array, ArrayError};
pub use error::{EngineError, ErrorKind};
pub use model::Model;
pub use pass::{Cancel, PassStats};
pub use progress::Progress;
pub use service::{Config, Engine, Reply, Request, SourceKind};
