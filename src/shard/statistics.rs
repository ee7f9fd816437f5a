//! What a tensor's products multiply it with, as far as encoders ask.

use super::inputs::spread;
use crate::codec::{self, Codec, Feedback};
use rayon::prelude::*;

/// Most columns that are learnt from, and that errors are measured by.
const MOST_LEARNT: usize = 1536;
const MOST_HELD_OUT: usize = 128;

/// Deepest products whose errors are fed forward: what that needs to know has the square of it.
const MOST_DEPTH: usize = 4096;

/// Columns of inputs of one tensor's products, one after the other.
#[derive(Clone, Debug, Default)]
pub struct Columns {
    learnt: Vec<f32>,
    held_out: Vec<f32>,
}

impl Columns {
    /// Takes some of `columns` of `depth` values, of one of `uses` of the tensor. The last of them,
    /// `share` of all, are not learnt from.
    pub fn take(&mut self, columns: &[f32], depth: usize, share: f64, uses: usize) {
        let count = columns.len() / depth.max(1);
        let held_out = ((count as f64 * share).round() as usize).clamp(1.min(count), count);
        let learnt = count - held_out;
        let copy = |from: usize, count: usize, most: usize, to: &mut Vec<f32>| {
            for index in spread(count, (most / uses).max(1)) {
                to.extend_from_slice(&columns[(from + index) * depth..][..depth]);
            }
        };
        copy(0, learnt, MOST_LEARNT, &mut self.learnt);
        copy(learnt, held_out, MOST_HELD_OUT, &mut self.held_out);
    }

    /// Whether there are any, of both kinds.
    pub fn are_enough(&self) -> bool {
        !self.learnt.is_empty() && !self.held_out.is_empty()
    }

    /// The same for the same values.
    pub fn digest(&self) -> u64 {
        let mut hash = xxhash_rust::xxh3::Xxh3::new();
        for value in self.learnt.iter().chain(&self.held_out) {
            hash.update(&value.to_le_bytes());
        }
        hash.digest()
    }
}

/// What encoders are told, and what errors are measured by.
pub struct Statistics {
    /// Mean square of each step's inputs.
    weights: Vec<f32>,
    /// Columns that are not in the others.
    held_out: Vec<f32>,
    feedback: Option<Feedback>,
}

impl Statistics {
    /// Of a tensor of this depth.
    pub fn of(columns: Columns, depth: usize) -> Statistics {
        let Columns { learnt, held_out } = columns;
        let count = (learnt.len() / depth).max(1) as f64;
        let mut squares = vec![0f64; depth];
        for column in learnt.chunks_exact(depth) {
            for (sum, value) in squares.iter_mut().zip(column) {
                *sum += f64::from(*value) * f64::from(*value);
            }
        }
        let weights = squares.iter().map(|sum| (sum / count) as f32).collect();
        let feedback =
            (depth <= MOST_DEPTH).then(|| Feedback::new(&moments(&learnt, depth), depth));
        Statistics { weights, held_out, feedback: feedback.flatten() }
    }

    /// How much each step counts.
    pub fn weights(&self) -> &[f32] {
        &self.weights
    }

    /// Whether errors can be fed forward.
    pub fn has_feedback(&self) -> bool {
        self.feedback.is_some()
    }

    /// Encodes a run with its errors fed forward, where they can be.
    pub fn encode_fed(&self, codec: &dyn Codec, run: &[f32], lanes: usize, stored: &mut Vec<u8>) {
        match &self.feedback {
            Some(feedback) => codec.encode_fed(run, lanes, &self.weights, feedback, stored),
            None => codec.encode_weighted(run, lanes, &self.weights, stored),
        }
    }

    /// The mean square of what products are off with this `error` of a run's weights, summed over
    /// lanes: `tr(D H D^T)`, with H of columns that nothing was learnt from.
    pub fn loss(&self, error: &[f32], lanes: usize) -> f64 {
        let count = (self.held_out.len() / self.weights.len()).max(1);
        codec::squared_products(&self.held_out, error, lanes) / count as f64
    }
}

/// Rows of moments that one thread makes at once.
const ROWS: usize = 16;

/// The lower half of the sum of `x x^T` over columns.
fn moments(columns: &[f32], depth: usize) -> Vec<f32> {
    let mut moments = vec![0f32; depth * depth];
    let blocks = moments.par_chunks_mut(ROWS * depth).enumerate();
    blocks.for_each(|(block, rows)| codec::add_moments(columns, depth, block * ROWS, rows));
    moments
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(count: usize) -> Vec<f32> {
        (0..count).map(|index| ((index * 37 + 11) % 101) as f32 / 50.0 - 1.0).collect()
    }

    #[test]
    fn a_loss_is_what_products_are_off() {
        let (depth, lanes) = (12, 3);
        let mut columns = Columns::default();
        columns.take(&values(depth * 20), depth, 0.25, 1);
        assert_eq!((columns.learnt.len(), columns.held_out.len()), (depth * 15, depth * 5));
        assert!(columns.are_enough() && columns.digest() == columns.clone().digest());
        let held_out = columns.held_out.clone();
        let statistics = Statistics::of(columns, depth);
        let error: Vec<f32> = values(depth * lanes).iter().map(|value| value * 0.1).collect();
        let off = |column: &[f32], lane: usize| -> f64 {
            let steps = column.iter().enumerate();
            steps.map(|(i, x)| f64::from(*x) * f64::from(error[i * lanes + lane])).sum()
        };
        let squares = held_out.chunks(depth).flat_map(|c| (0..lanes).map(move |l| (c, l)));
        let expected = squares.map(|(c, l)| off(c, l).powi(2)).sum::<f64>() / 5.0;
        assert!((statistics.loss(&error, lanes) - expected).abs() < 1e-5 * expected);
    }
}
