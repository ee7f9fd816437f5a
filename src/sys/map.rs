//! A file mapped for reading whose pages come and go as told.

use super::capabilities::{Capabilities, Feature};
use memmap2::{Advice, Mmap, MmapOptions, UncheckedAdvice};
use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::sync::OnceLock;

/// A read-only file, mapped whole. The mapping costs address space; a page costs memory from
/// [`MappedFile::populate`] to [`MappedFile::release`].
pub struct MappedFile {
    file: File,
    map: Mmap,
}

impl MappedFile {
    /// Maps `file` without reading any of it.
    ///
    /// The file must not be truncated while it is mapped: store versions are never written
    /// again once they are installed.
    pub fn new(file: File) -> io::Result<MappedFile> {
        // SAFETY: the mapping is read-only and private to readers; the store never changes an
        // installed file, it replaces versions by rename, which leaves this inode alone.
        let map = unsafe { MmapOptions::new().map(&file)? };
        Ok(MappedFile { file, map })
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
    pub fn populate(&self, range: Range<usize>) -> io::Result<()> {
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
    pub fn release(&self, range: Range<usize>) {
        // SAFETY: the mapping is a read-only file mapping: dropped pages read back the same.
        let unmapped = unsafe {
            self.map.unchecked_advise_range(UncheckedAdvice::DontNeed, range.start, range.len())
        };
        if let Err(error) = unmapped {
            log::warn!("madvise(DONTNEED) failed: {error}");
        }
        self.drop_consumed(range.end as u64);
    }

    /// Asks the kernel to drop everything of the file up to `end` from the page cache, and what is
    /// behind it where that is less than a page.
    pub fn drop_consumed(&self, end: u64) {
        let is_last = (self.len() as u64).saturating_sub(end) < page_size() as u64;
        self.drop_cached(0..if is_last { self.len() as u64 } else { end });
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

/// Bytes of a page: 4, 16 or 64 KiB.
pub fn page_size() -> usize {
    static SIZE: OnceLock<usize> = OnceLock::new();
    *SIZE.get_or_init(|| {
        let size = nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE).ok().flatten();
        size.and_then(|bytes| usize::try_from(bytes).ok()).unwrap_or(4096)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

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
}
