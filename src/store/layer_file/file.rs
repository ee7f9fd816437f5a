use super::{BlockEntry, HEADER_BYTES, LayerIndex};
use crate::store::StoreError;
use crate::store::manifest::{Checksum, LayerEntry};
use crate::sys::file::{is_not_regular, open_regular};
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use xxhash_rust::xxh3::xxh3_64;

/// A layer file, open for reading, whose index has been checked; its blocks have not.
#[derive(Debug)]
pub struct LayerFile {
    /// The file.
    pub file: File,
    /// Where it lies.
    pub path: PathBuf,
    /// Bytes of header and index.
    pub head_bytes: u64,
    /// What it holds.
    pub index: LayerIndex,
}

impl LayerFile {
    /// Opens a layer file and reads header and index. With `expected`, the manifest's word on
    /// it, length and index checksum are compared too. Links are not followed.
    ///
    /// # Errors
    /// The system's, a [`crate::store::FormatError`], or a disagreement with the manifest.
    pub fn open(path: &Path, expected: Option<&LayerEntry>) -> Result<LayerFile, StoreError> {
        let (file, file_bytes) = open_file(path)?;
        let error = |source| StoreError::Format { path: path.to_owned(), source };
        let read = |buffer: &mut [u8], from: u64| {
            file.read_exact_at(buffer, from).map_err(|e| StoreError::io("read", path, e))
        };
        if let Some(expected) = expected
            && expected.bytes != file_bytes
        {
            let what = format!("has {file_bytes} bytes, the manifest says {}", expected.bytes);
            return Err(StoreError::corrupt(path, what));
        }
        if file_bytes < HEADER_BYTES {
            let what = format!("has {file_bytes} bytes, a layer file at least {HEADER_BYTES}");
            return Err(StoreError::corrupt(path, what));
        }
        let mut prefix = [0; HEADER_BYTES as usize];
        read(&mut prefix, 0)?;
        let head_bytes = LayerIndex::header_bytes(&prefix).map_err(error)?;
        if head_bytes > file_bytes {
            let what = format!("has {file_bytes} bytes, its index ends at {head_bytes}");
            return Err(StoreError::corrupt(path, what));
        }
        let mut head = vec![0; usize::try_from(head_bytes).expect("bounded by MAX_INDEX_BYTES")];
        read(&mut head, 0)?;
        let index = LayerIndex::parse(&head, file_bytes).map_err(error)?;
        let found = Checksum(xxh3_64(&head));
        match expected {
            Some(expected) if expected.index_checksum != found => Err(StoreError::corrupt(
                path,
                format!(
                    "its index has checksum {:016x}, the manifest says {:016x}",
                    found.0, expected.index_checksum.0
                ),
            )),
            _ => Ok(LayerFile { file, path: path.to_owned(), head_bytes, index }),
        }
    }

    /// The bytes that nothing is in: between index and blocks, between blocks, and behind the last.
    /// All of them are zero.
    pub fn padding(&self) -> impl Iterator<Item = Range<u64>> {
        let places = self.index.blocks.iter().map(|block| (block.offset, block.bytes));
        let mut end = self.head_bytes;
        places.chain([(self.index.file_bytes, 0)]).filter_map(move |(offset, bytes)| {
            let gap = end..offset;
            end = offset + bytes;
            (!gap.is_empty()).then_some(gap)
        })
    }

    /// Bytes of a block.
    pub fn block_bytes(&self, index: usize) -> usize {
        usize::try_from(self.index.blocks[index].bytes).expect("parse bounds a block's bytes")
    }

    /// Reads a block into `bytes`, which becomes as long as it, and checks its checksum.
    ///
    /// # Errors
    /// The system's, or [`StoreError::Corrupt`] naming tensor, rows and offset.
    pub fn read_block(&self, index: usize, bytes: &mut Vec<u8>) -> Result<(), StoreError> {
        bytes.resize(self.block_bytes(index), 0);
        self.read_block_into(index, bytes)
    }

    /// The same where there are as many bytes already.
    ///
    /// # Errors
    /// As [`LayerFile::read_block`].
    ///
    /// # Panics
    /// Where there are more or fewer.
    pub fn read_block_into(&self, index: usize, bytes: &mut [u8]) -> Result<(), StoreError> {
        let block = &self.index.blocks[index];
        assert_eq!(bytes.len() as u64, block.bytes, "the bytes of a block");
        let result = self.file.read_exact_at(bytes, block.offset);
        result.map_err(|e| StoreError::io("read", &self.path, e))?;
        if xxh3_64(bytes) == block.checksum {
            return Ok(());
        }
        let name = &self.index.tensors[block.tensor].name;
        let what = format!("wrong checksum of {}", describe_block(index, block, name));
        Err(StoreError::corrupt(&self.path, what))
    }
}

/// "block 3 at byte 65536 (rows 0..256 of "encoder.weight")".
pub(in crate::store) fn describe_block(index: usize, block: &BlockEntry, tensor: &str) -> String {
    let rows = block.row_start..block.row_start + block.row_count;
    format!("block {index} at byte {} (rows {rows:?} of {tensor:?})", block.offset)
}

/// Opens a regular file for reading and says how long it is; links are not followed, and a pipe
/// does not block. The one way in which files of the store are opened.
pub(in crate::store) fn open_file(path: &Path) -> Result<(File, u64), StoreError> {
    open_regular(path).map_err(|error| match is_not_regular(&error) {
        true => StoreError::corrupt(path, error.to_string()),
        false => StoreError::io("open", path, error),
    })
}
