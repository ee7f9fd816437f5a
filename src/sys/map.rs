//! A file mapped for reading whose pages come and go as told.

use super::bus::Watched;
use super::capabilities::{Capabilities, Feature};
pub use super::page::{LARGEST_PAGE_BYTES, page_size};
use memmap2::{Advice, Mmap, MmapOptions, UncheckedAdvice};
use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// A read-only file, mapped whole. The mapping costs address space; a page costs memory from
/// [`MappedFile::populate`] to [`MappedFile::release`].
pub struct MappedFile {
    file: File,
    /// Let go before the mapping is.
    watched: Watched,
    map: Mmap,
    state: Mutex<FileState>,
    /// Where the last of the ranges begins that have been populated.
    last_start: Mutex<usize>,
}

/// What changes with a file's content. Its time of change cannot be set back, unlike that of its
/// modification, and is written before the content is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct FileState {
    bytes: u64,
    changed: (i64, i64),
}

impl FileState {
    fn of(file: &File) -> io::Result<FileState> {
        let metadata = file.metadata()?;
        let changed = (metadata.ctime(), metadata.ctime_nsec());
        Ok(FileState { bytes: metadata.len(), changed })
    }
}

impl MappedFile {
    /// Maps `file` without reading any of it.
    ///
    /// The store never changes an installed file, it replaces versions by rename. Others may: a
    /// page that is lost reads as zeros and is told by [`MappedFile::is_lost`], one that is
    /// written to by [`MappedFile::has_changed`].
    pub fn new(file: File) -> io::Result<MappedFile> {
        let state = FileState::of(&file)?;
        // SAFETY: the mapping is read-only. Whoever changes the file meanwhile changes bytes, of
        // which every value is one; pages that go are replaced (`sys::bus`).
        let map = unsafe { MmapOptions::new().map(&file)? };
        let range = map.as_ptr_range();
        let watched = Watched::new(range.start.addr()..range.end.addr());
        Ok(MappedFile {
            file,
            watched,
            map,
            state: Mutex::new(state),
            last_start: Mutex::default(),
        })
    }

    /// Whether a page was lost while it was in use: the file was cut short, or its disk failed.
    pub fn is_lost(&self) -> bool {
        self.watched.is_lost()
    }

    /// Whether the file has changed since this was asked, or since it was mapped: it may have
    /// been written to. What writes through a mapping that was dirty before is not seen.
    ///
    /// # Errors
    /// The system's; [`io::ErrorKind::UnexpectedEof`] where the file is shorter than its mapping.
    pub fn has_changed(&self) -> io::Result<bool> {
        let now = FileState::of(&self.file)?;
        if now.bytes < self.len() as u64 {
            let what = format!("it has {} bytes of {}", now.bytes, self.len());
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, what));
        }
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(std::mem::replace(&mut *state, now) != now)
    }

    /// The file.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Length of the file in bytes.
    pub fn len(&self) -> usize {
        self.map.len()
    }

    /// Whether the file holds nothing.
    pub fn is_empty(&self) -> bool {
        self.map.is_empty()
    }

    /// Brings the pages of `range` in and maps them. A bad sector is an error here, where a
    /// touch of the page would be a fatal signal (madvise(2), MADV_POPULATE_READ, Linux 5.14).
    ///
    /// Linux maps what the page cache has around a page that is touched too: 64 KiB, or from 6.18
    /// on whole folios, which can be larger than a block. Nobody would release the pages of blocks
    /// that have been released before. What is mapped around ends where a mapping's flags change,
    /// so a populated range differs in one from all others: it is left out of core dumps.
    pub fn populate(&self, range: Range<usize>) -> io::Result<()> {
        let mut last_start = self.last_start();
        *last_start = range.start.max(*last_start);
        drop(last_start);
        self.flag(range.clone(), Advice::DontDump);
        self.map.advise_range(Advice::PopulateRead, range.start, range.len())
    }

    /// The bytes of a populated range.
    pub fn bytes(&self, range: Range<usize>) -> &[u8] {
        &self.map[range]
    }

    /// Unmaps the pages of `range` and asks the kernel to drop everything of the file up to its
    /// end from the page cache: a folio may be larger than a block, so a range that starts at
    /// the block would leave the folio that both share. Mapped pages, pinned blocks among them,
    /// survive.
    ///
    /// The page at the file's end that kernels read ahead into goes with the last block, or it
    /// would hold its folio in the page cache.
    pub fn release(&self, mut range: Range<usize>) {
        let last_start = self.last_start();
        if self.is_last(range.end as u64) && *last_start < range.end {
            range.end = self.len();
        }
        // SAFETY: the mapping is a read-only file mapping: dropped pages read back the same.
        let unmapped = unsafe {
            self.map.unchecked_advise_range(UncheckedAdvice::DontNeed, range.start, range.len())
        };
        drop(last_start);
        if let Err(error) = unmapped {
            log::warn!("madvise(DONTNEED) failed: {error}");
        }
        self.flag(range.clone(), Advice::DoDump);
        self.drop_consumed(range.end as u64);
    }

    /// Where it fails, more may be mapped than was asked for.
    fn flag(&self, range: Range<usize>, advice: Advice) {
        if let Err(error) = self.map.advise_range(advice, range.start, range.len()) {
            log::debug!("madvise({advice:?}) failed: {error}");
        }
    }

    /// Asks the kernel to drop everything of the file up to `end` from the page cache, and what is
    /// behind it where that is no more than a page.
    pub fn drop_consumed(&self, end: u64) {
        self.drop_cached(0..if self.is_last(end) { self.len() as u64 } else { end });
    }

    fn is_last(&self, end: u64) -> bool {
        (self.len() as u64).saturating_sub(end) <= page_size() as u64
    }

    fn last_start(&self) -> MutexGuard<'_, usize> {
        self.last_start.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks the kernel to drop the whole file from the page cache, where nobody maps it.
    pub fn drop_all(&self) {
        self.drop_cached(0..self.len() as u64);
    }

    /// Asks the kernel to drop `range` of the file from the page cache, where nobody maps it.
    pub fn drop_cached(&self, range: Range<u64>) {
        drop_cached(&self.file, range);
    }

    /// How many of the pages of `range`, which begins at a page, are in memory, by mincore(2): of
    /// a file that the process neither owns nor may write, it says that all are.
    pub fn resident_pages(&self, range: Range<usize>) -> usize {
        let mut pages = vec![0u8; range.len().div_ceil(page_size())];
        let start = self.map[range.clone()].as_ptr();
        // SAFETY: the range lies within the mapping, or the slice would have panicked, and `pages`
        // has a byte for each of its pages.
        let asked =
            unsafe { libc::mincore(start.cast_mut().cast(), range.len(), pages.as_mut_ptr()) };
        match asked {
            0 => pages.iter().filter(|page| **page & 1 != 0).count(),
            // What cannot be told is taken for resident, as the kernel does.
            _ => pages.len(),
        }
    }

    /// Pages that this process has mapped of it.
    #[cfg(test)]
    pub fn mapped_pages(&self) -> usize {
        let pages = self.map.as_ptr_range();
        super::memory::mapped_pages(pages.start.addr()..pages.end.addr())
    }

    /// Reads `out.len()` bytes at `offset`.
    pub fn read_at(&self, out: &mut [u8], offset: u64) -> io::Result<()> {
        self.file.read_exact_at(out, offset)
    }

    /// Starts reading `range` of the file into the page cache without waiting for it.
    pub fn read_ahead(&self, range: Range<u64>) {
        read_ahead(&self.file, range);
    }
}

/// Asks the kernel to drop `range` of `file` from the page cache (posix_fadvise(2)).
pub fn drop_cached(file: &File, range: Range<u64>) {
    let length = (range.end - range.start) as i64;
    let dropped =
        posix_fadvise(file, range.start as i64, length, PosixFadviseAdvice::POSIX_FADV_DONTNEED);
    if let Err(error) = dropped {
        log::debug!("posix_fadvise(DONTNEED) failed: {error}");
    }
}

/// Starts writing a file's dirty pages to disk without waiting for it (sync_file_range(2)), so
/// that a later sync finds little left.
pub fn start_writeback(file: &File) {
    // SAFETY: the descriptor is open for as long as `file` is borrowed; the call touches no
    // memory. It is advice: where it is refused the sync does the work.
    unsafe {
        libc::sync_file_range(file.as_raw_fd(), 0, 0, libc::SYNC_FILE_RANGE_WRITE);
    }
}

/// Starts reading `range` of `file` into the page cache without waiting for it.
pub fn read_ahead(file: &File, range: Range<u64>) {
    let length = (range.end - range.start) as i64;
    // Advice only: where it is refused the read itself does the work.
    let _ =
        posix_fadvise(file, range.start as i64, length, PosixFadviseAdvice::POSIX_FADV_WILLNEED);
}

/// Whether [`MappedFile::populate`] works here.
pub fn populate_supported() -> bool {
    Capabilities::get().has(Feature::Populate)
}

#[cfg(test)]
mod tests {
    use super::super::memory::mapped_pages;
    use super::*;
    use crate::skip::skip;
    use std::io::Write;

    /// Blocks that had been released came back with their neighbours, and stayed: 7 MiB of a
    /// window of 3.
    #[test]
    fn nothing_is_mapped_around_what_is_populated() {
        if !populate_supported() {
            return skip("the kernel has no MADV_POPULATE_READ");
        }
        let (page, pages) = (page_size(), 256);
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&vec![7; pages * page]).unwrap();
        let map = MappedFile::new(file).unwrap();
        let start = map.map.as_ptr().addr();
        let mapped = |range: Range<usize>| mapped_pages(start + range.start..start + range.end);
        let (first, second) = (33 * page..66 * page, 66 * page..101 * page);
        map.populate(first.clone()).unwrap();
        map.populate(second.clone()).unwrap();
        assert_eq!(mapped(0..pages * page), 68, "two neighbours, and nothing around them");
        map.release(first.clone());
        assert_eq!((mapped(first), mapped(second)), (0, 35));
        map.populate(120 * page..121 * page).unwrap();
        assert_eq!(mapped(0..pages * page), 36);
        // The last block, and a page that is read ahead into behind it.
        map.populate(200 * page..256 * page).unwrap();
        map.release(200 * page..255 * page);
        assert_eq!(mapped(0..pages * page), 36);
        // One that is not the last: what is behind it is in use.
        map.populate(255 * page..256 * page).unwrap();
        map.populate(200 * page..256 * page).unwrap();
        map.release(200 * page..255 * page);
        assert_eq!(mapped(0..pages * page), 37);
    }

    #[test]
    fn pages_come_and_go_and_read_the_same() {
        let mut file = tempfile::tempfile().unwrap();
        let content: Vec<u8> = (0..1 << 20).map(|i: u32| (i % 251) as u8).collect();
        file.write_all(&content).unwrap();
        let map = MappedFile::new(file).unwrap();
        for _ in 0..2 {
            if populate_supported() {
                map.populate(0..map.len()).unwrap();
            }
            assert_eq!(map.bytes(65536..1 << 20), &content[65536..]);
            assert_eq!(map.resident_pages(65536..1 << 20), ((1 << 20) - 65536) / page_size());
            map.release(65536..1 << 20);
        }
        let mut tail = [0; 5];
        map.read_at(&mut tail, (1 << 20) - 5).unwrap();
        assert_eq!(tail, content[(1 << 20) - 5..]);
    }

    #[test]
    fn what_is_released_leaves_the_page_cache_and_what_is_mapped_stays() {
        let mut file = tempfile::tempfile().unwrap();
        // Folios are not as large as half of it.
        file.write_all(&vec![7; 8 << 20]).unwrap();
        // Dirty pages stay, and memory has nowhere to drop its files to.
        file.sync_all().unwrap();
        let is_on_disk = nix::sys::statfs::fstatfs(&file).unwrap().filesystem_type()
            != nix::sys::statfs::TMPFS_MAGIC;
        if !populate_supported() || !is_on_disk {
            return skip("no MADV_POPULATE_READ, or temporary files are in memory");
        }
        let map = MappedFile::new(file).unwrap();
        let pages = (4 << 20) / page_size();
        map.populate(0..8 << 20).unwrap();
        let resident = || [0, 4 << 20].map(|at| map.resident_pages(at..at + (4 << 20)));
        assert_eq!(resident(), [pages, pages]);
        map.release(0..4 << 20);
        assert_eq!(resident(), [0, pages]);
        map.drop_all();
        assert_eq!(resident(), [0, pages], "what is mapped stays");
        map.release(4 << 20..8 << 20);
        assert_eq!(resident(), [0, 0]);
    }
}
