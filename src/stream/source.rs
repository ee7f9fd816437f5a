//! Where blocks come from: the mapped file, the read file, and two that misbehave on purpose.

use super::{Block, Grant, StreamError};
use crate::sys::map::MappedFile;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Brings blocks into memory. What it returns is the block's memory: dropping it gives the
/// memory back.
pub trait WeightSource: Send + Sync {
    /// Loads one block, unverified.
    fn load(&self, block: &Block) -> Result<Loaded, StreamError>;

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
}

/// A block in memory.
pub struct Loaded(Box<dyn AsRef<[u8]> + Send + Sync>);

impl Loaded {
    /// The block together with the grant of its bytes: both go when nobody holds it any more.
    pub fn granted(loaded: Arc<Loaded>, grant: Grant) -> Loaded {
        Loaded(Box::new(GrantedBlock { loaded, _grant: grant }))
    }
}

struct GrantedBlock {
    loaded: Arc<Loaded>,
    _grant: Grant,
}

impl AsRef<[u8]> for GrantedBlock {
    fn as_ref(&self) -> &[u8] {
        (*self.loaded).as_ref()
    }
}

impl AsRef<[u8]> for Loaded {
    fn as_ref(&self) -> &[u8] {
        (*self.0).as_ref()
    }
}

/// Layer files mapped into memory, a block at a time.
pub struct MappedSource {
    files: Vec<(PathBuf, Arc<MappedFile>)>,
    /// Bytes behind a block that stay readable with it. A block with fewer of the file behind it
    /// is copied, not mapped.
    read_ahead_bytes: usize,
    trail: Arc<Trail>,
}

/// The file of the block that was released last. Folios at a file's end may have been held by
/// neighbours when their block was released; they go when the tape has come to another file.
#[derive(Default)]
struct Trail(Mutex<Option<Arc<MappedFile>>>);

impl Trail {
    fn pass(&self, file: &Arc<MappedFile>) {
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if last.as_ref().is_some_and(|last| Arc::ptr_eq(last, file)) {
            return;
        }
        if let Some(left) = last.replace(Arc::clone(file)) {
            drop(last);
            left.drop_all();
        }
    }
}

impl MappedSource {
    /// Maps `files`; nothing is read.
    pub fn new(
        files: Vec<(PathBuf, File)>,
        read_ahead_bytes: usize,
    ) -> Result<MappedSource, StreamError> {
        let files = files
            .into_iter()
            .map(|(path, file)| match MappedFile::new(file) {
                Ok(map) => Ok((path, Arc::new(map))),
                Err(error) => Err(io_error(path, 0..0, error)),
            })
            .collect::<Result<_, _>>()?;
        Ok(MappedSource { files, read_ahead_bytes, trail: Arc::default() })
    }
}

struct MappedBlock {
    file: Arc<MappedFile>,
    range: Range<usize>,
    trail: Arc<Trail>,
}

impl AsRef<[u8]> for MappedBlock {
    fn as_ref(&self) -> &[u8] {
        self.file.bytes(self.range.clone())
    }
}

impl Drop for MappedBlock {
    fn drop(&mut self) {
        self.file.release(self.range.clone());
        self.trail.pass(&self.file);
    }
}

impl WeightSource for MappedSource {
    fn load(&self, block: &Block) -> Result<Loaded, StreamError> {
        let (path, file) = &self.files[block.file];
        let wanted = block.offset..block.offset + block.bytes;
        let range = usize_range(&wanted, file.len())
            .ok_or_else(|| io_error(path.clone(), wanted.clone(), cut_short()))?;
        let readable = range.start..range.end + self.read_ahead_bytes;
        if readable.end > file.len() {
            return read_block(path, file, wanted);
        }
        let held = MappedBlock { file: Arc::clone(file), range, trail: Arc::clone(&self.trail) };
        file.populate(readable).map_err(|e| io_error(path.clone(), wanted, e))?;
        Ok(Loaded(Box::new(held)))
    }

    fn read(
        &self,
        file: usize,
        ranges: &[Range<u64>],
        sink: &mut dyn FnMut(usize, &[u8]),
    ) -> Result<(), StreamError> {
        let (path, file) = &self.files[file];
        read_ranges(path, file, ranges, sink)
    }

    fn path(&self, file: usize) -> PathBuf {
        self.files[file].0.clone()
    }
}

/// Layer files read into buffers of our own: for kernels without MADV_POPULATE_READ, where
/// touching a page with a bad sector behind it would kill the process.
pub struct ReadSource {
    files: Vec<(PathBuf, Arc<MappedFile>)>,
}

impl ReadSource {
    /// Opens `files` for reading; nothing is read.
    pub fn new(files: Vec<(PathBuf, File)>) -> Result<ReadSource, StreamError> {
        MappedSource::new(files, 0).map(|mapped| ReadSource { files: mapped.files })
    }
}

impl WeightSource for ReadSource {
    fn load(&self, block: &Block) -> Result<Loaded, StreamError> {
        let (path, file) = &self.files[block.file];
        let wanted = block.offset..block.offset + block.bytes;
        read_block(path, file, wanted)
    }

    fn read(
        &self,
        file: usize,
        ranges: &[Range<u64>],
        sink: &mut dyn FnMut(usize, &[u8]),
    ) -> Result<(), StreamError> {
        let (path, file) = &self.files[file];
        read_ranges(path, file, ranges, sink)
    }

    fn path(&self, file: usize) -> PathBuf {
        self.files[file].0.clone()
    }
}

/// Reads a block into a buffer of our own.
fn read_block(path: &Path, file: &MappedFile, wanted: Range<u64>) -> Result<Loaded, StreamError> {
    let mut buffer = AlignedBuffer::zeroed((wanted.end - wanted.start) as usize);
    file.read_at(buffer.as_mut(), wanted.start)
        .map_err(|e| io_error(path.to_path_buf(), wanted.clone(), e))?;
    file.drop_cached(0..wanted.end);
    Ok(Loaded(Box::new(buffer)))
}

/// Starts all reads at once, so that the disk sees them together, then takes them in order and
/// drops what they left in the page cache.
fn read_ranges(
    path: &Path,
    file: &MappedFile,
    ranges: &[Range<u64>],
    sink: &mut dyn FnMut(usize, &[u8]),
) -> Result<(), StreamError> {
    for range in ranges {
        file.read_ahead(range.clone());
    }
    let mut buffer = vec![];
    for (index, range) in ranges.iter().enumerate() {
        buffer.resize((range.end - range.start) as usize, 0);
        file.read_at(&mut buffer, range.start)
            .map_err(|e| io_error(path.to_path_buf(), range.clone(), e))?;
        sink(index, &buffer);
    }
    if let Some(last) = ranges.iter().map(|range| range.end).max() {
        file.drop_cached(0..last);
    }
    Ok(())
}

/// A buffer aligned for the widest vectors, with room for a kernel to read ahead.
struct AlignedBuffer {
    storage: Vec<u8>,
    range: Range<usize>,
}

const BUFFER_ALIGN: usize = 64;

impl AlignedBuffer {
    fn zeroed(bytes: usize) -> AlignedBuffer {
        let storage = vec![0; bytes + 2 * BUFFER_ALIGN];
        let start =
            storage.as_ptr().addr().next_multiple_of(BUFFER_ALIGN) - storage.as_ptr().addr();
        AlignedBuffer { storage, range: start..start + bytes }
    }

    fn as_mut(&mut self) -> &mut [u8] {
        &mut self.storage[self.range.clone()]
    }
}

impl AsRef<[u8]> for AlignedBuffer {
    fn as_ref(&self) -> &[u8] {
        &self.storage[self.range.clone()]
    }
}

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

    fn wait_for(&self, bytes: u64) {
        let takes = Duration::from_secs_f64(bytes as f64 / self.bytes_per_s as f64);
        let mut free_at = self.free_at.lock().unwrap_or_else(PoisonError::into_inner);
        let done = (*free_at).max(Instant::now()) + takes;
        *free_at = done;
        drop(free_at);
        std::thread::sleep(done.saturating_duration_since(Instant::now()));
    }
}

impl WeightSource for ThrottledSource {
    fn load(&self, block: &Block) -> Result<Loaded, StreamError> {
        let loaded = self.inner.load(block)?;
        self.wait_for(block.bytes);
        Ok(loaded)
    }

    fn read(
        &self,
        file: usize,
        ranges: &[Range<u64>],
        sink: &mut dyn FnMut(usize, &[u8]),
    ) -> Result<(), StreamError> {
        self.wait_for(ranges.iter().map(|range| range.end - range.start).sum());
        self.inner.read(file, ranges, sink)
    }

    fn path(&self, file: usize) -> PathBuf {
        self.inner.path(file)
    }
}

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
    /// The read takes `delay` longer.
    pub delay_every: u64,
    pub delay: Duration,
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
        let Faults { seed, error_every, short_every, corrupt_every, delay_every, delay } =
            self.faults;
        let count = self.loads.fetch_add(1, Ordering::Relaxed);
        let strikes = |every: u64, kind: u64| {
            every > 0 && mix(seed ^ mix(count ^ (kind << 56))).is_multiple_of(every)
        };
        let wanted = block.offset..block.offset + block.bytes;
        if strikes(delay_every, 1) {
            std::thread::sleep(delay);
        }
        if strikes(error_every, 2) {
            let error = io::Error::from_raw_os_error(libc::EIO);
            return Err(io_error(self.path(block.file), wanted, error));
        }
        if strikes(short_every, 3) {
            return Err(io_error(self.path(block.file), wanted, cut_short()));
        }
        let loaded = self.inner.load(block)?;
        if !strikes(corrupt_every, 4) || block.bytes == 0 {
            return Ok(loaded);
        }
        let mut copy = AlignedBuffer::zeroed(block.bytes as usize);
        copy.as_mut().copy_from_slice(loaded.as_ref());
        let at = (mix(seed ^ count) % block.bytes) as usize;
        copy.as_mut()[at] ^= 0x10;
        Ok(Loaded(Box::new(copy)))
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
}

fn usize_range(range: &Range<u64>, limit: usize) -> Option<Range<usize>> {
    let end = usize::try_from(range.end).ok().filter(|end| *end <= limit)?;
    Some(usize::try_from(range.start).ok()?..end)
}

fn cut_short() -> io::Error {
    io::Error::new(io::ErrorKind::UnexpectedEof, "the file ends before it")
}

fn io_error(path: PathBuf, range: Range<u64>, error: io::Error) -> StreamError {
    let (offset, bytes) = (range.start, range.end - range.start);
    StreamError::Io { path, offset, bytes, error: Arc::new(error) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    /// A kernel reads ahead of the panel that it multiplies with. Behind the last block of a file
    /// that ends with it there is nothing mapped, and the process died by a signal.
    #[test]
    fn a_block_with_nothing_behind_it_is_copied() {
        const BLOCK_BYTES: u64 = 1 << 16;
        let mut file = tempfile::tempfile().unwrap();
        let content: Vec<u8> = (0..2 * BLOCK_BYTES).map(|i| (i % 251) as u8).collect();
        file.write_all(&content).unwrap();
        let source = MappedSource::new(vec![("layer".into(), file)], 64).unwrap();
        let mapped = source.files[0].1.bytes(0..content.len()).as_ptr_range();
        // Mapping needs a kernel that populates.
        let blocks = if crate::sys::map::populate_supported() { 0..2 } else { 1..2 };
        for index in blocks {
            let offset = index * BLOCK_BYTES;
            let block = Block { file: 0, offset, bytes: BLOCK_BYTES, checksum: 0 };
            let loaded = source.load(&block).unwrap();
            let bytes = loaded.as_ref();
            assert_eq!(bytes, &content[offset as usize..(offset + BLOCK_BYTES) as usize]);
            assert_eq!(mapped.contains(&bytes.as_ptr()), index == 0, "block {index}");
            assert!(bytes.as_ptr().addr().is_multiple_of(64), "a copy is used in place too");
        }
    }
}
