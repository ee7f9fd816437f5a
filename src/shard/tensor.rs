//! Reads a weight strip by strip, never whole, as the f32 values codecs encode.

use super::error::{ShardError, ensure, unfit};
use crate::codec::PANEL_ROWS;
use crate::graph::skim::{Elements, Location, OnnxWeight};
use crate::store::Dtype;
use half::{bf16, f16};
use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

/// Bytes of the source that one strip may take: most matrices are one strip, read at once.
const STRIP_BYTES: usize = 24 << 20;

/// Bytes of one weight that are read ahead of their turn.
const PREFETCH_BYTES: u64 = 64 << 20;

/// The files weights lie in, opened once.
pub struct Sources {
    files: HashMap<PathBuf, File>,
    /// Where weights that have to be decoded are spread out.
    spool: PathBuf,
}

impl Sources {
    /// Sources that may put one decoded weight at a time into the file `spool`.
    pub fn new(spool: PathBuf) -> Sources {
        Sources { files: HashMap::new(), spool }
    }

    fn file(&mut self, location: &Location) -> Result<&File, ShardError> {
        if !self.files.contains_key(&location.path) {
            let file = File::open(&location.path)
                .map_err(ShardError::io(format!("open {}", location.path.display())))?;
            self.files.insert(location.path.clone(), file);
        }
        Ok(&self.files[&location.path])
    }

    /// The weight with its elements as they are in one stretch of a file: decoded piece by piece
    /// into the spool where they are not. It holds until the next weight is spread out.
    pub fn spread(&mut self, source: &OnnxWeight) -> Result<OnnxWeight, ShardError> {
        if source.location().is_some() {
            return Ok(source.clone());
        }
        let path = self.spool.clone();
        let told = || format!("decode weight \"{}\" into {}", source.name, path.display());
        let options =
            File::options().read(true).write(true).create(true).truncate(true).open(&path);
        let mut file = options.map_err(ShardError::io(told()))?;
        let bytes = source.bytes();
        let copied = source.read().and_then(|mut elements| io::copy(&mut elements, &mut file));
        let copied = copied.map_err(ShardError::io(told()))?;
        ensure!(copied == bytes, "cannot {}: its data ends too early", told());
        self.files.insert(path.clone(), file);
        let elements = Elements::Plain(Location { path, offset: 0, bytes });
        Ok(OnnxWeight { elements, ..source.clone() })
    }

    /// Takes the spool away.
    pub fn finish(&mut self) -> Result<(), ShardError> {
        match self.files.remove(&self.spool) {
            Some(_) => std::fs::remove_file(&self.spool)
                .map_err(ShardError::io(format!("remove {}", self.spool.display()))),
            None => Ok(()),
        }
    }

    /// Reads `out.len()` bytes of a weight from byte `from` of it.
    fn read(&mut self, location: &Location, from: u64, out: &mut [u8]) -> Result<(), ShardError> {
        let at = location.offset + from;
        self.file(location)?.read_exact_at(out, at).map_err(|source| {
            let (bytes, path) = (out.len(), location.path.display());
            ShardError::Io { what: format!("read {bytes} bytes at offset {at} of {path}"), source }
        })
    }

    /// Starts the disk on a weight that will be read soon.
    pub fn prefetch(&mut self, source: &OnnxWeight) -> Result<(), ShardError> {
        for location in source.elements.locations() {
            let bytes = location.bytes.min(PREFETCH_BYTES);
            let range = location.offset..location.offset + bytes;
            crate::sys::map::read_ahead(self.file(location)?, range);
        }
        Ok(())
    }

    /// Lets the page cache go of what a weight left there.
    pub fn forget(&mut self, source: &OnnxWeight) -> Result<(), ShardError> {
        for location in source.elements.locations() {
            let range = location.offset..location.offset + location.bytes;
            crate::sys::map::drop_cached(self.file(location)?, range);
        }
        Ok(())
    }
}

/// A weight as a matrix of rows of `depth` values.
#[derive(Clone, Copy, Debug)]
pub struct Matrix<'a> {
    pub source: &'a OnnxWeight,
    pub rows: usize,
    pub depth: usize,
    /// Whether a row's values lie one after the other, `[rows, depth]`, or a step of `rows`
    /// apart, `[depth, rows]`.
    pub rows_contiguous: bool,
}

/// Some rows of a matrix, as they lie in the file.
pub struct Strip {
    bytes: Vec<u8>,
    dtype: Dtype,
    pub rows: Range<usize>,
    depth: usize,
    rows_contiguous: bool,
}

impl Matrix<'_> {
    /// Rows of a strip: a multiple of a panel's.
    pub fn strip_rows(&self) -> usize {
        let row_bytes = self.depth * self.source.dtype.size();
        (STRIP_BYTES / row_bytes.max(1) / PANEL_ROWS).max(1) * PANEL_ROWS
    }

    /// Reads `rows`, which the caller bounds by [`Matrix::strip_rows`].
    pub fn read(&self, sources: &mut Sources, rows: Range<usize>) -> Result<Strip, ShardError> {
        let size = self.source.dtype.size();
        let location = self.source.location().expect("a weight is spread out before");
        let mut bytes = vec![0; rows.len() * self.depth * size];
        let whole = rows.len() == self.rows;
        if self.rows_contiguous || whole {
            let from = if whole { 0 } else { rows.start * self.depth * size };
            sources.read(location, from as u64, &mut bytes)?;
        } else {
            for (step, run) in bytes.chunks_exact_mut(rows.len() * size).enumerate() {
                sources.read(location, ((step * self.rows + rows.start) * size) as u64, run)?;
            }
        }
        let Matrix { depth, rows_contiguous, .. } = *self;
        Ok(Strip { bytes, dtype: self.source.dtype, rows, depth, rows_contiguous })
    }
}

impl Strip {
    /// Panel `index` as a k-major run of 16 lanes, rows past the end zero.
    pub fn panel(&self, index: usize, values: &mut Vec<f32>) {
        let rows = self.rows.len();
        let first = index * PANEL_ROWS;
        let lanes = PANEL_ROWS.min(rows - first);
        values.clear();
        values.resize(self.depth * PANEL_ROWS, 0.0);
        if self.rows_contiguous {
            for lane in 0..lanes {
                let start = (first + lane) * self.depth;
                self.for_each(start..start + self.depth, |step, value| {
                    values[step * PANEL_ROWS + lane] = value;
                });
            }
        } else {
            for step in 0..self.depth {
                let start = step * rows + first;
                let run = &mut values[step * PANEL_ROWS..][..lanes];
                self.for_each(start..start + lanes, |lane, value| run[lane] = value);
            }
        }
    }

    /// Row `index` of a strip of contiguous rows.
    pub fn row(&self, index: usize, values: &mut Vec<f32>) {
        values.clear();
        values.resize(self.depth, 0.0);
        let start = index * self.depth;
        self.for_each(start..start + self.depth, |step, value| values[step] = value);
    }

    /// All values of the strip in the order of the file.
    pub fn run(&self, values: &mut Vec<f32>) {
        values.clear();
        values.resize(self.rows.len() * self.depth, 0.0);
        self.for_each(0..values.len(), |index, value| values[index] = value);
    }

    /// All bytes of the strip.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Row `index` as it lies in the file.
    pub fn row_bytes(&self, index: usize) -> &[u8] {
        let stride = self.depth * self.dtype.size();
        &self.bytes[index * stride..][..stride]
    }

    fn for_each(&self, elements: Range<usize>, mut take: impl FnMut(usize, f32)) {
        let size = self.dtype.size();
        let bytes = &self.bytes[elements.start * size..elements.end * size];
        match self.dtype {
            Dtype::Fp32 => {
                let (words, _) = bytes.as_chunks::<4>();
                words.iter().enumerate().for_each(|(i, b)| take(i, f32::from_le_bytes(*b)));
            }
            Dtype::Fp16 => {
                let (words, _) = bytes.as_chunks::<2>();
                words
                    .iter()
                    .enumerate()
                    .for_each(|(i, b)| take(i, f16::from_le_bytes(*b).to_f32()));
            }
            Dtype::Bf16 => {
                let (words, _) = bytes.as_chunks::<2>();
                words
                    .iter()
                    .enumerate()
                    .for_each(|(i, b)| take(i, bf16::from_le_bytes(*b).to_f32()));
            }
            _ => unreachable!("only floats are encoded as values"),
        }
    }
}
