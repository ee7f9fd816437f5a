//! The engine as others see it: requests go in, replies come back on the engine's thread.

use super::catalogue::Described;
use super::command::Command;
use super::config::{Config, EXPECTED_TOKENS};
use super::crew::thread_bytes;
use super::error::EngineError;
use super::generation::{Generated, Prompt};
use super::keepers::Keeper;
use super::known::{Answered, Inquiry, Known};
use super::library::Library;
use super::model::Model;
use super::needs::{SMALLEST_WINDOW_BYTES, needed_by_any, needed_bytes, needed_with_texts};
use super::pressure::Pressure;
use super::rehearsal::Rehearsals;
use super::request::{Answer, Class, PassStats, Reply, Request, Waiting};
use super::room::{Hold, Room};
use super::session;
use super::stats::{CounterSet, EngineStats, Loaded, ModelStats, Progress};
use super::targets::{SharedTargets, Targets};
use super::turns::QUEUE_LIMIT;
use super::worker::Worker;
use crate::plan::{Profile, Target};
use crate::store::manifest::Manifest;
use crate::store::{GENERATION_HEAP_BYTES_PER_BYTE, ModelDir, Store};
use crate::stream::{Category, Ledger};
use crate::sys::lock::lock;
use crate::sys::threads::{self, Shortage};
use crate::sys::{affinity, code, memory};
use crossbeam_channel::bounded;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, Weak};
use std::thread::JoinHandle;

/// What a server is granted to begin with, for as long as it serves: connections for whoever comes
/// first.
pub const SERVER_BYTES: u64 = 512 << 10;

/// What the process will come to hold besides what it holds at the start, its code released, and
/// what is counted: code, 4 to 5 MiB in a pass; what the C library's heap loses between what is
/// used, up to 4; stacks, and pages on their way out. Measured with BERT-Large, 9 MiB.
const PROCESS_GROWTH_BYTES: u64 = 10 << 20;

/// A handle to the engine. Clones share it; it stops when the last one is gone.
#[derive(Clone)]
pub struct Engine(Arc<Handle>);

/// What the handles share: the engine stops when the last of them is gone.
struct Handle {
    room: Arc<Room>,
    library: Arc<Library>,
    counters: Arc<CounterSet>,
    config: Config,
    targets: Arc<SharedTargets>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

/// What a daemon that has just started holds for itself, with an engine of this configuration.
pub fn daemon_bytes(config: &Config) -> u64 {
    process_bytes(config) + SERVER_BYTES
}

/// What the process is granted: what it holds, its code released, and what it will come to hold. In
/// whole MiB: the next start, a few pages larger or smaller, needs the same.
fn process_bytes(config: &Config) -> u64 {
    code::map_in_pieces();
    code::release();
    let (threads, loaders) = config.most_threads(affinity::allowed_cores().len());
    let growth_bytes = PROCESS_GROWTH_BYTES + thread_bytes(threads, loaders);
    (memory::process().resident_bytes + growth_bytes).next_multiple_of(1 << 20)
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Engine {
    /// Starts the threads. No model is loaded yet.
    pub fn start(config: Config) -> Result<Engine, EngineError> {
        let store = Store::open(&config.store)?;
        rehearse_threads(&config)?;
        let room = Arc::new(Room::new(config.budget_bytes));
        let process_bytes = process_bytes(&config);
        let hold = Hold::new(&room, process_bytes, config.window_bytes).map_err(|refused| {
            let window_bytes = config.window_bytes.unwrap_or(SMALLEST_WINDOW_BYTES);
            let needed_bytes = needed_by_any(&store, config.tokens).max(window_bytes);
            refused.at_least((process_bytes + SERVER_BYTES).saturating_add(needed_bytes))
        })?;
        let rehearsals = Rehearsals::new(config.rehearses);
        let library = Arc::new(Library { store, rehearsals, room: Arc::clone(&room) });
        let counters = Arc::<CounterSet>::default();
        let kept = config.clone();
        let targets = Arc::new(SharedTargets::new(config.targets.clone()));
        let own = (hold, Arc::clone(&targets));
        let worker = Worker::start(config, Arc::clone(&library), Arc::clone(&counters), own)?;
        let thread = std::thread::Builder::new()
            .name("engine".to_string())
            .spawn(move || worker.serve())
            .map_err(EngineError::Thread)?;
        let thread = Mutex::new(Some(thread));
        Ok(Engine(Arc::new(Handle { room, library, counters, config: kept, targets, thread })))
    }

    /// Names of the store's models.
    pub fn models(&self) -> Result<Vec<String>, EngineError> {
        Ok(self.0.library.store.models()?)
    }

    /// The manifest of a model's served version, for which the store is asked.
    pub fn manifest(&self, model: &str) -> Result<Described, EngineError> {
        let Handle { room, library, .. } = &*self.0;
        match room.residents.get(model) {
            Some(loaded) if library.store.serving(model).ok().as_ref() == Some(&loaded.serving) => {
                Ok(Described { manifest: Arc::clone(&loaded.dir.manifest), held: None })
            }
            _ => match library.manifest(model) {
                Err(EngineError::OverBudget(refused)) => {
                    let least_bytes = match refused.can_fit() {
                        true => self.least_budget_bytes(model, 0),
                        false => self.least_budget_for_texts_bytes(model, 0),
                    };
                    Err(refused.at_least(least_bytes).into())
                }
                found => found,
            },
        }
    }

    /// The manifest of a model that is loaded. Nothing is read: the store may serve another version
    /// by now, which the next pass will find.
    pub fn loaded_manifest(&self, model: &str) -> Option<Described> {
        let loaded = self.0.room.residents.get(model)?;
        Some(Described { manifest: Arc::clone(&loaded.dir.manifest), held: None })
    }

    /// Most tokens of a text of the model's served version, as far as its makers say.
    ///
    /// # Errors
    ///
    /// As [`Engine::manifest`]; there is no room for the file that says so.
    pub fn longest_text(&self, model: &str) -> Result<Option<u64>, EngineError> {
        let described = self.manifest(model)?;
        let file_bytes = described.manifest.generation.as_ref().map_or(0, |entry| entry.bytes);
        let reading_bytes = file_bytes.saturating_mul(GENERATION_HEAP_BYTES_PER_BYTE);
        let _reading = self.0.room.grant(Category::Graph, reading_bytes)?;
        Ok(self.dir_of(&described)?.longest_text()?)
    }

    /// Whether the model is loaded and answers.
    pub fn is_ready(&self, model: &str) -> bool {
        self.0.room.residents.get(model).is_some_and(|model| model.check_service().is_ok())
    }

    /// Whether a request to the model that is served so would be taken, as far as is known without
    /// loading it; says whether it is loaded.
    ///
    /// # Errors
    ///
    /// What it would be refused for: a model that is out of service, or a graph that was tried and is
    /// not to be imported.
    pub fn check_takes(&self, described: &Described) -> Result<bool, EngineError> {
        let manifest = &described.manifest;
        let loaded = self.0.room.residents.get(&manifest.model);
        match loaded.filter(|loaded| loaded.dir.manifest.version == manifest.version) {
            Some(loaded) => loaded.check_service().map(|()| true),
            None => {
                let dir = self.dir_of(described)?;
                self.0.library.rehearsals.check_refusal(&dir).map(|()| false)
            }
        }
    }

    /// The variant in which a model is served, or would be.
    ///
    /// # Errors
    ///
    /// [`EngineError::UnknownVariant`], unless its best is served instead.
    pub fn variant_of(&self, manifest: &Manifest) -> Result<String, EngineError> {
        self.0.config.variant_of(manifest)
    }

    /// The variant in which models are to be served, where one is named.
    pub fn wanted_variant(&self) -> Option<&str> {
        self.0.config.variant.as_deref()
    }

    /// The folder of a version that is described.
    fn dir_of(&self, described: &Described) -> Result<ModelDir, EngineError> {
        let manifest = Arc::clone(&described.manifest);
        let path = self.0.library.store.model_path(&manifest.model)?.join(&manifest.version);
        Ok(ModelDir { path, manifest })
    }

    /// Loads a model, anew where it is loaded already, and waits for it.
    pub fn load(&self, model: &str) -> Result<Arc<Model>, EngineError> {
        self.ask(|answer| Command::Load(model.to_string(), answer))
    }

    /// Unloads a model; every byte it held is given back.
    pub fn unload(&self, model: &str) -> Result<(), EngineError> {
        self.ask(|answer| Command::Unload(model.to_string(), answer))
    }

    /// What may be held when: for whoever needs memory beside what the engine computes with.
    pub fn room(&self) -> &Room {
        &self.0.room
    }

    /// The store that models are loaded from.
    pub fn store(&self) -> &Store {
        &self.0.library.store
    }

    /// Queues a request; `reply` is called from the engine's thread, at once where the request is
    /// refused. A model that is not loaded is loaded first. Requests that wait for the same model
    /// share a pass.
    pub fn submit(
        &self,
        request: Request,
        reply: impl FnOnce(Result<Reply, EngineError>) + Send + 'static,
    ) {
        self.submit_as(Class::Interactive, request, reply);
    }

    /// As [`Engine::submit`], with those of its class.
    pub fn submit_as(
        &self,
        class: Class,
        request: Request,
        reply: impl FnOnce(Result<Reply, EngineError>) + Send + 'static,
    ) {
        let waiting = Waiting::new(request, class, Answer::new(reply));
        for (waiting, error) in self.0.room.inbox.submit(waiting) {
            if let Some(counters) = self.0.counters.known(&waiting.request.model) {
                let counter = match error {
                    EngineError::Busy { .. } => &counters.refused,
                    _ => &counters.cancelled,
                };
                counter.fetch_add(1, Ordering::Relaxed);
            }
            waiting.refuse(error);
        }
    }

    /// As [`Engine::submit`], waiting for the reply.
    pub fn infer(&self, request: Request) -> Result<Reply, EngineError> {
        let (sender, receiver) = bounded(1);
        self.submit(request, move |result| {
            // The asker waits until it is answered.
            let _ = sender.send(result);
        });
        receiver.recv().unwrap_or(Err(EngineError::Cancelled))
    }

    /// Has a text generated. Its keys and values are granted first, for the prompt and all that may
    /// be generated: it waits for that as long as somebody waits for it. Texts of one model are
    /// generated side by side. `done` is called from the session's thread, when nothing is held any
    /// more: with what was generated, whatever ended it, or with why nothing could be.
    pub fn generate(
        &self,
        prompt: Prompt,
        done: impl FnOnce(Result<Generated, EngineError>) + Send + 'static,
    ) {
        session::begin(&self.0.room, &self.0.counters, prompt, Answer::new(done));
    }

    /// Tries the import of a version that is about to be installed, and notes in its folder how
    /// that went. Where the budget has no room for that once all has given way that can, it is left
    /// to the first load.
    ///
    /// # Errors
    /// [`EngineError::Unfit`]; that there can be no copy.
    pub fn rehearse(&self, dir: &ModelDir, go_on: impl FnMut() -> bool) -> Result<(), EngineError> {
        self.0.library.rehearsals.rehearse(dir, &self.0.room, go_on)
    }

    /// Forgets that the served version of a model could not be loaded: it is tried anew.
    ///
    /// # Errors
    /// The system's.
    pub fn forget_refusal(&self, model: &str) -> Result<(), EngineError> {
        let dir = self.dir_of(&self.manifest(model)?)?;
        self.0.library.rehearsals.forget_refusal(&dir)
    }

    /// Plays a model's tape without computing, as fast as the loaders go: the time a pass needs
    /// for its weights alone.
    pub fn play(&self, model: &str) -> Result<PassStats, EngineError> {
        self.ask(|answer| Command::Play(model.to_string(), answer))
    }

    /// Measures a model on this board, which takes some tens of passes, and plans its passes anew.
    /// The profile is kept beside the model where the store can be written.
    pub fn profile(&self, model: &str) -> Result<Arc<Profile>, EngineError> {
        self.ask(|answer| Command::Profile(model.to_string(), answer))
    }

    /// As [`Engine::load`], without waiting: `reply` is called from the engine's thread, at once
    /// where the engine does not take it.
    pub fn request_load(
        &self,
        model: &str,
        reply: impl FnOnce(Result<Arc<Model>, EngineError>) + Send + 'static,
    ) {
        self.0.room.inbox.command(Command::Load(model.to_string(), Answer::new(reply)));
    }

    /// As [`Engine::unload`], without waiting; as [`Engine::request_load`].
    pub fn request_unload(
        &self,
        model: &str,
        reply: impl FnOnce(Result<(), EngineError>) + Send + 'static,
    ) {
        self.0.room.inbox.command(Command::Unload(model.to_string(), Answer::new(reply)));
    }

    /// As [`Engine::profile`], without waiting: `reply` is called from the engine's thread, at once
    /// where the engine does not take it.
    pub fn request_profile(
        &self,
        model: &str,
        reply: impl FnOnce(Result<Arc<Profile>, EngineError>) + Send + 'static,
    ) {
        self.0.room.inbox.command(Command::Profile(model.to_string(), Answer::new(reply)));
    }

    /// What was measured of a model, by which it is planned; as [`Engine::request_profile`]. The
    /// model is not loaded for it.
    pub fn request_known(
        &self,
        model: &str,
        reply: impl FnOnce(Result<Known, EngineError>) + Send + 'static,
    ) {
        self.0.room.inbox.command(Command::Recall(model.to_string(), Answer::new(reply)));
    }

    /// How passes of a model would be played, and what would help. The model has to have been
    /// measured.
    pub fn plan(&self, model: &str, inquiry: Inquiry) -> Result<Answered, EngineError> {
        self.ask(|answer| Command::Recall(model.to_string(), answer))?.plan(inquiry)
    }

    /// The ledger of everything held.
    pub fn ledger(&self) -> &Arc<Ledger> {
        &self.0.room.ledger
    }

    /// The smallest budget in which a model serves a request whose inputs take so many bytes.
    pub fn least_budget_bytes(&self, model: &str, inputs_bytes: u64) -> u64 {
        let needed = |demand: &_| needed_bytes(demand, inputs_bytes, EXPECTED_TOKENS);
        self.0.library.least_budget_bytes(model, needed)
    }

    /// The smallest budget in which a model serves the usual request, and a text where it has a
    /// tokenizer, to somebody who holds so many bytes.
    pub fn least_budget_for_texts_bytes(&self, model: &str, own_bytes: u64) -> u64 {
        let needed =
            |demand: &_| needed_with_texts(demand, EXPECTED_TOKENS).saturating_add(own_bytes);
        self.0.library.least_budget_bytes(model, needed)
    }

    /// The smallest budget in which any model of the store serves the usual request, and a text.
    pub fn least_budget_of_any_bytes(&self) -> u64 {
        let process_bytes = self.0.library.room.ledger.held_bytes(Category::Process);
        process_bytes.saturating_add(needed_by_any(&self.0.library.store, EXPECTED_TOKENS))
    }

    /// Has somebody else's things give way as models do, for as long as they are there.
    pub fn add_keeper(&self, keeper: Weak<dyn Keeper>) {
        self.0.room.keepers.add(keeper);
    }

    /// A number larger than all that were given before: what is used notes it.
    pub fn now(&self) -> u64 {
        self.0.room.keepers.now()
    }

    /// Bytes of all models' tapes that stay in memory.
    pub fn pinned_bytes(&self) -> u64 {
        self.0.room.ledger.held_bytes(Category::Pins)
    }

    /// Changes the budget. Where it is smaller, pins go at once and the rest when what runs has
    /// ended; nothing more is granted above it. Models are planned anew before the next pass.
    ///
    /// # Errors
    ///
    /// [`EngineError::BudgetTooSmall`]; the old one stays.
    pub fn set_budget(&self, budget_bytes: u64) -> Result<(), EngineError> {
        self.0.room.set_budget(budget_bytes)
    }

    /// Changes within which time models are to answer, and how accurately. They are planned anew
    /// before the next pass.
    pub fn set_targets(&self, targets: Targets) {
        if self.0.targets.set(targets) {
            self.0.room.inbox.command(Command::Retarget);
        }
    }

    /// Within which time a model is to answer, and how accurately.
    pub fn target_of(&self, model: &str) -> Target {
        self.0.targets.of(model)
    }

    /// The figures now.
    pub fn stats(&self) -> EngineStats {
        let residents = &self.0.room.residents;
        let mut counted = self.0.counters.read();
        for name in residents.each(|model| model.name().to_string()) {
            counted.entry(name).or_default();
        }
        let models = counted.into_iter().map(|(name, counted)| {
            let loaded = residents.get(&name).map(|model| Loaded {
                version: model.dir.manifest.version.clone(),
                variant: model.variant.clone(),
                in_service: model.check_service().is_ok(),
                tape_bytes: model.tape_bytes(),
                graph_bytes: model.graph_bytes(),
                pinned_bytes: model.pinned_bytes(),
            });
            ModelStats { name, loaded, counted }
        });
        EngineStats {
            models: models.collect(),
            waiting: self.0.room.inbox.len(),
            waiting_limit: QUEUE_LIMIT,
            sessions: self.0.room.sessions.count(),
            session_bytes: self.0.room.ledger.held_bytes(Category::Session),
            kept_text_bytes: self.0.room.texts.bytes(),
            window_bytes: self.0.room.window_bytes.load(Ordering::Relaxed),
            pressure: self.0.room.pressure.get(),
        }
    }

    /// Whether there is somebody to serve requests: the engine's thread may have broken down, or
    /// have been stopped.
    pub fn is_alive(&self) -> bool {
        self.0.room.inbox.is_open()
    }

    /// Whether the engine moves.
    pub fn progress(&self) -> Progress {
        self.0.room.pulse.progress()
    }

    /// Tells the engine how short memory is. Pins go at once, the window shrinks with the next
    /// pass, requests wait until the level falls.
    pub fn set_pressure(&self, level: Pressure) {
        if self.0.room.set_pressure(level) && self.0.targets.are_set() {
            self.0.room.inbox.command(Command::Retarget);
        }
    }

    /// Cancels what runs and waits, and joins the threads.
    pub fn shutdown(&self) {
        self.0.stop();
    }

    fn ask<T: Send + 'static>(
        &self,
        job: impl FnOnce(Answer<T>) -> Command,
    ) -> Result<T, EngineError> {
        let (sender, receiver) = bounded(1);
        let job = job(Answer::new(move |result| {
            // The asker waits until it is answered.
            let _ = sender.send(result);
        }));
        self.0.room.inbox.command(job);
        receiver.recv().unwrap_or(Err(EngineError::Cancelled))
    }
}

impl Handle {
    fn stop(&self) {
        self.room.pulse.stopping.cancel();
        self.room.inbox.close();
        let thread = lock(&self.thread).take();
        if let Some(thread) = thread.filter(|t| t.thread().id() != std::thread::current().id())
            && thread.join().is_err()
        {
            log::error!("the engine's thread panicked");
        }
        self.room.sessions.wait_for_end(session::LEAVE);
    }
}

/// Threads beside the engine's, those that compute and those that load: three helpers, an install, one
/// that watches memory pressure, one that a trial reads on, one that plans, a reload, a shutdown, and
/// two copies of the program that try graphs.
const OTHER_THREADS: usize = 11;

/// Loaders that measuring tries at once, at most.
const MOST_LOADERS_TRIED: usize = 4;

/// Refuses to start where the system would refuse a thread later, in the middle of something.
fn rehearse_threads(config: &Config) -> Result<(), EngineError> {
    let (compute, loaders) = config.most_threads(affinity::allowed_cores().len());
    let (compute, loaders) = (compute.max(1), loaders.max(MOST_LOADERS_TRIED));
    // Where a plan wants other threads, those that computed so far may be on their way out.
    let more = 1 + 2 * compute + loaders + OTHER_THREADS;
    let running = threads::count();
    threads::rehearse(more).map_err(|Shortage { had, error }| EngineError::TooFewThreads {
        had: running + had,
        needed: running + more,
        source: error,
    })
}
