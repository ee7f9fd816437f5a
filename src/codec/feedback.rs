//! How errors of weights add up in what is computed: the factor by which one step's error is fed
//! forward.

use super::simd::{self, Kernel};
use std::array;

/// What is added to the diagonal of the moments, as a part of its mean: inputs that were seen are a
/// sample, and some columns may have none.
const DAMPING: f32 = 0.02;

/// Dampings that are tried, each ten times the last, before moments are refused.
const TRIALS: usize = 4;

/// Steps whose rows are eliminated at once: a block of rows stays in the cache while others use it.
const BLOCK: usize = 64;

/// Columns of a block that are used at a time.
const TILE: usize = 256;

/// Values that are computed as one vector.
const WIDTH: usize = 16;

/// Rows that are computed beside each other, since each vector that is read serves all of them.
const ROWS: usize = 4;

/// What errors of earlier steps of a run ask of later ones.
///
/// With the moments `H = R D R^T`, `R` upper triangular with ones on its diagonal, an error `e` of a
/// row costs `e H e^T`, the sum over steps `i` of `D_i (e_i + sum over j < i of R_ji e_j)^2`. So step
/// `i` is to make good the sum. This is GPTQ's update by the Cholesky factor of the inverse of `H`,
/// without the inverse.
///
/// It takes `2 * depth^2` bytes, three times as much while it is made, which takes `depth^3 / 6`
/// multiplications and additions on one thread. It is used by any number of threads: a matrix is
/// encoded panel by panel, and each panel by a thread of its own.
#[derive(Clone, Debug)]
pub struct Feedback {
    depth: usize,
    /// Row `i` has `R_ji` of all `j < i`.
    factors: Vec<f32>,
}

impl Feedback {
    /// That of inputs with the moments `moments`: `depth` rows of `depth`, the mean of `x x^T` or any
    /// multiple of it. Only what is on and below the diagonal is read.
    ///
    /// None where that is not finite, or is no matrix of moments.
    ///
    /// Panics where `moments` has another length.
    pub fn new(moments: &[f32], depth: usize) -> Option<Feedback> {
        assert_eq!(moments.len(), depth * depth, "moments of {depth} steps");
        let diagonal = moments.iter().step_by(depth + 1).copied();
        let is_finite = moments.iter().all(|moment| moment.is_finite());
        if !is_finite || diagonal.clone().any(|moment| moment < 0.0) {
            return None;
        }
        let mean = diagonal.map(f64::from).sum::<f64>() / depth.max(1) as f64;
        let scale = if mean > 0.0 { (1.0 / mean) as f32 } else { 1.0 };
        let padded = depth.next_multiple_of(WIDTH);
        let mut damping = DAMPING;
        for _ in 0..TRIALS {
            let mut rows = dampened(moments, depth, padded, scale, damping);
            let mut is_positive = true;
            simd::run(Eliminate { rows: &mut rows, count: padded, is_positive: &mut is_positive });
            if is_positive {
                return Some(Feedback { depth, factors: factors(&rows, depth, padded) });
            }
            damping *= 10.0;
        }
        None
    }

    /// Steps of the runs that it is for.
    pub fn depth(&self) -> usize {
        self.depth
    }

    /// The factors of the steps before `step`.
    #[inline(always)]
    pub(super) fn row(&self, step: usize) -> &[f32] {
        &self.factors[step * step.saturating_sub(1) / 2..][..step]
    }

    /// Adds to the steps from `first` what the errors of all steps before `first` ask of them.
    #[inline(always)]
    pub(super) fn add<const N: usize>(
        &self,
        first: usize,
        errors: &[[f32; N]],
        steps: &mut [[f32; N]],
    ) {
        let mut quads = steps.chunks_exact_mut(ROWS);
        let mut step = first;
        for quad in &mut quads {
            let rows: [&[f32]; ROWS] = array::from_fn(|row| &self.row(step + row)[..first]);
            let quad: &mut [[f32; N]; ROWS] = quad.try_into().expect("chunks are whole");
            add_products(rows, errors, quad);
            step += ROWS;
        }
        for (index, rest) in quads.into_remainder().iter_mut().enumerate() {
            let mut sums = [*rest];
            add_products([&self.row(step + index)[..first]], errors, &mut sums);
            [*rest] = sums;
        }
    }
}

/// Adds to each of `sums` the errors by the factors of its row.
#[inline(always)]
fn add_products<const N: usize, const R: usize>(
    rows: [&[f32]; R],
    errors: &[[f32; N]],
    sums: &mut [[f32; N]; R],
) {
    let errors = &errors[..rows[0].len()];
    let rows = rows.map(|row| &row[..errors.len()]);
    let mut totals = *sums;
    for (index, error) in errors.iter().enumerate() {
        let error = *error;
        for row in 0..R {
            let factor = rows[row][index];
            for i in 0..N {
                totals[row][i] += factor * error[i];
            }
        }
    }
    *sums = totals;
}

/// The lower triangle of `moments`, scaled and dampened, in rows of `padded` values; rows that were
/// not there are those of an identity.
fn dampened(moments: &[f32], depth: usize, padded: usize, scale: f32, damping: f32) -> Vec<f32> {
    let mut rows = vec![0.0; padded * padded];
    for (index, row) in rows.chunks_exact_mut(padded.max(1)).enumerate() {
        row[index] = 1.0;
        if index < depth {
            let moments = &moments[index * depth..][..=index];
            row.iter_mut().zip(moments).for_each(|(value, moment)| *value = moment * scale);
            row[index] += damping;
        }
    }
    rows
}

/// What [`Feedback`] keeps of eliminated rows.
fn factors(rows: &[f32], depth: usize, padded: usize) -> Vec<f32> {
    let mut factors = Vec::with_capacity(depth * depth.saturating_sub(1) / 2);
    for (index, row) in rows.chunks_exact(padded.max(1)).take(depth).enumerate() {
        let inverse = 1.0 / row[index];
        factors.extend(row[..index].iter().map(|factor| factor * inverse));
    }
    factors
}

/// Turns the lower triangle of a symmetric matrix `H` into `C^T`, where `H = C C^T` and `C` is upper
/// triangular: Cholesky's method from the last row on. There are whole vectors of rows.
struct Eliminate<'a> {
    rows: &'a mut [f32],
    count: usize,
    is_positive: &'a mut bool,
}

impl Kernel for Eliminate<'_> {
    #[inline(always)]
    fn run(self) {
        let Eliminate { rows, count, is_positive } = self;
        let mut end = count;
        while end > 0 {
            let start = end.saturating_sub(BLOCK);
            for index in (start..end).rev() {
                let (above, row) = rows.split_at_mut(index * count);
                let row = &mut row[..=index];
                let pivot = row[index];
                if !(pivot > 0.0 && pivot.is_finite()) {
                    *is_positive = false;
                    return;
                }
                let inverse = 1.0 / pivot.sqrt();
                row.iter_mut().for_each(|value| *value *= inverse);
                for (offset, other) in above[start * count..].chunks_exact_mut(count).enumerate() {
                    let used = start + offset + 1;
                    let factor = row[used - 1];
                    for (other, value) in other[..used].iter_mut().zip(&row[..used]) {
                        *other -= factor * value;
                    }
                }
            }
            let (above, block) = rows.split_at_mut(start * count);
            subtract_products(above, &block[..(end - start) * count], count);
            end = start;
        }
    }
}

/// Subtracts from each value on or below the diagonal of `above` the products of its row's and its
/// column's values in `block`. Vectors at the diagonal reach beyond it, where nothing is read.
#[inline(always)]
fn subtract_products(above: &mut [f32], block: &[f32], count: usize) {
    let above_count = above.len() / count;
    for tile in (0..above_count).step_by(TILE) {
        let quads = above.chunks_exact_mut(ROWS * count).enumerate().skip(tile / ROWS);
        for (quad, rows) in quads {
            let first = quad * ROWS;
            let end = (tile + TILE).min((first + ROWS).next_multiple_of(WIDTH)).min(above_count);
            for column in (tile..end).step_by(WIDTH) {
                let mut sums = [[0.0f32; WIDTH]; ROWS];
                for products in block.chunks_exact(count) {
                    let values: [f32; WIDTH] = array::from_fn(|i| products[column + i]);
                    for (row, sums) in sums.iter_mut().enumerate() {
                        let factor = products[first + row];
                        *sums = array::from_fn(|i| sums[i] + factor * values[i]);
                    }
                }
                for (row, sums) in rows.chunks_exact_mut(count).zip(&sums) {
                    for (value, sum) in row[column..column + WIDTH].iter_mut().zip(sums) {
                        *value -= sum;
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(index: usize) -> f32 {
        (index * 7919 % 1000) as f32 / 333.0 - 1.5
    }

    /// Moments of as many inputs as there are columns, and half as many again.
    fn moments(depth: usize) -> Vec<f32> {
        let mut moments = vec![0.0; depth * depth];
        for input in 0..depth + depth / 2 + 1 {
            let x: Vec<f32> = (0..depth).map(|i| value(input * 31 + i * i + i)).collect();
            for (index, moment) in moments.iter_mut().enumerate() {
                *moment += x[index / depth] * x[index % depth];
            }
        }
        moments
    }

    /// `R` of `H = R D R^T`, row by row from the last column on, in f64.
    fn reference(moments: &[f32], depth: usize) -> Vec<Vec<f64>> {
        let mut h: Vec<Vec<f64>> =
            moments.chunks(depth).map(|row| row.iter().copied().map(f64::from).collect()).collect();
        let mean = (0..depth).map(|i| h[i][i]).sum::<f64>() / depth as f64;
        (0..depth).for_each(|i| h[i][i] += f64::from(DAMPING) * mean);
        for last in (0..depth).rev() {
            let pivot = h[last][last];
            let column: Vec<f64> = (0..last).map(|j| h[j][last] / pivot).collect();
            for (j, factor) in column.iter().enumerate() {
                for i in 0..last {
                    h[j][i] -= factor * column[i] * pivot;
                }
            }
            column.iter().enumerate().for_each(|(j, factor)| h[j][last] = *factor);
        }
        h
    }

    #[test]
    fn factors_are_those_of_the_moments() {
        for depth in [1, 2, 15, 16, 17, 64, 100, 333] {
            let moments = moments(depth);
            let feedback = Feedback::new(&moments, depth).unwrap();
            let reference = reference(&moments, depth);
            assert_eq!(feedback.depth(), depth);
            for (step, column) in (0..depth).map(|step| (step, feedback.row(step))) {
                for (row, factor) in reference.iter().zip(column) {
                    let expected = row[step];
                    let error = (f64::from(*factor) - expected).abs();
                    assert!(error < 1e-3, "{depth}: {step}: {factor} not {expected}");
                }
            }
        }
    }

    #[test]
    fn every_instruction_set_eliminates_alike() {
        let (depth, padded) = (333, 336);
        let mut first: Option<Vec<f32>> = None;
        for isa in simd::Isa::ALL.iter().copied().filter(|isa| isa.is_available()) {
            let mut rows = dampened(&moments(depth), depth, padded, 1e-3, DAMPING);
            let mut is_positive = true;
            let is_positive = &mut is_positive;
            simd::run_on(isa, Eliminate { rows: &mut rows, count: padded, is_positive });
            let factors = factors(&rows, depth, padded);
            assert_eq!(*first.get_or_insert_with(|| factors.clone()), factors, "{isa:?}");
        }
    }

    #[test]
    fn inputs_that_tell_nothing_ask_for_nothing() {
        for moments in [vec![0.0; 25], [vec![4.0], vec![0.0; 24]].concat()] {
            let feedback = Feedback::new(&moments, 5).unwrap();
            assert!((0..5).all(|step| feedback.row(step).iter().all(|factor| *factor == 0.0)));
        }
    }

    #[test]
    fn what_are_no_moments_is_refused() {
        let wrong = [(8, f32::NAN), (5, f32::INFINITY), (7, 1e6), (8, -1e-3), (4, -9.0)];
        for (index, value) in wrong {
            let mut moments = moments(3);
            moments[index] = value;
            assert!(Feedback::new(&moments, 3).is_none(), "{index}: {value}");
        }
    }
}
