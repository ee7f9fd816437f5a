//! Trials: what reading and computing take here, one at a time, each within a fraction of a
//! second or of one pass.

use super::error::EngineError;
use super::model::Model;
use super::pass::{Seat, Wanted};
use super::reel::Reel;
use super::request::{Cancel, PassStats};
use super::room::Room;
use super::stage::Stage;
use super::tape::Stretch;
use crate::codec::{Codec, PANEL_ROWS};
use crate::graph::{Kernels, sample_of_shapes};
use crate::plan::{Plan, Way, pinned_units};
use crate::store::layer_file::BLOCK_ALIGN;
use crate::stream::{
    Block, BlockMemory, Category, Grant, Keep, StreamError, Trace, WeightSource, What,
    load_to_stay_verified, load_verified,
};
use crate::sys::{affinity, panics};
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;
use std::time::{Duration, Instant};
use xxhash_rust::xxh3::xxh3_64;

/// What a trial of a size of requests reads at most, and for how long; so many requests it makes in
/// any case.
const READ_BYTES: u64 = 96 << 20;
const READ_TIME: Duration = Duration::from_millis(150);
const READ_REQUESTS: usize = 4;

/// How long a tape is played to see how fast it comes.
const PLAY_TIME: Duration = Duration::from_millis(500);

/// How often a core is timed, the shortest time counting; and how near the fastest it is alike.
const SPEED_ROUNDS: usize = 50;
const ALIKE: f64 = 0.9;

/// How often a block is decoded, the shortest time counting.
const DECODE_ROUNDS: usize = 5;

/// What some reading took.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ReadTrial {
    pub bytes: u64,
    pub wall_us: u64,
    /// Of all loaders together.
    pub cpu_us: u64,
}

/// What a pass without reading took.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ComputeTrial {
    pub total_us: u64,
    /// From a layer's first product to the next one's: the first has what comes before it, the
    /// last what follows.
    pub layers_us: Vec<u64>,
    /// Granted for activations.
    pub activation_bytes: u64,
}

/// Reads from the tape on `core`, `request_bytes` at a time. Every trial of a model has another
/// `turn`, so that none finds what another has read. It ends early where it is cancelled.
pub(super) fn read(
    source: &dyn WeightSource,
    blocks: &[Block],
    core: usize,
    request_bytes: u64,
    turn: usize,
    cancel: &Cancel,
) -> Result<ReadTrial, EngineError> {
    let mut requests = requests(blocks, request_bytes);
    let count = (READ_BYTES / request_bytes).max(READ_REQUESTS as u64) as usize;
    let start = (turn * count) % requests.len().max(1);
    requests.rotate_left(start);
    let read_all = || {
        affinity::pin_current_thread(core);
        let began = Instant::now();
        let mut trial = ReadTrial { bytes: 0, wall_us: 0, cpu_us: 0 };
        for (index, request) in requests.iter().take(count).enumerate() {
            let is_enough = index >= READ_REQUESTS && began.elapsed() > READ_TIME;
            if cancel.is_cancelled() || is_enough {
                break;
            }
            // As loaders do; what the sum ought to be is known of whole blocks only.
            std::hint::black_box(xxh3_64(source.load(request)?.as_ref()));
            trial.bytes += request.bytes;
        }
        trial.wall_us = began.elapsed().as_micros() as u64;
        trial.cpu_us = affinity::thread_cpu_us();
        Ok::<_, StreamError>(trial)
    };
    on_own_thread(read_all)?.map_err(EngineError::from)
}

/// Does `work` on a thread of its own, which it may pin.
pub(super) fn on_own_thread<T: Send>(work: impl FnOnce() -> T + Send) -> Result<T, EngineError> {
    std::thread::scope(|scope| {
        let builder = std::thread::Builder::new().name("trial".to_string());
        let thread = builder.spawn_scoped(scope, work).map_err(EngineError::Thread)?;
        thread.join().map_err(|panic| EngineError::Internal(panics::text(&*panic)))
    })
}

/// Requests of `bytes` each that cover the tape's runs in their files.
fn requests(blocks: &[Block], bytes: u64) -> Vec<Block> {
    let mut requests = vec![];
    for run in blocks.chunk_by(|a, b| a.file == b.file && a.offset < b.offset) {
        let (first, last) = (run[0], run[run.len() - 1]);
        let mut offset = first.offset;
        while offset + bytes <= last.offset + last.bytes {
            requests.push(Block { file: first.file, offset, bytes, checksum: 0 });
            offset += bytes.next_multiple_of(BLOCK_ALIGN);
        }
    }
    requests
}

/// How fast each of `cores` is, the fastest having 1.
pub(super) fn core_speeds(kernels: &Kernels, cores: &[usize]) -> Vec<f64> {
    let times: Vec<f64> = cores
        .iter()
        .map(|core| {
            let time = || {
                affinity::pin_current_thread(*core);
                (0..SPEED_ROUNDS).map(|_| kernels.trial_ns()).min().unwrap_or(u64::MAX) as f64
            };
            on_own_thread(time).unwrap_or(f64::MAX)
        })
        .collect();
    let fastest = times.iter().copied().fold(f64::MAX, f64::min);
    let speeds = times.iter().map(|time| fastest / time);
    speeds.map(|speed| if speed > ALIKE { 1.0 } else { speed }).collect()
}

impl Stage {
    /// Plays the tape as the model is played, computing nothing.
    pub(super) fn play(&mut self, model: &Model) -> Result<PassStats, EngineError> {
        let reel = model.reel();
        let began = Instant::now();
        let flow = self.begin(model, &reel, &reel.pins.blocks(), Keep::default(), None)?;
        let played = (0..reel.blocks().len()).try_for_each(|block| flow.lease(block).map(drop));
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

    /// Plays the tape for a while as `plan` has it, computing nothing. What it pins is not read.
    pub(super) fn play_trial(
        &mut self,
        model: &Arc<Model>,
        plan: &Plan,
        cancel: &Cancel,
    ) -> Result<ReadTrial, EngineError> {
        let reel = Arc::new(model.reel_by(plan.clone())?);
        let (pins, _held) = pinned_stand_ins(self.room(), &reel, cancel)?;
        let is_pinned = |block: usize| pins.get(block).is_some_and(Option::is_some);
        let flow = self.begin(model, &reel, &pins, Keep::default(), None)?;
        let began = Instant::now();
        let mut bytes = 0;
        for (index, block) in reel.blocks().iter().enumerate() {
            if cancel.is_cancelled() {
                return Err(EngineError::Cancelled);
            }
            flow.lease(index)?;
            bytes += if is_pinned(index) { 0 } else { block.bytes };
            if began.elapsed() > PLAY_TIME && index >= READ_REQUESTS {
                break;
            }
        }
        let wall_us = began.elapsed().as_micros() as u64;
        flow.end();
        let counted = flow.counters();
        // Loaders were ahead: what they read and nobody took is not of this time.
        let share = bytes as f64 / counted.bytes_read.max(bytes) as f64;
        let cpu_us = (counted.loader_cpu_us as f64 * share) as u64;
        Ok(ReadTrial { bytes, wall_us, cpu_us })
    }

    /// A pass over sample inputs for which nothing is read: every block is one of its shape that
    /// is there already. Takes the processor as long as a resident pass would, in the memory of a
    /// window; what comes out is nonsense.
    pub(super) fn compute_trial(
        &mut self,
        model: &Arc<Model>,
        plan: &Plan,
        shapes: &Shapes,
        cancel: &Cancel,
    ) -> Result<ComputeTrial, EngineError> {
        let reel = Arc::new(model.reel_by(plan.clone())?);
        let (stand_ins, _held) = stand_ins(self.room(), &reel, cancel)?;
        let trace = Arc::new(Trace::begin());
        let began = Instant::now();
        let rehearsal = Rehearsal { model, reel: &reel, pins: &stand_ins, shapes, cancel };
        let activation_bytes = self.rehearse(&rehearsal, Some(&trace))?;
        let total_us = began.elapsed().as_micros() as u64;
        let mut starts = vec![0; reel.blocks().len()];
        for event in trace.events() {
            if let What::Lease { block } = event.what {
                starts[block] = event.start_us;
            }
        }
        let mut first = 0;
        let mut bounds = vec![];
        for length in reel.cut.tape.layers() {
            bounds.push(starts[first]);
            first += length;
        }
        if let Some(bound) = bounds.first_mut() {
            *bound = 0;
        }
        bounds.push(total_us);
        let layers_us = bounds.windows(2).map(|pair| pair[1].saturating_sub(pair[0])).collect();
        Ok(ComputeTrial { total_us, layers_us, activation_bytes })
    }

    /// How long one core takes to decode each block of the tape once, in microseconds; 0 where
    /// kernels use what is stored. One block of each kind is tried.
    pub(super) fn decode_trial(&mut self, model: &Model) -> Result<Vec<f64>, EngineError> {
        let reel = model.reel();
        let source = reel.cut.sources.by(Way::Mapped);
        let mut times = vec![0.0; reel.blocks().len()];
        let mut known: HashMap<(&str, u64, usize), f64> = HashMap::new();
        for stretch in &reel.cut.tape.stretches {
            let Stretch::Blocks { first, rows, codec: Some(codec) } = stretch else { continue };
            if codec.is_plain_f32() {
                continue;
            }
            for (index, rows) in rows.iter().enumerate() {
                let block = &reel.blocks()[first + index];
                let kind = (codec.name(), block.bytes, rows.len());
                times[first + index] = match known.entry(kind) {
                    Entry::Occupied(time) => *time.get(),
                    Entry::Vacant(time) => {
                        let run = Run::of(*codec, rows.len(), block.bytes as usize);
                        let bytes = source.held_bytes(block) + run.decoded_bytes();
                        let _held = self.hold.hold_for_reading(bytes)?;
                        let loaded = load_verified(&**source, block)?;
                        *time.insert(run.decode_us(*codec, loaded.as_ref()))
                    }
                };
            }
        }
        Ok(times)
    }

    /// The time of a pass as requests get it, over sample inputs. For what the plan pins, blocks of
    /// the same shape stand in.
    pub(super) fn stream_trial(
        &mut self,
        model: &Arc<Model>,
        plan: &Plan,
        shapes: &Shapes,
        cancel: &Cancel,
    ) -> Result<u64, EngineError> {
        let reel = Arc::new(model.reel_by(plan.clone())?);
        let (pins, _held) = pinned_stand_ins(self.room(), &reel, cancel)?;
        let began = Instant::now();
        let rehearsal = Rehearsal { model, reel: &reel, pins: &pins, shapes, cancel };
        self.rehearse(&rehearsal, None)?;
        Ok(began.elapsed().as_micros() as u64)
    }

    /// A pass that nobody asked for; the bytes of its activations.
    fn rehearse(
        &mut self,
        rehearsal: &Rehearsal,
        trace: Option<&Arc<Trace>>,
    ) -> Result<u64, EngineError> {
        let Rehearsal { model, reel, pins, shapes, cancel } = *rehearsal;
        let bytes = model.footprint(shapes).alone_bytes;
        let ports = &model.dir.manifest.inputs;
        let made_bytes = ports.iter().zip(shapes).map(|(port, shape)| {
            shape.iter().fold(port.dtype.size() as u64, |bytes, size| bytes * *size as u64)
        });
        let made_bytes: u64 = made_bytes.sum();
        self.room().unshelve();
        let mut grant = self.room().ledger.try_grant(Category::Activations, bytes + made_bytes)?;
        let made = sample_of_shapes(ports, shapes.clone(), &model.indexed_rows)
            .map_err(|error| EngineError::Invalid(error.to_string()))?;
        let inputs = model.signature.check_inputs(&made)?.arrange()?.swap_remove(0);
        drop(made);
        // Shrinking is always granted.
        let _ = grant.resize(bytes);
        let _spare = self.hold.keep_freed(bytes);
        let flow = self.begin(model, reel, pins, Keep::default(), trace.cloned())?;
        let pass = self.pass(model, reel, flow, trace.cloned());
        let seat = Seat { inputs, wanted: Wanted::Arrays(vec![]), cancel: cancel.clone() };
        // Made-up inputs may be such as tract does not take.
        let results = self.perform(&pass, vec![seat]);
        pass.flow.end();
        drop(grant);
        self.room().shelve(bytes);
        results
            .map_err(EngineError::Internal)?
            .into_iter()
            .try_for_each(|result| result.map(drop))?;
        Ok(bytes)
    }
}

/// What a block is decoded by at a time: a panel, as kernels do it; flat values whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Run {
    depth: usize,
    lanes: usize,
}

impl Run {
    /// That of a block of so many rows and bytes.
    pub fn of(codec: &dyn Codec, rows: usize, block_bytes: usize) -> Run {
        if codec.stored_bytes(rows, 1) == block_bytes {
            return Run { depth: rows, lanes: 1 };
        }
        let lanes = PANEL_ROWS;
        let run_bytes = block_bytes / rows.div_ceil(lanes).max(1);
        // The deepest that takes so many bytes; sixteen values never take less than one.
        let (mut depth, mut beyond) = (0, run_bytes + 1);
        while beyond - depth > 1 {
            let middle = depth + (beyond - depth) / 2;
            match codec.stored_bytes(middle, lanes) <= run_bytes {
                true => depth = middle,
                false => beyond = middle,
            }
        }
        Run { depth, lanes }
    }

    fn decoded_bytes(self) -> u64 {
        (self.depth * self.lanes * size_of::<f32>()) as u64
    }

    /// Time of decoding a block's stored bytes.
    pub fn decode_us(self, codec: &dyn Codec, stored: &[u8]) -> f64 {
        let Run { depth, lanes } = self;
        let run_bytes = codec.stored_bytes(depth, lanes).max(1);
        let mut values = vec![0.0; depth * lanes];
        let decode = || {
            let began = Instant::now();
            for run in stored.chunks_exact(run_bytes) {
                codec.decode(run, lanes, &mut values);
                std::hint::black_box(&values);
            }
            began.elapsed().as_nanos() as f64 / 1e3
        };
        std::iter::repeat_with(decode).take(DECODE_ROUNDS).fold(f64::INFINITY, f64::min)
    }
}

/// The shapes of a trial's inputs.
pub(super) type Shapes = Vec<Vec<usize>>;

/// What is played in a trial.
struct Rehearsal<'a> {
    model: &'a Arc<Model>,
    reel: &'a Arc<Reel>,
    pins: &'a [Option<Arc<BlockMemory>>],
    shapes: &'a Shapes,
    cancel: &'a Cancel,
}

/// Blocks that are in memory, by index on the tape.
type Pinned = Vec<Option<Arc<BlockMemory>>>;

/// Stand-ins for what a plan pins.
fn pinned_stand_ins(
    room: &Room,
    reel: &Reel,
    cancel: &Cancel,
) -> Result<(Pinned, Option<Grant>), EngineError> {
    if reel.plan.pin_bytes == 0 {
        return Ok((vec![], None));
    }
    let held: Vec<u64> = reel.cut.held_bytes(&*reel.source);
    let (mut pins, grant) = stand_ins(room, reel, cancel)?;
    let pinned = pinned_units(&held, reel.plan.pin_bytes, reel.plan.pins);
    pins.iter_mut().zip(pinned).filter(|(_, pinned)| !pinned).for_each(|(pin, _)| *pin = None);
    Ok((pins, Some(grant)))
}

/// For every block of the tape one of the same shape, as many different ones as a window holds:
/// so many that they come from memory, not from a processor's cache.
fn stand_ins(room: &Room, reel: &Reel, cancel: &Cancel) -> Result<(Pinned, Grant), EngineError> {
    let mut shapes = vec![(0, 0); reel.blocks().len()];
    for stretch in &reel.cut.tape.stretches {
        if let Stretch::Blocks { first, rows, .. } = stretch {
            for (index, rows) in rows.iter().enumerate() {
                shapes[first + index] = (reel.blocks()[first + index].bytes, rows.len());
            }
        }
    }
    // One of each has to be there; then as many more as there is room for.
    let mut kinds: HashMap<(u64, usize), Vec<usize>> = HashMap::new();
    let mut held_bytes = 0;
    let mut room_bytes = u64::MAX;
    for is_first in [true, false] {
        for (index, shape) in shapes.iter().enumerate() {
            let kind = kinds.entry(*shape).or_default();
            let bytes = reel.source.held_bytes(&reel.blocks()[index]);
            if kind.is_empty() == is_first && held_bytes + bytes <= room_bytes {
                kind.push(index);
                held_bytes += bytes;
            }
        }
        room_bytes = reel.plan.window_bytes.min(room.ledger.free_bytes() / 2);
    }
    let grant = room.ledger.try_grant(Category::Pins, held_bytes)?;
    let mut loaded = HashMap::new();
    for index in kinds.values().flatten() {
        if cancel.is_cancelled() {
            return Err(EngineError::Cancelled);
        }
        let block = load_to_stay_verified(&*reel.source, &reel.blocks()[*index])?;
        loaded.insert(*index, Arc::new(block));
    }
    let stand_in = |(index, shape): (usize, &(u64, usize))| {
        let kind = &kinds[shape];
        Arc::clone(&loaded[&kind[index % kind.len()]])
    };
    Ok((shapes.iter().enumerate().map(stand_in).map(Some).collect(), grant))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::{self, GROUP_DEPTH};

    #[test]
    fn every_codec_is_timed_as_it_lies_in_blocks() {
        for codec in codec::ALL.iter().filter(|codec| !codec.is_plain_f32()) {
            for (rows, depth, lanes) in [(40, 96, PANEL_ROWS), (1000, 1000, 1)] {
                let runs = if lanes == 1 { 1 } else { 3 };
                let mut stored = vec![];
                for _ in 0..runs {
                    codec.encode(&vec![0.5; depth * lanes], lanes, &mut stored);
                }
                let run = Run::of(*codec, rows, stored.len());
                let bytes = |depth| codec.stored_bytes(depth, lanes);
                assert!(run.lanes == lanes && bytes(run.depth) == bytes(depth), "{run:?}");
                // Groups are padded.
                assert!((depth..depth + GROUP_DEPTH).contains(&run.depth), "{run:?}");
                let us = run.decode_us(*codec, &stored);
                assert!(us > 0.0 && us.is_finite(), "{} {lanes}: {us}", codec.name());
            }
        }
    }

    #[test]
    fn requests_cover_runs_of_files() {
        let block = |file, offset, bytes| Block { file, offset, bytes, checksum: 7 };
        let blocks = [block(0, 65_536, 65_536), block(0, 131_072, 65_000), block(3, 0, 65_536)];
        let found = requests(&blocks, 65_536);
        let found: Vec<_> = found.iter().map(|block| (block.file, block.offset)).collect();
        assert_eq!(found, [(0, 65_536), (3, 0)]);
        assert!(requests(&blocks, 1 << 20).is_empty());
    }
}
