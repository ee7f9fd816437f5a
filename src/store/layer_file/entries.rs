//! What a layer file's index says of tensors and blocks.

use super::{Layout, MAX_DEPTH, run_bytes, with_checksum};
use crate::codec::{self, PANEL_ROWS};
use crate::store::Dtype;
use std::ops::Range;

/// A tensor of a layer file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorEntry {
    /// The weight's name.
    pub name: String,
    /// How its elements are arranged; name and layout together are unique in a file.
    pub layout: Layout,
    /// [`codec::RAW`] or the code of a codec.
    pub codec: u64,
    /// Element type of the source.
    pub dtype: Dtype,
    /// Shape of the source.
    pub dims: Vec<u64>,
    /// Rows of the matrix or table; the element count of a flat tensor.
    pub rows: u64,
    /// Elements of a row; 1 for a flat tensor.
    pub depth: u64,
    /// Index of its first block.
    pub first_block: usize,
    /// Its blocks, in order of rows.
    pub block_count: usize,
}

impl TensorEntry {
    /// Indices of its blocks.
    pub fn blocks(&self) -> Range<usize> {
        self.first_block..self.first_block + self.block_count
    }

    /// Whether it has a precision of its own in a choice: floats that are streamed by blocks.
    pub fn is_chosen(&self) -> bool {
        self.layout != Layout::Rows && self.dtype.is_float()
    }

    /// Bytes from one row of a [`Layout::Rows`] block to the next, its checksum included.
    pub fn row_stride(&self) -> usize {
        let bytes = run_bytes(self.codec, self.dtype, self.depth, 1).and_then(with_checksum);
        bytes.and_then(|b| usize::try_from(b).ok()).expect("parse and plan bound a row's bytes")
    }

    /// Bytes of one panel of a tensor in panels.
    pub fn panel_bytes(&self) -> usize {
        let bytes = run_bytes(self.codec, self.dtype, self.depth, PANEL_ROWS);
        bytes.and_then(|b| usize::try_from(b).ok()).expect("parse and plan bound a panel's bytes")
    }
}

/// A block of a layer file: the unit of reading.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlockEntry {
    /// Index of its tensor.
    pub tensor: usize,
    /// First row.
    pub row_start: u64,
    /// Rows; real ones, without a panel's padding.
    pub row_count: u64,
    /// First element of each row; 0 in this version.
    pub depth_start: u64,
    /// Elements of each row; all of them in this version.
    pub depth_count: u64,
    /// First byte in the file, a multiple of `BLOCK_ALIGN`.
    pub offset: u64,
    /// Stored bytes.
    pub bytes: u64,
    /// XXH3-64 of the stored bytes.
    pub checksum: u64,
}

/// What a tensor of a layer file shall be, before its blocks are laid out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorPlan {
    /// The weight's name.
    pub name: String,
    /// How its elements shall be arranged.
    pub layout: Layout,
    /// [`codec::RAW`] or the code of a codec.
    pub codec: u64,
    /// Element type of the source.
    pub dtype: Dtype,
    /// Shape of the source.
    pub dims: Vec<u64>,
    /// Rows of the matrix or table; the element count of a flat tensor.
    pub rows: u64,
    /// Elements of a row; 1 for a flat tensor.
    pub depth: u64,
}

impl TensorPlan {
    /// What is wrong with it, if anything: codec, layout, dtype, shape, rows and depth must agree.
    pub(super) fn check(&self) -> Result<(), String> {
        let is_raw = self.codec == codec::RAW;
        if is_raw && self.layout.is_panels() {
            return Err("of panels cannot be raw".into());
        }
        if !is_raw && codec::by_code(self.codec).is_none() {
            return Err(format!("have codec {}, which is not known", self.codec));
        }
        if !is_raw && !self.dtype.is_float() {
            return Err(format!("of dtype {} can only be raw", self.dtype));
        }
        if self.layout == Layout::Flat && self.depth != 1 {
            return Err(format!("of a flat tensor have depth {}, expected 1", self.depth));
        }
        if self.depth == 0 || self.depth > MAX_DEPTH {
            return Err(format!("have depth {}, expected 1 to {MAX_DEPTH}", self.depth));
        }
        let elements = self.dims.iter().try_fold(1u64, |product, dim| product.checked_mul(*dim));
        let is_shape = elements.is_some() && elements == self.rows.checked_mul(self.depth);
        if !is_shape || elements == Some(0) {
            let (rows, depth, dims) = (self.rows, self.depth, &self.dims);
            return Err(format!("are {rows} x {depth}, not the elements of shape {dims:?}"));
        }
        Ok(())
    }

    pub(super) fn into_entry(self, first_block: usize, block_count: usize) -> TensorEntry {
        TensorEntry {
            name: self.name,
            layout: self.layout,
            codec: self.codec,
            dtype: self.dtype,
            dims: self.dims,
            rows: self.rows,
            depth: self.depth,
            first_block,
            block_count,
        }
    }
}
