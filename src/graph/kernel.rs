//! Matrix products on blocks in place: tract's kernels fed with panels that lie in the window, and for a
//! few columns loops of ours that decode as they multiply.

#![allow(unsafe_code)]

use super::product::{Product, Scratch};
use crate::codec::{self, Codec, Columns, FEW_COLUMNS, PANEL_ROWS};
use crate::store::layer_file::TAIL_BYTES;
use crate::sys::aligned::AlignedBuffer;
use std::alloc::Layout;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::ops::Range;
use std::ptr;
use std::time::Instant;
use tract_core::internal::*;
use tract_linalg::mmm::*;
use tract_linalg::multithread::{Executor, multithread_tract_scope};
use tract_linalg::pack::PackedFormat;

/// Bytes past a panel's end that a kernel may read ahead, one record of its packing. Whoever
/// brings a block in keeps this much readable behind it.
pub const READ_AHEAD_BYTES: usize = PANEL_ROWS * size_of::<f32>();

const _: () = assert!(READ_AHEAD_BYTES as u64 <= TAIL_BYTES, "a layer file's last block has less");

/// Most columns of a kernel's tile: packed columns are filled up to whole tiles.
pub const TILE_COLUMNS: usize = 16;

/// Alignment of decoded panels: a cache line, and the widest vector.
const PANEL_ALIGN: usize = 64;

/// Depth of the tile whose time tells a kernel's speed, and how often it is computed.
const TRIAL_DEPTH: usize = 256;
const TRIALS: usize = 8;

/// The f32 kernels of this processor that take panels of [`PANEL_ROWS`] rows.
///
/// All of them add up a column's products one after the other along k, so a column's result has
/// the same bits whichever kernel computes it, on whichever thread, and whatever stands beside it.
pub struct Kernels {
    /// By columns a tile holds, ascending.
    by_columns: Vec<Kernel>,
    /// Whether [`Codec::multiply`] computes up to [`FEW_COLUMNS`] columns: where it is fast, and rounds
    /// as tract's kernels do.
    multiplies_few: bool,
}

#[derive(Clone)]
struct Kernel {
    mmm: Box<dyn MatMatMul>,
    packing: usize,
    /// Time of a tile of [`TRIAL_DEPTH`].
    tile_ns: u64,
}

impl fmt::Debug for Kernels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.by_columns.iter().map(|k| k.mmm.name())).finish()
    }
}

impl Kernels {
    /// The kernels this processor runs. Every architecture has at least a portable one.
    pub fn native() -> Kernels {
        let mut kernels: Vec<Kernel> = MmmDispatch::native()
            .runnable()
            .iter()
            .filter_map(|mmm| Kernel::suited(&**mmm))
            .collect();
        let best = kernels.iter().map(|k| (k.mmm.arch().is_some(), k.mmm.preference())).max();
        kernels.retain(|k| Some((k.mmm.arch().is_some(), k.mmm.preference())) == best);
        // Kernels of one column add in another order; the others reach the same bandwidth.
        if kernels.iter().any(|kernel| kernel.mmm.nr() > 1) {
            kernels.retain(|kernel| kernel.mmm.nr() > 1);
        }
        kernels.sort_by_key(|k| k.mmm.nr());
        for kernel in &mut kernels {
            kernel.tile_ns = kernel.time_tile().unwrap_or(u64::MAX);
        }
        let multiplies_few = kernels.last().is_some_and(agrees_with_codecs);
        Kernels { by_columns: kernels, multiplies_few }
    }

    /// The kernel that takes the least time for `columns`.
    fn pick(&self, columns: usize) -> TractResult<&Kernel> {
        let time = |k: &&Kernel| k.tile_ns.saturating_mul(columns.div_ceil(k.mmm.nr()) as u64);
        let fastest = self.by_columns.iter().min_by_key(time);
        fastest.context("this processor has no f32 kernel for panels of 16 rows")
    }

    /// Time of a tile on the calling thread, by the kernel of most columns, in nanoseconds.
    pub fn trial_ns(&self) -> u64 {
        self.by_columns.last().and_then(|kernel| kernel.time_tile().ok()).unwrap_or(u64::MAX)
    }

    /// Packs `x[.., depth]` for `Packed::multiply`, for which it is no longer needed.
    pub fn pack(&self, x: &Tensor, depth: usize) -> TractResult<Packed<'_>> {
        let columns = x.len() / depth.max(1);
        if self.multiplies_few && (1..=FEW_COLUMNS).contains(&columns) && depth > 0 {
            check_columns(x, depth)?;
            let plain = x.try_as_plain_ram()?;
            let by = By::Steps(Columns::pack(plain.as_slice::<f32>()?, depth));
            return Ok(Packed { by, columns, depth });
        }
        self.pick(columns)?.pack(x, depth)
    }
}

impl Kernel {
    fn suited(mmm: &dyn MatMatMul) -> Option<Kernel> {
        let takes = |format: &dyn MMMInputFormat, r: usize| {
            format
                .downcast_ref::<PackedFormat>()
                .is_some_and(|p| p.dt == f32::datum_type() && p.r == r)
        };
        let packing = mmm
            .packings()
            .iter()
            .position(|(a, b)| takes(&**a, PANEL_ROWS) && takes(&**b, mmm.nr()))?;
        let plain = mmm.internal_type() == f32::datum_type()
            && mmm.mr() == PANEL_ROWS
            && mmm.nr() <= TILE_COLUMNS
            && !mmm.emulated()
            && mmm.stores().contains(&f32::datum_type());
        plain.then(|| Kernel { mmm: dyn_clone::clone_box(mmm), packing, tile_ns: 0 })
    }

    fn pack(&self, x: &Tensor, depth: usize) -> TractResult<Packed<'_>> {
        check_columns(x, depth)?;
        let columns = x.len() / depth.max(1);
        let activations = &self.mmm.packings()[self.packing].1;
        let (shape, strides) = ([columns, depth], [depth as isize, 1]);
        // SAFETY: a tensor's elements follow each other without gaps, and these are `columns` times
        // `depth` elements of f32.
        let matrix = unsafe { TensorView::from_bytes(x, 0, &shape, &strides) };
        let packed = activations.prepare_one_view(&matrix, 1, 0)?;
        Ok(Packed { by: By::Tiles(self, packed), columns, depth })
    }

    /// The shortest time in which it computes a tile.
    fn time_tile(&self) -> TractResult<u64> {
        let x = Tensor::zero::<f32>(&[self.mmm.nr(), TRIAL_DEPTH])?;
        let panel = vec![0; PANEL_ROWS * TRIAL_DEPTH * size_of::<f32>() + READ_AHEAD_BYTES];
        let panel = &panel[..panel.len() - READ_AHEAD_BYTES];
        let packed = self.pack(&x, TRIAL_DEPTH)?;
        let mut y = Tensor::zero::<f32>(&[packed.columns, PANEL_ROWS])?;
        let y = Output::new(&mut y)?;
        let codec = codec::by_name("f32").context("there is f32")?;
        let mut shortest = u64::MAX;
        multithread_tract_scope(Executor::SingleThread, || {
            for _ in 0..TRIALS {
                let began = Instant::now();
                packed.compute(&y, 0..PANEL_ROWS, panel, codec, &mut None)?;
                shortest = shortest.min(began.elapsed().as_nanos() as u64);
            }
            Ok(shortest)
        })
    }
}

fn check_columns(x: &Tensor, depth: usize) -> TractResult<()> {
    ensure!(x.datum_type() == f32::datum_type(), "a product of {x:?}");
    ensure!(x.shape().last() == Some(&depth), "a product of depth {depth} with {x:?}");
    Ok(())
}

/// Whether codecs' own products are fast here, and have the bits of `kernel`'s.
fn agrees_with_codecs(kernel: &Kernel) -> bool {
    let value = |i: usize| (i * 7919 % 1009) as f32 / 317.0 - 1.5;
    let (x, w): (Vec<f32>, Vec<f32>) =
        (0..TRIAL_DEPTH * PANEL_ROWS).map(|i| (value(i + 13), value(i))).unzip();
    let mut stored = vec![];
    let (Some(codec), true) = (codec::by_name("f32"), codec::has_fused_addition()) else {
        return false;
    };
    codec.encode(&w, PANEL_ROWS, &mut stored);
    let mut sums = [[0.0; PANEL_ROWS]; FEW_COLUMNS];
    codec.multiply(&stored, &Columns::pack(&x[..TRIAL_DEPTH], TRIAL_DEPTH), &mut sums);
    let bytes = stored.len();
    stored.resize(bytes + READ_AHEAD_BYTES, 0);
    let theirs = || -> TractResult<bool> {
        let x = tensor1(&x[..TRIAL_DEPTH]).into_shape(&[1, TRIAL_DEPTH])?;
        let mut y = Tensor::zero::<f32>(&[1, PANEL_ROWS])?;
        let output = Output::new(&mut y)?;
        let packed = kernel.pack(&x, TRIAL_DEPTH)?;
        multithread_tract_scope(Executor::SingleThread, || {
            packed.compute(&output, 0..PANEL_ROWS, &stored[..bytes], codec, &mut None)
        })?;
        Ok(y.try_as_plain_ram()?.as_slice::<f32>()? == sums[0])
    };
    theirs().unwrap_or(false)
}

/// The columns of a product, as what computes it takes them.
pub struct Packed<'a> {
    by: By<'a>,
    columns: usize,
    depth: usize,
}

/// What computes a product.
enum By<'a> {
    /// A kernel of tract.
    Tiles(&'a Kernel, Box<dyn MMMInputValue>),
    /// The codec.
    Steps(Columns),
}

impl Packed<'_> {
    /// `y[columns, outputs] = x[columns, depth] * w`, on the threads among which the rows of `w` are
    /// dealt.
    pub fn multiply(&self, product: &Product) -> TractResult<Tensor> {
        ensure!(
            product.depth == self.depth,
            "a weight of depth {} for {}",
            product.depth,
            self.depth
        );
        // SAFETY: every element is written before `y` is let out: `Product::compute` has each output
        // computed, or is an error; where there are no columns there are no elements.
        let mut y = unsafe { Tensor::uninitialized::<f32>(&[self.columns, product.outputs])? };
        let output = Output::new(&mut y)?;
        product.compute(self.columns, &|rows, stored, scratch| {
            self.compute(&output, rows, stored, product.codec, scratch)
        })?;
        Ok(y)
    }

    /// Computes the rows of `y` from their panels; no two threads at once those of one panel.
    fn compute(
        &self,
        y: &Output,
        rows: Range<usize>,
        stored: &[u8],
        codec: &'static dyn Codec,
        scratch: &mut Scratch,
    ) -> TractResult<()> {
        let panel_bytes = codec.stored_bytes(self.depth, PANEL_ROWS);
        let panels = rows.len().div_ceil(PANEL_ROWS);
        ensure!(self.columns == y.columns && rows.end <= y.rows, "rows {rows:?} of {}", y.rows);
        ensure!(stored.len() == panels * panel_bytes, "stored bytes of {} rows", rows.len());
        match &self.by {
            _ if self.columns == 0 => {}
            By::Steps(columns) => {
                let first_rows = rows.clone().step_by(PANEL_ROWS);
                for (panel, row) in stored.chunks_exact(panel_bytes).zip(first_rows) {
                    let mut sums = [[0.0; PANEL_ROWS]; FEW_COLUMNS];
                    codec.multiply(panel, columns, &mut sums);
                    let rows = row..rows.end.min(row + PANEL_ROWS);
                    for (column, sums) in sums[..self.columns].iter().enumerate() {
                        y.put(column, rows.clone(), sums);
                    }
                }
            }
            By::Tiles(kernel, packed) => {
                let in_place =
                    codec.is_plain_f32() && stored.as_ptr().addr().is_multiple_of(PANEL_ALIGN);
                let decoded = match in_place {
                    true => ptr::null_mut(),
                    false => {
                        let bytes = self.depth * PANEL_ROWS * size_of::<f32>() + READ_AHEAD_BYTES;
                        let buffer = scratch.get_or_insert_with(|| AlignedBuffer::zeroed(bytes));
                        ensure!(buffer.as_ref().len() >= bytes, "scratch for a smaller panel");
                        buffer.as_mut().as_mut_ptr().cast()
                    }
                };
                let format = kernel.mmm.packings()[kernel.packing].0.clone();
                let block = BlockPanels {
                    stored: stored.as_ptr(),
                    decoded,
                    panel_bytes,
                    panels,
                    rows: rows.len(),
                    depth: self.depth,
                    codec,
                    in_place,
                    fact: PackedExoticFact { format, mn: rows.len().to_dim(), k: self.depth },
                };
                self.run(kernel, &**packed, &block, y, rows.start)?;
            }
        }
        Ok(())
    }

    fn run(
        &self,
        kernel: &Kernel,
        packed: &dyn MMMInputValue,
        block: &BlockPanels,
        y: &Output,
        first_row: usize,
    ) -> TractResult<()> {
        let mmm = &kernel.mmm;
        let shape = [self.columns, block.rows];
        let strides = [y.tensor.strides()[0], 1];
        let offset = (first_row * size_of::<f32>()) as isize;
        // SAFETY: the view covers first_row..first_row+rows of each column of `y`, which `compute`
        // checked to be inside it and which no other thread uses; tract writes by a pointer that it
        // takes from the tensor, whose memory nobody else has meanwhile, as `Output` says; the block
        // outlives the call, which is of this thread alone, as its `decoded` is; its `stored` holds
        // `panels` whole panels; the scratch space is of this kernel, for this call.
        multithread_tract_scope(Executor::SingleThread, || unsafe {
            let mut scratch = mmm.allocate_scratch_space();
            let view = TensorView::from_bytes(y.tensor, offset, &shape, &strides);
            let store = mmm.c_view(Some(1), Some(0)).wrap(&view);
            let product = FusedSpec::AddMatMul {
                a: AsInputValue::Borrowed(block),
                b: AsInputValue::Borrowed(packed),
                packing: kernel.packing,
            };
            mmm.run_with_scratch_space(
                block.rows,
                self.columns,
                &mut *scratch,
                &[product, FusedSpec::Store(store)],
            )
        })
    }
}

/// Where a product's outputs go, `[columns, rows]` of f32: borrowed for as long as it is computed,
/// so that threads may each write rows of their own.
struct Output<'a> {
    tensor: &'a Tensor,
    /// Its elements, taken while nobody else had them.
    first: *mut f32,
    columns: usize,
    rows: usize,
}

// SAFETY: it stands for a mutable borrow of the tensor, which may go to another thread.
unsafe impl Send for Output<'_> {}
// SAFETY: threads that share it write elements of their own each, as `Packed::compute` asks for,
// and read none.
unsafe impl Sync for Output<'_> {}

impl Output<'_> {
    fn new(tensor: &mut Tensor) -> TractResult<Output<'_>> {
        ensure!(tensor.datum_type() == f32::datum_type(), "outputs of {tensor:?}");
        let [columns, rows] = *tensor.shape() else { bail!("outputs of {tensor:?}") };
        // SAFETY: these are elements of f32, as was just checked. The pointer comes of a mutable borrow
        // that lasts as long as the output; its reference to the tensor is to what describes them.
        let first = unsafe { tensor.as_ptr_mut_unchecked::<f32>() };
        Ok(Output { tensor, first, columns, rows })
    }

    /// Writes rows of one column, which no other thread uses meanwhile.
    fn put(&self, column: usize, rows: Range<usize>, values: &[f32]) {
        assert!(column < self.columns && rows.end <= self.rows && rows.len() <= values.len());
        // SAFETY: these are elements of the tensor, as was just checked, which lie one after the other;
        // whoever calls is the only one to use them; `values` has as many.
        unsafe {
            let first = self.first.add(column * self.rows + rows.start);
            first.copy_from_nonoverlapping(values.as_ptr(), rows.len());
        }
    }
}

/// One block's panels as tract's kernels ask for them: in place where they are f32, decoded one after
/// the other into the same scratch where not. That is not tract's own, which each thread would keep.
#[derive(Clone)]
struct BlockPanels {
    stored: *const u8,
    /// Room for a panel and what is read ahead of it, where panels are not used in place.
    decoded: *mut f32,
    panel_bytes: usize,
    panels: usize,
    rows: usize,
    depth: usize,
    codec: &'static dyn Codec,
    in_place: bool,
    fact: PackedExoticFact,
}

// SAFETY: a `BlockPanels` lives within one `compute`, which borrows both: `stored` is of bytes that
// nobody writes while the block is leased, `decoded` of scratch that only the computing thread uses.
unsafe impl Send for BlockPanels {}
// SAFETY: as above: `Packed::run` has no other thread ask for panels.
unsafe impl Sync for BlockPanels {}

impl MMMInputValue for BlockPanels {
    fn format(&self) -> &dyn MMMInputFormat {
        &*self.fact.format
    }

    fn scratch_panel_buffer_layout(&self) -> Option<Layout> {
        None
    }

    fn panel_bytes(&self, i: usize, _: Option<*mut u8>) -> TractResult<*const u8> {
        ensure!(i < self.panels);
        // SAFETY: `stored` holds `panels` panels, and i is one of them.
        let panel = unsafe { self.stored.add(i * self.panel_bytes) };
        if self.in_place {
            return Ok(panel);
        }
        // SAFETY: the panel is readable as above; `decoded` has room for one, is the computing
        // thread's, and no kernel uses what was decoded once it asks for the next; any bits are an f32.
        let (stored, values) = unsafe {
            (
                std::slice::from_raw_parts(panel, self.panel_bytes),
                std::slice::from_raw_parts_mut(self.decoded, self.depth * PANEL_ROWS),
            )
        };
        self.codec.decode(stored, PANEL_ROWS, values);
        Ok(self.decoded.cast_const().cast())
    }

    fn mn(&self) -> usize {
        self.rows
    }

    fn k(&self) -> usize {
        self.depth
    }

    fn exotic_fact(&self) -> &dyn ExoticFact {
        &self.fact
    }

    fn extract_at_mn_f16(&self, _: usize, _: &mut [f16]) -> TractResult<()> {
        bail!("a block's rows are not extracted")
    }

    fn extract_at_mn_f32(&self, _: usize, _: &mut [f32]) -> TractResult<()> {
        bail!("a block's rows are not extracted")
    }
}

impl fmt::Debug for BlockPanels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} rows of depth {} in {}", self.rows, self.depth, self.codec.name())
    }
}

impl fmt::Display for BlockPanels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

impl PartialEq for BlockPanels {
    fn eq(&self, other: &BlockPanels) -> bool {
        std::ptr::eq(self.stored, other.stored)
    }
}

impl Eq for BlockPanels {}

impl Hash for BlockPanels {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.stored.hash(state);
    }
}

#[cfg(test)]
#[path = "kernel_tests.rs"]
mod tests;
