use crate::checkpoint::CheckpointError;
use crate::graph::skim::SkimError;
use crate::graph::{GraphError, WalkError};
use crate::store::StoreError;
use std::io;

/// Why no version is made of a model. What can be done about it stands on a second line, in the
/// words of hermes-shard's options.
#[derive(Debug, thiserror::Error)]
pub enum ShardError {
    /// The model's file is none, or lacks something.
    #[error(transparent)]
    Skim(#[from] SkimError),
    /// The checkpoint is none, or damaged.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// The graph cannot be served.
    #[error(transparent)]
    Graph(#[from] GraphError),
    /// The store does not take it.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The system refused something.
    #[error("cannot {what}: {source}")]
    Io {
        /// What was tried, and on which file.
        what: String,
        /// What the system said.
        source: io::Error,
    },
    /// What is asked for, or what lies beside the model, does not fit it.
    #[error("{0}")]
    Unfit(String),
    /// Who looks on wants it to end.
    #[error("interrupted; what was written is removed")]
    Interrupted,
}

impl From<WalkError> for ShardError {
    fn from(error: WalkError) -> ShardError {
        match error {
            WalkError::Weight(error) => ShardError::Store(error),
            WalkError::Inputs(_) => ShardError::Unfit(error.to_string()),
            WalkError::Interrupted => ShardError::Interrupted,
        }
    }
}

impl ShardError {
    /// What can be done about it, where that is not said already.
    pub fn advice(&self) -> Option<String> {
        match self {
            ShardError::Store(error) => error.advice(),
            _ => None,
        }
    }

    /// What makes an error of what the system said about `what`.
    pub(super) fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> ShardError {
        let what = what.into();
        move |source| ShardError::Io { what, source }
    }
}

/// [`ShardError::Unfit`] in these words.
macro_rules! unfit {
    ($($words:tt)*) => { $crate::shard::ShardError::Unfit(format!($($words)*)) };
}

/// Returns [`ShardError::Unfit`] in these words where the condition does not hold.
macro_rules! ensure {
    ($condition:expr, $($words:tt)*) => {
        if !$condition {
            return Err(unfit!($($words)*));
        }
    };
}

pub(super) use {ensure, unfit};
