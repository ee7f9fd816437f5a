//! The flow of weights: ledger, window, sources, loader threads.
//!
//! `window` and `traversal` decide, `flow` moves, `source` reads (into `slots`), `ledger` counts.
//! Nothing here knows tract or what a block means; nothing above reads a weight by another way.

mod flow;
mod ledger;
mod loaders;
mod owned;
mod slots;
mod source;
mod trace;
mod traversal;
mod window;

pub use flow::{
    BlockLease, Course, Flow, FlowCounters, Keep, load_to_stay_verified, load_verified,
};
pub use ledger::{Category, Claim, Grant, Ledger, MARGIN_BYTES, OverBudget};
pub use loaders::Loaders;
pub use owned::OwnedFlow;
pub use slots::Slots;
pub use source::{
    BlockMemory, DirectSource, Faults, FaultySource, MappedSource, ReadSource, ThrottledSource,
    WeightSource, slot_bytes,
};
pub use trace::{COMPUTE_THREADS, Event, Node, NodeSpan, Span, Trace, What};
pub use traversal::{Rules, Spot, Traversal, Wake, Work};

use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use std::sync::Arc;
use thiserror::Error;

/// Which unit a loader takes next.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Dealing {
    /// The next that nobody has taken.
    #[default]
    Next,
    /// Loader i of m takes units i, i + m, i + 2m and so on, as PIPELOAD's loading agents do.
    Stride,
}

/// When the memory of a unit goes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Release {
    /// When compute has used it.
    #[default]
    AfterUse,
    /// When the pass has ended.
    AtEnd,
}

/// One block of a tape: where it lies and how it is recognized.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Block {
    /// Index of its file in the source.
    pub file: usize,
    pub offset: u64,
    pub bytes: u64,
    /// XXH3-64 of its bytes.
    pub checksum: u64,
}

/// Why a weight could not be brought in.
#[derive(Clone, Debug, Error)]
pub enum StreamError {
    #[error("{path}: cannot read {bytes} bytes at offset {offset}: {error}\ncheck the disk, then restore the version or shard it again", path = path.display())]
    Io { path: PathBuf, offset: u64, bytes: u64, error: Arc<std::io::Error> },
    #[error("{path}: block at offset {offset} ({bytes} bytes) is damaged: its checksum is {found:016x}, not {expected:016x}\nrun hermes-shard verify, then restore the version or shard it again", path = path.display())]
    Damaged { path: PathBuf, offset: u64, bytes: u64, expected: u64, found: u64 },
    #[error("{path}: table row at offset {offset} is damaged: its checksum disagrees\nrun hermes-shard verify, then restore the version or shard it again", path = path.display())]
    DamagedRow { path: PathBuf, offset: u64 },
    #[error("{path}: is no longer what it was: {what}\nrun hermes-shard verify, then restore the version or shard it again", path = path.display())]
    Lost { path: PathBuf, what: String },
    #[error("a loader failed within: the log says where\nload the model again")]
    Loader,
    #[error("the pass was cancelled")]
    Cancelled,
}
