use crate::graph::{AtNode, GraphError};
use crate::plan::{LadderError, PlanError, TargetError};
use crate::store::StoreError;
use crate::stream::{OverBudget, StreamError};
use std::sync::Arc;
use thiserror::Error;

/// Why the engine did not do what it was asked.
#[derive(Debug, Error)]
pub enum EngineError {
    /// No model of that name is in the store.
    #[error(
        "model \"{model}\" is not in the store\ninstall it with hermes-shard build --name {model}"
    )]
    UnknownModel { model: String },
    /// The model has no such variant.
    #[error(
        "model \"{model}\" has no variant \"{variant}\"\nit has {}; shard it again with --variants {variant}",
        known.join(", ")
    )]
    UnknownVariant { model: String, variant: String, known: Vec<String> },
    /// The request does not fit the model.
    #[error("{0}")]
    Invalid(String),
    /// The budget does not suffice.
    #[error(transparent)]
    OverBudget(#[from] OverBudget),
    /// The budget does not suffice for what a request's values ask of a node.
    #[error("{node} makes something whose size the request's values decide: {refused}")]
    Decided { node: AtNode, refused: OverBudget },
    /// Less than what cannot be given back.
    #[error(
        "a budget of {budget_bytes} bytes is too small: the process, loaded graphs and the smallest window take {least_bytes}\n\
         give at least that and what requests need, or unload models first"
    )]
    BudgetTooSmall { budget_bytes: u64, least_bytes: u64 },
    /// The window cannot hold the model's largest block.
    #[error(
        "a window of {window_bytes} bytes is smaller than a block of {block_bytes} of model \"{model}\"\n\
         give --window at least {block_bytes}"
    )]
    WindowTooSmall { model: String, window_bytes: u64, block_bytes: u64 },
    /// Nothing is known of the model on this board.
    #[error(
        "model \"{model}\" is not measured on this board\nmeasure it with hermesctl profile {model}"
    )]
    NotMeasured { model: String },
    /// There is no plan for what is asked.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// Nothing is known of what the model's precisions do to its answers.
    #[error("there is no choice of precisions for model \"{model}\": {why}\n{advice}")]
    NoChoice { model: String, why: String, advice: String },
    /// What is known of the model's precisions cannot be reckoned with.
    #[error(transparent)]
    Ladder(#[from] LadderError),
    /// No choice of precisions meets what is asked.
    #[error(transparent)]
    Target(#[from] TargetError),
    /// None meets it while memory is short.
    #[error("memory is short now: {0}\nask again later")]
    ShortOfMemory(TargetError),
    /// The store's files cannot be used.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The graph cannot be run.
    #[error(transparent)]
    Graph(#[from] GraphError),
    /// A copy of this program that imported the graph was refused it, or did not survive it.
    #[error(
        "model \"{model}\" version {version} is not to be loaded: {why}\n\
         install another version, or have it tried again with hermesctl load {model}"
    )]
    Unfit { model: String, version: String, why: String },
    /// A weight could not be brought in; the model is out of service from here on.
    #[error(transparent)]
    Stream(#[from] StreamError),
    /// An earlier failure took the model out of service.
    #[error("model \"{model}\" is out of service since an earlier error: {cause}")]
    OutOfService { model: String, cause: String },
    /// The model generates no text.
    #[error("model \"{model}\" generates no text: {why}")]
    NoText { model: String, why: String },
    /// A text takes more than the budget, whoever else may be there.
    #[error(
        "{tokens} tokens with model \"{model}\" take a budget of {needed_bytes} bytes, there are {budget_bytes}\n\
         give {most_tokens} tokens at most, prompt and answer together, or --budget at least {needed_bytes}"
    )]
    TextTooLong {
        model: String,
        tokens: usize,
        most_tokens: usize,
        budget_bytes: u64,
        needed_bytes: u64,
    },
    /// Another version of the model is served than the one that is asked for.
    #[error("version {version} of model \"{model}\" is served, not {wanted}\nask again")]
    OtherVersion { model: String, wanted: String, version: String },
    /// The model was unloaded while it generated a text.
    #[error("model \"{model}\" was unloaded meanwhile")]
    Unloaded { model: String },
    /// The model was loaded anew, or another version of it, while it generated a text.
    #[error("model \"{model}\" was replaced meanwhile by version {version}\nask again")]
    Replaced { model: String, version: String },
    /// The queue is full.
    #[error("the queue of {limit} requests is full\ntry again later")]
    Busy { limit: usize },
    /// The client went away, or the engine stops.
    #[error("the request was cancelled")]
    Cancelled,
    /// What others that waited together are told, too.
    #[error(transparent)]
    Shared(Arc<EngineError>),
    /// A defect: of the model's graph, of tract or of ours.
    #[error("the pass failed within: {0}")]
    Internal(String),
    /// The engine's own thread is gone.
    #[error("the engine has broken down: the log says why\nrestart the daemon")]
    Broken,
    /// The system refused a thread, or a process.
    #[error("cannot start a thread or process: {0}")]
    Thread(std::io::Error),
    /// The system allows fewer threads than will be needed.
    #[error(
        "the system lets the process have {had} threads, {needed} are needed at once: {source}\n\
         raise TasksMax= of the unit, pids.max of the cgroup or ulimit -u to that at least, or give fewer --threads"
    )]
    TooFewThreads { had: usize, needed: usize, source: std::io::Error },
    /// What was measured of the model is not enough to plan by.
    #[error(
        "model \"{model}\" could not be measured on this board: {why}\n\
         it is played without a plan; hermesctl profile {model} tries again"
    )]
    NotMeasurable { model: String, why: String },
}

/// What kind of answer an error calls for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    /// There is no such thing.
    NotFound,
    /// The request is wrong.
    Invalid,
    /// Something else has to be done first.
    Conflict,
    /// The request is larger than what there is room for.
    TooLarge,
    /// Nobody waits for the answer.
    Cancelled,
    /// Not now.
    Unavailable,
    /// Our side is wrong.
    Internal,
}

impl EngineError {
    /// What a user can do about it, where the message does not say.
    pub fn advice(&self) -> Option<String> {
        match self {
            EngineError::Store(error) => error.advice(),
            _ => None,
        }
    }

    /// The kind of answer it calls for.
    pub fn kind(&self) -> ErrorKind {
        match self {
            EngineError::UnknownModel { .. } => ErrorKind::NotFound,
            EngineError::NotMeasured { .. }
            | EngineError::OtherVersion { .. }
            | EngineError::Unloaded { .. }
            | EngineError::Replaced { .. }
            | EngineError::NotMeasurable { .. }
            | EngineError::NoChoice { .. }
            | EngineError::Ladder(_)
            | EngineError::Target(TargetError::Ladder(_)) => ErrorKind::Conflict,
            EngineError::UnknownVariant { .. }
            | EngineError::Invalid(_)
            | EngineError::NoText { .. }
            | EngineError::BudgetTooSmall { .. }
            | EngineError::Plan(_)
            | EngineError::Target(_) => ErrorKind::Invalid,
            EngineError::OverBudget(refused) | EngineError::Decided { refused, .. } => {
                match refused.can_fit() {
                    true => ErrorKind::Unavailable,
                    false => ErrorKind::TooLarge,
                }
            }
            EngineError::TextTooLong { .. } => ErrorKind::TooLarge,
            EngineError::Cancelled | EngineError::Stream(StreamError::Cancelled) => {
                ErrorKind::Cancelled
            }
            EngineError::Busy { .. } | EngineError::Broken | EngineError::ShortOfMemory(_) => {
                ErrorKind::Unavailable
            }
            EngineError::WindowTooSmall { .. }
            | EngineError::Store(_)
            | EngineError::Graph(_)
            | EngineError::Unfit { .. }
            | EngineError::Stream(_)
            | EngineError::OutOfService { .. }
            | EngineError::Internal(_)
            | EngineError::Thread(_)
            | EngineError::TooFewThreads { .. } => ErrorKind::Internal,
            EngineError::Shared(error) => error.kind(),
        }
    }

    /// The grant that was refused, where that is the cause.
    pub fn over_budget(&self) -> Option<OverBudget> {
        match self {
            EngineError::OverBudget(refused) => Some(*refused),
            EngineError::Shared(error) => error.over_budget(),
            _ => None,
        }
    }
}
