//! Choices of precisions that were planned, for as long as what they were planned by stays, and one
//! that is.

use super::beside::Beside;
use super::error::EngineError;
use super::model::Model;
use super::pressure::Pressure;
use super::request::Line;
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
    beside: Beside<Chosen>,
    /// What is planned beside.
    asked: Option<Asked>,
    /// Lines that something was planned for, and that had no turn since.
    waited: Vec<Line>,
}

/// What a choice is planned for.
struct Asked {
    model: Weak<Model>,
    profile: Weak<Profile>,
    target: Target,
    under: (u64, Pressure),
}

struct Kept {
    model: Weak<Model>,
    profile: Weak<Profile>,
    target: Target,
    chosen: Result<Arc<Chosen>, EngineError>,
}

impl Kept {
    fn is_of(&self, model: &Arc<Model>) -> bool {
        self.model.ptr_eq(&Arc::downgrade(model))
    }
}

impl Choices {
    /// What was chosen for a model by this profile, or what stands against that: it is told once.
    pub fn get(
        &mut self,
        model: &Arc<Model>,
        profile: &Arc<Profile>,
        target: &Target,
    ) -> Option<Result<Arc<Chosen>, EngineError>> {
        self.take_planned();
        let profile = Arc::downgrade(profile);
        let is_it = |kept: &Kept| {
            kept.target == *target && kept.is_of(model) && kept.profile.ptr_eq(&profile)
        };
        let at = self.kept.iter().position(is_it)?;
        let kept = self.kept.remove(at);
        if let Ok(chosen) = &kept.chosen {
            let chosen = Arc::clone(chosen);
            self.kept.push(kept);
            return Some(Ok(chosen));
        }
        Some(kept.chosen)
    }

    /// Keeps a choice, or what stands against one; what was asked for longest ago goes, and what is of
    /// no model any more.
    pub fn keep(
        &mut self,
        model: &Arc<Model>,
        profile: &Arc<Profile>,
        target: &Target,
        chosen: Result<Arc<Chosen>, EngineError>,
    ) {
        self.kept.retain(|kept| kept.model.strong_count() > 0 && kept.profile.strong_count() > 0);
        if self.kept.len() >= MOST {
            self.kept.remove(0);
        }
        let (model, profile) = (Arc::downgrade(model), Arc::downgrade(profile));
        self.kept.push(Kept { model, profile, target: *target, chosen });
    }

    /// Lets go what was chosen for a model.
    pub fn forget(&mut self, model: &Arc<Model>) {
        self.kept.retain(|kept| !kept.is_of(model));
    }

    /// Begins to plan a choice for a target of a model by this profile, for which a line waits; `wake`
    /// is called when it is done. One is planned at a time.
    ///
    /// # Errors
    /// As [`Beside::begin`].
    pub fn plan(
        &mut self,
        (model, profile, target): (&Arc<Model>, &Arc<Profile>, Target),
        line: &Line,
        reckon: impl FnOnce() -> Result<Chosen, EngineError> + Send + 'static,
        wake: impl FnOnce() + Send + 'static,
    ) -> Result<(), EngineError> {
        self.beside.begin(reckon, wake)?;
        let (model, profile) = (Arc::downgrade(model), Arc::downgrade(profile));
        self.asked = Some(Asked { model, profile, target, under: self.under });
        if self.waited.len() >= MOST {
            self.waited.remove(0);
        }
        self.waited.push(line.clone());
        Ok(())
    }

    /// Whether a choice is being planned.
    pub fn are_planned(&self) -> bool {
        self.beside.is_under_way()
    }

    /// Whether a choice was planned for a line that had no turn since.
    pub fn has_waited(&mut self, line: &Line) -> bool {
        self.take_planned();
        let at = self.waited.iter().position(|waited| waited == line);
        let at = at.filter(|_| !self.beside.is_under_way());
        at.map(|at| self.waited.remove(at)).is_some()
    }

    /// Keeps what was planned beside, once it is there and if it is of use.
    fn take_planned(&mut self) {
        let Some(chosen) = self.beside.take() else { return };
        let Some(Asked { model, profile, target, under }) = self.asked.take() else { return };
        if let (Some(model), Some(profile)) = (model.upgrade(), profile.upgrade())
            && under == self.under
        {
            self.keep(&model, &profile, &target, chosen.map(Arc::new));
        }
    }

    /// Lets all go that were planned under another budget or pressure than this.
    pub fn hold_under(&mut self, under: (u64, Pressure)) {
        if self.under != under {
            self.kept.clear();
            self.under = under;
        }
    }
}
