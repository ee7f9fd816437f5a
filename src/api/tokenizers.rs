//! The tokenizers of all models: loaded on first use, and let go where others need the room.

use super::error::ApiError;
use super::helpers::Helpers;
use super::tokenizer::{Asker, TextEncoder};
use crate::engine::{Cancel, Described, Engine, Keeper};
use crate::store::manifest::{FileEntry, Manifest, TextRules};
use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The tokenizers of all models, by model and version.
#[derive(Default)]
pub struct Tokenizers {
    loaded: Mutex<HashMap<(String, String), LoadedTokenizer>>,
    /// Held while one is loaded, so that no file is read twice at a time. Who waits for it keeps no
    /// helper from others.
    loading: Arc<tokio::sync::Mutex<()>>,
}

struct LoadedTokenizer {
    encoder: Arc<TextEncoder>,
    /// What it was made of: a version that is installed anew has its name and other files.
    entry: FileEntry,
    text: Option<TextRules>,
    generation: Option<FileEntry>,
    /// When it was used last, by the engine's count.
    used: u64,
}

impl Tokenizers {
    /// The tokenizer of a model, for somebody who holds `own_bytes`; reads its file on first use.
    ///
    /// # Errors
    ///
    /// 400 for a model without one; 503 where the ledger comes to have no room in time; 500 for a
    /// broken file.
    pub async fn get(
        self: &Arc<Tokenizers>,
        (helpers, engine): (&Helpers, &Engine),
        manifest: &Described,
        own_bytes: u64,
    ) -> Result<Arc<TextEncoder>, ApiError> {
        if let Some(encoder) = self.known(manifest, engine) {
            return Ok(encoder);
        }
        // What is known of the model is held until it is answered.
        let own_bytes = own_bytes.saturating_add(manifest.held_bytes());
        let turn = Arc::clone(&self.loading).lock_owned().await;
        if let Some(encoder) = self.known(manifest, engine) {
            return Ok(encoder);
        }
        let (own, engine, manifest) = (Arc::clone(self), engine.clone(), manifest.clone());
        let load = move |cancel: &Cancel| {
            // Until it is done, whether or not anybody still waits.
            let _turn = turn;
            let asker = Asker { engine: &engine, own_bytes, cancel };
            own.load(&manifest, asker).map_err(|error| {
                let model = &manifest.model;
                // What has room later is told so: a budget that is named may be more than is needed.
                let may_pass = error.may_pass();
                error.at_least(|| match may_pass {
                    true => engine.least_budget_bytes(model, own_bytes),
                    false => engine.least_budget_for_texts_bytes(model, own_bytes),
                })
            })
        };
        helpers.run(load).await
    }

    fn load(&self, manifest: &Manifest, asker: Asker) -> Result<Arc<TextEncoder>, ApiError> {
        // Those of other versions are no longer asked for.
        self.forget(&manifest.model);
        let entry = manifest.tokenizer.as_ref().ok_or_else(|| {
            let message = format!("model {:?} has no tokenizer.json", manifest.model);
            ApiError::invalid(message).about("model")
        })?;
        // Of the manifest's own version: another may have become current since.
        let dir = asker.engine.store().version(&manifest.model, &manifest.version)?;
        let encoder = Arc::new(TextEncoder::load(&dir, entry, asker)?);
        let loaded = LoadedTokenizer {
            encoder: Arc::clone(&encoder),
            entry: entry.clone(),
            text: manifest.text.clone(),
            generation: manifest.generation.clone(),
            used: asker.engine.now(),
        };
        self.lock().insert((manifest.model.clone(), manifest.version.clone()), loaded);
        Ok(encoder)
    }

    fn known(&self, manifest: &Manifest, engine: &Engine) -> Option<Arc<TextEncoder>> {
        let key = (manifest.model.clone(), manifest.version.clone());
        let mut loaded = self.lock();
        let known = loaded.get_mut(&key)?;
        let is_same = Some(&known.entry) == manifest.tokenizer.as_ref()
            && known.text == manifest.text
            && known.generation == manifest.generation;
        if !is_same {
            return None;
        }
        known.used = engine.now();
        Some(Arc::clone(&known.encoder))
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<(String, String), LoadedTokenizer>> {
        self.loaded.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Keeper for Tokenizers {
    fn oldest(&self, spared: &BTreeSet<String>) -> Option<u64> {
        let loaded = self.lock();
        let can_go =
            loaded.iter().filter(|((of, _), known)| known.is_idle() && !spared.contains(of));
        can_go.map(|(_, known)| known.used).min()
    }

    fn give_way(&self, spared: &BTreeSet<String>) -> bool {
        let mut loaded = self.lock();
        let can_go =
            loaded.iter().filter(|((of, _), known)| known.is_idle() && !spared.contains(of));
        let oldest = can_go.min_by_key(|(_, known)| known.used).map(|(key, _)| key.clone());
        let gone = oldest.and_then(|key| loaded.remove(&key));
        drop(loaded);
        gone.is_some()
    }

    /// Of all its versions; who uses one keeps it until then.
    fn forget(&self, model: &str) {
        self.lock().retain(|(of, _), _| of != model);
    }
}

impl LoadedTokenizer {
    fn is_idle(&self) -> bool {
        Arc::strong_count(&self.encoder) == 1
    }
}
