//! The engine's thread: takes turns, admits requests to passes, loads and unloads models.

use super::command::Command;
use super::config::{Config, Policy};
use super::crew::Crew;
use super::error::EngineError;
use super::inbox::Inbox;
use super::model::{Model, Playing, Terms, longest_open};
use super::pass::{Pass, Seat};
use super::pins::UNPINNED_SHARE;
use super::planning::Measuring;
use super::pressure::Pressure;
use super::rehearsal::rehearsed;
use super::request::{Answer, Cancel, PassStats, Reply, Waiting};
use super::room::Wait;
use super::service::{REQUEST_BYTES, Shared, window_for};
use super::stats::Counters;
use super::turns::{Left, Turn};
use crate::graph::{Array, Kernels};
use crate::plan::{Board, Plan, Release};
use crate::store::ModelDir;
use crate::store::manifest::HEAP_BYTES_PER_BYTE;
use crate::stream::{
    Category, Course, Flow, FlowCounters, Grant, Keep, Loaded, OverBudget, OwnedFlow, Slots, Trace,
};
use crate::sys::lock::lock;
use crate::sys::memory::{self, MachineMemory};
use crate::sys::{affinity, code, heap, panics};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use tract_linalg::multithread::set_threading_panel_threshold;

/// Panels below which tract computes a product on one thread; blocks are smaller than the
/// whole matrices its default is meant for.
const PANEL_THRESHOLD: usize = 16;

/// Most requests that share a pass: more gain little, and delay the first of them.
const MAX_SEATS: usize = 32;

/// Bytes of free memory that the C library's heap may lose between what is used, from one pass to
/// the next: giving them back takes a millisecond, and taking them anew another.
const LOST_BYTES: u64 = 4 << 20;

/// Steps of what the process's share is settled to.
const SETTLED_BYTES: u64 = 256 << 10;

/// Longest wait of the engine's thread for what requests and tokenizers will give back: nobody is
/// served meanwhile.
const PATIENCE: Duration = Duration::from_millis(500);

/// Share of what is free that a pass may take to keep freed tensors in; the rest is for whoever
/// comes meanwhile.
const SPARE_SHARE: u64 = 4;

/// What the engine's thread works with.
pub(super) struct Worker {
    pub(super) config: Config,
    pub(super) crew: Crew,
    pub(super) kernels: Arc<Kernels>,
    pub(super) cores: Vec<usize>,
    /// What suits the budget, where nothing else is planned.
    pub(super) window_bytes: u64,
    /// The bytes of the window.
    window: Grant,
    /// Where blocks that are read go, within the window.
    slots: Arc<Slots>,
    /// Anonymous memory beside the heap: stacks, the programs' own data.
    unheaped_bytes: u64,
    /// Measuring under way.
    pub(super) measuring: Option<Measuring>,
    /// The board, once it was looked at.
    pub(super) board: Option<Board>,
    /// What the process holds, what the heap has lost since among it.
    process: Grant,
    /// The same at the start.
    process_bytes: u64,
}

/// A request that was admitted to a pass.
struct Admitted {
    waiting: Waiting,
    /// One for each row of its batch.
    seats: Vec<Seat>,
    /// Bytes they hold once they share the pass.
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
    pub fn start(config: Config, process: Grant, window: Grant) -> Result<Worker, EngineError> {
        let cores = affinity::allowed_cores();
        let window_bytes = window.bytes();
        let crew = Crew::start(&config.base_plan(cores.len(), window_bytes), &cores)?;
        set_threading_panel_threshold(PANEL_THRESHOLD);
        Ok(Worker {
            config,
            crew,
            cores,
            kernels: Arc::new(Kernels::native()),
            window_bytes,
            window,
            slots: Arc::default(),
            unheaped_bytes: memory::process().anonymous_bytes.saturating_sub(heap::live_bytes()),
            measuring: None,
            board: None,
            process_bytes: process.bytes(),
            process,
        })
    }

    /// Takes turns until the inbox is closed. A panic in one of them ends that turn alone.
    pub fn serve(mut self, shared: &Shared) {
        let last_words = LastWords(&shared.inbox);
        while let Some(turn) = shared.inbox.next() {
            shared.busy.store(true, Ordering::Relaxed);
            // Who waits for an answer that does not come is told when that is dropped.
            let tried = self.guarded("a turn", |worker| Ok(worker.take(shared, turn)));
            shared.inbox.done(match &self.measuring {
                Some(Measuring { asked: Some(_), .. }) => Left::Trials,
                _ if tried.is_ok_and(|tried| tried) => Left::Leisure,
                _ => Left::Nothing,
            });
            shared.beat();
            shared.busy.store(false, Ordering::Relaxed);
        }
        if let Some(Measuring { asked: Some(answer), .. }) = self.measuring.take() {
            answer.give(Err(EngineError::Cancelled));
        }
        shared.inbox.refuse_all();
        lock(&shared.models).clear();
        drop(last_words);
    }

    /// Takes a turn; whether that was a trial that nobody waits for.
    fn take(&mut self, shared: &Shared, turn: Turn) -> bool {
        match turn {
            Turn::Idle => return self.use_leisure(shared),
            Turn::Trial => self.go_on_measuring(shared),
            Turn::Pass(model) => self.take_turn(shared, &model),
            Turn::Command(Command::Load(model, answer)) => {
                let others = shared.inbox.take_loads(&model);
                let loaded = self.guarded("loading", |worker| worker.load(shared, &model));
                Answer::give_all(answer, others, loaded);
            }
            Turn::Command(Command::Ready(model, answer)) => {
                answer.give(self.guarded("loading", |worker| worker.serving(shared, &model)));
            }
            Turn::Command(Command::Unload(model, answer)) => {
                unload(shared, &model);
                self.rest(shared);
                answer.give(Ok(()));
            }
            Turn::Command(Command::Play(model, answer)) => {
                answer.give(self.guarded("playing a tape", |worker| worker.play(shared, &model)));
            }
            Turn::Command(Command::Profile(model, answer)) => {
                self.begin_measuring(shared, &model, answer);
            }
            Turn::Command(Command::Replan) => self.replan(shared),
            Turn::Command(Command::Recall(model, answer)) => {
                answer.give(self.guarded("a plan", |worker| worker.known(shared, &model)));
            }
        }
        false
    }

    /// Does a piece of work of which nothing is left where it panics: what it held goes by being
    /// dropped, and the panic is its error.
    pub(super) fn guarded<T>(
        &mut self,
        what: &str,
        work: impl FnOnce(&mut Worker) -> Result<T, EngineError>,
    ) -> Result<T, EngineError> {
        panics::caught(|| work(self)).unwrap_or_else(|text| {
            log::error!("{what} failed within: {text}");
            Err(EngineError::Internal(text))
        })
    }

    /// Follows a budget that has changed: the window takes what suits it, and models are planned
    /// anew.
    fn replan(&mut self, shared: &Shared) {
        // What was tried was for another budget.
        if let Some(measuring) = &mut self.measuring {
            measuring.profiler = None;
        }
        self.rest(shared);
        // Shrinking is always granted.
        let _ = self.window.resize(0);
        self.window_bytes = self.config.window_bytes.unwrap_or_else(|| window_for(&shared.ledger));
        // Where requests hold what is missing, the next pass asks for it again.
        let _ = self.window.resize(self.window_bytes.min(shared.ledger.free_bytes()));
        shared.window_bytes.store(self.window.bytes(), Ordering::Relaxed);
        if self.config.policy != Policy::Tape {
            return;
        }
        let models: Vec<Arc<Model>> = lock(&shared.models).values().cloned().collect();
        for model in models {
            match model.profile() {
                Some(profile) => {
                    let planned = self.guarded("planning", |worker| {
                        worker.plan_tape(shared, &model, &profile);
                        Ok(())
                    });
                    if planned.is_err() {
                        model.drop_profile();
                    }
                }
                None => {
                    let plan = model.playing().plan.clone();
                    model.play_by(Plan { window_bytes: self.window_bytes, ..plan });
                }
            }
        }
    }

    /// Gives back what is kept for the next pass.
    pub(super) fn rest(&mut self, shared: &Shared) {
        self.slots.keep_within(0);
        heap::trim();
        code::release();
        self.settle(shared);
    }

    /// One pass for the requests that wait for `name`, as many as fit.
    pub(super) fn take_turn(&mut self, shared: &Shared, name: &str) {
        let model = match self.guarded("loading", |worker| worker.serving(shared, name)) {
            Ok(model) => model,
            // The others that wait find out for themselves: it may be another cause by then.
            Err(EngineError::OverBudget(refused)) => return fail_unloaded(shared, name, refused),
            Err(error) => return fail_next(shared, name, error),
        };
        let mut seats = vec![];
        self.admit(shared, &model, &mut seats);
        let Some(first) = seats.first() else { return };
        let trace = first.waiting.request.trace.clone();
        let began = Instant::now();
        let flow = match self.flow(shared, &model, trace.clone()) {
            Ok(flow) => flow,
            Err(error) => {
                // In their order, the first in front: it is told, the others find out themselves.
                seats.into_iter().rev().for_each(|seat| shared.inbox.put_back(seat.waiting));
                return fail_next(shared, name, error);
            }
        };
        // Until the first block is there, others may join: they cost no waiting.
        if !model.blocks.is_empty() && flow.wait_for(0).is_ok() {
            self.admit(shared, &model, &mut seats);
        }
        let granted_bytes: u64 = seats.iter().map(|seat| seat.grant.bytes()).sum();
        let spare = keep_freed(shared, granted_bytes);
        let pass = Pass {
            model,
            flow,
            kernels: Arc::clone(&self.kernels),
            ledger: Arc::clone(&shared.ledger),
            stopping: shared.stopping.clone(),
            trace,
            beats: Arc::clone(&shared.beats),
        };
        self.run(shared, &pass, began, seats);
        heap::keep_within(granted_bytes);
        drop(spare);
        if self.lost_bytes(shared) > LOST_BYTES {
            heap::trim();
            self.settle(shared);
        }
    }

    /// Anonymous memory that nobody knows of: holes in the heap, beside those of loaded graphs.
    fn lost_bytes(&self, shared: &Shared) -> u64 {
        let graphs_bytes: u64 = lock(&shared.models).values().map(|model| model.holes_bytes).sum();
        let heap_bytes = heap::live_bytes() + heap::kept_bytes();
        let known = [heap_bytes, self.slots.bytes(), self.unheaped_bytes, graphs_bytes];
        memory::process().anonymous_bytes.saturating_sub(known.iter().sum())
    }

    /// Holds the process's share of the ledger against what the kernel says: what is resident and
    /// held for nothing else counts as the process's, and what a pass adds to it; what nobody uses
    /// gives way.
    fn settle(&mut self, shared: &Shared) {
        // Where the program does not count, what is resident may be anybody's.
        if heap::live_bytes() == 0 {
            return;
        }
        // Pins are in slots.
        let held = [Category::Graph, Category::Tokenizer, Category::Request];
        let held_bytes: u64 = held.map(|category| shared.ledger.held_bytes(category)).iter().sum();
        let known_bytes = held_bytes + self.slots.bytes() + heap::kept_bytes();
        let lost_bytes = memory::process().resident_bytes.saturating_sub(known_bytes);
        let lost_bytes = lost_bytes.next_multiple_of(SETTLED_BYTES);
        let wanted = self.process_bytes.max(lost_bytes + LOST_BYTES);
        while self.process.resize(wanted).is_err() {
            if !shared.spare_room("") {
                log::debug!("{lost_bytes} bytes are held for nothing else, {wanted} have no room");
                let there = self.process.bytes() + shared.ledger.free_bytes();
                let _ = self.process.resize(there.min(wanted));
                return;
            }
        }
    }

    /// Admits requests for `model` in their order; those that cannot be served are answered.
    fn admit(&mut self, shared: &Shared, model: &Arc<Model>, seats: &mut Vec<Admitted>) {
        let counters = shared.counters.of(model.name());
        let traced = |waiting: &Waiting| waiting.request.trace.is_some();
        while count(seats) < MAX_SEATS
            && !seats.first().is_some_and(|first| traced(&first.waiting))
            && let Some(waiting) = shared.inbox.pop(model.name())
        {
            // A trace is of a pass of its own.
            if traced(&waiting) && !seats.is_empty() {
                return shared.inbox.put_back(waiting);
            }
            if waiting.request.cancel.is_cancelled() {
                Counters::add(&counters.cancelled, 1);
                waiting.answer.give(Err(EngineError::Cancelled));
                continue;
            }
            match self.seat(shared, model, &waiting, seats) {
                Ok((taken, together_bytes, grant)) => {
                    seats.push(Admitted { waiting, seats: taken, together_bytes, grant });
                }
                Err(Refusal::Later) => return shared.inbox.put_back(waiting),
                Err(Refusal::Error(error)) => {
                    Counters::add(&counters.failed, 1);
                    waiting.answer.give(Err(error));
                }
            }
        }
    }

    fn seat(
        &mut self,
        shared: &Shared,
        model: &Arc<Model>,
        waiting: &Waiting,
        seats: &mut [Admitted],
    ) -> Result<(Vec<Seat>, u64, Grant), Refusal> {
        let request = &waiting.request;
        model.check_service().map_err(Refusal::Error)?;
        let given = model.check_inputs(&request.inputs).map_err(Refusal::Error)?;
        if !seats.is_empty() && count(seats) + given.rows > MAX_SEATS {
            return Err(Refusal::Later);
        }
        let outputs = model.pick_outputs(&request.outputs).map_err(Refusal::Error)?;
        let footprint = model.footprint(&given.row_shapes());
        let shared_bytes = if seats.is_empty() { model.decoding_bytes() } else { 0 };
        let together_bytes =
            footprint.together_bytes.saturating_mul(given.rows as u64).saturating_add(shared_bytes);
        let grant = match seats {
            [] => {
                let inputs_bytes: u64 =
                    request.inputs.iter().map(|(_, a)| a.bytes.len() as u64).sum();
                let own_bytes = model.graph_bytes() + inputs_bytes + REQUEST_BYTES;
                let bytes = if given.rows > 1 { together_bytes } else { footprint.alone_bytes };
                self.grant_alone(shared, model, bytes, own_bytes, &request.cancel)
                    .map_err(Refusal::Error)?
            }
            seats => {
                for seat in &mut *seats {
                    let together_bytes = seat.together_bytes;
                    seat.grant.resize(together_bytes).map_err(|_| Refusal::Later)?;
                }
                let grant = shared.ledger.try_grant(Category::Activations, together_bytes);
                grant.map_err(|_| Refusal::Later)?
            }
        };
        let rows = given.arrange().map_err(Refusal::Error)?;
        let seat =
            |inputs| Seat { inputs, outputs: outputs.clone(), cancel: request.cancel.clone() };
        Ok((rows.into_iter().map(seat).collect(), together_bytes, grant))
    }

    /// A grant for the first request of a pass, which holds `own_bytes` with its model; whatever
    /// can give way does before it is refused: what nobody uses, the window but for its smallest,
    /// what is missed soonest. Then others have a moment to give back what they hold.
    fn grant_alone(
        &mut self,
        shared: &Shared,
        model: &Arc<Model>,
        bytes: u64,
        own_bytes: u64,
        cancel: &Cancel,
    ) -> Result<Grant, EngineError> {
        let mut wait = Wait::new(PATIENCE);
        let smallest_bytes = model.playing().largest_unit_bytes;
        loop {
            let returns = shared.ledger.returns();
            let window_bytes = self.window.bytes();
            let refused = match shared.ledger.try_grant(Category::Activations, bytes) {
                Ok(grant) => return Ok(grant),
                Err(refused) => {
                    let beside = refused.beside(own_bytes);
                    beside.without(window_bytes.saturating_sub(smallest_bytes))
                }
            };
            // What never fits costs nobody anything.
            if !refused.can_fit() {
                return Err(refused.into());
            }
            if shared.spare_room(model.name()) {
                continue;
            }
            if window_bytes > smallest_bytes {
                self.slots.keep_within(0);
                // Shrinking is always granted.
                let _ = self.window.resize(smallest_bytes);
            } else if !shared.make_room(model.name())
                && !wait.goes_on(shared, &refused, returns, cancel)
            {
                return Err(refused.into());
            }
        }
    }

    /// Runs the pass that began loading at `began`, and answers everybody in it.
    fn run(&self, shared: &Shared, pass: &Pass, began: Instant, admitted: Vec<Admitted>) {
        let Pass { model, flow, .. } = pass;
        let counters = shared.counters.of(model.name());
        let mut asked = vec![];
        let mut seats = vec![];
        // Of one that has the pass to itself.
        let tokens = match &admitted[..] {
            [Admitted { seats, .. }] if seats.len() == 1 => model.tokens_of(&seats[0].inputs),
            _ => None,
        };
        for Admitted { waiting, seats: taken, grant, .. } in admitted {
            asked.push((waiting, taken[0].outputs.clone(), taken.len(), grant));
            seats.extend(taken);
        }
        let rows = seats.len();
        let held_bytes = heap::live_bytes();
        heap::reset_peak();
        let ran = panics::caught(|| self.crew.compute(|| pass.run(seats)));
        let latency_us = began.elapsed().as_micros() as u64;
        let peak_bytes = heap::peak_bytes().saturating_sub(held_bytes);
        let granted_bytes: u64 = asked.iter().map(|(_, _, _, grant)| grant.bytes()).sum();
        log::debug!("a pass held {peak_bytes} bytes at its peak, {granted_bytes} were granted");
        let failure = flow.failure();
        model.pins.take(flow.end());
        // The level may have risen, or the budget fallen, since the pass was told what to keep.
        if shared.pressure.get() > Pressure::None || shared.ledger.is_exceeded() {
            model.pins.release();
        }
        let counted = flow.counters();
        count_pass(&counters, latency_us, asked.len(), counted);
        if let Some(failure) = failure.filter(|_| !shared.stopping.is_cancelled()) {
            model.fail(&failure);
        }
        let results: Vec<Result<Vec<Array>, EngineError>> = ran.unwrap_or_else(|text| {
            log::error!("a pass of model {} failed within: {text}", model.name());
            (0..rows).map(|_| Err(EngineError::Internal(text.clone()))).collect()
        });
        let lacks_room = |result: &Result<_, _>| match result {
            Err(EngineError::Decided { refused, .. }) => refused.can_fit(),
            _ => false,
        };
        // Whoever comes again may find it.
        if results.iter().any(lacks_room) {
            shared.make_room(model.name());
        }
        let seats = asked.len();
        let judged = tokens.filter(|_| matches!(&results[..], [Ok(_)]));
        let mut results = results.into_iter();
        for (waiting, outputs, rows, mut grant) in asked {
            let rows: Vec<_> = results.by_ref().take(rows).collect();
            let result = rows
                .into_iter()
                .collect::<Result<Vec<_>, _>>()
                .and_then(|rows| model.join_rows(rows, &outputs));
            let queue_us = began.saturating_duration_since(waiting.since).as_micros() as u64;
            Counters::add(&counters.queue_us, queue_us);
            let stats = PassStats {
                queue_us,
                seats,
                latency_us,
                stall_us: counted.stall_us,
                bytes_read: counted.bytes_read,
                window_peak_bytes: counted.window_peak_bytes,
                loader_cpu_us: counted.loader_cpu_us,
                activation_bytes: grant.bytes(),
            };
            // What was granted with the seat holds the outputs until they are taken; those whose
            // sizes values decided may be more.
            let result = result.and_then(|arrays| {
                grant.resize(arrays.iter().map(|array| array.bytes.len() as u64).sum())?;
                Ok(arrays)
            });
            if result.is_err() {
                let _ = grant.resize(0);
            }
            grant.turn_into(Category::Request);
            let counter = match &result {
                Ok(_) => &counters.answered,
                Err(EngineError::Cancelled) => &counters.cancelled,
                Err(_) => &counters.failed,
            };
            Counters::add(counter, 1);
            let names = outputs.iter().map(|output| model.output_name(*output).to_string());
            let outputs = result.map(|arrays| names.zip(arrays).collect());
            let held = Arc::new(grant);
            let version = model.dir.manifest.version.clone();
            waiting.answer.give(outputs.map(|outputs| Reply { version, outputs, stats, held }));
        }
        let judge = |tokens| self.judge(shared, model, tokens, latency_us, counted);
        if let Err(text) = panics::caught(|| judged.map(judge)) {
            log::error!("the profile of model {} does harm: {text}", model.name());
            model.drop_profile();
        }
    }

    /// Which blocks the coming pass keeps.
    fn pins_wanted(&self, shared: &Shared, model: &Model, plan: &Plan) -> Keep {
        if shared.pressure.get() > Pressure::None {
            return Keep::default();
        }
        let reserve = shared.ledger.budget_bytes() / UNPINNED_SHARE;
        let spare = shared.ledger.free_bytes().saturating_sub(reserve);
        let wanted = plan.pin_bytes.saturating_sub(model.pinned_bytes());
        // What others came to need since the budget was set is not ours.
        let room = memory::machine().map_or(u64::MAX, MachineMemory::spare_bytes);
        let keep = model.pins.plan(spare.min(wanted).min(room), plan.pins);
        if model.pins.coming_bytes() > 0 {
            // What passes have left in the heap is free by the ledger, and about to be used.
            heap::trim();
        }
        keep
    }

    /// Begins to load for a pass, as the model's plan has it.
    fn flow(
        &mut self,
        shared: &Shared,
        model: &Model,
        trace: Option<Arc<Trace>>,
    ) -> Result<OwnedFlow, EngineError> {
        let playing = model.playing();
        let keep = match playing.plan.release {
            Release::AfterUse => self.pins_wanted(shared, model, &playing.plan),
            Release::AtEnd => Keep::default(),
        };
        self.begin(shared, model, &playing, &model.pins.blocks(), keep, trace)
    }

    /// Begins to load as `playing` has it; `pins` are there already.
    pub(super) fn begin(
        &mut self,
        shared: &Shared,
        model: &Model,
        playing: &Playing,
        pins: &[Option<Arc<Loaded>>],
        keep: Keep,
        trace: Option<Arc<Trace>>,
    ) -> Result<OwnedFlow, EngineError> {
        let plan = &playing.plan;
        let wanted = match shared.pressure.get() >= Pressure::Window {
            true => playing.smallest_window_bytes(),
            false => plan.window_bytes,
        };
        let window_bytes = self.open_window(shared, model, wanted, playing.largest_unit_bytes)?;
        self.gather_crew(plan)?;
        self.slots.keep_within(window_bytes);
        let course = Course {
            window_bytes,
            units: &playing.units,
            turns: plan.turns,
            release: plan.release,
            repeats: 0,
            pins,
            keep,
            trace,
            beats: Arc::clone(&shared.beats),
        };
        let flow = Flow::new(Arc::clone(&playing.source), Arc::clone(&model.blocks), course);
        Ok(self.crew.load(flow))
    }

    /// Has the window's bytes granted: as many as are wanted, or as there are once all has given
    /// way that can, but no fewer than the largest unit.
    fn open_window(
        &mut self,
        shared: &Shared,
        model: &Model,
        wanted_bytes: u64,
        largest_unit_bytes: u64,
    ) -> Result<u64, EngineError> {
        let too_small = |window_bytes| EngineError::WindowTooSmall {
            model: model.name().to_string(),
            window_bytes,
            block_bytes: largest_unit_bytes,
        };
        if wanted_bytes < largest_unit_bytes {
            return Err(too_small(wanted_bytes));
        }
        while self.window.resize(wanted_bytes).is_err() {
            if shared.spare_room(model.name()) {
                continue;
            }
            let there = self.window.bytes() + shared.ledger.free_bytes();
            if there < largest_unit_bytes {
                if shared.make_room(model.name()) {
                    continue;
                }
                return Err(too_small(there));
            }
            // Others may take some of it meanwhile: then it is tried again.
            if self.window.resize(there.min(wanted_bytes)).is_ok() {
                break;
            }
        }
        let window_bytes = self.window.bytes();
        shared.window_bytes.store(window_bytes, Ordering::Relaxed);
        Ok(window_bytes)
    }

    /// Bytes of the window.
    pub(super) fn granted_window_bytes(&self) -> u64 {
        self.window.bytes()
    }

    /// Lets so many bytes be held by reading beside a pass: the window's, and what is missing there.
    pub(super) fn hold_for_reading(
        &mut self,
        shared: &Shared,
        bytes: u64,
    ) -> Result<Grant, EngineError> {
        let more = bytes.saturating_sub(self.window.bytes());
        let grant = shared.ledger.try_grant(Category::Window, more)?;
        // Those that are read meanwhile find theirs again.
        self.slots.keep_within(self.window.bytes() + more);
        Ok(grant)
    }

    /// Sets up the threads as the plan wants them, on the cores that there are now.
    fn gather_crew(&mut self, plan: &Plan) -> Result<(), EngineError> {
        let cores = affinity::allowed_cores();
        if cores != self.cores {
            log::warn!(
                "cores {:?} were ours, now {cores:?} are: threads are pinned anew",
                self.cores
            );
            self.cores = cores;
        }
        if !self.crew.suits(plan, &self.cores) {
            self.crew.dismiss();
            self.crew = Crew::start(plan, &self.cores)?;
        }
        Ok(())
    }

    fn play(&mut self, shared: &Shared, model: &str) -> Result<PassStats, EngineError> {
        let model = self.serving(shared, model)?;
        let pins = model.pins.blocks();
        let began = Instant::now();
        let flow = self.begin(shared, &model, &model.playing(), &pins, Keep::default(), None)?;
        let played = (0..model.blocks.len()).try_for_each(|block| flow.lease(block).map(drop));
        let latency_us = began.elapsed().as_micros() as u64;
        flow.end();
        let counted = flow.counters();
        played?;
        Ok(PassStats {
            latency_us,
            stall_us: counted.stall_us,
            bytes_read: counted.bytes_read,
            window_peak_bytes: counted.window_peak_bytes,
            loader_cpu_us: counted.loader_cpu_us,
            ..PassStats::default()
        })
    }

    /// The model as it is to be served now: another version is loaded where the store says so.
    pub(super) fn serving(
        &mut self,
        shared: &Shared,
        name: &str,
    ) -> Result<Arc<Model>, EngineError> {
        if let Some(model) = shared.loaded(name) {
            if shared.store.serving(name).ok().as_ref() == Some(&model.serving) {
                model.note_use(shared.keepers.now());
                return model.check_service().map(|()| model);
            }
            log::info!("model {name} has another version now");
        }
        self.load(shared, name)
    }

    fn load(&mut self, shared: &Shared, name: &str) -> Result<Arc<Model>, EngineError> {
        let began = Instant::now();
        // Loading may use the window's bytes.
        self.rest(shared);
        let mut wait = Wait::new(PATIENCE);
        let loaded = loop {
            let returns = shared.ledger.returns();
            let (found, took) = heap::metered(|| self.find(shared, name));
            match found.and_then(|dir| self.try_load(shared, dir, took.held_bytes)) {
                // Its own pins and graph are the last to go: it answers until then.
                Err(EngineError::OverBudget(refused))
                    if refused.can_fit()
                        && (shared.make_room(name)
                            || unload(shared, name)
                            || wait.goes_on(shared, &refused, returns, &Cancel::new())) => {}
                loaded => break Arc::new(loaded?),
            }
        };
        loaded.note_use(shared.keepers.now());
        self.recall(shared, &loaded);
        lock(&shared.models).insert(name.to_string(), Arc::clone(&loaded));
        let counters = shared.counters.of(name);
        Counters::add(&counters.loads, 1);
        Counters::add(&counters.load_us, began.elapsed().as_micros() as u64);
        Ok(loaded)
    }

    /// The served version of a model, whose manifest is granted before it is read: the window's
    /// bytes may be used for it.
    fn find(&self, shared: &Shared, name: &str) -> Result<ModelDir, EngineError> {
        let manifest_bytes = shared.store.manifest_bytes(name).unwrap_or(0);
        let parsing_bytes = manifest_bytes.saturating_mul(HEAP_BYTES_PER_BYTE);
        let more_bytes = parsing_bytes.saturating_sub(self.window.bytes());
        let _held = shared.ledger.try_grant(Category::Graph, more_bytes)?;
        shared.find(name).inspect_err(|_| {
            unload(shared, name);
        })
    }

    fn try_load(
        &self,
        shared: &Shared,
        dir: ModelDir,
        manifest_bytes: u64,
    ) -> Result<Model, EngineError> {
        let Config { variant, disk, policy, .. } = &self.config;
        let serving = shared.store.serving(&dir.manifest.model)?;
        let rehearsed_bytes = rehearsed(shared, &dir, self.window.bytes())?;
        let terms = Terms {
            variant: variant.as_deref(),
            disk: *disk,
            policy,
            base: self.config.base_plan(self.cores.len(), self.window_bytes),
            slots: &self.slots,
            idle_bytes: self.window.bytes(),
            rehearsed_bytes,
            manifest_bytes,
            ledger: &shared.ledger,
        };
        let loaded =
            panics::caught(|| Model::load(dir, serving, &terms)).unwrap_or_else(|text| {
                log::error!("loading failed within: {text}");
                Err(EngineError::Internal(text))
            })?;
        code::release();
        let playing = loaded.playing();
        let (window_bytes, block_bytes) = (playing.plan.window_bytes, playing.largest_unit_bytes);
        if block_bytes > window_bytes {
            return Err(EngineError::WindowTooSmall {
                model: loaded.name().to_string(),
                window_bytes,
                block_bytes,
            });
        }
        log::info!(
            "model {} version {} ({}) is ready: {} MiB of tape ({}), {} KiB resident",
            loaded.name(),
            loaded.dir.manifest.version,
            loaded.variant,
            loaded.tape_bytes() >> 20,
            playing.source.name(),
            loaded.graph_bytes() >> 10
        );
        Ok(loaded)
    }
}

/// Lets the heap keep the freed tensors of a pass that was granted so much, and three times as much
/// of what is free: those of all sizes find the next of their size in up to four times the room
/// that those in use take at once.
pub(super) fn keep_freed(shared: &Shared, granted_bytes: u64) -> Option<Grant> {
    let spare_bytes = (3 * granted_bytes).min(shared.ledger.free_bytes() / SPARE_SHARE);
    let spare = shared.ledger.try_grant(Category::Activations, spare_bytes).ok();
    heap::keep_within(granted_bytes + spare.as_ref().map_or(0, Grant::bytes));
    spare
}

/// Seats of the requests in a pass.
fn count(admitted: &[Admitted]) -> usize {
    admitted.iter().map(|admitted| admitted.seats.len()).sum()
}

/// Unloads a model; whether it was loaded.
fn unload(shared: &Shared, name: &str) -> bool {
    let was_loaded = lock(&shared.models).remove(name).is_some();
    shared.keepers.forget(name);
    shared.catalogue.forget(name);
    heap::trim();
    if was_loaded {
        log::info!("model {name} is unloaded");
    }
    was_loaded
}

/// As [`fail_next`], where a model could not be loaded: the budget that is named is one in which the
/// request is answered, too.
fn fail_unloaded(shared: &Shared, name: &str, refused: OverBudget) {
    let Some(waiting) = shared.inbox.pop(name) else { return };
    let inputs = &waiting.request.inputs;
    let least_bytes = shared.least_budget_bytes(name, |demand| {
        let inputs_bytes = inputs.iter().map(|(_, array)| array.bytes.len() as u64).sum();
        (inputs_bytes, longest_open(&demand.inputs, inputs))
    });
    shared.inbox.put_back(waiting);
    fail_next(shared, name, refused.at_least(least_bytes).into());
}

fn fail_next(shared: &Shared, name: &str, error: EngineError) {
    let Some(waiting) = shared.inbox.pop(name) else { return };
    if let Some(counters) = shared.counters.known(name) {
        Counters::add(&counters.failed, 1);
    }
    waiting.answer.give(Err(error));
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

fn count_pass(counters: &Counters, latency_us: u64, seats: usize, flow: FlowCounters) {
    Counters::add(&counters.passes, 1);
    Counters::add(&counters.seats, seats as u64);
    Counters::add(&counters.pass_us, latency_us);
    Counters::add(&counters.stall_us, flow.stall_us);
    Counters::add(&counters.bytes_read, flow.bytes_read);
    Counters::add(&counters.blocks_released, flow.released);
}
