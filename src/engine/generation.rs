//! Text that a model generates: what is asked, who decides, what comes of it.

use super::choice::Choice;
use super::error::EngineError;
use super::request::Cancel;
use crate::plan::Target;
use std::time::Instant;

/// What whoever decides may hold for each token of a text until its end, in lists of all and in what
/// is known to be said. It is granted with the session.
pub(super) const SAID_BYTES: u64 = 64;

/// Decides how a text goes on.
pub trait Decide: Send {
    /// What follows, by the logits of the last position: one for each id of the vocabulary.
    ///
    /// It is called on the session's own thread, so that whoever takes long, as somebody who waits
    /// for a slow client, holds up this session alone. Once the session is cancelled it is to return
    /// soon.
    fn next(&mut self, logits: &[f32]) -> Next;
}

/// How a text goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// With this token.
    Token(u32),
    /// Not at all.
    End,
}

/// A text that is to go on.
pub struct Prompt {
    pub model: String,
    /// The version that the ids are of, which has to be served; any where there is none.
    pub version: Option<String>,
    /// Its tokens, one at least.
    pub ids: Vec<u32>,
    /// Most tokens that are generated.
    pub max_tokens: usize,
    /// Whether nobody asked for so many: where they do not fit, they become what fits.
    pub is_usual: bool,
    /// Most tokens that the model can look at, the prompt's among them, where that is known.
    pub context: Option<usize>,
    /// Within which time each pass is to be computed, and how accurately, as of a request.
    pub target: Option<Target>,
    pub decide: Box<dyn Decide>,
    /// What who asks holds besides, as long as the text is written.
    pub own_bytes: u64,
    pub cancel: Cancel,
    /// When it ends with what there is by then.
    pub deadline: Option<Instant>,
}

/// What was generated.
#[derive(Debug)]
pub struct Generated {
    /// Version of the model that generated it.
    pub version: String,
    /// The precisions of its weights.
    pub choice: Choice,
    /// The tokens that were decided on.
    pub ids: Vec<u32>,
    pub ended: Ended,
    pub stats: SessionStats,
}

/// Why no more was generated.
#[derive(Debug)]
pub enum Ended {
    /// It was decided so.
    Decided,
    /// All tokens were generated that were asked for, or that the model can look at.
    Length,
    /// Nobody waits for it any more.
    Cancelled,
    /// Its time was over.
    Deadline,
    /// The model was unloaded.
    Unloaded,
    /// Another version of the model, or the same anew, was put in its place.
    Replaced,
    /// Something broke.
    Failed(EngineError),
}

impl Ended {
    /// Why a text that was begun goes on no more.
    pub(super) fn by(error: EngineError) -> Ended {
        match error {
            EngineError::Cancelled => Ended::Cancelled,
            EngineError::Unloaded { .. } => Ended::Unloaded,
            EngineError::Replaced { .. } => Ended::Replaced,
            other => Ended::Failed(other),
        }
    }

    /// In a word, for answers and logs.
    pub fn name(&self) -> &'static str {
        match self {
            Ended::Decided => "decided",
            Ended::Length => "length",
            Ended::Cancelled => "cancelled",
            Ended::Deadline => "deadline",
            Ended::Unloaded => "unloaded",
            Ended::Replaced => "replaced",
            Ended::Failed(_) => "failed",
        }
    }
}

/// What a session took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SessionStats {
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Of these, those whose keys and values were there.
    pub cached_tokens: usize,
    /// Time until its keys and values had room.
    pub queue_us: u64,
    /// Time from then until the first logits.
    pub prefill_us: u64,
    /// Time from then to the end, whoever decided included.
    pub decode_us: u64,
    /// Passes it took part in.
    pub passes: u64,
    /// Tokens that were proposed by what stood in the text before.
    pub proposed_tokens: usize,
    /// Of these, those that it went on with.
    pub accepted_tokens: usize,
    /// Bytes of tape that these read, for all who shared them.
    pub bytes_read: u64,
    /// Bytes granted for its keys, values and steps.
    pub held_bytes: u64,
}
