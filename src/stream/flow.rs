//! One traversal of a tape: loaders bring blocks in, compute leases them, loaders let them go.

use super::window::{Claim, Window};
use super::{Block, Loaded, StreamError, Trace, WeightSource, What};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;
use xxhash_rust::xxh3::xxh3_64;

/// The traversal that compute and loaders share.
pub struct Flow {
    source: Arc<dyn WeightSource>,
    tape: Arc<[Block]>,
    keep: usize,
    trace: Option<Arc<Trace>>,
    beats: Arc<AtomicU64>,
    state: Mutex<State>,
    /// A block has arrived, or the flow has failed or ended.
    ready: Condvar,
    /// A block waits to be released, or the flow has ended.
    room: Condvar,
    stall_us: AtomicU64,
    bytes_read: AtomicU64,
    released: AtomicU64,
    ended: AtomicBool,
}

/// How a tape is to be played.
#[derive(Clone, Default)]
pub struct Course<'a> {
    /// Most bytes held at once, pinned blocks not counted.
    pub window_bytes: u64,
    /// Blocks that are in memory already, by index.
    pub pins: &'a [Option<Arc<Loaded>>],
    /// Blocks below this index stay when they have passed: [`Flow::end`] hands them over.
    pub keep: usize,
    /// Where to note what happens.
    pub trace: Option<Arc<Trace>>,
    /// Grows with every block that arrives or is leased.
    pub beats: Arc<AtomicU64>,
}

struct State {
    window: Window,
    /// Blocks that have arrived, pinned ones from the start.
    arrived: Vec<Option<Arc<Loaded>>>,
    /// Blocks whose lease was dropped, for a loader to let go.
    leaving: Vec<(usize, Arc<Loaded>)>,
    failure: Option<StreamError>,
    /// Loaders at work on a block.
    busy: usize,
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
    /// If a block that is not pinned is larger than the window.
    pub fn new(source: Arc<dyn WeightSource>, tape: Arc<[Block]>, course: Course) -> Arc<Flow> {
        let Course { window_bytes, pins, keep, trace, beats } = course;
        let pinned = |index: usize| pins.get(index).is_some_and(Option::is_some);
        let sizes = tape.iter().enumerate().map(|(i, b)| (source.held_bytes(b), pinned(i)));
        let window = Window::new(window_bytes, sizes);
        let arrived = (0..tape.len()).map(|i| pins.get(i).cloned().flatten()).collect();
        let state = State { window, arrived, leaving: vec![], failure: None, busy: 0 };
        Arc::new(Flow {
            source,
            tape,
            keep,
            trace,
            beats,
            state: Mutex::new(state),
            ready: Condvar::new(),
            room: Condvar::new(),
            stall_us: AtomicU64::new(0),
            bytes_read: AtomicU64::new(0),
            released: AtomicU64::new(0),
            ended: AtomicBool::new(false),
        })
    }

    /// Waits until block `index` is there, without borrowing it.
    pub fn wait_for(&self, index: usize) -> Result<(), StreamError> {
        self.wait(index).map(drop)
    }

    fn wait(&self, index: usize) -> Result<MutexGuard<'_, State>, StreamError> {
        let mut state = self.lock();
        if !state.window.is_ready(index) {
            let _waiting = self.trace.as_ref().map(|t| t.span(What::Wait { block: index }));
            let waiting_since = Instant::now();
            while !state.window.is_ready(index) && state.failure.is_none() {
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
        self.released.fetch_add(state.leaving.len() as u64, Ordering::Relaxed);
        state.leaving.clear();
        let kept = |index: usize| index < self.keep && state.window.is_ready(index);
        arrived.into_iter().enumerate().filter(|(i, _)| kept(*i)).filter_map(with_block).collect()
    }

    /// What the traversal has cost so far.
    pub fn counters(&self) -> FlowCounters {
        FlowCounters {
            stall_us: self.stall_us.load(Ordering::Relaxed),
            bytes_read: self.bytes_read.load(Ordering::Relaxed),
            released: self.released.load(Ordering::Relaxed),
        }
    }

    /// Loads and releases until the tape has been claimed and let go, or the flow has ended.
    /// Loader threads live in here during a pass.
    pub(super) fn serve(&self) {
        loop {
            match self.next_work() {
                Work::Load(index) => self.load(index),
                Work::Release(index, loaded) => {
                    let releasing =
                        self.trace.as_ref().map(|t| t.span(What::Release { block: index }));
                    drop(loaded);
                    drop(releasing);
                    self.released.fetch_add(1, Ordering::Relaxed);
                    let mut state = self.lock();
                    state.window.released(index);
                    state.busy -= 1;
                    self.wake_all();
                }
                Work::Done => return,
            }
        }
    }

    fn next_work(&self) -> Work {
        let mut state = self.lock();
        loop {
            if state.failure.is_some() {
                return Work::Done;
            }
            if let Some((index, loaded)) = state.leaving.pop() {
                state.busy += 1;
                return Work::Release(index, loaded);
            }
            match state.window.claim() {
                Claim::Load(index) => {
                    state.busy += 1;
                    return Work::Load(index);
                }
                Claim::Finished if state.window.held_bytes() == 0 => return Work::Done,
                Claim::Full | Claim::Finished => {
                    state = self.room.wait(state).unwrap_or_else(PoisonError::into_inner);
                }
            }
        }
    }

    fn load(&self, index: usize) {
        let block = &self.tape[index];
        let what = What::Load { block: index, bytes: block.bytes };
        let loading = self.trace.as_ref().map(|trace| trace.span(what));
        let loaded = load_verified(&*self.source, block).map(Arc::new);
        drop(loading);
        self.beats.fetch_add(1, Ordering::Relaxed);
        let mut state = self.lock();
        state.busy -= 1;
        match loaded {
            Ok(loaded) => {
                self.bytes_read.fetch_add(block.bytes, Ordering::Relaxed);
                if !self.ended.load(Ordering::Acquire) {
                    state.arrived[index] = Some(loaded);
                    state.window.loaded(index);
                }
            }
            Err(failure) => {
                state.failure.get_or_insert(failure);
            }
        }
        self.wake_all();
    }

    fn give_back(&self, index: usize, loaded: Arc<Loaded>) {
        let mut state = self.lock();
        // A pinned block is not the window's to release; after the end nothing is.
        if state.arrived.is_empty() || state.window.is_pinned(index) {
            return;
        }
        if index < self.keep {
            state.window.kept(index);
        } else {
            state.arrived[index] = None;
            state.leaving.push((index, loaded));
        }
        self.room.notify_one();
    }

    fn wake_all(&self) {
        self.ready.notify_all();
        self.room.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn with_block(entry: (usize, Option<Arc<Loaded>>)) -> Option<(usize, Arc<Loaded>)> {
    let (index, loaded) = entry;
    Some((index, loaded?))
}

/// Loads one block and checks its bytes against its checksum.
pub fn load_verified(source: &dyn WeightSource, block: &Block) -> Result<Loaded, StreamError> {
    let loaded = source.load(block)?;
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
    loaded: Option<Arc<Loaded>>,
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
