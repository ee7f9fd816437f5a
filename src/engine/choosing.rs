//! The precisions that are chosen for targets: of models, and of requests that bring their own.

use super::config::Policy;
use super::error::EngineError;
use super::model::Model;
use super::planning::Planner;
use super::pressure::Pressure;
use super::room::TICK;
use super::targets::{is_set, merged};
use crate::plan::{Chosen, Profile, Target};
use crate::sys::panics;
use crossbeam_channel::{RecvTimeoutError, bounded};
use std::sync::Arc;

/// An accuracy that every choice has.
const ANY_ACCURACY: f64 = 1e-6;

impl Planner {
    /// Has a model played as requests with this target of their own are to be answered, or where
    /// they have none as it is planned.
    ///
    /// # Errors
    /// What stands against such a plan; the model is played as before.
    pub fn set_up(&mut self, model: &Arc<Model>, own: Option<Target>) -> Result<(), EngineError> {
        let Some(own) = own.filter(is_set) else { return model.play_own() };
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

    /// Plans a model for its target, as its passes are played from now on. Where no choice answers in
    /// time, the fastest that is accurate enough comes nearest.
    pub fn follow_nearly(
        &self,
        model: &Model,
        profile: &Profile,
        target: &Target,
    ) -> Result<(), EngineError> {
        let refused = match self.follow_target(model, profile, target) {
            Err(refused @ (EngineError::Target(_) | EngineError::ShortOfMemory(_))) => refused,
            followed => return followed,
        };
        let accuracy = target.accuracy.unwrap_or(ANY_ACCURACY);
        let nearest = Target { latency_us: None, accuracy: Some(accuracy) };
        if target.latency_us.is_none() || self.follow_target(model, profile, &nearest).is_err() {
            return Err(refused);
        }
        let text = refused.to_string().replace('\n', ": ");
        log::warn!("model {} comes as near to its target as it can: {text}", model.name());
        Ok(())
    }

    fn follow_target(
        &self,
        model: &Model,
        profile: &Profile,
        target: &Target,
    ) -> Result<(), EngineError> {
        retried(model, || {
            let Chosen { planned, accuracy, .. } = self.choose(model, profile, target)?;
            log::info!("model {}, an accuracy of {accuracy:.4} expected: {planned}", model.name());
            model.settle(planned.plan)
        })
    }

    /// The choice of precisions for a target, with the plan.
    fn choose(
        &self,
        model: &Model,
        profile: &Profile,
        target: &Target,
    ) -> Result<Chosen, EngineError> {
        let ladder = model.ladder()?;
        let terms = self.terms(model.graph_bytes(), profile);
        let pressure = self.library.room.pressure.get();
        let now = terms.clone().under(pressure);
        self.beating(|| match now.choose(profile, &ladder, target) {
            Ok((_, chosen)) => Ok(chosen),
            Err(refused) => {
                let would_do = || terms.choose(profile, &ladder, target).is_ok();
                Err(match pressure > Pressure::None && would_do() {
                    true => EngineError::ShortOfMemory(refused),
                    false => refused.into(),
                })
            }
        })
    }

    /// Does some reckoning on a thread of its own, and shows meanwhile that the engine moves: for a
    /// long tape on a small board it takes some seconds.
    fn beating<T: Send>(
        &self,
        reckon: impl FnOnce() -> Result<T, EngineError> + Send,
    ) -> Result<T, EngineError> {
        let (done, is_done) = bounded::<()>(0);
        std::thread::scope(|scope| {
            let reckon = move || {
                let _done = done;
                reckon()
            };
            let builder = std::thread::Builder::new().name("trial".to_string());
            let thread = builder.spawn_scoped(scope, reckon).map_err(EngineError::Thread)?;
            while is_done.recv_timeout(TICK) == Err(RecvTimeoutError::Timeout) {
                self.library.room.pulse.beat();
            }
            let joined = thread.join();
            joined.unwrap_or_else(|panic| Err(EngineError::Internal(panics::text(&*panic))))
        })
    }

    /// What was measured of a model.
    fn measured(&self, model: &Model) -> Result<Arc<Profile>, EngineError> {
        let name = model.name().to_owned();
        model.profile().ok_or_else(|| match model.given_up() {
            Some(why) => EngineError::NotMeasurable { model: name, why },
            None => EngineError::NotMeasured { model: name },
        })
    }

    /// Whether a model is to be measured anew to follow its target.
    pub fn lacks_rates(&self, model: &Model) -> bool {
        let lacks = |profile: Arc<Profile>| profile.rates.is_empty() && profile.skipped.is_empty();
        is_set(&self.targets.of(model.name()))
            && model.dir.manifest.precision.is_some()
            && model.given_up().is_none()
            && model.profile().is_some_and(lacks)
    }

    /// Says that a model's target is not kept to yet.
    pub fn say_unmeasured(&self, model: &Model) {
        if is_set(&self.targets.of(model.name())) {
            let (name, variant) = (model.name(), &model.variant);
            log::info!(
                "model {name} is not measured yet: until it is, it is played in {variant}, whatever \
                 its target"
            );
        }
    }
}

/// Plays a model as is chosen for it; where a layer file is no longer there that was, as is chosen
/// without it.
fn retried<T>(
    model: &Model,
    mut play: impl FnMut() -> Result<T, EngineError>,
) -> Result<T, EngineError> {
    play().or_else(|error| match error {
        EngineError::Store(_) => {
            model.forget_ladder();
            play()
        }
        error => Err(error),
    })
}
