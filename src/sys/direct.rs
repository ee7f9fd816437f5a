//! Files read past the page cache (open(2), O_DIRECT), into whole pages of our own.

use super::capabilities::{Capabilities, Feature};
use super::page::page_size;
use memmap2::{MmapMut, MmapOptions};
use nix::sys::statfs::{TMPFS_MAGIC, fstatfs};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};

/// What offsets and lengths are aligned to where the file system does not tell: no disk has
/// larger sectors.
const SECTOR_BYTES: usize = 4096;

/// A file that is read past the page cache.
#[derive(Debug)]
pub struct DirectFile {
    file: File,
    /// What offsets and lengths of reads are multiples of.
    align: usize,
}

impl DirectFile {
    /// Opens once more what `file` has open, and reads a little of it to see that it works.
    ///
    /// # Errors
    ///
    /// The system's, EINVAL from file systems that have no direct reads; or Unsupported, where
    /// the file lies in memory, reads have to be aligned to more than a page, or
    /// direct reads were taken away.
    pub fn reopen(file: &File) -> io::Result<DirectFile> {
        if !Capabilities::get().has(Feature::Direct) {
            return Err(unsupported("they were taken away"));
        }
        // Newer kernels take O_DIRECT there, and copy.
        if fstatfs(file)?.filesystem_type() == TMPFS_MAGIC {
            return Err(unsupported("the file lies in memory"));
        }
        // By its name one could come upon another file by now.
        let path = format!("/proc/self/fd/{}", file.as_raw_fd());
        let file = OpenOptions::new().read(true).custom_flags(libc::O_DIRECT).open(path)?;
        let align = alignment(&file)?;
        let direct = DirectFile { file, align };
        direct.read_at(&mut PageBuffer::new(align)?, 1, 0)?;
        Ok(direct)
    }

    /// Reads `bytes` bytes at `offset`, which the alignment divides, into the beginning of `out`,
    /// and up to a page more into what follows. Returns how many there were: fewer where the file
    /// ends before.
    ///
    /// # Panics
    /// If `out` has no room for whole pages.
    pub fn read_at(&self, out: &mut PageBuffer, bytes: usize, offset: u64) -> io::Result<usize> {
        let out = &mut out.0[..bytes.next_multiple_of(self.align)];
        let mut filled = 0;
        while filled < bytes {
            match self.file.read_at(&mut out[filled..], offset + filled as u64) {
                Ok(0) => break,
                Ok(read) => filled += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            }
            // Only the end of the file is amid a sector.
            if !filled.is_multiple_of(self.align) {
                break;
            }
        }
        Ok(filled.min(bytes))
    }
}

/// What direct reads of `file` are aligned to, in memory and on disk (statx(2), STATX_DIOALIGN,
/// Linux 6.1).
fn alignment(file: &File) -> io::Result<usize> {
    if !Capabilities::get().has(Feature::DirectAlign) {
        return Ok(SECTOR_BYTES);
    }
    // SAFETY: an all-zero statx is a value of the type: it is integers throughout.
    let mut found: libc::statx = unsafe { std::mem::zeroed() };
    // By its number: the C library has had this call since 2.28.
    // SAFETY: the descriptor is open for as long as `file` is borrowed, the path is an empty C
    // string, and `found` is ours to be written.
    let asked = unsafe {
        libc::syscall(
            libc::SYS_statx,
            file.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            libc::STATX_DIOALIGN,
            std::ptr::from_mut(&mut found),
        )
    };
    if asked != 0 || found.stx_mask & libc::STATX_DIOALIGN == 0 {
        return Ok(SECTOR_BYTES);
    }
    let (memory, offset) = (found.stx_dio_mem_align as usize, found.stx_dio_offset_align as usize);
    if memory.min(offset) == 0 {
        return Err(unsupported("the file system has no direct reads of this file"));
    }
    if memory.max(offset) > page_size() {
        return Err(unsupported("direct reads have to be aligned to more than a page"));
    }
    Ok(offset)
}

fn unsupported(why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::Unsupported, why)
}

/// Anonymous memory in whole pages. A page costs memory once it is written.
pub struct PageBuffer(MmapMut);

impl PageBuffer {
    /// Zeros, `bytes` of them and up to the end of the page.
    pub fn new(bytes: usize) -> io::Result<PageBuffer> {
        Ok(PageBuffer(MmapOptions::new().len(PageBuffer::rounded(bytes)).map_anon()?))
    }

    /// Bytes of the pages that `bytes` take.
    pub fn rounded(bytes: usize) -> usize {
        bytes.next_multiple_of(page_size())
    }

    /// Bytes of its pages.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether it has no page.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl AsMut<[u8]> for PageBuffer {
    fn as_mut(&mut self) -> &mut [u8] {
        &mut self.0
    }
}

impl AsRef<[u8]> for PageBuffer {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::skip::skip;
    use std::io::Write;

    /// None where temporary files have no direct reads.
    fn file_of(content: &[u8]) -> Option<(File, DirectFile)> {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(content).unwrap();
        file.sync_all().unwrap();
        let refused = |error: &io::Error| skip(&format!("no direct reads here: {error}"));
        let direct = DirectFile::reopen(&file).inspect_err(refused);
        direct.ok().map(|direct| (file, direct))
    }

    #[test]
    fn what_is_read_is_what_was_written_up_to_the_files_end() {
        let content: Vec<u8> = (0..200_001u32).map(|i| (i % 251) as u8).collect();
        let Some((file, direct)) = file_of(&content) else { return };
        let mut buffer = PageBuffer::new(1 << 18).unwrap();
        for (offset, bytes, expected) in [
            (0, 1, 1),
            (65_536, 65_536, 65_536),
            (65_536, 100_000, 100_000),
            (131_072, 68_929, 68_929),
            (131_072, 100_000, 68_929),
            (1 << 20, 4096, 0),
        ] {
            let read = direct.read_at(&mut buffer, bytes, offset).unwrap();
            assert_eq!(read, expected, "{bytes} bytes at {offset}");
            let start = (offset as usize).min(content.len());
            assert!(buffer.as_ref()[..read] == content[start..start + read]);
        }
        assert!(direct.read_at(&mut buffer, 4096, 1).is_err(), "EINVAL");
        file.set_len(70_000).unwrap();
        assert_eq!(direct.read_at(&mut buffer, 65_536, 65_536).unwrap(), 70_000 - 65_536);
    }

    #[test]
    fn files_without_direct_reads_are_refused() {
        let error = DirectFile::reopen(&File::open("/proc/self/status").unwrap()).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EINVAL));
        let Ok(file) = tempfile::tempfile_in("/dev/shm") else {
            return skip("there is no /dev/shm");
        };
        let error = DirectFile::reopen(&file).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::Unsupported, "{error}");
    }
}
