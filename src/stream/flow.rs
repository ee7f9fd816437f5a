//! One traversal of a tape: loaders bring blocks in, compute leases them, loaders let them go.

use super::window::{Claim, Window};
use super::{Block, Loaded, Release, StreamError, Trace, Turns, WeightSource, What};
use crate::sys::affinity;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;
use xxhash_rust::xxh3::xxh3_64;

/// The traversal that compute and loaders share.
pub struct Flow {
    source: Arc<dyn WeightSource>,
    tape: Arc<[Block]>,
    units: Units,
    turns: Turns,
    release: Release,
    pinned: Vec<bool>,
    keep: Keep,
    trace: Option<Arc<Trace>>,
    beats: Arc<AtomicU64>,
    state: Mutex<State>,
    /// A unit has arrived, or the flow has failed or ended.
    ready: Condvar,
    /// A block waits to be released, or the flow has ended.
    room: Condvar,
    stall_us: AtomicU64,
    bytes_read: AtomicU64,
    released: AtomicU64,
    loader_cpu_us: AtomicU64,
    ended: AtomicBool,
}

/// How a tape is to be played.
#[derive(Clone, Default)]
pub struct Course<'a> {
    /// Most bytes held at once, pinned blocks not counted.
    pub window_bytes: u64,
    /// What is loaded, waited for and released as one: how many blocks each unit has, their sum
    /// being all of the tape's. Each block is a unit where nothing is said.
    pub units: &'a [usize],
    pub turns: Turns,
    pub release: Release,
    /// Blocks that are in memory already, by index.
    pub pins: &'a [Option<Arc<Loaded>>],
    /// Which blocks stay when they have passed. [`Flow::end`] hands them over.
    pub keep: Keep,
    /// Where to note what happens.
    pub trace: Option<Arc<Trace>>,
    /// Grows with every block that arrives or is leased.
    pub beats: Arc<AtomicU64>,
}

/// Which blocks of a tape stay when they have passed, until that is revoked: then what has passed
/// goes with the next block that does.
#[derive(Clone, Debug, Default)]
pub struct Keep {
    /// By index; none where it is empty.
    blocks: Arc<[bool]>,
    revoked: Arc<AtomicBool>,
}

impl Keep {
    /// Those of `blocks` that are true.
    pub fn new(blocks: impl Into<Arc<[bool]>>) -> Keep {
        Keep { blocks: blocks.into(), revoked: Arc::default() }
    }

    /// Nothing stays any more, for this and its clones.
    pub fn revoke(&self) {
        self.revoked.store(true, Ordering::Relaxed);
    }

    fn is_revoked(&self) -> bool {
        self.revoked.load(Ordering::Relaxed)
    }

    fn has(&self, index: usize) -> bool {
        self.blocks.get(index) == Some(&true) && !self.is_revoked()
    }
}

/// The units of a tape: runs of blocks.
struct Units {
    /// The first block of each unit, and the tape's length.
    starts: Vec<usize>,
    /// The unit of each block.
    of: Vec<usize>,
}

impl Units {
    fn new(blocks: usize, lengths: &[usize]) -> Units {
        let single = vec![1; blocks];
        let lengths = if lengths.is_empty() { &single } else { lengths };
        assert_eq!(lengths.iter().sum::<usize>(), blocks, "units are cut from the tape");
        let mut starts = vec![0];
        let mut of = Vec::with_capacity(blocks);
        for (unit, length) in lengths.iter().enumerate() {
            of.extend(std::iter::repeat_n(unit, *length));
            starts.push(of.len());
        }
        Units { starts, of }
    }

    fn count(&self) -> usize {
        self.starts.len() - 1
    }

    fn blocks(&self, unit: usize) -> Range<usize> {
        self.starts[unit]..self.starts[unit + 1]
    }
}

struct State {
    window: Window,
    /// Blocks that have arrived, pinned ones from the start.
    arrived: Vec<Option<Arc<Loaded>>>,
    /// Blocks of each unit that compute has yet to use, or a loader to let go.
    pending: Vec<usize>,
    /// Blocks whose unit was used, for a loader to let go.
    leaving: Vec<(usize, Arc<Loaded>)>,
    failure: Option<StreamError>,
    /// Loaders at work on a unit.
    busy: usize,
    /// Whether what was kept before that was revoked has gone.
    is_swept: bool,
}

/// What a traversal has cost so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FlowCounters {
    /// Time compute waited for blocks.
    pub stall_us: u64,
    /// Bytes of blocks brought in.
    pub bytes_read: u64,
    /// Blocks whose memory was given back.
    pub released: u64,
    /// Most bytes held at once, pinned blocks not counted.
    pub window_peak_bytes: u64,
    /// Time of processors that loaders took; complete when the traversal has ended.
    pub loader_cpu_us: u64,
}

enum Work {
    Load(usize),
    Release(usize, Arc<Loaded>),
    Done,
}

impl Flow {
    /// A traversal of `tape`.
    ///
    /// # Panics
    /// If a unit that is not pinned is larger than the window.
    pub fn new(source: Arc<dyn WeightSource>, tape: Arc<[Block]>, course: Course) -> Arc<Flow> {
        let units = Units::new(tape.len(), course.units);
        let arrived: Vec<_> =
            (0..tape.len()).map(|i| course.pins.get(i).cloned().flatten()).collect();
        let pinned = arrived.iter().map(Option::is_some).collect();
        let sizes = (0..units.count()).map(|unit| {
            let coming = units.blocks(unit).filter(|block| arrived[*block].is_none());
            let bytes: u64 = coming.clone().map(|block| source.held_bytes(&tape[block])).sum();
            (bytes, coming.count() == 0)
        });
        let window = Window::new(course.window_bytes, sizes);
        let pending = (0..units.count()).map(|unit| units.blocks(unit).len()).collect();
        let (leaving, failure) = (vec![], None);
        let state = State { window, arrived, pending, leaving, failure, busy: 0, is_swept: false };
        Arc::new(Flow {
            source,
            tape,
            units,
            turns: course.turns,
            release: course.release,
            pinned,
            keep: course.keep,
            trace: course.trace,
            beats: course.beats,
            state: Mutex::new(state),
            ready: Condvar::new(),
            room: Condvar::new(),
            stall_us: AtomicU64::new(0),
            bytes_read: AtomicU64::new(0),
            released: AtomicU64::new(0),
            loader_cpu_us: AtomicU64::new(0),
            ended: AtomicBool::new(false),
        })
    }

    /// Waits until block `index` is there, without borrowing it.
    pub fn wait_for(&self, index: usize) -> Result<(), StreamError> {
        self.wait(index).map(drop)
    }

    fn wait(&self, index: usize) -> Result<MutexGuard<'_, State>, StreamError> {
        let unit = self.units.of[index];
        let mut state = self.lock();
        if !state.window.is_ready(unit) {
            let _waiting = self.trace.as_ref().map(|t| t.span(What::Wait { block: index }));
            let waiting_since = Instant::now();
            while !state.window.is_ready(unit) && state.failure.is_none() {
                state = self.ready.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
            self.stall_us.fetch_add(waiting_since.elapsed().as_micros() as u64, Ordering::Relaxed);
        }
        match &state.failure {
            Some(failure) => Err(failure.clone()),
            None => Ok(state),
        }
    }

    /// Waits for block `index` and borrows it. Compute leases in the order of the tape.
    pub fn lease(self: &Arc<Flow>, index: usize) -> Result<BlockLease, StreamError> {
        let state = self.wait(index)?;
        self.beats.fetch_add(1, Ordering::Relaxed);
        let loaded = state.arrived[index].clone().expect("a ready block has arrived");
        let since = Instant::now();
        Ok(BlockLease { flow: Arc::clone(self), index, since, loaded: Some(loaded) })
    }

    /// Ends the traversal with a failure that compute and loaders will see.
    pub fn fail(&self, failure: StreamError) {
        let mut state = self.lock();
        state.failure.get_or_insert(failure);
        self.wake_all();
    }

    /// The failure that ended the traversal, if one did.
    pub fn failure(&self) -> Option<StreamError> {
        self.lock().failure.clone()
    }

    /// Ends the traversal: waits for loads under way, gives the memory of every block back, and
    /// hands over those that were to be kept.
    pub fn end(&self) -> Vec<(usize, Arc<Loaded>)> {
        self.ended.store(true, Ordering::Release);
        let mut state = self.lock();
        state.failure.get_or_insert(StreamError::Cancelled);
        self.wake_all();
        while state.busy > 0 {
            state = self.ready.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        let arrived = std::mem::take(&mut state.arrived);
        let left = state.leaving.len() as u64;
        state.leaving.clear();
        let (kept, gone): (Vec<_>, Vec<_>) = arrived
            .into_iter()
            .enumerate()
            .filter_map(|(index, loaded)| Some((index, loaded?)))
            .partition(|(index, _)| self.stays(*index));
        self.released.fetch_add(left + gone.len() as u64, Ordering::Relaxed);
        kept
    }

    /// Whether what compute has used is what was verified: blocks of files that have changed
    /// meanwhile, and were mapped, are verified anew. To be asked when all is computed and before
    /// anybody is told; a block that is not right ends the traversal.
    pub fn confirm(&self) -> Result<(), StreamError> {
        self.verify_changed().inspect_err(|failure| self.fail(failure.clone()))
    }

    fn verify_changed(&self) -> Result<(), StreamError> {
        for file in self.source.changed_files()? {
            let path = self.source.path(file);
            log::warn!("{}: changed while it was in use: it is verified anew", path.display());
            let used = self.tape.iter().zip(&self.pinned);
            for (block, _) in used.filter(|(block, pinned)| block.file == file && !**pinned) {
                load_to_stay_verified(&*self.source, block)?;
            }
        }
        Ok(())
    }

    /// What the traversal has cost so far.
    pub fn counters(&self) -> FlowCounters {
        FlowCounters {
            stall_us: self.stall_us.load(Ordering::Relaxed),
            bytes_read: self.bytes_read.load(Ordering::Relaxed),
            released: self.released.load(Ordering::Relaxed),
            window_peak_bytes: self.lock().window.peak_bytes(),
            loader_cpu_us: self.loader_cpu_us.load(Ordering::Relaxed),
        }
    }

    /// Loads and releases until the tape has been claimed and let go, or the flow has ended.
    /// The loader thread `agent` of `agents` lives in here during a pass.
    pub(super) fn serve(&self, agent: usize, agents: usize) {
        let mut counted_us = affinity::thread_cpu_us();
        let mut count = || {
            let now_us = affinity::thread_cpu_us();
            self.loader_cpu_us.fetch_add(now_us - counted_us, Ordering::Relaxed);
            counted_us = now_us;
        };
        loop {
            match self.next_work(agent, agents) {
                Work::Load(unit) => {
                    let at_work = AtWork(self);
                    let loaded = self.load(unit);
                    count();
                    at_work.finish();
                    self.arrive(unit, loaded);
                }
                Work::Release(index, loaded) => {
                    let at_work = AtWork(self);
                    let what = What::Release { block: index };
                    let releasing = self.trace.as_ref().map(|trace| trace.span(what));
                    drop(loaded);
                    drop(releasing);
                    count();
                    at_work.finish();
                    self.leave(index);
                }
                Work::Done => return,
            }
        }
    }

    fn next_work(&self, agent: usize, agents: usize) -> Work {
        let mut state = self.lock();
        loop {
            if state.failure.is_some() {
                return Work::Done;
            }
            if let Some((index, loaded)) = state.leaving.pop() {
                state.busy += 1;
                return Work::Release(index, loaded);
            }
            let claim = match self.turns {
                Turns::Next => state.window.claim(),
                Turns::Stride => state.window.claim_of(agent, agents),
            };
            match claim {
                Claim::Load(unit) => {
                    state.busy += 1;
                    return Work::Load(unit);
                }
                Claim::Finished if state.window.held_bytes() == 0 => return Work::Done,
                Claim::Full | Claim::Finished => {
                    state = self.room.wait(state).unwrap_or_else(PoisonError::into_inner);
                }
            }
        }
    }

    fn load(&self, unit: usize) -> Result<Vec<(usize, Arc<Loaded>)>, StreamError> {
        let mut blocks = Vec::with_capacity(self.units.blocks(unit).len());
        for index in self.units.blocks(unit).filter(|block| !self.pinned[*block]) {
            if self.has_ended() {
                return Err(StreamError::Cancelled);
            }
            let block = &self.tape[index];
            let what = What::Load { block: index, bytes: block.bytes };
            let loading = self.trace.as_ref().map(|trace| trace.span(what));
            let loaded = match self.keep.has(index) {
                true => load_to_stay_verified(&*self.source, block)?,
                false => load_verified(&*self.source, block)?,
            };
            blocks.push((index, Arc::new(loaded)));
            drop(loading);
            self.bytes_read.fetch_add(block.bytes, Ordering::Relaxed);
        }
        Ok(blocks)
    }

    fn arrive(&self, unit: usize, loaded: Result<Vec<(usize, Arc<Loaded>)>, StreamError>) {
        self.beats.fetch_add(1, Ordering::Relaxed);
        let mut state = self.lock();
        state.busy -= 1;
        match loaded {
            // What comes after the end goes at once.
            Ok(_) if self.has_ended() => {}
            Ok(blocks) => {
                for (index, loaded) in blocks {
                    state.arrived[index] = Some(loaded);
                }
                state.window.loaded(unit);
            }
            Err(failure) => {
                state.failure.get_or_insert(failure);
            }
        }
        self.wake_all();
    }

    /// A block's memory has been given back.
    fn leave(&self, index: usize) {
        self.released.fetch_add(1, Ordering::Relaxed);
        let unit = self.units.of[index];
        let mut state = self.lock();
        state.busy -= 1;
        state.pending[unit] -= 1;
        if state.pending[unit] == 0 {
            state.window.released(unit);
        }
        self.wake_all();
    }

    /// Compute has used a block; the last of its unit lets all of them go that do not stay.
    fn give_back(&self, index: usize, loaded: Arc<Loaded>) {
        let unit = self.units.of[index];
        let mut state = self.lock();
        if state.arrived.is_empty() {
            return;
        }
        state.pending[unit] -= 1;
        if self.pinned[index] {
            // It stays with whoever pinned it, as long as they will.
            state.arrived[index] = None;
        }
        if self.keep.is_revoked() && !state.is_swept && self.release == Release::AfterUse {
            self.sweep(&mut state);
        }
        if state.pending[unit] > 0 || state.window.is_pinned(unit) || self.release == Release::AtEnd
        {
            return;
        }
        drop(loaded);
        for block in self.units.blocks(unit).filter(|block| !self.stays(*block)) {
            if let Some(loaded) = state.arrived[block].take() {
                state.pending[unit] += 1;
                state.leaving.push((block, loaded));
            }
        }
        if state.pending[unit] == 0 {
            state.window.kept(unit);
        }
        match (self.turns, state.leaving.len()) {
            (Turns::Next, 0 | 1) => self.room.notify_one(),
            _ => self.room.notify_all(),
        }
    }

    /// Lets blocks go that were kept when their units had been used.
    fn sweep(&self, state: &mut State) {
        state.is_swept = true;
        for block in 0..state.arrived.len() {
            if state.pending[self.units.of[block]] == 0 && state.arrived[block].take().is_some() {
                self.released.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    fn stays(&self, index: usize) -> bool {
        self.pinned[index] || self.keep.has(index)
    }

    fn has_ended(&self) -> bool {
        self.ended.load(Ordering::Acquire)
    }

    fn wake_all(&self) {
        self.ready.notify_all();
        self.room.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A loader at work on a unit. One that is unwound by a panic ends the traversal, which would wait
/// for it for ever.
struct AtWork<'a>(&'a Flow);

impl AtWork<'_> {
    /// What it comes to is told, and with it that nobody is at work on it.
    fn finish(self) {
        std::mem::forget(self);
    }
}

impl Drop for AtWork<'_> {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.busy -= 1;
        state.failure.get_or_insert(StreamError::Loader);
        self.0.wake_all();
    }
}

/// Loads one block and checks its bytes against its checksum.
pub fn load_verified(source: &dyn WeightSource, block: &Block) -> Result<Loaded, StreamError> {
    verified(source, block, source.load(block)?)
}

/// The same for a block that stays when it has passed.
pub fn load_to_stay_verified(
    source: &dyn WeightSource,
    block: &Block,
) -> Result<Loaded, StreamError> {
    verified(source, block, source.load_to_stay(block)?)
}

fn verified(
    source: &dyn WeightSource,
    block: &Block,
    loaded: Loaded,
) -> Result<Loaded, StreamError> {
    let found = xxh3_64(loaded.as_ref());
    if found == block.checksum {
        return Ok(loaded);
    }
    let &Block { offset, bytes, checksum: expected, .. } = block;
    Err(StreamError::Damaged { path: source.path(block.file), offset, bytes, expected, found })
}

/// Compute's borrow of one block; dropping it lets the block go.
pub struct BlockLease {
    flow: Arc<Flow>,
    index: usize,
    since: Instant,
    pub(super) loaded: Option<Arc<Loaded>>,
}

impl AsRef<[u8]> for BlockLease {
    fn as_ref(&self) -> &[u8] {
        (**self.loaded.as_ref().expect("held until the lease is dropped")).as_ref()
    }
}

impl Drop for BlockLease {
    fn drop(&mut self) {
        let loaded = self.loaded.take().expect("a lease is dropped once");
        if let Some(trace) = &self.flow.trace {
            trace.note(What::Lease { block: self.index }, self.since);
        }
        self.flow.give_back(self.index, loaded);
    }
}
