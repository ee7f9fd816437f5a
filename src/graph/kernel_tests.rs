//! A column has the same bits whatever computes it, on however many threads.

use super::super::product::Lease;
use super::*;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use tract_linalg::multithread::set_threading_panel_threshold;

const DEPTH: usize = 333;
const OUTPUTS: usize = 16 * 40 - 5;
/// Rows of a block: as few panels as blocks of large matrices have.
const BLOCK_ROWS: usize = 48;

fn value(i: usize) -> f32 {
    (i * 7919 % 1000) as f32 / 333.0 - 1.5
}

/// A column's values and the panels' as `codec` stores them.
fn columns(count: usize) -> Tensor {
    let x: Vec<f32> = (0..count * DEPTH).map(|i| value(i + 13)).collect();
    tensor1(&x).into_shape(&[count, DEPTH]).unwrap()
}

fn panels(codec: &dyn Codec) -> Vec<u8> {
    let mut stored = vec![];
    for panel in 0..OUTPUTS.div_ceil(PANEL_ROWS) {
        let values: Vec<f32> =
            (0..DEPTH * PANEL_ROWS).map(|i| value(panel * DEPTH * PANEL_ROWS + i)).collect();
        codec.encode(&values, PANEL_ROWS, &mut stored);
    }
    stored
}

/// Leases of the blocks of `stored`, in their order; `held` counts those that have not gone.
fn lease(
    codec: &dyn Codec,
    stored: &[u8],
    held: &Arc<AtomicUsize>,
    block: usize,
) -> TractResult<Lease> {
    struct Held(Vec<u8>, usize, Arc<AtomicUsize>);
    impl AsRef<[u8]> for Held {
        fn as_ref(&self) -> &[u8] {
            &self.0[..self.1]
        }
    }
    impl Drop for Held {
        fn drop(&mut self) {
            self.2.fetch_sub(1, Ordering::Relaxed);
        }
    }
    let rows = block * BLOCK_ROWS..((block + 1) * BLOCK_ROWS).min(OUTPUTS);
    let panel_bytes = codec.stored_bytes(DEPTH, PANEL_ROWS);
    let first = rows.start / PANEL_ROWS * panel_bytes;
    let bytes = first..first + rows.len().div_ceil(PANEL_ROWS) * panel_bytes;
    let length = bytes.len();
    let readable = stored[bytes].iter().copied().chain([0; READ_AHEAD_BYTES]).collect();
    held.fetch_add(1, Ordering::Relaxed);
    Ok(Lease { rows, bytes: Box::new(Held(readable, length, Arc::clone(held))) })
}

fn multiply(packed: &Packed, codec: &'static dyn Codec, stored: &[u8], threads: usize) -> Vec<f32> {
    let held = Arc::new(AtomicUsize::new(0));
    let pool = Arc::new(rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap());
    let product = Product {
        outputs: OUTPUTS,
        depth: DEPTH,
        codec,
        blocks: OUTPUTS.div_ceil(BLOCK_ROWS),
        lease: &|block| {
            assert!(held.load(Ordering::Relaxed) < threads, "who waits for a block holds none");
            lease(codec, stored, &held, block)
        },
    };
    let y =
        multithread_tract_scope(Executor::MultiThread(pool), || packed.multiply(&product)).unwrap();
    assert_eq!(held.load(Ordering::Relaxed), 0, "a lease ends with its last tile");
    y.try_as_plain_ram().unwrap().as_slice::<f32>().unwrap().to_vec()
}

#[test]
fn a_column_has_the_same_bits_by_every_kernel_on_any_threads_and_in_any_company() {
    set_threading_panel_threshold(1);
    let kernels = Kernels::native();
    let most = 21;
    for codec in codec::ALL {
        let stored = panels(*codec);
        let all = kernels.by_columns[0].pack(&columns(most), DEPTH).unwrap();
        let all = multiply(&all, *codec, &stored, 1);
        for count in 1..=most {
            let x = columns(count);
            let mut by: Vec<Packed> = vec![kernels.pack(&x, DEPTH).unwrap()];
            by.extend(kernels.by_columns.iter().map(|kernel| kernel.pack(&x, DEPTH).unwrap()));
            for (index, packed) in by.iter().enumerate() {
                let threads = [1, 2, 4, 8][(count + index) % 4];
                let some = multiply(packed, *codec, &stored, threads);
                let name = codec.name();
                assert!(some == all[..count * OUTPUTS], "{count} columns, {name}, way {index}");
            }
        }
    }
}

#[test]
fn products_are_right() {
    let kernels = Kernels::native();
    let codec = codec::by_name("f32").unwrap();
    let stored = panels(codec);
    for count in [1, 3, 7] {
        let y = multiply(&kernels.pack(&columns(count), DEPTH).unwrap(), codec, &stored, 2);
        for (index, y) in y.iter().enumerate() {
            let (column, row) = (index / OUTPUTS, index % OUTPUTS);
            let weight = |k| f64::from(value((row / 16 * DEPTH + k) * 16 + row % 16));
            let x = |k| f64::from(value(column * DEPTH + k + 13));
            let exact: f64 = (0..DEPTH).map(|k| x(k) * weight(k)).sum();
            assert!((f64::from(*y) - exact).abs() < 1e-3, "{index}: {y} is not {exact}");
        }
    }
}

/// Tract's kernels are what products of a few columns are held against: where they differ, these are
/// theirs too.
#[test]
fn few_columns_are_the_codecs_own_where_additions_are_fused() {
    assert_eq!(Kernels::native().multiplies_few, codec::has_fused_addition());
}

#[test]
fn what_a_lease_or_a_block_lacks_is_an_error() {
    let kernels = Kernels::native();
    let codec = codec::by_name("q8").unwrap();
    let stored = panels(codec);
    let held = Arc::new(AtomicUsize::new(0));
    let pool = Arc::new(rayon::ThreadPoolBuilder::new().num_threads(4).build().unwrap());
    let multiply = |blocks: usize, lease: &(dyn Fn(usize) -> TractResult<Lease> + Sync)| {
        let product = Product { outputs: OUTPUTS, depth: DEPTH, codec, blocks, lease };
        let packed = kernels.pack(&columns(9), DEPTH).unwrap();
        let executor = Executor::MultiThread(Arc::clone(&pool));
        let refused = multithread_tract_scope(executor, || packed.multiply(&product));
        assert_eq!(held.load(Ordering::Relaxed), 0);
        refused.unwrap_err().to_string()
    };
    let blocks = OUTPUTS.div_ceil(BLOCK_ROWS);
    let right = |block| lease(codec, &stored, &held, block);
    assert_eq!(multiply(3, &right), "144 of 635 rows came");
    let lost = |block| match block {
        5 => bail!("block 5 is lost"),
        _ => right(block),
    };
    assert_eq!(multiply(blocks, &lost), "block 5 is lost");
    assert_eq!(multiply(blocks, &|block| right(block * 2)), "rows out of order");
    let short = |block| {
        right(block).map(|lease| Lease { rows: lease.rows.start..lease.rows.end + 16, ..lease })
    };
    assert_eq!(multiply(blocks, &short), "a block's length disagrees with its rows");
}

#[test]
fn odd_counts_of_columns_do_not_fall_to_slow_kernels() {
    let kernels = Kernels::native();
    for columns in [7, 127, 129] {
        let picked = kernels.pick(columns).unwrap();
        assert!(picked.mmm.nr() > 1 || kernels.by_columns.len() == 1);
    }
}
