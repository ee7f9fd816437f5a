//! The files that makers lay beside a model, as they are read: bounded, and told by name where they
//! are not what they are called.

use super::error::{ShardError, ensure, unfit};
use crate::wire::python_json;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

/// The modules that make a model of sentence-transformers.
pub const MODULES: &str = "modules.json";

/// Limit of a config: those of real models have some KB.
const MAX_CONFIG_BYTES: u64 = 4 << 20;

/// A length from which on "the longest text" means that there is none: transformers writes 1e30.
const NO_LIMIT: f64 = 1e9;

/// Where files are: in a folder, or in what was made of a file that has all in itself.
pub enum Files<'a> {
    Folder(PathBuf),
    Made(&'a BTreeMap<String, Vec<u8>>),
}

impl Files<'_> {
    /// Those of a folder.
    pub fn of(folder: &Path) -> Files<'static> {
        Files::Folder(folder.to_owned())
    }

    /// Those of a folder within; what was made has none.
    pub fn at(&self, path: &str) -> Files<'_> {
        match self {
            Files::Folder(folder) => Files::Folder(folder.join(path)),
            Files::Made(files) => Files::Made(files),
        }
    }

    /// The bytes of a file, where it is there.
    fn bytes(&self, name: &str) -> Result<Option<Vec<u8>>, ShardError> {
        let folder = match self {
            Files::Folder(folder) => folder,
            Files::Made(files) => return Ok(files.get(name).cloned()),
        };
        let path = folder.join(name);
        let is_file = fs::metadata(&path).is_ok_and(|metadata| metadata.is_file());
        if !is_file {
            return Ok(None);
        }
        let read = || -> io::Result<Vec<u8>> {
            let mut text = vec![];
            File::open(&path)?.take(MAX_CONFIG_BYTES + 1).read_to_end(&mut text)?;
            if text.len() as u64 > MAX_CONFIG_BYTES {
                let what = format!("it has more than {MAX_CONFIG_BYTES} bytes");
                return Err(io::Error::new(io::ErrorKind::FileTooLarge, what));
            }
            Ok(text)
        };
        read().map(Some).map_err(ShardError::io(format!("read {}", path.display())))
    }
}

/// An entry of [`MODULES`].
#[derive(Debug, Deserialize)]
pub struct Module {
    #[serde(rename = "type")]
    pub class: String,
    #[serde(default)]
    pub path: String,
}

impl Module {
    /// What it is, where it is a module of sentence-transformers itself: others have code of their
    /// own, whatever they are called.
    pub fn kind(&self) -> Option<&str> {
        let inner = self.class.strip_prefix("sentence_transformers.")?;
        inner.rsplit('.').next()
    }
}

/// config_sentence_transformers.json.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct SentenceTransformers {
    pub prompts: Option<BTreeMap<String, Option<String>>>,
    pub default_prompt_name: Option<String>,
    pub model_type: Option<String>,
}

/// sentence_bert_config.json.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Sentence {
    pub max_seq_length: Option<f64>,
    pub do_lower_case: Option<bool>,
    pub transformer_task: Option<String>,
    pub modality_config: Option<Map<String, Value>>,
}

/// The modules of a repository, where it lists some.
///
/// # Errors
/// A list that is none, or leads out of the folder.
pub fn modules(files: &Files) -> Result<Option<Vec<Module>>, ShardError> {
    let modules: Option<Vec<Module>> = read(files, MODULES)?;
    for Module { path, .. } in modules.iter().flatten() {
        let is_inner = path.split('/').all(|part| !matches!(part, "" | "." | ".."));
        ensure!(path.is_empty() || is_inner, "{MODULES}: path {path:?} leaves the folder");
    }
    Ok(modules)
}

/// The folder within a repository of the module that is the network; the repository's own where
/// nobody says another.
pub fn transformer_path(modules: Option<&[Module]>) -> &str {
    let mut modules = modules.into_iter().flatten();
    let network = modules.find(|module| module.kind() == Some("Transformer"));
    network.map_or("", |module| &module.path)
}

/// Reads an object, where it is there.
pub fn object(files: &Files, name: &str) -> Result<Option<Map<String, Value>>, ShardError> {
    match read(files, name)? {
        None => Ok(None),
        Some(Value::Object(object)) => Ok(Some(object)),
        Some(_) => Err(unfit!("{name}: it is no JSON object")),
    }
}

/// Reads a config, where it is there.
pub fn read<T: DeserializeOwned>(files: &Files, name: &str) -> Result<Option<T>, ShardError> {
    let text = files.bytes(name)?;
    let parsed = text.map(|text| python_json::read(&text).and_then(serde_json::from_value));
    let parsed = parsed.transpose();
    parsed.map_err(|error| unfit!("{name}: {error}"))
}

/// A length of texts, where it is one.
pub fn limit_of(value: Option<f64>) -> Option<u64> {
    value.filter(|number| (1.0..NO_LIMIT).contains(number)).map(|number| number as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A GGUF file says how its tokens are pooled; the folder that it lies in may be of others.
    #[test]
    fn what_was_made_has_files_of_its_own() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("1_Pooling")).unwrap();
        fs::write(folder.path().join("1_Pooling/config.json"), r#"{"of": "folder"}"#).unwrap();
        let made = [("1_Pooling/config.json".to_owned(), br#"{"of": "file"}"#.to_vec())];
        let made = BTreeMap::from(made);
        let check = |files: Files, expected: &str| {
            let found = object(&files, "1_Pooling/config.json").unwrap().unwrap();
            assert_eq!(found["of"], expected);
            assert!(modules(&files).unwrap().is_none());
        };
        check(Files::of(folder.path()), "folder");
        check(Files::Made(&made), "file");
        check(Files::Made(&made).at(""), "file");
    }
}
