//! The engine as others see it: requests go in, replies come back on the engine's thread.

use super::catalogue::{Catalogue, Described};
use super::command::Command;
use super::config::{Config, EXPECTED_TOKENS};
use super::crew::thread_bytes;
use super::error::EngineError;
use super::inbox::Inbox;
use super::known::{Answered, Inquiry, Known};
use super::model::{Model, held_by_graph, loading_bytes};
use super::pressure::{Pressure, SharedPressure};
use super::rehearsal::trying_bytes;
use super::request::{Answer, Cancel, PassStats, Reply, Request, Waiting};
use super::room::{Keeper, Keepers};
use super::stats::{CounterSet, EngineStats, Loaded, ModelStats, Progress};
use super::turns::QUEUE_LIMIT;
use super::worker::Worker;
use crate::plan::Profile;
use crate::store::manifest::Checksum;
use crate::store::{Demand, ModelDir, Rehearsal, Serving, Store, StoreError};
use crate::stream::{Category, Grant, Ledger, OverBudget};
use crate::sys::lock::lock;
use crate::sys::threads::{self, Shortage};
use crate::sys::{affinity, code, memory};
use crossbeam_channel::bounded;
use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::thread::JoinHandle;

/// What a server takes to begin with: connections for whoever comes first.
const RESERVED_BYTES: u64 = 512 << 10;

/// What a request holds besides its inputs: its connection, names, figures.
pub(super) const REQUEST_BYTES: u64 = 64 << 10;

/// Default window, and the smallest the program chooses by itself.
const WINDOW_BYTES: u64 = 16 << 20;
const SMALLEST_WINDOW_BYTES: u64 = 4 << 20;

/// What the process itself holds by the ledger on most boards.
pub const PROCESS_BYTES: u64 = 18 << 20;

/// What the process will come to hold besides what it holds at the start, its code released, and
/// what is counted: code, 4 to 5 MiB in a pass; what the C library's heap loses between what is
/// used, up to 4; stacks, and pages on their way out. Measured with BERT-Large, 9 MiB.
const PROCESS_GROWTH_BYTES: u64 = 10 << 20;

/// A handle to the engine. Clones share it; it stops when the last one is gone.
#[derive(Clone)]
pub struct Engine(Arc<Handle>);

/// The handles' own: the engine stops when the last of them is gone.
struct Handle(Arc<Shared>);

impl std::ops::Deref for Handle {
    type Target = Shared;

    fn deref(&self) -> &Shared {
        &self.0
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.stop();
    }
}

/// What the engine's thread and its handles share.
pub(super) struct Shared {
    pub store: Store,
    pub ledger: Arc<Ledger>,
    pub models: Mutex<BTreeMap<String, Arc<Model>>>,
    pub inbox: Inbox,
    pub counters: CounterSet,
    pub pressure: SharedPressure,
    pub keepers: Keepers,
    pub catalogue: Catalogue,
    pub busy: AtomicBool,
    pub beats: Arc<AtomicU64>,
    pub stopping: Cancel,
    /// Of the last pass; before the first, what suits the budget.
    pub window_bytes: AtomicU64,
    pub rehearses: bool,
    /// How imports of graphs went, where that cannot be kept beside them.
    pub rehearsed: Mutex<HashMap<Checksum, Rehearsal>>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Engine {
    /// Starts the threads. No model is loaded yet.
    pub fn start(config: Config) -> Result<Engine, EngineError> {
        let store = Store::open(&config.store)?;
        rehearse_threads(&config)?;
        let ledger = Ledger::new(config.budget_bytes);
        code::map_in_pieces();
        code::release();
        // In whole MiB: the next start, a few pages larger or smaller, needs the same.
        let cores = affinity::allowed_cores().len();
        let (threads, loaders) = config.most_threads(cores);
        let growth_bytes = PROCESS_GROWTH_BYTES + thread_bytes(threads, loaders);
        let process = memory::process().resident_bytes + growth_bytes;
        let process = process.next_multiple_of(1 << 20);
        let window_bytes = config.window_bytes.unwrap_or(SMALLEST_WINDOW_BYTES);
        let least_bytes = process + RESERVED_BYTES;
        let least = |refused: OverBudget| {
            let needed_bytes = needed_by_any(&store, config.tokens).max(window_bytes);
            refused.at_least(least_bytes.saturating_add(needed_bytes))
        };
        let process = ledger.try_grant(Category::Process, process).map_err(least)?;
        let window_bytes = config.window_bytes.unwrap_or_else(|| window_for(&ledger));
        let window = ledger.try_grant(Category::Window, window_bytes).map_err(least)?;
        let shared = Arc::new(Shared {
            store,
            ledger,
            models: Mutex::default(),
            inbox: Inbox::default(),
            counters: CounterSet::default(),
            pressure: SharedPressure::default(),
            keepers: Keepers::default(),
            catalogue: Catalogue::default(),
            busy: AtomicBool::new(false),
            beats: Arc::default(),
            stopping: Cancel::new(),
            window_bytes: AtomicU64::new(window_bytes),
            rehearses: config.rehearses,
            rehearsed: Mutex::default(),
            thread: Mutex::new(None),
        });
        let worker = Worker::start(config, process, window)?;
        let served = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name("engine".to_string())
            .spawn(move || worker.serve(&served))
            .map_err(EngineError::Thread)?;
        *lock(&shared.thread) = Some(thread);
        Ok(Engine(Arc::new(Handle(shared))))
    }

    /// Names of the store's models.
    pub fn models(&self) -> Result<Vec<String>, EngineError> {
        Ok(self.0.store.models()?)
    }

    /// The manifest of a model's served version, for which the store is asked.
    pub fn manifest(&self, model: &str) -> Result<Described, EngineError> {
        let loaded = self.0.loaded(model);
        match loaded {
            Some(loaded) if self.0.store.serving(model).ok().as_ref() == Some(&loaded.serving) => {
                Ok(Described { manifest: Arc::clone(&loaded.dir.manifest), _held: None })
            }
            _ => match self.0.catalogue.manifest(&self.0, model) {
                Err(EngineError::OverBudget(refused)) => {
                    let least_bytes = self.least_budget_bytes(model, None);
                    Err(refused.at_least(least_bytes).into())
                }
                found => found,
            },
        }
    }

    /// The manifest of a model that is loaded. Nothing is read: the store may serve another version
    /// by now, which the next pass will find.
    pub fn loaded_manifest(&self, model: &str) -> Option<Described> {
        let loaded = self.0.loaded(model)?;
        Some(Described { manifest: Arc::clone(&loaded.dir.manifest), _held: None })
    }

    /// Whether the model is loaded and answers.
    pub fn is_ready(&self, model: &str) -> bool {
        lock(&self.0.models).get(model).is_some_and(|model| model.check_service().is_ok())
    }

    /// Loads a model, anew where it is loaded already, and waits for it.
    pub fn load(&self, model: &str) -> Result<Arc<Model>, EngineError> {
        self.ask(|answer| Command::Load(model.to_string(), answer))
    }

    /// Unloads a model; every byte it held is given back.
    pub fn unload(&self, model: &str) -> Result<(), EngineError> {
        self.ask(|answer| Command::Unload(model.to_string(), answer))
    }

    pub(super) fn shared(&self) -> &Shared {
        &self.0
    }

    /// The store that models are loaded from.
    pub fn store(&self) -> &Store {
        &self.0.store
    }

    /// Queues a request; `reply` is called from the engine's thread, at once where the request is
    /// refused. A model that is not loaded is loaded first. Requests that wait for the same model
    /// share a pass.
    pub fn submit(
        &self,
        request: Request,
        reply: impl FnOnce(Result<Reply, EngineError>) + Send + 'static,
    ) {
        let waiting = Waiting::new(request, Answer::new(reply));
        for (waiting, error) in self.0.inbox.submit(waiting) {
            if let Some(counters) = self.0.counters.known(&waiting.request.model) {
                let counter = match error {
                    EngineError::Busy { .. } => &counters.refused,
                    _ => &counters.cancelled,
                };
                counter.fetch_add(1, Ordering::Relaxed);
            }
            waiting.answer.give(Err(error));
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
        self.0.inbox.command(Command::Load(model.to_string(), Answer::new(reply)));
    }

    /// Loads a model where it is not loaded; as [`Engine::request_load`].
    pub fn request_ready(
        &self,
        model: &str,
        reply: impl FnOnce(Result<Arc<Model>, EngineError>) + Send + 'static,
    ) {
        self.0.inbox.command(Command::Ready(model.to_string(), Answer::new(reply)));
    }

    /// As [`Engine::unload`], without waiting; as [`Engine::request_load`].
    pub fn request_unload(
        &self,
        model: &str,
        reply: impl FnOnce(Result<(), EngineError>) + Send + 'static,
    ) {
        self.0.inbox.command(Command::Unload(model.to_string(), Answer::new(reply)));
    }

    /// As [`Engine::profile`], without waiting: `reply` is called from the engine's thread, at once
    /// where the engine does not take it.
    pub fn request_profile(
        &self,
        model: &str,
        reply: impl FnOnce(Result<Arc<Profile>, EngineError>) + Send + 'static,
    ) {
        self.0.inbox.command(Command::Profile(model.to_string(), Answer::new(reply)));
    }

    /// What was measured of a model, by which it is planned; as [`Engine::request_profile`]. The
    /// model is not loaded for it.
    pub fn request_known(
        &self,
        model: &str,
        reply: impl FnOnce(Result<Known, EngineError>) + Send + 'static,
    ) {
        self.0.inbox.command(Command::Recall(model.to_string(), Answer::new(reply)));
    }

    /// How passes of a model would be played, and what would help. The model has to have been
    /// measured.
    pub fn plan(&self, model: &str, inquiry: Inquiry) -> Result<Answered, EngineError> {
        self.ask(|answer| Command::Recall(model.to_string(), answer))?.plan(inquiry)
    }

    /// The ledger of everything held.
    pub fn ledger(&self) -> &Arc<Ledger> {
        &self.0.ledger
    }

    /// The smallest budget in which a model serves a request whose inputs take so many bytes, or
    /// those of the usual request.
    pub fn least_budget_bytes(&self, model: &str, inputs_bytes: Option<u64>) -> u64 {
        self.0.least_budget_bytes(model, |demand| {
            let usual_bytes = demand.inputs_bytes(EXPECTED_TOKENS);
            (inputs_bytes.unwrap_or(usual_bytes), EXPECTED_TOKENS)
        })
    }

    /// A grant for somebody who holds `own_bytes` already and needs both at once; before it is
    /// refused, pins and what was used longest ago give way.
    pub fn grant(
        &self,
        category: Category,
        bytes: u64,
        own_bytes: u64,
    ) -> Result<Grant, OverBudget> {
        self.0.grant(category, bytes, own_bytes)
    }

    /// The same for a grant that changes.
    pub fn enlarge(&self, grant: &mut Grant, bytes: u64, own_bytes: u64) -> Result<(), OverBudget> {
        self.0.enlarge(grant, bytes, own_bytes)
    }

    /// The same for somebody who can wait, unless `cancel` is: what does not fit now, and would in
    /// an idle daemon, waits for what others give back before anything in use gives way.
    pub fn enlarge_in_time(
        &self,
        grant: &mut Grant,
        bytes: u64,
        own_bytes: u64,
        cancel: &Cancel,
    ) -> Result<(), OverBudget> {
        self.0.enlarge_in_time(grant, bytes, own_bytes, cancel)
    }

    /// Has somebody else's things give way as models do, for as long as they are there.
    pub fn add_keeper(&self, keeper: Weak<dyn Keeper>) {
        self.0.keepers.add(keeper);
    }

    /// A number larger than all that were given before: what is used notes it.
    pub fn now(&self) -> u64 {
        self.0.keepers.now()
    }

    /// Bytes of all models' tapes that stay in memory.
    pub fn pinned_bytes(&self) -> u64 {
        self.0.ledger.held_bytes(Category::Pins)
    }

    /// Changes the budget. Where it is smaller, pins go at once and the rest when what runs has
    /// ended; nothing more is granted above it. Models are planned anew before the next pass.
    ///
    /// # Errors
    ///
    /// [`EngineError::BudgetTooSmall`]; the old one stays.
    pub fn set_budget(&self, budget_bytes: u64) -> Result<(), EngineError> {
        let least_bytes = self.0.least_bytes();
        if budget_bytes < least_bytes {
            return Err(EngineError::BudgetTooSmall { budget_bytes, least_bytes });
        }
        if budget_bytes < self.0.ledger.set_budget(budget_bytes) {
            for model in lock(&self.0.models).values() {
                model.pins.release();
            }
        }
        self.0.inbox.command(Command::Replan);
        Ok(())
    }

    /// The figures now.
    pub fn stats(&self) -> EngineStats {
        let loaded = lock(&self.0.models).clone();
        let mut counted = self.0.counters.read();
        for name in loaded.keys() {
            counted.entry(name.clone()).or_default();
        }
        let models = counted.into_iter().map(|(name, counted)| {
            let loaded = loaded.get(&name).map(|model| Loaded {
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
            waiting: self.0.inbox.len(),
            waiting_limit: QUEUE_LIMIT,
            window_bytes: self.0.window_bytes.load(Ordering::Relaxed),
            pressure: self.0.pressure.get(),
        }
    }

    /// Whether there is somebody to serve requests: the engine's thread may have broken down, or
    /// have been stopped.
    pub fn is_alive(&self) -> bool {
        self.0.inbox.is_open()
    }

    /// Whether the engine moves.
    pub fn progress(&self) -> Progress {
        let beats = self.0.beats.load(Ordering::Relaxed);
        Progress { busy: self.0.busy.load(Ordering::Relaxed), beats }
    }

    /// Tells the engine how short memory is. Pins go at once, the window shrinks with the next
    /// pass, requests wait until the level falls.
    pub fn set_pressure(&self, level: Pressure) {
        let before = self.0.pressure.set(level);
        if before == level {
            return;
        }
        if before == Pressure::None {
            for model in lock(&self.0.models).values() {
                model.pins.release();
            }
            // What a trial holds goes too.
            self.0.inbox.end_leisure();
        }
        self.0.inbox.hold(level >= Pressure::Hold);
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
        self.0.inbox.command(job);
        receiver.recv().unwrap_or(Err(EngineError::Cancelled))
    }
}

impl Shared {
    /// The served version of a model.
    pub fn find(&self, model: &str) -> Result<ModelDir, EngineError> {
        self.store.current(model).map_err(|error| unknown(model, error))
    }

    /// Which version of a model is served; nothing is parsed.
    pub fn serving(&self, model: &str) -> Result<Serving, EngineError> {
        self.store.serving(model).map_err(|error| unknown(model, error))
    }

    /// The smallest budget in which a model that may not be loaded serves a request: all that is
    /// needed until it is answered, as far as the manifest tells; 0 where that cannot be read.
    /// `request` says what its inputs take, and how long its longest open dimension is.
    pub fn least_budget_bytes(&self, model: &str, request: impl Fn(&Demand) -> (u64, u64)) -> u64 {
        self.store.demand(model).map_or(0, |demand| {
            let (inputs_bytes, length) = request(&demand);
            let process_bytes = self.ledger.held_bytes(Category::Process);
            process_bytes.saturating_add(needed_bytes(&demand, inputs_bytes, length))
        })
    }

    /// Bytes that nothing gives back while the loaded models stay, with the smallest window that
    /// they can do with.
    fn least_bytes(&self) -> u64 {
        let fixed = [Category::Process, Category::Graph, Category::Tokenizer];
        let fixed_bytes: u64 = fixed.map(|category| self.ledger.held_bytes(category)).iter().sum();
        let models = lock(&self.models);
        let windows = models.values().map(|model| model.playing().smallest_window_bytes());
        let usual = SMALLEST_WINDOW_BYTES.min(self.window_bytes.load(Ordering::Relaxed));
        fixed_bytes + windows.max().unwrap_or(usual)
    }

    /// The engine moves.
    pub fn beat(&self) {
        self.beats.fetch_add(1, Ordering::Relaxed);
    }

    /// The loaded model of that name, whatever its version.
    pub fn loaded(&self, model: &str) -> Option<Arc<Model>> {
        lock(&self.models).get(model).cloned()
    }

    fn stop(&self) {
        self.stopping.cancel();
        self.inbox.close();
        let thread = lock(&self.thread).take();
        if let Some(thread) = thread.filter(|t| t.thread().id() != std::thread::current().id())
            && thread.join().is_err()
        {
            log::error!("the engine's thread panicked");
        }
    }
}

/// What the store says of a model that it may not have.
fn unknown(model: &str, error: StoreError) -> EngineError {
    match error {
        StoreError::Missing { .. } => EngineError::UnknownModel { model: model.to_string() },
        error => error.into(),
    }
}

/// Threads beside the engine's, those that compute and those that load: three helpers, an install, one
/// that watches memory pressure, one that a trial reads on, a reload, a shutdown, and two copies of the program that try graphs.
const OTHER_THREADS: usize = 10;

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

/// What any model of a store takes to serve the usual request, where every open dimension has this
/// length.
fn needed_by_any(store: &Store, length: u64) -> u64 {
    let models = store.models().unwrap_or_default();
    let demands = models.iter().filter_map(|model| store.demand(model).ok());
    let needed = demands.map(|demand| needed_bytes(&demand, demand.inputs_bytes(length), length));
    needed.max().unwrap_or(0)
}

/// Heap that a parsed manifest holds for each byte of its text; measured on those of real models, 2 to
/// 4.
const MANIFEST_BYTES_PER_BYTE: u64 = 5;

/// What serving a request takes beside the process itself, loading the model among it, where its
/// inputs take so many bytes and its longest open dimension has this length.
pub fn needed_bytes(demand: &Demand, inputs_bytes: u64, length: u64) -> u64 {
    let needs = demand.needs.as_ref();
    let graph_bytes = held_by_graph(needs.map_or(0, |needs| needs.graph_bytes));
    let pass_bytes = needs.map_or(0, |needs| needs.pass_bytes(length));
    let serving = [SMALLEST_WINDOW_BYTES, graph_bytes, pass_bytes];
    let serving = serving.into_iter().fold(0, u64::saturating_add);
    let loading = loading_bytes(demand.graph.bytes, demand.loading_bytes);
    let loading = if demand.is_tried { loading } else { trying_bytes(loading) };
    // What is known of a model is kept beside it, once for those who ask and once for itself.
    let manifest_bytes = demand.text_bytes.saturating_mul(2 * MANIFEST_BYTES_PER_BYTE);
    let own = [inputs_bytes, REQUEST_BYTES, manifest_bytes];
    own.into_iter().fold(serving.max(loading), u64::saturating_add)
}

/// The window that suits a budget: the default, or half of what is left where that is less.
pub(super) fn window_for(ledger: &Ledger) -> u64 {
    WINDOW_BYTES.min((ledger.free_bytes() / 2).max(SMALLEST_WINDOW_BYTES))
}
