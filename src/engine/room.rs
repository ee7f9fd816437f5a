//! Who gives way where memory is needed: pins first, then what was used longest ago.

use super::model::Model;
use super::service::Shared;
use crate::stream::{Category, Grant, OverBudget};
use crate::sys::heap;
use crate::sys::lock::lock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Weak};

/// Somebody else who keeps what may be needed again, and can do without it: tokenizers.
pub trait Keeper: Send + Sync {
    /// When that was used which was used longest ago, by [`super::Engine::now`]; none where nothing
    /// can go.
    fn oldest(&self) -> Option<u64>;

    /// Lets that go; whether anything went.
    fn give_way(&self) -> bool;

    /// Lets go what is of a model that is unloaded.
    fn forget(&self, model: &str);
}

/// Keepers, and the order in which things are used.
#[derive(Default)]
pub(super) struct Keepers {
    uses: AtomicU64,
    keepers: Mutex<Vec<Weak<dyn Keeper>>>,
}

impl Keepers {
    /// A number larger than all before.
    pub fn now(&self) -> u64 {
        self.uses.fetch_add(1, Ordering::Relaxed)
    }

    pub fn add(&self, keeper: Weak<dyn Keeper>) {
        lock(&self.keepers).push(keeper);
    }

    /// Those that are still there. They are asked without a lock of ours.
    fn all(&self) -> Vec<Arc<dyn Keeper>> {
        let mut keepers = lock(&self.keepers);
        keepers.retain(|keeper| keeper.strong_count() > 0);
        keepers.iter().filter_map(Weak::upgrade).collect()
    }

    /// Lets go what is of a model.
    pub fn forget(&self, model: &str) {
        self.all().iter().for_each(|keeper| keeper.forget(model));
    }
}

/// What may go next.
enum Oldest {
    Model(String),
    Kept(Arc<dyn Keeper>),
}

impl Shared {
    /// Frees memory that another use needs more: pins first, those of other models before those of
    /// `name`, then whatever was used longest ago, but the model `name` and what is in use. False
    /// where there is nothing left to give.
    pub fn make_room(&self, name: &str) -> bool {
        let models: Vec<Arc<Model>> = lock(&self.models).values().cloned().collect();
        let (own, others): (Vec<_>, Vec<_>) = models.iter().partition(|m| m.name() == name);
        if others.iter().map(|model| model.pins.release()).fold(false, |any, had| any | had) {
            return true;
        }
        if own.iter().any(|model| model.pins.release()) {
            return true;
        }
        // In use by more than the list of models and the one above.
        let idle = others.into_iter().filter(|model| Arc::strong_count(model) <= 2);
        let idle = idle.map(|model| (model.last_use(), Oldest::Model(model.name().to_string())));
        let kept = self.keepers.all();
        let kept = kept.into_iter().filter_map(|kept| Some((kept.oldest()?, Oldest::Kept(kept))));
        let oldest = idle.chain(kept).min_by_key(|(used, _)| *used).map(|(_, oldest)| oldest);
        drop(models);
        let gave = match oldest {
            None => self.catalogue.give_way(),
            Some(Oldest::Kept(keeper)) => keeper.give_way(),
            Some(Oldest::Model(other)) => {
                let gone = lock(&self.models).remove(&other);
                if gone.is_some() {
                    log::info!("model {other} is unloaded: its memory is needed");
                }
                gone.is_some()
            }
        };
        heap::trim();
        gave
    }

    /// A grant for whoever holds `own_bytes` already; before it is refused, all gives way that can.
    pub fn grant(
        &self,
        category: Category,
        bytes: u64,
        own_bytes: u64,
    ) -> Result<Grant, OverBudget> {
        let mut grant = self.ledger.try_grant(category, 0)?;
        self.enlarge(&mut grant, bytes, own_bytes)?;
        Ok(grant)
    }

    /// The same for a grant that is to become larger.
    pub fn enlarge(&self, grant: &mut Grant, bytes: u64, own_bytes: u64) -> Result<(), OverBudget> {
        loop {
            let Err(refused) = grant.resize(bytes) else { return Ok(()) };
            let refused = refused.beside(own_bytes);
            if !refused.can_fit() || !self.make_room("") {
                return Err(refused);
            }
        }
    }
}
