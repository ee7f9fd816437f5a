//! Measures a model on this board, trial by trial, into a profile.

use super::config::DiskKind;
use super::error::EngineError;
use super::model::Model;
use super::reel::Cut;
use super::request::Cancel;
use super::stage::Stage;
use super::trials::{self, ComputeTrial, ReadTrial, Shapes};
use crate::graph::{Choice, Sizes, has_open_dimension};
use crate::plan::{
    BlockRun, Board, BytesAt, CodecRate, Contention, Core, FORMAT, LayerCost, PassTime, Passing,
    PinPlace, Placement, Plan, Profile, RESIDENT_PASS, ReadRate, Skipped, Way, forecast,
};
use crate::stream::Category;
use crate::sys::board::{processor, release};
use crate::sys::disk::Disk;
use crate::sys::map::page_size;
use std::collections::VecDeque;
use std::fmt;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

/// Token counts of the trials, where a model takes any; those that the budget has no room for are
/// left out.
const TOKENS: [usize; 3] = [1, 16, 128];

/// Loaders with which a tape is played, and sizes of requests that are tried beside its blocks,
/// which have about 1 MiB.
const DEPTHS: [usize; 3] = [1, 2, 4];
const REQUEST_BYTES: [u64; 3] = [64 << 10, 256 << 10, 4 << 20];

/// Choices of open dimensions that are tried, the next where the model cannot compute one.
const CHOICES: usize = 6;

/// How often a thing is tried; the fastest counts.
const REPEATS: usize = 3;

/// A figure of contention.
type Field = fn(&mut Contention) -> &mut f64;

/// What the figures of contention are sought in, and how finely.
const FIT_RANGES: [(Field, Range<f64>); 3] = [
    (|contention| &mut contention.loader_slowdown, 1.0..4.0),
    (|contention| &mut contention.compute_loss, 0.0..3.0),
    (|contention| &mut contention.memory_slowdown, 1.0..2.0),
];
const FIT_STEPS: u32 = 10;
const FIT_ROUNDS: usize = 2;

/// What an unusual figure counts, against an error of a forecast.
const ODDNESS: f64 = 0.01;

/// How many times as long as compute a pass takes that only the disk binds.
const BOUND_BY_DISK: u64 = 4;

/// Measuring under way. It keeps nothing of the model, which may go between two trials.
pub(super) struct Profiler {
    base: Plan,
    steps: VecDeque<Step>,
    turn: usize,
    sizes: Sizes,
    /// How made-up inputs choose their open dimensions, in the order in which that is tried.
    choices: Vec<Choice>,
    /// The one that is tried, and the one that was computed with last.
    choice: usize,
    settled: Option<usize>,
    skipped: Vec<Skipped>,
    reads: Vec<ReadRate>,
    /// Threads, tokens.
    computed: Vec<(usize, usize, ComputeTrial)>,
    /// By block, in microseconds.
    decoded: Vec<f64>,
    rates: Vec<CodecRate>,
    /// Plan, tokens, microseconds.
    streamed: Vec<(Plan, usize, u64)>,
}

#[derive(Clone, Debug, PartialEq)]
enum Step {
    /// Blocks of the tape, as they are.
    Play {
        way: Way,
        loaders: usize,
        is_scattered: bool,
    },
    /// Requests of another size.
    Read {
        way: Way,
        request_bytes: u64,
    },
    Decode,
    Rate,
    Compute {
        threads: usize,
        tokens: usize,
    },
    Stream {
        plan: Box<Plan>,
        tokens: usize,
    },
}

impl Step {
    /// Of the pass that it computes, where it does.
    fn tokens(&self) -> Option<usize> {
        match self {
            Step::Compute { tokens, .. } | Step::Stream { tokens, .. } => Some(*tokens),
            Step::Play { .. } | Step::Read { .. } | Step::Decode | Step::Rate => None,
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Step::Play { way, loaders, .. } => {
                write!(f, "playing the tape, {way}, {loaders} loaders")
            }
            Step::Read { way, request_bytes } => {
                write!(f, "requests of {} KiB, {way}", request_bytes >> 10)
            }
            Step::Decode => f.write_str("decoding"),
            Step::Rate => f.write_str("products with each precision"),
            Step::Compute { threads, tokens } => {
                write!(f, "{RESIDENT_PASS} of {tokens} tokens, {threads} threads")
            }
            Step::Stream { plan, tokens } => write!(f, "a pass of {tokens} tokens, {plan}"),
        }
    }
}

impl Profiler {
    /// What is to be tried for a model. `base` is the plan where nothing is known.
    pub fn new(model: &Model, base: Plan, cores: usize) -> Profiler {
        let is_open = has_open_dimension(&model.dir.manifest.inputs);
        let tokens = if is_open { &TOKENS[..] } else { &TOKENS[..1] };
        let most = tokens[tokens.len() - 1];
        let has_direct = model.reel().cut.sources.direct().is_some();
        let ways = if has_direct { &[Way::Mapped, Way::Direct][..] } else { &[Way::Mapped] };
        let mut steps = VecDeque::new();
        let usual = usual_bytes(model);
        for _ in 0..REPEATS {
            for way in ways.iter().copied() {
                // Direct reads have no read-ahead to lose.
                let orders = if way == Way::Mapped { &[false, true][..] } else { &[false] };
                for is_scattered in orders.iter().copied() {
                    steps.extend(DEPTHS.map(|loaders| Step::Play { way, loaders, is_scattered }));
                }
                let sizes = REQUEST_BYTES.into_iter().filter(|bytes| *bytes != usual);
                steps.extend(sizes.map(|request_bytes| Step::Read { way, request_bytes }));
            }
        }
        steps.extend([Step::Decode, Step::Rate]);
        // The first pass of a crew warms its threads.
        steps.push_back(Step::Compute { threads: cores, tokens: tokens[0] });
        for tokens in tokens {
            steps.extend((0..REPEATS).map(|_| Step::Compute { threads: cores, tokens: *tokens }));
        }
        let fewer = [cores - 1, cores / 2].into_iter().filter(|threads| *threads > 0);
        for threads in fewer.take(if cores > 2 { 2 } else { 1 }) {
            steps.extend((0..REPEATS).map(|_| Step::Compute { threads, tokens: most }));
        }
        for way in ways {
            for (loaders, placement) in
                [(1, Placement::Shared), (2, Placement::Shared), (1, Placement::Apart)]
            {
                if placement == Placement::Apart && cores < 2 {
                    continue;
                }
                let threads = if placement == Placement::Apart { cores - 1 } else { cores };
                // All of it read, where the disk may bind; and half, where compute may.
                for pin_bytes in [0, model.tape_bytes() / 2] {
                    let pins = PinPlace::Spread;
                    let plan = Plan {
                        source: *way,
                        loaders,
                        threads,
                        placement,
                        pin_bytes,
                        pins,
                        ..base.clone()
                    };
                    let step = Step::Stream { plan: Box::new(plan), tokens: most };
                    steps.extend((0..REPEATS).map(|_| step.clone()));
                }
            }
        }
        let sizes = model.plan.sizes();
        Profiler {
            base,
            steps,
            turn: 0,
            choices: sizes.choices(CHOICES),
            sizes,
            choice: 0,
            settled: None,
            skipped: vec![],
            reads: vec![],
            decoded: vec![],
            rates: vec![],
            computed: vec![],
            streamed: vec![],
        }
    }

    /// Makes the next trial; whether it was the last. One that was cancelled is made again.
    pub fn advance(
        &mut self,
        stage: &mut Stage,
        model: &Arc<Model>,
        cancel: &Cancel,
    ) -> Result<bool, EngineError> {
        let Some(step) = self.steps.front().cloned() else { return Ok(true) };
        let tried = match &step {
            Step::Play { way, loaders, is_scattered } => {
                let plan = Plan {
                    source: *way,
                    loaders: *loaders,
                    placement: Placement::Shared,
                    pin_bytes: if *is_scattered { model.tape_bytes() / 2 } else { 0 },
                    pins: PinPlace::Spread,
                    ..self.base.clone()
                };
                let usual = usual_bytes(model);
                let trial = stage.play_trial(model, &plan, cancel);
                trial.map(|trial| self.note(rate(*way, *loaders, usual, trial), *is_scattered))
            }
            Step::Read { way, request_bytes } => {
                self.read(stage, model, (*way, *request_bytes), cancel)
            }
            Step::Decode => stage.decode_trial(model).map(|decoded| self.decoded = decoded),
            Step::Rate => stage.rate_trial(model, cancel).map(|rates| self.rates = rates),
            Step::Compute { threads, tokens } => {
                let plan = Plan {
                    threads: *threads,
                    source: Way::Mapped,
                    placement: Placement::Shared,
                    loaders: 1,
                    ..self.base.clone()
                };
                let trial = self
                    .shapes(*tokens)
                    .and_then(|shapes| stage.compute_trial(model, &plan, &shapes, cancel));
                trial.map(|trial| self.computed.push((*threads, *tokens, trial)))
            }
            Step::Stream { plan, tokens } => {
                let took_us = self
                    .shapes(*tokens)
                    .and_then(|shapes| stage.stream_trial(model, plan, &shapes, cancel));
                took_us.map(|took_us| self.note_pass(plan, *tokens, took_us))
            }
        };
        use EngineError::{Decided, Internal, Invalid, OverBudget};
        match tried {
            Ok(()) if step.tokens().is_some() => self.settled = Some(self.choice),
            Err(EngineError::Cancelled) if cancel.is_cancelled() => return Ok(false),
            // The model may compute with other sizes.
            Err(Invalid(_) | Internal(_)) if step.tokens().is_some() && self.choose_next() => {
                return Ok(false);
            }
            // Too many tokens for this budget, or for the model: fewer will do.
            Err(error @ (OverBudget(_) | Decided { .. } | Invalid(_) | Internal(_)))
                if !is_least(&step) =>
            {
                self.skip(&step, &error);
                return Ok(self.steps.is_empty());
            }
            tried => tried?,
        }
        self.steps.pop_front();
        Ok(self.steps.is_empty())
    }

    /// The shapes of inputs of so many tokens, as they are chosen now.
    fn shapes(&self, tokens: usize) -> Result<Shapes, EngineError> {
        let choice = self.choices.get(self.choice);
        choice.and_then(|choice| self.sizes.shapes(choice, tokens)).ok_or_else(|| {
            let what = "no sizes of made-up inputs are known that agree with its shapes";
            EngineError::Invalid(what.to_string())
        })
    }

    /// Tries another choice of sizes; whether there is one.
    fn choose_next(&mut self) -> bool {
        self.choice += 1;
        self.choice < self.choices.len()
    }

    /// Leaves out what cannot be tried, each time that it would be.
    fn skip(&mut self, step: &Step, error: &EngineError) {
        self.choice = self.settled.unwrap_or(0);
        self.steps.retain(|other| other != step);
        let why = error.to_string().lines().next().unwrap_or_default().to_string();
        self.skipped.push(Skipped { what: step.to_string(), why });
    }

    fn read(
        &mut self,
        stage: &mut Stage,
        model: &Model,
        (way, request_bytes): (Way, u64),
        cancel: &Cancel,
    ) -> Result<(), EngineError> {
        let source = Arc::clone(model.reel().cut.sources.by(way));
        // One is let go while the next is read.
        let _held = stage.hold.hold_for_reading(2 * request_bytes)?;
        let core = stage.cores[stage.cores.len() - 1];
        self.turn += 1;
        let (reel, turn) = (model.reel(), self.turn);
        let trial = trials::read(&*source, reel.blocks(), core, request_bytes, turn, cancel)?;
        if cancel.is_cancelled() {
            return Err(EngineError::Cancelled);
        }
        self.note(rate(way, 1, request_bytes, trial), false);
        Ok(())
    }

    /// Keeps the fastest pass by each plan: the first one of a crew warms its threads. Where the disk
    /// takes many times as long as compute, neither is in the other's way and no more is tried.
    fn note_pass(&mut self, plan: &Plan, tokens: usize, took_us: u64) {
        match self.streamed.iter_mut().find(|(of, ..)| of == plan) {
            Some((_, _, least_us)) => *least_us = took_us.min(*least_us),
            None => self.streamed.push((plan.clone(), tokens, took_us)),
        }
        let computed = self.computed.iter().filter(|(_, of, _)| *of == tokens);
        let compute_us = computed.map(|(.., trial)| trial.total_us).max().unwrap_or(0);
        if took_us > BOUND_BY_DISK * compute_us {
            self.steps.truncate(1);
        }
    }

    /// Keeps the best rate of each kind. A short tape may have nothing to read for some.
    fn note(&mut self, rate: Option<ReadRate>, is_scattered: bool) {
        let Some(rate) = rate else { return };
        let rate = ReadRate { is_scattered, ..rate };
        let kind = |r: &ReadRate| (r.way, r.loaders, r.request_bytes, r.is_scattered);
        match self.reads.iter_mut().find(|read| kind(read) == kind(&rate)) {
            Some(read) if read.bandwidth_bytes_s < rate.bandwidth_bytes_s => *read = rate,
            Some(_) => {}
            None => self.reads.push(rate),
        }
    }

    /// The profile, when all is tried.
    pub fn finish(self, stage: &Stage, model: &Model, board: Board) -> Profile {
        let manifest = &model.dir.manifest;
        let threads = self.computed.iter().map(|(threads, ..)| *threads).max().unwrap_or(1);
        let fewest = |threads: usize, tokens: usize| {
            let of = self.computed.iter().filter(|(t, k, _)| (*t, *k) == (threads, tokens));
            of.map(|(.., trial)| trial.total_us).min()
        };
        let mut passes: Vec<PassTime> = vec![];
        let mut activations: Vec<BytesAt> = vec![];
        for (threads, tokens, trial) in &self.computed {
            let latency_us = fewest(*threads, *tokens).unwrap_or(trial.total_us) as f64;
            let pass = PassTime { threads: *threads, tokens: *tokens as u64, latency_us };
            if !passes.contains(&pass) {
                passes.push(pass);
            }
            let bytes = BytesAt { tokens: *tokens as u64, bytes: trial.activation_bytes };
            if !activations.contains(&bytes) {
                activations.push(bytes);
            }
        }
        activations.sort_by_key(|at| at.tokens);
        let mut profile = Profile {
            format: FORMAT,
            hermes: env!("CARGO_PKG_VERSION").to_owned(),
            model: manifest.model.clone(),
            version: manifest.version.clone(),
            variant: model.variant.clone(),
            board,
            reads: self.reads.clone(),
            layers: self.layers(model, threads),
            layer_threads: threads,
            passes,
            process_bytes: stage.room().ledger.held_bytes(Category::Process),
            graph_bytes: model.graph_bytes(),
            activations,
            kv_bytes_per_token: 0,
            mapped_contention: Contention::default(),
            direct_contention: Contention::default(),
            rates: self.rates.clone(),
            skipped: self.skipped.clone(),
        };
        self.fit(&mut profile, Way::Mapped);
        self.fit(&mut profile, Way::Direct);
        profile
    }

    /// How loaders and compute slow each other, as it fits the streamed passes of one way best: one
    /// figure after the other is moved over its range, a few times round.
    fn fit(&self, profile: &mut Profile, way: Way) {
        let usual = Contention::default();
        let error = |profile: &Profile| -> f64 {
            let of = |(plan, tokens, took_us): &(Plan, usize, u64)| {
                let forecast = forecast(profile, plan, *tokens as u64, Passing::Later).ok()?;
                Some((forecast.latency_us / *took_us as f64).ln().powi(2))
            };
            let trials = self.streamed.iter().filter(|(plan, ..)| plan.source == way);
            // Where trials do not tell, what is usual.
            let odd: f64 = FIT_RANGES
                .iter()
                .map(|(field, range)| {
                    let (mut is, mut was) = (*profile.contention(way), usual);
                    let off = *field(&mut is) - *field(&mut was);
                    (off / (range.end - range.start)).powi(2)
                })
                .sum();
            trials.filter_map(of).sum::<f64>() + ODDNESS * odd
        };
        let mut least = error(profile);
        for _ in 0..FIT_ROUNDS {
            for (field, range) in FIT_RANGES {
                for step in 0..=FIT_STEPS {
                    let mut tried = profile.clone();
                    let part = f64::from(step) / f64::from(FIT_STEPS);
                    *field(tried.contention_mut(way)) =
                        range.start + part * (range.end - range.start);
                    let error = error(&tried);
                    if error < least {
                        (least, *profile) = (error, tried);
                    }
                }
            }
        }
    }

    fn layers(&self, model: &Model, threads: usize) -> Vec<LayerCost> {
        let reel = model.reel();
        let Cut { tape, sources, .. } = &*reel.cut;
        let mapped = sources.by(Way::Mapped);
        let direct = sources.direct().unwrap_or(mapped);
        let lengths = tape.layers();
        let mut blocks = &tape.blocks[..];
        let mut decoded = &self.decoded[..];
        let layer = |(index, length): (usize, usize)| {
            let (own, rest) = blocks.split_at(length);
            blocks = rest;
            let runs = own.iter().map(|block| BlockRun {
                count: 1,
                bytes: block.bytes,
                mapped_bytes: mapped.held_bytes(block),
                direct_bytes: direct.held_bytes(block),
                elements: 0,
            });
            let mut points: Vec<(f64, f64)> = vec![];
            for (_, tokens, trial) in self.computed.iter().filter(|(t, ..)| *t == threads) {
                let (tokens, us) = (*tokens as f64, trial.layers_us[index] as f64);
                match points.iter_mut().find(|point| point.0 == tokens) {
                    Some(point) => point.1 = point.1.min(us),
                    None => points.push((tokens, us)),
                }
            }
            let line = Line::through(&points);
            let (decoding, others) = decoded.split_at(length.min(decoded.len()));
            decoded = others;
            LayerCost {
                name: model.layer_name(tape.layer_of(&own[0])),
                blocks: BlockRun::joined(runs),
                decode_us: decoding.iter().fold(0.0, |sum, us| sum + us),
                fixed_us: line.fixed,
                per_token_us: line.slope,
                error: line.error,
            }
        };
        lengths.into_iter().enumerate().map(layer).collect()
    }
}

/// Whether nothing smaller could be tried in its place.
fn is_least(step: &Step) -> bool {
    match step {
        Step::Play { loaders, is_scattered, .. } => *loaders <= DEPTHS[0] && !is_scattered,
        Step::Read { .. } | Step::Decode | Step::Rate => false,
        Step::Compute { tokens, .. } => *tokens <= TOKENS[0],
        Step::Stream { .. } => false,
    }
}

/// Bytes of the tape's usual block: most of the tape is cut into such.
fn usual_bytes(model: &Model) -> u64 {
    let mut sizes: Vec<u64> = model.reel().blocks().iter().map(|block| block.bytes).collect();
    sizes.sort_unstable();
    sizes.get(sizes.len() / 2).copied().unwrap_or(0)
}

/// None where nothing was read.
fn rate(way: Way, loaders: usize, request_bytes: u64, trial: ReadTrial) -> Option<ReadRate> {
    (trial.bytes > 0).then(|| ReadRate {
        way,
        loaders,
        request_bytes,
        is_scattered: false,
        bandwidth_bytes_s: trial.bytes as f64 / (trial.wall_us.max(1) as f64 / 1e6),
        cpu_ns_per_byte: trial.cpu_us as f64 * 1e3 / trial.bytes as f64,
    })
}

/// A time that grows with the tokens.
struct Line {
    fixed: f64,
    slope: f64,
    /// Largest relative difference from a point.
    error: f64,
}

impl Line {
    /// The line of least relative squares through some points, rising and not below 0.
    fn through(points: &[(f64, f64)]) -> Line {
        let weighted = |f: &dyn Fn(f64, f64) -> f64| -> f64 {
            points.iter().map(|(x, y)| f(*x, *y) / (y * y).max(1.0)).sum()
        };
        let (w, wx, wy) = (weighted(&|_, _| 1.0), weighted(&|x, _| x), weighted(&|_, y| y));
        let (wxx, wxy) = (weighted(&|x, _| x * x), weighted(&|x, y| x * y));
        let spread = w * wxx - wx * wx;
        let slope = if spread > 1e-12 * w * wxx { (w * wxy - wx * wy) / spread } else { 0.0 };
        let (fixed, slope) = match (wy - slope * wx) / w {
            _ if w == 0.0 => (0.0, 0.0),
            fixed if slope < 0.0 || !fixed.is_finite() => (wy / w, 0.0),
            fixed if fixed < 0.0 => (0.0, wxy / wxx),
            fixed => (fixed, slope),
        };
        let error = points.iter().map(|(x, y)| (fixed + slope * x - y).abs() / y.max(1.0));
        Line { fixed, slope, error: error.fold(0.0, f64::max) }
    }
}

/// This board, for the models below `store`.
pub(super) fn board(store: &Path, disk: DiskKind, stage: &Stage) -> Board {
    let root = Path::new("/");
    let cores = stage.cores.iter().zip(trials::core_speeds(&stage.kernels, &stage.cores));
    Board {
        cpu: processor(root),
        cores: cores.map(|(id, speed)| Core { id: *id, speed }).collect(),
        page_bytes: page_size() as u64,
        kernel: release(root),
        disk: disk_name(store, disk),
    }
}

/// What the disk below a store is called, with what the kernel reads ahead of it.
pub(super) fn disk_name(store: &Path, kind: DiskKind) -> String {
    let name = Disk::below(store).map_or_else(String::new, |disk| {
        let device = disk.device.unwrap_or_default();
        let ahead = device.read_ahead_kib.map(|kib| format!("{kib} KiB ahead"));
        let words = [Some(device.name), device.model, Some(disk.file_system), ahead];
        words.into_iter().flatten().filter(|word| !word.is_empty()).collect::<Vec<_>>().join(" ")
    });
    match kind {
        DiskKind::Board => name,
        DiskKind::Throttled { bytes_per_s } => format!("{name}, held to {bytes_per_s} bytes/s"),
        DiskKind::Faulty(_) => format!("{name}, with faults"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_go_through_points_and_never_below_zero() {
        let check = |points: &[(f64, f64)], fixed: f64, slope: f64, error: f64| {
            let line = Line::through(points);
            let near = |a: f64, b: f64| (a - b).abs() <= 1e-6 * b.abs().max(1.0);
            assert!(near(line.fixed, fixed), "fixed {} of {points:?}", line.fixed);
            assert!(near(line.slope, slope), "slope {} of {points:?}", line.slope);
            assert!(line.error <= error + 1e-6, "error {} of {points:?}", line.error);
        };
        check(&[(1.0, 103.0), (16.0, 148.0), (128.0, 484.0)], 100.0, 3.0, 0.0);
        check(&[(1.0, 50.0)], 50.0, 0.0, 0.0);
        check(&[], 0.0, 0.0, 0.0);
        check(&[(1.0, 60.0), (128.0, 60.0)], 60.0, 0.0, 0.0);
        let falling = Line::through(&[(1.0, 100.0), (128.0, 50.0)]);
        assert!(falling.slope == 0.0 && falling.fixed > 50.0 && falling.fixed < 100.0);
        let steep = Line::through(&[(1.0, 1.0), (128.0, 1000.0)]);
        assert!(steep.fixed == 0.0 && steep.slope > 0.0);
    }
}
