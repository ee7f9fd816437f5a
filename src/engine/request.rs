//! What is asked of the engine, and what is answered.

use super::choice::Choice;
use super::error::EngineError;
use super::step::{Step, Stepped};
use super::targets::TargetKey;
use crate::plan::Target;
use crate::stream::{Grant, Trace};
use crate::wire::Array;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

/// A request for one pass.
#[derive(Clone, Debug)]
pub struct Request {
    pub model: String,
    pub inputs: Vec<(String, Array)>,
    /// Names of the outputs wanted; all where empty.
    pub outputs: Vec<String>,
    /// Within which time it is to be computed, and how accurately; what is open there is as the
    /// engine has it for the model.
    pub target: Option<Target>,
    pub cancel: Cancel,
    /// Where to note what happens in its pass.
    pub trace: Option<Arc<Trace>>,
}

/// A pass's results.
#[derive(Clone, Debug)]
pub struct Reply {
    /// Version of the model that answers.
    pub version: String,
    /// The precisions of its weights in the pass.
    pub choice: Choice,
    pub outputs: Vec<(String, Array)>,
    pub stats: PassStats,
    /// What the ledger has granted for the outputs; to be kept for as long as they are.
    pub held: Arc<Grant>,
}

/// A request's way to end early. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Cancel(Arc<AtomicBool>);

impl Cancel {
    /// Not cancelled.
    pub fn new() -> Cancel {
        Cancel::default()
    }

    /// Ends the request at the next node or block.
    pub fn cancel(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Whether it was cancelled.
    pub fn is_cancelled(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// What a pass cost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PassStats {
    /// Time the request waited for its pass.
    pub queue_us: u64,
    /// Requests that shared the pass.
    pub seats: usize,
    /// From the first block's loading to the last node.
    pub latency_us: u64,
    /// Time compute waited for blocks.
    pub stall_us: u64,
    /// Bytes of tape read.
    pub bytes_read: u64,
    /// Most bytes of the tape held at once, pinned blocks not counted.
    pub window_peak_bytes: u64,
    /// Time of processors that loaders took.
    pub loader_cpu_us: u64,
    /// Bytes the ledger granted for activations.
    pub activation_bytes: u64,
}

/// What is called with a result.
type Take<T> = Box<dyn FnOnce(Result<T, EngineError>) + Send>;

/// Who waits for a result. Given once, from the engine's thread; where it is dropped without, by
/// whatever breaks off, it gives an error: nobody waits for ever.
pub struct Answer<T>(Option<Take<T>>);

impl<T> Answer<T> {
    /// Calls `take` with the result.
    pub fn new(take: impl FnOnce(Result<T, EngineError>) + Send + 'static) -> Answer<T> {
        Answer(Some(Box::new(take)))
    }

    /// Tells several the same.
    pub fn give_all(first: Answer<T>, others: Vec<Answer<T>>, result: Result<T, EngineError>)
    where
        T: Clone,
    {
        if others.is_empty() {
            return first.give(result);
        }
        let result = result.map_err(Arc::new);
        for answer in std::iter::once(first).chain(others) {
            answer.give(result.clone().map_err(EngineError::Shared));
        }
    }

    /// Tells the result.
    pub fn give(mut self, result: Result<T, EngineError>) {
        if let Some(take) = self.0.take() {
            take(result);
        }
    }
}

impl<T> Drop for Answer<T> {
    fn drop(&mut self) {
        if let Some(take) = self.0.take() {
            take(Err(EngineError::Internal("it was broken off".to_string())));
        }
    }
}

/// How a request is waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// By itself.
    Interactive,
    /// As one of many, by a client that waits for all of them.
    Bulk,
    /// By a session that goes on with what comes of it.
    Session,
}

/// Where requests wait for their pass. Lines take turns, so that whoever has many requests of a
/// model keeps nobody waiting who has one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    pub model: String,
    pub class: Class,
    /// All in a pass have the same precisions.
    pub target: Option<TargetKey>,
}

/// A request that waits for its pass.
pub struct Waiting {
    pub request: Request,
    pub class: Class,
    pub asked: Asked,
    pub since: Instant,
}

/// What is computed for a request, and who is told.
pub enum Asked {
    /// Its outputs, from its inputs.
    Reply(Answer<Reply>),
    /// A session's next tokens are read.
    Step(Box<Step>, Answer<Stepped>),
}

impl Waiting {
    /// A request that waits from now on.
    pub fn new(request: Request, class: Class, answer: Answer<Reply>) -> Waiting {
        Waiting { request, class, asked: Asked::Reply(answer), since: Instant::now() }
    }

    /// A session's step that waits from now on, for a request without inputs.
    pub fn of_step(request: Request, step: Box<Step>, answer: Answer<Stepped>) -> Waiting {
        let asked = Asked::Step(step, answer);
        Waiting { request, class: Class::Session, asked, since: Instant::now() }
    }

    /// The session's step, where it is one.
    pub fn step(&self) -> Option<&Step> {
        match &self.asked {
            Asked::Step(step, _) => Some(step),
            Asked::Reply(_) => None,
        }
    }

    /// Answers it with an error.
    pub fn refuse(self, error: EngineError) {
        match self.asked {
            Asked::Reply(answer) => answer.give(Err(error)),
            Asked::Step(_, answer) => answer.give(Err(error)),
        }
    }

    /// Where it waits.
    pub fn line(&self) -> Line {
        let Request { model, target, .. } = &self.request;
        Line { model: model.clone(), class: self.class, target: target.as_ref().map(TargetKey::of) }
    }
}
