//! Which rung of each tensor loses least within so many bytes: a knapsack of which one of several
//! items is chosen in each class.
//!
//! Greedy by gain for each byte goes along the lower convex hull of each tensor's rungs, from where
//! all are at their least, and stops where the next step does not fit. With `price` for that step's
//! gain, every choice's loss plus its bytes' price is at least the sum over tensors of the least of
//! theirs. What a choice exceeds that by, its *regret*, is what remains to be searched: a better one
//! than greedy's cannot have more regret than the bytes that greedy leaves over are worth. Few rungs
//! are within that, so the rest is a search of little.

use super::ladder::{Ladder, Part};

/// Choices of the tensors so far that are kept in the search: it is exact below.
const MOST_STATES: usize = 512;

/// The rungs worth having, by tensor.
pub(super) struct Allotter {
    /// Ascending bytes and descending loss.
    fronts: Vec<Vec<Item>>,
    /// Steps up along hulls, the most gain for each byte first.
    steps: Vec<Step>,
    /// Bytes of what is not chosen.
    fixed_bytes: u64,
}

#[derive(Clone, Copy, Debug)]
struct Item {
    rung: usize,
    bytes: u64,
    loss: f64,
}

/// A step of one tensor to an item of its front.
#[derive(Clone, Copy, Debug)]
struct Step {
    tensor: usize,
    item: usize,
    bytes: u64,
    gain: f64,
}

impl Step {
    fn gain_per_byte(&self) -> f64 {
        self.gain / self.bytes as f64
    }
}

/// What a limit is of.
#[derive(Clone, Copy, Debug)]
enum Limit {
    Bytes(u64),
    Loss(f64),
}

impl Limit {
    fn allows(self, (bytes, loss): (u64, f64)) -> bool {
        match self {
            Limit::Bytes(most) => bytes <= most,
            Limit::Loss(most) => loss <= most,
        }
    }
}

impl Allotter {
    pub fn new(ladder: &Ladder) -> Allotter {
        let uses = uses(ladder);
        let mut fronts = vec![];
        for (tensor, uses) in ladder.tensors.iter().zip(&uses) {
            let items = tensor.rungs.iter().enumerate().map(|(rung, of)| Item {
                rung,
                bytes: uses * of.bytes(),
                loss: of.divergence,
            });
            fronts.push(front(items.collect()));
        }
        let mut steps = vec![];
        for (tensor, front) in fronts.iter().enumerate() {
            for pair in hull(front).windows(2) {
                let (from, to) = (front[pair[0]], front[pair[1]]);
                let (bytes, gain) = (to.bytes - from.bytes, from.loss - to.loss);
                steps.push(Step { tensor, item: pair[1], bytes, gain });
            }
        }
        // Those of a tensor stay in their order: gains for each byte fall along a hull.
        steps.sort_by(|a, b| b.gain_per_byte().total_cmp(&a.gain_per_byte()));
        let least: Vec<usize> = fronts.iter().map(|front| front[0].rung).collect();
        let chosen_bytes: u64 = fronts.iter().map(|front| front[0].bytes).sum();
        let fixed_bytes = ladder.bytes(&least) - chosen_bytes;
        Allotter { fronts, steps, fixed_bytes }
    }

    /// How many steps there are from the choice of least bytes to that of least loss.
    pub fn steps(&self) -> usize {
        self.steps.len()
    }

    /// Greedy's choice after so many steps.
    pub fn after(&self, steps: usize) -> Vec<usize> {
        self.rungs(&self.items_after(steps))
    }

    /// Bytes of the tape after so many steps.
    pub fn bytes_after(&self, steps: usize) -> u64 {
        self.sums(&self.items_after(steps)).0
    }

    /// The choice of least loss within so many bytes of the tape; None where there is none.
    pub fn within_bytes(&self, most_bytes: u64) -> Option<Vec<usize>> {
        let limit = Limit::Bytes(most_bytes);
        limit.allows(self.sums(&self.items_after(0))).then(|| self.best(limit))
    }

    /// The choice of fewest bytes that loses at most so much; None where there is none.
    pub fn within_loss(&self, most_loss: f64) -> Option<Vec<usize>> {
        let limit = Limit::Loss(most_loss);
        limit.allows(self.sums(&self.items_after(self.steps()))).then(|| self.best(limit))
    }

    /// Greedy's last choice within `limit`, from below in bytes, or first in loss; and what is better.
    fn best(&self, limit: Limit) -> Vec<usize> {
        let stop = self.stop(limit);
        let start = self.items_after(stop);
        // The step at which greedy stopped: the next one, or the last that a loss asked for.
        let at = if matches!(limit, Limit::Bytes(_)) { Some(stop) } else { stop.checked_sub(1) };
        let Some(step) = at.and_then(|at| self.steps.get(at)) else { return self.rungs(&start) };
        let price = step.gain_per_byte();
        let (bytes, loss) = self.sums(&start);
        let worth = match limit {
            Limit::Bytes(most) => price * (most - bytes) as f64,
            Limit::Loss(most) => most - loss,
        };
        self.rungs(&self.search(start, price, worth, limit))
    }

    /// How many steps greedy takes: as many as bytes allow, as few as a loss does.
    fn stop(&self, limit: Limit) -> usize {
        let mut sums = self.sums(&self.items_after(0));
        for (count, step) in self.steps.iter().enumerate() {
            let next = (sums.0 + step.bytes, sums.1 - step.gain);
            match limit {
                Limit::Bytes(most) if next.0 > most => return count,
                Limit::Loss(most) if sums.1 <= most => return count,
                _ => sums = next,
            }
        }
        self.steps.len()
    }

    /// The best choice within `limit` whose regret at this price is at most `worth`, or `start`.
    fn search(&self, start: Vec<usize>, price: f64, worth: f64, limit: Limit) -> Vec<usize> {
        let cost = |item: &Item| item.loss + price * item.bytes as f64;
        // Choices of the tensors with more than one item left, each the step to it from one of
        // those before.
        let mut layers: Vec<(usize, Vec<State>)> = vec![];
        let mut states = vec![State::default()];
        let (mut bytes, mut loss) = (self.fixed_bytes, 0.0);
        let mut items = vec![];
        for (tensor, front) in self.fronts.iter().enumerate() {
            let least = front.iter().map(cost).fold(f64::INFINITY, f64::min);
            let regret = |item: &Item| (cost(item) - least).max(0.0);
            let near: Vec<usize> =
                (0..front.len()).filter(|at| regret(&front[*at]) <= worth).collect();
            let base = front[near[0]];
            (bytes, loss) = (bytes + base.bytes, loss + base.loss);
            items.push(near[0]);
            if near.len() == 1 {
                continue;
            }
            let mut next = vec![];
            for (from, state) in states.iter().enumerate() {
                for &item in &near {
                    let of = front[item];
                    next.push(State {
                        bytes: state.bytes + of.bytes - base.bytes,
                        loss: state.loss + of.loss - base.loss,
                        regret: state.regret + regret(&of),
                        from,
                        item,
                    });
                }
            }
            next.retain(|state| state.regret <= worth);
            states = thinned(next);
            layers.push((tensor, states.clone()));
        }
        let sums = |state: &State| (bytes + state.bytes, (loss + state.loss).max(0.0));
        let mut best = (self.sums(&start), None);
        for (at, state) in states.iter().enumerate() {
            let found = sums(state);
            let is_better = match limit {
                Limit::Bytes(_) => found.1 < best.0.1,
                Limit::Loss(_) => found.0 < best.0.0,
            };
            if is_better && limit.allows(found) {
                best = (found, Some(at));
            }
        }
        let Some(mut at) = best.1 else { return start };
        for (tensor, states) in layers.iter().rev() {
            let State { from, item, .. } = states[at];
            items[*tensor] = item;
            at = from;
        }
        items
    }

    fn items_after(&self, steps: usize) -> Vec<usize> {
        let mut items = vec![0; self.fronts.len()];
        for step in &self.steps[..steps] {
            items[step.tensor] = step.item;
        }
        items
    }

    /// Bytes of the tape, and what is lost.
    fn sums(&self, items: &[usize]) -> (u64, f64) {
        let chosen = || self.fronts.iter().zip(items).map(|(front, item)| front[*item]);
        let bytes = chosen().map(|item| item.bytes).sum::<u64>();
        (self.fixed_bytes + bytes, chosen().map(|item| item.loss).fold(0.0, |sum, of| sum + of))
    }

    fn rungs(&self, items: &[usize]) -> Vec<usize> {
        self.fronts.iter().zip(items).map(|(front, item)| front[*item].rung).collect()
    }
}

/// How often the tape has each tensor.
fn uses(ladder: &Ladder) -> Vec<u64> {
    let mut uses = vec![0; ladder.tensors.len()];
    for part in ladder.tape.iter().flatten() {
        if let Part::Tensor(index) = part {
            uses[*index] += 1;
        }
    }
    uses
}

/// A choice of some tensors, against the least bytes of each.
#[derive(Clone, Copy, Debug, Default)]
struct State {
    bytes: u64,
    /// Negative where more bytes lose less.
    loss: f64,
    regret: f64,
    /// The state of the tensors before, and the last tensor's item.
    from: usize,
    item: usize,
}

/// Those that no other beats in bytes and loss; of too many, some at even distances.
fn thinned(mut states: Vec<State>) -> Vec<State> {
    states.sort_by(|a, b| a.bytes.cmp(&b.bytes).then(a.loss.total_cmp(&b.loss)));
    let mut least = f64::INFINITY;
    states.retain(|state| {
        let is_less = state.loss < least;
        least = least.min(state.loss);
        is_less
    });
    if states.len() <= MOST_STATES {
        return states;
    }
    let last = states.len() - 1;
    (0..MOST_STATES).map(|at| states[at * last / (MOST_STATES - 1)]).collect()
}

/// The items that no other beats in bytes and loss, ascending.
fn front(mut items: Vec<Item>) -> Vec<Item> {
    items.sort_by(|a, b| a.bytes.cmp(&b.bytes).then(a.loss.total_cmp(&b.loss)));
    let mut least = f64::INFINITY;
    items.retain(|item| {
        let is_less = item.loss < least;
        least = least.min(item.loss);
        is_less
    });
    items
}

/// Indexes of a front's items on its lower convex hull.
fn hull(front: &[Item]) -> Vec<usize> {
    let gain_per_byte = |from: usize, to: usize| {
        (front[from].loss - front[to].loss) / (front[to].bytes - front[from].bytes) as f64
    };
    let mut hull: Vec<usize> = vec![];
    for next in 0..front.len() {
        while let [.., before, last] = hull[..]
            && gain_per_byte(last, next) >= gain_per_byte(before, last)
        {
            hull.pop();
        }
        hull.push(next);
    }
    hull
}

#[cfg(test)]
#[path = "allot_tests.rs"]
mod tests;
