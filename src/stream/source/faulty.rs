//! A source that fails on purpose.

use super::{AlignedBuffer, Loaded, WeightSource, cut_short, io_error};
use crate::stream::{Block, StreamError};
use std::io;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// What a [`FaultySource`] does, each as one in how many loads; 0 is never.
#[derive(Clone, Copy, Debug, Default)]
pub struct Faults {
    pub seed: u64,
    /// The read fails with EIO.
    pub error_every: u64,
    /// The read ends early.
    pub short_every: u64,
    /// One bit is flipped.
    pub corrupt_every: u64,
    /// The loader panics.
    pub panic_every: u64,
    /// The read takes `delay` longer.
    pub delay_every: u64,
    pub delay: Duration,
    /// Microseconds that each read takes longer, which may change at any time: a disk that grows
    /// slow.
    pub slow_us: Option<&'static AtomicU64>,
}

/// A source that fails as disks do, by seed.
pub struct FaultySource {
    inner: Arc<dyn WeightSource>,
    faults: Faults,
    loads: AtomicU64,
}

impl FaultySource {
    /// Makes `inner` fail as `faults` say.
    pub fn new(inner: Arc<dyn WeightSource>, faults: Faults) -> FaultySource {
        FaultySource { inner, faults, loads: AtomicU64::new(0) }
    }

    fn strike(
        &self,
        block: &Block,
        load: impl FnOnce() -> Result<Loaded, StreamError>,
    ) -> Result<Loaded, StreamError> {
        let Faults {
            seed,
            error_every,
            short_every,
            corrupt_every,
            panic_every,
            delay_every,
            delay,
            slow_us,
        } = self.faults;
        let count = self.loads.fetch_add(1, Ordering::Relaxed);
        let strikes = |every: u64, kind: u64| {
            every > 0 && mix(seed ^ mix(count ^ (kind << 56))).is_multiple_of(every)
        };
        let wanted = block.offset..block.offset + block.bytes;
        if strikes(delay_every, 1) {
            std::thread::sleep(delay);
        }
        if let Some(slow_us) = slow_us.map(|us| us.load(Ordering::Relaxed)).filter(|us| *us > 0) {
            std::thread::sleep(Duration::from_micros(slow_us));
        }
        assert!(!strikes(panic_every, 5), "a loader's panic that was asked for");
        if strikes(error_every, 2) {
            let error = io::Error::from_raw_os_error(libc::EIO);
            return Err(io_error(self.path(block.file), wanted, error));
        }
        if strikes(short_every, 3) {
            return Err(io_error(self.path(block.file), wanted, cut_short()));
        }
        let loaded = load()?;
        if !strikes(corrupt_every, 4) || block.bytes == 0 {
            return Ok(loaded);
        }
        let mut copy = AlignedBuffer::zeroed(block.bytes as usize);
        copy.as_mut().copy_from_slice(loaded.as_ref());
        let at = (mix(seed ^ count) % block.bytes) as usize;
        copy.as_mut()[at] ^= 0x10;
        Ok(Loaded(Box::new(copy)))
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
    fn load(&self, block: &Block) -> Result<Loaded, StreamError> {
        self.strike(block, || self.inner.load(block))
    }

    fn load_to_stay(&self, block: &Block) -> Result<Loaded, StreamError> {
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
        self.inner.read(file, ranges, sink)
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
