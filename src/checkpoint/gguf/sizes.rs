//! The sizes that a GGUF file's metadata gives, checked against each other.

use super::header::Header;
use crate::checkpoint::CheckpointError;

/// A dimension, by what it is the size of.
#[derive(Clone, Copy, Debug)]
pub enum Size {
    Hidden,
    /// All heads together.
    Queries,
    /// All heads of keys, or of values.
    Keys,
    /// Queries, keys and values end to end.
    Triple,
    Head,
    /// Pairs that a rotation turns.
    Pairs,
    Inner,
    Vocabulary,
    Positions,
    Types,
}

/// Sizes of a model.
#[derive(Clone, Copy, Debug)]
pub struct Sizes {
    pub hidden: u64,
    pub layers: u64,
    pub heads: u64,
    pub key_heads: u64,
    pub head: u64,
    pub inner: u64,
    /// Rows of the table of tokens.
    pub vocabulary: u64,
    pub positions: u64,
    /// Rows of the table of token types.
    pub types: u64,
}

impl Sizes {
    /// Reads the sizes of `architecture`.
    ///
    /// # Errors
    /// One is missing, or does not go with another.
    pub fn read(header: &Header, architecture: &str) -> Result<Sizes, CheckpointError> {
        let keys = &header.keys;
        let key = |name: &str| format!("{architecture}.{name}");
        let heads_key = key("attention.head_count");
        let hidden = keys.size(&key("embedding_length"))?;
        let heads = keys.size(&heads_key)?;
        let key_heads = match keys.number(&key("attention.head_count_kv"))? {
            None | Some(0) => heads,
            Some(count) => count,
        };
        let wrong = |what: String| Err(CheckpointError::key(keys.path(), &heads_key, what));
        if heads % key_heads != 0 {
            return wrong(format!("{heads} heads are not divided by {key_heads} of keys"));
        }
        let head = match keys.number(&key("attention.key_length"))? {
            Some(length) if length > 0 => length,
            _ if hidden % heads != 0 => {
                return wrong(format!("{heads} heads do not divide a width of {hidden}"));
            }
            _ => hidden / heads,
        };
        let same = [
            ("attention.value_length", "values as long as keys"),
            ("rope.dimension_count", "whole heads rotated"),
        ];
        for (name, expected) in same {
            if let Some(other) = keys.number(&key(name))?.filter(|other| *other != head) {
                let what = format!("it is {other} of {head}, and only {expected} are computed");
                return Err(CheckpointError::unknown(keys.path(), &key(name), what));
            }
        }
        let most = 1 << 32;
        if [heads, key_heads, head, hidden].iter().any(|size| *size >= most) {
            return wrong(format!("{heads} heads of {head} in a width of {hidden} are too many"));
        }
        let rows = |name: &str| header.tensors.get(name)?.shape.first().copied();
        Ok(Sizes {
            hidden,
            layers: keys.size(&key("block_count"))?,
            heads,
            key_heads,
            head,
            inner: keys.size(&key("feed_forward_length"))?,
            vocabulary: rows("token_embd.weight").unwrap_or(0),
            positions: keys.size(&key("context_length"))?,
            types: rows("token_types.weight").unwrap_or(0),
        })
    }

    /// A dimension of a tensor.
    pub fn of(&self, size: Size) -> u64 {
        match size {
            Size::Hidden => self.hidden,
            Size::Queries => self.heads * self.head,
            Size::Keys => self.key_heads * self.head,
            Size::Triple => 3 * self.hidden,
            Size::Head => self.head,
            Size::Pairs => self.head / 2,
            Size::Inner => self.inner,
            Size::Vocabulary => self.vocabulary,
            Size::Positions => self.positions,
            Size::Types => self.types,
        }
    }
}
