//! The tokenizer inside a GGUF file as tokenizer.json, with what transformers keeps beside it.

mod bytes;
mod document;
mod pieces;
mod special;
mod splits;
mod unigram;
mod vocabulary;
mod words;

use super::keys::Keys;
use super::sizes::Sizes;
use crate::checkpoint::CheckpointError;
use crate::wire::quote::quote;
use document::{Document, Frame};
use serde_json::{Value, json};
use special::Special;
use std::collections::BTreeMap;
use vocabulary::Vocabulary;

/// The key that names the kind of a tokenizer.
const MODEL: &str = "tokenizer.ggml.model";

/// Files, and the tokens that texts begin and end with.
#[derive(Debug, Default)]
pub struct Made {
    pub files: BTreeMap<String, Vec<u8>>,
    pub begin: Option<u32>,
    pub ends: Vec<u32>,
}

/// A tokenizer, its special tokens, and what stands round a text by itself.
struct Tokenizer<'a> {
    document: Document<'a>,
    special: Special,
    adds_begin: bool,
    adds_end: bool,
}

/// Makes tokenizer.json and tokenizer_config.json. A tokenizer that is not known leaves the model
/// to callers who have ids.
///
/// # Errors
/// What the file says of its tokens cannot be.
pub fn make(keys: &Keys, sizes: &Sizes, notes: &mut Vec<String>) -> Result<Made, CheckpointError> {
    let (Some(model), Some(vocabulary)) = (keys.text(MODEL)?, Vocabulary::read(keys)?) else {
        return Ok(Made::default());
    };
    let made = match model {
        "gpt2" => bytes::make(&vocabulary, notes)?,
        "llama" | "gemma" => pieces::make(&vocabulary, notes)?,
        "bert" => words::make(&vocabulary, notes)?,
        "t5" => unigram::make(&vocabulary, notes)?,
        other => {
            notes.push(format!("no tokenizer is made of the kind {}", quote(other)));
            None
        }
    };
    let Some(tokenizer) = made else {
        let special = Special::read(&vocabulary, [None; 3], notes)?;
        return Ok(Made { begin: special.begin, ends: special.ends, ..Made::default() });
    };
    let Tokenizer { document, special, adds_begin, adds_end } = tokenizer;
    let config = config(&vocabulary, sizes, &special, adds_begin, adds_end)?;
    let mut files = BTreeMap::new();
    files.insert("tokenizer_config.json".to_owned(), config.to_string().into_bytes());
    files.insert("tokenizer.json".to_owned(), document.write(&vocabulary));
    Ok(Made { files, begin: special.begin, ends: special.ends })
}

/// What stands round a text by itself, as the file says or else as its kind has it.
fn frame(
    vocabulary: &Vocabulary,
    special: &Special,
    [begins, ends]: [bool; 2],
) -> Result<([bool; 2], Frame), CheckpointError> {
    let keys = vocabulary.keys();
    let begins = keys.flag("tokenizer.ggml.add_bos_token")?.unwrap_or(begins);
    let ends = keys.flag("tokenizer.ggml.add_eos_token")?.unwrap_or(ends);
    let begin = special.begin.filter(|_| begins);
    let end = special.end.filter(|_| ends);
    Ok(([begin.is_some(), end.is_some()], Frame { begin, end, tells_apart: false }))
}

fn config(
    vocabulary: &Vocabulary,
    sizes: &Sizes,
    special: &Special,
    adds_begin: bool,
    adds_end: bool,
) -> Result<Value, CheckpointError> {
    let mut config = json!({
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": sizes.positions,
        "clean_up_tokenization_spaces": false,
        "add_bos_token": adds_begin,
        "add_eos_token": adds_end,
    });
    let named = [
        ("bos_token", special.begin),
        ("eos_token", special.end),
        ("unk_token", special.unknown),
        ("pad_token", special.padding),
        ("sep_token", special.separator),
    ];
    for (name, id) in named {
        if let Some(text) = id.and_then(|id| vocabulary.text(id as usize)) {
            config[name] = json!(text);
        }
    }
    if let Some(template) = template(vocabulary.keys())? {
        config["chat_template"] = template;
    }
    Ok(config)
}

/// The template of chats, or a list of them by name.
fn template(keys: &Keys) -> Result<Option<Value>, CheckpointError> {
    const KEY: &str = "tokenizer.chat_template";
    let plain = keys.text(KEY)?;
    let mut named: Vec<Value> = vec![];
    for name in keys.below("tokenizer.chat_template.") {
        if let Some(text) = keys.text(&format!("{KEY}.{name}"))? {
            named.push(json!({ "name": name, "template": text }));
        }
    }
    if named.is_empty() {
        return Ok(plain.map(|text| json!(text)));
    }
    if let Some(text) = plain {
        named.insert(0, json!({ "name": "default", "template": text }));
    }
    Ok(Some(json!(named)))
}
