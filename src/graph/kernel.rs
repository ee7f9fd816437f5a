//! Matrix products on blocks in place: tract's kernels fed with panels that lie in the window.

use crate::codec::{Codec, PANEL_ROWS};
use crate::store::layer_file::TAIL_BYTES;
use std::alloc::Layout;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::ops::Range;
use tract_core::internal::*;
use tract_linalg::mmm::*;
use tract_linalg::pack::PackedFormat;

/// Bytes past a panel's end that a kernel may read ahead, one record of its packing. Whoever
/// brings a block in keeps this much readable behind it.
pub const READ_AHEAD_BYTES: usize = PANEL_ROWS * size_of::<f32>();

const _: () = assert!(READ_AHEAD_BYTES as u64 <= TAIL_BYTES, "a layer file's last block has less");

/// Alignment of decoded panels: a cache line, and the widest vector.
const PANEL_ALIGN: usize = 64;

/// The f32 kernels of this processor that take panels of [`PANEL_ROWS`] rows.
pub struct Kernels {
    /// By columns a tile holds, ascending.
    by_columns: Vec<Kernel>,
}

#[derive(Clone)]
struct Kernel {
    mmm: Box<dyn MatMatMul>,
    packing: usize,
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
        kernels.sort_by_key(|k| k.mmm.nr());
        Kernels { by_columns: kernels }
    }

    /// The kernel that wastes the fewest tile columns on `columns`, the wider of two equals.
    fn pick(&self, columns: usize) -> TractResult<&Kernel> {
        self.by_columns
            .iter()
            .rev()
            .min_by_key(|kernel| columns.next_multiple_of(kernel.mmm.nr()))
            .context("this processor has no f32 kernel for panels of 16 rows")
    }

    /// Begins `y[columns, outputs] = x[columns, depth] * w`, whose rows of `w` follow in blocks.
    pub fn product(
        &self,
        x: &Tensor,
        columns: usize,
        depth: usize,
        outputs: usize,
    ) -> TractResult<Product<'_>> {
        ensure!(x.datum_type() == f32::datum_type() && x.len() == columns * depth);
        let kernel = self.pick(columns)?;
        let (weights, activations) = &kernel.mmm.packings()[kernel.packing];
        let x = x.clone().into_shape(&[columns, depth])?;
        let packed = activations.prepare_one(&x, 1, 0)?;
        // SAFETY: the scratch space is only used with the kernel that made it; every element of
        // `y` is written by `add_rows` before `finish` lets it out, which checks the count.
        let (scratch, y) = unsafe {
            (
                kernel.mmm.allocate_scratch_space(),
                Tensor::uninitialized::<f32>(&[columns, outputs])?,
            )
        };
        let fact = PackedExoticFact { format: weights.clone(), mn: outputs.to_dim(), k: depth };
        Ok(Product { kernel, packed, scratch, fact, y, columns, depth, outputs, done: 0 })
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
            && !mmm.emulated()
            && mmm.stores().contains(&f32::datum_type());
        plain.then(|| Kernel { mmm: dyn_clone::clone_box(mmm), packing })
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
