//! GGUF files, of one part or several: their metadata becomes a config and a tokenizer in the words
//! of Hugging Face, and their tensors get its names.

mod config;
mod ggml;
mod header;
mod keys;
mod names;
mod parts;
mod rotary;
mod sizes;
#[cfg(test)]
mod tests;
mod tokenizer;

pub use parts::is_first_part;

use super::file::open_linked;
use super::{Checkpoint, CheckpointError};
use config::Architecture;
use serde_json::{Map, Value, json};
use sizes::Sizes;
use std::io::Read;
use std::path::Path;
use std::sync::Arc;

/// Whether `path` is a file that is called or begins as a GGUF file.
pub fn is_at(path: &Path) -> bool {
    let begins = || {
        let mut magic = [0; header::MAGIC.len()];
        let (mut file, _) = open_linked(path).ok()?;
        file.read_exact(&mut magic).ok().map(|()| &magic == header::MAGIC)
    };
    path.extension().is_some_and(|end| end == "gguf") || begins().unwrap_or(false)
}

/// Opens the file at `path`, or all parts of a model of which it is the first.
///
/// # Errors
/// It is damaged, or of an architecture that is not computed here.
pub fn open(path: &Path) -> Result<Checkpoint, CheckpointError> {
    let mut header = parts::read(path)?;
    let mut notes = vec![];
    let architecture = Architecture::of(&header.keys)?;
    let sizes = Sizes::read(&header, architecture.name)?;
    let mut config = architecture.config(&header, &sizes, &mut notes)?;
    let tensors = architecture.names.translate(&mut header, &sizes)?;
    let made = tokenizer::make(&header.keys, &sizes, &mut notes)?;
    let mut files = made.files;
    insert_tokens(&mut config, made.begin, &made.ends);
    let generation = generation(&header.keys, made.begin, &made.ends)?;
    files.insert("generation_config.json".to_owned(), text(&generation));
    if architecture.name == "bert" {
        insert_pooling(&header.keys, &sizes, &mut files)?;
    }
    architecture.note_unread(&header.keys, &mut notes);
    Ok(Checkpoint {
        config_file: Arc::clone(header.keys.path()),
        config: Value::Object(config),
        files,
        tensors,
        rotation: architecture.rotation,
        norm_offset: false,
        turned: false,
        notes,
    })
}

fn insert_tokens(config: &mut Map<String, Value>, begin: Option<u32>, ends: &[u32]) {
    if let Some(begin) = begin {
        config.insert("bos_token_id".to_owned(), json!(begin));
    }
    match ends {
        [] => {}
        [end] => drop(config.insert("eos_token_id".to_owned(), json!(end))),
        ends => drop(config.insert("eos_token_id".to_owned(), json!(ends))),
    }
}

/// What generation_config.json says: tokens, and how one is chosen where the file has an opinion.
fn generation(
    keys: &keys::Keys,
    begin: Option<u32>,
    ends: &[u32],
) -> Result<Map<String, Value>, CheckpointError> {
    const SAMPLING: [(&str, &str); 4] = [
        ("temp", "temperature"),
        ("top_p", "top_p"),
        ("min_p", "min_p"),
        ("penalty_repeat", "repetition_penalty"),
    ];
    let mut config = Map::new();
    insert_tokens(&mut config, begin, ends);
    let mut said = Map::new();
    for (name, own) in SAMPLING {
        if let Some(value) = keys.float(&format!("general.sampling.{name}"))? {
            said.insert(own.to_owned(), json!(value));
        }
    }
    if let Some(count) = keys.number("general.sampling.top_k")? {
        said.insert("top_k".to_owned(), json!(count));
    }
    if !said.is_empty() {
        config.insert("do_sample".to_owned(), json!(true));
        config.extend(said);
    }
    Ok(config)
}

/// How an encoder's vectors become one, as sentence-transformers writes it.
fn insert_pooling(
    keys: &keys::Keys,
    sizes: &Sizes,
    files: &mut std::collections::BTreeMap<String, Vec<u8>>,
) -> Result<(), CheckpointError> {
    let mode = match keys.number("bert.pooling_type")? {
        Some(1) => "pooling_mode_mean_tokens",
        Some(2) => "pooling_mode_cls_token",
        Some(3) => "pooling_mode_lasttoken",
        _ => return Ok(()),
    };
    let pooling = json!({ "word_embedding_dimension": sizes.hidden, mode: true });
    files.insert("1_Pooling/config.json".to_owned(), pooling.to_string().into_bytes());
    Ok(())
}

fn text(object: &Map<String, Value>) -> Vec<u8> {
    json!(object).to_string().into_bytes()
}
