//! SentencePiece's BPE: characters of a text whose spaces are written as U+2581 are joined where a
//! token comes of it, the one with the best score first. What no token stands for becomes bytes.

use super::bytes::tokens;
use super::document::{Document, Model};
use super::special::Special;
use super::vocabulary::{TOKENS, Type, Vocabulary};
use super::{Tokenizer, frame};
use crate::checkpoint::CheckpointError;
use serde_json::{Value, json};
use std::collections::HashMap;

/// What stands for a space.
pub const SPACE: &str = "\u{2581}";

/// Makes the tokenizer.
///
/// # Errors
/// There are no scores, or tokens join in more ways than those of any language.
pub fn make<'a>(
    vocabulary: &Vocabulary<'a>,
    notes: &mut Vec<String>,
) -> Result<Option<Tokenizer<'a>>, CheckpointError> {
    const SCORES: &str = "tokenizer.ggml.scores";
    let keys = vocabulary.keys();
    let missing = || CheckpointError::key(keys.path(), SCORES, "it is missing");
    let scores = vocabulary.scores().ok_or_else(missing)?;
    let special = Special::read(vocabulary, [Some("<s>"), Some("</s>"), Some("<unk>")], notes)?;
    let ([adds_begin, adds_end], frame) = frame(vocabulary, &special, [true, false])?;
    let adds_space = keys.flag("tokenizer.ggml.add_space_prefix")?.unwrap_or(true);
    let replace = json!({ "type": "Replace", "pattern": { "String": " " }, "content": SPACE });
    let normalizer = match adds_space {
        true => json!({
            "type": "Sequence",
            "normalizers": [{ "type": "Prepend", "prepend": SPACE }, replace],
        }),
        false => replace,
    };
    let back = json!({ "type": "Replace", "pattern": { "String": SPACE }, "content": " " });
    let mut decoders = vec![back, json!({ "type": "ByteFallback" }), json!({ "type": "Fuse" })];
    if adds_space {
        decoders.push(json!({ "type": "Strip", "content": " ", "start": 1, "stop": 0 }));
    }
    let unknown = special.unknown.and_then(|id| vocabulary.text(id as usize));
    let fields = json!({
        "type": "BPE",
        "dropout": null,
        "unk_token": unknown,
        "continuing_subword_prefix": null,
        "end_of_word_suffix": null,
        "fuse_unk": true,
        "byte_fallback": true,
        "ignore_merges": false,
    });
    let tokens = tokens(vocabulary, notes);
    let merges = merges(vocabulary, &tokens, scores)?;
    let document = Document {
        normalizer,
        pre_tokenizer: Value::Null,
        decoder: json!({ "type": "Sequence", "decoders": decoders }),
        frame,
        model: Model::Pairs { fields, tokens, merges },
    };
    Ok(Some(Tokenizer { document, special, adds_begin, adds_end }))
}

/// Most pairs for each token, in the mean: vocabularies have two or three.
const MAX_PAIRS: usize = 32;

/// All pairs of tokens that are a token together, those of the best score first; of one score those
/// whose parts come first.
fn merges<'a>(
    vocabulary: &Vocabulary<'a>,
    tokens: &[(&'a str, u32)],
    scores: &[f32],
) -> Result<Vec<(&'a str, &'a str)>, CheckpointError> {
    let joins = |id: u32| {
        matches!(vocabulary.kind(id as usize), Type::Normal | Type::UserDefined | Type::Unused)
    };
    let ids: HashMap<&str, u32> = tokens.iter().copied().filter(|(_, id)| joins(*id)).collect();
    let mut pairs: Vec<(u32, u32, u32)> = vec![];
    for (text, id) in tokens.iter().filter(|(_, id)| joins(*id)) {
        for (at, _) in text.char_indices().skip(1) {
            if let (Some(left), Some(right)) = (ids.get(&text[..at]), ids.get(&text[at..])) {
                pairs.push((*id, *left, *right));
            }
        }
        if pairs.len() > MAX_PAIRS * tokens.len() {
            let what = format!("its tokens are joined of others in more than {} ways", pairs.len());
            return Err(CheckpointError::key(vocabulary.keys().path(), TOKENS, what));
        }
    }
    drop(ids);
    let score = |id: u32| scores[id as usize];
    pairs.sort_by(|a, b| score(b.0).total_cmp(&score(a.0)).then(a.cmp(b)));
    let text = |id: u32| vocabulary.text(id as usize).unwrap_or_default();
    Ok(pairs.into_iter().map(|(_, left, right)| (text(left), text(right))).collect())
}
