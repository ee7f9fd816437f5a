//! Where a model's files lie: an ONNX file or a checkpoint, or the folder of a repository with one in
//! it, as transformers, optimum and sentence-transformers lay them out.

use super::configs::{self, Files};
use super::error::{ShardError, ensure, unfit};
use super::foreign::Foreign;
use super::layers;
use crate::checkpoint::Checkpoint;
use std::fs;
use std::path::{Path, PathBuf};

/// The folder of a repository in which exporters put ONNX files.
const ONNX_FOLDER: &str = "onnx";

/// The stem that exporters give a model's file; a repository's folder says more.
const PLAIN_STEM: &str = "model";

/// Files that are in the folder of a repository.
const MARKS: [&str; 4] =
    ["tokenizer.json", "config.json", "modules.json", "sentence_bert_config.json"];

/// What a model is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// A graph with its weights.
    Onnx,
    /// Weights and a config, a folder of Hugging Face or a GGUF file: the graph is drawn.
    Checkpoint,
}

/// A model's file or folder, and the folder of what belongs to it.
#[derive(Debug)]
pub struct Place {
    /// The ONNX file, the GGUF file, or the folder with safetensors.
    pub model: PathBuf,
    pub form: Form,
    /// The folder in which tokenizer and configs are looked for. To a GGUF file nothing belongs but
    /// itself: there it is the file, in which nothing is found.
    pub folder: PathBuf,
    /// What was not taken, if there is anything.
    pub note: Option<String>,
}

impl Place {
    /// Finds the model that `path` names, or that is in the folder that it names: an ONNX file before
    /// a checkpoint. A file of safetensors stands for the folder that it is in.
    ///
    /// # Errors
    /// A folder without one, or with several.
    pub fn of(path: &Path) -> Result<Place, ShardError> {
        if !path.is_dir() {
            return Ok(match () {
                () if Checkpoint::is_at(path) => Place::of_gguf(path),
                () if is_safetensors(path) => Place::of_folder(own_folder(path)),
                () => Place::of_onnx(path),
            });
        }
        let homes = homes(path)?;
        let checkpoint = homes.iter().find_map(|home| {
            let found = fs::read_dir(home).ok()?.filter_map(|entry| Some(entry.ok()?.path()));
            let found = found.filter(|path| is_safetensors(path)).min()?;
            Some((home, found))
        });
        match (find_in(path, &homes)?, checkpoint) {
            (Some(found), None) => Ok(Place::of_onnx(&found)),
            (Some(found), Some((_, left))) => {
                let note = format!(
                    "took {}, not the weights beside it (to take those, name {})",
                    found.display(),
                    left.display()
                );
                Ok(Place { note: Some(note), ..Place::of_onnx(&found) })
            }
            (None, Some((home, _))) => Ok(Place::of_folder(home)),
            (None, None) => match gguf_in(path) {
                Some(file) => Ok(Place { model: path.to_owned(), ..Place::of_gguf(&file) }),
                None => Err(nothing_in(path)),
            },
        }
    }

    fn of_onnx(model: &Path) -> Place {
        let folder = repository_of(folder_of(model));
        Place { model: model.to_owned(), form: Form::Onnx, folder, note: None }
    }

    fn of_folder(folder: &Path) -> Place {
        let model = folder.to_owned();
        let folder = repository_of(model.clone());
        Place { model, form: Form::Checkpoint, folder, note: None }
    }

    fn of_gguf(file: &Path) -> Place {
        let (model, folder) = (file.to_owned(), file.to_owned());
        Place { model, form: Form::Checkpoint, folder, note: None }
    }

    /// The name that the files give the model.
    pub fn name(&self) -> Result<String, ShardError> {
        let stem = self.model.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
        let is_folder = self.form == Form::Checkpoint && self.model.is_dir();
        let is_plain = is_folder || stem == PLAIN_STEM || self.is_below();
        let folder =
            if is_folder { repository_of(self.model.clone()) } else { self.folder.clone() };
        let folder = fs::canonicalize(folder).ok();
        let folder = folder.as_deref().and_then(repository_name);
        let name = if is_plain { folder.unwrap_or(stem) } else { without_part(stem) };
        let tame = layers::file_stem(name).trim_start_matches(['.', '-']).to_string();
        ensure!(!tame.is_empty(), "no name can be made of {}: give --name", self.model.display());
        Ok(tame)
    }

    /// Whether the ONNX file lies in a folder of its own in the repository.
    fn is_below(&self) -> bool {
        self.form == Form::Onnx && own_folder(&self.model) != self.folder
    }
}

/// The name of a repository's folder; a hub's cache has a folder for each state of one.
fn repository_name(folder: &Path) -> Option<&str> {
    fn name(folder: &Path) -> Option<&str> {
        folder.file_name()?.to_str()
    }
    let above = folder.parent()?;
    let cached = above.parent().filter(|_| name(above) == Some("snapshots")).and_then(name);
    let own = cached.and_then(|name| name.strip_prefix("models--")?.rsplit_once("--"));
    own.map_or_else(|| name(folder), |(_, own)| Some(own))
}

/// The stem of a file that is the first of several parts, without which one it is.
fn without_part(stem: &str) -> &str {
    match stem.rsplit_once("-00001-of-") {
        Some((own, count)) if count.bytes().all(|byte| byte.is_ascii_digit()) => own,
        _ => stem,
    }
}

/// Whether a file has weights as safetensors, or says which files have them.
fn is_safetensors(path: &Path) -> bool {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    name.ends_with(".safetensors") || name.ends_with(".safetensors.index.json")
}

/// A GGUF file of a folder: the only one, or the first of several parts.
fn gguf_in(folder: &Path) -> Option<PathBuf> {
    let entries = fs::read_dir(folder).ok()?.filter_map(|entry| Some(entry.ok()?.path()));
    entries.filter(|path| path.extension().is_some_and(|end| end == "gguf")).min()
}

/// The folders of a repository in which its network may be.
fn homes(folder: &Path) -> Result<Vec<PathBuf>, ShardError> {
    let modules = configs::modules(&Files::of(folder))?;
    let mut homes = vec![folder.to_owned()];
    match configs::transformer_path(modules.as_deref()) {
        "" => {}
        path => homes.push(folder.join(path)),
    }
    Ok(homes)
}

/// The folder that a file is in.
fn own_folder(file: &Path) -> &Path {
    let named = file.parent().filter(|parent| !parent.as_os_str().is_empty());
    named.unwrap_or(Path::new("."))
}

/// The folder of what belongs to an ONNX file: its own, or the one above `onnx`.
fn folder_of(model: &Path) -> PathBuf {
    let own = own_folder(model);
    let absolute = fs::canonicalize(own).unwrap_or_else(|_| own.to_owned());
    let has_marks = |folder: &Path| MARKS.iter().any(|mark| folder.join(mark).is_file());
    let is_onnx = absolute.file_name().is_some_and(|name| name == ONNX_FOLDER);
    match absolute.parent() {
        Some(above) if is_onnx && !has_marks(own) && has_marks(above) => own.join(".."),
        _ => own.to_owned(),
    }
}

/// The repository of a network in `folder`: the one above, where that says so.
fn repository_of(folder: PathBuf) -> PathBuf {
    let absolute = fs::canonicalize(&folder).unwrap_or_else(|_| folder.clone());
    let (Some(above), Some(name)) = (absolute.parent(), absolute.file_name()) else {
        return folder;
    };
    // One that cannot be read is told where it is the model's own.
    let modules = configs::modules(&Files::of(above)).ok().flatten();
    match configs::transformer_path(modules.as_deref()) == name {
        true => folder.join(".."),
        false => folder,
    }
}

/// The ONNX file of a folder, in one of its homes.
fn find_in(folder: &Path, homes: &[PathBuf]) -> Result<Option<PathBuf>, ShardError> {
    let mut found = vec![];
    for place in homes.iter().flat_map(|home| [home.clone(), home.join(ONNX_FOLDER)]) {
        let plain = place.join(PLAIN_STEM).with_extension("onnx");
        if plain.is_file() {
            return Ok(Some(plain));
        }
        let Ok(entries) = fs::read_dir(&place) else { continue };
        for entry in entries {
            let told = ShardError::io(format!("list {}", place.display()));
            let path = entry.map_err(told)?.path();
            if path.extension().is_some_and(|end| end == "onnx") && path.is_file() {
                found.push(path);
            }
        }
    }
    found.sort();
    ensure!(
        found.len() <= 1,
        "{} has several ONNX files: name one of {}",
        folder.display(),
        found.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ")
    );
    Ok(found.pop())
}

/// Why there is no model in a folder.
fn nothing_in(folder: &Path) -> ShardError {
    let none = format!(
        "{} has no ONNX file, nor has its folder {ONNX_FOLDER}, and no model.safetensors or GGUF file",
        folder.display()
    );
    match Foreign::in_folder(folder) {
        Some((name, Foreign { what, advice })) => {
            unfit!("{none}; {name} is {what}\n{advice}")
        }
        None => {
            unfit!("{none}\nexport the model there (optimum-cli export onnx), or name its file")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `hermes-shard build net.onnx` made a model of the working folder's name.
    #[test]
    fn a_file_of_the_working_folder_has_its_own_name() {
        let name = |path: &str| Place::of(Path::new(path)).unwrap().name().unwrap();
        assert_eq!((name("net.onnx"), name("./net.onnx")), ("net".to_string(), "net".to_string()));
    }
}
