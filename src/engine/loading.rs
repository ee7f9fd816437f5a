//! Loads models: the version that the store serves, in the room that others leave or make.

use super::config::Config;
use super::error::EngineError;
use super::library::Library;
use super::model::{Model, Terms};
use super::planning::Planner;
use super::request::Cancel;
use super::room::{PATIENCE, Room, Wait};
use super::stage::Stage;
use super::stats::{CounterSet, Counters};
use crate::store::ModelDir;
use crate::store::manifest::HEAP_BYTES_PER_BYTE;
use crate::stream::Category;
use crate::sys::{code, heap};
use std::sync::Arc;
use std::time::Instant;

/// What loads models.
pub(super) struct Loading<'a> {
    pub stage: &'a mut Stage,
    pub planner: &'a mut Planner,
    pub counters: &'a CounterSet,
}

impl Loading<'_> {
    fn room(&self) -> &Room {
        self.stage.room()
    }

    fn library(&self) -> &Library {
        &self.planner.library
    }

    /// The model as it is to be served now: another version is loaded where the store says so.
    pub fn serving(&mut self, name: &str) -> Result<Arc<Model>, EngineError> {
        if let Some(model) = self.room().residents.get(name) {
            if self.library().store.serving(name).ok().as_ref() == Some(&model.serving) {
                model.note_use(self.room().keepers.now());
                return model.check_service().map(|()| model);
            }
            log::info!("model {name} has another version now");
        }
        self.load(name)
    }

    /// Loads a model, anew where it is loaded already.
    pub fn load(&mut self, name: &str) -> Result<Arc<Model>, EngineError> {
        let began = Instant::now();
        // Loading may use the window's bytes.
        self.stage.hold.rest();
        let mut wait = Wait::new(PATIENCE);
        let loaded = loop {
            let room = self.room();
            let returns = room.ledger.returns();
            let (found, took) = heap::metered(|| self.find(name));
            match found.and_then(|dir| self.try_load(dir, took.held_bytes)) {
                // Its own pins and graph are the last to go: it answers until then.
                Err(EngineError::OverBudget(refused))
                    if refused.can_fit()
                        && (room.make_room(name)
                            || room.unload(name)
                            || wait.goes_on(room, &refused, returns, &Cancel::new())) => {}
                loaded => break Arc::new(loaded?),
            }
        };
        loaded.note_use(self.room().keepers.now());
        self.planner.recall(self.stage, &loaded);
        self.room().residents.insert(Arc::clone(&loaded));
        self.room().texts.forget(name);
        let counters = self.counters.of(name);
        Counters::add(&counters.loads, 1);
        Counters::add(&counters.load_us, began.elapsed().as_micros() as u64);
        Ok(loaded)
    }

    /// The served version of a model, whose manifest is granted before it is read: the window's
    /// bytes may be used for it.
    fn find(&self, name: &str) -> Result<ModelDir, EngineError> {
        let manifest_bytes = self.library().store.manifest_bytes(name).unwrap_or(0);
        let parsing_bytes = manifest_bytes.saturating_mul(HEAP_BYTES_PER_BYTE);
        let more_bytes = parsing_bytes.saturating_sub(self.stage.hold.window_bytes());
        let _held = self.room().ledger.try_grant(Category::Graph, more_bytes)?;
        self.library().find(name).inspect_err(|_| {
            self.room().unload(name);
        })
    }

    fn try_load(&self, dir: ModelDir, manifest_bytes: u64) -> Result<Model, EngineError> {
        let Config { disk, policy, .. } = &self.planner.config;
        let variant = self.planner.config.variant_of(&dir.manifest)?;
        let (library, hold) = (self.library(), &self.stage.hold);
        let serving = library.store.serving(&dir.manifest.model)?;
        let rehearsed_bytes =
            library.rehearsals.rehearsed(&dir, self.room(), hold.window_bytes())?;
        let terms = Terms {
            variant: &variant,
            disk: *disk,
            policy,
            base: self.planner.base_plan(self.stage),
            slots: &hold.slots,
            idle_bytes: hold.window_bytes(),
            rehearsed_bytes,
            manifest_bytes,
            ledger: &self.room().ledger,
        };
        let loaded = Model::load(dir, serving, &terms)?;
        code::release();
        let reel = loaded.reel();
        let (window_bytes, block_bytes) = (reel.plan.window_bytes, reel.largest_unit_bytes);
        if block_bytes > window_bytes {
            return Err(EngineError::WindowTooSmall {
                model: loaded.name().to_string(),
                window_bytes,
                block_bytes,
            });
        }
        if let Some(wanted) = &self.planner.config.variant
            && *wanted != loaded.variant
        {
            log::warn!(
                "model {} has no variant {wanted}: it is served in {}, its best; shard it with \
                 --variants {wanted} to have it",
                loaded.name(),
                loaded.variant
            );
        }
        log::info!(
            "model {} version {} ({}) is ready: {} MiB of tape ({}), {} KiB resident",
            loaded.name(),
            loaded.dir.manifest.version,
            loaded.variant,
            loaded.tape_bytes() >> 20,
            reel.source.name(),
            loaded.graph_bytes() >> 10
        );
        Ok(loaded)
    }
}
