//! From a profile to the plan that a model's passes follow.

use super::error::EngineError;
use super::model::Model;
use super::pass::Cancel;
use super::policy::Policy;
use super::pressure::Pressure;
use super::profiler::{self, Profiler};
use super::service::{DiskKind, Shared, lock};
use super::worker::{UNPINNED_SHARE, Worker};
use crate::plan::{
    Board, Grouping, LayerCost, Overrides, Plan, Planned, Profile, ReadRate, Subject, Usage, Way,
    Wish, advise, pipeswitch_groups, plan,
};
use crate::stream::Category;
use std::sync::Arc;
use std::time::Duration;

/// What handing a group of layers from a loader to compute is reckoned to cost PipeSwitch.
const HAND_OVER_US: f64 = 50.0;

/// The version that profiles are of.
const HERMES: &str = env!("CARGO_PKG_VERSION");

impl Worker {
    /// Looks for the profile of a model that has just been loaded, and plans by it.
    pub(super) fn recall(&mut self, shared: &Shared, model: &Arc<Model>) {
        match self.known_profile(shared, model) {
            Ok(Some(profile)) => self.adopt(shared, model, Arc::new(profile)),
            Ok(None) => {}
            Err(why) => log::warn!("{}", why.replace('\n', ": ")),
        }
    }

    /// The profile beside the model; why there is none that can be used.
    fn known_profile(&mut self, shared: &Shared, model: &Model) -> Result<Option<Profile>, String> {
        // What an imitated disk gave is of no other.
        if !matches!(self.config.disk, DiskKind::Board) {
            return Ok(None);
        }
        let folder = shared.store.model_path(model.name()).map_err(|error| error.to_string())?;
        let Some(profile) =
            Profile::read(&folder, subject(model)).map_err(|error| error.to_string())?
        else {
            return Ok(None);
        };
        match profile.staleness(self.board(shared), HERMES, &model.dir.manifest.version) {
            None => Ok(Some(profile)),
            Some(stale) => Err(format!("model {}: {stale}: it is measured anew", model.name())),
        }
    }

    fn board(&mut self, shared: &Shared) -> &Board {
        if self.board.as_ref().is_none_or(|board| {
            !board.cores.iter().map(|core| core.id).eq(self.cores.iter().copied())
        }) {
            self.board = Some(profiler::board(shared.store.path(), self.config.disk, self));
        }
        self.board.as_ref().expect("it was just looked at")
    }

    /// Measures a model from beginning to end.
    pub(super) fn measure(
        &mut self,
        shared: &Shared,
        name: &str,
    ) -> Result<Arc<Profile>, EngineError> {
        let model = self.serving(shared, name)?;
        model.pins.release();
        let base = self.config.base_plan(self.cores.len(), self.window_bytes);
        let mut profiler = Profiler::new(Arc::clone(&model), base, self.cores.len());
        let cancel = Cancel::new();
        while !profiler.advance(self, shared, &cancel)? {
            shared.beats.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        }
        Ok(self.conclude(shared, profiler))
    }

    /// Does what can be done while nothing waits: one trial of a model that was not measured yet,
    /// else nothing. `patience` says when to come again.
    pub(super) fn use_leisure(&mut self, shared: &Shared, patience: &mut Option<Duration>) {
        if self.profiler.is_none() {
            self.rest();
            self.profiler = self.next_to_measure(shared);
        }
        let Some(mut profiler) = self.profiler.take() else { return };
        let cancel = shared.inbox.leisure();
        match profiler.advance(self, shared, &cancel) {
            Ok(true) => {
                self.conclude(shared, profiler);
            }
            Ok(false) => self.profiler = Some(profiler),
            Err(error) => {
                let (name, text) = (profiler.model.name(), error.to_string().replace('\n', ": "));
                log::warn!("model {name} could not be measured: {text}");
                profiler.model.give_up_measuring();
            }
        }
        *patience = Some(Duration::ZERO);
    }

    fn next_to_measure(&self, shared: &Shared) -> Option<Profiler> {
        let wanted = self.config.profiles && self.config.policy == Policy::Tape;
        if !wanted || shared.pressure.get() > Pressure::None {
            return None;
        }
        let models = lock(&shared.models);
        let unknown =
            |model: &&Arc<Model>| model.is_to_be_measured() && model.check_service().is_ok();
        let model = Arc::clone(models.values().find(unknown)?);
        let base = self.config.base_plan(self.cores.len(), self.window_bytes);
        Some(Profiler::new(model, base, self.cores.len()))
    }

    fn conclude(&mut self, shared: &Shared, profiler: Profiler) -> Arc<Profile> {
        let model = Arc::clone(&profiler.model);
        let board = self.board(shared).clone();
        let profile = Arc::new(profiler.finish(shared, board));
        if matches!(self.config.disk, DiskKind::Board) {
            let written = shared.store.model_path(model.name()).map_err(|error| error.to_string());
            let written = written
                .and_then(|folder| profile.write(&folder).map_err(|error| error.to_string()));
            match written {
                Ok(path) => log::info!("model {} is measured: {}", model.name(), path.display()),
                Err(error) => log::warn!("{}", error.replace('\n', ": ")),
            }
        }
        self.adopt(shared, &model, Arc::clone(&profile));
        profile
    }

    /// Plans a model's passes by its profile.
    pub(super) fn adopt(&mut self, shared: &Shared, model: &Arc<Model>, profile: Arc<Profile>) {
        match &self.config.policy {
            Policy::Tape => self.plan_tape(shared, model, &profile),
            Policy::PipeSwitch => {
                let grouping = Grouping::Runs(pipeswitch_runs(&profile, self.config.tokens));
                model.play_by(Plan { grouping, ..model.playing().plan.clone() });
            }
            Policy::LoadAll | Policy::PipeLoad { .. } | Policy::Fixed(_) => {}
        }
        model.set_profile(profile);
    }

    fn plan_tape(&mut self, shared: &Shared, model: &Arc<Model>, profile: &Profile) {
        let wish = self.wish(shared, model);
        let fixed = self.config.overrides();
        let planned = plan(profile, &wish, &fixed).or_else(|_| {
            // Nothing is left for others then; a pass finds out whether that does.
            let budget_bytes = shared.ledger.budget_bytes();
            plan(profile, &Wish { budget_bytes, ..wish }, &fixed)
        });
        match planned {
            Ok(planned) => {
                log::info!("model {}: {planned}", model.name());
                model.play_by(planned.plan);
            }
            Err(error) => {
                let text = error.to_string().replace('\n', ": ");
                log::warn!("model {} is played as before: {text}", model.name());
            }
        }
    }

    /// What plans are made for: what pins leave to others is not theirs.
    fn wish(&self, shared: &Shared, model: &Model) -> Wish {
        let ledger = &shared.ledger;
        let others = [Category::Graph, Category::Tokenizer].map(|of| ledger.held_bytes(of));
        let others = others.iter().sum::<u64>().saturating_sub(model.graph_bytes());
        let reserved = ledger.budget_bytes() / UNPINNED_SHARE + others;
        Wish {
            budget_bytes: ledger.budget_bytes().saturating_sub(reserved),
            tokens: self.config.tokens,
            usage: Usage::Cyclic,
        }
    }

    /// What would be done with a model, and what would help.
    pub(super) fn inquire(
        &mut self,
        shared: &Shared,
        name: &str,
        inquiry: &Inquiry,
    ) -> Result<Answered, EngineError> {
        let model = self.serving(shared, name)?;
        let not_measured = || EngineError::NotMeasured { model: name.to_string() };
        let profile = model.profile().ok_or_else(not_measured)?;
        let usual = self.wish(shared, &model);
        let wish = Wish {
            budget_bytes: inquiry.budget_bytes.unwrap_or(usual.budget_bytes),
            tokens: inquiry.tokens.unwrap_or(usual.tokens),
            usage: inquiry.usage.unwrap_or(usual.usage),
        };
        let planned = plan(&profile, &wish, &inquiry.fixed)?;
        let others = self.other_variants(shared, &model);
        let others: Vec<&Profile> = others.iter().collect();
        let advice = advise(&profile, &wish, &inquiry.fixed, &planned, &others)?;
        Ok(Answered { profile, wish, planned, advice: advice.to_string() })
    }

    /// The profiles of a model's other variants, of those that were measured here.
    fn other_variants(&mut self, shared: &Shared, model: &Model) -> Vec<Profile> {
        let Ok(folder) = shared.store.model_path(model.name()) else { return vec![] };
        let board = self.board(shared).clone();
        let manifest = &model.dir.manifest;
        let others = manifest.variants.iter().filter(|variant| **variant != model.variant);
        let read = |variant: &String| {
            let subject = Subject { variant, ..subject(model) };
            let profile = Profile::read(&folder, subject).ok()??;
            profile.staleness(&board, HERMES, &manifest.version).is_none().then_some(profile)
        };
        others.filter_map(read).collect()
    }
}

/// What is asked about plans; what is left out is as the engine has it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Inquiry {
    /// Of the whole process.
    pub budget_bytes: Option<u64>,
    pub tokens: Option<u64>,
    pub usage: Option<Usage>,
    /// What of the plan is set by hand.
    pub fixed: Overrides,
}

/// The answer to an inquiry.
#[derive(Clone, Debug)]
pub struct Answered {
    pub profile: Arc<Profile>,
    pub wish: Wish,
    pub planned: Planned,
    /// What would help most, as a sentence.
    pub advice: String,
}

/// How PipeSwitch groups the layers of a profile's model.
fn pipeswitch_runs(profile: &Profile, tokens: u64) -> Vec<usize> {
    let alone = |read: &&ReadRate| read.way == Way::Mapped && read.loaders == 1;
    let rates = profile.reads.iter().filter(alone).map(|read| read.bandwidth_bytes_s);
    let bytes_per_us = rates.fold(1.0, f64::max) / 1e6;
    let bytes = |layer: &LayerCost| -> f64 {
        layer.blocks.iter().map(|run| run.bytes as f64 * run.count as f64).sum()
    };
    let load_us: Vec<f64> = profile.layers.iter().map(|l| bytes(l) / bytes_per_us).collect();
    let compute = |layer: &LayerCost| layer.fixed_us + layer.per_token_us * tokens as f64;
    let compute_us: Vec<f64> = profile.layers.iter().map(compute).collect();
    pipeswitch_groups(&load_us, &compute_us, HAND_OVER_US)
}

fn subject(model: &Model) -> Subject<'_> {
    let manifest = &model.dir.manifest;
    Subject { model: &manifest.model, version: &manifest.version, variant: &model.variant }
}
