//! A tape that loaders and compute play together: threads, memory and time round a traversal.

use super::traversal::{Rules, Spot, Traversal, Wake, Work};
use super::{Block, BlockMemory, Dealing, Release, StreamError, Trace, WeightSource, What};
use crate::sys::affinity;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;
use xxhash_rust::xxh3::xxh3_64;

/// The traversal that compute and loaders share.
pub struct Flow {
    source: Arc<dyn WeightSource>,
    tape: Arc<[Block]>,
    pinned: Vec<bool>,
    keep: Keep,
    trace: Option<Arc<Trace>>,
    beats: Arc<AtomicU64>,
    state: Mutex<State>,
    /// Who computes, or ends the flow, waits here.
    compute: Condvar,
    /// Loaders wait here.
    loaders: Condvar,
    stall_us: AtomicU64,
    bytes_read: AtomicU64,
    loader_cpu_us: AtomicU64,
    ended: AtomicBool,
}

struct State {
    traversal: Traversal<Arc<BlockMemory>>,
    failure: Option<StreamError>,
}

/// How a tape is to be played.
#[derive(Clone, Default)]
pub struct Course<'a> {
    /// Most bytes held at once, pinned blocks not counted.
    pub window_bytes: u64,
    /// What is loaded, waited for and released as one: how many blocks each unit has, their sum
    /// being all of the tape's. Each block is a unit where nothing is said.
    pub units: &'a [usize],
    pub turns: Dealing,
    pub release: Release,
    /// How often the tape is played again after the first time; `u64::MAX` until the end.
    pub repeats: u64,
    /// Blocks that are in memory already, by index.
    pub pins: &'a [Option<Arc<BlockMemory>>],
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

/// What a traversal has cost so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FlowCounters {
    /// Time a compute thread waited for blocks; others may have computed meanwhile.
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

impl Flow {
    /// A traversal of `tape`.
    ///
    /// # Panics
    /// If the window is smaller than what has to be in memory at once.
    pub fn new(source: Arc<dyn WeightSource>, tape: Arc<[Block]>, course: Course) -> Arc<Flow> {
        let Course { window_bytes, units, turns, release, repeats, .. } = course;
        let rules = Rules { window_bytes, units, turns, release, repeats };
        let pin = |index: usize| course.pins.get(index).cloned().flatten();
        let spots = tape.iter().enumerate().map(|(index, block)| Spot {
            bytes: source.held_bytes(block),
            pinned: pin(index),
            is_kept: course.keep.has(index),
        });
        let traversal = Traversal::new(&rules, spots);
        let pinned = (0..tape.len()).map(|index| pin(index).is_some()).collect();
        Arc::new(Flow {
            source,
            tape,
            pinned,
            keep: course.keep,
            trace: course.trace,
            beats: course.beats,
            state: Mutex::new(State { traversal, failure: None }),
            compute: Condvar::new(),
            loaders: Condvar::new(),
            stall_us: AtomicU64::new(0),
            bytes_read: AtomicU64::new(0),
            loader_cpu_us: AtomicU64::new(0),
            ended: AtomicBool::new(false),
        })
    }

    /// Waits until block `index` is there, without borrowing it.
    pub fn wait_for(&self, index: usize) -> Result<(), StreamError> {
        self.wait(index).map(drop)
    }

    fn wait(&self, index: usize) -> Result<MutexGuard<'_, State>, StreamError> {
        let mut state = self.lock();
        if state.failure.is_none() && !state.traversal.is_ready(index) {
            let _waiting = self.trace.as_ref().map(|t| t.span(What::Wait { block: index }));
            let waiting_since = Instant::now();
            while state.failure.is_none() && !state.traversal.is_ready(index) {
                state = self.compute.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
            self.stall_us.fetch_add(waiting_since.elapsed().as_micros() as u64, Ordering::Relaxed);
        }
        match &state.failure {
            Some(failure) => Err(failure.clone()),
            None => Ok(state),
        }
    }

    /// Waits for block `index` and borrows it. Compute leases in the order of the tape, lap after
    /// lap.
    pub fn lease(self: &Arc<Flow>, index: usize) -> Result<BlockLease, StreamError> {
        let mut state = self.wait(index)?;
        self.beats.fetch_add(1, Ordering::Relaxed);
        let loaded = state.traversal.lease(index).cloned().expect("what was waited for is there");
        let since = Instant::now();
        Ok(BlockLease { flow: Arc::clone(self), index, since, loaded: Some(loaded) })
    }

    /// Ends the traversal with a failure that compute and loaders will see.
    pub fn fail(&self, failure: StreamError) {
        let mut state = self.lock();
        state.failure.get_or_insert(failure);
        let wake = state.traversal.fail();
        self.wake(wake);
    }

    /// The failure that ended the traversal, if one did.
    pub fn failure(&self) -> Option<StreamError> {
        self.lock().failure.clone()
    }

    /// Ends the traversal: waits for loads under way, gives the memory of every block back, and
    /// hands over those that were to be kept.
    pub fn end(&self) -> Vec<(usize, Arc<BlockMemory>)> {
        self.ended.store(true, Ordering::Release);
        let mut state = self.lock();
        state.failure.get_or_insert(StreamError::Cancelled);
        let wake = state.traversal.end();
        self.wake(wake);
        while state.traversal.is_busy() {
            state = self.compute.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        self.heed_revocation(&mut state);
        state.traversal.take_kept()
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
            // What was pinned, and is not any more, may have been loaded since.
            let was_loaded = |pinned: bool| !pinned || self.keep.is_revoked();
            let used = self.tape.iter().zip(&self.pinned);
            for (block, _) in used.filter(|(b, pinned)| b.file == file && was_loaded(**pinned)) {
                load_to_stay_verified(&*self.source, block)?;
            }
        }
        Ok(())
    }

    /// What the traversal has cost so far.
    pub fn counters(&self) -> FlowCounters {
        let state = self.lock();
        FlowCounters {
            stall_us: self.stall_us.load(Ordering::Relaxed),
            bytes_read: self.bytes_read.load(Ordering::Relaxed),
            released: state.traversal.released(),
            window_peak_bytes: state.traversal.peak_bytes(),
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
        let mut missing = vec![];
        loop {
            match self.next_work(agent, agents, &mut missing) {
                Work::Load(unit) => {
                    let at_work = AtWork(self);
                    let loaded = self.load(&missing);
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
                    let mut state = self.lock();
                    let wake = state.traversal.left(index);
                    drop(state);
                    self.wake(wake);
                }
                Work::Done | Work::Wait => return,
            }
        }
    }

    /// Waits for work. Of a unit to be loaded, `missing` becomes the blocks to load.
    fn next_work(
        &self,
        agent: usize,
        agents: usize,
        missing: &mut Vec<usize>,
    ) -> Work<Arc<BlockMemory>> {
        let mut state = self.lock();
        loop {
            match state.traversal.next_work(agent, agents) {
                Work::Wait => {
                    state = self.loaders.wait(state).unwrap_or_else(PoisonError::into_inner);
                }
                Work::Load(unit) => {
                    missing.clear();
                    missing.extend(state.traversal.missing(unit));
                    return Work::Load(unit);
                }
                work => return work,
            }
        }
    }

    fn load(&self, missing: &[usize]) -> Result<Vec<(usize, Arc<BlockMemory>)>, StreamError> {
        let mut blocks = Vec::with_capacity(missing.len());
        for &index in missing {
            if self.ended.load(Ordering::Acquire) {
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

    fn arrive(&self, unit: usize, loaded: Result<Vec<(usize, Arc<BlockMemory>)>, StreamError>) {
        self.beats.fetch_add(1, Ordering::Relaxed);
        let mut state = self.lock();
        let wake = match loaded {
            Ok(blocks) => state.traversal.arrived(unit, blocks),
            Err(failure) => {
                state.failure.get_or_insert(failure);
                state.traversal.lost()
            }
        };
        drop(state);
        self.wake(wake);
    }

    /// Compute has used a block.
    fn give_back(&self, index: usize, loaded: Arc<BlockMemory>) {
        let mut state = self.lock();
        self.heed_revocation(&mut state);
        let (wake, last) = state.traversal.give_back(index, loaded);
        drop(state);
        self.wake(wake);
        drop(last);
    }

    fn heed_revocation(&self, state: &mut State) {
        if self.keep.is_revoked() {
            let wake = state.traversal.revoke();
            self.wake(wake);
        }
    }

    fn wake(&self, wake: Wake) {
        if matches!(wake, Wake::Compute | Wake::Everybody) {
            self.compute.notify_all();
        }
        match wake {
            Wake::Nobody | Wake::Compute => {}
            Wake::Loader => self.loaders.notify_one(),
            Wake::Loaders | Wake::Everybody => self.loaders.notify_all(),
        }
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
        state.failure.get_or_insert(StreamError::Loader);
        let wake = state.traversal.lost();
        self.0.wake(wake);
    }
}

/// Loads one block and checks its bytes against its checksum.
pub fn load_verified(source: &dyn WeightSource, block: &Block) -> Result<BlockMemory, StreamError> {
    verified(source, block, source.load(block)?)
}

/// The same for a block that stays when it has passed.
pub fn load_to_stay_verified(
    source: &dyn WeightSource,
    block: &Block,
) -> Result<BlockMemory, StreamError> {
    verified(source, block, source.load_to_stay(block)?)
}

fn verified(
    source: &dyn WeightSource,
    block: &Block,
    loaded: BlockMemory,
) -> Result<BlockMemory, StreamError> {
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
    pub(super) loaded: Option<Arc<BlockMemory>>,
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
