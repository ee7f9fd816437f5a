//! A source that fails on purpose.

use super::{BlockMemory, WeightSource, cut_short, io_error};
use crate::stream::{Block, StreamError};
use crate::sys::aligned::AlignedBuffer;
use std::collections::HashMap;
use std::io;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// What a [`FaultySource`] does, each as one in how many loads, or reads of rows; 0 is never.
#[derive(Clone, Copy, Debug, Default)]
pub struct Faults {
    pub seed: u64,
    /// The read fails with EIO.
    pub error_every: u64,
    /// The read ends early.
    pub short_every: u64,
    /// One bit is flipped.
    pub corrupt_every: u64,
    /// The loader panics; reads of rows do not.
    pub panic_every: u64,
    /// The read takes `delay` longer.
    pub delay_every: u64,
    pub delay: Duration,
    /// Microseconds that each read takes longer, which may change at any time: a disk that grows
    /// slow.
    pub slow_us: Option<&'static AtomicU64>,
}

/// A source that fails as disks do, by seed: by what is read and how often it was before, whoever
/// comes first.
pub struct FaultySource {
    inner: Arc<dyn WeightSource>,
    faults: Faults,
    /// How often each place of a file was read.
    reads: Mutex<HashMap<(usize, u64), u64>>,
}

/// What strikes one read.
struct Dice(u64);

impl Dice {
    fn strikes(&self, every: u64, kind: u64) -> bool {
        every > 0 && mix(self.0 ^ kind).is_multiple_of(every)
    }

    /// `bytes` with one bit flipped.
    fn corrupt(&self, bytes: &[u8]) -> AlignedBuffer {
        let mut copy = AlignedBuffer::zeroed(bytes.len());
        copy.as_mut().copy_from_slice(bytes);
        let at = (mix(self.0) % bytes.len() as u64) as usize;
        copy.as_mut()[at] ^= 0x10;
        copy
    }
}

impl FaultySource {
    /// Makes `inner` fail as `faults` say.
    pub fn new(inner: Arc<dyn WeightSource>, faults: Faults) -> FaultySource {
        FaultySource { inner, faults, reads: Mutex::default() }
    }

    /// Delays a read of `wanted`, and fails it where the seed says so.
    fn roll(&self, file: usize, wanted: Range<u64>) -> Result<Dice, StreamError> {
        let Faults { seed, error_every, short_every, delay_every, delay, slow_us, .. } =
            self.faults;
        let mut reads = self.reads.lock().unwrap_or_else(PoisonError::into_inner);
        let count = reads.entry((file, wanted.start)).or_default();
        let dice = Dice(mix(seed ^ mix(*count ^ mix(wanted.start ^ mix(file as u64)))));
        *count += 1;
        drop(reads);
        if dice.strikes(delay_every, 1) {
            std::thread::sleep(delay);
        }
        if let Some(slow_us) = slow_us.map(|us| us.load(Ordering::Relaxed)).filter(|us| *us > 0) {
            std::thread::sleep(Duration::from_micros(slow_us));
        }
        let error = match (dice.strikes(error_every, 2), dice.strikes(short_every, 3)) {
            (true, _) => io::Error::from_raw_os_error(libc::EIO),
            (false, true) => cut_short(),
            (false, false) => return Ok(dice),
        };
        Err(io_error(self.path(file), wanted, error))
    }

    fn strike(
        &self,
        block: &Block,
        load: impl FnOnce() -> Result<BlockMemory, StreamError>,
    ) -> Result<BlockMemory, StreamError> {
        let dice = self.roll(block.file, block.offset..block.offset + block.bytes)?;
        let panics = dice.strikes(self.faults.panic_every, 5);
        assert!(!panics, "a loader's panic that was asked for");
        let loaded = load()?;
        match dice.strikes(self.faults.corrupt_every, 4) && block.bytes > 0 {
            true => Ok(BlockMemory(Box::new(dice.corrupt(loaded.as_ref())))),
            false => Ok(loaded),
        }
    }
}

/// SplitMix64's output function: a well-mixed number from a counter.
fn mix(mut z: u64) -> u64 {
    z = z.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

impl WeightSource for FaultySource {
    fn load(&self, block: &Block) -> Result<BlockMemory, StreamError> {
        self.strike(block, || self.inner.load(block))
    }

    fn load_to_stay(&self, block: &Block) -> Result<BlockMemory, StreamError> {
        self.strike(block, || self.inner.load_to_stay(block))
    }

    fn changed_files(&self) -> Result<Vec<usize>, StreamError> {
        self.inner.changed_files()
    }

    fn read(
        &self,
        file: usize,
        ranges: &[Range<u64>],
        sink: &mut dyn FnMut(usize, &[u8]),
    ) -> Result<(), StreamError> {
        let Some(first) = ranges.first() else { return Ok(()) };
        let dice = self.roll(file, first.clone())?;
        let is_corrupt = dice.strikes(self.faults.corrupt_every, 4);
        self.inner.read(file, ranges, &mut |range, bytes| match is_corrupt && range == 0 {
            true => sink(range, dice.corrupt(bytes).as_mut()),
            false => sink(range, bytes),
        })
    }

    fn path(&self, file: usize) -> PathBuf {
        self.inner.path(file)
    }

    fn held_bytes(&self, block: &Block) -> u64 {
        self.inner.held_bytes(block)
    }

    fn name(&self) -> &'static str {
        self.inner.name()
    }
}
