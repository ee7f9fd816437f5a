//! The models that are loaded.

use super::model::Model;
use crate::sys::lock::lock;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

/// Loaded models by name.
#[derive(Default)]
pub(super) struct Residents(Mutex<BTreeMap<String, Arc<Model>>>);

impl Residents {
    /// The loaded model of that name, whatever its version.
    pub fn get(&self, name: &str) -> Option<Arc<Model>> {
        lock(&self.0).get(name).cloned()
    }

    /// All of them, by name.
    pub fn all(&self) -> Vec<Arc<Model>> {
        self.each(Arc::clone)
    }

    /// A model answers from now on, in the place of another version of it.
    pub fn insert(&self, model: Arc<Model>) {
        lock(&self.0).insert(model.name().to_string(), model);
    }

    /// Lets a model go; whether it was there.
    pub fn remove(&self, name: &str) -> bool {
        lock(&self.0).remove(name).is_some()
    }

    /// Lets all go.
    pub fn clear(&self) {
        lock(&self.0).clear();
    }

    /// What is found out of each, by name.
    pub fn each<T>(&self, find: impl FnMut(&Arc<Model>) -> T) -> Vec<T> {
        lock(&self.0).values().map(find).collect()
    }

    /// Lets all pins go.
    pub fn unpin(&self) {
        self.each(|model| model.unpin());
    }
}
