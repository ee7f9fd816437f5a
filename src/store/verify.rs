use super::{
    ModelDir, StoreError,
    folder::check_file,
    layer_file::{BlockEntry, LayerFile, Layout, describe_block, open_file, open_row},
    manifest::{FileEntry, LayerEntry},
};
use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use std::{
    fmt,
    fs::File,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};
use xxhash_rust::xxh3::Xxh3;

/// Something in a version that is not as its manifest or index says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The file.
    pub path: PathBuf,
    /// What is wrong with it, naming block, tensor and rows where it is a block.
    pub what: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.path.display(), self.what)
    }
}

/// Bytes read at once.
const BUFFER_BYTES: usize = 1 << 20;

/// Bytes after which the page cache behind the reader is given back.
const DROP_BYTES: u64 = 32 << 20;

impl ModelDir {
    /// Reads every file of the version and checks every checksum; an empty list means that all is
    /// well. `progress` is called with the bytes read since the last call. Holds about a MiB, and
    /// leaves no file in the page cache.
    pub fn verify(&self, progress: impl FnMut(u64)) -> Vec<Problem> {
        self.problems(usize::MAX, progress)
    }

    /// As [`ModelDir::verify`], up to the first problem: in what a stranger sent, every block may
    /// be one, and a list of them larger than what was granted for its index.
    pub(super) fn first_problem(&self, progress: impl FnMut(u64)) -> Option<Problem> {
        self.problems(1, progress).pop()
    }

    fn problems(&self, limit: usize, mut progress: impl FnMut(u64)) -> Vec<Problem> {
        let mut reader = Reader { progress: &mut progress, buffer: Vec::new(), limit };
        let mut problems = Vec::new();
        let manifest = &self.manifest;
        for entry in manifest.whole_files() {
            if problems.len() >= limit {
                return problems;
            }
            let result = self.file_path(&entry.path);
            let result = result.and_then(|path| reader.verify_file(&path, entry));
            problems.extend(result.err().map(|error| self.problem(&entry.path, error)));
        }
        for entry in manifest.layers.iter().flat_map(|layer| layer.files.values()) {
            if problems.len() >= limit {
                return problems;
            }
            let result = self.file_path(&entry.path);
            let result = result.and_then(|path| reader.verify_layer(&path, entry, &mut problems));
            problems.extend(result.err().map(|error| self.problem(&entry.path, error)));
        }
        problems
    }

    /// Bytes that [`ModelDir::verify`] will report.
    pub fn verify_bytes(&self) -> u64 {
        let manifest = &self.manifest;
        let files = manifest.whole_files();
        let layers = manifest.layers.iter().flat_map(|layer| layer.files.values());
        let bytes = files.map(|entry| entry.bytes).chain(layers.map(|entry| entry.bytes));
        bytes.fold(0, u64::saturating_add)
    }

    fn problem(&self, relative: &str, error: StoreError) -> Problem {
        let path = self.path.join(relative);
        let what = match error {
            StoreError::Corrupt { what, .. } => what,
            StoreError::Format { source, .. } => source.to_string(),
            StoreError::Io { action, source, .. } => format!("cannot {action} it: {source}"),
            other => other.to_string(),
        };
        Problem { path, what }
    }
}

/// Reads files through one small buffer.
struct Reader<'a> {
    progress: &'a mut dyn FnMut(u64),
    buffer: Vec<u8>,
    /// How many problems are looked for.
    limit: usize,
}

impl Reader<'_> {
    fn verify_file(&mut self, path: &Path, entry: &FileEntry) -> Result<(), StoreError> {
        let (file, bytes) = open_file(path)?;
        let mut hash = Xxh3::new();
        self.read(&file, path, 0..bytes, |bytes| hash.update(bytes))?;
        drop_cache(&file, bytes);
        check_file(path, entry, bytes, hash.digest())
    }

    fn verify_layer(
        &mut self,
        path: &Path,
        entry: &LayerEntry,
        problems: &mut Vec<Problem>,
    ) -> Result<(), StoreError> {
        let layer = LayerFile::open(path, Some(entry))?;
        let mut dropped = 0;
        let mut reported = 0;
        for (number, block) in layer.index.blocks.iter().enumerate() {
            if problems.len() >= self.limit {
                return Ok(());
            }
            let what = self.verify_block(&layer, block)?;
            problems.extend(what.map(|what| {
                let name = &layer.index.tensors[block.tensor].name;
                let what = format!("{what} of {}", describe_block(number, block, name));
                Problem { path: path.to_owned(), what }
            }));
            let end = block.offset + block.bytes;
            reported += block.bytes;
            if end - dropped >= DROP_BYTES {
                drop_cache(&layer.file, end);
                dropped = end;
            }
        }
        for gap in layer.padding() {
            if problems.len() >= self.limit {
                return Ok(());
            }
            reported += gap.end - gap.start;
            let (mut at, mut odd) = (gap.start, None);
            self.read(&layer.file, path, gap, |bytes| {
                let found = bytes.iter().position(|byte| *byte != 0);
                odd = odd.or(found.map(|found| at + found as u64));
                at += bytes.len() as u64;
            })?;
            problems.extend(odd.map(|at| {
                let what = format!("byte {at} lies between blocks and is not zero");
                Problem { path: path.to_owned(), what }
            }));
        }
        drop_cache(&layer.file, layer.index.file_bytes);
        (self.progress)(layer.index.file_bytes - reported);
        Ok(())
    }

    /// What is wrong with a block, if anything.
    fn verify_block(
        &mut self,
        layer: &LayerFile,
        block: &BlockEntry,
    ) -> Result<Option<&'static str>, StoreError> {
        let tensor = &layer.index.tensors[block.tensor];
        let is_table = tensor.layout == Layout::Rows;
        let stride = if is_table { tensor.row_stride() } else { usize::MAX };
        let mut rows = RowChecker { stride, partial: Vec::new(), is_good: true };
        let mut hash = Xxh3::new();
        let range = block.offset..block.offset + block.bytes;
        self.read(&layer.file, &layer.path, range, |bytes| {
            hash.update(bytes);
            if is_table {
                rows.update(bytes);
            }
        })?;
        if hash.digest() != block.checksum {
            return Ok(Some("wrong checksum"));
        }
        Ok((!rows.is_good).then_some("wrong checksum of a row"))
    }

    fn read(
        &mut self,
        file: &File,
        path: &Path,
        range: std::ops::Range<u64>,
        mut use_bytes: impl FnMut(&[u8]),
    ) -> Result<(), StoreError> {
        self.buffer.resize(BUFFER_BYTES, 0);
        let mut at = range.start;
        while at < range.end {
            let left = usize::try_from(range.end - at).unwrap_or(usize::MAX);
            let bytes = &mut self.buffer[..left.min(BUFFER_BYTES)];
            let result = file.read_exact_at(bytes, at);
            result.map_err(|e| StoreError::io("read", path, e))?;
            use_bytes(bytes);
            at += bytes.len() as u64;
            (self.progress)(bytes.len() as u64);
        }
        Ok(())
    }
}

/// Checks the rows of a table whose bytes come in pieces.
struct RowChecker {
    stride: usize,
    partial: Vec<u8>,
    is_good: bool,
}

impl RowChecker {
    fn update(&mut self, mut bytes: &[u8]) {
        if !self.partial.is_empty() {
            let missing = (self.stride - self.partial.len()).min(bytes.len());
            self.partial.extend(&bytes[..missing]);
            bytes = &bytes[missing..];
            if self.partial.len() == self.stride {
                self.is_good &= open_row(&self.partial).is_some();
                self.partial.clear();
            }
        }
        let rows = bytes.chunks_exact(self.stride);
        self.partial.extend(rows.remainder());
        self.is_good &= rows.into_iter().all(|row| open_row(row).is_some());
    }
}

/// Gives back the page cache of what was read. From the file's start: folios that straddle an
/// earlier call's end would stay otherwise.
fn drop_cache(file: &File, end: u64) {
    let Ok(end) = libc::off_t::try_from(end) else {
        return;
    };
    // Advice only: where the file system does not take it, the pages age out by themselves.
    let _ = posix_fadvise(file, 0, end, PosixFadviseAdvice::POSIX_FADV_DONTNEED);
}
