//! What a profile says of compute and memory at counts that were not measured.

use super::forecast::ForecastError;
use super::profile::{BlockRun, BytesAt, Profile, RESIDENT_PASS};
use super::{Grouping, Way, largest_unit_bytes};
use std::ops::Range;

impl Profile {
    /// Time of each layer's nodes, all blocks resident, with so many compute threads: the layers'
    /// lines, in proportion so that they add up to what whole passes took.
    pub fn compute_us(&self, threads: usize, tokens: u64) -> Vec<f64> {
        let factor = self.pass_factor(threads, tokens as f64);
        self.layers.iter().map(|layer| factor * layer.compute_us(tokens as f64)).collect()
    }

    /// What the layers' lines come to.
    pub(super) fn layers_us(&self, tokens: f64) -> f64 {
        self.layers.iter().map(|layer| layer.compute_us(tokens)).sum()
    }

    /// What passes took for each microsecond of the layers' lines. Between measured thread counts
    /// it follows the share that each thread has of the work; below the fewest, threads take
    /// over from each other without loss; beyond the most they bring nothing.
    fn pass_factor(&self, threads: usize, tokens: f64) -> f64 {
        let mut counts: Vec<usize> = self.passes.iter().map(|pass| pass.threads).collect();
        counts.sort_unstable();
        counts.dedup();
        let after = counts.partition_point(|count| *count < threads);
        match (after.checked_sub(1).map(|before| counts[before]), counts.get(after)) {
            (_, Some(count)) if *count == threads => self.factor_measured(threads, tokens),
            (Some(below), Some(above)) => {
                let share = |count: usize| 1.0 / count as f64;
                let place = (share(threads) - share(below)) / (share(*above) - share(below));
                let [from, to] = [below, *above].map(|count| self.factor_measured(count, tokens));
                from + (to - from) * place
            }
            (Some(most), None) => self.factor_measured(most, tokens),
            (None, Some(fewest)) => {
                self.factor_measured(*fewest, tokens) * *fewest as f64 / threads as f64
            }
            (None, None) => (self.layer_threads as f64 / threads as f64).max(1.0),
        }
    }

    /// The same at a measured thread count, between token counts in proportion.
    fn factor_measured(&self, threads: usize, tokens: f64) -> f64 {
        let passes = self.passes.iter().filter(|pass| pass.threads == threads);
        let mut points: Vec<(f64, f64)> = passes
            .map(|pass| {
                let layers_us = self.layers_us(pass.tokens as f64);
                (
                    pass.tokens as f64,
                    if layers_us > 0.0 { pass.latency_us / layers_us } else { 1.0 },
                )
            })
            .collect();
        points.sort_by(|a, b| a.0.total_cmp(&b.0));
        let after = points.partition_point(|point| point.0 < tokens);
        match (after.checked_sub(1).map(|before| points[before]), points.get(after)) {
            (Some(from), Some(to)) => {
                from.1 + (to.1 - from.1) * (tokens - from.0) / (to.0 - from.0)
            }
            (None, Some(only)) => only.1,
            (Some(only), None) => only.1,
            (None, None) => 1.0,
        }
    }

    /// Whether anything is known of passes of so many tokens: one token alone tells nothing of what
    /// more take.
    ///
    /// # Errors
    /// Why passes of more could not be measured.
    pub fn reaches(&self, tokens: u64) -> Result<(), ForecastError> {
        let is_measured = tokens <= 1 || self.activations.iter().any(|at| at.tokens > 1);
        let mut skipped = self.skipped.iter();
        match skipped.find(|skipped| !is_measured && skipped.what.starts_with(RESIDENT_PASS)) {
            Some(skipped) => {
                let why = format!("{}: {}", skipped.what, skipped.why);
                Err(ForecastError::Tokens { tokens, why })
            }
            None => Ok(()),
        }
    }

    /// Activations of a pass: between measured counts on a line, beyond the largest by the square,
    /// since attention's grow so.
    pub fn activation_bytes(&self, tokens: u64) -> u64 {
        let after = self.activations.partition_point(|point| point.tokens < tokens);
        let before = after.checked_sub(1).map(|before| self.activations[before]);
        match (before, self.activations.get(after)) {
            (Some(from), Some(to)) => between(from, *to, tokens),
            (None, Some(first)) => first.bytes,
            (Some(last), None) => {
                let ratio = tokens as f64 / last.tokens.max(1) as f64;
                (last.bytes as f64 * ratio * ratio).ceil() as u64
            }
            (None, None) => 0,
        }
    }

    /// Bytes that a pass takes beside the window and the pins.
    pub fn fixed_bytes(&self, tokens: u64) -> u64 {
        let kv_bytes = self.kv_bytes_per_token.saturating_mul(tokens);
        let parts = [self.process_bytes, self.graph_bytes, self.activation_bytes(tokens), kv_bytes];
        parts.into_iter().fold(0, u64::saturating_add)
    }

    /// Bytes of the tape on the disk.
    pub fn tape_bytes(&self) -> u64 {
        self.runs().map(|run| run.count as u64 * run.bytes).sum()
    }

    /// Bytes of the tape in memory.
    pub fn held_bytes(&self, way: Way) -> u64 {
        self.runs().map(|run| run.count as u64 * run.held_bytes(way)).sum()
    }

    /// Bytes in memory of a grouping's largest unit.
    pub(super) fn largest_unit_bytes(
        &self,
        way: Way,
        grouping: &Grouping,
    ) -> Result<u64, ForecastError> {
        let sizes: Vec<u64> = self
            .runs()
            .flat_map(|run| std::iter::repeat_n(run.held_bytes(way), run.count))
            .collect();
        Ok(largest_unit_bytes(&self.units(grouping)?, &sizes))
    }

    /// The blocks of each unit of a grouping.
    pub(super) fn units(&self, grouping: &Grouping) -> Result<Vec<Range<usize>>, ForecastError> {
        let layer_blocks = self.layer_blocks();
        grouping.units(&layer_blocks).ok_or_else(|| {
            let runs = if let Grouping::Runs(runs) = grouping { runs.clone() } else { vec![] };
            ForecastError::Runs { runs, layers: layer_blocks.len() }
        })
    }

    /// Whether reading this way was measured.
    pub fn has(&self, way: Way) -> bool {
        self.reads.iter().any(|read| read.way == way)
    }

    /// Blocks of each layer.
    pub fn layer_blocks(&self) -> Vec<usize> {
        let count = |runs: &[BlockRun]| runs.iter().map(|run| run.count).sum();
        self.layers.iter().map(|layer| count(&layer.blocks)).collect()
    }

    pub(super) fn runs(&self) -> impl Iterator<Item = &BlockRun> {
        self.layers.iter().flat_map(|layer| &layer.blocks).filter(|run| run.count > 0)
    }
}

impl super::LayerCost {
    /// Bytes of its blocks on the disk.
    pub(super) fn tape_bytes(&self) -> u64 {
        self.blocks.iter().map(|run| run.count as u64 * run.bytes).sum()
    }

    fn compute_us(&self, tokens: f64) -> f64 {
        self.fixed_us + self.per_token_us * tokens
    }
}

fn between(from: BytesAt, to: BytesAt, tokens: u64) -> u64 {
    let place = (tokens - from.tokens) as f64 / (to.tokens - from.tokens) as f64;
    (from.bytes as f64 + (to.bytes as f64 - from.bytes as f64) * place).ceil() as u64
}

#[cfg(test)]
mod tests {
    use super::super::fixture::{self, MIB};
    use super::super::profile::{RESIDENT_PASS, Skipped};

    #[test]
    fn compute_adds_up_to_measured_passes() {
        let profile = fixture::profile();
        let check = |threads, tokens, expected: f64| {
            let found: f64 = profile.compute_us(threads, tokens).iter().sum();
            assert!((found / expected - 1.0).abs() < 1e-9, "{threads} threads: {found}");
        };
        check(1, 128, 700_000.0);
        check(2, 128, 366_000.0);
        check(2, 16, 75_000.0);
        check(8, 128, 366_000.0);
        let sum = |threads, tokens| profile.compute_us(threads, tokens).iter().sum::<f64>();
        assert!((75_000.0..366_000.0).contains(&sum(2, 64)));
        assert!(sum(2, 256) > 1.9 * sum(2, 128));
    }

    #[test]
    fn threads_that_were_not_measured_lie_between() {
        let mut profile = fixture::profile();
        profile.passes.retain(|pass| pass.tokens == 128);
        profile.passes[1].threads = 4;
        let sum = |threads| profile.compute_us(threads, 128).iter().sum::<f64>();
        assert!(sum(1) > sum(2) && sum(2) > sum(3) && sum(3) > sum(4));
        profile.passes.remove(0);
        let sum = |threads| profile.compute_us(threads, 128).iter().sum::<f64>();
        assert!((sum(2) / sum(4) - 2.0).abs() < 1e-9, "below what was measured, in proportion");
    }

    #[test]
    fn one_token_tells_nothing_of_more() {
        let mut profile = fixture::profile();
        profile.activations.truncate(1);
        profile.activations[0].tokens = 1;
        assert_eq!(profile.reaches(64), Ok(()), "of sizes that are always the same");
        let what = format!("{RESIDENT_PASS} of 16 tokens, 2 threads");
        profile.skipped = vec![Skipped { what, why: "no such row".to_owned() }];
        let error = profile.reaches(64).unwrap_err().to_string();
        assert!(error.contains("16 tokens, 2 threads: no such row"), "{error}");
        assert_eq!(profile.reaches(1), Ok(()));
        profile.activations = fixture::profile().activations;
        assert_eq!(profile.reaches(64), Ok(()));
    }

    #[test]
    fn activations_lie_on_the_measured_points() {
        let profile = fixture::profile();
        let check = |tokens, expected| assert_eq!(profile.activation_bytes(tokens), expected);
        check(1, MIB);
        check(16, MIB);
        check(72, 5 * MIB);
        check(128, 9 * MIB);
        check(256, 36 * MIB);
        assert_eq!(profile.fixed_bytes(128), 26 * MIB);
        assert_eq!(profile.tape_bytes(), 1152 * MIB);
        assert_eq!(profile.layer_blocks(), [48; 24]);
    }
}
