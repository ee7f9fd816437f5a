//! Models under one budget, and the passes that use them.
//!
//! `service` is what others see, `worker` the thread that takes `turns`, `stage` where passes are
//! played, `room` what may be held when, `model` what is loaded and `reel` how it is played. Each
//! module imports only what stands below it. Nothing here knows HTTP or JSON; nothing below knows
//! requests.

mod admission;
mod ahead;
mod beside;
mod catalogue;
mod choice;
mod choices;
mod choosing;
mod command;
mod config;
mod crew;
mod doubt;
mod error;
mod files;
mod generation;
mod inbox;
mod keepers;
mod known;
mod ladder;
mod library;
mod loading;
mod measuring;
mod model;
mod needs;
mod opening;
mod pace;
mod pass;
mod past;
mod pins;
mod planning;
mod policy;
mod pressure;
mod profiler;
mod queue;
mod rates;
mod reckoning;
mod reel;
pub mod rehearsal;
mod request;
mod residents;
mod room;
mod rows;
mod service;
mod session;
mod sessions;
mod signature;
#[cfg(test)]
mod simulation;
mod sources;
mod speculation;
mod stage;
mod standing;
mod stats;
mod step;
mod tape;
mod targets;
mod texts;
mod trials;
mod turns;
mod worker;

pub use crate::graph::sample_inputs;
pub use crate::wire::{Array, ArrayError};
pub use catalogue::Described;
pub use choice::Choice;
pub use config::{Config, DiskKind, EXPECTED_TOKENS, Policy};
pub use error::{EngineError, ErrorKind};
pub use generation::{Decide, Ended, Generated, Next, Prompt, SessionStats};
pub use keepers::Keeper;
pub use known::{Answered, AnsweredChoice, ChosenTensor, Inquiry, Known, More};
pub use model::Model;
pub use needs::{Budget, budgets};
pub use pressure::Pressure;
pub use request::{Cancel, Class, PassStats, Reply, Request};
pub use room::{LONG_PATIENCE, Room, TICK};
pub use service::{Engine, SERVER_BYTES, daemon_bytes};
pub use sessions::SESSION_LIMIT;
pub use stats::{Counted, EngineStats, Loaded, ModelStats, Progress};
pub use targets::Targets;
pub use turns::{BULK_LIMIT, QUEUE_LIMIT};
