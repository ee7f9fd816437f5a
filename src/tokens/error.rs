//! Why no text is to be cut by a tokenizer's rules, and how far they may go.

use super::patterns;
use thiserror::Error;

/// Most characters that rules may make of one: those of published tokenizers make one, or two.
pub(super) const MAX_FACTOR: u64 = 64;

/// Rules of a kind, one after the other: each goes over the whole text.
pub(super) const MAX_STEPS: usize = 64;

/// Lists of rules within each other: the library copies what is within once for each while it reads.
pub(super) const MAX_DEPTH: usize = 4;

/// Tokens round a text, and what they are called in all.
pub(super) const MAX_FRAME_TOKENS: usize = 1024;
pub(super) const MAX_FRAME_BYTES: usize = 64 << 10;

/// Longest name that stands for unknown words, and what words are continued and ended by: tokens hold
/// a copy each.
pub(super) const MAX_NAME_BYTES: usize = 64;

/// Longest word that is looked up by all of its beginnings; BERT's is 100.
pub(super) const MAX_WORD_CHARS: usize = 1024;

/// Rules that no text is to be cut by.
#[derive(Debug, PartialEq, Eq, Error)]
pub enum RuleError {
    #[error("model.dropout is {0}: words would be cut by chance; set it to null")]
    Dropout(String),
    #[error("model.{field} has {bytes} bytes; the limit is {MAX_NAME_BYTES}")]
    Name { field: &'static str, bytes: usize },
    #[error("model.max_input_chars_per_word is {0}; the limit is {MAX_WORD_CHARS}")]
    Word(usize),
    #[error("model.vocab has a word of {bytes} bytes with the id {id}, which another has too")]
    Shared { bytes: usize, id: u32 },
    #[error("post_processor.single has the text {0} times: it has to be there once, as A")]
    Copies(usize),
    #[error("post_processor has {0} templates: what is round a text is said by one")]
    Templates(usize),
    #[error("post_processor.single names {0:?}, which its special_tokens lack")]
    Missing(String),
    #[error("post_processor puts {0} tokens round a text; the limit is {MAX_FRAME_TOKENS}")]
    Frame(usize),
    #[error("post_processor names tokens by {0} bytes; the limit is {MAX_FRAME_BYTES}")]
    Names(usize),
    #[error("{field} has {count} rules; the limit is {MAX_STEPS}")]
    Steps { field: &'static str, count: usize },
    #[error("{0} has lists of rules within each other; the limit is {MAX_DEPTH}")]
    Depth(&'static str),
    #[error(
        "{field}: up to {kind}, {factor} characters come of one; the limit is {MAX_FACTOR}\n\
         take rules out that make texts longer"
    )]
    Growth { field: &'static str, kind: String, factor: u64 },
    #[error("{field} has a rule of the unknown type {kind:?}")]
    Unknown { field: &'static str, kind: String },
    #[error("precompiled_charsmap is not base64: {0}")]
    Base64(String),
    #[error("precompiled_charsmap has a table of {table} bytes in {whole}")]
    Map { table: u64, whole: u64 },
    #[error("precompiled_charsmap has a table that leads in circles")]
    Circle,
    #[error(
        "{field}: compiling its patterns takes {bytes} bytes; the limit is {}",
        patterns::MAX_BYTES
    )]
    Patterns { field: &'static str, bytes: u64 },
    #[error("the rules cannot be read: {0}")]
    Unread(String),
}
