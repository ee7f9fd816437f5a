//! Models under one budget, and the passes that use them.
//!
//! `service` is what others see, `inbox` and `queue` where requests wait, `worker` the thread that
//! serves them; `model` is what is loaded, `tape` where its weights lie, `sources` what brings them
//! in, `pins` which of them stay, `policy` how a pass goes, `crew` its threads, `pass` one traversal,
//! `rehearsal` the first import of a graph. Nothing here knows HTTP or JSON; nothing below knows requests.

mod admission;
mod catalogue;
mod command;
mod config;
mod crew;
mod doubt;
mod error;
mod inbox;
mod keepers;
mod known;
mod library;
mod loading;
mod measuring;
mod model;
mod needs;
mod pass;
mod pins;
mod planning;
mod policy;
mod pressure;
mod profiler;
mod queue;
pub mod rehearsal;
mod request;
mod residents;
mod room;
mod rows;
mod service;
mod sources;
mod stage;
mod stats;
mod tape;
mod trials;
mod turns;
mod worker;

pub use crate::graph::{Array, ArrayError, sample_inputs};
pub use catalogue::Described;
pub use config::{Config, DiskKind, EXPECTED_TOKENS, Policy};
pub use error::{EngineError, ErrorKind};
pub use keepers::Keeper;
pub use known::{Answered, Inquiry, Known};
pub use model::Model;
pub use needs::needed_bytes;
pub use pressure::Pressure;
pub use request::{Cancel, PassStats, Reply, Request};
pub use service::{Engine, PROCESS_BYTES};
pub use stats::{Counted, EngineStats, Loaded, ModelStats, Progress};
