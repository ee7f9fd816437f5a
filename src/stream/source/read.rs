//! Blocks read through the page cache, for kernels that cannot bring in a mapping's pages.

use super::{Loaded, MappedSource, SlotBlock, WeightSource, io_error};
use crate::stream::{Block, Slots, StreamError};
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

/// Layer files read into slots of our own: for kernels without MADV_POPULATE_READ, where touching
/// a page with a bad sector behind it would kill the process.
pub struct ReadSource {
    files: Arc<MappedSource>,
    /// Bytes behind a block that are readable with it.
    read_ahead_bytes: usize,
    slots: Arc<Slots>,
}

impl ReadSource {
    /// Blocks from `files`, of which no page is mapped.
    pub fn new(files: Arc<MappedSource>, read_ahead_bytes: usize, slots: Arc<Slots>) -> ReadSource {
        ReadSource { files, read_ahead_bytes, slots }
    }
}

impl WeightSource for ReadSource {
    fn load(&self, block: &Block) -> Result<Loaded, StreamError> {
        let (path, file) = self.files.file(block.file);
        let range = block.offset..block.offset + block.bytes;
        let failed = |error| io_error(path.to_path_buf(), range.clone(), error);
        let bytes = block.bytes as usize;
        let mut slot = self.slots.lend(bytes + self.read_ahead_bytes).map_err(failed)?;
        file.read_at(&mut slot.buffer_mut().as_mut()[..bytes], block.offset).map_err(failed)?;
        file.drop_consumed(range.end);
        Ok(Loaded(Box::new(SlotBlock { slot, bytes })))
    }

    fn read(
        &self,
        file: usize,
        ranges: &[Range<u64>],
        sink: &mut dyn FnMut(usize, &[u8]),
    ) -> Result<(), StreamError> {
        self.files.read(file, ranges, sink)
    }

    fn path(&self, file: usize) -> PathBuf {
        self.files.path(file)
    }

    fn held_bytes(&self, block: &Block) -> u64 {
        SlotBlock::held_bytes(block, self.read_ahead_bytes)
    }

    fn name(&self) -> &'static str {
        "read"
    }
}
