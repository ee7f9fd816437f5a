//! Models under one budget, and the passes that use them.
//!
//! `service` is what others see, `inbox` and `queue` where requests wait, `worker` the thread that
//! serves them; `model` is what is loaded, `tape` where its weights lie, `pins` which of them stay,
//! `pass` one traversal. Nothing here knows HTTP or JSON; nothing below knows requests.

mod array;
mod error;
mod inbox;
mod model;
mod pass;
mod pins;
mod pressure;
mod queue;
mod service;
mod stats;
mod tape;
mod worker;

pub use array::{Array, ArrayError};
pub use error::{EngineError, ErrorKind};
pub use model::Model;
pub use pass::{Cancel, PassStats};
pub use pressure::Pressure;
pub use service::{Config, Engine, Reply, Request, SourceKind};
pub use stats::{Counted, EngineStats, Loaded, ModelStats, Progress};
