//! From a profile to the plan that a model's passes follow.

use super::choices::Choices;
use super::config::{Config, DiskKind, Policy};
use super::error::EngineError;
use super::known::{Known, PlanTerms, Precisions};
use super::library::Library;
use super::model::Model;
use super::pressure::Pressure;
use super::profiler::{self, Profiler};
use super::stage::{Stage, guarded};
use super::targets::{SharedTargets, is_set};
use crate::plan::{
    Board, Forecast, Grouping, LayerCost, Overrides, Passing, Plan, Profile, ReadRate, Subject,
    Unmeasured, Usage, Way, forecast, pipeswitch_groups,
};
use crate::store::StoreError;
use crate::store::manifest::Manifest;
use crate::stream::{Category, FlowCounters};
use std::path::PathBuf;
use std::sync::Arc;

/// What handing a group of layers from a loader to compute is reckoned to cost PipeSwitch.
const HAND_OVER_US: f64 = 50.0;

/// The version that profiles are of.
const HERMES: &str = env!("CARGO_PKG_VERSION");

/// What plans passes, and what it goes by.
pub(super) struct Planner {
    pub config: Config,
    pub library: Arc<Library>,
    pub targets: Arc<SharedTargets>,
    pub choices: Choices,
    /// The board, once it was looked at.
    board: Option<Board>,
}

/// A pass of one request alone, to be compared with its forecast.
pub(super) struct Performed {
    pub tokens: u64,
    pub latency_us: u64,
    pub counted: FlowCounters,
}

impl Planner {
    /// One that has looked at nothing yet.
    pub fn new(config: Config, library: Arc<Library>, targets: Arc<SharedTargets>) -> Planner {
        Planner { config, library, targets, choices: Choices::default(), board: None }
    }

    /// The plan where nothing was measured.
    pub fn base_plan(&self, stage: &Stage) -> Plan {
        self.config.base_plan(stage.cores.len(), stage.hold.usual_window_bytes)
    }

    /// Plans all models anew for a budget that has changed.
    pub fn follow_budget(&self, stage: &Stage) {
        if self.config.policy != Policy::Tape {
            return;
        }
        for model in stage.room().residents.all() {
            match model.profile() {
                Some(profile) => self.plan_anew(&model, &profile),
                None => {
                    let window_bytes = stage.hold.usual_window_bytes;
                    model.play_by(Plan { window_bytes, ..model.own_plan() });
                }
            }
        }
    }

    /// Plans all models anew whose targets may have changed, or what stands against them.
    pub fn follow_targets(&self, stage: &Stage) {
        if self.config.policy != Policy::Tape {
            return;
        }
        for model in stage.room().residents.all() {
            match model.profile() {
                Some(profile) => self.plan_anew(&model, &profile),
                None => self.say_unmeasured(&model),
            }
        }
    }

    fn plan_anew(&self, model: &Arc<Model>, profile: &Profile) {
        let planned = guarded("planning", || {
            self.plan_tape(model, profile);
            Ok(())
        });
        if planned.is_err() {
            model.drop_profile();
        }
    }

    /// Looks for the profile of a model that has just been loaded, and plans by it. One that does
    /// harm is removed.
    pub fn recall(&mut self, stage: &Stage, model: &Arc<Model>) {
        let (manifest, variant) = (&model.dir.manifest, &model.variant);
        let recalled = guarded("following a stored profile", || {
            match self.stored_profile(stage, manifest, variant) {
                Ok(Some(profile))
                    if profile.is_of(model.reel().blocks().iter().map(|b| b.bytes)) =>
                {
                    self.adopt(model, Arc::new(profile));
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
            self.forget_profile(manifest, variant);
        }
        if model.profile().is_none() {
            self.say_unmeasured(model);
        }
        match self.stored_refusal(stage, manifest, variant) {
            Ok(Some(why)) if model.profile().is_none() => model.give_up_measuring(why),
            Ok(_) => {}
            Err(why) => log::warn!("{}", why.replace('\n', ": ")),
        }
    }

    /// Removes the profile that is kept of a model.
    fn forget_profile(&self, manifest: &Manifest, variant: &str) {
        let Manifest { model, version, .. } = manifest;
        let subject = Subject { model, version, variant };
        let Ok(Some(folder)) = self.profile_folder(model) else { return };
        match Profile::remove(&folder, subject) {
            Ok(()) => log::warn!("model {model}: its profile does harm and was removed"),
            Err(error) => log::warn!("{}", error.to_string().replace('\n', ": ")),
        }
    }

    /// Where the profile of a model is kept; None where it is not.
    fn profile_folder(&self, model: &str) -> Result<Option<PathBuf>, StoreError> {
        match (&self.config.profile_folder, self.config.disk) {
            (Some(folder), _) => Ok(Some(folder.clone())),
            (None, DiskKind::Board) => self.library.store.model_path(model).map(Some),
            // What an imitated disk gave is of no other.
            (None, DiskKind::Throttled { .. } | DiskKind::Faulty(_)) => Ok(None),
        }
    }

    /// The profile that is kept of a model; why there is none that can be used.
    fn stored_profile(
        &mut self,
        stage: &Stage,
        manifest: &Manifest,
        variant: &str,
    ) -> Result<Option<Profile>, String> {
        let Manifest { model, version, .. } = manifest;
        let folder = self.profile_folder(model).map_err(|error| error.to_string())?;
        let Some(folder) = folder else { return Ok(None) };
        let subject = Subject { model, version, variant };
        let Some(profile) = Profile::read(&folder, subject).map_err(|error| error.to_string())?
        else {
            return Ok(None);
        };
        match profile.staleness(self.board(stage), HERMES, version) {
            None => Ok(Some(profile)),
            Some(stale) => Err(format!("model {model}: {stale}: it is measured anew")),
        }
    }

    /// Why a model could not be measured, where that is known of this board.
    fn stored_refusal(
        &mut self,
        stage: &Stage,
        manifest: &Manifest,
        variant: &str,
    ) -> Result<Option<String>, String> {
        let Manifest { model, version, .. } = manifest;
        let folder = self.profile_folder(model).map_err(|error| error.to_string())?;
        let Some(folder) = folder else { return Ok(None) };
        let subject = Subject { model, version, variant };
        let found = Unmeasured::read(&folder, subject).map_err(|error| error.to_string())?;
        let is_so = |found: &Unmeasured| found.staleness(self.board(stage), HERMES).is_none();
        Ok(found.filter(is_so).map(|found| found.why))
    }

    /// A model could not be measured: it is not tried again, not after a start either where it is
    /// the model that does not allow it.
    pub fn give_up(&mut self, stage: &Stage, model: &Model, error: &EngineError) {
        let (name, text) = (model.name(), error.to_string().replace('\n', ": "));
        log::warn!("model {name} could not be measured: {text}");
        model.give_up_measuring(text.clone());
        if !matches!(error, EngineError::Invalid(_) | EngineError::Internal(_)) {
            return;
        }
        let Ok(Some(folder)) = self.profile_folder(name) else { return };
        let Manifest { model: _, version, .. } = &*model.dir.manifest;
        let subject = Subject { model: name, version, variant: &model.variant };
        let board = self.board(stage).clone();
        if let Err(error) = Unmeasured::new(subject, HERMES, board, text).write(&folder) {
            log::warn!("{}", error.to_string().replace('\n', ": "));
        }
    }

    fn board(&mut self, stage: &Stage) -> &Board {
        if self.board.as_ref().is_none_or(|board| {
            !board.cores.iter().map(|core| core.id).eq(stage.cores.iter().copied())
        }) {
            self.board = Some(profiler::board(self.library.store.path(), self.config.disk, stage));
        }
        let board = self.board.as_mut().expect("it was just looked at");
        // Read-ahead is changed while we run.
        board.disk = profiler::disk_name(self.library.store.path(), self.config.disk);
        board
    }

    /// Plans by what was measured, and keeps it.
    pub fn conclude(
        &mut self,
        stage: &Stage,
        model: &Arc<Model>,
        profiler: Profiler,
    ) -> Arc<Profile> {
        let board = self.board(stage).clone();
        let profile = Arc::new(profiler.finish(stage, model, board));
        self.adopt(model, Arc::clone(&profile));
        let folder = self.profile_folder(model.name()).map_err(|error| error.to_string());
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
    fn adopt(&self, model: &Arc<Model>, profile: Arc<Profile>) {
        match &self.config.policy {
            Policy::Tape => self.plan_tape(model, &profile),
            Policy::PipeSwitch => {
                let grouping = Grouping::Runs(pipeswitch_runs(&profile, self.config.tokens));
                model.play_by(Plan { grouping, ..model.own_plan() });
            }
            Policy::LoadAll | Policy::PipeLoad { .. } | Policy::Fixed(_) => {}
        }
        model.set_profile(profile);
    }

    fn plan_tape(&self, model: &Model, profile: &Profile) {
        let target = self.targets.of(model.name());
        if is_set(&target) {
            match self.follow_nearly(model, profile, &target) {
                Ok(()) => return,
                Err(error) => {
                    let text = error.to_string().replace('\n', ": ");
                    log::warn!("model {} is played without its target: {text}", model.name());
                }
            }
        }
        match self.terms(model.graph_bytes(), profile).plan(profile) {
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
    pub fn terms(&self, graph_bytes: u64, profile: &Profile) -> PlanTerms {
        let ledger = &self.library.room.ledger;
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
    pub fn judge(&self, stage: &Stage, model: &Model, performed: &Performed) {
        let Performed { tokens, latency_us, counted } = *performed;
        if !self.config.profiles || stage.room().pressure.get() > Pressure::None {
            return;
        }
        let Some(expected) = expected(stage.hold.window_bytes(), model, tokens, counted) else {
            return;
        };
        let (took_us, expected_us) = (latency_us as f64, expected.latency_us);
        if !model.doubts(took_us, expected_us) {
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

    /// What is known of a model, which need not be loaded and does not come to be.
    pub fn known(&mut self, stage: &Stage, name: &str) -> Result<Known, EngineError> {
        let dir = self.library.find(name)?;
        let manifest = Arc::clone(&dir.manifest);
        let serving = self.library.store.serving(name)?;
        let loaded = stage.room().residents.get(name).filter(|model| model.serving == serving);
        let variant = match &loaded {
            Some(model) => model.variant.clone(),
            None => self.config.variant_of(&manifest)?,
        };
        let profile = match &loaded {
            Some(model) => model.profile(),
            // Why one cannot be used is told when the model is loaded.
            None => self.stored_profile(stage, &manifest, &variant).ok().flatten().map(Arc::new),
        };
        let Some(profile) = profile else {
            let given_up = match &loaded {
                Some(model) => model.given_up(),
                None => self.stored_refusal(stage, &manifest, &variant).ok().flatten(),
            };
            let model = name.to_string();
            return Err(match given_up {
                Some(why) => EngineError::NotMeasurable { model, why },
                None => EngineError::NotMeasured { model },
            });
        };
        let others = manifest.variants.iter().filter(|other| **other != variant);
        let others = others
            .filter_map(|other| self.stored_profile(stage, &manifest, other).ok().flatten())
            .collect();
        let graph_bytes = loaded.as_ref().map_or(0, |model| model.graph_bytes());
        let room = &self.library.room;
        let terms = self.terms(graph_bytes, &profile).under(room.pressure.get());
        let target = self.targets.of(name);
        let precisions = match loaded {
            Some(model) => Precisions::Loaded(model),
            None => Precisions::Stored { dir, variant, ledger: Arc::clone(&room.ledger) },
        };
        Ok(Known { profile, others, terms, target, precisions })
    }
}

/// The forecast of a pass that has read so much; none where the profile says nothing of such.
fn expected(
    window_bytes: u64,
    model: &Model,
    tokens: u64,
    counted: FlowCounters,
) -> Option<Forecast> {
    let mut plan = model.plan();
    let profile = model.profile_by(&plan)?;
    // Attention grows faster than the lines that were measured.
    let measured = profile.passes.iter().any(|pass| pass.tokens >= tokens);
    if !measured || window_bytes < plan.window_bytes {
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
