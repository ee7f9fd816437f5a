//! Products of a panel with a few columns: each step is decoded right where it is multiplied, so that
//! nothing is written out and read again.

use super::simd::lanes::{LaneKernel, Lanes};
use super::steps::{Steps, check_depth};
use super::{Sums, simd};
use std::marker::PhantomData;

/// The most columns that [`Columns`] has. With as many, the sums of a panel fill half of the vector
/// registers of AVX2.
pub const FEW_COLUMNS: usize = 4;

/// A few columns side by side, step by step, as [`super::Codec::multiply`] takes them.
#[derive(Clone, Debug, PartialEq)]
pub struct Columns {
    /// Of each step one value for each of `width` columns, of which the last may be zeros.
    values: Vec<f32>,
    width: usize,
}

impl Columns {
    /// Packs columns that lie one after the other in `x`, each `depth` values.
    ///
    /// # Panics
    /// If there is none, or more than [`FEW_COLUMNS`].
    pub fn pack(x: &[f32], depth: usize) -> Columns {
        let count = x.len() / depth.max(1);
        assert!((1..=FEW_COLUMNS).contains(&count), "{count} columns are not a few");
        assert_eq!(x.len(), count * depth, "whole columns");
        let width = count.next_power_of_two();
        let mut values = vec![0.0; depth * width];
        for (column, x) in x.chunks_exact(depth).enumerate() {
            for (step, value) in values.chunks_exact_mut(width).zip(x) {
                step[column] = *value;
            }
        }
        Columns { values, width }
    }

    /// Steps of each.
    pub fn depth(&self) -> usize {
        self.values.len() / self.width
    }
}

/// Whether this processor multiplies and adds in one operation, as [`super::Codec::multiply`] does:
/// without it that is slow.
pub fn has_fused_addition() -> bool {
    #[cfg(target_arch = "x86_64")]
    return simd::Isa::Avx2.is_available();
    #[cfg(not(target_arch = "x86_64"))]
    return cfg!(target_arch = "aarch64");
}

/// Adds the products of a panel to `sums`, as [`super::Codec::multiply`] says.
pub(super) fn multiply<S: Steps>(stored: &[u8], columns: &Columns, sums: &mut Sums) {
    let values = &columns.values;
    match columns.width {
        1 => simd::run_lanes(Multiply::<S, 1>::new(stored, values.as_chunks().0, sums)),
        2 => simd::run_lanes(Multiply::<S, 2>::new(stored, values.as_chunks().0, sums)),
        _ => simd::run_lanes(Multiply::<S, 4>::new(stored, values.as_chunks().0, sums)),
    }
}

/// Reads each stored byte once and writes nothing but the sums. Bound by the latency of the additions,
/// which follow each other along k, 4 cycles a step of 16 weights on most processors; where there are
/// several columns or much is to be decoded, by the number of instructions.
struct Multiply<'a, S, const COLUMNS: usize> {
    stored: &'a [u8],
    columns: &'a [[f32; COLUMNS]],
    sums: &'a mut Sums,
    steps: PhantomData<S>,
}

impl<'a, S: Steps, const COLUMNS: usize> Multiply<'a, S, COLUMNS> {
    fn new(stored: &'a [u8], columns: &'a [[f32; COLUMNS]], sums: &'a mut Sums) -> Self {
        check_depth::<S>(stored, columns.len());
        Multiply { stored, columns, sums, steps: PhantomData }
    }
}

impl<S: Steps, const COLUMNS: usize> LaneKernel for Multiply<'_, S, COLUMNS> {
    #[inline(always)]
    fn run<L: Lanes>(self) {
        let (head, groups) = S::open::<L>(self.stored);
        let mut sums = [L::splat(0.0); COLUMNS];
        for (sum, from) in sums.iter_mut().zip(&*self.sums) {
            *sum = L::load(from);
        }
        for (columns, stored) in self.columns.chunks(S::DEPTH).zip(groups.chunks_exact(S::BYTES)) {
            let group = S::group::<L>(&head, stored);
            for (index, columns) in columns.iter().enumerate() {
                let step = S::step::<L>(&group, index);
                for (sum, column) in sums.iter_mut().zip(columns) {
                    *sum = step.times_plus(L::splat(*column), *sum);
                }
            }
        }
        for (sum, to) in sums.iter().zip(self.sums) {
            sum.store(to);
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::{ALL, PANEL_ROWS};
    use super::*;
    use proptest::prelude::*;

    /// The sums by decoded values, one product after the other.
    fn naive(values: &[f32], x: &[f32], depth: usize) -> Vec<[f32; PANEL_ROWS]> {
        let sum = |column: &[f32], lane: usize| {
            let lane = values.iter().skip(lane).step_by(PANEL_ROWS);
            column.iter().zip(lane).fold(0f32, |sum, (x, value)| value.mul_add(*x, sum))
        };
        x.chunks(depth).map(|column| std::array::from_fn(|lane| sum(column, lane))).collect()
    }

    proptest! {
        #[test]
        fn products_are_those_of_what_is_decoded(
            depth in 1usize..100,
            count in 1usize..=FEW_COLUMNS,
            seed in any::<u32>(),
        ) {
            let value = |i: usize| {
                let mixed = (i as u32 ^ seed).wrapping_mul(2_654_435_761);
                f32::from((mixed >> 16) as u16) / 32768.0 - 1.0
            };
            let weights: Vec<f32> = (0..depth * PANEL_ROWS).map(value).collect();
            let x: Vec<f32> = (0..depth * count).map(|i| value(i + 7)).collect();
            let columns = Columns::pack(&x, depth);
            prop_assert_eq!(columns.depth(), depth);
            for codec in ALL {
                let (mut stored, mut decoded) = (vec![], vec![0.0; weights.len()]);
                codec.encode(&weights, PANEL_ROWS, &mut stored);
                codec.decode(&stored, PANEL_ROWS, &mut decoded);
                let mut sums = [[0.0; PANEL_ROWS]; FEW_COLUMNS];
                codec.multiply(&stored, &columns, &mut sums);
                let expected = naive(&decoded, &x, depth);
                prop_assert_eq!(&sums[..count], &*expected, "{}", codec.name());
            }
        }
    }

    #[test]
    #[should_panic(expected = "5 columns are not a few")]
    fn many_columns_are_refused() {
        Columns::pack(&[0.0; 15], 3);
    }

    /// What the vectors of this processor decode, and the sums that they give, are those of plain loops.
    pub fn check_lanes<S: Steps>(stored: &[u8], depth: usize) {
        super::super::steps::tests::check_lanes::<S>(stored, depth);
        let x: Vec<f32> = (0..4 * depth).map(|i| (i % 17) as f32 * 0.3 - 2.0).collect();
        let columns = Columns::pack(&x, depth);
        let [mut plain, mut native] = [[[0.25; PANEL_ROWS]; FEW_COLUMNS]; 2];
        let values = columns.values.as_chunks().0;
        Multiply::<S, 4>::new(stored, values, &mut plain).run::<simd::lanes::Plain>();
        multiply::<S>(stored, &columns, &mut native);
        assert_eq!(plain, native);
    }
}
