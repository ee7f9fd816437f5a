use super::{
    BLOCK_ALIGN, BLOCK_ENTRY_BYTES, FILE_ALIGN, HEADER_BYTES, LayerIndex, MAX_FILE_BYTES,
    MAX_INDEX_BYTES, MAX_TENSOR_NAME_BYTES, TAIL_BYTES, block_bytes, block_rows,
    entries::{BlockEntry, TensorEntry, TensorPlan},
};
use crate::store::StoreError;
use crate::store::manifest::Checksum;
use crate::sys::map;
use std::collections::HashSet;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use xxhash_rust::xxh3::xxh3_64;

/// What the manifest needs to know of a finished layer file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LayerSummary {
    /// Length of the file.
    pub bytes: u64,
    /// XXH3-64 of header and index.
    pub index_checksum: Checksum,
}

/// Writes a layer file: blocks in any order, from any thread, then the index.
#[derive(Debug)]
pub struct LayerWriter {
    file: File,
    path: PathBuf,
    index: LayerIndex,
    checksums: Vec<OnceLock<u64>>,
}

impl LayerWriter {
    /// Creates the file and lays out the blocks of all tensors; nothing is written yet.
    ///
    /// # Errors
    /// The system's (the file must not exist), or a plan that contradicts itself.
    pub fn create(path: &Path, tensors: Vec<TensorPlan>) -> Result<LayerWriter, StoreError> {
        let index =
            lay_out(tensors).map_err(|what| StoreError::Misuse { path: path.to_owned(), what })?;
        let file = OpenOptions::new().read(true).write(true).create_new(true).open(path);
        let file = file.map_err(|e| StoreError::io("create", path, e))?;
        let checksums = index.blocks.iter().map(|_| OnceLock::new()).collect();
        Ok(LayerWriter { file, path: path.to_owned(), index, checksums })
    }

    /// The blocks to be written, in file order; their checksums are still zero.
    pub fn blocks(&self) -> &[BlockEntry] {
        &self.index.blocks
    }

    /// The tensors, in the order of the plans.
    pub fn tensors(&self) -> &[TensorEntry] {
        &self.index.tensors
    }

    /// Length that the file will have, in bytes.
    pub fn file_bytes(&self) -> u64 {
        self.index.file_bytes
    }

    /// Writes a block.
    ///
    /// # Errors
    /// The system's, a wrong length, or a block that was written before.
    pub fn write_block(&self, index: usize, bytes: &[u8]) -> Result<(), StoreError> {
        let block = &self.index.blocks[index];
        if bytes.len() as u64 != block.bytes {
            let what = format!("block {index} takes {} bytes, not {}", block.bytes, bytes.len());
            return Err(self.misuse(what));
        }
        if self.checksums[index].set(xxh3_64(bytes)).is_err() {
            return Err(self.misuse(format!("block {index} was written before")));
        }
        let result = self.file.write_all_at(bytes, block.offset);
        result.map_err(|e| StoreError::io("write", &self.path, e))
    }

    /// Writes header and index and starts the disk on all of it. It is not synced yet:
    /// [`crate::store::install()`] syncs a version's files when all are there.
    ///
    /// # Errors
    /// The system's, or a block that was not written.
    pub fn finish(mut self) -> Result<LayerSummary, StoreError> {
        for (number, checksum) in self.checksums.iter().enumerate() {
            let Some(checksum) = checksum.get() else {
                return Err(self.misuse(format!("block {number} was not written")));
            };
            self.index.blocks[number].checksum = *checksum;
        }
        let head = self.index.to_bytes();
        self.write_head(&head).map_err(|e| StoreError::io("write", &self.path, e))?;
        let index_checksum = Checksum(xxh3_64(&head));
        Ok(LayerSummary { bytes: self.index.file_bytes, index_checksum })
    }

    fn write_head(&self, head: &[u8]) -> io::Result<()> {
        self.file.set_len(self.index.file_bytes)?;
        self.file.write_all_at(head, 0)?;
        map::start_writeback(&self.file);
        Ok(())
    }

    fn misuse(&self, what: String) -> StoreError {
        StoreError::Misuse { path: self.path.clone(), what }
    }
}

/// Divides tensors into blocks and gives each its place in the file.
pub(super) fn lay_out(plans: Vec<TensorPlan>) -> Result<LayerIndex, String> {
    let mut tensors: Vec<TensorEntry> = Vec::with_capacity(plans.len());
    let mut blocks = Vec::new();
    let mut keys = HashSet::new();
    for plan in plans {
        plan.check().map_err(|what| format!("rows and depth of {:?} {what}", plan.name))?;
        if plan.name.is_empty() || plan.name.len() as u64 > MAX_TENSOR_NAME_BYTES {
            return Err(format!("tensor name {:?} is empty or too long", plan.name));
        }
        if !keys.insert((plan.name.clone(), plan.layout)) {
            return Err(format!("tensor {:?} is there twice", plan.name));
        }
        let first_block = blocks.len();
        divide(tensors.len(), &plan, &mut blocks)?;
        let block_count = blocks.len() - first_block;
        tensors.push(plan.into_entry(first_block, block_count));
    }
    let mut index = LayerIndex { tensors, blocks, file_bytes: 0 };
    let head_bytes = index.to_bytes().len() as u64;
    if head_bytes > HEADER_BYTES + MAX_INDEX_BYTES {
        return Err(format!("the index would have {head_bytes} bytes, over the limit"));
    }
    let mut end = head_bytes;
    for block in &mut index.blocks {
        block.offset = end.next_multiple_of(BLOCK_ALIGN);
        end = block.offset + block.bytes;
        if end > MAX_FILE_BYTES {
            return Err(format!("the file would be longer than {MAX_FILE_BYTES} bytes"));
        }
    }
    index.file_bytes = (end + TAIL_BYTES).next_multiple_of(FILE_ALIGN);
    Ok(index)
}

/// Appends the blocks of one tensor, without places.
fn divide(tensor: usize, plan: &TensorPlan, blocks: &mut Vec<BlockEntry>) -> Result<(), String> {
    let TensorPlan { layout, codec, dtype, depth, rows, .. } = *plan;
    let rows_a_block = block_rows(layout, codec, dtype, depth);
    if rows / rows_a_block > MAX_INDEX_BYTES / BLOCK_ENTRY_BYTES {
        return Err(format!("tensor {:?} has more blocks than an index holds", plan.name));
    }
    let mut row_start = 0;
    while row_start < rows {
        let row_count = rows_a_block.min(rows - row_start);
        let bytes = block_bytes(layout, codec, dtype, depth, row_count)
            .filter(|bytes| *bytes <= MAX_FILE_BYTES)
            .ok_or_else(|| format!("a block of {:?} is too long", plan.name))?;
        blocks.push(BlockEntry {
            tensor,
            row_start,
            row_count,
            depth_start: 0,
            depth_count: depth,
            offset: 0,
            bytes,
            checksum: 0,
        });
        row_start += row_count;
    }
    Ok(())
}
