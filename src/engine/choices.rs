//! Choices of precisions that were planned, for as long as what they were planned by stays.

use super::model::Model;
use super::pressure::Pressure;
use crate::plan::{Chosen, Profile, Target};
use std::sync::{Arc, Weak};

/// Most that are kept: clients may ask for any target.
const MOST: usize = 16;

/// Planned choices, the one that was asked for last at the end.
#[derive(Default)]
pub(super) struct Choices {
    kept: Vec<Kept>,
    /// The budget and the pressure under which they were planned.
    under: (u64, Pressure),
}

struct Kept {
    model: Weak<Model>,
    profile: Weak<Profile>,
    target: Target,
    chosen: Arc<Chosen>,
}

impl Kept {
    fn is_of(&self, model: &Arc<Model>) -> bool {
        self.model.ptr_eq(&Arc::downgrade(model))
    }
}

impl Choices {
    /// What was chosen for a model by this profile.
    pub fn get(
        &mut self,
        model: &Arc<Model>,
        profile: &Arc<Profile>,
        target: &Target,
    ) -> Option<Arc<Chosen>> {
        let profile = Arc::downgrade(profile);
        let is_it = |kept: &Kept| {
            kept.target == *target && kept.is_of(model) && kept.profile.ptr_eq(&profile)
        };
        let at = self.kept.iter().position(is_it)?;
        let kept = self.kept.remove(at);
        let chosen = Arc::clone(&kept.chosen);
        self.kept.push(kept);
        Some(chosen)
    }

    /// Keeps a choice; what was asked for longest ago goes, and what is of no model any more.
    pub fn keep(
        &mut self,
        model: &Arc<Model>,
        profile: &Arc<Profile>,
        target: &Target,
        chosen: &Arc<Chosen>,
    ) {
        self.kept.retain(|kept| kept.model.strong_count() > 0 && kept.profile.strong_count() > 0);
        if self.kept.len() >= MOST {
            self.kept.remove(0);
        }
        let (model, profile) = (Arc::downgrade(model), Arc::downgrade(profile));
        self.kept.push(Kept { model, profile, target: *target, chosen: Arc::clone(chosen) });
    }

    /// Lets go what was chosen for a model.
    pub fn forget(&mut self, model: &Arc<Model>) {
        self.kept.retain(|kept| !kept.is_of(model));
    }

    /// Lets all go that were planned under another budget or pressure than this.
    pub fn hold_under(&mut self, under: (u64, Pressure)) {
        if self.under != under {
            self.kept.clear();
            self.under = under;
        }
    }
}
