//! Others who keep what may be needed again, and give it up where memory is short.

use crate::sys::lock::lock;
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Weak};

/// Somebody else who keeps what may be needed again, and can do without it: tokenizers.
pub trait Keeper: Send + Sync {
    /// When that was used which was used longest ago, by [`super::Engine::now`], of what can go and
    /// is of none of the models `spared`.
    fn oldest(&self, spared: &BTreeSet<String>) -> Option<u64>;

    /// Lets that go; whether anything went.
    fn give_way(&self, spared: &BTreeSet<String>) -> bool;

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
    pub fn all(&self) -> Vec<Arc<dyn Keeper>> {
        let mut keepers = lock(&self.keepers);
        keepers.retain(|keeper| keeper.strong_count() > 0);
        keepers.iter().filter_map(Weak::upgrade).collect()
    }

    /// Lets go what is of a model.
    pub fn forget(&self, model: &str) {
        self.all().iter().for_each(|keeper| keeper.forget(model));
    }
}
