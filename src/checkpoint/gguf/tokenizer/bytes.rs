//! Byte-level BPE: words of characters that stand for bytes, merged pair by pair.

use super::document::{Document, Model};
use super::special::Special;
use super::splits::Split;
use super::vocabulary::{Type, Vocabulary};
use super::{Tokenizer, frame};
use crate::checkpoint::CheckpointError;
use crate::wire::quote::quote;
use serde_json::{Value, json};
use std::collections::HashMap;

const MERGES: &str = "tokenizer.ggml.merges";

/// Makes the tokenizer, where the way in which it cuts texts is known.
///
/// # Errors
/// There are no merges, or they are none.
pub fn make<'a>(
    vocabulary: &Vocabulary<'a>,
    notes: &mut Vec<String>,
) -> Result<Option<Tokenizer<'a>>, CheckpointError> {
    let keys = vocabulary.keys();
    let name = match keys.text("tokenizer.ggml.pre")? {
        Some(name) => name,
        None => {
            notes
                .push("texts are cut as by default: guessed, tokenizer.ggml.pre is missing".into());
            "default"
        }
    };
    let Some(split) = Split::by_name(name) else {
        notes.push(format!(
            "no tokenizer is made: how {} cuts texts is not known, only {}",
            quote(name),
            Split::names()
        ));
        return Ok(None);
    };
    let missing = || CheckpointError::key(keys.path(), MERGES, "it is missing");
    let lines = keys.strings(MERGES)?.ok_or_else(missing)?;
    let tokens = tokens(vocabulary, notes);
    let ids: HashMap<&str, u32> = tokens.iter().copied().collect();
    let mut merges = Vec::with_capacity(lines.len());
    let mut joined = String::new();
    for line in lines.iter() {
        let pair = std::str::from_utf8(line).ok().and_then(|line| {
            // The first piece may be a space itself.
            let first = line.chars().next()?.len_utf8();
            let at = first + line[first..].find(' ')?;
            Some((&line[..at], &line[at + 1..]))
        });
        let Some((left, right)) = pair else {
            let what = format!("{} is no pair of tokens", crate::wire::quote::quote_bytes(line));
            return Err(CheckpointError::key(keys.path(), MERGES, what));
        };
        joined.clear();
        joined.extend([left, right]);
        if [left, right, &joined].iter().all(|text| ids.contains_key(*text)) {
            merges.push((left, right));
        }
    }
    if merges.len() < lines.len() {
        let left_out = lines.len() - merges.len();
        notes.push(format!("{left_out} merges of what is no token are left out"));
    }
    let special = Special::read(vocabulary, [None; 3], notes)?;
    let ([adds_begin, adds_end], frame) = frame(vocabulary, &special, [split.adds_begin, false])?;
    let fields = json!({
        "type": "BPE",
        "dropout": null,
        "unk_token": null,
        "continuing_subword_prefix": null,
        "end_of_word_suffix": null,
        "fuse_unk": false,
        "byte_fallback": false,
        "ignore_merges": split.ignores_merges,
    });
    let document = Document {
        normalizer: if split.composes { json!({ "type": "NFC" }) } else { Value::Null },
        pre_tokenizer: split.pre_tokenizer(),
        decoder: json!({
            "type": "ByteLevel",
            "add_prefix_space": true,
            "trim_offsets": true,
            "use_regex": true,
        }),
        frame,
        model: Model::Pairs { fields, tokens, merges },
    };
    Ok(Some(Tokenizer { document, special, adds_begin, adds_end }))
}

/// Texts and ids of all tokens that a text can become. Of those that are there twice, the first.
pub fn tokens<'a>(vocabulary: &Vocabulary<'a>, notes: &mut Vec<String>) -> Vec<(&'a str, u32)> {
    let used = vocabulary.iter().filter(|(_, _, kind)| *kind != Type::Unused);
    let mut seen = std::collections::HashSet::new();
    let mut twice = 0;
    let mut tokens = Vec::with_capacity(vocabulary.len());
    for (id, text, _) in used {
        match seen.insert(text) {
            true => tokens.push((text, id)),
            false => twice += 1,
        }
    }
    if twice > 0 {
        notes.push(format!("{twice} tokens are texts that other tokens are: the first ones count"));
    }
    tokens
}
