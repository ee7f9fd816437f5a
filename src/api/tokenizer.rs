//! Tokenizers: loaded on first use, held in the ledger, bounded in what a text may cost.

use super::error::ApiError;
use crate::engine::Engine;
use crate::store::ModelDir;
use crate::store::manifest::{FileEntry, Manifest};
use crate::stream::{Category, Grant};
use crate::sys::heap;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use tokenizers::Tokenizer;

/// Heap of a loaded tokenizer per byte of its file; measured: 10.2 for BERT's 30,522 words.
const HELD_PER_BYTE: u64 = 11;

/// Heap at the peak of loading per byte of the file; measured: 15.9.
const LOADING_PER_BYTE: u64 = 17;

/// Heap at the peak of encoding per byte of text; measured: 92 for prose, 406 for one token a byte.
const ENCODING_PER_BYTE: u64 = 512;

/// Longest text in bytes, whatever the budget: some 16,000 tokens of prose.
const MAX_TEXT_BYTES: usize = 64 << 10;

/// A model's tokenizer.
pub struct TextEncoder {
    tokenizer: Tokenizer,
    /// Tokens of the longest text that the model takes, where that is known.
    limit: Option<usize>,
    vocabulary: usize,
    _grant: Grant,
}

impl TextEncoder {
    /// Of the file that `entry` of the manifest tells of, whose checksum has to be right.
    fn load(dir: &ModelDir, entry: &FileEntry, engine: &Engine) -> Result<TextEncoder, ApiError> {
        let manifest = &dir.manifest;
        let path = dir.file_path(&entry.path)?;
        let failed = |what: String| ApiError::internal(format!("{}: {what}", path.display()));
        let bytes = entry.bytes;
        let loading = bytes.saturating_mul(LOADING_PER_BYTE);
        let mut grant = engine.ledger().try_grant(Category::Tokenizer, loading)?;
        let text = dir.read_file(entry)?;
        let mut tokenizer =
            Tokenizer::from_bytes(&text).map_err(|error| failed(error.to_string()))?;
        drop(text);
        // Each text is a request of its own: nothing has to be padded to anything.
        tokenizer.with_padding(None);
        // What loading took must be the system's again before the ledger grants it to others.
        heap::trim();
        grant.resize(bytes.saturating_mul(HELD_PER_BYTE))?;
        let limit = position_limit(manifest);
        let vocabulary = tokenizer.get_vocab_size(true);
        Ok(TextEncoder { tokenizer, limit, vocabulary, _grant: grant })
    }

    /// The tokens of `text`, truncated as tokenizer.json says.
    ///
    /// # Errors
    ///
    /// 400 for a text longer than the model takes; 503 where the ledger has no room to encode it.
    pub fn encode(&self, text: &str, engine: &Engine) -> Result<Vec<u32>, ApiError> {
        if text.len() > MAX_TEXT_BYTES {
            let message =
                format!("the text has {} bytes; the limit is {MAX_TEXT_BYTES}", text.len());
            return Err(ApiError::invalid(message).about("input"));
        }
        let scratch = text.len() as u64 * ENCODING_PER_BYTE;
        let _grant = engine.ledger().try_grant(Category::Request, scratch)?;
        let encoding = self
            .tokenizer
            .encode_fast(text, true)
            .map_err(|error| ApiError::invalid(format!("cannot tokenize the text: {error}")))?;
        self.check(encoding.get_ids().to_vec())
    }

    /// Checks tokens, from a text or from the client.
    pub fn check(&self, tokens: Vec<u32>) -> Result<Vec<u32>, ApiError> {
        let refuse = |message: String| Err(ApiError::invalid(message).about("input"));
        if let Some(limit) = self.limit.filter(|limit| tokens.len() > *limit) {
            return refuse(format!("{} tokens; the model takes at most {limit}", tokens.len()));
        }
        // Ids are no count: a vocabulary may have holes, and ids above its size.
        let is_none = |token: &&u32| self.tokenizer.id_to_token(**token).is_none();
        match tokens.iter().find(is_none) {
            Some(token) => refuse(format!(
                "token {token} is none of the model's vocabulary of {}",
                self.vocabulary
            )),
            None if tokens.is_empty() => refuse("the input has no tokens".to_owned()),
            None => Ok(tokens),
        }
    }
}

/// Rows of the table of learned positions, where the model has one among its big weights.
fn position_limit(manifest: &Manifest) -> Option<usize> {
    let table = manifest.weights.iter().find(|weight| {
        weight.shape.len() == 2
            && (weight.name.contains("position_embeddings") || weight.name.ends_with("wpe.weight"))
    })?;
    usize::try_from(table.shape[0]).ok()
}

/// The tokenizers of all models, by model and version.
#[derive(Default)]
pub struct Tokenizers {
    loaded: Mutex<HashMap<(String, String), Arc<TextEncoder>>>,
}

impl Tokenizers {
    /// The tokenizer of a model; reads its file on first use.
    ///
    /// # Errors
    ///
    /// 400 for a model without one; 503 where the ledger has no room; 500 for a broken file.
    pub fn get(&self, manifest: &Manifest, engine: &Engine) -> Result<Arc<TextEncoder>, ApiError> {
        let key = (manifest.model.clone(), manifest.version.clone());
        // Held while loading, so that the file is not read twice at a time.
        let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(encoder) = loaded.get(&key) {
            return Ok(Arc::clone(encoder));
        }
        let entry = manifest.tokenizer.as_ref().ok_or_else(|| {
            let message = format!("model {:?} has no tokenizer.json", manifest.model);
            ApiError::invalid(message).about("model")
        })?;
        // Of the manifest's own version: another may have become current since.
        let dir = engine.store().version(&manifest.model, &manifest.version)?;
        let encoder = Arc::new(TextEncoder::load(&dir, entry, engine)?);
        loaded.insert(key, Arc::clone(&encoder));
        Ok(encoder)
    }

    /// Gives back the tokenizers of a model, of all its versions; who uses one keeps it until then.
    pub fn forget(&self, model: &str) {
        let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        loaded.retain(|(of, _), _| of != model);
    }
}
