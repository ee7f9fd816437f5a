//! What encoders learn from the inputs of a product, and how far off one is by errors of its weights.

use super::simd::{self, Kernel};
use std::array;

/// Columns that are added at once: each sum is loaded and stored once for all of them.
const TOGETHER: usize = 8;

/// Adds the products of each column's values `first`, `first + 1` and so on with its values up to
/// these: rows of the lower half of a matrix of moments, `depth` values each.
///
/// Takes `columns * rows * depth` multiplications and additions at most, and is bound by the cache
/// that `rows` is in.
///
/// Panics where columns or rows are not whole.
pub fn add_moments(columns: &[f32], depth: usize, first: usize, rows: &mut [f32]) {
    assert!(columns.len().is_multiple_of(depth) && rows.len().is_multiple_of(depth));
    simd::run(AddMoments { columns, depth, first, rows });
}

struct AddMoments<'a> {
    columns: &'a [f32],
    depth: usize,
    first: usize,
    rows: &'a mut [f32],
}

impl Kernel for AddMoments<'_> {
    #[inline(always)]
    fn run(self) {
        let AddMoments { columns, depth, first, rows } = self;
        let mut eights = columns.chunks_exact(TOGETHER * depth);
        for eight in &mut eights {
            let columns: [&[f32]; TOGETHER] =
                array::from_fn(|i| &eight[i * depth..(i + 1) * depth]);
            add(columns, depth, first, rows);
        }
        for column in eights.remainder().chunks_exact(depth) {
            add([column], depth, first, rows);
        }
    }
}

#[inline(always)]
fn add<const N: usize>(columns: [&[f32]; N], depth: usize, first: usize, rows: &mut [f32]) {
    for (index, row) in rows.chunks_exact_mut(depth).enumerate() {
        let at = first + index;
        let by = columns.map(|column| column[at]);
        let row = &mut row[..=at];
        let columns = columns.map(|column| &column[..row.len()]);
        for (place, sum) in row.iter_mut().enumerate() {
            let mut total = *sum;
            for i in 0..N {
                total += by[i] * columns[i][place];
            }
            *sum = total;
        }
    }
}

/// The sum over columns and lanes of the squares of what `run`, steps of `lanes` values, makes of
/// each column: the squared error of a product, where the run holds errors of weights.
///
/// Panics where columns are not as deep as the run.
pub fn squared_products(columns: &[f32], run: &[f32], lanes: usize) -> f64 {
    let depth = run.len() / lanes;
    assert!(columns.len().is_multiple_of(depth.max(1)) && run.len() == depth * lanes);
    let mut sum = 0.0;
    simd::run(SquaredProducts { columns, run, lanes, sum: &mut sum });
    sum
}

struct SquaredProducts<'a> {
    columns: &'a [f32],
    run: &'a [f32],
    lanes: usize,
    sum: &'a mut f64,
}

/// Lanes that are computed as one.
const WIDTH: usize = 16;

impl Kernel for SquaredProducts<'_> {
    #[inline(always)]
    fn run(self) {
        let SquaredProducts { columns, run, lanes, sum } = self;
        let (steps, rest) = match lanes {
            WIDTH => run.as_chunks::<WIDTH>(),
            _ => (&[][..], run),
        };
        for column in columns.chunks_exact((run.len() / lanes).max(1)) {
            let mut products = [0f32; WIDTH];
            for (input, step) in column.iter().zip(steps) {
                for i in 0..WIDTH {
                    products[i] += input * step[i];
                }
            }
            *sum += products.iter().map(|p| f64::from(*p) * f64::from(*p)).sum::<f64>();
            for lane in 0..if rest.is_empty() { 0 } else { lanes } {
                let errors = rest.iter().skip(lane).step_by(lanes);
                let product: f32 = column.iter().zip(errors).map(|(x, e)| x * e).sum();
                *sum += f64::from(product) * f64::from(product);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(count: usize) -> Vec<f32> {
        (0..count).map(|index| ((index * 37 + 11) % 101) as f32 / 50.0 - 1.0).collect()
    }

    #[test]
    fn moments_are_the_sums_of_products() {
        for (count, depth, first, rows) in
            [(1, 1, 0, 1), (3, 5, 2, 3), (8, 16, 0, 16), (21, 40, 7, 9)]
        {
            let columns = values(count * depth);
            let mut found = vec![0.5f32; rows * depth];
            add_moments(&columns, depth, first, &mut found);
            for (index, found) in found.iter().enumerate() {
                let (row, place) = (first + index / depth, index % depth);
                let product = |c: &[f32]| f64::from(c[row]) * f64::from(c[place]);
                let sum: f64 = columns.chunks(depth).map(product).sum();
                let expected = if place <= row { sum + 0.5 } else { 0.5 };
                assert!((expected - f64::from(*found)).abs() < 1e-4, "{count} x {depth}: {index}");
            }
        }
    }

    #[test]
    fn squared_products_are_those_of_every_lane() {
        for (count, depth, lanes) in [(5, 12, 16), (5, 12, 1), (2, 7, 3), (0, 4, 16)] {
            let (columns, run) = (values(count * depth), values(depth * lanes));
            let product = |column: &[f32], lane: usize| -> f64 {
                let steps = column.iter().enumerate();
                steps.map(|(i, x)| f64::from(*x) * f64::from(run[i * lanes + lane])).sum()
            };
            let all = columns.chunks(depth).flat_map(|c| (0..lanes).map(move |l| (c, l)));
            let expected: f64 = all.map(|(c, l)| product(c, l).powi(2)).sum();
            let found = squared_products(&columns, &run, lanes);
            assert!((found - expected).abs() <= 1e-4 * expected, "{found} is not {expected}");
        }
    }
}
