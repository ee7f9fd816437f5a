//! What is loaded, waited for and released as one, and PipeSwitch's search for the best runs of
//! layers (Bai et al., "PipeSwitch: Fast Pipelined Context Switching for Deep Learning
//! Applications", OSDI 2020, section 4.2).

use super::Grouping;
use std::ops::Range;

impl Grouping {
    /// The blocks of each unit of a tape, by how many blocks each layer has. Together they are the
    /// tape; no unit is empty.
    ///
    /// None where the runs are not those of so many layers.
    pub fn units(&self, layer_blocks: &[usize]) -> Option<Vec<Range<usize>>> {
        let total: usize = layer_blocks.iter().sum();
        match self {
            Grouping::Blocks => Some((0..total).map(|block| block..block + 1).collect()),
            Grouping::Layers => Some(ranges(layer_blocks.iter().copied())),
            Grouping::Whole => Some(ranges([total])),
            Grouping::Runs(runs) => runs_of(layer_blocks, runs),
        }
    }
}

/// Bytes of the largest unit of a tape whose blocks have these: no window may be smaller.
pub fn largest_unit_bytes(units: &[Range<usize>], sizes: &[u64]) -> u64 {
    units.iter().map(|unit| sizes[unit.clone()].iter().sum()).max().unwrap_or(0)
}

fn runs_of(layer_blocks: &[usize], runs: &[usize]) -> Option<Vec<Range<usize>>> {
    let mut rest = layer_blocks;
    let mut sizes = Vec::with_capacity(runs.len());
    for run in runs {
        let (layers, others) = rest.split_at_checked(*run)?;
        sizes.push(layers.iter().sum());
        rest = others;
    }
    rest.is_empty().then(|| ranges(sizes))
}

/// Ranges of the given lengths end to end, without the empty ones.
fn ranges(lengths: impl IntoIterator<Item = usize>) -> Vec<Range<usize>> {
    let ends = lengths.into_iter().scan(0, |end, length| {
        let start = *end;
        *end += length;
        Some(start..*end)
    });
    ends.filter(|range| !range.is_empty()).collect()
}

/// The runs of layers that end a pass soonest when one loader brings them in one after the other,
/// each at a cost of `overhead_us` beside its layers' loading, and compute waits for whole runs.
/// Returns how many layers each run has.
///
/// The paper tries run after run and leaves out two kinds: where the lower bound of what is left
/// (loaded as one run, or computed without a wait) is no better than the best found, and a run
/// that could be longer without compute waiting for it. Loading ends at a time that depends only on
/// how many layers and runs there were, so of all ways to get there the one whose compute ends
/// first is enough, and the search takes at most the cube of the layers.
///
/// # Panics
/// If there are not as many loads as computations.
pub fn pipeswitch_groups(load_us: &[f64], compute_us: &[f64], overhead_us: f64) -> Vec<usize> {
    assert_eq!(load_us.len(), compute_us.len(), "each layer is loaded and computed");
    let (load_us, compute_us) = (sums(load_us), sums(compute_us));
    Search { layers: load_us.len() - 1, load_us, compute_us, overhead_us }.best()
}

/// The sums of no value, the first, the first two and so on.
fn sums(values: &[f64]) -> Vec<f64> {
    let mut sums = vec![0.0];
    sums.extend(values.iter().scan(0.0, |sum, value| {
        *sum += value;
        Some(*sum)
    }));
    sums
}

struct Search {
    layers: usize,
    /// Time to load, and to compute, the first so many layers.
    load_us: Vec<f64>,
    compute_us: Vec<f64>,
    overhead_us: f64,
}

/// The best way to have so many layers in so many runs.
#[derive(Clone, Copy)]
struct State {
    layers: usize,
    runs: usize,
    /// When compute ends.
    computed_us: f64,
    /// Layers of the last run.
    last_run: usize,
}

impl Search {
    fn best(&self) -> Vec<usize> {
        let start = State { layers: 0, runs: 0, computed_us: 0.0, last_run: 0 };
        let mut reached = vec![vec![None; self.layers + 1]; self.layers.max(1)];
        reached[0][0] = Some(start);
        let mut best = self.after_run(start, self.layers);
        for layers in 0..self.layers {
            for state in reached[layers].clone().into_iter().flatten() {
                let whole = self.after_run(state, self.layers);
                if whole.computed_us < best.computed_us {
                    best = whole;
                }
                if self.lower_bound_us(state) >= best.computed_us {
                    continue;
                }
                let shortest = self.shortest_end(state);
                for (end, states) in reached.iter_mut().enumerate().skip(shortest) {
                    let next = self.after_run(state, end);
                    let known: &mut Option<State> = &mut states[next.runs];
                    if known.is_none_or(|known| next.computed_us < known.computed_us) {
                        *known = Some(next);
                    }
                }
            }
        }
        self.runs_to(best, &reached)
    }

    fn loaded_us(&self, layers: usize, runs: usize) -> f64 {
        self.load_us[layers] + runs as f64 * self.overhead_us
    }

    fn after_run(&self, state: State, end: usize) -> State {
        let runs = state.runs + 1;
        let compute_us = self.compute_us[end] - self.compute_us[state.layers];
        let computed_us = state.computed_us.max(self.loaded_us(end, runs)) + compute_us;
        State { layers: end, runs, computed_us, last_run: end - state.layers }
    }

    /// No way to go on from `state` ends sooner.
    fn lower_bound_us(&self, state: State) -> f64 {
        let last_us = self.compute_us[self.layers] - self.compute_us[self.layers - 1];
        let loaded_us = self.loaded_us(self.layers, state.runs + 1) + last_us;
        let compute_us = self.compute_us[self.layers] - self.compute_us[state.layers];
        loaded_us.max(state.computed_us + compute_us)
    }

    /// End of the shortest next run worth trying: the longest that is there before compute wants
    /// it, since a shorter one would cost another run and win nothing.
    fn shortest_end(&self, state: State) -> usize {
        let overhead_us = (state.runs + 1) as f64 * self.overhead_us;
        let hidden = self.load_us.partition_point(|sum| sum + overhead_us <= state.computed_us);
        hidden.saturating_sub(1).max(state.layers + 1)
    }

    fn runs_to(&self, mut state: State, reached: &[Vec<Option<State>>]) -> Vec<usize> {
        let mut runs = vec![];
        while state.last_run > 0 {
            runs.push(state.last_run);
            let (layers, count) = (state.layers - state.last_run, state.runs - 1);
            state = reached[layers][count].expect("a state is reached from a state");
        }
        runs.reverse();
        runs
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn units_are_the_tape() {
        let layers = [2, 0, 3, 1];
        let check = |grouping: Grouping, expected: Option<Vec<Range<usize>>>| {
            assert_eq!(grouping.units(&layers), expected, "{grouping:?}");
        };
        check(Grouping::Blocks, Some((0..6).map(|i| i..i + 1).collect()));
        check(Grouping::Layers, Some(vec![0..2, 2..5, 5..6]));
        check(Grouping::Whole, Some(vec![0..6; 1]));
        check(Grouping::Runs(vec![3, 1]), Some(vec![0..5, 5..6]));
        check(Grouping::Runs(vec![3]), None);
        check(Grouping::Runs(vec![3, 2]), None);
        assert_eq!(Grouping::Whole.units(&[]), Some(vec![]));
    }

    fn time_us(load_us: &[f64], compute_us: &[f64], overhead_us: f64, runs: &[usize]) -> f64 {
        let (mut start, mut loaded, mut computed) = (0, 0.0, 0.0f64);
        for run in runs {
            loaded += overhead_us + load_us[start..start + run].iter().sum::<f64>();
            computed = computed.max(loaded) + compute_us[start..start + run].iter().sum::<f64>();
            start += run;
        }
        assert_eq!(start, load_us.len(), "{runs:?}");
        computed
    }

    /// The runs that the set bits of `cuts` end.
    fn runs_cut(layers: usize, cuts: usize) -> Vec<usize> {
        let mut runs = vec![1];
        for layer in 1..layers {
            match cuts >> (layer - 1) & 1 {
                1 => runs.push(1),
                _ => *runs.last_mut().unwrap() += 1,
            }
        }
        runs
    }

    proptest! {
        #[test]
        fn no_grouping_is_better_than_the_one_found(
            layers in prop::collection::vec((1u32..100, 1u32..100), 1..=10),
            overhead in 0u32..60,
        ) {
            let (load, compute): (Vec<f64>, Vec<f64>) =
                layers.iter().map(|(l, c)| (f64::from(*l), f64::from(*c))).unzip();
            let overhead = f64::from(overhead);
            let found = pipeswitch_groups(&load, &compute, overhead);
            let best = (0..1 << (layers.len() - 1))
                .map(|cuts| time_us(&load, &compute, overhead, &runs_cut(layers.len(), cuts)))
                .fold(f64::INFINITY, f64::min);
            prop_assert_eq!(time_us(&load, &compute, overhead, &found), best, "{:?}", found);
        }
    }

    #[test]
    fn runs_grow_with_what_compute_hides() {
        assert_eq!(pipeswitch_groups(&[], &[], 1.0), [0; 0]);
        assert_eq!(pipeswitch_groups(&[5.0; 3], &[5.0; 3], 0.0), [1, 1, 1]);
        assert_eq!(pipeswitch_groups(&[1.0; 4], &[1.0; 4], 1000.0), [4]);
        // The first run is small, since compute waits for it; then each hides under the one before.
        let runs = pipeswitch_groups(&[10.0; 60], &[20.0; 60], 30.0);
        assert_eq!(runs.iter().sum::<usize>(), 60);
        assert!(runs[0] < 6 && runs.is_sorted(), "{runs:?}");
    }
}
