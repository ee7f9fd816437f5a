//! Where blocks come from: the mapped file, the read file, the disk past the page cache, and two
//! that misbehave on purpose.

mod direct;
mod faulty;
mod mapped;
mod read;
mod throttled;

pub use direct::DirectSource;
pub use faulty::{Faults, FaultySource};
pub use mapped::MappedSource;
pub use read::ReadSource;
pub use throttled::ThrottledSource;

use super::slots::Slot;
use super::{Block, Grant, StreamError};
use crate::sys::aligned::AlignedBuffer;
use crate::sys::direct::PageBuffer;
use std::io;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

/// Brings blocks into memory. What it returns is the block's memory: dropping it gives the
/// memory back.
pub trait WeightSource: Send + Sync {
    /// Loads one block, unverified.
    fn load(&self, block: &Block) -> Result<BlockMemory, StreamError>;

    /// Loads one block that is to stay when it has passed, unverified: into memory of our own,
    /// which nobody changes once it is verified.
    fn load_to_stay(&self, block: &Block) -> Result<BlockMemory, StreamError> {
        self.load(block)
    }

    /// Files whose bytes may be others than when blocks of them were loaded, since this was asked
    /// before. None where blocks come into memory of our own.
    ///
    /// # Errors
    /// For a file of which something is lost.
    fn changed_files(&self) -> Result<Vec<usize>, StreamError> {
        Ok(vec![])
    }

    /// Reads the rows of a table that `ranges` of one file hold, handing each range's bytes to
    /// `sink` in order.
    fn read(
        &self,
        file: usize,
        ranges: &[Range<u64>],
        sink: &mut dyn FnMut(usize, &[u8]),
    ) -> Result<(), StreamError>;

    /// Path of a file, for errors.
    fn path(&self, file: usize) -> PathBuf;

    /// Bytes of memory that a block takes when it is loaded.
    fn held_bytes(&self, block: &Block) -> u64 {
        block.bytes
    }

    /// What brings the blocks in: "mapped", "read" or "direct".
    fn name(&self) -> &'static str;
}

/// A block in memory.
pub struct BlockMemory(Box<dyn Memory>);

/// What holds a block's bytes.
trait Memory: AsRef<[u8]> + Send + Sync {
    /// From now on the memory is not the window's.
    fn leave_window(&self) {}
}

impl BlockMemory {
    /// The block together with the grant of its bytes: both go when nobody holds it any more.
    pub fn granted(loaded: Arc<BlockMemory>, grant: Grant) -> BlockMemory {
        loaded.0.leave_window();
        BlockMemory(Box::new(GrantedBlock { loaded, _grant: grant }))
    }
}

struct GrantedBlock {
    loaded: Arc<BlockMemory>,
    _grant: Grant,
}

impl Memory for GrantedBlock {}

impl AsRef<[u8]> for GrantedBlock {
    fn as_ref(&self) -> &[u8] {
        (*self.loaded).as_ref()
    }
}

impl AsRef<[u8]> for BlockMemory {
    fn as_ref(&self) -> &[u8] {
        (*self.0).as_ref()
    }
}

/// A block at the beginning of a slot.
struct SlotBlock {
    slot: Slot,
    bytes: usize,
}

/// Bytes of memory that a block of so many takes with what is readable behind it, whatever brings it
/// in: the whole pages of its slot.
pub fn slot_bytes(block_bytes: u64, read_ahead_bytes: usize) -> u64 {
    PageBuffer::rounded(block_bytes as usize + read_ahead_bytes) as u64
}

impl SlotBlock {
    /// Bytes that a block takes with what is readable behind it: the whole pages of its slot.
    fn held_bytes(block: &Block, read_ahead_bytes: usize) -> u64 {
        slot_bytes(block.bytes, read_ahead_bytes)
    }
}

impl AsRef<[u8]> for SlotBlock {
    fn as_ref(&self) -> &[u8] {
        &self.slot.buffer().as_ref()[..self.bytes]
    }
}

impl Memory for SlotBlock {
    fn leave_window(&self) {
        self.slot.pin();
    }
}

impl Memory for AlignedBuffer {}

fn cut_short() -> io::Error {
    io::Error::new(io::ErrorKind::UnexpectedEof, "the file ends before it")
}

fn io_error(path: PathBuf, range: Range<u64>, error: io::Error) -> StreamError {
    let (offset, bytes) = (range.start, range.end - range.start);
    StreamError::Io { path, offset, bytes, error: Arc::new(error) }
}
