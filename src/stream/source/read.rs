//! Blocks read through the page cache, for kernels that cannot bring in a mapping's pages.

use super::{BlockMemory, MappedSource, WeightSource};
use crate::stream::{Block, StreamError};
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

/// Layer files read into slots of our own: for kernels without MADV_POPULATE_READ, where touching
/// a page with a bad sector behind it would kill the process.
pub struct ReadSource {
    files: Arc<MappedSource>,
}

impl ReadSource {
    /// Blocks from `files`, of which no page is mapped.
    pub fn new(files: Arc<MappedSource>) -> ReadSource {
        ReadSource { files }
    }
}

impl WeightSource for ReadSource {
    fn load(&self, block: &Block) -> Result<BlockMemory, StreamError> {
        self.files.load_to_stay(block)
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
        self.files.held_bytes(block)
    }

    fn name(&self) -> &'static str {
        "read"
    }
}
