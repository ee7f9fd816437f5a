//! The engine's threads: one takes requests in turn, a pool computes, loaders load.

use super::array::Array;
use super::error::EngineError;
use super::model::Model;
use super::pass::{self, Cancel, PassStats};
use crate::graph::Kernels;
use crate::store::manifest::Manifest;
use crate::store::{ModelDir, Store, StoreError};
use crate::stream::{Category, Faults, Flow, Grant, Ledger, Loaders};
use crate::sys::{affinity, heap, memory};
use crossbeam_channel::{Receiver, Sender, bounded};
use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use tract_linalg::multithread::{Executor, multithread_tract_scope, set_threading_panel_threshold};

/// How an engine is set up.
#[derive(Clone, Debug)]
pub struct Config {
    /// Folder of the store.
    pub store: PathBuf,
    /// Limit of everything the process holds.
    pub budget_bytes: u64,
    /// Bytes of tape ahead of and under compute; by default what suits the budget.
    pub window_bytes: Option<u64>,
    /// Compute threads; by default one a core.
    pub threads: Option<usize>,
    /// Loader threads; by default one for two cores. On two cores with an NVMe disk one loader
    /// came within 3 % of the limit, two within 20 %: they take compute's cores from it.
    pub loaders: Option<usize>,
    /// Variant of every model; by default each model's best.
    pub variant: Option<String>,
    /// Bytes of each model's tape that stay in memory.
    pub pin_bytes: u64,
    pub source: SourceKind,
}

impl Config {
    /// A streamed engine over `store` within `budget_bytes`, all else decided by the program.
    pub fn new(store: impl Into<PathBuf>, budget_bytes: u64) -> Config {
        Config {
            store: store.into(),
            budget_bytes,
            window_bytes: None,
            threads: None,
            loaders: None,
            variant: None,
            pin_bytes: 0,
            source: SourceKind::Board,
        }
    }
}

/// Where blocks come from.
#[derive(Clone, Copy, Debug)]
pub enum SourceKind {
    /// The board's disk, by the best way the kernel has.
    Board,
    /// The same, slowed down.
    Throttled { bytes_per_s: u64 },
    /// The same, failing by seed.
    Faulty(Faults),
}

/// A request for one pass.
#[derive(Clone, Debug)]
pub struct Request {
    pub model: String,
    pub inputs: Vec<(String, Array)>,
    /// Names of the outputs wanted; all where empty.
    pub outputs: Vec<String>,
    pub cancel: Cancel,
}

/// A pass's results.
#[derive(Clone, Debug)]
pub struct Reply {
    pub outputs: Vec<(String, Array)>,
    pub stats: PassStats,
}

type Answer<T> = Box<dyn FnOnce(Result<T, EngineError>) + Send>;

enum Job {
    Infer(Request, Answer<Reply>),
    Load(String, Answer<Arc<Model>>),
    Play(String, Answer<PassStats>),
    Unload(String, Answer<()>),
}

/// Requests that may wait.
const QUEUE_LIMIT: usize = 64;

/// Default window, and the smallest the program chooses by itself.
const WINDOW_BYTES: u64 = 16 << 20;
const SMALLEST_WINDOW_BYTES: u64 = 4 << 20;

/// What the process will come to hold besides what it holds at the start and what is counted:
/// code that is yet to be touched, stacks, the allocator's slack. Measured with the real models:
/// 3 to 5 MiB.
const PROCESS_GROWTH_BYTES: u64 = 6 << 20;

/// Panels below which tract computes a product on one thread; blocks are smaller than the
/// whole matrices its default is meant for.
const PANEL_THRESHOLD: usize = 16;

/// A handle to the engine. Clones share it; it stops when the last one is gone.
#[derive(Clone)]
pub struct Engine(Arc<Shared>);

struct Shared {
    store: Store,
    ledger: Arc<Ledger>,
    models: Mutex<HashMap<String, Arc<Model>>>,
    jobs: Mutex<Option<Sender<Job>>>,
    thread: Mutex<Option<JoinHandle<()>>>,
    stopping: Cancel,
}

impl Engine {
    /// Starts the threads. No model is loaded yet.
    pub fn start(config: Config) -> Result<Engine, EngineError> {
        let store = Store::open(&config.store)?;
        let ledger = Ledger::new(config.budget_bytes);
        let process = memory::process().resident_bytes + PROCESS_GROWTH_BYTES;
        let process = ledger.try_grant(Category::Process, process)?;
        let window_bytes = config.window_bytes.unwrap_or_else(|| window_for(&ledger));
        let window = ledger.try_grant(Category::Window, window_bytes)?;
        let (jobs, queue) = bounded(QUEUE_LIMIT);
        let shared = Arc::new(Shared {
            store,
            ledger,
            models: Mutex::default(),
            jobs: Mutex::new(Some(jobs)),
            thread: Mutex::new(None),
            stopping: Cancel::new(),
        });
        let worker = Worker::start(&config, &shared, vec![process, window], window_bytes)?;
        let thread = std::thread::Builder::new()
            .name("engine".to_string())
            .spawn(move || worker.serve(&queue))
            .map_err(EngineError::Thread)?;
        *lock(&shared.thread) = Some(thread);
        Ok(Engine(shared))
    }

    /// Names of the store's models.
    pub fn models(&self) -> Result<Vec<String>, EngineError> {
        Ok(self.0.store.models()?)
    }

    /// The manifest of a model's current version.
    pub fn manifest(&self, model: &str) -> Result<Arc<Manifest>, EngineError> {
        Ok(Arc::new(self.0.find(model)?.manifest))
    }

    /// Whether the model is loaded.
    pub fn is_ready(&self, model: &str) -> bool {
        lock(&self.0.models).get(model).is_some_and(|model| model.check_service().is_ok())
    }

    /// Loads a model, anew where it is loaded already, and waits for it.
    pub fn load(&self, model: &str) -> Result<Arc<Model>, EngineError> {
        self.ask(|answer| Job::Load(model.to_string(), answer))
    }

    /// Unloads a model; every byte it held is given back.
    pub fn unload(&self, model: &str) -> Result<(), EngineError> {
        self.ask(|answer| Job::Unload(model.to_string(), answer))
    }

    /// The store that models are loaded from.
    pub fn store(&self) -> &Store {
        &self.0.store
    }

    /// Queues a request; `reply` is called from the engine's thread, soon where the request is
    /// refused. A model that is not loaded is loaded first.
    pub fn submit(
        &self,
        request: Request,
        reply: impl FnOnce(Result<Reply, EngineError>) + Send + 'static,
    ) {
        self.send(Job::Infer(request, Box::new(reply)));
    }

    /// As [`Engine::submit`], waiting for the reply.
    pub fn infer(&self, request: Request) -> Result<Reply, EngineError> {
        self.ask(|answer| Job::Infer(request, answer))
    }

    /// Plays a model's tape without computing, as fast as the loaders go: the time a pass needs
    /// for its weights alone.
    pub fn play(&self, model: &str) -> Result<PassStats, EngineError> {
        self.ask(|answer| Job::Play(model.to_string(), answer))
    }

    /// The ledger of everything held.
    pub fn ledger(&self) -> &Arc<Ledger> {
        &self.0.ledger
    }

    /// Cancels what runs and waits, and joins the threads.
    pub fn shutdown(&self) {
        self.0.stop();
    }

    fn ask<T: Send + 'static>(&self, job: impl FnOnce(Answer<T>) -> Job) -> Result<T, EngineError> {
        let (sender, receiver) = bounded(1);
        self.send(job(Box::new(move |result| {
            // The asker waits until it is answered.
            let _ = sender.send(result);
        })));
        receiver.recv().unwrap_or(Err(EngineError::Cancelled))
    }

    fn send(&self, job: Job) {
        let jobs = lock(&self.0.jobs).clone();
        match jobs.map(|jobs| jobs.try_send(job).map_err(|e| e.into_inner())) {
            Some(Ok(())) => {}
            Some(Err(job)) => job.refuse(EngineError::Busy { limit: QUEUE_LIMIT }),
            None => {}
        }
    }
}

impl Job {
    fn refuse(self, error: EngineError) {
        match self {
            Job::Infer(_, answer) => answer(Err(error)),
            Job::Load(_, answer) => answer(Err(error)),
            Job::Play(_, answer) => answer(Err(error)),
            Job::Unload(_, answer) => answer(Err(error)),
        }
    }
}

impl Shared {
    fn find(&self, model: &str) -> Result<ModelDir, EngineError> {
        self.store.current(model).map_err(|error| match error {
            StoreError::Missing { .. } => EngineError::UnknownModel { model: model.to_string() },
            error => error.into(),
        })
    }

    fn stop(&self) {
        self.stopping.cancel();
        drop(lock(&self.jobs).take());
        let thread = lock(&self.thread).take();
        if let Some(thread) = thread.filter(|t| t.thread().id() != std::thread::current().id())
            && thread.join().is_err()
        {
            log::error!("the engine's thread panicked");
        }
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.stop();
    }
}

/// The window that suits a budget: the default, or half of what is left where that is less.
fn window_for(ledger: &Ledger) -> u64 {
    WINDOW_BYTES.min((ledger.free_bytes() / 2).max(SMALLEST_WINDOW_BYTES))
}

/// What the engine's thread works with.
struct Worker {
    shared: std::sync::Weak<Shared>,
    config: Config,
    pool: Arc<rayon::ThreadPool>,
    loaders: Loaders,
    kernels: Arc<Kernels>,
    window_bytes: u64,
    stopping: Cancel,
    _grants: Vec<Grant>,
}

impl Worker {
    fn start(
        config: &Config,
        shared: &Arc<Shared>,
        grants: Vec<Grant>,
        window_bytes: u64,
    ) -> Result<Worker, EngineError> {
        let cores = affinity::allowed_cores();
        let threads = config.threads.unwrap_or(cores.len()).max(1);
        let loaders = config.loaders.unwrap_or(cores.len() / 2).max(1);
        // Loaders take the cores from the last: compute's own thread runs on the first.
        let loader_cores: Vec<usize> = cores.iter().rev().cycle().take(loaders).copied().collect();
        let compute_cores = cores.clone();
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .thread_name(|index| format!("compute-{index}"))
            .start_handler(move |index| {
                affinity::pin_current_thread(compute_cores[index % compute_cores.len()]);
            })
            .build()
            .map_err(|error| EngineError::Thread(std::io::Error::other(error)))?;
        set_threading_panel_threshold(PANEL_THRESHOLD);
        Ok(Worker {
            shared: Arc::downgrade(shared),
            config: config.clone(),
            pool: Arc::new(pool),
            loaders: Loaders::start(&loader_cores).map_err(EngineError::Thread)?,
            kernels: Arc::new(Kernels::native()),
            window_bytes,
            stopping: shared.stopping.clone(),
            _grants: grants,
        })
    }

    fn serve(self, queue: &Receiver<Job>) {
        for job in queue {
            if self.stopping.is_cancelled() {
                job.refuse(EngineError::Cancelled);
                continue;
            }
            match job {
                Job::Infer(request, answer) => answer(self.infer(&request)),
                Job::Load(model, answer) => answer(self.load(&model)),
                Job::Play(model, answer) => answer(self.play(&model)),
                Job::Unload(model, answer) => answer(self.unload(&model)),
            }
        }
    }

    fn shared(&self) -> Result<Arc<Shared>, EngineError> {
        self.shared.upgrade().ok_or(EngineError::Cancelled)
    }

    fn infer(&self, request: &Request) -> Result<Reply, EngineError> {
        if request.cancel.is_cancelled() {
            return Err(EngineError::Cancelled);
        }
        let model = self.loaded(&request.model)?;
        model.check_service()?;
        let inputs = model.arrange(&request.inputs)?;
        let outputs = model.pick_outputs(&request.outputs)?;
        let footprint = model.footprint(&inputs)?;
        let ledger = Arc::clone(&self.shared()?.ledger);
        let grant = ledger.try_grant(Category::Activations, footprint.activation_bytes)?;
        let flow = self.flow(&model);
        let ran = catch_unwind(AssertUnwindSafe(|| {
            self.pool.install(|| {
                multithread_tract_scope(Executor::MultiThread(Arc::clone(&self.pool)), || {
                    pass::run(&model, &flow, &self.kernels, inputs, &outputs, &request.cancel)
                })
            })
        }));
        flow.end();
        heap::trim();
        let (arrays, stats) = match ran {
            Ok(Ok(done)) => done,
            Ok(Err(error)) => {
                if let EngineError::Stream(failure) = &error {
                    model.fail(failure);
                }
                return Err(error);
            }
            Err(panic) => return Err(EngineError::Internal(panic_text(&*panic))),
        };
        let names = outputs.iter().map(|index| model.output_name(*index).to_string());
        let stats = PassStats { activation_bytes: grant.bytes(), ..stats };
        Ok(Reply { outputs: names.zip(arrays).collect(), stats })
    }

    fn flow(&self, model: &Model) -> Arc<Flow> {
        let source = Arc::clone(&model.source);
        let blocks = Arc::clone(&model.blocks);
        let flow = Flow::new(source, blocks, &model.pins, self.window_bytes);
        self.loaders.serve(&flow);
        flow
    }

    fn play(&self, model: &str) -> Result<PassStats, EngineError> {
        let model = self.loaded(model)?;
        let started = std::time::Instant::now();
        let flow = self.flow(&model);
        let played = (0..model.blocks.len()).try_for_each(|block| flow.lease(block).map(drop));
        let latency_us = started.elapsed().as_micros() as u64;
        let counters = flow.counters();
        flow.end();
        played?;
        let (stall_us, bytes_read) = (counters.stall_us, counters.bytes_read);
        Ok(PassStats { latency_us, stall_us, bytes_read, activation_bytes: 0 })
    }

    fn loaded(&self, model: &str) -> Result<Arc<Model>, EngineError> {
        let loaded = lock(&self.shared()?.models).get(model).cloned();
        match loaded {
            Some(model) => Ok(model),
            None => self.load(model),
        }
    }

    fn load(&self, model: &str) -> Result<Arc<Model>, EngineError> {
        let shared = self.shared()?;
        let dir = shared.find(model)?;
        lock(&shared.models).remove(model);
        let loaded = match self.try_load(&shared, dir.clone()) {
            // The other models make room: they load again when they are asked for.
            Err(EngineError::OverBudget(_)) if !lock(&shared.models).is_empty() => {
                lock(&shared.models).clear();
                heap::trim();
                self.try_load(&shared, dir)
            }
            loaded => loaded,
        };
        let loaded = Arc::new(loaded?);
        lock(&shared.models).insert(model.to_string(), Arc::clone(&loaded));
        Ok(loaded)
    }

    fn try_load(&self, shared: &Shared, dir: ModelDir) -> Result<Model, EngineError> {
        let Config { variant, source, pin_bytes, .. } = &self.config;
        let (variant, idle) = (variant.as_deref(), self.window_bytes);
        let loading = || Model::load(dir, variant, *source, *pin_bytes, idle, &shared.ledger);
        let loaded = catch_unwind(AssertUnwindSafe(loading))
            .unwrap_or_else(|panic| Err(EngineError::Internal(panic_text(&*panic))))?;
        memory::release_code();
        let block_bytes = loaded.tape.largest_block_bytes();
        if block_bytes > self.window_bytes {
            return Err(EngineError::WindowTooSmall {
                model: loaded.name().to_string(),
                window_bytes: self.window_bytes,
                block_bytes,
            });
        }
        log::info!(
            "model {} ({}) is ready: {} MiB of tape, {} KiB resident",
            loaded.name(),
            loaded.variant,
            loaded.tape_bytes() >> 20,
            shared.ledger.held_bytes(Category::Graph) >> 10
        );
        Ok(loaded)
    }

    fn unload(&self, model: &str) -> Result<(), EngineError> {
        lock(&self.shared()?.models).remove(model);
        heap::trim();
        Ok(())
    }
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_string());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_default()
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
