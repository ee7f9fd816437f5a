//! What loaders and compute do next, from the first claim to the end: a pure state machine over
//! the window. No I/O, no clock, no thread, no lock: [`super::Flow`] puts them round it, the
//! planner plays it on paper, a simulation plays it by chance.
//!
//! A *lap* is one pass over the tape. A tape that is played again and again is read ahead across
//! the seam between two laps, and what is pinned stays from lap to lap.

use super::window::Window;
use super::{Dealing, Release};
use std::ops::Range;

/// How a tape is to be played.
#[derive(Clone, Debug, Default)]
pub struct Rules<'a> {
    /// Most bytes held at once, pinned blocks not counted.
    pub window_bytes: u64,
    /// What is loaded, waited for and released as one: how many blocks each unit has, their sum
    /// being all of the tape's. Each block is a unit where nothing is said.
    pub units: &'a [usize],
    pub turns: Dealing,
    pub release: Release,
    /// How often the tape is played again after the first time; `u64::MAX` until the end.
    pub repeats: u64,
}

/// A block of the tape, whose memory is an `M`.
#[derive(Clone, Debug)]
pub struct Spot<M> {
    /// What it takes of the window.
    pub bytes: u64,
    /// Where it is there from the start, pinned: lent by somebody else.
    pub pinned: Option<M>,
    /// Whether it stays when it has been loaded and has passed.
    pub is_kept: bool,
}

/// What a loader does next.
#[derive(Debug, PartialEq, Eq)]
pub enum Work<M> {
    /// Load what is missing of this unit, and tell of its arrival, failure or loss.
    Load(usize),
    /// Let this block's memory go, and tell that it has left.
    Release(usize, M),
    /// Wait to be woken.
    Wait,
    /// Nothing more is to be done.
    Done,
}

/// Who can go on after an event: those who wait are to be woken.
#[must_use]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wake {
    Nobody,
    /// Whoever waits for a block, or for loaders to be done.
    Compute,
    /// One loader, whichever.
    Loader,
    Loaders,
    Everybody,
}

/// A tape that is played: who holds which block, and who does what next.
///
/// Loaders ask for work ([`Traversal::next_work`]) and tell what came of it: [`Traversal::arrived`],
/// [`Traversal::left`], or [`Traversal::lost`]. Compute leases blocks in the order of the tape
/// and gives each back, those of a lap in any order. Anybody may end it all.
pub struct Traversal<M> {
    window: Window,
    turns: Dealing,
    release: Release,
    units: Vec<Unit>,
    blocks: Vec<BlockState<M>>,
    /// Blocks whose unit was used, for a loader to let go.
    leaving: Vec<usize>,
    /// Loaders at work.
    busy: usize,
    released: u64,
    is_over: bool,
    has_ended: bool,
    is_revoked: bool,
}

struct Unit {
    start: usize,
    end: usize,
    /// Blocks that compute has yet to use in this lap, or a loader to let go.
    pending: usize,
    using: Using,
}

/// How far compute is with a unit in this lap.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Using {
    NotBegun,
    Begun,
    /// It is done, and what goes has not gone.
    Leaving,
}

impl Unit {
    fn blocks(&self) -> Range<usize> {
        self.start..self.end
    }

    /// All of it is to be used again.
    fn begin_anew(&mut self) {
        (self.pending, self.using) = (self.end - self.start, Using::NotBegun);
    }
}

struct BlockState<M> {
    bytes: u64,
    unit: usize,
    memory: Option<M>,
    /// Its memory is somebody else's.
    is_lent: bool,
    /// It stays when it has passed, if that is not revoked.
    stays: bool,
}

impl<M> BlockState<M> {
    fn take(&mut self) -> Option<M> {
        self.is_lent = false;
        self.memory.take()
    }
}

impl<M> Traversal<M> {
    /// A traversal of a tape of `spots`.
    ///
    /// # Panics
    /// If the traversal could not end: if the window is smaller than a unit that may be loaded, or
    /// than all that is loaded where nothing is released before the end.
    pub fn new(rules: &Rules, spots: impl IntoIterator<Item = Spot<M>>) -> Traversal<M> {
        let laps = rules.repeats.saturating_add(1);
        let mut blocks: Vec<BlockState<M>> = spots
            .into_iter()
            .map(|Spot { bytes, pinned, is_kept }| {
                let (is_lent, stays) = (pinned.is_some(), is_kept || pinned.is_some());
                BlockState { bytes, unit: 0, memory: pinned, is_lent, stays }
            })
            .collect();
        let units = cut(blocks.len(), rules.units);
        for (index, unit) in units.iter().enumerate() {
            blocks[unit.blocks()].iter_mut().for_each(|block| block.unit = index);
        }
        let sizes = units.iter().map(|unit| {
            let missing = missing_bytes(&blocks[unit.blocks()]);
            (missing.unwrap_or(0), missing.is_none())
        });
        let window = Window::new(rules.window_bytes, laps, sizes);
        let whole = |unit: &Unit| blocks[unit.blocks()].iter().map(|block| block.bytes).sum();
        let least_bytes: u64 = match rules.release {
            Release::AtEnd => missing_bytes(&blocks).unwrap_or(0),
            // What is pinned may have to be loaded in a later lap.
            Release::AfterUse if laps > 1 => units.iter().map(whole).max().unwrap_or(0),
            Release::AfterUse => 0,
        };
        assert!(least_bytes <= rules.window_bytes, "more is held at once than fits the window");
        Traversal {
            window,
            turns: rules.turns,
            release: rules.release,
            units,
            blocks,
            leaving: vec![],
            busy: 0,
            released: 0,
            is_over: false,
            has_ended: false,
            is_revoked: false,
        }
    }

    /// What the loader `agent` of `agents` does next.
    pub fn next_work(&mut self, agent: usize, agents: usize) -> Work<M> {
        if self.is_over {
            return Work::Done;
        }
        if let Some(block) = self.leaving.pop() {
            self.busy += 1;
            let memory = self.blocks[block].take().expect("what leaves is there");
            return Work::Release(block, memory);
        }
        let claim = match self.turns {
            Dealing::Next => self.window.claim(0, 1),
            Dealing::Stride => self.window.claim(agent, agents),
        };
        match claim {
            Some(unit) => {
                self.busy += 1;
                Work::Load(unit)
            }
            None if self.window.is_through() => Work::Done,
            None => Work::Wait,
        }
    }

    /// The blocks of a claimed unit that are to be loaded.
    pub fn missing(&self, unit: usize) -> impl Iterator<Item = usize> {
        self.units[unit].blocks().filter(|block| self.blocks[*block].memory.is_none())
    }

    /// A claimed unit has been loaded: its missing blocks.
    pub fn arrived(&mut self, unit: usize, memory: impl IntoIterator<Item = (usize, M)>) -> Wake {
        // What comes after the end goes at once, and before anybody who waits for it goes on.
        if self.has_ended {
            drop(memory);
        } else {
            for (block, memory) in memory {
                self.blocks[block].memory = Some(memory);
            }
            self.window.loaded(unit);
        }
        self.busy -= 1;
        Wake::Compute
    }

    /// A block that was to be let go has left.
    pub fn left(&mut self, block: usize) -> Wake {
        self.busy -= 1;
        self.released += 1;
        let unit = self.blocks[block].unit;
        self.units[unit].pending -= 1;
        match self.units[unit].pending {
            _ if self.is_over => Wake::Compute,
            0 => self.pass(unit),
            _ => Wake::Nobody,
        }
    }

    /// A loader at work will not come back: its load failed, or it panicked.
    pub fn lost(&mut self) -> Wake {
        self.busy -= 1;
        self.fail()
    }

    /// Whether `block` is there for compute.
    pub fn is_ready(&self, block: usize) -> bool {
        let unit = self.blocks[block].unit;
        self.window.is_ready(unit) && self.units[unit].using != Using::Leaving
    }

    /// The memory of `block`, once its unit is there. Compute is to give it back.
    ///
    /// # Panics
    /// If it was used in this lap already.
    pub fn lease(&mut self, block: usize) -> Option<&M> {
        if !self.is_ready(block) {
            return None;
        }
        let block = &self.blocks[block];
        self.units[block.unit].using = Using::Begun;
        Some(block.memory.as_ref().expect("a block is leased once in a lap"))
    }

    /// Compute has used a block; the last of its unit lets all of them go that do not stay. Returns
    /// its memory where compute may be the last to hold it.
    pub fn give_back(&mut self, block: usize, memory: M) -> (Wake, Option<M>) {
        if self.has_ended {
            return (Wake::Nobody, Some(memory));
        }
        let index = self.blocks[block].unit;
        self.units[index].pending -= 1;
        if self.blocks[block].is_lent && !self.stays(block) {
            // It stays with whoever lent it, as long as they will.
            self.blocks[block].take();
        }
        if self.units[index].pending > 0 {
            return (Wake::Nobody, Some(memory));
        }
        if self.release == Release::AtEnd {
            self.units[index].begin_anew();
            return (Wake::Nobody, Some(memory));
        }
        self.units[index].using = Using::Leaving;
        for block in self.units[index].blocks() {
            if self.blocks[block].memory.is_none() || self.stays(block) {
                continue;
            }
            match self.blocks[block].is_lent {
                true => drop(self.blocks[block].take()),
                false => {
                    self.units[index].pending += 1;
                    self.leaving.push(block);
                }
            }
        }
        match self.units[index].pending {
            0 => (self.pass(index), Some(memory)),
            1 => (Wake::Loader, None),
            _ => (Wake::Loaders, None),
        }
    }

    /// Whether a block that was used stays for now.
    fn stays(&self, block: usize) -> bool {
        let block = &self.blocks[block];
        let is_wanted = || !block.is_lent || self.window.comes_again(block.unit);
        match self.release {
            Release::AfterUse => block.stays && !self.is_revoked && is_wanted(),
            Release::AtEnd => true,
        }
    }

    /// A unit was used, and what was to go has gone.
    fn pass(&mut self, index: usize) -> Wake {
        let unit = &mut self.units[index];
        unit.begin_anew();
        match self.window.passed(index, missing_bytes(&self.blocks[unit.blocks()])) {
            true => Wake::Loaders,
            false => Wake::Nobody,
        }
    }

    /// Nothing stays any more. What has passed goes at once where loaders have not counted on it
    /// for the next lap, all else once it is used.
    pub fn revoke(&mut self) -> Wake {
        if std::mem::replace(&mut self.is_revoked, true) || self.release == Release::AtEnd {
            return Wake::Nobody;
        }
        for (index, unit) in self.units.iter().enumerate() {
            if unit.using != Using::NotBegun || !self.window.may_go(index) {
                continue;
            }
            for block in &mut self.blocks[unit.blocks()] {
                let is_ours = !block.is_lent;
                self.released += u64::from(block.take().is_some() && is_ours);
            }
            let missing = missing_bytes(&self.blocks[unit.blocks()]);
            self.window.gone(index, missing.unwrap_or(0));
        }
        Wake::Loaders
    }

    /// Ends it before its time: nobody loads or waits any more.
    pub fn fail(&mut self) -> Wake {
        self.is_over = true;
        Wake::Everybody
    }

    /// The same, and for good: what still arrives goes at once. Loaders may be at work still.
    pub fn end(&mut self) -> Wake {
        self.has_ended = true;
        self.fail()
    }

    /// Whether it failed or was ended.
    pub fn is_over(&self) -> bool {
        self.is_over
    }

    /// Whether a loader is at work.
    pub fn is_busy(&self) -> bool {
        self.busy > 0
    }

    /// After the end, when nobody is at work: lets all memory go, and hands over what was to be
    /// kept.
    pub fn take_kept(&mut self) -> Vec<(usize, M)> {
        let mut kept = vec![];
        for (index, block) in self.blocks.iter_mut().enumerate() {
            let is_ours = !block.is_lent;
            match block.take().filter(|_| is_ours) {
                Some(memory) if block.stays && !self.is_revoked => kept.push((index, memory)),
                Some(_) => self.released += 1,
                None => {}
            }
        }
        kept
    }

    /// Blocks whose memory was given back.
    pub fn released(&self) -> u64 {
        self.released
    }

    /// Bytes of the window that are held, or claimed.
    pub fn held_bytes(&self) -> u64 {
        self.window.held_bytes()
    }

    /// The most there were of them.
    pub fn peak_bytes(&self) -> u64 {
        self.window.peak_bytes()
    }
}

/// Cuts a tape of so many blocks into units of the given lengths, or of one block each.
fn cut(blocks: usize, lengths: &[usize]) -> Vec<Unit> {
    let unit = |start: usize, length: usize| Unit {
        start,
        end: start + length,
        pending: length,
        using: Using::NotBegun,
    };
    if lengths.is_empty() {
        return (0..blocks).map(|block| unit(block, 1)).collect();
    }
    assert_eq!(lengths.iter().sum::<usize>(), blocks, "units are cut from the tape");
    let lengths = lengths.iter().copied().filter(|length| *length > 0);
    let cut = lengths.scan(0, |end, length| {
        *end += length;
        Some(unit(*end - length, length))
    });
    cut.collect()
}

/// What is to be loaded of these blocks; nothing where all are there.
fn missing_bytes<M>(blocks: &[BlockState<M>]) -> Option<u64> {
    let missing = blocks.iter().filter(|block| block.memory.is_none()).map(|block| block.bytes);
    missing.fold(None, |sum, bytes| Some(sum.unwrap_or(0) + bytes))
}
