//! What serving a version takes, as far as its manifest says: read without the rest of it, so that
//! what is needed can be named where there is no room for a manifest.

use super::folder::read_whole;
use super::generation::{GENERATION_NAME, MAX_GENERATION_BYTES};
use super::manifest::{Dim, FileEntry, MANIFEST_NAME, Needs, Port, TokenizerNeeds};
use super::{GENERATION_HEAP_BYTES_PER_BYTE, Rehearsal, Store, StoreError};
use crate::sys::file::open_regular;
use serde::Deserialize;
use std::io::{BufReader, Read};
use std::path::Path;

/// Limit of the manifests that are looked at for this; those of models of a hundred layers have a
/// fifth of it.
const MAX_BYTES: u64 = 512 << 10;

/// Heap that building a tokenizer takes per byte of its file, told where there is no room to look
/// at it: 30 to 50 for those in use.
const TOKENIZER_BYTES_PER_BYTE: u64 = 64;

/// What of a version bears on the memory that it takes.
#[derive(Clone, Debug, Deserialize)]
pub struct Demand {
    pub inputs: Vec<Port>,
    pub graph: FileEntry,
    /// Heap that importing the graph takes at its peak, where that is known.
    #[serde(default)]
    pub loading_bytes: Option<u64>,
    #[serde(default)]
    pub needs: Option<Needs>,
    #[serde(default)]
    pub tokenizer: Option<FileEntry>,
    #[serde(default)]
    pub generation: Option<FileEntry>,
    #[serde(default)]
    text: Option<TextLimit>,
    /// Most tokens of prompt and text together, where it writes texts and its makers say.
    #[serde(skip)]
    context: Option<u64>,
    /// Bytes of the manifest's text.
    #[serde(skip)]
    pub text_bytes: u64,
    /// Whether it is known how importing the graph went.
    #[serde(skip)]
    pub is_tried: bool,
}

/// What of a model's texts bears on the memory that they take.
#[derive(Clone, Copy, Debug, Deserialize)]
struct TextLimit {
    #[serde(default)]
    max_tokens: Option<u64>,
}

/// What of generation.json bears on it.
#[derive(Deserialize)]
struct ContextLimit {
    #[serde(default)]
    context: Option<u64>,
}

impl ContextLimit {
    /// The context of the version in this folder; none where its file does not say. Templates may take
    /// megabytes and are passed over as they are read.
    fn read(version_path: &Path) -> Option<u64> {
        let (file, _) = open_regular(&version_path.join(GENERATION_NAME)).ok()?;
        let text = BufReader::new(file.take(MAX_GENERATION_BYTES));
        serde_json::from_reader::<_, ContextLimit>(text).ok()?.context
    }
}

impl Demand {
    /// Reads it from the folder of a version.
    ///
    /// # Errors
    /// The system's, or a manifest that is too long or none.
    pub fn read(version_path: &Path) -> Result<Demand, StoreError> {
        let path = version_path.join(MANIFEST_NAME);
        let text = read_whole(&path, MAX_BYTES)?;
        let parsed = serde_json::from_slice(&text);
        let demand: Demand =
            parsed.map_err(|error| StoreError::corrupt(&path, error.to_string()))?;
        let known = Rehearsal::read(version_path, demand.graph.checksum);
        let rehearsed_bytes = match known {
            Some(Rehearsal::Done { peak_bytes }) => Some(peak_bytes),
            _ => None,
        };
        Ok(Demand {
            loading_bytes: demand.loading_bytes.max(rehearsed_bytes),
            text_bytes: text.len() as u64,
            is_tried: rehearsed_bytes.is_some(),
            context: demand.generation.as_ref().and_then(|_| ContextLimit::read(version_path)),
            ..demand
        })
    }

    /// Most tokens of a text, as [`ModelDir::longest_text`](super::ModelDir::longest_text) has it.
    pub fn longest_text(&self) -> Option<u64> {
        match self.generation {
            Some(_) => self.context,
            None => self.text?.max_tokens,
        }
    }

    /// Heap that loading its tokenizer takes, and what it is to know of texts.
    pub fn tokenizer_bytes(&self) -> u64 {
        let Some(file) = &self.tokenizer else { return 0 };
        let known_bytes = self.known_tokenizer().map(|known| known.loading_bytes);
        let likely_bytes = || file.bytes.saturating_mul(TOKENIZER_BYTES_PER_BYTE);
        known_bytes.unwrap_or_else(likely_bytes).saturating_add(self.telling_bytes())
    }

    /// Heap that its tokenizer holds while it writes texts; none where it writes none, or an older
    /// program built it, which does not tell.
    pub fn writing_bytes(&self) -> Option<u64> {
        self.generation.as_ref()?;
        Some(self.known_tokenizer()?.held_bytes.saturating_add(self.telling_bytes()))
    }

    fn known_tokenizer(&self) -> Option<TokenizerNeeds> {
        self.needs.as_ref()?.tokenizer
    }

    fn telling_bytes(&self) -> u64 {
        let told = self.generation.as_ref().map_or(0, |told| told.bytes);
        told.saturating_mul(GENERATION_HEAP_BYTES_PER_BYTE)
    }

    /// Bytes of a request's tensors whose open dimensions all have this length.
    pub fn inputs_bytes(&self, length: u64) -> u64 {
        let size = |dim: &Dim| match dim {
            Dim::Fixed(size) => *size,
            Dim::Symbol(_) => length,
        };
        let bytes = |port: &Port| {
            let element_bytes = port.dtype.size() as u64;
            port.shape.iter().fold(element_bytes, |bytes, dim| bytes.saturating_mul(size(dim)))
        };
        self.inputs.iter().map(bytes).fold(0, u64::saturating_add)
    }
}

impl Store {
    /// What serving a model's served version takes.
    ///
    /// # Errors
    /// As [`Store::serving`] and [`Demand::read`].
    pub fn demand(&self, model: &str) -> Result<Demand, StoreError> {
        Demand::read(&self.model_path(model)?.join(self.served(model)?.current))
    }
}
