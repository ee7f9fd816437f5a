//! The engine's thread: a loop over turns.

use super::admission::Admission;
use super::command::Command;
use super::config::Config;
use super::error::EngineError;
use super::inbox::Inbox;
use super::library::Library;
use super::loading::Loading;
use super::measuring::Measuring;
use super::model::Model;
use super::planning::Planner;
use super::reckoning;
use super::request::{Answer, Class, Line};
use super::room::Hold;
use super::stage::{Stage, guarded};
use super::stats::CounterSet;
use super::targets::SharedTargets;
use super::turns::Turn;
use crate::sys::affinity;
use std::sync::Arc;
use std::time::Instant;

/// Whoever does what is to be done next.
pub(super) struct Worker {
    stage: Stage,
    planner: Planner,
    measuring: Measuring,
    counters: Arc<CounterSet>,
}

impl Worker {
    /// Starts the threads of passes.
    pub fn start(
        config: Config,
        library: Arc<Library>,
        counters: Arc<CounterSet>,
        (hold, targets): (Hold, Arc<SharedTargets>),
    ) -> Result<Worker, EngineError> {
        let cores = affinity::allowed_cores();
        let base = config.base_plan(cores.len(), hold.usual_window_bytes);
        let stage = Stage::new(&base, cores, hold)?;
        let planner = Planner::new(config, library, targets);
        Ok(Worker { stage, planner, measuring: Measuring::default(), counters })
    }

    /// Takes turns until the inbox is closed. A panic in one of them ends that turn alone.
    pub fn serve(mut self) {
        let room = Arc::clone(&self.stage.hold.room);
        let last_words = LastWords(&room.inbox);
        while let Some(turn) = room.inbox.next() {
            room.pulse.set_busy(true);
            // Who waits for an answer that does not come is told when that is dropped.
            let went_on = guarded("a turn", || Ok(self.take(turn)));
            room.inbox.done(self.measuring.left(went_on.unwrap_or(false)));
            room.pulse.beat();
            room.pulse.set_busy(false);
        }
        self.measuring.refuse();
        room.inbox.refuse_all();
        room.residents.clear();
        drop(last_words);
    }

    /// Takes a turn; whether that was a trial that nobody waits for.
    fn take(&mut self, turn: Turn) -> bool {
        match turn {
            Turn::Idle => return self.measuring.use_leisure(&mut self.stage, &mut self.planner),
            Turn::Trial => self.measuring.go_on(&mut self.stage, &mut self.planner),
            Turn::Pass(line) => self.pass(&line),
            Turn::Command(command) => self.obey(command),
        }
        false
    }

    fn obey(&mut self, command: Command) {
        match command {
            Command::Load(name, answer) => {
                let others = self.stage.room().inbox.take_loads(&name);
                let loaded = guarded("loading", || self.loading().load(&name));
                Answer::give_all(answer, others, loaded);
            }
            Command::Unload(name, answer) => {
                self.stage.room().unload(&name);
                self.stage.hold.rest();
                answer.give(Ok(()));
            }
            Command::Play(name, answer) => answer.give(guarded("playing a tape", || {
                let model = self.loading().serving(&name)?;
                self.stage.play(&model)
            })),
            Command::Profile(name, answer) => match self.serving(&name) {
                Ok(model) => self.measuring.begin(&model, answer),
                Err(error) => answer.give(Err(error)),
            },
            Command::Recall(name, answer) => {
                answer.give(guarded("a plan", || self.planner.known(&self.stage, &name)));
            }
            Command::Open(opening, answer) => answer.give(guarded("a session", || {
                let library = Arc::clone(&self.planner.library);
                let model = self.loading().serving(&opening.model);
                let model = model.map_err(|error| reckoning::refuse(&library, error, &opening))?;
                reckoning::open(&mut self.stage.hold, &model, &opening)
            })),
            Command::Replan => {
                self.measuring.restart();
                self.stage.hold.follow_budget();
                self.planner.follow_budget(&self.stage);
            }
            Command::Retarget => self.planner.follow_targets(&self.stage),
            Command::Narrow => self.stage.hold.narrow(),
        }
    }

    /// One pass for the requests of a line.
    fn pass(&mut self, line: &Line) {
        let name = &line.model;
        // A model that was unloaded is not loaded again for those who used it.
        let is_over = line.class == Class::Session && {
            self.stage.room().end_strays(name);
            !self.stage.room().inbox.has(line)
        };
        if is_over {
            return;
        }
        let (asked, library) = (Instant::now(), Arc::clone(&self.planner.library));
        let serving = self.serving(name);
        let mut admission = Admission {
            stage: &mut self.stage,
            counters: &self.counters,
            library: &library,
            asked,
        };
        let model = match serving {
            Ok(model) => model,
            Err(error) => return admission.fail_unloaded(line, error),
        };
        let set_up = guarded("choosing", || self.planner.set_up(&model, line));
        if let Ok(false) = set_up {
            return;
        }
        admission.stage.room().inbox.wake(line);
        if let Err(error) = set_up {
            return admission.fail_next(line, error);
        }
        let Some(performed) = admission.pass(&model, line) else { return };
        let judged = guarded("judging a profile", || {
            self.planner.judge(&self.stage, &model, &performed);
            Ok(())
        });
        if judged.is_err() {
            log::error!("the profile of model {name} does harm");
            model.drop_profile();
        }
    }

    fn serving(&mut self, name: &str) -> Result<Arc<Model>, EngineError> {
        guarded("loading", || self.loading().serving(name))
    }

    fn loading(&mut self) -> Loading<'_> {
        let Worker { stage, planner, counters, .. } = self;
        Loading { stage, planner, counters }
    }
}

/// Tells everybody, should the engine's thread end by a panic after all.
struct LastWords<'a>(&'a Inbox);

impl Drop for LastWords<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            log::error!("the engine's thread is gone: the daemon has to be restarted");
            self.0.break_off();
        }
    }
}
