//! Layer files: one layer's blocks in one variant.
//!
//! A header of 64 bytes, an index of tensors and blocks, then the blocks, each at a multiple of
//! [`BLOCK_ALIGN`] with zeros between. All integers are little-endian `u64`.
//!
//! ```text
//!  0  magic "HERMESLF"     8  format version     16  bytes of the file
//! 24  bytes of the index  32  XXH3-64 of the index  40..64  zero
//! 64  index: tensor count, block count,
//!     per tensor: name bytes, name (zeros up to 8), layout, codec, dtype, rank, dims, rows, depth,
//!                 first block, block count
//!     per block:  tensor, row start, row count, depth start, depth count, offset, bytes, checksum
//! ```
//!
//! [`LayerIndex::parse`] is the trust boundary: what it returns tiles every tensor exactly with
//! blocks that lie inside the file and have the length that codec and layout ask for.

use super::{
    Dtype, StoreError,
    error::FormatError,
    manifest::{Checksum, LayerEntry},
};
use crate::codec::{self, GROUP_DEPTH, PANEL_ROWS};
use crate::sys::map;
use std::{
    collections::HashSet,
    fs::{File, OpenOptions},
    io,
    ops::Range,
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::OnceLock,
};
use xxhash_rust::xxh3::xxh3_64;

/// First bytes of every layer file.
pub const MAGIC: [u8; 8] = *b"HERMESLF";

/// Version of the format that this program reads and writes.
pub const VERSION: u64 = 1;

/// Bytes of the header, where the index starts.
pub const HEADER_BYTES: u64 = 64;

/// Blocks start at multiples of this: the largest page size of any supported kernel.
pub const BLOCK_ALIGN: u64 = 65_536;

/// Stored bytes that a block aims for; one panel, row or group may be larger.
pub const BLOCK_BYTES: u64 = 1 << 20;

/// Bytes of the checksum behind each row of a [`Layout::Rows`] block.
pub const ROW_CHECKSUM_BYTES: u64 = 8;

/// Limit of the index: far above that of any layer, small enough to be read at once.
pub const MAX_INDEX_BYTES: u64 = 64 << 20;

/// Limit of a depth, so that a panel's bytes always fit in memory arithmetic.
pub const MAX_DEPTH: u64 = 1 << 24;

/// Files are padded to a multiple of this, so that direct reads may round up.
const FILE_ALIGN: u64 = 4096;

const MAX_FILE_BYTES: u64 = 1 << 48;
const MAX_RANK: u64 = 16;
const MAX_TENSOR_NAME_BYTES: u64 = 4096;
const MIN_TENSOR_BYTES: u64 = 9 * 8;
const BLOCK_ENTRY_BYTES: u64 = 8 * 8;

/// How a tensor's elements are arranged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Layout {
    /// A matrix in panels of 16 rows, k-major, the last one padded with zeros: for products.
    Panels,
    /// A table, each row followed by its own checksum: for gathers.
    Rows,
    /// The elements in row-major order, for everything else: `rows` elements of depth 1.
    Flat,
}

impl Layout {
    /// Every layout, in the order of their codes.
    pub const ALL: [Layout; 3] = [Layout::Panels, Layout::Rows, Layout::Flat];

    /// The code that stands for it in a layer file.
    pub fn code(self) -> u64 {
        match self {
            Layout::Panels => 0,
            Layout::Rows => 1,
            Layout::Flat => 2,
        }
    }

    /// The layout of a code, `None` for a code this version does not know.
    pub fn from_code(code: u64) -> Option<Layout> {
        Layout::ALL.into_iter().find(|layout| layout.code() == code)
    }

    /// Rows that a block's bounds must be multiples of, but for the tensor's end.
    pub fn row_step(self) -> u64 {
        match self {
            Layout::Panels => PANEL_ROWS as u64,
            Layout::Rows => 1,
            Layout::Flat => GROUP_DEPTH as u64,
        }
    }
}

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

    /// Bytes from one row of a [`Layout::Rows`] block to the next, its checksum included.
    pub fn row_stride(&self) -> usize {
        let bytes = run_bytes(self.codec, self.dtype, self.depth, 1).and_then(with_checksum);
        bytes.and_then(|b| usize::try_from(b).ok()).expect("parse and plan bound a row's bytes")
    }

    /// Bytes of one panel of a [`Layout::Panels`] tensor.
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
    /// First byte in the file, a multiple of [`BLOCK_ALIGN`].
    pub offset: u64,
    /// Stored bytes.
    pub bytes: u64,
    /// XXH3-64 of the stored bytes.
    pub checksum: u64,
}

/// A parsed and checked index.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayerIndex {
    /// Tensors in the order of their blocks.
    pub tensors: Vec<TensorEntry>,
    /// Blocks in the order of their offsets.
    pub blocks: Vec<BlockEntry>,
    /// Length of the file.
    pub file_bytes: u64,
}

impl LayerIndex {
    /// Bytes of header and index, from a file's first 64 bytes; what [`LayerIndex::parse`] takes.
    ///
    /// # Errors
    /// Not a layer file of this version, or an index over [`MAX_INDEX_BYTES`].
    pub fn header_bytes(prefix: &[u8; HEADER_BYTES as usize]) -> Result<u64, FormatError> {
        Header::parse(prefix).map(|header| HEADER_BYTES + header.index_bytes)
    }

    /// Parses header and index; `head` is a file's start of [`LayerIndex::header_bytes`] bytes,
    /// `file_bytes` the length that the file really has.
    ///
    /// # Errors
    /// The first field that cannot be believed.
    pub fn parse(head: &[u8], file_bytes: u64) -> Result<LayerIndex, FormatError> {
        let prefix = head.first_chunk().ok_or(FormatError::Truncated {
            field: "header",
            offset: 0,
            needed: HEADER_BYTES,
            left: head.len() as u64,
        })?;
        let header = Header::parse(prefix)?;
        header.check(head, file_bytes)?;
        let mut fields = Fields { bytes: head, at: prefix.len() };
        let tensor_count = fields.count("tensor count", MIN_TENSOR_BYTES)?;
        let block_count = fields.count("block count", BLOCK_ENTRY_BYTES)?;

        let mut tensors = Vec::with_capacity(tensor_count);
        let mut keys = HashSet::with_capacity(tensor_count);
        let mut blocks_named = 0;
        for _ in 0..tensor_count {
            let at = fields.offset();
            let tensor = fields.tensor(blocks_named, block_count)?;
            if !keys.insert((tensor.name.clone(), tensor.layout)) {
                return Err(invalid(
                    "tensor name",
                    at,
                    format!("{:?} is there twice", tensor.name),
                ));
            }
            blocks_named += tensor.block_count;
            tensors.push(tensor);
        }
        if blocks_named != block_count {
            let what = format!("is {block_count}, the tensors have {blocks_named}");
            return Err(invalid("block count", HEADER_BYTES + 8, what));
        }

        let mut blocks = Vec::with_capacity(block_count);
        let mut free_from = head.len() as u64;
        for (index, tensor) in tensors.iter().enumerate() {
            let mut row = 0;
            for _ in tensor.blocks() {
                let block = fields.block(index, tensor, row, free_from, file_bytes)?;
                row += block.row_count;
                free_from = block.offset + block.bytes;
                blocks.push(block);
            }
            if row != tensor.rows {
                let what = format!("cover {row} of the {} rows of {:?}", tensor.rows, tensor.name);
                return Err(invalid("blocks", fields.offset(), what));
            }
        }
        fields.end()?;
        if file_bytes - free_from >= BLOCK_ALIGN {
            let what = format!("is {file_bytes}, the blocks end at {free_from}");
            return Err(invalid("length of the file", 16, what));
        }
        Ok(LayerIndex { tensors, blocks, file_bytes })
    }

    /// The tensor of a name and layout, with its index.
    pub fn tensor(&self, name: &str, layout: Layout) -> Option<(usize, &TensorEntry)> {
        let is_it = |(_, t): &(usize, &TensorEntry)| t.layout == layout && t.name == name;
        self.tensors.iter().enumerate().find(is_it)
    }

    /// Header and index as they stand at the file's start; the inverse of [`LayerIndex::parse`].
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut head = vec![0; HEADER_BYTES as usize];
        let mut put = |value: u64| head.extend(value.to_le_bytes());
        put(self.tensors.len() as u64);
        put(self.blocks.len() as u64);
        for tensor in &self.tensors {
            tensor.write(&mut head);
        }
        for block in &self.blocks {
            block.write(&mut head);
        }
        let (header, index) = head.split_at_mut(HEADER_BYTES as usize);
        header[..8].copy_from_slice(&MAGIC);
        let fields = [VERSION, self.file_bytes, index.len() as u64, xxh3_64(index)];
        for (bytes, field) in header[8..].chunks_exact_mut(8).zip(fields) {
            bytes.copy_from_slice(&field.to_le_bytes());
        }
        head
    }
}

impl TensorEntry {
    fn write(&self, head: &mut Vec<u8>) {
        let name = self.name.as_bytes();
        head.extend((name.len() as u64).to_le_bytes());
        head.extend(name);
        head.resize(head.len().next_multiple_of(8), 0);
        let codes = [self.layout.code(), self.codec, self.dtype.code(), self.dims.len() as u64];
        let blocks = [self.first_block as u64, self.block_count as u64];
        let sizes = [self.rows, self.depth];
        for value in codes.iter().chain(&self.dims).chain(&sizes).chain(&blocks) {
            head.extend(value.to_le_bytes());
        }
    }
}

impl BlockEntry {
    fn write(&self, head: &mut Vec<u8>) {
        let place = [self.tensor as u64, self.row_start, self.row_count];
        let depth = [self.depth_start, self.depth_count];
        for value in place.iter().chain(&depth).chain(&[self.offset, self.bytes, self.checksum]) {
            head.extend(value.to_le_bytes());
        }
    }
}

fn invalid(field: &'static str, offset: u64, what: String) -> FormatError {
    FormatError::Field { field, offset, what }
}

struct Header {
    file_bytes: u64,
    index_bytes: u64,
    index_checksum: u64,
}

impl Header {
    fn parse(prefix: &[u8; HEADER_BYTES as usize]) -> Result<Header, FormatError> {
        let field = |index: usize| u64::from_le_bytes(prefix.as_chunks().0[index]);
        if prefix[..8] != MAGIC {
            return Err(FormatError::Magic);
        }
        if field(1) != VERSION {
            return Err(FormatError::Version { found: field(1), expected: VERSION });
        }
        let header =
            Header { file_bytes: field(2), index_bytes: field(3), index_checksum: field(4) };
        if header.file_bytes > MAX_FILE_BYTES {
            let what = format!("is {}, over the limit of {MAX_FILE_BYTES}", header.file_bytes);
            return Err(invalid("length of the file", 16, what));
        }
        if header.index_bytes > MAX_INDEX_BYTES {
            let what = format!("is {}, over the limit of {MAX_INDEX_BYTES}", header.index_bytes);
            return Err(invalid("length of the index", 24, what));
        }
        if let Some(at) = (5..8).find(|index| field(*index) != 0) {
            return Err(invalid("reserved field", at as u64 * 8, "is not zero".into()));
        }
        Ok(header)
    }

    /// Compares it with the bytes it describes.
    fn check(&self, head: &[u8], file_bytes: u64) -> Result<(), FormatError> {
        if self.file_bytes != file_bytes {
            let what = format!("is {}, the file has {file_bytes}", self.file_bytes);
            return Err(invalid("length of the file", 16, what));
        }
        let index = &head[HEADER_BYTES as usize..];
        if self.index_bytes != index.len() as u64 || head.len() as u64 > file_bytes {
            let what = format!("is {}, there are {} bytes", self.index_bytes, index.len());
            return Err(invalid("length of the index", 24, what));
        }
        let found = xxh3_64(index);
        if self.index_checksum != found {
            let what = format!("is {:016x}, the index has {found:016x}", self.index_checksum);
            return Err(invalid("checksum of the index", 32, what));
        }
        Ok(())
    }
}

/// Takes fields from header and index, in order.
struct Fields<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Fields<'_> {
    fn offset(&self) -> u64 {
        self.at as u64
    }

    fn left(&self) -> u64 {
        (self.bytes.len() - self.at) as u64
    }

    fn truncated(&self, field: &'static str, needed: u64) -> FormatError {
        FormatError::Truncated { field, offset: self.offset(), needed, left: self.left() }
    }

    fn u64(&mut self, field: &'static str) -> Result<u64, FormatError> {
        let rest = &self.bytes[self.at..];
        let bytes = rest.first_chunk().ok_or_else(|| self.truncated(field, 8))?;
        self.at += 8;
        Ok(u64::from_le_bytes(*bytes))
    }

    /// A field that must have one value.
    fn exactly(&mut self, field: &'static str, expected: u64) -> Result<u64, FormatError> {
        self.within(field, expected..=expected)
    }

    /// A field that must lie in a range.
    fn within(
        &mut self,
        field: &'static str,
        range: std::ops::RangeInclusive<u64>,
    ) -> Result<u64, FormatError> {
        let at = self.offset();
        let value = self.u64(field)?;
        if range.contains(&value) {
            return Ok(value);
        }
        let (first, last) = range.into_inner();
        let what = match first == last {
            true => format!("is {value}, expected {first}"),
            false => format!("is {value}, expected {first} to {last}"),
        };
        Err(invalid(field, at, what))
    }

    /// A count of entries that take at least `entry_bytes` each of what is left.
    fn count(&mut self, field: &'static str, entry_bytes: u64) -> Result<usize, FormatError> {
        let at = self.offset();
        let count = self.u64(field)?;
        let limit = self.left() / entry_bytes;
        if count > limit {
            return Err(invalid(field, at, format!("is {count}, there is room for {limit}")));
        }
        Ok(usize::try_from(count).expect("bounded by bytes in memory"))
    }

    fn name(&mut self) -> Result<String, FormatError> {
        let bytes = self.within("length of a tensor name", 1..=MAX_TENSOR_NAME_BYTES)?;
        let padded = bytes.next_multiple_of(8);
        if padded > self.left() {
            return Err(self.truncated("tensor name", padded));
        }
        let at = self.offset();
        let (bytes, padded) = (bytes as usize, padded as usize);
        let (name, padding) = self.bytes[self.at..self.at + padded].split_at(bytes);
        self.at += padded;
        if padding.iter().any(|byte| *byte != 0) {
            return Err(invalid("padding of a tensor name", at, "is not zero".into()));
        }
        let name = std::str::from_utf8(name);
        let name = name.map_err(|e| invalid("tensor name", at, format!("is not UTF-8: {e}")))?;
        Ok(name.to_owned())
    }

    fn code<T>(
        &mut self,
        field: &'static str,
        known: impl Fn(u64) -> Option<T>,
    ) -> Result<T, FormatError> {
        let at = self.offset();
        let code = self.u64(field)?;
        known(code).ok_or_else(|| invalid(field, at, format!("{code} is not known")))
    }

    fn tensor(
        &mut self,
        first_block: usize,
        block_count: usize,
    ) -> Result<TensorEntry, FormatError> {
        let start = self.offset();
        let name = self.name()?;
        let layout = self.code("layout code", Layout::from_code)?;
        let codec = self.code("codec code", |code| {
            (code == codec::RAW || codec::by_code(code).is_some()).then_some(code)
        })?;
        let dtype = self.code("dtype code", Dtype::from_code)?;
        let rank = self.within("rank", 0..=MAX_RANK)?;
        let mut dims = Vec::with_capacity(rank as usize);
        for _ in 0..rank {
            dims.push(self.within("dimension", 1..=MAX_FILE_BYTES)?);
        }
        let at = self.offset();
        let rows = self.within("row count", 1..=MAX_FILE_BYTES)?;
        let depth = self.within("depth", 1..=MAX_DEPTH)?;
        let plan = TensorPlan { name, layout, codec, dtype, dims, rows, depth };
        plan.check().map_err(|what| invalid("rows and depth", at, what))?;
        self.exactly("first block", first_block as u64)?;
        let left = (block_count - first_block) as u64;
        let count = self.within("block count of a tensor", 1..=left.max(1))?;
        if count > left {
            return Err(invalid("tensor", start, "has blocks beyond the block count".into()));
        }
        Ok(plan.into_entry(first_block, count as usize))
    }

    fn block(
        &mut self,
        tensor_index: usize,
        tensor: &TensorEntry,
        row_start: u64,
        free_from: u64,
        file_bytes: u64,
    ) -> Result<BlockEntry, FormatError> {
        self.exactly("tensor of a block", tensor_index as u64)?;
        self.exactly("row start of a block", row_start)?;
        let at = self.offset();
        let row_count =
            self.within("row count of a block", 1..=(tensor.rows - row_start).max(1))?;
        let row_end = row_start + row_count;
        let is_whole = row_count.is_multiple_of(tensor.layout.row_step());
        if row_end > tensor.rows || !(is_whole || row_end == tensor.rows) {
            let what = format!("is {row_count}, not a multiple of {}", tensor.layout.row_step());
            return Err(invalid("row count of a block", at, what));
        }
        self.exactly("depth start of a block", 0)?;
        self.exactly("depth count of a block", tensor.depth)?;
        let at = self.offset();
        let offset = self.u64("offset of a block")?;
        if offset < free_from || !offset.is_multiple_of(BLOCK_ALIGN) || offset >= file_bytes {
            let what = format!(
                "is {offset}, expected a multiple of {BLOCK_ALIGN} from {free_from} on, below \
                 {file_bytes}"
            );
            return Err(invalid("offset of a block", at, what));
        }
        let at = self.offset();
        let expected =
            block_bytes(tensor.layout, tensor.codec, tensor.dtype, tensor.depth, row_count);
        let expected = expected.filter(|bytes| *bytes <= file_bytes - offset);
        let expected = expected.ok_or_else(|| {
            invalid("length of a block", at, "would lie beyond the file's end".into())
        })?;
        let bytes = self.exactly("length of a block", expected)?;
        let checksum = self.u64("checksum of a block")?;
        Ok(BlockEntry {
            tensor: tensor_index,
            row_start,
            row_count,
            depth_start: 0,
            depth_count: tensor.depth,
            offset,
            bytes,
            checksum,
        })
    }

    fn end(&self) -> Result<(), FormatError> {
        match self.left() {
            0 => Ok(()),
            left => Err(invalid("index", self.offset(), format!("has {left} bytes too many"))),
        }
    }
}

/// Stored bytes of a run; `None` on overflow.
fn run_bytes(codec: u64, dtype: Dtype, depth: u64, lanes: usize) -> Option<u64> {
    let lane_count = lanes as u64;
    match codec::by_code(codec) {
        None => depth.checked_mul(lane_count)?.checked_mul(dtype.size() as u64),
        Some(codec) => {
            // No codec stores more than 4 bytes and a half a value of a padded group.
            depth.checked_add(GROUP_DEPTH as u64)?.checked_mul(lane_count)?.checked_mul(8)?;
            let depth = usize::try_from(depth).ok()?;
            u64::try_from(codec.stored_bytes(depth, lanes)).ok()
        }
    }
}

fn with_checksum(row_bytes: u64) -> Option<u64> {
    row_bytes.checked_add(ROW_CHECKSUM_BYTES)
}

/// Stored bytes of a block of `row_count` rows; `None` on overflow.
fn block_bytes(
    layout: Layout,
    codec: u64,
    dtype: Dtype,
    depth: u64,
    row_count: u64,
) -> Option<u64> {
    match layout {
        Layout::Panels => run_bytes(codec, dtype, depth, PANEL_ROWS)?
            .checked_mul(row_count.div_ceil(PANEL_ROWS as u64)),
        Layout::Rows => {
            run_bytes(codec, dtype, depth, 1).and_then(with_checksum)?.checked_mul(row_count)
        }
        Layout::Flat => run_bytes(codec, dtype, row_count, 1),
    }
}

/// Rows of every block but a tensor's last: as many as [`BLOCK_BYTES`] hold, and at least one
/// panel, row or group. `dtype` matters to [`codec::RAW`] only; `depth` is at most [`MAX_DEPTH`].
pub fn block_rows(layout: Layout, codec: u64, dtype: Dtype, depth: u64) -> u64 {
    let step = layout.row_step();
    let step_bytes = block_bytes(layout, codec, dtype, depth, step);
    let steps = step_bytes.map_or(1, |bytes| (BLOCK_BYTES / bytes).max(1));
    steps * step
}

/// Appends the checksum of the encoded row that starts at `row_start` of a [`Layout::Rows`]
/// block.
pub fn seal_row(block: &mut Vec<u8>, row_start: usize) {
    let checksum = xxh3_64(&block[row_start..]);
    block.extend(checksum.to_le_bytes());
}

/// The encoded row inside a row of a [`Layout::Rows`] block; `None` where its checksum disagrees.
pub fn open_row(stored: &[u8]) -> Option<&[u8]> {
    let (row, checksum) = stored.split_last_chunk()?;
    (xxh3_64(row) == u64::from_le_bytes(*checksum)).then_some(row)
}

/// Checks the bytes that were read for a block of the layer file `path`.
///
/// # Errors
/// [`StoreError::Corrupt`] where length or checksum disagree with the index.
pub fn verify_block(path: &Path, block: &BlockEntry, bytes: &[u8]) -> Result<(), StoreError> {
    if bytes.len() as u64 == block.bytes && xxh3_64(bytes) == block.checksum {
        return Ok(());
    }
    let BlockEntry { tensor, row_start, row_count, offset, .. } = block;
    let row_end = row_start + row_count;
    let what = format!(
        "wrong checksum of the block at byte {offset} (rows {row_start}..{row_end} of tensor {tensor})"
    );
    Err(StoreError::corrupt(path, what))
}

/// A layer file, open for reading, whose index has been checked; its blocks have not.
#[derive(Debug)]
pub struct LayerFile {
    /// The file.
    pub file: File,
    /// Where it lies.
    pub path: PathBuf,
    /// What it holds.
    pub index: LayerIndex,
}

impl LayerFile {
    /// Opens a layer file and reads header and index. With `expected`, the manifest's word on
    /// it, length and index checksum are compared too. Links are not followed.
    ///
    /// # Errors
    /// The system's, a [`FormatError`], or a disagreement with the manifest.
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
            _ => Ok(LayerFile { file, path: path.to_owned(), index }),
        }
    }

    /// Reads a block into `bytes`, which becomes as long as it, and checks its checksum.
    ///
    /// # Errors
    /// The system's, or [`StoreError::Corrupt`] naming tensor, rows and offset.
    pub fn read_block(&self, index: usize, bytes: &mut Vec<u8>) -> Result<(), StoreError> {
        let block = &self.index.blocks[index];
        let length = usize::try_from(block.bytes).expect("parse bounds a block's bytes");
        bytes.resize(length, 0);
        let result = self.file.read_exact_at(bytes, block.offset);
        result.map_err(|e| StoreError::io("read", &self.path, e))?;
        self.verify_block(index, bytes)
    }

    /// As [`verify_block`], naming the tensor.
    ///
    /// # Errors
    /// [`StoreError::Corrupt`] where length or checksum disagree with the index.
    pub fn verify_block(&self, index: usize, bytes: &[u8]) -> Result<(), StoreError> {
        let block = &self.index.blocks[index];
        if bytes.len() as u64 == block.bytes && xxh3_64(bytes) == block.checksum {
            return Ok(());
        }
        let name = &self.index.tensors[block.tensor].name;
        let what = format!("wrong checksum of {}", describe_block(index, block, name));
        Err(StoreError::corrupt(&self.path, what))
    }
}

/// "block 3 at byte 65536 (rows 0..256 of "encoder.weight")".
pub(super) fn describe_block(index: usize, block: &BlockEntry, tensor: &str) -> String {
    let rows = block.row_start..block.row_start + block.row_count;
    format!("block {index} at byte {} (rows {rows:?} of {tensor:?})", block.offset)
}

/// Opens a regular file for reading and says how long it is; links are not followed, and a pipe
/// does not block.
pub(super) fn open_file(path: &Path) -> Result<(File, u64), StoreError> {
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_CLOEXEC;
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path);
    let file = file.map_err(|e| StoreError::io("open", path, e))?;
    let metadata = file.metadata().map_err(|e| StoreError::io("examine", path, e))?;
    if !metadata.is_file() {
        return Err(StoreError::corrupt(path, "is not a regular file"));
    }
    Ok((file, metadata.len()))
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
    fn check(&self) -> Result<(), String> {
        let is_raw = self.codec == codec::RAW;
        if is_raw && self.layout == Layout::Panels {
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

    fn into_entry(self, first_block: usize, block_count: usize) -> TensorEntry {
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
    /// [`super::install()`] syncs a version's files when all are there.
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
fn lay_out(plans: Vec<TensorPlan>) -> Result<LayerIndex, String> {
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
    index.file_bytes = end.next_multiple_of(FILE_ALIGN);
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
