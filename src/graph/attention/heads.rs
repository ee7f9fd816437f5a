//! Attention head by head: a tile of rows of one head of keys goes over the keys that it sees, block
//! after block, with the greatest score, the sum and the mixture so far.

use super::loops;
use super::new::NewHeads;
use rayon::prelude::*;
use std::ops::Range;
use tract_core::internal::tract_ndarray::{ArrayView2, ArrayViewMut2, ShapeBuilder, linalg};

/// Keys of a block. Where slots are used again, there is a whole number of blocks of them.
pub const BLOCK: usize = 128;

/// Rows of a tile: a token for a head of queries.
pub const TILE_ROWS: usize = 32;

/// Most new tokens whose rows are computed one by one: no key is packed for so few.
const FEW: usize = 8;

/// Multiplications from which on waking other threads takes less time than it saves.
const WORTH_SHARING: usize = 1 << 18;

/// Sizes, and where keys lie.
#[derive(Clone, Copy, Debug)]
pub struct Layout {
    /// Heads of queries.
    pub queries: usize,
    /// Heads of keys and of values, each for equally many of queries.
    pub keys: usize,
    /// Values of a head.
    pub width: usize,
    /// New tokens.
    pub new: usize,
    /// Tokens before them.
    pub past: usize,
    /// Slots of a head: token t is in slot `t % capacity`.
    pub capacity: usize,
    /// How many tokens each one sees, itself among them.
    pub window: usize,
    pub scale: f32,
}

impl Layout {
    /// The head of queries and the token that a row of a head of keys is of.
    fn place(&self, head: usize, row: usize) -> (usize, usize) {
        (head * (self.queries / self.keys) + row / self.new, row % self.new)
    }

    /// Multiplications with keys and values, at the most.
    fn multiplications(&self) -> usize {
        let seen = self.window.min(self.past + self.new);
        2 * self.queries * self.width * self.new * seen
    }

    /// The tokens that a row of a head of keys sees.
    fn sight(&self, row: usize) -> Range<usize> {
        let place = self.past + row % self.new;
        (place + 1).saturating_sub(self.window)..place + 1
    }
}

/// Rows of one head of keys.
struct Tile {
    head: usize,
    rows: Range<usize>,
}

/// What comes of queries with keys and values `[keys, capacity, width]`: `[new, queries * width]`. The
/// same bits by any number of threads; for few new tokens, each has those that it has alone.
pub fn attend(
    layout: &Layout,
    query: &NewHeads,
    keys: &[f32],
    values: &[f32],
    threads: usize,
) -> Vec<f32> {
    let Layout { queries, width, new, .. } = *layout;
    let shared = queries / layout.keys;
    let rows = shared * new;
    let threads = if layout.multiplications() < WORTH_SHARING { 1 } else { threads };
    // Rows that are computed one by one may be divided as there are threads.
    let parts = threads.div_ceil(layout.keys).clamp(1, rows.max(1));
    let tile_rows = if new <= FEW { rows.div_ceil(parts).min(TILE_ROWS) } else { TILE_ROWS };
    let tiles: Vec<Tile> = (0..layout.keys)
        .flat_map(|head| {
            let starts = (0..rows).step_by(tile_rows.max(1));
            starts.map(move |start| Tile { head, rows: start..(start + tile_rows).min(rows) })
        })
        .collect();
    let of_head = layout.capacity * width;
    let mixed_of = |tile: &Tile| {
        let at = tile.head * of_head..(tile.head + 1) * of_head;
        let mut work = Work::new(layout, tile, query);
        work.go_over(&keys[at.clone()], &values[at]);
        work.finish()
    };
    let threads = threads.clamp(1, super::MOST_THREADS);
    let mut mixed = vec![0.0; new * queries * width];
    let mut put = |tile: &Tile, of_tile: &[f32]| {
        for (row, values) in tile.rows.clone().zip(of_tile.chunks_exact(width)) {
            let (head, token) = layout.place(tile.head, row);
            let at = (token * queries + head) * width;
            mixed[at..at + width].copy_from_slice(values);
        }
    };
    if threads == 1 {
        tiles.iter().for_each(|tile| put(tile, &mixed_of(tile)));
    } else {
        let share = tiles.len().div_ceil(threads);
        let of_parts = tiles.par_chunks(share.max(1));
        let of_parts: Vec<Vec<Vec<f32>>> =
            of_parts.map(|part| part.iter().map(mixed_of).collect()).collect();
        tiles.iter().zip(of_parts.iter().flatten()).for_each(|(tile, of_tile)| put(tile, of_tile));
    }
    mixed
}

/// A tile under way.
struct Work<'a> {
    layout: &'a Layout,
    rows: Range<usize>,
    /// Scaled queries.
    query: Vec<f32>,
    /// Scores of a block, then shares: a row has [`BLOCK`] of them.
    scores: Vec<f32>,
    mixed: Vec<f32>,
    /// By row, the greatest score and the sum of shares so far.
    most: Vec<f32>,
    sums: Vec<f32>,
}

impl<'a> Work<'a> {
    fn new(layout: &'a Layout, tile: &Tile, new: &NewHeads) -> Work<'a> {
        let rows = tile.rows.clone();
        let count = rows.len();
        let mut query = vec![0.0; count * layout.width];
        for (row, query) in rows.clone().zip(query.chunks_exact_mut(layout.width)) {
            let (head, token) = layout.place(tile.head, row);
            new.put(head, token, query);
            query.iter_mut().for_each(|value| *value *= layout.scale);
        }
        Work {
            layout,
            rows,
            query,
            scores: vec![0.0; count * BLOCK],
            mixed: vec![0.0; count * layout.width],
            most: vec![f32::NEG_INFINITY; count],
            sums: vec![0.0; count],
        }
    }

    /// Goes over one head's keys and values.
    fn go_over(&mut self, keys: &[f32], values: &[f32]) {
        let sights = self.rows.clone().map(|row| self.layout.sight(row));
        let first = sights.clone().map(|sight| sight.start).min().unwrap_or(0);
        let end = sights.map(|sight| sight.end).max().unwrap_or(0);
        for block in first / BLOCK..end.div_ceil(BLOCK) {
            let span = first.max(block * BLOCK)..end.min((block + 1) * BLOCK);
            let slot = span.start % self.layout.capacity;
            let at = slot * self.layout.width..(slot + span.len()) * self.layout.width;
            match self.layout.new <= FEW {
                true => self.row_by_row(span, &keys[at.clone()], &values[at]),
                false => self.together(span, &keys[at.clone()], &values[at]),
            }
        }
    }

    /// Goes over the keys and values of the tokens in `span`, each row by itself.
    fn row_by_row(&mut self, span: Range<usize>, keys: &[f32], values: &[f32]) {
        let width = self.layout.width;
        for index in 0..self.rows.len() {
            let seen = within(&span, &self.layout.sight(self.rows.start + index));
            if seen.is_empty() {
                continue;
            }
            let at = seen.start * width..seen.end * width;
            let scores = index * BLOCK..index * BLOCK + seen.len();
            let query = &self.query[index * width..(index + 1) * width];
            loops::score(query, &keys[at.clone()], &mut self.scores[scores.clone()]);
            self.settle(index, scores.clone());
            let mixed = &mut self.mixed[index * width..(index + 1) * width];
            loops::mix(&self.scores[scores], &values[at], mixed);
        }
    }

    /// The same of all rows in two products.
    fn together(&mut self, span: Range<usize>, keys: &[f32], values: &[f32]) {
        let (count, width, length) = (self.rows.len(), self.layout.width, span.len());
        let Some(query) = matrix(&self.query, count, width, width) else { return };
        let Some(turned) = matrix(keys, length, width, width) else { return };
        if let Some(mut scores) = matrix_mut(&mut self.scores, count, length, BLOCK) {
            linalg::general_mat_mul(1.0, &query, &turned.t(), 0.0, &mut scores);
        }
        for index in 0..count {
            let seen = within(&span, &self.layout.sight(self.rows.start + index));
            let start = index * BLOCK;
            self.scores[start..start + seen.start].fill(0.0);
            self.scores[start + seen.end..start + length].fill(0.0);
            if !seen.is_empty() {
                self.settle(index, start + seen.start..start + seen.end);
            }
        }
        let Some(shares) = matrix(&self.scores, count, length, BLOCK) else { return };
        let Some(values) = matrix(values, length, width, width) else { return };
        if let Some(mut mixed) = matrix_mut(&mut self.mixed, count, width, width) {
            linalg::general_mat_mul(1.0, &shares, &values, 1.0, &mut mixed);
        }
    }

    /// Makes a row's new scores shares of the greatest so far, to which what was mixed is brought.
    fn settle(&mut self, index: usize, scores: Range<usize>) {
        let scores = &mut self.scores[scores];
        let before = self.most[index];
        let greater = |most: f32, score: &f32| if *score > most { *score } else { most };
        let most = scores.iter().fold(before, greater);
        if most > before {
            let factor = loops::exp(before - most);
            self.sums[index] *= factor;
            let width = self.layout.width;
            let mixed = &mut self.mixed[index * width..(index + 1) * width];
            mixed.iter_mut().for_each(|value| *value *= factor);
            self.most[index] = most;
        }
        self.sums[index] += loops::share(scores, most);
    }

    fn finish(mut self) -> Vec<f32> {
        for (mixed, sum) in self.mixed.chunks_exact_mut(self.layout.width).zip(&self.sums) {
            mixed.iter_mut().for_each(|value| *value /= sum);
        }
        self.mixed
    }
}

/// What is in sight of a span of tokens, counted from its start.
fn within(span: &Range<usize>, sight: &Range<usize>) -> Range<usize> {
    let start = sight.start.clamp(span.start, span.end);
    let end = sight.end.clamp(start, span.end);
    start - span.start..end - span.start
}

/// Rows that lie `stride` apart; none where there are too few values.
fn matrix(
    values: &[f32],
    rows: usize,
    columns: usize,
    stride: usize,
) -> Option<ArrayView2<'_, f32>> {
    ArrayView2::from_shape((rows, columns).strides((stride, 1)), values).ok()
}

fn matrix_mut(
    values: &mut [f32],
    rows: usize,
    columns: usize,
    stride: usize,
) -> Option<ArrayViewMut2<'_, f32>> {
    ArrayViewMut2::from_shape((rows, columns).strides((stride, 1)), values).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use tract_core::internal::Tensor;

    /// By what it means, in f64.
    fn oracle(layout: &Layout, query: &[f32], keys: &[f32], values: &[f32]) -> Vec<f64> {
        let Layout { queries, keys: heads, width, new, capacity, .. } = *layout;
        let mut mixed = vec![0.0; new * queries * width];
        for head in 0..queries {
            let start = head / (queries / heads) * capacity;
            for token in 0..new {
                let place = layout.past + token;
                let first = (place + 1).saturating_sub(layout.window);
                let row = &query[(token * queries + head) * width..][..width];
                let at = |t: usize| (start + t % capacity) * width;
                let product = |t: usize| -> f64 {
                    let key = &keys[at(t)..][..width];
                    let sum: f64 =
                        row.iter().zip(key).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
                    (sum * f64::from(layout.scale)).exp()
                };
                let shares: Vec<f64> = (first..=place).map(product).collect();
                let sum: f64 = shares.iter().sum();
                for (t, share) in (first..=place).zip(shares) {
                    for (i, value) in values[at(t)..][..width].iter().enumerate() {
                        mixed[(token * queries + head) * width + i] +=
                            share / sum * f64::from(*value);
                    }
                }
            }
        }
        mixed
    }

    /// By queries token by token.
    fn attended(
        layout: &Layout,
        query: &[f32],
        keys: &[f32],
        values: &[f32],
        threads: usize,
    ) -> Vec<f32> {
        let Layout { queries, new, width, .. } = *layout;
        let query = Tensor::from_shape(&[1, new, queries * width], query).unwrap();
        let query = NewHeads::of(&query, width, None, &[]).unwrap();
        attend(layout, &query, keys, values, threads)
    }

    fn numbers(count: usize, seed: u64) -> Vec<f32> {
        let number = |index: u64| {
            let z = (seed + index).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            ((z ^ (z >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9) >> 40) as f32 / 4e6 - 2.0
        };
        (0..count as u64).map(number).collect()
    }

    fn layouts() -> impl Strategy<Value = Layout> {
        let sizes = (1..4usize, 1..4usize, 1..40usize, 1..70usize, 0..600usize);
        (sizes, prop_oneof![Just(usize::MAX), 1..300usize]).prop_map(|(sizes, window)| {
            let (shared, keys, width, new, past) = sizes;
            // Slots that are used again, a whole number of blocks, have room for what is in sight.
            let capacity = match window {
                usize::MAX => past + new,
                window => (past + new).min((window + new).next_multiple_of(BLOCK)),
            };
            let queries = shared * keys;
            Layout { queries, keys, width, new, past, capacity, window, scale: 0.3 }
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn it_is_what_it_means_by_any_number_of_threads(layout in layouts(), seed in 0..1000u64) {
            let Layout { queries, keys: heads, width, new, capacity, .. } = layout;
            let query = numbers(queries * new * width, seed);
            let keys = numbers(heads * capacity * width, seed + 1_000_000);
            let values = numbers(heads * capacity * width, seed + 2_000_000);
            let found = attended(&layout, &query, &keys, &values, 1);
            let right = oracle(&layout, &query, &keys, &values);
            for (found, right) in found.iter().zip(&right) {
                prop_assert!((f64::from(*found) - right).abs() < 2e-4, "{found} for {right}");
            }
            for threads in [2, 4, 8] {
                prop_assert_eq!(&attended(&layout, &query, &keys, &values, threads), &found);
            }
        }

        /// A token that others stand beside has the bits that it has where they came before.
        #[test]
        fn few_tokens_have_the_bits_of_one_by_one(layout in layouts(), seed in 0..1000u64) {
            let layout = Layout { new: layout.new % FEW + 1, capacity: 1024, ..layout };
            let Layout { queries, keys: heads, width, new, capacity, .. } = layout;
            let query = numbers(queries * new * width, seed);
            let keys = numbers(heads * capacity * width, seed + 1_000_000);
            let values = numbers(heads * capacity * width, seed + 2_000_000);
            let found = attended(&layout, &query, &keys, &values, 2);
            for token in 0..new {
                let alone = Layout { new: 1, past: layout.past + token, ..layout };
                let own = &query[token * queries * width..][..queries * width];
                let expected = attended(&alone, own, &keys, &values, 1);
                prop_assert_eq!(&found[token * queries * width..][..queries * width], &expected[..]);
            }
        }
    }
}
