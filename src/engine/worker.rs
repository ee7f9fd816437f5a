//! The engine's thread: takes turns, admits requests to passes, loads and unloads models.

use super::array::Array;
use super::error::EngineError;
use super::inbox::{Control, Turn, Waiting};
use super::model::Model;
use super::pass::{Pass, PassStats, Seat};
use super::pressure::Pressure;
use super::service::{Config, Reply, Shared, lock};
use super::stats::Counters;
use crate::graph::Kernels;
use crate::store::ModelDir;
use crate::stream::{Category, Course, Flow, FlowCounters, Grant, Loaders, Slots, Trace};
use crate::sys::{affinity, code, heap, memory};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use tract_linalg::multithread::{Executor, multithread_tract_scope, set_threading_panel_threshold};

/// Panels below which tract computes a product on one thread; blocks are smaller than the
/// whole matrices its default is meant for.
const PANEL_THRESHOLD: usize = 16;

/// Most requests that share a pass: more gain little, and delay the first of them.
const MAX_SEATS: usize = 32;

/// Time without work after which the heap gives back what it keeps.
const QUIET: Duration = Duration::from_millis(100);

/// Bytes of free memory that the C library's heap may lose between what is used, from one pass to
/// the next: giving them back takes a millisecond, and taking them anew another.
const LOST_BYTES: u64 = 4 << 20;

/// Share of what is free that a pass may take to keep freed tensors in; the rest is for whoever
/// comes meanwhile.
const SPARE_SHARE: u64 = 4;

/// Share of the budget that pins leave free, for requests and for what models need to load.
const UNPINNED_SHARE: u64 = 4;

/// Blocks of the window under pressure: one that compute uses, one that is loaded.
const SMALLEST_WINDOW_BLOCKS: u64 = 2;

/// What the engine's thread works with.
pub(super) struct Worker {
    config: Config,
    pool: Arc<rayon::ThreadPool>,
    loaders: Loaders,
    kernels: Arc<Kernels>,
    window_bytes: u64,
    /// Where blocks of direct sources go, within the window.
    slots: Arc<Slots>,
    /// Anonymous memory beside the heap: stacks, the programs' own data.
    unheaped_bytes: u64,
    _grants: Vec<Grant>,
}

/// A request that was admitted to a pass.
struct Admitted {
    waiting: Waiting,
    seat: Seat,
    /// Bytes it holds once it shares the pass.
    together_bytes: u64,
    grant: Grant,
}

/// Why a request that waits is not admitted.
enum Refusal {
    /// It never can be.
    Error(EngineError),
    /// Not to this pass: it would not fit beside the others.
    Later,
}

impl Worker {
    pub fn start(
        config: &Config,
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
            config: config.clone(),
            pool: Arc::new(pool),
            loaders: Loaders::start(&loader_cores).map_err(EngineError::Thread)?,
            kernels: Arc::new(Kernels::native()),
            window_bytes,
            slots: Arc::default(),
            unheaped_bytes: memory::process().anonymous_bytes.saturating_sub(heap::live_bytes()),
            _grants: grants,
        })
    }

    /// Takes turns until the inbox is closed.
    pub fn serve(self, shared: &Shared) {
        let mut patience = None;
        while let Some(turn) = shared.inbox.next(patience) {
            shared.busy.store(true, Ordering::Relaxed);
            patience = (!matches!(turn, Turn::Idle)).then_some(QUIET);
            match turn {
                Turn::Idle => self.rest(),
                Turn::Pass(model) => self.take_turn(shared, &model),
                Turn::Control(Control::Load(model, answer)) => answer(self.load(shared, &model)),
                Turn::Control(Control::Unload(model, answer)) => {
                    unload(shared, &model);
                    self.rest();
                    answer(Ok(()));
                }
                Turn::Control(Control::Play(model, answer)) => answer(self.play(shared, &model)),
            }
            shared.beats.fetch_add(1, Ordering::Relaxed);
            shared.busy.store(false, Ordering::Relaxed);
        }
        let (control, waiting) = shared.inbox.drain();
        control.into_iter().for_each(|control| control.refuse(EngineError::Cancelled));
        waiting.into_iter().for_each(|waiting| (waiting.answer)(Err(EngineError::Cancelled)));
        lock(&shared.models).clear();
    }

    /// Gives back what is kept for the next pass.
    fn rest(&self) {
        self.slots.keep_within(0);
        heap::trim();
    }

    /// One pass for the requests that wait for `name`, as many as fit.
    fn take_turn(&self, shared: &Shared, name: &str) {
        let model = match self.serving(shared, name) {
            Ok(model) => model,
            // The others that wait find out for themselves: it may be another cause by then.
            Err(error) => return fail_next(shared, name, error),
        };
        let mut seats = vec![];
        self.admit(shared, &model, &mut seats);
        let Some(first) = seats.first() else { return };
        let trace = first.waiting.request.trace.clone();
        let began = Instant::now();
        let flow = self.flow(shared, &model, self.pins_wanted(shared, &model), trace.clone());
        // Until the first block is there, others may join: they cost no waiting.
        if !model.blocks.is_empty() && flow.wait_for(0).is_ok() {
            self.admit(shared, &model, &mut seats);
        }
        let granted_bytes: u64 = seats.iter().map(|seat| seat.grant.bytes()).sum();
        // Freed tensors of all sizes find the next of their size in up to four times the room that
        // those in use take at once.
        let spare_bytes = (3 * granted_bytes).min(shared.ledger.free_bytes() / SPARE_SHARE);
        let spare = shared.ledger.try_grant(Category::Activations, spare_bytes).ok();
        heap::keep_within(granted_bytes + spare.as_ref().map_or(0, Grant::bytes));
        let pass = Pass {
            model,
            flow,
            kernels: Arc::clone(&self.kernels),
            stopping: shared.stopping.clone(),
            trace,
            beats: Arc::clone(&shared.beats),
        };
        self.run(shared, &pass, began, seats);
        heap::keep_within(granted_bytes);
        drop(spare);
        let heap_bytes = heap::live_bytes() + heap::kept_bytes();
        let known_bytes = heap_bytes + self.slots.bytes() + self.unheaped_bytes;
        if memory::process().anonymous_bytes > known_bytes + LOST_BYTES {
            heap::trim();
        }
    }

    /// Admits requests for `model` in their order; those that cannot be served are answered.
    fn admit(&self, shared: &Shared, model: &Arc<Model>, seats: &mut Vec<Admitted>) {
        let counters = shared.counters.of(model.name());
        let traced = |waiting: &Waiting| waiting.request.trace.is_some();
        while seats.len() < MAX_SEATS
            && !seats.first().is_some_and(|first| traced(&first.waiting))
            && let Some(waiting) = shared.inbox.pop(model.name())
        {
            // A trace is of a pass of its own.
            if traced(&waiting) && !seats.is_empty() {
                return shared.inbox.put_back(waiting);
            }
            if waiting.request.cancel.is_cancelled() {
                Counters::add(&counters.cancelled, 1);
                (waiting.answer)(Err(EngineError::Cancelled));
                continue;
            }
            match self.seat(shared, model, &waiting, seats) {
                Ok((seat, together_bytes, grant)) => {
                    seats.push(Admitted { waiting, seat, together_bytes, grant });
                }
                Err(Refusal::Later) => return shared.inbox.put_back(waiting),
                Err(Refusal::Error(error)) => {
                    Counters::add(&counters.failed, 1);
                    (waiting.answer)(Err(error));
                }
            }
        }
    }

    fn seat(
        &self,
        shared: &Shared,
        model: &Arc<Model>,
        waiting: &Waiting,
        seats: &mut [Admitted],
    ) -> Result<(Seat, u64, Grant), Refusal> {
        let request = &waiting.request;
        model.check_service().map_err(Refusal::Error)?;
        let inputs = model.arrange(&request.inputs).map_err(Refusal::Error)?;
        let outputs = model.pick_outputs(&request.outputs).map_err(Refusal::Error)?;
        let footprint = model.footprint(&inputs);
        let grant = match seats {
            [] => self.grant_alone(shared, model, footprint.alone_bytes).map_err(Refusal::Error)?,
            seats => {
                for seat in &mut *seats {
                    let together_bytes = seat.together_bytes;
                    seat.grant.resize(together_bytes).map_err(|_| Refusal::Later)?;
                }
                let grant =
                    shared.ledger.try_grant(Category::Activations, footprint.together_bytes);
                grant.map_err(|_| Refusal::Later)?
            }
        };
        let seat = Seat { inputs, outputs, cancel: request.cancel.clone() };
        Ok((seat, footprint.together_bytes, grant))
    }

    /// A grant for a pass; whatever can give way does, before it is refused.
    fn grant_alone(
        &self,
        shared: &Shared,
        model: &Arc<Model>,
        bytes: u64,
    ) -> Result<Grant, EngineError> {
        loop {
            match shared.ledger.try_grant(Category::Activations, bytes) {
                Ok(grant) => return Ok(grant),
                Err(_) if make_room(shared, model.name()) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Runs the pass that began loading at `began`, and answers everybody in it.
    fn run(&self, shared: &Shared, pass: &Pass, began: Instant, admitted: Vec<Admitted>) {
        let Pass { model, flow, .. } = pass;
        let counters = shared.counters.of(model.name());
        let mut asked = vec![];
        let mut seats = vec![];
        for Admitted { waiting, seat, grant, .. } in admitted {
            let names: Vec<String> =
                seat.outputs.iter().map(|index| model.output_name(*index).to_string()).collect();
            asked.push((waiting, names, grant));
            seats.push(seat);
        }
        let held_bytes = heap::live_bytes();
        heap::reset_peak();
        let ran = catch_unwind(AssertUnwindSafe(|| {
            self.pool.install(|| {
                let threads = Executor::MultiThread(Arc::clone(&self.pool));
                multithread_tract_scope(threads, || pass.run(seats))
            })
        }));
        let latency_us = began.elapsed().as_micros() as u64;
        let peak_bytes = heap::peak_bytes().saturating_sub(held_bytes);
        let granted_bytes: u64 = asked.iter().map(|(_, _, grant)| grant.bytes()).sum();
        log::debug!("a pass held {peak_bytes} bytes at its peak, {granted_bytes} were granted");
        let failure = flow.failure();
        model.pins.take(flow.end());
        // The level may have risen since the pass was told what to keep.
        if shared.pressure.get() > Pressure::None {
            model.pins.release();
        }
        let counted = flow.counters();
        count_pass(&counters, latency_us, asked.len(), counted);
        if let Some(failure) = failure.filter(|_| !shared.stopping.is_cancelled()) {
            model.fail(&failure);
        }
        let results: Vec<Result<Vec<Array>, EngineError>> = ran.unwrap_or_else(|panic| {
            let text = panic_text(&*panic);
            asked.iter().map(|_| Err(EngineError::Internal(text.clone()))).collect()
        });
        let seats = asked.len();
        for ((waiting, names, grant), result) in asked.into_iter().zip(results) {
            let queue_us = began.saturating_duration_since(waiting.since).as_micros() as u64;
            Counters::add(&counters.queue_us, queue_us);
            let stats = PassStats {
                queue_us,
                seats,
                latency_us,
                stall_us: counted.stall_us,
                bytes_read: counted.bytes_read,
                activation_bytes: grant.bytes(),
            };
            drop(grant);
            let counter = match &result {
                Ok(_) => &counters.answered,
                Err(EngineError::Cancelled) => &counters.cancelled,
                Err(_) => &counters.failed,
            };
            Counters::add(counter, 1);
            let outputs = result.map(|arrays| names.into_iter().zip(arrays).collect());
            (waiting.answer)(outputs.map(|outputs| Reply { outputs, stats }));
        }
    }

    /// Index below which the coming pass keeps its blocks.
    fn pins_wanted(&self, shared: &Shared, model: &Model) -> usize {
        if shared.pressure.get() > Pressure::None {
            return 0;
        }
        let reserve = shared.ledger.budget_bytes() / UNPINNED_SHARE;
        let spare = shared.ledger.free_bytes().saturating_sub(reserve);
        let wanted = self.config.pin_bytes.saturating_sub(model.pinned_bytes());
        let keep = model.pins.plan(spare.min(wanted));
        if model.pins.coming_bytes() > 0 {
            // What passes have left in the heap is free by the ledger, and about to be used.
            heap::trim();
        }
        keep
    }

    fn flow(
        &self,
        shared: &Shared,
        model: &Model,
        keep: usize,
        trace: Option<Arc<Trace>>,
    ) -> Arc<Flow> {
        let smallest = SMALLEST_WINDOW_BLOCKS * model.largest_block_bytes();
        let window_bytes = match shared.pressure.get() >= Pressure::Window {
            true => smallest.min(self.window_bytes),
            false => self.window_bytes,
        };
        self.slots.keep_within(window_bytes);
        let pins = model.pins.blocks();
        let beats = Arc::clone(&shared.beats);
        let course = Course { window_bytes, pins: &pins, keep, trace, beats };
        let flow = Flow::new(Arc::clone(&model.source), Arc::clone(&model.blocks), course);
        self.loaders.serve(&flow);
        flow
    }

    fn play(&self, shared: &Shared, model: &str) -> Result<PassStats, EngineError> {
        let model = self.serving(shared, model)?;
        let began = Instant::now();
        let flow = self.flow(shared, &model, 0, None);
        let played = (0..model.blocks.len()).try_for_each(|block| flow.lease(block).map(drop));
        let latency_us = began.elapsed().as_micros() as u64;
        flow.end();
        let FlowCounters { stall_us, bytes_read, .. } = flow.counters();
        played?;
        Ok(PassStats { latency_us, stall_us, bytes_read, ..PassStats::default() })
    }

    /// The model as it is to be served now: another version is loaded where the store says so.
    fn serving(&self, shared: &Shared, name: &str) -> Result<Arc<Model>, EngineError> {
        if let Some(model) = shared.loaded(name) {
            if shared.store.serving(name).ok().as_ref() == Some(&model.serving) {
                return model.check_service().map(|()| model);
            }
            log::info!("model {name} has another version now");
        }
        self.load(shared, name)
    }

    fn load(&self, shared: &Shared, name: &str) -> Result<Arc<Model>, EngineError> {
        let began = Instant::now();
        // Loading may use the window's bytes.
        self.rest();
        let loaded = loop {
            let dir = shared.find(name).inspect_err(|_| {
                unload(shared, name);
            })?;
            match self.try_load(shared, dir) {
                // Its own pins and graph are the last to go: it answers until then.
                Err(EngineError::OverBudget(_))
                    if make_room(shared, name) || unload(shared, name) => {}
                loaded => break Arc::new(loaded?),
            }
        };
        lock(&shared.models).insert(name.to_string(), Arc::clone(&loaded));
        let counters = shared.counters.of(name);
        Counters::add(&counters.loads, 1);
        Counters::add(&counters.load_us, began.elapsed().as_micros() as u64);
        Ok(loaded)
    }

    fn try_load(&self, shared: &Shared, dir: ModelDir) -> Result<Model, EngineError> {
        let Config { variant, source, .. } = &self.config;
        let (variant, idle) = (variant.as_deref(), self.window_bytes);
        let serving = shared.store.serving(&dir.manifest.model)?;
        let loading =
            || Model::load(dir, serving, variant, *source, &self.slots, idle, &shared.ledger);
        let loaded = catch_unwind(AssertUnwindSafe(loading))
            .unwrap_or_else(|panic| Err(EngineError::Internal(panic_text(&*panic))))?;
        code::release();
        let block_bytes = loaded.largest_block_bytes();
        if block_bytes > self.window_bytes {
            return Err(EngineError::WindowTooSmall {
                model: loaded.name().to_string(),
                window_bytes: self.window_bytes,
                block_bytes,
            });
        }
        log::info!(
            "model {} version {} ({}) is ready: {} MiB of tape, {} KiB resident",
            loaded.name(),
            loaded.dir.manifest.version,
            loaded.variant,
            loaded.tape_bytes() >> 20,
            loaded.graph_bytes() >> 10
        );
        Ok(loaded)
    }
}

/// Frees memory that another use needs more: pins first, those of other models before those of
/// `name`, then the other models. False where there is nothing left to give.
fn make_room(shared: &Shared, name: &str) -> bool {
    let mut models = lock(&shared.models);
    let (own, others): (Vec<_>, Vec<_>) = models.values().partition(|model| model.name() == name);
    if others.iter().map(|model| model.pins.release()).fold(false, |any, had| any | had) {
        return true;
    }
    if own.iter().any(|model| model.pins.release()) {
        return true;
    }
    if others.is_empty() {
        return false;
    }
    models.retain(|model, _| model == name);
    drop(models);
    heap::trim();
    true
}

/// Unloads a model; whether it was loaded.
fn unload(shared: &Shared, name: &str) -> bool {
    let was_loaded = lock(&shared.models).remove(name).is_some();
    heap::trim();
    if was_loaded {
        log::info!("model {name} is unloaded");
    }
    was_loaded
}

fn fail_next(shared: &Shared, name: &str, error: EngineError) {
    let Some(waiting) = shared.inbox.pop(name) else { return };
    if let Some(counters) = shared.counters.known(name) {
        Counters::add(&counters.failed, 1);
    }
    (waiting.answer)(Err(error));
}

fn count_pass(counters: &Counters, latency_us: u64, seats: usize, flow: FlowCounters) {
    Counters::add(&counters.passes, 1);
    Counters::add(&counters.seats, seats as u64);
    Counters::add(&counters.pass_us, latency_us);
    Counters::add(&counters.stall_us, flow.stall_us);
    Counters::add(&counters.bytes_read, flow.bytes_read);
    Counters::add(&counters.blocks_released, flow.released);
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_string());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_default()
}
