//! Blocks read past the page cache.

use super::{BlockMemory, SlotBlock, WeightSource, cut_short, io_error};
use crate::stream::{Block, Slots, StreamError};
use crate::sys::direct::DirectFile;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

/// Layer files read into slots of our own with O_DIRECT: the page cache holds nothing of them.
pub struct DirectSource {
    files: Vec<DirectFile>,
    /// The same files for what direct reads are too coarse for: rows of tables.
    buffered: Arc<dyn WeightSource>,
    /// Bytes behind a block that are readable with it.
    read_ahead_bytes: usize,
    slots: Arc<Slots>,
}

impl DirectSource {
    /// Blocks from `files`, and all else from `buffered`, which has the same files open.
    pub fn new(
        files: Vec<DirectFile>,
        buffered: Arc<dyn WeightSource>,
        read_ahead_bytes: usize,
        slots: Arc<Slots>,
    ) -> DirectSource {
        DirectSource { files, buffered, read_ahead_bytes, slots }
    }
}

impl WeightSource for DirectSource {
    fn load(&self, block: &Block) -> Result<BlockMemory, StreamError> {
        let bytes = block.bytes as usize;
        let failed = |error| {
            io_error(self.path(block.file), block.offset..block.offset + block.bytes, error)
        };
        let mut slot = self.slots.lend(bytes + self.read_ahead_bytes).map_err(failed)?;
        let read = self.files[block.file].read_at(slot.buffer_mut(), bytes, block.offset);
        if read.map_err(failed)? < bytes {
            return Err(failed(cut_short()));
        }
        Ok(BlockMemory(Box::new(SlotBlock { slot, bytes })))
    }

    fn read(
        &self,
        file: usize,
        ranges: &[Range<u64>],
        sink: &mut dyn FnMut(usize, &[u8]),
    ) -> Result<(), StreamError> {
        self.buffered.read(file, ranges, sink)
    }

    fn path(&self, file: usize) -> PathBuf {
        self.buffered.path(file)
    }

    fn held_bytes(&self, block: &Block) -> u64 {
        SlotBlock::held_bytes(block, self.read_ahead_bytes)
    }

    fn name(&self) -> &'static str {
        "direct"
    }
}
