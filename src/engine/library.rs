//! The store as the engine sees it: what is served, and what is known of models that are not loaded.

use super::catalogue::Described;
use super::error::EngineError;
use super::rehearsal::Rehearsals;
use super::room::Room;
use crate::store::manifest::HEAP_BYTES_PER_BYTE;
use crate::store::{Demand, ModelDir, Serving, Store, StoreError};
use crate::stream::Category;
use crate::sys::heap;
use std::sync::Arc;

/// Parsing that takes more leaves the heap to be given back.
const TRIMMED_BYTES: u64 = 1 << 20;

/// The store's models, and how imports of their graphs went.
pub(super) struct Library {
    pub store: Store,
    pub rehearsals: Rehearsals,
    pub room: Arc<Room>,
}

impl Library {
    /// The served version of a model.
    pub fn find(&self, model: &str) -> Result<ModelDir, EngineError> {
        self.store.current(model).map_err(|error| unknown(model, error))
    }

    /// Which version of a model is served; nothing is parsed.
    pub fn serving(&self, model: &str) -> Result<Serving, EngineError> {
        self.store.serving(model).map_err(|error| unknown(model, error))
    }

    /// The manifest of a model's served version. One is parsed at a time, whoever asks.
    pub fn manifest(&self, model: &str) -> Result<Described, EngineError> {
        let Room { catalogue, keepers, ledger, .. } = &*self.room;
        let _looking = catalogue.looking();
        let serving = self.serving(model);
        if let Some(known) = catalogue.get(model, serving.as_ref().ok(), keepers.now()) {
            return Ok(known);
        }
        let serving = serving?;
        let parsing_bytes = serving.manifest_bytes.saturating_mul(HEAP_BYTES_PER_BYTE);
        let mut grant = self.room.grant(Category::Graph, parsing_bytes)?;
        let (dir, took) = heap::metered(|| self.find(model));
        let manifest = dir?.manifest;
        // Nothing is measured where the program does not count.
        if took.held_bytes > 0 {
            self.room.enlarge(&mut grant, took.held_bytes, 0)?;
        }
        let limits = (keepers.now(), ledger.budget_bytes());
        let described = catalogue.keep(serving, manifest, grant, limits);
        if took.peak_bytes > TRIMMED_BYTES {
            heap::trim();
        }
        Ok(described)
    }

    /// The smallest budget in which a model that may not be loaded serves a request that takes so many
    /// bytes beside the process itself, all that is needed until it is answered, as far as the manifest
    /// tells; 0 where that cannot be read.
    pub fn least_budget_bytes(&self, model: &str, needed: impl Fn(&Demand) -> u64) -> u64 {
        let process_bytes = self.room.ledger.held_bytes(Category::Process);
        let demand = self.store.demand(model);
        demand.map_or(0, |demand| process_bytes.saturating_add(needed(&demand)))
    }
}

/// What the store says of a model that it may not have.
fn unknown(model: &str, error: StoreError) -> EngineError {
    match error {
        StoreError::Missing { .. } => EngineError::UnknownModel { model: model.to_string() },
        error => error.into(),
    }
}
