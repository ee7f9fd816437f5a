//! Checkpoints as makers publish them, Hugging Face folders and GGUF files, presented alike: a config,
//! small files, and tensors by name, kind and place. Headers only are read; how a model is computed
//! is not known here.

mod blocks;
mod error;
mod file;
mod folder;
mod gguf;
mod kind;
mod safetensors;
mod superblocks;

pub use error::CheckpointError;
pub use file::open_linked;
pub use kind::Kind;

use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

/// A model as Hugging Face's transformers has it, whatever it was read from.
#[derive(Clone, Debug)]
pub struct Checkpoint {
    /// The file that the config is of, for whoever refuses something that it says.
    pub config_file: Arc<Path>,
    /// config.json, an object; of a GGUF file, one with the same keys made of its metadata.
    pub config: Value,
    /// Small files by their paths within the folder: tokenizer.json, tokenizer_config.json,
    /// generation_config.json, chat_template.jinja and the like; of a GGUF file they are made.
    pub files: BTreeMap<String, Vec<u8>>,
    /// Tensors by the names that transformers gives them, those of a GGUF file translated. Prefixes
    /// are those of the file: `model.layers.0.` or `layers.0.`.
    pub tensors: BTreeMap<String, Tensor>,
    /// In which order rows of queries and keys stand.
    pub rotation: Rotation,
    /// Whether norms of the Gemma kind lack the 1 that is added to their weights.
    pub norm_offset: bool,
    /// Whether GPT-2's matrices stand as `[in, out]` (Conv1D), and not as `[out, in]`.
    pub turned: bool,
    /// What was found and guessed, a sentence each.
    pub notes: Vec<String>,
}

/// Which values of a query or a key are turned together, where the model's kind rotates halves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Rotation {
    /// `i` and `i + head size / 2`, as transformers has it.
    Halves,
    /// `2 i` and `2 i + 1`: GGUF files of the Llama kind have their rows in this order.
    Interleaved,
}

/// Where a tensor lies, and how.
#[derive(Clone, Debug, PartialEq)]
pub struct Tensor {
    /// A file, possibly by way of links: [`open_linked`] opens it.
    pub file: Arc<Path>,
    /// Its first byte in the file.
    pub offset: u64,
    /// Its bytes there.
    pub bytes: u64,
    pub kind: Kind,
    /// Outermost first: `[out, in]` of a matrix. Each row consists of whole blocks of its kind.
    pub shape: Vec<u64>,
}

impl Checkpoint {
    /// Whether `path` may be a checkpoint: a folder, or what is called or begins as a GGUF file.
    pub fn is_at(path: &Path) -> bool {
        path.is_dir() || gguf::is_at(path)
    }

    /// Reads the headers of the folder or GGUF file at `path`.
    ///
    /// # Errors
    /// What is there is none, is damaged, or asks for what is not computed here.
    pub fn open(path: &Path) -> Result<Checkpoint, CheckpointError> {
        match path.is_dir() {
            true => folder::open(path),
            false => gguf::open(path),
        }
    }
}
