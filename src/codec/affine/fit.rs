//! The encoder's search: the scale and the minimum of each group that make the least error.
//!
//! A group's range is shrunk at one end or both, as far as that pays, and refined by least squares.
//! The largest scale and minimum of a row are its header; then each group's are tried anew as the
//! codes that they have to be, in the neighbourhood of what was found.

use super::scales::{Scales, code, nearest};
use super::{Affine, FLUSH, LARGEST};
use crate::codec::simd::Kernel;
use std::{array, marker::PhantomData};

/// What a codec's values can be.
#[derive(Clone, Copy)]
pub(super) struct Grid {
    /// Steps of a group.
    pub depth: usize,
    /// The largest integer.
    pub levels: f32,
    /// As [`Affine::CLIP`].
    clip: f32,
    /// Whether no single error may go beyond the codec's bound.
    pub is_bounded: bool,
    limit: fn(f32, f32, f32) -> f32,
}

impl Grid {
    pub fn of<A: Affine>() -> Grid {
        Grid {
            depth: A::DEPTH,
            levels: super::levels::<A>(),
            clip: A::CLIP,
            is_bounded: true,
            limit: A::Scales::limit,
        }
    }

    /// Largest error of a decoded value, by the largest magnitude of its group and of its row.
    pub fn limit(&self, group_max: f32, run_max: f32) -> f32 {
        (self.limit)(self.clip, group_max, run_max)
    }
}

/// A run as the search takes it: each lane brought to magnitudes below 2 by a power of two, so that
/// squares neither overflow nor vanish, and padded to whole groups by steps that weigh nothing.
pub(super) struct Normal<const N: usize> {
    pub steps: Vec<[f32; N]>,
    /// What each step's squared error weighs, about 1.
    pub weights: Vec<f32>,
    /// The power of two that brings each lane back; 0 for one that is stored as zeros.
    pub up: [f32; N],
    largest: [f32; N],
}

/// What inputs of a step have at the least, as a part of the mean: those that were seen are a sample.
const LEAST_WEIGHT: f32 = 0.001;

impl<const N: usize> Normal<N> {
    /// `weights` are not negative, one for each step, where there are any.
    pub fn new(steps: &[[f32; N]], weights: Option<&[f32]>, depth: usize) -> Normal<N> {
        let mut peaks = [0f32; N];
        for step in steps {
            peaks = array::from_fn(|i| peaks[i].max(step[i].abs()));
        }
        let powers = peaks.map(|peak| powers(peak.min(LARGEST)));
        let normal =
            |step: &[f32; N]| array::from_fn(|i| step[i].clamp(-LARGEST, LARGEST) * powers[i].0);
        let mut normal: Vec<[f32; N]> = steps.iter().map(normal).collect();
        let mut weights = weights.map_or_else(|| vec![1.0; steps.len()], relative);
        let padded = steps.len().next_multiple_of(depth);
        normal.resize(padded, [0.0; N]);
        weights.resize(padded, 0.0);
        let largest = array::from_fn(|i| peaks[i].min(LARGEST) * powers[i].0);
        Normal { steps: normal, weights, up: powers.map(|powers| powers.1), largest }
    }

    #[inline(always)]
    pub fn groups(&self, depth: usize) -> impl Iterator<Item = (&[[f32; N]], &[f32])> {
        self.steps.chunks_exact(depth).zip(self.weights.chunks_exact(depth))
    }
}

/// `weights` by their mean.
fn relative(weights: &[f32]) -> Vec<f32> {
    let is_right = |weight: &f32| *weight >= 0.0 && weight.is_finite();
    assert!(weights.iter().all(is_right), "mean squares are finite and not negative");
    let mean = weights.iter().copied().map(f64::from).sum::<f64>() / weights.len().max(1) as f64;
    if mean == 0.0 {
        return vec![1.0; weights.len()];
    }
    weights.iter().map(|weight| (f64::from(*weight) / mean) as f32 + LEAST_WEIGHT).collect()
}

/// The power of two that brings `peak`, at most [`LARGEST`], to a magnitude in 1..2, and its
/// inverse; zeros for a peak that is flushed.
fn powers(peak: f32) -> (f32, f32) {
    let exponent = peak.to_bits() >> 23;
    if peak <= FLUSH {
        return (0.0, 0.0);
    }
    (f32::from_bits((254 - exponent) << 23), f32::from_bits(exponent << 23))
}

/// What is stored of a run, in the units of its [`Normal`].
#[derive(Debug, PartialEq)]
pub(super) struct Encoded<const N: usize> {
    pub heads: [[f32; N]; 2],
    /// Of each group.
    pub codes: Vec<[[u8; N]; 2]>,
    /// Of each step.
    pub integers: Vec<[u8; N]>,
}

impl<const N: usize> Default for Encoded<N> {
    fn default() -> Self {
        Encoded { heads: [[0.0; N]; 2], codes: vec![], integers: vec![] }
    }
}

/// Chooses scales, minima and integers of a run.
pub(super) struct Fitting<'a, S, const N: usize> {
    pub normal: &'a Normal<N>,
    pub grid: Grid,
    pub scales: PhantomData<S>,
    pub encoded: &'a mut Encoded<N>,
}

impl<S: Scales, const N: usize> Kernel for Fitting<'_, S, N> {
    #[inline(always)]
    fn run(self) {
        let Fitting { normal, grid, encoded, .. } = self;
        let fits: Vec<Fit<N>> = normal
            .groups(grid.depth)
            .map(|(steps, weights)| Group::new(steps, weights, normal, grid).search())
            .collect();
        let largest = Fit::largest(&fits);
        let heads = S::heads(&largest.scales, &largest.minima);
        encoded.heads = heads;
        for ((steps, weights), fit) in normal.groups(grid.depth).zip(&fits) {
            let fit = Group::new(steps, weights, normal, grid).settle::<S>(&heads, fit);
            encoded.codes.push(S::codes(&heads, &fit.scales, &fit.minima));
            let places = fit.places();
            for step in steps {
                let place = places.of(step);
                encoded.integers.push(array::from_fn(|i| code(place[i], grid.levels)));
            }
        }
    }
}

/// Scales and minima of a group.
#[derive(Clone, Copy)]
pub(super) struct Fit<const N: usize> {
    pub scales: [f32; N],
    pub minima: [f32; N],
}

impl<const N: usize> Fit<N> {
    /// The largest scale and the lowest minimum of each lane.
    #[inline(always)]
    pub fn largest(fits: &[Fit<N>]) -> Fit<N> {
        let mut largest = Fit { scales: [LEAST_SCALE; N], minima: [0.0; N] };
        for fit in fits {
            for i in 0..N {
                largest.scales[i] = larger(largest.scales[i], fit.scales[i]);
                largest.minima[i] = smaller(largest.minima[i], fit.minima[i]);
            }
        }
        largest
    }

    #[inline(always)]
    pub fn places(&self) -> Places<N> {
        let inverses = self.scales.map(|scale| 1.0 / scale);
        Places { inverses, zeros: array::from_fn(|i| -self.minima[i] * inverses[i]) }
    }
}

/// Where values lie on a group's grid, in steps of it.
pub(super) struct Places<const N: usize> {
    inverses: [f32; N],
    zeros: [f32; N],
}

impl<const N: usize> Places<N> {
    #[inline(always)]
    pub fn of(&self, step: &[f32; N]) -> [f32; N] {
        array::from_fn(|i| step[i] * self.inverses[i] + self.zeros[i])
    }
}

/// A scale is not below this in a normal row: what it is divided into stays finite.
const LEAST_SCALE: f32 = 1.0 / (1 << 26) as f32;

/// By which part of [`Affine::CLIP`] the range is shrunk at its low and its high end.
const SHRINKS: [(f32, f32); 10] = [
    (0.25, 0.25),
    (0.5, 0.5),
    (0.75, 0.75),
    (1.0, 1.0),
    (0.33, 0.0),
    (0.67, 0.0),
    (1.0, 0.0),
    (0.0, 0.33),
    (0.0, 0.67),
    (0.0, 1.0),
];

/// Refinements by least squares before scales are rounded, and after.
const REFINEMENTS: usize = 3;
const LAST_REFINEMENTS: usize = 2;

/// What scales are tried around the one found, and how far off the middle of the range is laid, in
/// steps of the grid.
const FACTORS: [f32; 5] = [0.8, 0.9, 1.0, 1.1, 1.2];
const OFFSETS: [f32; 3] = [0.0, 0.7, -0.7];

/// A group that is to be fitted.
pub(super) struct Group<'a, const N: usize> {
    steps: &'a [[f32; N]],
    weights: &'a [f32],
    /// The ends of the range, which includes 0.
    low: [f32; N],
    high: [f32; N],
    /// How far off a value may be: while scales are free, and as codes.
    limits: [f32; N],
    loose_limits: [f32; N],
    levels: f32,
    clip: f32,
}

/// What fits best so far, with its errors.
struct Best<const N: usize> {
    fit: Fit<N>,
    errors: [f32; N],
}

impl<'a, const N: usize> Group<'a, N> {
    #[inline(always)]
    pub fn new(
        steps: &'a [[f32; N]],
        weights: &'a [f32],
        normal: &Normal<N>,
        grid: Grid,
    ) -> Group<'a, N> {
        let (mut low, mut high) = ([0.0; N], [0.0; N]);
        for step in steps {
            low = array::from_fn(|i| smaller(low[i], step[i]));
            high = array::from_fn(|i| larger(high[i], step[i]));
        }
        let magnitudes: [f32; N] = array::from_fn(|i| larger(-low[i], high[i]));
        let (mut limits, mut loose_limits) = ([f32::INFINITY; N], [f32::INFINITY; N]);
        if grid.is_bounded {
            limits = magnitudes.map(|magnitude| grid.clip * magnitude);
            loose_limits = array::from_fn(|i| grid.limit(magnitudes[i], normal.largest[i]));
        }
        let Grid { levels, clip, .. } = grid;
        Group { steps, weights, low, high, limits, loose_limits, levels, clip }
    }

    /// The scale and minimum of the least error, if they could be any.
    #[inline(always)]
    pub fn search(&self) -> Fit<N> {
        let mut best = self.begin(self.shrunk(0.0, 0.0));
        for (low, high) in SHRINKS {
            self.offer(&mut best, self.shrunk(low * self.clip, high * self.clip), &self.limits);
        }
        for _ in 0..REFINEMENTS {
            let fit = self.refined(&best.fit);
            self.offer(&mut best, fit, &self.limits);
        }
        best.fit
    }

    /// The scale and minimum of the least error that can be stored; they are about `fit`.
    #[inline(always)]
    pub fn settle<S: Scales>(&self, heads: &[[f32; N]; 2], fit: &Fit<N>) -> Fit<N> {
        let snapped = |scales: [f32; N], minima: [f32; N]| Fit {
            scales,
            minima: S::nearest_minima(heads, &scales, minima),
        };
        let raised = S::nearest_scales(heads, S::raised(heads, fit.scales));
        let mut best = self.begin(snapped(raised, fit.minima));
        for factor in FACTORS {
            let scales = S::nearest_scales(heads, fit.scales.map(|scale| scale * factor));
            self.offer(&mut best, snapped(scales, fit.minima), &self.loose_limits);
            for offset in OFFSETS {
                let off = |i: usize| {
                    (fit.scales[i] - scales[i]) * (0.5 * self.levels) + offset * scales[i]
                };
                let minima = array::from_fn(|i| smaller(fit.minima[i] + off(i), 0.0));
                self.offer(&mut best, snapped(scales, minima), &self.loose_limits);
            }
        }
        for _ in 0..LAST_REFINEMENTS {
            let Fit { scales, minima } = self.refined(&best.fit);
            let scales = S::nearest_scales(heads, scales);
            self.offer(&mut best, snapped(scales, minima), &self.loose_limits);
        }
        best.fit
    }

    /// The range without such parts of it at its ends.
    #[inline(always)]
    fn shrunk(&self, low: f32, high: f32) -> Fit<N> {
        let minima = self.low.map(|end| end * (1.0 - low));
        let range = |i: usize| self.high[i] * (1.0 - high) - minima[i];
        let scales = array::from_fn(|i| larger(range(i) / self.levels, LEAST_SCALE));
        Fit { scales, minima }
    }

    #[inline(always)]
    fn begin(&self, fit: Fit<N>) -> Best<N> {
        Best { errors: self.errors(&fit), fit }
    }

    /// Keeps what fits better, unless a value is beyond `limits`.
    #[inline(always)]
    fn offer(&self, best: &mut Best<N>, fit: Fit<N>, limits: &[f32; N]) {
        let errors = self.errors(&fit);
        for i in 0..N {
            let (scale, minimum) = (fit.scales[i], fit.minima[i]);
            let top = minimum + self.levels * scale;
            let half = 0.5 * scale;
            let worst = larger(larger(minimum - self.low[i], self.high[i] - top), half);
            // Zero has to be on the grid, and the grid's end not beyond what is there.
            let is_right = (top >= -half) & (self.low[i] - minimum <= scale);
            let is_better = (errors[i] < best.errors[i]) & (worst <= limits[i]) & is_right;
            best.fit.scales[i] = if is_better { scale } else { best.fit.scales[i] };
            best.fit.minima[i] = if is_better { minimum } else { best.fit.minima[i] };
            best.errors[i] = if is_better { errors[i] } else { best.errors[i] };
        }
    }

    /// The weighted squared error of each lane.
    #[inline(always)]
    fn errors(&self, fit: &Fit<N>) -> [f32; N] {
        let places = fit.places();
        let mut sums = [0.0; N];
        for (step, weight) in self.steps.iter().zip(self.weights) {
            let place = places.of(step);
            for i in 0..N {
                let off = place[i] - nearest(place[i], 0.0, self.levels);
                sums[i] += weight * (off * off);
            }
        }
        array::from_fn(|i| sums[i] * (fit.scales[i] * fit.scales[i]))
    }

    /// The scale and minimum that fit best the integers that `fit` gives.
    #[inline(always)]
    fn refined(&self, fit: &Fit<N>) -> Fit<N> {
        let places = fit.places();
        let (mut squares, mut integers) = ([0.0; N], [0.0; N]);
        let (mut products, mut values) = ([0.0; N], [0.0; N]);
        let mut weights = 0.0;
        for (step, weight) in self.steps.iter().zip(self.weights) {
            let place = places.of(step);
            for i in 0..N {
                let integer = nearest(place[i], 0.0, self.levels);
                let weighed = weight * integer;
                squares[i] += weighed * integer;
                integers[i] += weighed;
                products[i] += weighed * step[i];
                values[i] += weight * step[i];
            }
            weights += weight;
        }
        let mut refined = *fit;
        for i in 0..N {
            let spread = weights * squares[i] - integers[i] * integers[i];
            let slope = weights * products[i] - integers[i] * values[i];
            let is_defined = (spread > 1e-6 * weights * squares[i]) & (slope > 0.0);
            let scale = slope / if is_defined { spread } else { 1.0 };
            let minimum = (values[i] - scale * integers[i]) / weights;
            // A minimum above 0 there is not; the best scale with 0 is another one.
            let is_low = minimum <= 0.0;
            let from_zero = products[i] / if is_defined { squares[i] } else { 1.0 };
            let scale = larger(if is_low { scale } else { from_zero }, LEAST_SCALE);
            refined.scales[i] = if is_defined { scale } else { fit.scales[i] };
            refined.minima[i] = if is_defined { smaller(minimum, 0.0) } else { fit.minima[i] };
        }
        refined
    }
}

#[inline(always)]
fn larger(a: f32, b: f32) -> f32 {
    if a > b { a } else { b }
}

#[inline(always)]
fn smaller(a: f32, b: f32) -> f32 {
    if a < b { a } else { b }
}
