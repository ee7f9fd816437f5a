//! The loops of attention over a block of keys, compiled for the best vectors there are. Each row is
//! computed by itself and in one order, so its bits hang on nothing beside it.

use crate::codec::simd::{Kernel, run};

/// Values that are added up side by side.
const LANES: usize = 16;

/// `scores[j]`, a query's product with key j: one after the other, as long as there are scores.
pub fn score(query: &[f32], keys: &[f32], scores: &mut [f32]) {
    run(Score { query, keys, scores });
}

/// Adds values, each times its share, to `mixed`.
pub fn mix(shares: &[f32], values: &[f32], mixed: &mut [f32]) {
    run(Mix { shares, values, mixed });
}

/// Puts `exp(score - most)` in the place of each score; their sum.
pub fn share(scores: &mut [f32], most: f32) -> f32 {
    let mut sum = 0.0;
    run(Share { scores, most, sum: &mut sum });
    sum
}

struct Score<'a> {
    query: &'a [f32],
    keys: &'a [f32],
    scores: &'a mut [f32],
}

impl Kernel for Score<'_> {
    #[inline(always)]
    fn run(self) {
        let Score { query, keys, scores } = self;
        let width = query.len();
        let (query, query_rest) = query.as_chunks::<LANES>();
        for (score, key) in scores.iter_mut().zip(keys.chunks_exact(width)) {
            let (key, key_rest) = key.as_chunks::<LANES>();
            let mut sums = [0.0; LANES];
            for (a, b) in query.iter().zip(key) {
                for i in 0..LANES {
                    sums[i] += a[i] * b[i];
                }
            }
            let mut rest = 0.0;
            for (a, b) in query_rest.iter().zip(key_rest) {
                rest += a * b;
            }
            *score = total(sums) + rest;
        }
    }
}

struct Mix<'a> {
    shares: &'a [f32],
    values: &'a [f32],
    mixed: &'a mut [f32],
}

impl Kernel for Mix<'_> {
    #[inline(always)]
    fn run(self) {
        let Mix { shares, values, mixed } = self;
        let width = mixed.len();
        let (fours, rest) = shares.as_chunks::<4>();
        let mut values = values;
        for [a, b, c, d] in fours {
            let (of_four, behind) = values.split_at(4 * width);
            values = behind;
            let (one, others) = of_four.split_at(width);
            let (two, others) = others.split_at(width);
            let (three, four) = others.split_at(width);
            for ((((mixed, one), two), three), four) in
                mixed.iter_mut().zip(one).zip(two).zip(three).zip(four)
            {
                *mixed += (a * one + b * two) + (c * three + d * four);
            }
        }
        for (share, value) in rest.iter().zip(values.chunks_exact(width)) {
            for (mixed, value) in mixed.iter_mut().zip(value) {
                *mixed += share * value;
            }
        }
    }
}

struct Share<'a> {
    scores: &'a mut [f32],
    most: f32,
    sum: &'a mut f32,
}

impl Kernel for Share<'_> {
    #[inline(always)]
    fn run(self) {
        let (whole, rest) = self.scores.as_chunks_mut::<LANES>();
        let mut sums = [0.0; LANES];
        for lanes in whole {
            for (sum, score) in sums.iter_mut().zip(lanes) {
                *score = exp(*score - self.most);
                *sum += *score;
            }
        }
        let mut sum = total(sums);
        for score in rest {
            *score = exp(*score - self.most);
            sum += *score;
        }
        *self.sum = sum;
    }
}

#[inline(always)]
fn total(sums: [f32; LANES]) -> f32 {
    let mut halves = [0.0; LANES / 2];
    for (i, half) in halves.iter_mut().enumerate() {
        *half = sums[i] + sums[i + LANES / 2];
    }
    let [a, b, c, d, e, f, g, h] = halves;
    ((a + e) + (c + g)) + ((b + f) + (d + h))
}

/// The exponential of what is not above 0, within 2e-7 of it; without a branch, so that vectors of it
/// are computed. What is not a number stays so, and what is below -87 counts as that.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    /// Added to a small float, it leaves the nearest integer in the last bits.
    const ROUNDING: f32 = 12_582_912.0;
    /// The logarithm of 2 as a sum, whose first part has few bits.
    const LN_2: [f32; 2] = [0.693_359_4, -2.121_944_4e-4];
    let x = if x < -87.0 { -87.0 } else { x };
    let shifted = x * std::f32::consts::LOG2_E + ROUNDING;
    let power = shifted - ROUNDING;
    let r = (x - power * LN_2[0]) - power * LN_2[1];
    let mut y = 1.987_569_1e-4;
    for c in [1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5] {
        y = y * r + c;
    }
    let y = y * (r * r) + r + 1.0;
    let exponent = shifted.to_bits().wrapping_sub(ROUNDING.to_bits());
    let scale = f32::from_bits(exponent.wrapping_add(127) << 23);
    y * scale
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exponentials_are_near() {
        for i in 0..=87_000 {
            let x = -(i as f32) / 1000.0;
            let right = f64::from(x).exp();
            assert!((f64::from(exp(x)) / right - 1.0).abs() < 2e-7, "{x}: {}", exp(x));
        }
        assert_eq!(exp(0.0), 1.0);
        assert!(exp(f32::NEG_INFINITY) < 2e-38);
        assert!(exp(f32::NAN).is_nan());
    }
}
