//! The tokens of a GGUF file, with their types and scores.

use crate::checkpoint::CheckpointError;
use crate::checkpoint::gguf::keys::{Keys, Strings};
use crate::wire::quote::quote_bytes;
use std::collections::BTreeSet;

/// The key that they stand under.
pub const TOKENS: &str = "tokenizer.ggml.tokens";

/// Longest token. Those of large vocabularies have 256 bytes, and each of a token's bytes is one
/// where two others may join.
const MAX_TOKEN_BYTES: usize = 1 << 10;

/// Types of tokens as GGML numbers them, 0 being none.
const KINDS: std::ops::RangeInclusive<i64> = 0..=6;

/// What a token is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Type {
    Normal,
    Unknown,
    Control,
    /// Found in texts as it is, before anything else.
    UserDefined,
    /// A row of the table without a token.
    Unused,
    /// A byte, where nothing else stands for a character.
    Byte,
}

/// All tokens.
#[derive(Debug)]
pub struct Vocabulary<'a> {
    keys: &'a Keys,
    tokens: &'a Strings,
    types: Option<&'a [i64]>,
    scores: Option<&'a [f32]>,
}

impl<'a> Vocabulary<'a> {
    /// The tokens of a file, where it has some.
    ///
    /// # Errors
    /// Types or scores are not as many as tokens or none of theirs, or tokens are no texts.
    pub fn read(keys: &'a Keys) -> Result<Option<Vocabulary<'a>>, CheckpointError> {
        const TYPES: &str = "tokenizer.ggml.token_type";
        const SCORES: &str = "tokenizer.ggml.scores";
        let Some(tokens) = keys.strings(TOKENS)? else { return Ok(None) };
        let (types, scores) = (keys.wholes(TYPES)?, keys.floats(SCORES)?);
        let lengths = [(TYPES, types.map(<[_]>::len)), (SCORES, scores.map(<[_]>::len))];
        for (key, length) in lengths {
            if let Some(length) = length.filter(|length| *length != tokens.len()) {
                let what = format!("it has {length} values for {} tokens", tokens.len());
                return Err(CheckpointError::key(keys.path(), key, what));
            }
        }
        for (index, token) in tokens.iter().enumerate() {
            if std::str::from_utf8(token).is_err() {
                let what = format!("token {index} is no UTF-8: {}", quote_bytes(token));
                return Err(CheckpointError::key(keys.path(), TOKENS, what));
            }
            if token.len() > MAX_TOKEN_BYTES {
                let length = token.len();
                let what =
                    format!("token {index} has {length} bytes; the limit is {MAX_TOKEN_BYTES}");
                return Err(CheckpointError::key(keys.path(), TOKENS, what));
            }
        }
        let wrong = |key: &str, index: usize, what: String| {
            let token = quote_bytes(tokens.get(index).unwrap_or_default());
            CheckpointError::key(keys.path(), key, format!("token {index}, {token}, {what}"))
        };
        let mut kinds = types.unwrap_or_default().iter().enumerate();
        if let Some((index, kind)) = kinds.find(|(_, kind)| !KINDS.contains(kind)) {
            let [first, last] = [KINDS.start(), KINDS.end()];
            return Err(wrong(
                TYPES,
                index,
                format!("is of type {kind}: {first} to {last} are known"),
            ));
        }
        let mut likelihoods = scores.unwrap_or_default().iter().enumerate();
        if let Some((index, score)) = likelihoods.find(|(_, score)| !score.is_finite()) {
            return Err(wrong(SCORES, index, format!("has the score {score}, which is no number")));
        }
        Ok(Some(Vocabulary { keys, tokens, types, scores }))
    }

    pub fn keys(&self) -> &'a Keys {
        self.keys
    }

    pub fn len(&self) -> usize {
        self.tokens.len()
    }

    /// The text of a token.
    pub fn text(&self, id: usize) -> Option<&'a str> {
        std::str::from_utf8(self.tokens.get(id)?).ok()
    }

    pub fn kind(&self, id: usize) -> Type {
        match self.types.map(|types| types[id]) {
            None | Some(1) => Type::Normal,
            Some(2) => Type::Unknown,
            Some(3) => Type::Control,
            Some(4) => Type::UserDefined,
            Some(6) => Type::Byte,
            Some(_) => Type::Unused,
        }
    }

    pub fn scores(&self) -> Option<&'a [f32]> {
        self.scores
    }

    /// Tokens with ids and types.
    pub fn iter(&self) -> impl Iterator<Item = (u32, &'a str, Type)> {
        let one = |id: usize| Some((u32::try_from(id).ok()?, self.text(id)?, self.kind(id)));
        (0..self.len()).filter_map(one)
    }

    /// Those that are found in texts before anything else.
    pub fn added(&self) -> impl Iterator<Item = (u32, &'a str, Type)> {
        let is_added = |kind| matches!(kind, Type::Control | Type::UserDefined | Type::Unknown);
        self.iter().filter(move |(_, text, kind)| !text.is_empty() && is_added(*kind))
    }

    /// The id under a key.
    ///
    /// # Errors
    /// There is no such token.
    pub fn id(&self, key: &str) -> Result<Option<u32>, CheckpointError> {
        let Some(id) = self.keys.number(key)? else { return Ok(None) };
        match u32::try_from(id).ok().filter(|id| (*id as usize) < self.len()) {
            Some(id) => Ok(Some(id)),
            // Files of models without such a token have -1 there.
            None if id == u64::from(u32::MAX) => Ok(None),
            None => {
                let what = format!("it is {id}, and there are {} tokens", self.len());
                Err(CheckpointError::key(self.keys.path(), key, what))
            }
        }
    }

    /// The ids of the control tokens with one of these texts.
    pub fn named(&self, texts: &BTreeSet<&str>) -> Vec<u32> {
        let is_control = |kind| matches!(kind, Type::Control | Type::UserDefined);
        let named = self.iter().filter(|(_, text, kind)| is_control(*kind) && texts.contains(text));
        named.map(|(id, _, _)| id).collect()
    }
}
