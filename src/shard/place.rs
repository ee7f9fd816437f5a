//! Where a model's files lie: an ONNX file, or the folder of a repository with one in it, as
//! transformers, optimum and sentence-transformers lay them out.

use super::configs;
use super::error::{ShardError, ensure, unfit};
use super::foreign::Foreign;
use super::layers;
use std::fs;
use std::path::{Path, PathBuf};

/// The folder of a repository in which exporters put ONNX files.
const ONNX_FOLDER: &str = "onnx";

/// The stem that exporters give a model's file; a repository's folder says more.
const PLAIN_STEM: &str = "model";

/// Files that are in the folder of a repository.
const MARKS: [&str; 4] =
    ["tokenizer.json", "config.json", "modules.json", "sentence_bert_config.json"];

/// An ONNX file and the folder of what belongs to it.
#[derive(Debug)]
pub struct Place {
    /// The ONNX file.
    pub model: PathBuf,
    /// The folder in which tokenizer and configs are looked for.
    pub folder: PathBuf,
}

impl Place {
    /// Finds the ONNX file that `path` names, or that is in the folder that it names.
    ///
    /// # Errors
    /// A folder without one, or with several.
    pub fn of(path: &Path) -> Result<Place, ShardError> {
        let model = if path.is_dir() { find_in(path)? } else { path.to_owned() };
        Ok(Place { folder: repository_of(folder_of(&model)), model })
    }

    /// The name that the files give the model.
    pub fn name(&self) -> Result<String, ShardError> {
        let stem = self.model.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
        let is_plain = stem == PLAIN_STEM || self.is_below();
        let folder = fs::canonicalize(&self.folder).ok();
        let folder = folder.as_deref().and_then(Path::file_name).and_then(|name| name.to_str());
        let name = if is_plain { folder.unwrap_or(stem) } else { stem };
        let tame = layers::file_stem(name).trim_start_matches(['.', '-']).to_string();
        ensure!(!tame.is_empty(), "no name can be made of {}: give --name", self.model.display());
        Ok(tame)
    }

    /// Whether the ONNX file lies in a folder of its own in the repository.
    fn is_below(&self) -> bool {
        own_folder(&self.model) != self.folder
    }
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
    let modules = configs::modules(above).ok().flatten();
    match configs::transformer_path(modules.as_deref()) == name {
        true => folder.join(".."),
        false => folder,
    }
}

fn find_in(folder: &Path) -> Result<PathBuf, ShardError> {
    let mut found = vec![];
    let modules = configs::modules(folder)?;
    let mut homes = vec![folder.to_owned()];
    match configs::transformer_path(modules.as_deref()) {
        "" => {}
        path => homes.push(folder.join(path)),
    }
    for place in homes.into_iter().flat_map(|home| [home.join(ONNX_FOLDER), home].into_iter().rev())
    {
        let plain = place.join(PLAIN_STEM).with_extension("onnx");
        if plain.is_file() {
            return Ok(plain);
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
    match &found[..] {
        [model] => Ok(model.clone()),
        [] => {
            let none =
                format!("{} has no ONNX file, nor has its folder {ONNX_FOLDER}", folder.display());
            Err(match Foreign::in_folder(folder) {
                Some((name, Foreign { what, advice })) => {
                    unfit!("{none}; {name} is {what}\n{advice}")
                }
                None => unfit!(
                    "{none}\nexport the model there (optimum-cli export onnx), or name its file"
                ),
            })
        }
        several => Err(unfit!(
            "{} has several ONNX files: name one of {}",
            folder.display(),
            several.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ")
        )),
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
