//! The board that a profile is of.

use serde::{Deserialize, Serialize};

/// What a measurement depends on beside the model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Board {
    /// The processor's own name.
    pub cpu: String,
    /// The cores that Hermes may use: compute takes them from the first, loaders from the last.
    pub cores: Vec<Core>,
    pub page_bytes: u64,
    /// The kernel's release, as `uname -r` prints it.
    pub kernel: String,
    /// The disk that holds the model: what it is called, what file system is on it, and what the
    /// kernel reads ahead of it.
    pub disk: String,
}

/// A core and how fast it is.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Core {
    /// As the kernel numbers it.
    pub id: usize,
    /// Relative to the fastest: above 0, at most 1.
    pub speed: f64,
}
