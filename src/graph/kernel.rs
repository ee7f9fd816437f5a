//! Matrix products on blocks in place: tract's kernels fed with panels that lie in the window.

#![allow(unsafe_code)]

use crate::codec::{self, Codec, PANEL_ROWS};
use crate::store::layer_file::TAIL_BYTES;
use std::alloc::Layout;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::ops::Range;
use std::time::Instant;
use tract_core::internal::*;
use tract_linalg::mmm::*;
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
/// the same bits whichever kernel computes it and whatever stands beside it.
pub struct Kernels {
    /// By columns a tile holds, ascending.
    by_columns: Vec<Kernel>,
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
        Kernels { by_columns: kernels }
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

    /// Packs `x[.., depth]` for `Packed::product`, for which it is no longer needed.
    pub fn pack(&self, x: &Tensor, depth: usize) -> TractResult<Packed<'_>> {
        self.pick(x.len() / depth.max(1))?.pack(x, depth)
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
        ensure!(x.datum_type() == f32::datum_type(), "a product of {x:?}");
        ensure!(x.shape().last() == Some(&depth), "a product of depth {depth} with {x:?}");
        let columns = x.len() / depth.max(1);
        let activations = &self.mmm.packings()[self.packing].1;
        let (shape, strides) = ([columns, depth], [depth as isize, 1]);
        // SAFETY: a tensor's elements follow each other without gaps, and these are `columns` times
        // `depth` elements of f32.
        let matrix = unsafe { TensorView::from_bytes(x, 0, &shape, &strides) };
        let packed = activations.prepare_one_view(&matrix, 1, 0)?;
        Ok(Packed { kernel: self, packed, columns, depth })
    }

    /// The shortest time in which it computes a tile.
    fn time_tile(&self) -> TractResult<u64> {
        let x = Tensor::zero::<f32>(&[self.mmm.nr(), TRIAL_DEPTH])?;
        let panel = vec![0; PANEL_ROWS * TRIAL_DEPTH * size_of::<f32>() + READ_AHEAD_BYTES];
        let panel = &panel[..panel.len() - READ_AHEAD_BYTES];
        let mut shortest = u64::MAX;
        for _ in 0..TRIALS {
            let mut product = self.pack(&x, TRIAL_DEPTH)?.product(PANEL_ROWS)?;
            let began = Instant::now();
            product.add_rows(0..PANEL_ROWS, panel, codec::by_name("f32"))?;
            shortest = shortest.min(began.elapsed().as_nanos() as u64);
        }
        Ok(shortest)
    }
}

/// The columns of a product, as its kernel takes them.
pub struct Packed<'a> {
    kernel: &'a Kernel,
    packed: Box<dyn MMMInputValue>,
    columns: usize,
    depth: usize,
}

impl<'a> Packed<'a> {
    /// Begins `y[columns, outputs] = x[columns, depth] * w`, whose rows of `w` follow in blocks.
    pub fn product(self, outputs: usize) -> TractResult<Product<'a>> {
        let Packed { kernel, packed, columns, depth } = self;
        let weights = kernel.mmm.packings()[kernel.packing].0.clone();
        // SAFETY: the scratch space is only used with the kernel that made it; every element of
        // `y` is written by `add_rows` before `finish` lets it out, which checks the count.
        let (scratch, y) = unsafe {
            (
                kernel.mmm.allocate_scratch_space(),
                Tensor::uninitialized::<f32>(&[columns, outputs])?,
            )
        };
        let fact = PackedExoticFact { format: weights, mn: outputs.to_dim(), k: depth };
        Ok(Product { kernel, packed, scratch, fact, y, columns, depth, outputs, done: 0 })
    }
}

/// A product under way.
pub struct Product<'a> {
    kernel: &'a Kernel,
    packed: Box<dyn MMMInputValue>,
    scratch: Box<dyn ScratchSpace>,
    fact: PackedExoticFact,
    y: Tensor,
    columns: usize,
    depth: usize,
    outputs: usize,
    done: usize,
}

impl Product<'_> {
    /// Computes the outputs `rows` from a block of their panels. Blocks come in order.
    pub fn add_rows(
        &mut self,
        rows: Range<usize>,
        stored: &[u8],
        codec: Option<&'static dyn Codec>,
    ) -> TractResult<()> {
        let codec = codec.context("a linear's weight has a codec")?;
        let panel_bytes = codec.stored_bytes(self.depth, PANEL_ROWS);
        let panels = rows.len().div_ceil(PANEL_ROWS);
        ensure!(rows.start == self.done && rows.end <= self.outputs, "rows out of order");
        ensure!(stored.len() == panels * panel_bytes, "a block's length disagrees with its rows");
        let in_place = codec.is_plain_f32() && stored.as_ptr().addr().is_multiple_of(PANEL_ALIGN);
        let block = BlockPanels {
            stored: stored.as_ptr(),
            panel_bytes,
            panels,
            rows: rows.len(),
            depth: self.depth,
            codec,
            in_place,
            fact: self.fact.clone(),
        };
        if self.columns > 0 {
            self.run(&block, rows.start)?;
        }
        self.done = rows.end;
        Ok(())
    }

    fn run(&mut self, block: &BlockPanels, first_row: usize) -> TractResult<()> {
        let shape = [self.columns, block.rows];
        let strides = [self.outputs as isize, 1];
        let offset = (first_row * size_of::<f32>()) as isize;
        let mmm = &self.kernel.mmm;
        // SAFETY: the view covers columns first_row..first_row+rows of `y`, which `add_rows`
        // checked to be inside it; the block outlives the call, and `stored` holds `panels`
        // whole panels; the scratch space belongs to this kernel.
        unsafe {
            let view = TensorView::from_bytes(&self.y, offset, &shape, &strides);
            let store = mmm.c_view(Some(1), Some(0)).wrap(&view);
            let product = FusedSpec::AddMatMul {
                a: AsInputValue::Borrowed(block),
                b: AsInputValue::Borrowed(&*self.packed),
                packing: self.kernel.packing,
            };
            mmm.run_with_scratch_space(
                block.rows,
                self.columns,
                &mut *self.scratch,
                &[product, FusedSpec::Store(store)],
            )
        }
    }

    /// The product `[columns, outputs]`.
    pub fn finish(self) -> TractResult<Tensor> {
        ensure!(self.done == self.outputs, "{} of {} rows came", self.done, self.outputs);
        Ok(self.y)
    }
}

/// One block's panels as tract's kernels ask for them: in place where they are f32, decoded
/// panel by panel into the thread's scratch where not.
#[derive(Clone)]
struct BlockPanels {
    stored: *const u8,
    panel_bytes: usize,
    panels: usize,
    rows: usize,
    depth: usize,
    codec: &'static dyn Codec,
    in_place: bool,
    fact: PackedExoticFact,
}

// SAFETY: the pointer is to bytes that nobody writes while the block is leased, and a
// `BlockPanels` lives within one `add_rows`, which borrows those bytes.
unsafe impl Send for BlockPanels {}
// SAFETY: as above; all access is reading.
unsafe impl Sync for BlockPanels {}

impl MMMInputValue for BlockPanels {
    fn format(&self) -> &dyn MMMInputFormat {
        &*self.fact.format
    }

    fn scratch_panel_buffer_layout(&self) -> Option<Layout> {
        let bytes = self.depth * PANEL_ROWS * size_of::<f32>() + READ_AHEAD_BYTES;
        let layout = Layout::from_size_align(bytes, PANEL_ALIGN).expect("a panel fits in memory");
        (!self.in_place).then_some(layout)
    }

    fn panel_bytes(&self, i: usize, buffer: Option<*mut u8>) -> TractResult<*const u8> {
        ensure!(i < self.panels);
        // SAFETY: `stored` holds `panels` panels, and i is one of them.
        let panel = unsafe { self.stored.add(i * self.panel_bytes) };
        if self.in_place {
            return Ok(panel);
        }
        let buffer = buffer.context("decoding needs the scratch that was asked for")?;
        // SAFETY: the panel is readable as above; the buffer has the layout asked for in
        // `scratch_panel_buffer_layout`, belongs to the calling thread, and any bits are an f32.
        let (stored, values) = unsafe {
            (
                std::slice::from_raw_parts(panel, self.panel_bytes),
                std::slice::from_raw_parts_mut(buffer.cast::<f32>(), self.depth * PANEL_ROWS),
            )
        };
        self.codec.decode(stored, PANEL_ROWS, values);
        Ok(buffer)
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
mod tests {
    use super::*;

    /// `y` of the first `columns` columns, by one kernel.
    fn multiply(kernel: &Kernel, x: &[f32], columns: usize, depth: usize, w: &[u8]) -> Vec<f32> {
        let x = tensor1(&x[..columns * depth]).into_shape(&[columns, depth]).unwrap();
        let outputs = w.len() / size_of::<f32>() / depth;
        let mut product = kernel.pack(&x, depth).unwrap().product(outputs).unwrap();
        product.add_rows(0..outputs, w, codec::by_name("f32")).unwrap();
        let y = product.finish().unwrap();
        y.to_plain_array_view::<f32>().unwrap().iter().copied().collect()
    }

    #[test]
    fn a_column_has_the_same_bits_by_every_kernel_and_in_any_company() {
        let kernels = Kernels::native();
        let (depth, outputs, most) = (333, 48, 40);
        let value = |i: usize| (i * 7919 % 1000) as f32 / 333.0 - 1.5;
        let w: Vec<u8> = (0..depth * outputs).flat_map(|i| value(i).to_ne_bytes()).collect();
        let x: Vec<f32> = (0..most * depth).map(|i| value(i + 13)).collect();
        let all = multiply(&kernels.by_columns[0], &x, most, depth, &w);
        for kernel in &kernels.by_columns {
            for columns in 1..=most {
                let some = multiply(kernel, &x, columns, depth, &w);
                assert!(some == all[..columns * outputs], "{columns}, {}", kernel.mmm.name());
            }
        }
        // In f64, for the order of magnitude of every kernel's error.
        for (index, y) in all.iter().enumerate() {
            let (column, row) = (index / outputs, index % outputs);
            let weight = |k| f64::from(value((row / 16 * depth + k) * 16 + row % 16));
            let exact: f64 = (0..depth).map(|k| f64::from(x[column * depth + k]) * weight(k)).sum();
            assert!((f64::from(*y) - exact).abs() < 1e-3, "{index}: {y} is not {exact}");
        }
    }

    #[test]
    fn odd_counts_of_columns_do_not_fall_to_slow_kernels() {
        let kernels = Kernels::native();
        for columns in [7, 127, 129] {
            let picked = kernels.pick(columns).unwrap();
            assert!(picked.mmm.nr() > 1 || kernels.by_columns.len() == 1);
        }
    }
}
