//! What makes the engine a system service: config, signals, the service manager, who may do what.
//!
//! `config` reads the settings, `listen` opens what clients connect to, `lifecycle` obeys signals and
//! talks to the service manager by `notify` and `watchdog`, `pressure` follows how short memory is,
//! `rights` and `token` say what a client may do. Nothing here knows HTTP; the event loop that `api`
//! serves on is the only thing they share.

mod activation;
pub mod address;
pub mod config;
pub mod journal;
mod lifecycle;
pub mod listen;
pub mod listener;
mod notify;
mod pressure;
pub mod rights;
pub mod socket;
pub mod token;
mod watchdog;

pub use lifecycle::{Control, Lifecycle, LifecycleError, Live, Phase};
