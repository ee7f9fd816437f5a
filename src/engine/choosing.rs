//! The precisions in which requests are answered that bring a target of their own.

use super::config::Policy;
use super::error::EngineError;
use super::model::Model;
use super::planning::{Planner, retried};
use super::targets::merged;
use crate::plan::{Chosen, Target};
use std::sync::Arc;

impl Planner {
    /// Has a model played as requests with this target of their own are to be answered, or where
    /// they have none as it is planned.
    ///
    /// # Errors
    /// What stands against such a plan; the model is played as before.
    pub fn set_up(&mut self, model: &Arc<Model>, own: Option<Target>) -> Result<(), EngineError> {
        let Some(own) = own else { return model.play_own() };
        if self.config.policy != Policy::Tape {
            let what = "no target can be kept to: this engine follows one of the papers' policies";
            return Err(EngineError::Invalid(what.to_owned()));
        }
        let target = merged(&own, &self.targets.of(model.name()));
        retried(model, || {
            let chosen = self.chosen(model, &target)?;
            let played = model.play_for_now(&chosen.planned.plan);
            if played.is_err() {
                self.choices.forget(model);
            }
            played
        })
    }

    /// The choice for a target; planned once, for as long as version, profile, budget and pressure
    /// stay.
    fn chosen(&mut self, model: &Arc<Model>, target: &Target) -> Result<Arc<Chosen>, EngineError> {
        let profile = self.measured(model)?;
        let room = &self.library.room;
        self.choices.hold_under((room.ledger.budget_bytes(), room.pressure.get()));
        if let Some(chosen) = self.choices.get(model, &profile, target) {
            return Ok(chosen);
        }
        let chosen = Arc::new(self.choose(model, &profile, target)?);
        self.choices.keep(model, &profile, target, &chosen);
        Ok(chosen)
    }
}
