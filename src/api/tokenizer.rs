//! Tokenizers: loaded on first use, held in the ledger, bounded in what a text may cost.

use super::embeddings_json::Cut;
use super::error::ApiError;
use crate::engine::Engine;
use crate::store::ModelDir;
use crate::store::manifest::{FileEntry, Manifest, TextRules};
use crate::stream::{Category, Grant};
use crate::sys::heap;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use tokenizers::{PostProcessor, Tokenizer, TruncationDirection};

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
    /// What happens to longer ones, as the makers say.
    cut: Cut,
    rules: TextRules,
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
        let own = tokenizer.get_truncation().map(|own| (own.max_length, own.direction));
        let turned_off = tokenizer.with_truncation(None).map(drop);
        turned_off.map_err(|error| failed(error.to_string()))?;
        let rules = manifest.text.clone().unwrap_or_default();
        let said = rules.max_tokens.and_then(|most| usize::try_from(most).ok());
        let limits = [said.or(own.map(|(most, _)| most)), position_limit(manifest)];
        let limit = limits.into_iter().flatten().min();
        let cut = match (&manifest.text, own) {
            (Some(rules), _) if !rules.truncates => Cut::Refuse,
            (_, Some((_, TruncationDirection::Left))) => Cut::Start,
            (None, None) => Cut::Refuse,
            _ => Cut::End,
        };
        let vocabulary = tokenizer.get_vocab_size(true);
        Ok(TextEncoder { tokenizer, limit, cut, rules, vocabulary, _grant: grant })
    }

    /// The text of the prompt that `name` asks for, or of the one that comes unasked.
    ///
    /// # Errors
    ///
    /// 400 for a name that the model has no prompt of.
    pub fn prompt(&self, name: Option<&str>) -> Result<&str, ApiError> {
        let Some(name) = name.or(self.rules.default_prompt.as_deref()) else { return Ok("") };
        self.rules.prompt(name).ok_or_else(|| {
            let known: Vec<&str> = self.rules.prompts.iter().map(|p| p.name.as_str()).collect();
            let known = match known[..] {
                [] => "none".to_owned(),
                _ => known.join(", "),
            };
            let name: String = name.chars().take(64).collect();
            let message = format!("there is no prompt {name:?}: the model has {known}");
            ApiError::invalid(message).about("prompt_name")
        })
    }

    /// How many tokens at the beginning of a text are its prompt's and not pooled.
    ///
    /// # Errors
    ///
    /// As [`TextEncoder::encode`].
    pub fn skipped(&self, prompt: &str, engine: &Engine) -> Result<usize, ApiError> {
        if !self.rules.skips_prompt || prompt.is_empty() {
            return Ok(0);
        }
        let tokens = self.encode(prompt, Some(Cut::End), engine)?;
        // A special token at the end follows the text, not the prompt.
        let special = self.tokenizer.get_added_tokens_decoder();
        let is_closed =
            tokens.last().is_some_and(|last| special.get(last).is_some_and(|token| token.special));
        Ok(tokens.len() - usize::from(is_closed))
    }

    /// The tokens of `text`. One that is too long is cut as the caller says, else as the makers do.
    ///
    /// # Errors
    ///
    /// 400 for a text longer than the model takes; 503 where the ledger has no room to encode it.
    pub fn encode(
        &self,
        text: &str,
        cut: Option<Cut>,
        engine: &Engine,
    ) -> Result<Vec<u32>, ApiError> {
        if text.len() > MAX_TEXT_BYTES {
            let message =
                format!("the text has {} bytes; the limit is {MAX_TEXT_BYTES}", text.len());
            return Err(ApiError::invalid(message).about("input"));
        }
        let scratch = text.len() as u64 * ENCODING_PER_BYTE;
        let _grant = engine.ledger().try_grant(Category::Request, scratch)?;
        let failed = |error| ApiError::invalid(format!("cannot tokenize the text: {error}"));
        let lower = self.rules.lowercase.then(|| text.to_lowercase());
        let text = lower.as_deref().unwrap_or(text);
        let mut encoding = self.tokenizer.encode_fast(text, false).map_err(failed)?;
        let special = self.tokenizer.get_post_processor().map_or(0, |p| p.added_tokens(false));
        let length = encoding.len() + special;
        if let Some(limit) = self.limit.filter(|limit| length > *limit) {
            let direction = match cut.unwrap_or(self.cut) {
                Cut::End => TruncationDirection::Right,
                Cut::Start => TruncationDirection::Left,
                Cut::Refuse => return Err(self.too_long(length, limit)),
            };
            encoding.truncate(limit.saturating_sub(special), 0, direction);
        }
        let encoding = self.tokenizer.post_process(encoding, None, true).map_err(failed)?;
        self.check(encoding.get_ids().to_vec())
    }

    fn too_long(&self, length: usize, limit: usize) -> ApiError {
        let message = format!(
            "{length} tokens; the model takes at most {limit}\n\
             shorten the text, or send \"truncate\": true"
        );
        ApiError::invalid(message).about("input")
    }

    /// Checks tokens, from a text or from the client.
    pub fn check(&self, tokens: Vec<u32>) -> Result<Vec<u32>, ApiError> {
        let refuse = |message: String| Err(ApiError::invalid(message).about("input"));
        if let Some(limit) = self.limit.filter(|limit| tokens.len() > *limit) {
            return Err(self.too_long(tokens.len(), limit));
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
