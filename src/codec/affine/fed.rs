//! Error feedback: what a step's rounding does to products is made good by the steps after it.

use super::fit::{Encoded, Fit, Grid, Group, Normal};
use super::scales::{Scales, nearest};
use crate::codec::feedback::Feedback;
use crate::codec::simd::Kernel;
use std::{array, marker::PhantomData};

/// How much wider than for the weights as they are a row's scales and minima may become.
const ROOM: f32 = 1.06;

/// Chooses scales, minima and integers of a run, group by group along k. Of `k` steps a panel takes
/// `16 * k^2 / 2` multiplications and additions, and is bound by them, then by reading the factors,
/// `2 * k^2` bytes.
pub(super) struct Feeding<'a, S, const N: usize> {
    pub normal: &'a Normal<N>,
    pub grid: Grid,
    pub feedback: &'a Feedback,
    pub scales: PhantomData<S>,
    pub encoded: &'a mut Encoded<N>,
}

impl<S: Scales, const N: usize> Kernel for Feeding<'_, S, N> {
    #[inline(always)]
    fn run(self) {
        let Feeding { normal, grid, feedback, encoded, .. } = self;
        let fits: Vec<Fit<N>> = normal
            .groups(grid.depth)
            .map(|(steps, weights)| Group::new(steps, weights, normal, grid).search())
            .collect();
        let largest = Fit::largest(&fits);
        let wider = |ends: [f32; N]| ends.map(|end| end * ROOM);
        let heads = S::heads(&wider(largest.scales), &wider(largest.minima));
        encoded.heads = heads;

        let mut errors: Vec<[f32; N]> = Vec::with_capacity(normal.steps.len());
        for (steps, weights) in normal.groups(grid.depth) {
            let first = errors.len();
            let count = steps.len().min(feedback.depth() - first);
            let mut aims = steps.to_vec();
            feedback.add(first, &errors, &mut aims[..count]);
            let group = Group::new(&aims, weights, normal, grid);
            let fit = group.settle::<S>(&heads, &group.search());
            encoded.codes.push(S::codes(&heads, &fit.scales, &fit.minima));
            let places = fit.places();
            for (index, step) in steps.iter().enumerate() {
                let mut aim = aims[index];
                if index < count {
                    let factors = &feedback.row(first + index)[first..];
                    for (error, factor) in errors[first..].iter().zip(factors) {
                        aim = array::from_fn(|i| aim[i] + factor * error[i]);
                    }
                }
                let place = places.of(&aim);
                let integers = place.map(|place| nearest(place, 0.0, grid.levels));
                encoded.integers.push(integers.map(|integer| integer as u8));
                let decoded = |i: usize| integers[i] * fit.scales[i] + fit.minima[i];
                errors.push(array::from_fn(|i| step[i] - decoded(i)));
            }
        }
    }
}
