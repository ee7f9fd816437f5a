//! The search for the precisions that a target lets in, each judged by its simulated pass.
//!
//! What is searched is one sequence of choices, greedy's from the least bytes to the least loss.
//! That is enough, although some blocks are pinned and others are not: pins take what of the budget
//! the window leaves, whatever is chosen, so a byte more on the tape is a byte more to read in each
//! pass, be its block pinned or streamed, for if it is pinned it drives another out. A pinned and a
//! streamed byte can be exchanged, and a tensor is worth as many bits in either place.
//!
//! Along that sequence passes take longer, by and large: codecs that are slow to decode may bend it.
//! So it is sampled from the top, and halved only between the best sample that is in time and the
//! next one that is not. What greedy's large steps leave over is then filled.

use super::Plan;
use super::allot::Allotter;
use super::forecast::{Passing, forecast};
use super::ladder::Ladder;
use super::planner::{compared_us, plan, planned_by, refit};
use super::profile::Profile;
use super::target::{Chosen, TargetError};
use super::wish::{Overrides, Planned, Wish};

/// Choices of the sequence that are judged first.
const SAMPLES: usize = 16;

/// How many times as large or as small a window may be as one of the same kind of plan that was
/// learned, for nothing to be learned from it.
const ALIKE: u64 = 2;

/// Halvings of the bytes by which what is left over is filled, and single steps that are tried then.
const FILL_STEPS: usize = 6;
const REPAIRS: usize = 24;

/// Rounds of single steps, each followed by the best choice of as many bytes.
const POLISHES: usize = 3;

/// Halvings of the memory that would make a latency possible.
const MEMORY_STEPS: usize = 6;

/// How many times as many bytes as the disk was seen to bring in a time may be tried for it.
const MAY_FIT: f64 = 1.5;

/// How much slower than the fastest a choice may be that is more accurate.
const SLACK: f64 = 1.01;

/// A choice and how it is played best, of the plans that were learned.
#[derive(Clone, Debug)]
pub(super) struct Judged {
    pub rungs: Vec<usize>,
    pub plan: Plan,
    pub latency_us: f64,
    /// Sum of the divergences.
    pub loss: f64,
}

pub(super) struct Seek<'a> {
    pub profile: &'a Profile,
    pub ladder: &'a Ladder,
    pub wish: &'a Wish,
    fixed: &'a Overrides,
    allotter: Allotter,
    /// Plans that were best for some choice. Choices are judged by these: to try all of them for
    /// each would take a hundred times as long.
    frames: Vec<Plan>,
}

impl<'a> Seek<'a> {
    pub fn new(
        profile: &'a Profile,
        ladder: &'a Ladder,
        wish: &'a Wish,
        fixed: &'a Overrides,
    ) -> Seek<'a> {
        let allotter = Allotter::new(ladder);
        Seek { profile, ladder, wish, fixed, allotter, frames: vec![] }
    }

    /// The same search before anything was learned, so that what it finds depends on nothing else.
    pub fn again(&self) -> Seek<'a> {
        Seek::new(self.profile, self.ladder, self.wish, self.fixed)
    }

    /// The choice of least loss whose pass takes at most so long; the one that takes least where
    /// there is none.
    pub fn best_within(&mut self, most_us: f64) -> Result<Result<Judged, Judged>, TargetError> {
        self.learn(&self.allotter.after(0))?;
        let (mut step, mut found) = match self.highest_sample(most_us)? {
            Ok(found) => found,
            Err(soonest) => {
                self.learn(&soonest.rungs)?;
                match self.highest_sample(most_us)? {
                    Ok(found) => found,
                    Err(soonest) => return Ok(Err(soonest)),
                }
            }
        };
        (step, found) = self.climb(step, found, most_us)?;
        // What is best for larger blocks may be another plan than for the least.
        if self.learn(&found.rungs)? {
            (step, found) = self.climb(step, found, most_us)?;
        }
        // Near choices are told apart on one plan, not by which of several they happen to have.
        self.frames = vec![found.plan.clone()];
        found = self.fill(step, found, most_us)?;
        for _ in 0..POLISHES {
            let before = found.loss;
            found = self.repair(found, most_us)?;
            found = self.reallot(found, most_us)?;
            if found.loss == before {
                break;
            }
        }
        Ok(Ok(found))
    }

    /// The fastest choice that loses at most so much, and of those about as fast the one that loses
    /// least; None where all lose more.
    pub fn fastest(&mut self, most_loss: f64) -> Result<Option<Judged>, TargetError> {
        let Some(least) = self.allotter.within_loss(most_loss) else { return Ok(None) };
        self.learn(&least)?;
        // More bytes may be faster where they need no decoding.
        let mut choices: Vec<Vec<usize>> =
            self.samples().map(|at| self.allotter.after(at)).collect();
        choices.retain(|choice| self.ladder.divergence(choice) <= most_loss);
        choices.push(least);
        let mut found = vec![];
        for choice in choices {
            found.extend(self.judge(choice)?);
        }
        let fastest_us = found.iter().map(|of| of.latency_us).fold(f64::INFINITY, f64::min);
        let near = found.into_iter().filter(|of| of.latency_us <= SLACK * fastest_us);
        Ok(near.min_by(|a, b| a.loss.total_cmp(&b.loss)))
    }

    /// With how much more of budget a choice would take at most so long; None where with none.
    pub fn more_bytes(&self, of: &Judged, most_us: f64) -> Result<Option<u64>, TargetError> {
        let derived = self.profile.with_choice(self.ladder, &of.rungs)?;
        let is_enough = |more: u64| -> Result<bool, TargetError> {
            let budget_bytes = self.wish.budget_bytes.saturating_add(more);
            let richer = Wish { budget_bytes, ..*self.wish };
            Ok(plan(&derived, &richer, self.fixed)?.forecast.latency_us <= most_us)
        };
        let (mut low, mut high) = (0, derived.held_bytes(of.plan.source));
        if !is_enough(high)? {
            return Ok(None);
        }
        for _ in 0..MEMORY_STEPS {
            let middle = low + (high - low) / 2;
            match is_enough(middle)? {
                true => high = middle,
                false => low = middle,
            }
        }
        Ok(Some(high))
    }

    /// The choice with the best of all plans, where that is in time, or else with the one by which
    /// it was judged.
    pub fn conclude(&self, found: Judged, most_us: f64) -> Result<Chosen, TargetError> {
        let Judged { rungs, plan: own, .. } = found;
        let derived = self.profile.with_choice(self.ladder, &rungs)?;
        let planned = match plan(&derived, self.wish, self.fixed)? {
            found if found.forecast.latency_us <= most_us => found,
            Planned { alternatives, .. } => {
                Planned { alternatives, ..planned_by(&derived, self.wish, own)? }
            }
        };
        Ok(Chosen::new(self.ladder, rungs, planned))
    }

    /// Notes the best plan for a choice; whether it is one of a new kind.
    fn learn(&mut self, rungs: &[usize]) -> Result<bool, TargetError> {
        let derived = self.profile.with_choice(self.ladder, rungs)?;
        let found = plan(&derived, self.wish, self.fixed)?.plan;
        let kind =
            |plan: &Plan| (plan.source, plan.loaders, plan.threads, plan.placement, plan.pins);
        let is_alike = |frame: &Plan| {
            let (was, is) = (frame.window_bytes, found.window_bytes);
            kind(frame) == kind(&found) && was <= ALIKE * is && is <= ALIKE * was
        };
        let known = self.frames.iter().any(is_alike);
        if !known {
            self.frames.push(found);
        }
        Ok(!known)
    }

    /// A choice by the fastest of the plans that were learned, as the planner compares them; None
    /// where none has room.
    fn judge(&self, rungs: Vec<usize>) -> Result<Option<Judged>, TargetError> {
        let (wish, derived) = (self.wish, self.profile.with_choice(self.ladder, &rungs)?);
        let mut best: Option<(f64, Plan)> = None;
        for frame in &self.frames {
            let Some(plan) = refit(&derived, wish, self.fixed, frame)? else { continue };
            // One has nothing to be compared with.
            let us = match self.frames.len() {
                1 => 0.0,
                _ => compared_us(&derived, wish, &plan)?,
            };
            if best.as_ref().is_none_or(|(least_us, _)| us < *least_us) {
                best = Some((us, plan));
            }
        }
        let Some((_, plan)) = best else { return Ok(None) };
        let latency_us = forecast(&derived, &plan, wish.tokens, Passing::Later)?.latency_us;
        let loss = self.ladder.divergence(&rungs);
        Ok(Some(Judged { rungs, plan, latency_us, loss }))
    }

    /// Numbers of greedy's steps from all of them to none.
    fn samples(&self) -> impl Iterator<Item = usize> + use<> {
        let steps = self.allotter.steps();
        let count = SAMPLES.min(steps + 1);
        (0..count).rev().map(move |at| if count == 1 { 0 } else { at * steps / (count - 1) })
    }

    /// The sample of least loss that is in time, with its steps; the soonest where none is.
    fn highest_sample(&self, most_us: f64) -> Result<Result<(usize, Judged), Judged>, TargetError> {
        let mut soonest: Option<Judged> = None;
        for step in self.samples().filter(|step| *step == 0 || !self.is_hopeless(*step, most_us)) {
            let Some(judged) = self.judge(self.allotter.after(step))? else { continue };
            if judged.latency_us <= most_us {
                return Ok(Ok((step, judged)));
            }
            if soonest.as_ref().is_none_or(|least| judged.latency_us < least.latency_us) {
                soonest = Some(judged);
            }
        }
        // A plan was found for the choice of least bytes, the last sample.
        Ok(Err(soonest.expect("the least choice has room in its own plan")))
    }

    /// Goes up greedy's steps from one that is in time, by more and more, to where the next is not.
    fn climb(
        &self,
        step: usize,
        found: Judged,
        most_us: f64,
    ) -> Result<(usize, Judged), TargetError> {
        let (mut low, mut found, mut stride) = (step, found, 1);
        let mut high = self.allotter.steps() + 1;
        while low + 1 < high {
            let next = (low + stride).min(low + (high - low).div_ceil(2)).min(high - 1);
            match self.judge(self.allotter.after(next))?.filter(|of| of.latency_us <= most_us) {
                Some(judged) => (low, found, stride) = (next, judged, 2 * stride),
                None => high = next,
            }
        }
        Ok((low, found))
    }

    /// Fills what greedy's next step is too large for with what else fits: the most bytes, up to some
    /// steps further, within which a choice is in time.
    fn fill(&self, step: usize, found: Judged, most_us: f64) -> Result<Judged, TargetError> {
        let mut best = found;
        let mut low = self.allotter.bytes_after(step);
        let mut high = self.allotter.bytes_after((step + 2).min(self.allotter.steps()));
        for _ in 0..FILL_STEPS {
            let middle = low + (high - low) / 2;
            let Some(choice) = self.allotter.within_bytes(middle) else { break };
            match self.judge(choice)?.filter(|of| of.latency_us <= most_us) {
                Some(judged) => {
                    low = middle;
                    if judged.loss < best.loss {
                        best = judged;
                    }
                }
                None => high = middle,
            }
        }
        Ok(best)
    }

    /// Raises single tensors that time is left for, the most gain first.
    fn repair(&self, found: Judged, most_us: f64) -> Result<Judged, TargetError> {
        let mut best = found;
        let mut raises = vec![];
        for (tensor, of) in self.ladder.tensors.iter().enumerate() {
            let now = &of.rungs[best.rungs[tensor]];
            for (rung, other) in of.rungs.iter().enumerate() {
                if other.divergence < now.divergence {
                    raises.push((now.divergence - other.divergence, tensor, rung));
                }
            }
        }
        raises.sort_by(|a, b| b.0.total_cmp(&a.0));
        let mut tried = 0;
        for (_, tensor, rung) in raises {
            let mut rungs = best.rungs.clone();
            rungs[tensor] = rung;
            let loss = self.ladder.divergence(&rungs);
            if loss >= best.loss || !self.may_fit(&best, &rungs, most_us) {
                continue;
            }
            tried += 1;
            if let Some(judged) = self.judge(rungs)?.filter(|of| of.latency_us <= most_us) {
                best = judged;
            }
            if tried == REPAIRS {
                break;
            }
        }
        Ok(best)
    }

    /// The best choice of as many bytes, where that is in time: single steps may have come to another.
    fn reallot(&self, found: Judged, most_us: f64) -> Result<Judged, TargetError> {
        let Some(choice) = self.allotter.within_bytes(self.ladder.bytes(&found.rungs)) else {
            return Ok(found);
        };
        let other = self.judge(choice)?.filter(|of| of.latency_us <= most_us);
        Ok(other.filter(|of| of.loss < found.loss).unwrap_or(found))
    }

    /// Whether bytes that a choice has more could be read in the time that is left: what cannot is
    /// not worth a simulation.
    fn may_fit(&self, best: &Judged, rungs: &[usize], most_us: f64) -> bool {
        let [now, then] = [&best.rungs, rungs].map(|rungs| self.ladder.bytes(rungs));
        let is_streamed = best.plan.pin_bytes < now;
        let left_us = most_us - best.latency_us;
        !is_streamed || then.saturating_sub(now) as f64 <= MAY_FIT * left_us * self.best_rate()
    }

    /// Whether what no pin could hold takes longer to read than there is time.
    fn is_hopeless(&self, step: usize, most_us: f64) -> bool {
        let bytes = self.allotter.bytes_after(step).saturating_sub(self.wish.budget_bytes);
        bytes as f64 > MAY_FIT * most_us * self.best_rate()
    }

    /// Bytes a microsecond that the disk was seen to give.
    fn best_rate(&self) -> f64 {
        self.profile.reads.iter().map(|read| read.bandwidth_bytes_s / 1e6).fold(0.0, f64::max)
    }
}
