//! What scales and minima are stored as: fifteenths of the row's largest, or small floats.

use crate::codec::PANEL_ROWS;
use crate::codec::simd::lanes::Lanes;
use std::array;

/// One way of storing the scale and the minimum of a group.
///
/// Minima are at most 0 and ranges include 0, so that a group of zeros is one.
pub(in crate::codec) trait Scales: Send + Sync + 'static {
    /// bf16 values of a lane in a run's header.
    const HEADS: usize;
    /// Bytes of a lane in a group.
    const CODES: usize;

    /// The scale and the minimum that `codes`, [`Scales::CODES`] of them, stand for.
    fn read(heads: &[f32; 2], codes: &[u8]) -> (f32, f32);

    /// The same of all lanes of a panel. `#[inline(always)]`.
    fn lanes<L: Lanes>(heads: &[L; 2], codes: &[[u8; PANEL_ROWS]]) -> (L, L);

    /// The header of lanes in which no scale and no minimum is beyond these.
    fn heads<const N: usize>(scales: &[f32; N], minima: &[f32; N]) -> [[f32; N]; 2];

    /// The nearest scales that there are.
    fn nearest_scales<const N: usize>(heads: &[[f32; N]; 2], scales: [f32; N]) -> [f32; N];

    /// Scales of which the nearest that there are, are no smaller than `scales`.
    fn raised<const N: usize>(heads: &[[f32; N]; 2], scales: [f32; N]) -> [f32; N];

    /// The nearest minima that there are beside these `scales`, which there are.
    fn nearest_minima<const N: usize>(
        heads: &[[f32; N]; 2],
        scales: &[f32; N],
        minima: [f32; N],
    ) -> [f32; N];

    /// The codes of scales and minima that there are.
    fn codes<const N: usize>(
        heads: &[[f32; N]; 2],
        scales: &[f32; N],
        minima: &[f32; N],
    ) -> [[u8; N]; 2];

    /// How far off a value may be as codes are that was off by `clip` of its group's largest magnitude
    /// at most, as were all of its row.
    fn limit(clip: f32, group_max: f32, run_max: f32) -> f32;
}

/// A byte a group: four bits of scale and four of minimum, in fifteenths of what the header has for
/// the row, which are the row's largest.
#[derive(Debug)]
pub(in crate::codec) struct Fifteenths;

const PARTS: f32 = 15.0;

impl Scales for Fifteenths {
    const HEADS: usize = 2;
    const CODES: usize = 1;

    fn read(heads: &[f32; 2], codes: &[u8]) -> (f32, f32) {
        let code = codes[0];
        (heads[0] * f32::from(code & 15), -(heads[1] * f32::from(code >> 4)))
    }

    #[inline(always)]
    fn lanes<L: Lanes>(heads: &[L; 2], codes: &[[u8; PANEL_ROWS]]) -> (L, L) {
        let codes = L::bytes(&codes[0]);
        let (scales, minima) = (L::field(codes, 0, 15), L::field(codes, 4, 15));
        let minima = L::unsigned(minima).times(L::splat(-1.0));
        (heads[0].times(L::unsigned(scales)), heads[1].times(minima))
    }

    #[inline(always)]
    fn heads<const N: usize>(scales: &[f32; N], minima: &[f32; N]) -> [[f32; N]; 2] {
        // Of a minimum that nothing is lost by, the unit might leave bf16's normal range.
        let least = |minimum: f32| if minimum > -LEAST_MINIMUM { 0.0 } else { -minimum };
        [
            array::from_fn(|i| bf16_above(scales[i] * (1.0 / PARTS))),
            array::from_fn(|i| bf16_above(least(minima[i]) * (1.0 / PARTS))),
        ]
    }

    #[inline(always)]
    fn nearest_scales<const N: usize>(heads: &[[f32; N]; 2], scales: [f32; N]) -> [f32; N] {
        array::from_fn(|i| heads[0][i] * nearest(scales[i] / heads[0][i], 1.0, PARTS))
    }

    #[inline(always)]
    fn raised<const N: usize>(heads: &[[f32; N]; 2], scales: [f32; N]) -> [f32; N] {
        array::from_fn(|i| scales[i] + 0.5 * heads[0][i])
    }

    #[inline(always)]
    fn nearest_minima<const N: usize>(
        heads: &[[f32; N]; 2],
        _: &[f32; N],
        minima: [f32; N],
    ) -> [f32; N] {
        array::from_fn(|i| -(heads[1][i] * nearest(-minima[i] / or_one(heads[1][i]), 0.0, PARTS)))
    }

    #[inline(always)]
    fn codes<const N: usize>(
        heads: &[[f32; N]; 2],
        scales: &[f32; N],
        minima: &[f32; N],
    ) -> [[u8; N]; 2] {
        let scale = |i: usize| code(scales[i] / heads[0][i], PARTS);
        let minimum = |i: usize| code(-minima[i] / or_one(heads[1][i]), PARTS);
        [array::from_fn(|i| scale(i) | minimum(i) << 4), [0; N]]
    }

    fn limit(clip: f32, group_max: f32, run_max: f32) -> f32 {
        // Scales are at most `2 * clip` of the row's largest magnitude, and minima are beyond that by
        // one scale at most. A minimum is half a fifteenth off, a scale is raised by less than one.
        clip * group_max + ((1.0 + 2.0 * clip) / 29.0 + LEAST_MINIMUM) * run_max
    }
}

/// Minima of rows of a magnitude between 1 and 2 that are stored as 0.
const LEAST_MINIMUM: f32 = 1.0 / 4096.0;

/// Two bytes a group: the scale as four bits of exponent and four of mantissa, in units of what the
/// header has for the row; the minimum as so many `1 / PARTS` of a scale below zero.
#[derive(Debug)]
pub(in crate::codec) struct Floats<const PARTS: usize>;

/// The scale of code 0 in units of the header's, as the bits of an f32: 2^-15.
const LEAST_FLOAT: u32 = (127 - 15) << 23;

/// Bits of an f32's mantissa that the code has not.
const FLOAT_SHIFT: u32 = 19;

/// The largest scale in units of the header's.
const LARGEST_FLOAT: f32 = 1.9375;

impl<const PARTS: usize> Scales for Floats<PARTS> {
    const HEADS: usize = 1;
    const CODES: usize = 2;

    fn read(heads: &[f32; 2], codes: &[u8]) -> (f32, f32) {
        let float = (u32::from(codes[0]) << FLOAT_SHIFT) + LEAST_FLOAT;
        let scale = heads[0] * f32::from_bits(float);
        (scale, -(scale * (f32::from(codes[1]) * (1.0 / PARTS as f32))))
    }

    #[inline(always)]
    fn lanes<L: Lanes>(heads: &[L; 2], codes: &[[u8; PANEL_ROWS]]) -> (L, L) {
        let floats = L::floats(L::bytes(&codes[0]), FLOAT_SHIFT as usize, LEAST_FLOAT);
        let scales = heads[0].times(floats);
        let parts = L::unsigned(L::bytes(&codes[1])).times(L::splat(-1.0 / PARTS as f32));
        (scales, scales.times(parts))
    }

    #[inline(always)]
    fn heads<const N: usize>(scales: &[f32; N], _: &[f32; N]) -> [[f32; N]; 2] {
        [array::from_fn(|i| bf16_above(scales[i] * (1.0 / LARGEST_FLOAT))), [0.0; N]]
    }

    #[inline(always)]
    fn nearest_scales<const N: usize>(heads: &[[f32; N]; 2], scales: [f32; N]) -> [f32; N] {
        array::from_fn(|i| {
            let float = nearest_float(scales[i] / heads[0][i]);
            heads[0][i] * f32::from_bits((float << FLOAT_SHIFT) + LEAST_FLOAT)
        })
    }

    #[inline(always)]
    fn raised<const N: usize>(_: &[[f32; N]; 2], scales: [f32; N]) -> [f32; N] {
        scales.map(|scale| scale * (1.0 + 1.0 / 32.0))
    }

    #[inline(always)]
    fn nearest_minima<const N: usize>(
        _: &[[f32; N]; 2],
        scales: &[f32; N],
        minima: [f32; N],
    ) -> [f32; N] {
        let (parts, part) = (PARTS as f32, 1.0 / PARTS as f32);
        array::from_fn(|i| {
            -(scales[i] * (nearest(-minima[i] / scales[i] * parts, 0.0, 255.0) * part))
        })
    }

    #[inline(always)]
    fn codes<const N: usize>(
        heads: &[[f32; N]; 2],
        scales: &[f32; N],
        minima: &[f32; N],
    ) -> [[u8; N]; 2] {
        let minimum = |i: usize| code(-minima[i] / scales[i] * PARTS as f32, 255.0);
        let float = |i: usize| nearest_float(scales[i] / heads[0][i]) as u8;
        [array::from_fn(float), array::from_fn(minimum)]
    }

    fn limit(clip: f32, group_max: f32, run_max: f32) -> f32 {
        // A scale is raised by a sixteenth at most, and a minimum is half a part of it off; no scale
        // is below 2^-16 of the row's largest.
        1.2 * clip * group_max + run_max / 4096.0
    }
}

/// The code of the float nearest to `value`, a positive number.
#[inline(always)]
fn nearest_float(value: f32) -> u32 {
    let least = f32::from_bits(LEAST_FLOAT);
    let value = if value < least { least } else { value };
    let value = if value > LARGEST_FLOAT { LARGEST_FLOAT } else { value };
    (value.to_bits() + (1 << (FLOAT_SHIFT - 1)) - LEAST_FLOAT) >> FLOAT_SHIFT
}

/// Adding it to a small value rounds that to the nearest integer, ties to even, which then stands in
/// the sum's low bits.
const ROUNDER: f32 = 12_582_912.0; // 1.5 * 2^23

/// The integer nearest to `value` from `least` to `most`, which may be written as [`ROUNDER`]
/// more.
#[inline(always)]
fn rounded(value: f32, least: f32, most: f32) -> f32 {
    let value = if value < least { least } else { value };
    let value = if value > most { most } else { value };
    value + ROUNDER
}

/// The integer nearest to `value` from `least` to `most`.
#[inline(always)]
pub(super) fn nearest(value: f32, least: f32, most: f32) -> f32 {
    rounded(value, least, most) - ROUNDER
}

/// The integer nearest to `value` from 0 to `most`, at most 255.
#[inline(always)]
pub(super) fn code(value: f32, most: f32) -> u8 {
    rounded(value, 0.0, most).to_bits() as u8
}

/// What may be divided by.
#[inline(always)]
fn or_one(head: f32) -> f32 {
    if head > 0.0 { head } else { 1.0 }
}

/// Rounds a positive number to a bf16 that is no smaller.
#[inline(always)]
fn bf16_above(value: f32) -> f32 {
    f32::from_bits((value.to_bits() + 0xffff) & 0xffff_0000)
}
