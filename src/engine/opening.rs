//! What a session is opened with.

use super::past::Past;
use super::step::Tenancy;
use super::targets::TargetKey;
use crate::stream::Grant;
use std::sync::Arc;

/// A session that is to be opened.
#[derive(Clone, Debug)]
pub struct Opening {
    pub model: String,
    pub version: Option<String>,
    /// Its prompt.
    pub ids: Arc<[u32]>,
    pub target: Option<TargetKey>,
    pub max_tokens: usize,
    /// Whether fewer do, where these never fit.
    pub is_usual: bool,
    pub context: Option<usize>,
    /// What who asks holds besides: it does not come free before this has ended.
    pub own_bytes: u64,
}

/// A session that was opened.
pub struct Opened {
    pub version: String,
    pub tenancy: Tenancy,
    /// Of a text that begins as the prompt does.
    pub past: Past,
    /// How many of its tokens are the prompt's.
    pub cached_tokens: usize,
    /// Most tokens that are generated.
    pub max_tokens: usize,
    /// Most tokens of the prompt that a pass reads.
    pub chunk: usize,
    /// Tokens of a pass at most whose logits can be looked at.
    pub most_rows: usize,
    pub needs: SessionNeeds,
    pub grant: Grant,
    /// Time it waited for that.
    pub queue_us: u64,
}

/// What a session holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SessionNeeds {
    /// Keys and values of all its tokens.
    pub kept_bytes: u64,
    /// What reading a part of the prompt takes besides.
    pub prefill_bytes: u64,
    /// What reading one token, and what is proposed behind it, takes besides.
    pub step_bytes: u64,
}

/// What a session holds beside: its thread, its tokens and names.
const BESIDE_BYTES: u64 = 128 << 10;

impl SessionNeeds {
    /// What it holds until its prompt is read.
    pub fn opening_bytes(&self) -> u64 {
        self.kept_bytes + self.prefill_bytes.max(self.step_bytes) + BESIDE_BYTES
    }

    /// What it holds from then on.
    pub fn lasting_bytes(&self) -> u64 {
        self.kept_bytes + self.step_bytes + BESIDE_BYTES
    }
}
