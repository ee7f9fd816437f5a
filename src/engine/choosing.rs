//! The precisions that are chosen for targets: of models, and of requests that bring their own.

use super::config::Policy;
use super::error::EngineError;
use super::known::PlanTerms;
use super::model::Model;
use super::planning::Planner;
use super::pressure::Pressure;
use super::request::Line;
use super::room::TICK;
use super::targets::{TargetKey, is_set, merged};
use crate::plan::{Chosen, Ladder, Profile, Target};
use crate::sys::panics;
use crossbeam_channel::{RecvTimeoutError, bounded};
use std::sync::Arc;

/// An accuracy that every choice has.
const ANY_ACCURACY: f64 = 1e-6;

/// What a choice is made by.
struct Choosing {
    ladder: Arc<Ladder>,
    terms: PlanTerms,
    pressure: Pressure,
    target: Target,
}

impl Choosing {
    fn choose(&self, profile: &Profile) -> Result<Chosen, EngineError> {
        let Choosing { ladder, terms, pressure, target } = self;
        match terms.clone().under(*pressure).choose(profile, ladder, target) {
            Ok((_, chosen)) => Ok(chosen),
            Err(refused) => {
                let would_do = || terms.choose(profile, ladder, target).is_ok();
                Err(match *pressure > Pressure::None && would_do() {
                    true => EngineError::ShortOfMemory(refused),
                    false => refused.into(),
                })
            }
        }
    }
}

impl Planner {
    /// Has a model played as the requests of a line are to be answered: by a choice for their target,
    /// or where they have none as it is planned. Whether it is so; if not, a plan is made, and the
    /// line waits for it.
    ///
    /// # Errors
    /// What stands against such a plan; the model is played as before.
    pub fn set_up(&mut self, model: &Arc<Model>, line: &Line) -> Result<bool, EngineError> {
        let own = line.target.map(TargetKey::target);
        let Some(own) = own.filter(is_set) else { return model.play_own().map(|()| true) };
        if self.config.policy != Policy::Tape {
            let what = "no target can be kept to: this engine follows one of the papers' policies";
            return Err(EngineError::Invalid(what.to_owned()));
        }
        let target = merged(&own, &self.targets.of(model.name()));
        let played = match self.chosen(model, &target, line) {
            Ok(None) => return Ok(false),
            Ok(Some(chosen)) => self.play_chosen(model, &chosen),
            Err(error) => Err(error),
        };
        if let Err(EngineError::Store(_)) = played {
            // A layer file is no longer there that was: another choice is made without it.
            self.choices.forget(model);
            model.forget_ladder();
            let chosen = self.chosen_at_once(model, &target)?;
            return self.play_chosen(model, &chosen).map(|()| true);
        }
        played.map(|()| true)
    }

    fn play_chosen(&mut self, model: &Arc<Model>, chosen: &Chosen) -> Result<(), EngineError> {
        let played = model.play_for_now(&chosen.planned.plan);
        if played.is_err() {
            self.choices.forget(model);
        }
        played
    }

    /// The choice for a target; planned once, for as long as version, profile, budget and pressure
    /// stay. None while it is planned, or another one is: the line is parked.
    fn chosen(
        &mut self,
        model: &Arc<Model>,
        target: &Target,
        line: &Line,
    ) -> Result<Option<Arc<Chosen>>, EngineError> {
        let profile = self.measured(model)?;
        let room = Arc::clone(&self.library.room);
        // Before anybody looks whether a plan is there: what comes later wakes the line.
        room.inbox.park(line);
        self.choices.hold_under((room.ledger.budget_bytes(), room.pressure.get()));
        let has_waited = self.choices.has_waited(line);
        match self.choices.get(model, &profile, target) {
            Some(Ok(chosen)) => return Ok(Some(chosen)),
            // Whoever did not wait for that may find it otherwise by now.
            Some(Err(refused)) if has_waited => return Err(refused),
            _ => {}
        }
        if has_waited {
            // For nothing: the model was loaded anew meanwhile, or the budget is another. Nobody waits
            // for that again and again.
            return self.chosen_at_once(model, target).map(Some);
        }
        if !self.choices.are_planned() {
            let choosing = self.choosing(model, &profile, target)?;
            let reckon = {
                let profile = Arc::clone(&profile);
                move || choosing.choose(&profile)
            };
            let of = (model, &profile, *target);
            self.choices.plan(of, line, reckon, move || room.inbox.wake_all())?;
        }
        Ok(None)
    }

    /// The choice for a target, planned while all else waits.
    fn chosen_at_once(
        &mut self,
        model: &Arc<Model>,
        target: &Target,
    ) -> Result<Arc<Chosen>, EngineError> {
        let profile = self.measured(model)?;
        let chosen = Arc::new(self.choose(model, &profile, target)?);
        self.choices.keep(model, &profile, target, Ok(Arc::clone(&chosen)));
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
        let follow = || {
            let Chosen { planned, accuracy, .. } = self.choose(model, profile, target)?;
            log::info!("model {}, an accuracy of {accuracy:.4} expected: {planned}", model.name());
            model.settle(planned.plan)
        };
        follow().or_else(|error| match error {
            // A layer file is no longer there that was: another choice is made without it.
            EngineError::Store(_) => {
                model.forget_ladder();
                follow()
            }
            error => Err(error),
        })
    }

    /// The choice of precisions for a target, with the plan.
    fn choose(
        &self,
        model: &Model,
        profile: &Profile,
        target: &Target,
    ) -> Result<Chosen, EngineError> {
        let choosing = self.choosing(model, profile, target)?;
        self.beating(|| choosing.choose(profile))
    }

    fn choosing(
        &self,
        model: &Model,
        profile: &Profile,
        target: &Target,
    ) -> Result<Choosing, EngineError> {
        Ok(Choosing {
            ladder: model.ladder()?,
            terms: self.terms(model.graph_bytes(), profile),
            pressure: self.library.room.pressure.get(),
            target: *target,
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
