//! A model's files, as far as they are read before anything is made of them.

use super::architectures::{self, Drawn};
use super::configs::{self, Files};
use super::error::{ShardError, unfit};
use super::foreign::Foreign;
use super::order::Order;
use super::place::{Form, Place};
use crate::checkpoint::Checkpoint;
use crate::graph::skim::{self, Skim, SkimError};
use crate::tokens::{self, Assembled, AssemblyError, Manner};
use std::convert::Infallible;
use std::fs;
use std::path::{Path, PathBuf};

/// Name of the tokenizer's file, beside a model and in a version.
pub(super) const TOKENIZER_NAME: &str = "tokenizer.json";

/// A model without its big weights, which stay where they are, and what belongs to it.
#[derive(Clone, Debug)]
pub struct Source {
    /// Name of the model.
    pub name: String,
    /// Name of its file.
    pub file: String,
    /// The folder in which its makers' configs are looked for.
    pub folder: PathBuf,
    pub skim: Skim,
    pub tokenizer: Option<TokenizerFile>,
    /// What it was drawn from, but for the tensors and the tokenizer; none of an ONNX file.
    pub checkpoint: Option<Checkpoint>,
    /// Rows of the table of words, where the graph was drawn here and has one.
    pub vocabulary: Option<u64>,
    /// Tokens that it was made for, where the graph was drawn here.
    pub context: Option<u64>,
    /// What is to be said of it, line by line.
    pub notes: Vec<String>,
}

/// A tokenizer.json, whatever it is called.
#[derive(Clone, Debug)]
pub struct TokenizerFile {
    pub path: PathBuf,
    pub bytes: Vec<u8>,
}

impl Source {
    /// Reads the files that `order` names.
    ///
    /// # Errors
    /// What cannot be read, or be asked for.
    pub fn read(order: &Order) -> Result<Source, ShardError> {
        let place = Place::of(&order.model)?;
        let name = order.check_at(&place)?;
        match place.form {
            Form::Onnx => Source::of_onnx(order, place, name),
            Form::Checkpoint => Source::of_checkpoint(order, place, name),
        }
    }

    fn of_onnx(order: &Order, place: Place, name: String) -> Result<Source, ShardError> {
        let skim = skim::skim(&place.model, order.threshold_bytes);
        let skim = skim.map_err(|error| told(error, &place.model))?;
        let tokenizer = read_tokenizer(order, &place)?;
        let file = file_name(&place.model);
        let Place { folder, note, .. } = place;
        let (checkpoint, vocabulary, context) = (None, None, None);
        let notes = note.into_iter().collect();
        Ok(Source { name, file, folder, skim, tokenizer, checkpoint, vocabulary, context, notes })
    }

    fn of_checkpoint(order: &Order, place: Place, name: String) -> Result<Source, ShardError> {
        let mut checkpoint = Checkpoint::open(&place.model)?;
        let Drawn { skim, vocabulary, context, mut notes } =
            architectures::draw(&checkpoint, order.threshold_bytes)?;
        checkpoint.tensors.clear();
        let tokenizer = match (&order.tokenizer, checkpoint.files.remove(TOKENIZER_NAME)) {
            (None, Some(bytes)) => {
                // What was made of a GGUF file is in that file.
                let path = checkpoint.config_file.with_file_name(TOKENIZER_NAME);
                let path = if path.is_file() { path } else { checkpoint.config_file.to_path_buf() };
                Some(TokenizerFile { path, bytes })
            }
            _ => read_tokenizer(order, &place)?,
        };
        if tokenizer.is_none() && vocabulary.is_some() {
            notes.push(format!(
                "there is no {TOKENIZER_NAME}: it takes ids of tokens, and no texts (--tokenizer FILE \
                 gives it one)"
            ));
        }
        let file = file_name(&fs::canonicalize(&place.model).unwrap_or(place.model));
        let Place { folder, .. } = place;
        let checkpoint = Some(checkpoint);
        Ok(Source { name, file, folder, skim, tokenizer, checkpoint, vocabulary, context, notes })
    }
}

/// The last part of a path.
fn file_name(path: &Path) -> String {
    path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

impl TokenizerFile {
    /// What it says, if it is one that a daemon will use: its rules are looked at as there.
    pub(super) fn parse(&self) -> Result<Assembled, ShardError> {
        let path = self.path.display();
        // What serving it takes is told of it; here nobody asks.
        let read = tokens::assemble(&self.bytes, Manner::default(), |_| Ok::<_, Infallible>(()));
        read.map_err(|error| match (error, Foreign::in_place_of_text(&self.path)) {
            (AssemblyError::Rule(rule), _) => unfit!(
                "{path}: {rule}\n\
                 give another with --tokenizer FILE; a model without one takes ids of tokens"
            ),
            (_, Some(Foreign { what, advice })) => {
                unfit!("{path} is no tokenizer.json: it is {what}\n{advice}")
            }
            (error, None) => unfit!(
                "{path} is no tokenizer.json: {error}\n\
                 give the one that belongs to the model with --tokenizer FILE"
            ),
        })
    }
}

/// Why a file could not be skimmed: what it is, where it is no ONNX model at all.
fn told(error: SkimError, model: &Path) -> ShardError {
    match Foreign::of(model) {
        Some(Foreign { what, advice }) => {
            unfit!("{}: not an ONNX model: it is {what}\n{advice}", model.display())
        }
        None => error.into(),
    }
}

fn read_tokenizer(order: &Order, place: &Place) -> Result<Option<TokenizerFile>, ShardError> {
    let modules = configs::modules(&Files::of(&place.folder))?;
    let network = place.folder.join(configs::transformer_path(modules.as_deref()));
    let places = [network.join(TOKENIZER_NAME), place.folder.join(TOKENIZER_NAME)];
    let beside = places.into_iter().find(|path| path.is_file());
    let Some(path) = order.tokenizer.clone().or(beside) else { return Ok(None) };
    let told = ShardError::io(format!("read tokenizer {}", path.display()));
    let bytes = fs::read(&path).map_err(told)?;
    Ok(Some(TokenizerFile { path, bytes }))
}
