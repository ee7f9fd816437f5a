//! What is known of models that are not loaded: each manifest is parsed once, granted, and kept
//! within a share of the budget.

use super::error::EngineError;
use super::service::Shared;
use crate::store::Serving;
use crate::store::manifest::{HEAP_BYTES_PER_BYTE, Manifest};
use crate::stream::{Category, Grant};
use crate::sys::heap;
use crate::sys::lock::lock;
use std::collections::BTreeMap;
use std::ops::Deref;
use std::sync::{Arc, Mutex};

/// Share of the budget that manifests may take together.
const SHARE: u64 = 16;

/// A manifest for as long as somebody needs it, whoever else lets it go meanwhile.
#[derive(Clone, Debug)]
pub struct Described {
    pub(super) manifest: Arc<Manifest>,
    /// What it holds; that of a loaded model is held with the model.
    pub(super) _held: Option<Arc<Grant>>,
}

impl Deref for Described {
    type Target = Manifest;

    fn deref(&self) -> &Manifest {
        &self.manifest
    }
}

/// Manifests by the name of their model.
#[derive(Default)]
pub(super) struct Catalogue {
    entries: Mutex<BTreeMap<String, Entry>>,
    /// Held while one is looked up, so that none is parsed twice at a time.
    looking: Mutex<()>,
}

struct Entry {
    serving: Serving,
    manifest: Arc<Manifest>,
    used: u64,
    grant: Arc<Grant>,
}

impl Entry {
    fn described(&self) -> Described {
        Described { manifest: Arc::clone(&self.manifest), _held: Some(Arc::clone(&self.grant)) }
    }
}

impl Catalogue {
    /// The manifest of a model's served version. One is parsed at a time, whoever asks.
    pub fn manifest(&self, shared: &Shared, model: &str) -> Result<Described, EngineError> {
        let _looking = lock(&self.looking);
        let serving = shared.serving(model);
        {
            let mut entries = lock(&self.entries);
            if let Some(known) = entries.get_mut(model)
                && Some(&known.serving) == serving.as_ref().ok()
            {
                known.used = shared.keepers.now();
                return Ok(known.described());
            }
            entries.remove(model);
        }
        let serving = serving?;
        let parsing_bytes = serving.manifest_bytes.saturating_mul(HEAP_BYTES_PER_BYTE);
        let mut grant = shared.grant(Category::Graph, parsing_bytes, 0)?;
        let (dir, took) = heap::metered(|| shared.find(model));
        let manifest = dir?.manifest;
        // Nothing is measured where the program does not count.
        if took.held_bytes > 0 {
            shared.enlarge(&mut grant, took.held_bytes, 0)?;
        }
        let used = shared.keepers.now();
        let entry = Entry { serving, manifest, used, grant: Arc::new(grant) };
        let described = entry.described();
        let mut entries = lock(&self.entries);
        entries.insert(model.to_string(), entry);
        let limit_bytes = shared.ledger.budget_bytes() / SHARE;
        while entries.values().map(|entry| entry.grant.bytes()).sum::<u64>() > limit_bytes {
            let oldest = entries.iter().min_by_key(|(_, entry)| entry.used);
            let Some(oldest) = oldest.map(|(name, _)| name.clone()) else { break };
            entries.remove(&oldest);
        }
        drop(entries);
        if took.peak_bytes > TRIMMED_BYTES {
            heap::trim();
        }
        Ok(described)
    }

    /// Lets go what is known of a model.
    pub fn forget(&self, model: &str) {
        lock(&self.entries).remove(model);
    }

    /// Lets all go that nobody needs; whether there was anything.
    pub fn give_way(&self) -> bool {
        let mut entries = lock(&self.entries);
        let count = entries.len();
        entries.retain(|_, entry| Arc::strong_count(&entry.grant) > 1);
        entries.len() < count
    }
}

/// Parsing that takes more leaves the heap to be given back.
const TRIMMED_BYTES: u64 = 1 << 20;
