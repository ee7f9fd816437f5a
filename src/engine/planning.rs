//! From a profile to the plan that a model's passes follow.

use super::config::{DiskKind, Policy};
use super::error::EngineError;
use super::known::{Known, PlanTerms};
use super::model::{Model, pick_variant};
use super::pressure::Pressure;
use super::profiler::{self, Profiler};
use super::request::{Answer, Cancel};
use super::service::Shared;
use super::worker::Worker;
use crate::plan::{
    Board, Forecast, Grouping, LayerCost, Overrides, Passing, Plan, Profile, ReadRate, Subject,
    Unmeasured, Usage, Way, forecast, pipeswitch_groups,
};
use crate::store::StoreError;
use crate::store::manifest::Manifest;
use crate::stream::{Category, FlowCounters};
use crate::sys::lock::lock;
use std::path::PathBuf;
use std::sync::{Arc, Weak};

/// What handing a group of layers from a loader to compute is reckoned to cost PipeSwitch.
const HAND_OVER_US: f64 = 50.0;

/// The version that profiles are of.
const HERMES: &str = env!("CARGO_PKG_VERSION");

impl Worker {
    /// Looks for the profile of a model that has just been loaded, and plans by it. One that does
    /// harm is removed.
    pub(super) fn recall(&mut self, shared: &Shared, model: &Arc<Model>) {
        let (manifest, variant) = (&model.dir.manifest, &model.variant);
        let recalled = self.guarded("following a stored profile", |worker| {
            match worker.stored_profile(shared, manifest, variant) {
                Ok(Some(profile)) if profile.is_of(model.blocks.iter().map(|b| b.bytes)) => {
                    worker.adopt(shared, model, Arc::new(profile));
                }
                Ok(Some(_)) => {
                    let name = model.name();
                    log::warn!("model {name}: the profile is of another tape: it is measured anew");
                }
                Ok(None) => {}
                Err(why) => log::warn!("{}", why.replace('\n', ": ")),
            }
            Ok(())
        });
        if recalled.is_err() {
            model.drop_profile();
            self.forget_profile(shared, manifest, variant);
        }
        match self.stored_refusal(shared, manifest, variant) {
            Ok(Some(why)) if model.profile().is_none() => model.give_up_measuring(why),
            Ok(_) => {}
            Err(why) => log::warn!("{}", why.replace('\n', ": ")),
        }
    }

    /// Removes the profile that is kept of a model.
    fn forget_profile(&self, shared: &Shared, manifest: &Manifest, variant: &str) {
        let Manifest { model, version, .. } = manifest;
        let subject = Subject { model, version, variant };
        let Ok(Some(folder)) = self.profile_folder(shared, model) else { return };
        match Profile::remove(&folder, subject) {
            Ok(()) => log::warn!("model {model}: its profile does harm and was removed"),
            Err(error) => log::warn!("{}", error.to_string().replace('\n', ": ")),
        }
    }

    /// Where the profile of a model is kept; None where it is not.
    fn profile_folder(&self, shared: &Shared, model: &str) -> Result<Option<PathBuf>, StoreError> {
        match (&self.config.profile_folder, self.config.disk) {
            (Some(folder), _) => Ok(Some(folder.clone())),
            (None, DiskKind::Board) => shared.store.model_path(model).map(Some),
            // What an imitated disk gave is of no other.
            (None, DiskKind::Throttled { .. } | DiskKind::Faulty(_)) => Ok(None),
        }
    }

    /// The profile that is kept of a model; why there is none that can be used.
    fn stored_profile(
        &mut self,
        shared: &Shared,
        manifest: &Manifest,
        variant: &str,
    ) -> Result<Option<Profile>, String> {
        let Manifest { model, version, .. } = manifest;
        let folder = self.profile_folder(shared, model).map_err(|error| error.to_string())?;
        let Some(folder) = folder else { return Ok(None) };
        let subject = Subject { model, version, variant };
        let Some(profile) = Profile::read(&folder, subject).map_err(|error| error.to_string())?
        else {
            return Ok(None);
        };
        match profile.staleness(self.board(shared), HERMES, version) {
            None => Ok(Some(profile)),
            Some(stale) => Err(format!("model {model}: {stale}: it is measured anew")),
        }
    }

    /// Why a model could not be measured, where that is known of this board.
    fn stored_refusal(
        &mut self,
        shared: &Shared,
        manifest: &Manifest,
        variant: &str,
    ) -> Result<Option<String>, String> {
        let Manifest { model, version, .. } = manifest;
        let folder = self.profile_folder(shared, model).map_err(|error| error.to_string())?;
        let Some(folder) = folder else { return Ok(None) };
        let subject = Subject { model, version, variant };
        let found = Unmeasured::read(&folder, subject).map_err(|error| error.to_string())?;
        let is_so = |found: &Unmeasured| found.staleness(self.board(shared), HERMES).is_none();
        Ok(found.filter(is_so).map(|found| found.why))
    }

    /// A model could not be measured: it is not tried again, not after a start either where it is
    /// the model that does not allow it.
    fn give_up(&mut self, shared: &Shared, model: &Model, error: &EngineError) {
        let (name, text) = (model.name(), error.to_string().replace('\n', ": "));
        log::warn!("model {name} could not be measured: {text}");
        model.give_up_measuring(text.clone());
        if !matches!(error, EngineError::Invalid(_) | EngineError::Internal(_)) {
            return;
        }
        let Ok(Some(folder)) = self.profile_folder(shared, name) else { return };
        let Manifest { model: _, version, .. } = &*model.dir.manifest;
        let subject = Subject { model: name, version, variant: &model.variant };
        let board = self.board(shared).clone();
        if let Err(error) = Unmeasured::new(subject, HERMES, board, text).write(&folder) {
            log::warn!("{}", error.to_string().replace('\n', ": "));
        }
    }

    fn board(&mut self, shared: &Shared) -> &Board {
        if self.board.as_ref().is_none_or(|board| {
            !board.cores.iter().map(|core| core.id).eq(self.cores.iter().copied())
        }) {
            self.board = Some(profiler::board(shared.store.path(), self.config.disk, self));
        }
        let board = self.board.as_mut().expect("it was just looked at");
        // Read-ahead is changed while we run.
        board.disk = profiler::disk_name(shared.store.path(), self.config.disk);
        board
    }

    /// Begins to measure a model for somebody who waits for that.
    pub(super) fn begin_measuring(
        &mut self,
        shared: &Shared,
        name: &str,
        answer: Answer<Arc<Profile>>,
    ) {
        let model = self.guarded("loading", |worker| worker.serving(shared, name));
        match model {
            Ok(model) if model.blocks.is_empty() => {
                let what = "has no weights to stream: there is nothing to measure";
                answer.give(Err(EngineError::Invalid(format!("model \"{name}\" {what}"))));
            }
            Ok(model) => self.measuring = Some(Measuring::of(&model, None, Some(answer))),
            Err(error) => answer.give(Err(error)),
        }
    }

    /// Makes the next trial that somebody waits for. A model that was loaded anew meanwhile is
    /// measured anew, too.
    pub(super) fn go_on_measuring(&mut self, shared: &Shared) {
        let Some(mut measuring) = self.measuring.take() else { return };
        let under_way = measuring.resume(shared);
        let Measuring { name, asked: Some(answer), .. } = measuring else { return };
        let Some((model, profiler)) = under_way else {
            return answer.give(Err(EngineError::NotMeasured { model: name }));
        };
        model.pins.release();
        match self.trial(shared, &model, profiler, &shared.stopping) {
            Ok(Trying::More(profiler)) => {
                self.measuring = Some(Measuring::of(&model, Some(profiler), Some(answer)));
            }
            Ok(Trying::Done(profile)) => answer.give(Ok(profile)),
            Err(error) => answer.give(Err(error)),
        }
    }

    /// Does what can be done while nothing waits: one trial of a model that was not measured yet,
    /// else nothing; whether it was one.
    pub(super) fn use_leisure(&mut self, shared: &Shared) -> bool {
        // Before the level is looked at: a sign that comes later ends it.
        let cancel = shared.inbox.leisure();
        if shared.pressure.get() > Pressure::None {
            self.rest(shared);
            return false;
        }
        let under_way = self.measuring.take().and_then(|mut measuring| measuring.resume(shared));
        if under_way.is_none() {
            self.rest(shared);
        }
        let next = || self.next_to_measure(shared).map(|model| (model, None));
        let Some((model, profiler)) = under_way.or_else(next) else { return false };
        if let Ok(Trying::More(profiler)) = self.trial(shared, &model, profiler, &cancel) {
            self.measuring = Some(Measuring::of(&model, Some(profiler), None));
        }
        true
    }

    /// Makes the next trial of a model, the first where nothing was tried, and gives it up where
    /// that fails.
    fn trial(
        &mut self,
        shared: &Shared,
        model: &Arc<Model>,
        profiler: Option<Box<Profiler>>,
        cancel: &Cancel,
    ) -> Result<Trying, EngineError> {
        let tried = self.guarded("measuring", |worker| {
            let cores = worker.cores.len();
            let base = || worker.config.base_plan(cores, worker.window_bytes);
            let begun = profiler.unwrap_or_else(|| Box::new(Profiler::new(model, base(), cores)));
            worker.advance(shared, model, begun, cancel)
        });
        tried.inspect_err(|error| {
            if !matches!(error, EngineError::Cancelled) {
                self.give_up(shared, model, error);
            }
        })
    }

    /// Makes the next trial of a model, and concludes after the last.
    fn advance(
        &mut self,
        shared: &Shared,
        model: &Arc<Model>,
        mut profiler: Box<Profiler>,
        cancel: &Cancel,
    ) -> Result<Trying, EngineError> {
        match profiler.advance(self, shared, model, cancel)? {
            true => Ok(Trying::Done(self.conclude(shared, model, *profiler))),
            false => Ok(Trying::More(profiler)),
        }
    }

    fn next_to_measure(&self, shared: &Shared) -> Option<Arc<Model>> {
        if !self.config.profiles || self.config.policy != Policy::Tape {
            return None;
        }
        let models = lock(&shared.models);
        let unknown = |model: &&Arc<Model>| {
            model.is_to_be_measured(&self.cores) && model.check_service().is_ok()
        };
        models.values().find(unknown).cloned()
    }

    fn conclude(
        &mut self,
        shared: &Shared,
        model: &Arc<Model>,
        profiler: Profiler,
    ) -> Arc<Profile> {
        let board = self.board(shared).clone();
        let profile = Arc::new(profiler.finish(shared, model, board));
        self.adopt(shared, model, Arc::clone(&profile));
        let folder = self.profile_folder(shared, model.name()).map_err(|error| error.to_string());
        let written = folder.and_then(|folder| {
            let write = |folder: PathBuf| {
                Unmeasured::remove(&folder, profile.subject())?;
                profile.write(&folder)
            };
            folder.map(write).transpose().map_err(|error| error.to_string())
        });
        match written {
            Ok(Some(path)) => log::info!("model {} is measured: {}", model.name(), path.display()),
            Ok(None) => log::info!("model {} is measured", model.name()),
            Err(error) => log::warn!("{}", error.replace('\n', ": ")),
        }
        profile
    }

    /// Plans a model's passes by its profile.
    fn adopt(&mut self, shared: &Shared, model: &Arc<Model>, profile: Arc<Profile>) {
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

    pub(super) fn plan_tape(&mut self, shared: &Shared, model: &Model, profile: &Profile) {
        match self.terms(shared, model.graph_bytes(), profile).plan(profile) {
            Ok((_, planned)) => {
                log::info!("model {}: {planned}", model.name());
                model.play_by(planned.plan);
            }
            Err(error) => {
                let text = error.to_string().replace('\n', ": ");
                log::warn!("model {} is played as before: {text}", model.name());
            }
        }
    }

    /// What a model of this profile is planned for, whose own graph takes so many bytes.
    fn terms(&self, shared: &Shared, graph_bytes: u64, profile: &Profile) -> PlanTerms {
        let ledger = &shared.ledger;
        let others = [Category::Graph, Category::Tokenizer].map(|of| ledger.held_bytes(of));
        PlanTerms {
            budget_bytes: ledger.budget_bytes(),
            others_bytes: others.iter().sum::<u64>().saturating_sub(graph_bytes),
            tokens: self.config.tokens,
            usage: Usage::Cyclic,
            fixed: Overrides {
                // Where there are no direct reads, files are mapped whatever the config says.
                source: self.config.source.filter(|way| profile.has(*way)),
                ..self.config.overrides()
            },
        }
    }

    /// Compares a pass with its forecast. A profile that forecasts another board is dropped: the
    /// model is measured anew when there is time.
    pub(super) fn judge(
        &self,
        shared: &Shared,
        model: &Model,
        tokens: u64,
        latency_us: u64,
        counted: FlowCounters,
    ) {
        if !self.config.profiles || shared.pressure.get() > Pressure::None {
            return;
        }
        let Some(expected) = self.expected(model, tokens, counted) else { return };
        let (took_us, expected_us) = (latency_us as f64, expected.latency_us);
        if !model.doubt().note(took_us, expected_us) {
            return;
        }
        // Bytes in a microsecond are MB in a second.
        let read = match counted.bytes_read {
            0 => "nothing was read".to_string(),
            bytes => format!(
                "the disk gave {:.0} MB/s of {:.0}",
                bytes as f64 / took_us,
                expected.bytes_read as f64 / expected.io_us.max(1.0)
            ),
        };
        log::warn!(
            "model {}: the pass took {:.1} ms where {:.1} were forecast: {read}: it is measured \
             anew when there is time",
            model.name(),
            took_us / 1e3,
            expected_us / 1e3,
        );
        model.drop_profile();
    }

    /// The forecast of a pass that has read so much; none where the profile says nothing of such.
    fn expected(&self, model: &Model, tokens: u64, counted: FlowCounters) -> Option<Forecast> {
        let profile = model.profile()?;
        let mut plan = model.playing().plan.clone();
        // Attention grows faster than the lines that were measured.
        let measured = profile.passes.iter().any(|pass| pass.tokens >= tokens);
        if !measured || self.granted_window_bytes() < plan.window_bytes {
            return None;
        }
        // What falls back to mapped files was measured so.
        if !profile.has(plan.source) {
            plan.source = Way::Mapped;
        }
        let later = forecast(&profile, &plan, tokens, Passing::Later).ok()?;
        match counted.bytes_read <= later.bytes_read {
            true => Some(later),
            false => forecast(&profile, &plan, tokens, Passing::First).ok(),
        }
    }

    /// What is known of a model, which need not be loaded and does not come to be.
    pub(super) fn known(&mut self, shared: &Shared, name: &str) -> Result<Known, EngineError> {
        let manifest = shared.find(name)?.manifest;
        let serving = shared.store.serving(name)?;
        let loaded = shared.loaded(name).filter(|model| model.serving == serving);
        let variant = match &loaded {
            Some(model) => model.variant.clone(),
            None => pick_variant(&manifest, self.config.variant.as_deref())?,
        };
        let profile = match &loaded {
            Some(model) => model.profile(),
            // Why one cannot be used is told when the model is loaded.
            None => self.stored_profile(shared, &manifest, &variant).ok().flatten().map(Arc::new),
        };
        let Some(profile) = profile else {
            let given_up = match &loaded {
                Some(model) => model.given_up(),
                None => self.stored_refusal(shared, &manifest, &variant).ok().flatten(),
            };
            let model = name.to_string();
            return Err(match given_up {
                Some(why) => EngineError::NotMeasurable { model, why },
                None => EngineError::NotMeasured { model },
            });
        };
        let others = manifest.variants.iter().filter(|other| **other != variant);
        let others = others
            .filter_map(|other| self.stored_profile(shared, &manifest, other).ok().flatten())
            .collect();
        let graph_bytes = loaded.map_or(0, |model| model.graph_bytes());
        let terms = self.terms(shared, graph_bytes, &profile);
        Ok(Known { profile, others, terms })
    }
}

/// How far measuring has come.
enum Trying {
    More(Box<Profiler>),
    Done(Arc<Profile>),
}

/// A model that is measured, trial by trial.
pub(super) struct Measuring {
    name: String,
    /// It may be unloaded between two trials, or loaded anew.
    model: Weak<Model>,
    /// None where nothing was tried yet.
    pub profiler: Option<Box<Profiler>>,
    /// Who waits for it.
    pub asked: Option<Answer<Arc<Profile>>>,
}

impl Measuring {
    fn of(
        model: &Arc<Model>,
        profiler: Option<Box<Profiler>>,
        asked: Option<Answer<Arc<Profile>>>,
    ) -> Measuring {
        let name = model.name().to_string();
        Measuring { name, model: Arc::downgrade(model), profiler, asked }
    }

    /// The model and what was tried with it; none where it is no longer loaded.
    fn resume(&mut self, shared: &Shared) -> Option<(Arc<Model>, Option<Box<Profiler>>)> {
        let model = shared.loaded(&self.name)?;
        let is_same = self.model.ptr_eq(&Arc::downgrade(&model));
        Some((model, self.profiler.take().filter(|_| is_same)))
    }
}

/// How PipeSwitch groups the layers of a profile's model.
fn pipeswitch_runs(profile: &Profile, tokens: u64) -> Vec<usize> {
    let alone = |r: &&ReadRate| r.way == Way::Mapped && r.loaders == 1 && !r.is_scattered;
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
