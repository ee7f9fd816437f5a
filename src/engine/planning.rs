//! From a profile to the plan that a model's passes follow.

use super::error::EngineError;
use super::model::Model;
use super::pass::Cancel;
use super::policy::Policy;
use super::pressure::Pressure;
use super::profiler::{self, Profiler};
use super::service::{DiskKind, Shared, lock};
use super::worker::Worker;
use crate::plan::{Board, Profile, Subject};
use std::sync::Arc;
use std::time::Duration;

/// The version that profiles are of.
const HERMES: &str = env!("CARGO_PKG_VERSION");

impl Worker {
    /// Looks for the profile of a model that has just been loaded, and plans by it.
    pub(super) fn recall(&mut self, shared: &Shared, model: &Arc<Model>) {
        if self.config.policy != Policy::Tape {
            return;
        }
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
    fn adopt(&mut self, shared: &Shared, model: &Arc<Model>, profile: Arc<Profile>) {
        model.set_profile(profile);
    }
}

fn subject(model: &Model) -> Subject<'_> {
    let manifest = &model.dir.manifest;
    Subject { model: &manifest.model, version: &manifest.version, variant: &model.variant }
}
