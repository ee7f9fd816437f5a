//! A source as slow as one likes.

use super::{BlockMemory, WeightSource};
use crate::stream::{Block, StreamError};
use std::ops::Range;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// A source held to a bandwidth, as an SD card or eMMC would be.
pub struct ThrottledSource {
    inner: Arc<dyn WeightSource>,
    bytes_per_s: u64,
    free_at: Mutex<Instant>,
}

impl ThrottledSource {
    /// Slows `inner` to `bytes_per_s`, over all loaders together.
    pub fn new(inner: Arc<dyn WeightSource>, bytes_per_s: u64) -> ThrottledSource {
        ThrottledSource {
            inner,
            bytes_per_s: bytes_per_s.max(1),
            free_at: Mutex::new(Instant::now()),
        }
    }

    /// Queues a request at the imitated disk; the time when it is done there.
    fn queue(&self, bytes: u64) -> Instant {
        let takes = Duration::from_secs_f64(bytes as f64 / self.bytes_per_s as f64);
        let mut free_at = self.free_at.lock().unwrap_or_else(PoisonError::into_inner);
        let done = (*free_at).max(Instant::now()) + takes;
        *free_at = done;
        done
    }

    fn slowed(
        &self,
        block: &Block,
        load: impl FnOnce() -> Result<BlockMemory, StreamError>,
    ) -> Result<BlockMemory, StreamError> {
        // The real disk reads while the imitated one does.
        let done = self.queue(block.bytes);
        let loaded = load()?;
        sleep_until(done);
        Ok(loaded)
    }
}

fn sleep_until(then: Instant) {
    std::thread::sleep(then.saturating_duration_since(Instant::now()));
}

impl WeightSource for ThrottledSource {
    fn load(&self, block: &Block) -> Result<BlockMemory, StreamError> {
        self.slowed(block, || self.inner.load(block))
    }

    fn load_to_stay(&self, block: &Block) -> Result<BlockMemory, StreamError> {
        self.slowed(block, || self.inner.load_to_stay(block))
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
        sleep_until(self.queue(ranges.iter().map(|range| range.end - range.start).sum()));
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
