//! Layer files: one layer's blocks in one variant.
//!
//! A header of 64 bytes, an index of tensors and blocks, then the blocks, each at a multiple of
//! [`BLOCK_ALIGN`] with zeros between, at least [`TAIL_BYTES`] of them behind the last. All
//! integers are little-endian `u64`.
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

mod entries;
mod file;
mod index;
mod writer;

pub use entries::{BlockEntry, TensorEntry, TensorPlan};
pub use file::LayerFile;
pub use index::LayerIndex;
pub use writer::{LayerSummary, LayerWriter};

pub(super) use file::{describe_block, open_file};

use super::Dtype;
use crate::codec::{self, GROUP_DEPTH, PANEL_ROWS};
use crate::sys::map::LARGEST_PAGE_BYTES;
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64;

/// First bytes of every layer file.
pub const MAGIC: [u8; 8] = *b"HERMESLF";

/// Version of the format that this program reads and writes.
pub const VERSION: u64 = 1;

/// Bytes of the header, where the index starts.
pub const HEADER_BYTES: u64 = 64;

/// Blocks start at multiples of this.
pub const BLOCK_ALIGN: u64 = LARGEST_PAGE_BYTES as u64;

/// Stored bytes that a block aims for; one panel, row or group may be larger.
pub const BLOCK_BYTES: u64 = 1 << 20;

/// Bytes of the checksum behind each row of a [`Layout::Rows`] block.
pub const ROW_CHECKSUM_BYTES: u64 = 8;

/// Limit of the index: far above that of any layer, small enough to be read at once.
pub const MAX_INDEX_BYTES: u64 = 64 << 20;

/// Limit of a depth, so that a panel's bytes always fit in memory arithmetic.
pub const MAX_DEPTH: u64 = 1 << 24;

/// Bytes of the file behind its last block, at least: compute may read so far past a block that
/// it uses in place. Files of the first builds lack them where the last block ends on a page.
pub const TAIL_BYTES: u64 = 64;

/// Files are padded to a multiple of this, so that direct reads may round up.
const FILE_ALIGN: u64 = 4096;

const MAX_FILE_BYTES: u64 = 1 << 48;
const MAX_RANK: u64 = 16;
const MAX_TENSOR_NAME_BYTES: u64 = 4096;
const MIN_TENSOR_BYTES: u64 = 10 * 8;
const BLOCK_ENTRY_BYTES: u64 = 8 * 8;

/// How a tensor's elements are arranged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Layout {
    /// A matrix in panels of 16 rows, k-major, the last one padded with zeros: for products.
    Panels,
    /// A table, each row followed by its own checksum: for gathers.
    Rows,
    /// The elements in row-major order, for everything else: `rows` elements of depth 1.
    Flat,
    /// Panels whose rows are a matrix' columns, where those of its rows are there as
    /// [`Layout::Panels`]: for a matrix that products use as it is and as its transpose.
    ColumnPanels,
}

impl Layout {
    /// Every layout, in the order of their codes.
    pub const ALL: [Layout; 4] = [Layout::Panels, Layout::Rows, Layout::Flat, Layout::ColumnPanels];

    /// The code that stands for it in a layer file.
    pub fn code(self) -> u64 {
        match self {
            Layout::Panels => 0,
            Layout::Rows => 1,
            Layout::Flat => 2,
            Layout::ColumnPanels => 3,
        }
    }

    /// The layout of a code, `None` for a code this version does not know.
    pub fn from_code(code: u64) -> Option<Layout> {
        Layout::ALL.into_iter().find(|layout| layout.code() == code)
    }

    /// Whether rows stand in panels.
    pub fn is_panels(self) -> bool {
        matches!(self, Layout::Panels | Layout::ColumnPanels)
    }

    /// Rows that a block's bounds must be multiples of, but for the tensor's end.
    pub fn row_step(self) -> u64 {
        match self {
            Layout::Panels | Layout::ColumnPanels => PANEL_ROWS as u64,
            Layout::Rows => 1,
            Layout::Flat => GROUP_DEPTH as u64,
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
        Layout::Panels | Layout::ColumnPanels => run_bytes(codec, dtype, depth, PANEL_ROWS)?
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
