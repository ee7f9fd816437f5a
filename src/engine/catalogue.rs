//! What is known of models that are not loaded: each manifest is parsed once, granted, and kept
//! within a share of the budget.

use crate::store::Serving;
use crate::store::manifest::Manifest;
use crate::stream::Grant;
use crate::sys::lock::lock;
use std::collections::BTreeMap;
use std::ops::Deref;
use std::sync::{Arc, Mutex, MutexGuard};

/// Share of the budget that manifests may take together.
const SHARE: u64 = 16;

/// A manifest for as long as somebody needs it, whoever else lets it go meanwhile.
#[derive(Clone, Debug)]
pub struct Described {
    pub(super) manifest: Arc<Manifest>,
    /// What it holds; that of a loaded model is held with the model.
    pub(super) held: Option<Arc<Grant>>,
}

impl Described {
    /// Bytes that are held as long as somebody needs it.
    pub fn held_bytes(&self) -> u64 {
        self.held.as_ref().map_or(0, |held| held.bytes())
    }
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
        Described { manifest: Arc::clone(&self.manifest), held: Some(Arc::clone(&self.grant)) }
    }
}

impl Catalogue {
    /// Held while a manifest is looked up, so that none is parsed twice at a time.
    pub fn looking(&self) -> MutexGuard<'_, ()> {
        lock(&self.looking)
    }

    /// What is known of a model that is served so; what is known of another version goes.
    pub fn get(&self, model: &str, serving: Option<&Serving>, now: u64) -> Option<Described> {
        let mut entries = lock(&self.entries);
        if let Some(known) = entries.get_mut(model)
            && Some(&known.serving) == serving
        {
            known.used = now;
            return Some(known.described());
        }
        entries.remove(model);
        None
    }

    /// Keeps a manifest within a share of the budget; what was used longest ago goes.
    pub fn keep(
        &self,
        serving: Serving,
        manifest: Arc<Manifest>,
        grant: Grant,
        (now, budget_bytes): (u64, u64),
    ) -> Described {
        let model = manifest.model.clone();
        let entry = Entry { serving, manifest, used: now, grant: Arc::new(grant) };
        let described = entry.described();
        let mut entries = lock(&self.entries);
        entries.insert(model, entry);
        while entries.values().map(|entry| entry.grant.bytes()).sum::<u64>() > budget_bytes / SHARE
        {
            let oldest = entries.iter().min_by_key(|(_, entry)| entry.used);
            let Some(oldest) = oldest.map(|(name, _)| name.clone()) else { break };
            entries.remove(&oldest);
        }
        described
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
