//! A folder as Hugging Face has it: config.json, safetensors in one file or several, small files.

use super::file::{self, open_linked};
use super::{Checkpoint, CheckpointError, Rotation, Tensor, gguf, safetensors};
use crate::wire::json::{JsonError, Scanner};
use crate::wire::python_json;
use crate::wire::quote::quote;
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Component, Path, PathBuf};

const CONFIG: &str = "config.json";
const WEIGHTS: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
const TOKENIZER: &str = "tokenizer.json";

/// Small files that are taken over as they are.
const FILES: [&str; 13] = [
    TOKENIZER,
    "tokenizer_config.json",
    "generation_config.json",
    "chat_template.jinja",
    "chat_template.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "modules.json",
    "config_sentence_transformers.json",
    "sentence_bert_config.json",
    "sentence_roberta_config.json",
    "sentence_xlm-roberta_config.json",
    "preprocessor_config.json",
];

/// Where sentence-transformers has the pooling, where modules.json names no other place.
const POOLING: &str = "1_Pooling/config.json";

/// Limit of a tokenizer: that of 262,144 tokens has 33 MB.
const MAX_TOKENIZER_BYTES: u64 = 64 << 20;

/// Limit of any other file beside the weights.
const MAX_FILE_BYTES: u64 = 4 << 20;

/// Limit of an index: a tensor takes some 100 bytes of it.
const MAX_INDEX_BYTES: u64 = 16 << 20;

/// Limit of the files that the weights are in.
const MAX_SHARDS: usize = 4096;

const CONVERT: &str = "write them as safetensors in Python: AutoModelForCausalLM.from_pretrained(\
                       FOLDER).save_pretrained(OUT), or AutoModel for an encoder";

/// Opens the checkpoint in `folder`.
///
/// # Errors
/// There is none, or one of its files is missing or damaged.
pub fn open(folder: &Path) -> Result<Checkpoint, CheckpointError> {
    let shards = Shards::find(folder)?;
    let path = folder.join(CONFIG);
    let config = match (file::read(&path, MAX_FILE_BYTES)?, &shards) {
        (config, Shards::Gguf(path)) => {
            let mut checkpoint = gguf::open(path)?;
            if config.is_some() {
                let note = format!("{CONFIG} beside it is not read: the GGUF file has its own");
                checkpoint.notes.push(note);
            }
            return Ok(checkpoint);
        }
        (Some(text), _) => parse(&path, &text)?,
        (None, _) => {
            let what = format!("has no {CONFIG}, which says how its weights are used");
            return Err(CheckpointError::file(folder, what, "copy it beside the weights"));
        }
    };
    let tensors = shards.tensors(folder)?;
    let files = files(folder)?;
    Ok(Checkpoint {
        config_file: path.into(),
        config,
        files,
        tensors,
        rotation: Rotation::Halves,
        norm_offset: true,
        turned: true,
        notes: vec![],
    })
}

fn parse(path: &Path, text: &[u8]) -> Result<Value, CheckpointError> {
    let damaged = |what: String| CheckpointError::damaged(path, what);
    let value = python_json::read(text).map_err(|error| damaged(format!("is no JSON: {error}")))?;
    match value.is_object() {
        true => Ok(value),
        false => Err(damaged("is no JSON object".to_owned())),
    }
}

/// The small files that are there; links that lead nowhere are told.
fn files(folder: &Path) -> Result<BTreeMap<String, Vec<u8>>, CheckpointError> {
    let mut files = BTreeMap::new();
    for name in FILES.into_iter().chain([POOLING]) {
        let limit = if name == TOKENIZER { MAX_TOKENIZER_BYTES } else { MAX_FILE_BYTES };
        if let Some(content) = file::read(&folder.join(name), limit)? {
            files.insert(name.to_owned(), content);
        }
    }
    Ok(files)
}

/// What the weights are in.
enum Shards {
    Single(PathBuf),
    Several(PathBuf),
    /// The only GGUF file of a folder without safetensors, or the first of its parts.
    Gguf(PathBuf),
}

impl Shards {
    /// Looks in the order in which transformers does.
    fn find(folder: &Path) -> Result<Shards, CheckpointError> {
        let is_there = |name: &str| fs::symlink_metadata(folder.join(name)).is_ok();
        if is_there(WEIGHTS) {
            return Ok(Shards::Single(folder.join(WEIGHTS)));
        }
        if is_there(INDEX) {
            return Ok(Shards::Several(folder.join(INDEX)));
        }
        let names = names(folder)?;
        let mut models: Vec<&String> =
            names.iter().filter(|name| gguf::is_first_part(name)).collect();
        if let [model] = models[..] {
            return Ok(Shards::Gguf(folder.join(model)));
        }
        models.extend(names.iter().filter(|name| name.ends_with(".safetensors")));
        let others = models.iter().take(8).map(|name| quote(name)).collect::<Vec<_>>().join(", ");
        let pickles = ["pytorch_model.bin", "pytorch_model.bin.index.json", "tf_model.h5"];
        let pickle = pickles.into_iter().find(|name| is_there(name));
        let what = match pickle {
            _ if !others.is_empty() => {
                let advice = match models[0].ends_with(".gguf") {
                    true => "name one of these files",
                    false => {
                        "an adapter has to be merged before; a model's file is called \
                              model.safetensors"
                    }
                };
                let what = format!("has no {WEIGHTS} and no {INDEX}, but {others}");
                return Err(CheckpointError::file(folder, what, advice));
            }
            Some(name) => {
                let what = format!("has its weights in {name}, which is not read");
                return Err(CheckpointError::file(folder, what, CONVERT));
            }
            None => format!("has no model: neither {WEIGHTS} nor {INDEX} nor a GGUF file"),
        };
        let advice = "name the folder in which config.json and the weights are, a GGUF file, or an \
                      ONNX model";
        Err(CheckpointError::file(folder, what, advice))
    }

    fn tensors(&self, folder: &Path) -> Result<BTreeMap<String, Tensor>, CheckpointError> {
        match self {
            Shards::Single(path) | Shards::Gguf(path) => safetensors::read(path),
            Shards::Several(index) => several(folder, index),
        }
    }
}

/// Names of a folder's files, sorted; as many as a look at it shall take.
fn names(folder: &Path) -> Result<Vec<String>, CheckpointError> {
    let entries = fs::read_dir(folder).map_err(CheckpointError::io(folder))?;
    let names =
        entries.take(MAX_SHARDS).filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let mut names: Vec<String> = names.collect();
    names.sort();
    Ok(names)
}

/// The tensors of all files that an index names.
fn several(folder: &Path, path: &Path) -> Result<BTreeMap<String, Tensor>, CheckpointError> {
    let text = file::read(path, MAX_INDEX_BYTES)?.unwrap_or_default();
    let index = Index::parse(&text).map_err(|what| CheckpointError::damaged(path, what))?;
    drop(text);
    for name in &index.shards {
        // `./` leads nowhere else; a file's name has to be left.
        let mut parts = Path::new(name).components();
        let is_known = |part: Component| matches!(part, Component::Normal(_) | Component::CurDir);
        let inside = parts.clone().all(is_known) && parts.any(|part| part != Component::CurDir);
        if !inside || name.contains('\0') {
            let what = format!("it names a file outside of the folder, {}", quote(name));
            return Err(CheckpointError::file(path, what, "name files of the folder only"));
        }
    }
    // What is missing is told before anything is read.
    for name in &index.shards {
        let shard = folder.join(name);
        open_linked(&shard).map_err(CheckpointError::io(&shard))?;
    }
    let mut tensors = BTreeMap::new();
    for (shard, name) in index.shards.iter().enumerate() {
        for (tensor, place) in safetensors::read(&folder.join(name))? {
            if index.tensors.get(&tensor).is_none_or(|of| *of == shard) {
                tensors.insert(tensor, place);
            }
        }
    }
    match index.tensors.iter().find(|(tensor, _)| !tensors.contains_key(*tensor)) {
        None => Ok(tensors),
        Some((tensor, shard)) => {
            let shard = folder.join(&index.shards[*shard]);
            let what = format!("it is not there, though {INDEX} says so");
            Err(CheckpointError::tensor(&shard, tensor, what))
        }
    }
}

/// Which file each tensor is in.
#[derive(Default)]
struct Index {
    shards: Vec<String>,
    tensors: BTreeMap<String, usize>,
}

/// What is wrong with an index.
struct Wrong(String);

impl From<JsonError> for Wrong {
    fn from(error: JsonError) -> Wrong {
        Wrong(format!("is no JSON of an index: {error}"))
    }
}

impl Index {
    fn parse(text: &[u8]) -> Result<Index, String> {
        let mut index = Index::default();
        let mut scanner = Scanner::new(text);
        let parsed = scanner.object(|scanner, key| {
            if key != "weight_map" {
                scanner.skip()?;
                return Ok(());
            }
            scanner.object(|scanner, tensor| {
                let shard = scanner.string()?;
                let known = index.shards.iter().rposition(|known| *known == shard);
                let number = known.unwrap_or(index.shards.len());
                if number == MAX_SHARDS {
                    return Err(Wrong(format!("it names more than {MAX_SHARDS} files")));
                }
                if known.is_none() {
                    index.shards.push(shard.into_owned());
                }
                match index.tensors.insert(tensor.to_owned(), number) {
                    None => Ok(()),
                    Some(_) => Err(Wrong(format!("it names tensor {} twice", quote(tensor)))),
                }
            })
        });
        parsed.and_then(|()| Ok(scanner.end()?)).map_err(|Wrong(what)| what)?;
        match index.shards.is_empty() {
            false => Ok(index),
            true => Err("it has no weight_map".to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    /// A file of one tensor, `name`, of two bytes.
    fn shard(name: &str) -> Vec<u8> {
        let header =
            format!(r#"{{"{name}": {{"dtype": "F16", "shape": [1], "data_offsets": [0, 2]}}}}"#);
        [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &[0, 60]].concat()
    }

    fn folder(files: &[(&str, &[u8])]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (name, content) in files {
            let path = folder.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        }
        folder
    }

    fn refused(files: &[(&str, &[u8])], expected: &str) {
        let folder = folder(files);
        let error = Checkpoint::open(folder.path()).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}: lacks {expected:?}");
    }

    const CONFIG_TEXT: &[u8] = br#"{"model_type": "llama", "head_dim": null}"#;

    #[test]
    fn a_folder_is_read_by_its_names() {
        let files: [(&str, &[u8]); 6] = [
            (CONFIG, CONFIG_TEXT),
            (WEIGHTS, &shard("a")),
            (TOKENIZER, b"{}"),
            (POOLING, b"{}"),
            ("pytorch_model.bin", b"not a model"),
            ("original/params.json", b"{"),
        ];
        let folder = folder(&files);
        let checkpoint = Checkpoint::open(folder.path()).unwrap();
        assert_eq!(checkpoint.config["model_type"], "llama");
        assert_eq!(checkpoint.files.keys().collect::<Vec<_>>(), [POOLING, TOKENIZER]);
        assert_eq!(checkpoint.tensors.keys().collect::<Vec<_>>(), ["a"]);
        assert_eq!(checkpoint.notes, Vec::<String>::new());
    }

    /// A hub's cache has links only, to blobs whose names say nothing.
    #[test]
    fn links_are_followed_and_told_where_they_lead_nowhere() {
        let blobs = folder(&[("1", CONFIG_TEXT), ("2", &shard("a"))]);
        let folder = folder(&[]);
        symlink(blobs.path().join("1"), folder.path().join(CONFIG)).unwrap();
        symlink(blobs.path().join("2"), folder.path().join(WEIGHTS)).unwrap();
        let checkpoint = Checkpoint::open(folder.path()).unwrap();
        let (_, bytes) = open_linked(&checkpoint.tensors["a"].file).unwrap();
        assert_eq!(bytes, shard("a").len() as u64);
        symlink(blobs.path().join("3"), folder.path().join(TOKENIZER)).unwrap();
        let error = Checkpoint::open(folder.path()).unwrap_err().to_string();
        assert!(error.contains("tokenizer.json: No such file"), "{error}");
    }

    #[test]
    fn shards_are_those_of_the_index() {
        let index = br#"{"metadata": {"total_size": 4},
            "weight_map": {"a": "./model-1.safetensors", "b": "sub/model-2.safetensors"}}"#;
        let (one, two) = (shard("a"), shard("b"));
        let all: [(&str, &[u8]); 4] = [
            (CONFIG, CONFIG_TEXT),
            (INDEX, index),
            ("model-1.safetensors", &one),
            ("sub/model-2.safetensors", &two),
        ];
        let sound = folder(&all);
        let checkpoint = Checkpoint::open(sound.path()).unwrap();
        assert!(checkpoint.tensors["b"].file.ends_with("sub/model-2.safetensors"));
        refused(&all[..3], "model-2.safetensors: No such file");
        let other = [all[0], all[1], all[2], ("sub/model-2.safetensors", &one)];
        refused(&other, "model-2.safetensors: tensor \"b\": it is not there");
        let cut = [all[0], (INDEX, &index[..60])];
        refused(&cut, "model.safetensors.index.json: is no JSON of an index");
        refused(&[all[0], (INDEX, b"{}")], "it has no weight_map");
        let twice = br#"{"weight_map": {"a": "x", "a": "x"}}"#;
        refused(&[all[0], (INDEX, twice)], "it names tensor \"a\" twice");
    }

    /// What an index names may lie anywhere, and is not even looked at there.
    #[test]
    fn no_shard_leads_out_of_the_folder() {
        for name in ["../other.safetensors", "/etc/passwd", "a/../../b", "."] {
            let index = format!(r#"{{"weight_map": {{"a": "{name}"}}}}"#);
            let files = [(CONFIG, CONFIG_TEXT), (INDEX, index.as_bytes())];
            refused(&files, "it names a file outside of the folder");
        }
    }

    #[test]
    fn what_is_no_checkpoint_is_told_with_advice() {
        let config = (CONFIG, CONFIG_TEXT);
        refused(&[("README.md", b"")], "has no model: neither model.safetensors nor");
        refused(
            &[config, ("pytorch_model.bin", b"")],
            "weights in pytorch_model.bin, which is not",
        );
        refused(&[config, ("pytorch_model.bin", b"")], "save_pretrained");
        refused(&[config, ("adapter_model.safetensors", b"")], "has to be merged");
        refused(&[config, ("a.gguf", b""), ("b.gguf", b"")], "\"a.gguf\", \"b.gguf\"");
        refused(&[config, ("a.gguf", b"")], "a.gguf: ");
        let weights = shard("a");
        refused(&[(WEIGHTS, &weights)], "has no config.json");
        refused(&[(CONFIG, &CONFIG_TEXT[..20]), (WEIGHTS, &weights)], "config.json: is no JSON");
        refused(&[(CONFIG, b"[]"), (WEIGHTS, &weights)], "config.json: is no JSON object");
        let inside = format!("{WEIGHTS}/file");
        refused(&[config, (&inside, b"")], "model.safetensors: is not a regular file");
    }
}
