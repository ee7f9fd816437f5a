//! Blocks of the mapped file.

use super::{BlockMemory, Memory, SlotBlock, WeightSource, cut_short, io_error};
use crate::stream::slots::Mapped;
use crate::stream::{Block, Slots, StreamError};
use crate::sys::aligned::AlignedBuffer;
use crate::sys::map::{LARGEST_PAGE_BYTES, MappedFile, page_size};
use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

/// Layer files mapped into memory, a block at a time.
pub struct MappedSource {
    files: Vec<(PathBuf, Arc<MappedFile>)>,
    /// Bytes behind a block that stay readable with it. A block with fewer of the file behind it
    /// is copied, not mapped.
    read_ahead_bytes: usize,
    /// Where blocks go that stay, and whose room those take that do not.
    slots: Arc<Slots>,
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
        slots: Arc<Slots>,
    ) -> Result<MappedSource, StreamError> {
        let files = files
            .into_iter()
            .map(|(path, file)| match MappedFile::new(file) {
                Ok(map) => Ok((path, Arc::new(map))),
                Err(error) => Err(io_error(path, 0..0, error)),
            })
            .collect::<Result<_, _>>()?;
        Ok(MappedSource { files, read_ahead_bytes, slots, trail: Arc::default() })
    }
}

impl MappedSource {
    /// The files, with their paths.
    pub fn files(&self) -> impl Iterator<Item = (&PathBuf, &File)> {
        self.files.iter().map(|(path, map)| (path, map.file()))
    }
}

struct MappedBlock {
    file: Arc<MappedFile>,
    range: Range<usize>,
    /// What goes with it: also the page behind that was mapped to be read ahead into, unless the next
    /// block begins there.
    own_range: Range<usize>,
    /// Its bytes where they are read, not mapped.
    copy: Option<AlignedBuffer>,
    trail: Arc<Trail>,
    _counted: Mapped,
}

impl Memory for MappedBlock {}

impl AsRef<[u8]> for MappedBlock {
    fn as_ref(&self) -> &[u8] {
        match &self.copy {
            Some(copy) => copy.as_ref(),
            None => self.file.bytes(self.range.clone()),
        }
    }
}

impl Drop for MappedBlock {
    /// Of a block that was copied, a page may be mapped: the one that is readable behind the block
    /// before it. It would hold its folio in the page cache.
    fn drop(&mut self) {
        self.file.release(self.own_range.clone());
        self.trail.pass(&self.file);
    }
}

impl WeightSource for MappedSource {
    fn load(&self, block: &Block) -> Result<BlockMemory, StreamError> {
        let (path, file) = &self.files[block.file];
        let wanted = block.offset..block.offset + block.bytes;
        let range = usize_range(&wanted, file.len())
            .ok_or_else(|| io_error(path.clone(), wanted.clone(), cut_short()))?;
        let readable = range.start..range.end + self.read_ahead_bytes;
        let is_mapped = readable.end <= file.len();
        let counted = self.slots.count_mapped(readable.len());
        let copy = match is_mapped {
            true => None,
            false => Some(read_block(path, file, wanted.clone())?),
        };
        let is_followed =
            range.end.next_multiple_of(page_size()).is_multiple_of(LARGEST_PAGE_BYTES);
        let own_range = if is_mapped && !is_followed { readable.clone() } else { range.clone() };
        let (file, trail) = (Arc::clone(file), Arc::clone(&self.trail));
        let held = MappedBlock { file, range, own_range, copy, trail, _counted: counted };
        if is_mapped {
            held.file.populate(readable).map_err(|e| io_error(path.clone(), wanted, e))?;
        }
        Ok(BlockMemory(Box::new(held)))
    }

    /// Through the page cache into a slot.
    fn load_to_stay(&self, block: &Block) -> Result<BlockMemory, StreamError> {
        let (path, file) = &self.files[block.file];
        let range = block.offset..block.offset + block.bytes;
        let failed = |error| io_error(path.clone(), range.clone(), error);
        let bytes = block.bytes as usize;
        let mut slot = self.slots.lend(bytes + self.read_ahead_bytes).map_err(failed)?;
        file.read_at(&mut slot.buffer_mut().as_mut()[..bytes], block.offset).map_err(failed)?;
        file.drop_consumed(range.end);
        Ok(BlockMemory(Box::new(SlotBlock { slot, bytes })))
    }

    fn changed_files(&self) -> Result<Vec<usize>, StreamError> {
        let mut changed = vec![];
        for (index, (path, file)) in self.files.iter().enumerate() {
            let lost = |what: String| StreamError::Lost { path: path.clone(), what };
            if file.is_lost() {
                return Err(lost(
                    "it was cut short, or could not be read, while it was used".into(),
                ));
            }
            if file.has_changed().map_err(|error| lost(error.to_string()))? {
                changed.push(index);
            }
        }
        Ok(changed)
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

    /// What is mapped of it, or the slot's pages where it stays.
    fn held_bytes(&self, block: &Block) -> u64 {
        SlotBlock::held_bytes(block, self.read_ahead_bytes)
    }

    fn name(&self) -> &'static str {
        "mapped"
    }
}

/// Reads a block into a buffer of our own.
fn read_block(
    path: &Path,
    file: &MappedFile,
    wanted: Range<u64>,
) -> Result<AlignedBuffer, StreamError> {
    let mut buffer = AlignedBuffer::zeroed((wanted.end - wanted.start) as usize);
    file.read_at(buffer.as_mut(), wanted.start)
        .map_err(|e| io_error(path.to_path_buf(), wanted.clone(), e))?;
    file.drop_cached(0..wanted.end);
    Ok(buffer)
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

fn usize_range(range: &Range<u64>, limit: usize) -> Option<Range<usize>> {
    let end = usize::try_from(range.end).ok().filter(|end| *end <= limit)?;
    Some(usize::try_from(range.start).ok()?..end)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::skip::skip;
    use std::io::Write;

    /// A kernel reads ahead of the panel that it multiplies with. Behind the last block of a file
    /// that ends with it there is nothing mapped, and the process died by a signal.
    #[test]
    fn a_block_with_nothing_behind_it_is_copied() {
        const BLOCK_BYTES: u64 = 1 << 16;
        let mut file = tempfile::tempfile().unwrap();
        let content: Vec<u8> = (0..2 * BLOCK_BYTES).map(|i| (i % 251) as u8).collect();
        file.write_all(&content).unwrap();
        let source = MappedSource::new(vec![("layer".into(), file)], 64, Arc::default()).unwrap();
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
        let left = source.files[0].1.mapped_pages();
        assert_eq!(left, 0, "what was read ahead behind the first goes with the second");
    }

    /// Where no block begins behind one, what was mapped there stayed: 4 KiB for each block.
    #[test]
    fn what_is_mapped_behind_a_block_goes_with_it() {
        if !crate::sys::map::populate_supported() {
            return skip("the kernel has no MADV_POPULATE_READ");
        }
        let align = LARGEST_PAGE_BYTES as u64;
        for bytes in [align, align - 100, align - 4096, 40_000, 100] {
            let mut file = tempfile::tempfile().unwrap();
            file.write_all(&vec![7; 6 * LARGEST_PAGE_BYTES]).unwrap();
            let files = vec![("layer".into(), file)];
            let source = MappedSource::new(files, 64, Arc::default()).unwrap();
            let load = |index: u64| {
                source.load(&Block { file: 0, offset: index * align, bytes, checksum: 0 }).unwrap()
            };
            for index in 0..5 {
                assert!(load(index).as_ref().iter().all(|byte| *byte == 7));
            }
            let mut all: Vec<_> = (0..5).map(|index| Some(load(index))).collect();
            for index in [3, 1, 4, 0, 2] {
                all[index] = None;
            }
            // Another block would begin behind the last one.
            let begins = bytes + 64 > align;
            let left = source.files[0].1.mapped_pages();
            assert_eq!(left, usize::from(begins), "blocks of {bytes} bytes");
        }
    }
}
