//! What the files beside a language model say of texts that it writes.

use super::error::{ShardError, unfit};
use super::source::Source;
use crate::graph::Imported;
use crate::store::{Decoder, Generation, MAX_GENERATION_BYTES};
use crate::text::settings;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Read;
use std::path::Path;

/// The files that are looked at, beside the templates in a folder of their own.
const NAMES: [&str; 5] = [
    CONFIG,
    "generation_config.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "chat_template.json",
];
const CONFIG: &str = "config.json";
const TOKENIZER: &str = "tokenizer.json";
const TEMPLATES: &str = "additional_chat_templates";

/// Most templates of a model, and the limit of a file.
const MAX_TEMPLATES: usize = 32;
const MAX_BYTES: u64 = MAX_GENERATION_BYTES;

/// Reads them, where the model writes texts and has a tokenizer.
///
/// # Errors
/// A file that is there and cannot be read, or is not what it is called.
pub fn read(source: &Source, imported: &Imported) -> Result<Option<Generation>, ShardError> {
    let is_decoder = Decoder::of(&imported.inputs, &imported.outputs).is_ok();
    let Some(tokenizer) = source.tokenizer.as_ref().filter(|_| is_decoder) else {
        return Ok(None);
    };
    let mut files = BTreeMap::new();
    if let Some(checkpoint) = &source.checkpoint {
        files.clone_from(&checkpoint.files);
        files.insert(CONFIG.to_owned(), checkpoint.config.to_string().into_bytes());
    }
    files.extend(beside(&source.folder)?);
    files.insert(TOKENIZER.to_owned(), tokenizer.bytes.clone());
    let generation = settings::read(&files, source.context).map_err(|error| unfit!("{error}"))?;
    let bytes = generation.to_json().len() as u64;
    if bytes > MAX_BYTES {
        return Err(unfit!("the chat templates have {bytes} bytes; the limit is {MAX_BYTES}"));
    }
    Ok(Some(generation))
}

/// The files of a folder that are there.
fn beside(folder: &Path) -> Result<BTreeMap<String, Vec<u8>>, ShardError> {
    let mut names: Vec<String> = NAMES.map(str::to_owned).into();
    let templates = fs::read_dir(folder.join(TEMPLATES)).into_iter().flatten();
    let templates = templates.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let templates = templates.filter(|name| name.ends_with(".jinja")).take(MAX_TEMPLATES);
    names.extend(templates.map(|name| format!("{TEMPLATES}/{name}")));
    let mut files = BTreeMap::new();
    for name in names {
        let path = folder.join(&name);
        if !path.is_file() {
            continue;
        }
        let mut bytes = vec![];
        let read =
            File::open(&path).and_then(|file| file.take(MAX_BYTES + 1).read_to_end(&mut bytes));
        read.map_err(ShardError::io(format!("read {}", path.display())))?;
        if bytes.len() as u64 > MAX_BYTES {
            return Err(unfit!("{name}: it has more than {MAX_BYTES} bytes"));
        }
        files.insert(name, bytes);
    }
    Ok(files)
}
