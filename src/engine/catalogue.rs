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
use std::sync::{Arc, Mutex, TryLockError};

/// Share of the budget that manifests may take together.
const SHARE: u64 = 16;

/// Manifests by the name of their model.
#[derive(Default)]
pub(super) struct Catalogue(Mutex<BTreeMap<String, Entry>>);

struct Entry {
    serving: Serving,
    manifest: Arc<Manifest>,
    used: u64,
    grant: Grant,
}

impl Catalogue {
    /// The manifest of a model's served version. One is parsed at a time, whoever asks.
    pub fn manifest(&self, shared: &Shared, model: &str) -> Result<Arc<Manifest>, EngineError> {
        let mut entries = lock(&self.0);
        let serving = shared.store.serving(model).ok();
        if let Some(known) = entries.get_mut(model)
            && Some(&known.serving) == serving.as_ref()
        {
            known.used = shared.keepers.now();
            return Ok(Arc::clone(&known.manifest));
        }
        entries.remove(model);
        let Some(serving) = serving else { return Ok(shared.find(model)?.manifest) };
        let parsing_bytes = serving.manifest_bytes.saturating_mul(HEAP_BYTES_PER_BYTE);
        let mut grant = match shared.grant(Category::Graph, parsing_bytes, 0) {
            Err(_) if !entries.is_empty() => {
                entries.clear();
                shared.grant(Category::Graph, parsing_bytes, 0)?
            }
            granted => granted?,
        };
        let (dir, took) = heap::metered(|| shared.find(model));
        let manifest = dir?.manifest;
        // Nothing is measured where the program does not count.
        if took.held_bytes > 0 {
            shared.enlarge(&mut grant, took.held_bytes, 0)?;
        }
        let used = shared.keepers.now();
        let entry = Entry { serving, manifest: Arc::clone(&manifest), used, grant };
        entries.insert(model.to_string(), entry);
        let limit_bytes = shared.ledger.budget_bytes() / SHARE;
        while entries.values().map(|entry| entry.grant.bytes()).sum::<u64>() > limit_bytes {
            let oldest = entries.iter().min_by_key(|(_, entry)| entry.used);
            let Some(oldest) = oldest.map(|(name, _)| name.clone()) else { break };
            entries.remove(&oldest);
        }
        if took.peak_bytes > TRIMMED_BYTES {
            heap::trim();
        }
        Ok(manifest)
    }

    /// Lets go what is known of a model.
    pub fn forget(&self, model: &str) {
        lock(&self.0).remove(model);
    }

    /// Lets all go, unless it is being asked; whether there was anything.
    pub fn give_way(&self) -> bool {
        let mut entries = match self.0.try_lock() {
            Ok(entries) => entries,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return false,
        };
        !std::mem::take(&mut *entries).is_empty()
    }
}

/// Parsing that takes more leaves the heap to be given back.
const TRIMMED_BYTES: u64 = 1 << 20;
