//! Who computes what of a product. Threads take tiles, a few panels each, from one block of the weight
//! after the other, and meet only where the product ends: whoever is held up, by a loader on the same
//! core or by being slower, takes fewer of them and holds up nobody.

use crate::codec::{Codec, PANEL_ROWS};
use crate::sys::aligned::AlignedBuffer;
use crate::sys::lock::lock;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};
use tract_core::internal::*;
use tract_linalg::multithread::{Executor, current_tract_executor, multithread_tract_scope};

/// The borrow of one block: dropping it lets the block's memory go.
pub struct Lease {
    /// Rows (outputs of a linear, elements of a constant) that the block holds.
    pub rows: Range<usize>,
    /// The block's stored bytes.
    pub bytes: Box<dyn AsRef<[u8]> + Send + Sync>,
}

/// Weights of a tile, about: with one column it takes some 10 us, which is what threads wait for each
/// other at the product's end, and many times what taking it does.
const TILE_WEIGHTS: usize = 1 << 16;

/// Tiles that there are for each thread at least, as far as there are panels.
const TILES_A_THREAD: usize = 4;

/// Multiplications that are worth waking another thread.
const THREAD_WORK: usize = 1 << 18;

/// A product whose weight comes in blocks of panels.
pub struct Product<'a> {
    pub outputs: usize,
    pub depth: usize,
    pub codec: &'static dyn Codec,
    /// Number of blocks.
    pub blocks: usize,
    /// Waits for a block and borrows it. Blocks are asked for in their order, one at a time; the one
    /// before may still be in use.
    pub lease: &'a (dyn Fn(usize) -> TractResult<Lease> + Sync),
}

/// What computes a tile: the outputs of these rows, from their panels.
pub type Work<'a> = &'a (dyn Fn(Range<usize>, &[u8], &mut Scratch) -> TractResult<()> + Sync);

/// What a thread decodes panels into. It lasts as long as the product: what threads kept for the
/// next one would be held, by no pass, for good.
pub type Scratch = Option<AlignedBuffer>;

/// Panels that one thread computes.
struct Tile {
    block: Arc<Lease>,
    rows: Range<usize>,
    bytes: Range<usize>,
}

/// What has been taken so far.
#[derive(Default)]
struct Taken {
    blocks: usize,
    rows: usize,
    /// The block that tiles are taken from.
    block: Option<Arc<Lease>>,
    failure: Option<TractError>,
}

impl Product<'_> {
    /// Has all panels computed, each once, on as many of the threads of tract's executor as have
    /// enough to do with so many columns; `work` is to use none itself. A block is let go with its
    /// last tile.
    ///
    /// # Errors
    /// Of the first lease or tile that fails, after which no tile is begun; blocks that are not the
    /// rows in their order.
    pub fn compute(&self, columns: usize, work: Work) -> TractResult<()> {
        let taken = Mutex::new(Taken::default());
        let pool = match current_tract_executor() {
            Executor::MultiThread(pool) => Some(pool),
            _ => None,
        };
        let there_are = pool.as_ref().map_or(1, |pool| pool.current_num_threads());
        let panels = self.outputs.div_ceil(PANEL_ROWS);
        let work_there_is = self.outputs.saturating_mul(self.depth).saturating_mul(columns);
        let threads = there_are.min(work_there_is / THREAD_WORK).min(panels).max(1);
        let most = panels.div_ceil(TILES_A_THREAD * threads).max(1);
        let tile_panels = (TILE_WEIGHTS / (PANEL_ROWS * self.depth).max(1)).clamp(1, most);
        let compute = || {
            multithread_tract_scope(Executor::SingleThread, || {
                if let Err(error) = self.take_all(&taken, tile_panels, work) {
                    lock(&taken).failure.get_or_insert(error);
                }
            });
        };
        match pool {
            Some(pool) if threads > 1 => pool.scope(|scope| {
                (1..threads).for_each(|_| scope.spawn(|_| compute()));
                compute();
            }),
            _ => compute(),
        }
        let taken = taken.into_inner().unwrap_or_else(PoisonError::into_inner);
        if let Some(failure) = taken.failure {
            return Err(failure);
        }
        ensure!(taken.rows == self.outputs, "{} of {} rows came", taken.rows, self.outputs);
        Ok(())
    }

    /// Computes tiles until there are no more.
    fn take_all(&self, taken: &Mutex<Taken>, tile_panels: usize, work: Work) -> TractResult<()> {
        let mut scratch = None;
        while let Some(Tile { block, rows, bytes }) = self.take(taken, tile_panels)? {
            work(rows, &(*block.bytes).as_ref()[bytes], &mut scratch)?;
        }
        Ok(())
    }

    /// Takes the next tile. Whoever finds that a block has no more of them waits for the next one, and
    /// holds none meanwhile.
    fn take(&self, taken: &Mutex<Taken>, tile_panels: usize) -> TractResult<Option<Tile>> {
        let mut taken = lock(taken);
        if taken.failure.is_some() {
            return Ok(None);
        }
        let is_used_up = |block: &Arc<Lease>, rows: usize| rows >= block.rows.end;
        while taken.block.as_ref().is_none_or(|block| is_used_up(block, taken.rows)) {
            taken.block = None;
            if taken.blocks == self.blocks {
                return Ok(None);
            }
            let block = (self.lease)(taken.blocks)?;
            self.check(&block, taken.rows)?;
            taken.blocks += 1;
            taken.block = Some(Arc::new(block));
        }
        let block = Arc::clone(taken.block.as_ref().context("a block was leased")?);
        let rows = taken.rows..(taken.rows + tile_panels * PANEL_ROWS).min(block.rows.end);
        taken.rows = rows.end;
        let panel_bytes = self.codec.stored_bytes(self.depth, PANEL_ROWS);
        let first = (rows.start - block.rows.start) / PANEL_ROWS;
        let bytes = first * panel_bytes..(first + rows.len().div_ceil(PANEL_ROWS)) * panel_bytes;
        Ok(Some(Tile { block, rows, bytes }))
    }

    fn check(&self, block: &Lease, first_row: usize) -> TractResult<()> {
        let Range { start, end } = block.rows;
        let is_whole = (end - start).is_multiple_of(PANEL_ROWS) || end == self.outputs;
        ensure!(start == first_row && end <= self.outputs && is_whole, "rows out of order");
        let panels = block.rows.len().div_ceil(PANEL_ROWS);
        let bytes = panels * self.codec.stored_bytes(self.depth, PANEL_ROWS);
        let stored = (*block.bytes).as_ref().len();
        ensure!(stored == bytes, "a block's length disagrees with its rows");
        Ok(())
    }
}
