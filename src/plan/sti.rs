//! The planner of STI, to be compared with (Guo et al., "STI: Turbocharge NLP Inference at the Edge
//! via Elastic Pipelining", ASPLOS 2023): a compute plan, then an I/O plan.
//!
//! The compute plan is the whole model, since nothing of models that were not trained for it can be
//! left out. Loading is planned by accumulated I/O budgets: layer `k` may have taken as much loading
//! as its preload buffer is worth and the layers before it have computed; what a layer takes is gone
//! for all after it, and as long as no budget is negative, compute never waits. All tensors get the
//! best variant that they can have alike; then one after the other, by importance, is raised as far
//! as its budgets allow, up to the best. The paper's compute plan fills the latency that is asked
//! for; where the whole model takes less, what is left is waited at the start, and the first budget
//! has it.

use super::forecast::ForecastError;
use super::ladder::{Ladder, LadderTensor, Part};
use super::planner::planned_by;
use super::profile::{BlockRun, Profile, ReadRate};
use super::target::{AIM, Chosen, Target, TargetError};
use super::wish::{Overrides, PlanError, Wish};
use super::{Dealing, Grouping, PinPlace, Placement, Plan, Release, Way};

/// Layers that the working buffer holds: one is computed while the next is loaded.
const WORKING_LAYERS: u64 = 2;

/// What a budget may fall short by, for rounding, in microseconds.
const ROUNDING_US: f64 = 1e-6;

/// A tensor as the I/O plan sees it, its rungs from the best to the least.
#[derive(Clone, Debug)]
struct Shard {
    /// The layers that use it.
    layers: Vec<usize>,
    /// Time to load it, by rung.
    io_us: Vec<f64>,
    /// Bytes that it takes of a layer's buffer, by rung.
    bytes: Vec<u64>,
}

/// By layer, what may still be planned for it.
#[derive(Clone, Debug, PartialEq)]
struct Budgets {
    /// Accumulated I/O budgets: time for loading.
    io_us: Vec<f64>,
    /// Bytes of its buffer.
    bytes: Vec<u64>,
}

impl Budgets {
    /// The first I/O budget is given; each later one has what the layer before computes.
    fn new(first_us: f64, compute_us: &[f64], layer_bytes: u64) -> Budgets {
        let io_us = compute_us.iter().scan(first_us, |budget, us| {
            let now = *budget;
            *budget += us;
            Some(now)
        });
        Budgets { io_us: io_us.collect(), bytes: vec![layer_bytes; compute_us.len()] }
    }

    /// Takes from the I/O budgets of a layer and all later ones, and from its buffer. None where one
    /// has too little.
    fn less(mut self, layer: usize, io_us: f64, bytes: u64) -> Option<Budgets> {
        self.bytes[layer] = self.bytes[layer].checked_sub(bytes)?;
        self.io_us[layer..].iter_mut().for_each(|budget| *budget -= io_us);
        self.io_us[layer..].iter().all(|budget| *budget >= -ROUNDING_US).then_some(self)
    }

    /// The same with a shard that goes from one rung to a better one.
    fn raised(&self, shard: &Shard, from: Option<usize>, to: usize) -> Option<Budgets> {
        let now = from.map_or((0.0, 0), |rung| (shard.io_us[rung], shard.bytes[rung]));
        let (io_us, bytes) = (shard.io_us[to] - now.0, shard.bytes[to].saturating_sub(now.1));
        shard.layers.iter().try_fold(self.clone(), |left, layer| left.less(*layer, io_us, bytes))
    }
}

/// The I/O plan: the first of the `uniform` choices that is in time, with shards raised in their
/// `order` to the best rung that is; with what is left. None where no uniform choice is in time.
fn io_plan(
    budgets: &Budgets,
    shards: &[Shard],
    uniform: &[Vec<usize>],
    order: &[usize],
) -> Option<(Vec<usize>, Budgets)> {
    let with_all = |choice: &Vec<usize>| {
        let mut shards = shards.iter().zip(choice);
        shards.try_fold(budgets.clone(), |left, (shard, rung)| left.raised(shard, None, *rung))
    };
    let (mut choice, mut left) =
        uniform.iter().find_map(|choice| Some((choice.clone(), with_all(choice)?)))?;
    for &at in order {
        let (shard, now) = (&shards[at], choice[at]);
        let better = (0..now).find_map(|to| Some((to, left.raised(shard, Some(now), to)?)));
        if let Some(better) = better {
            (choice[at], left) = better;
        }
    }
    Some((choice, left))
}

/// The precision of each tensor as STI plans them for a latency, and its plan: layers are loaded and
/// released as a whole, through a working buffer of two; what that and the process leave of the
/// budget is the preload buffer, the head of the tape. Of several sizes of the one and the other it
/// has the one that does best. Nothing is simulated before the choice is made: whether the latency
/// is met is told by the forecast.
///
/// # Errors
/// A target without a latency, or that cannot be aimed at; one that is not met by the least
/// variants, by budgets; as [`plan_target`](super::plan_target) otherwise.
pub fn plan_sti(
    profile: &Profile,
    ladder: &Ladder,
    wish: &Wish,
    target: &Target,
    fixed: &Overrides,
) -> Result<Chosen, TargetError> {
    target.check()?;
    let wanted_us = target.latency_us.ok_or(TargetError::Nothing)?;
    profile.check_ladder(ladder)?;
    let least = least(ladder);
    let derived = profile.with_choice(ladder, &least)?;
    let base = base_plan(profile, fixed);
    let read = fastest_read(profile, base.source)?;
    let compute_us = derived.compute_us(base.threads, wish.tokens);
    let computed_us: f64 = compute_us.iter().sum();
    let shards = shards(ladder, read);
    let (uniform, order) = (uniform(ladder, &least), order(ladder));
    let room = wish.budget_bytes.saturating_sub(profile.fixed_bytes(wish.tokens));
    let least_buffer =
        WORKING_LAYERS * derived.largest_unit_bytes(base.source, &Grouping::Layers)?;
    let buffers = std::iter::successors(Some(least_buffer), |bytes| Some(bytes + bytes / 2 + 1));
    let buffers = buffers.take_while(|bytes| *bytes <= room);
    let mut best: Option<(f64, Plan, Vec<usize>)> = None;
    for window_bytes in buffers {
        let pin_bytes = room - window_bytes;
        let spare_us = wanted_us * AIM - computed_us + io_us(pin_bytes, read);
        let budgets = Budgets::new(spare_us, &compute_us, window_bytes / WORKING_LAYERS);
        let budgets = with_fixed(ladder, budgets, read);
        let planned = budgets.and_then(|left| io_plan(&left, &shards, &uniform, &order));
        let Some((rungs, _)) = planned else { continue };
        let loss = ladder.divergence(&rungs);
        if best.as_ref().is_none_or(|(least, ..)| loss < *least) {
            best = Some((loss, Plan { window_bytes, pin_bytes, ..base.clone() }, rungs));
        }
    }
    let Some((_, plan, rungs)) = best else {
        if least_buffer > room {
            return Err(too_small(profile, wish, least_buffer).into());
        }
        let behind_us = io_us(ladder.bytes(&least).saturating_sub(room - least_buffer), read);
        return Err(TargetError::TooSoon {
            model: profile.model.clone(),
            tokens: wish.tokens,
            wanted_us,
            least_us: (behind_us.max(computed_us) / AIM).ceil().max(wanted_us.ceil()),
            more_bytes: None,
        });
    };
    let chosen = profile.with_choice(ladder, &rungs)?;
    let pin_bytes = plan.pin_bytes.min(chosen.held_bytes(plan.source));
    let planned = planned_by(&chosen, wish, Plan { pin_bytes, ..plan })?;
    Ok(Chosen::new(ladder, rungs, planned))
}

/// One layer after the other by whatever reads fastest, on all cores; the head of the tape stays.
/// What is set by hand stays, but for the sizes of window and pins, which are the two buffers.
fn base_plan(profile: &Profile, fixed: &Overrides) -> Plan {
    let reads = profile.reads.iter().filter(|read| {
        !read.is_scattered
            && fixed.source.is_none_or(|way| way == read.way)
            && fixed.loaders.is_none_or(|loaders| loaders == read.loaders)
    });
    let best = reads.max_by(|a, b| a.bandwidth_bytes_s.total_cmp(&b.bandwidth_bytes_s));
    let best = best.unwrap_or(&profile.reads[0]);
    Plan {
        source: fixed.source.unwrap_or(best.way),
        loaders: fixed.loaders.unwrap_or(best.loaders),
        threads: fixed.threads.unwrap_or(profile.board.cores.len()),
        placement: fixed.placement.unwrap_or(Placement::Shared),
        grouping: fixed.grouping.clone().unwrap_or(Grouping::Layers),
        turns: fixed.turns.unwrap_or(Dealing::Next),
        release: fixed.release.unwrap_or(Release::AfterUse),
        window_bytes: 0,
        pin_bytes: 0,
        pins: fixed.pins.unwrap_or(PinPlace::Head),
        variants: vec![],
    }
}

/// The fastest reads by a way.
fn fastest_read(profile: &Profile, way: Way) -> Result<&ReadRate, ForecastError> {
    let reads = profile.reads.iter().filter(|read| read.way == way && !read.is_scattered);
    let best = reads.max_by(|a, b| a.bandwidth_bytes_s.total_cmp(&b.bandwidth_bytes_s));
    best.ok_or(ForecastError::Way(way))
}

fn io_us(bytes: u64, read: &ReadRate) -> f64 {
    bytes as f64 / read.bandwidth_bytes_s * 1e6
}

fn shards(ladder: &Ladder, read: &ReadRate) -> Vec<Shard> {
    let shard = |(index, tensor): (usize, &LadderTensor)| {
        let uses = ladder.tape.iter().enumerate().flat_map(|(layer, parts)| {
            parts.iter().filter(move |part| **part == Part::Tensor(index)).map(move |_| layer)
        });
        let rungs = || tensor.rungs.iter();
        Shard {
            layers: uses.collect(),
            io_us: rungs().map(|rung| io_us(rung.bytes(), read)).collect(),
            bytes: rungs().map(|rung| held_bytes(&rung.blocks, read.way)).collect(),
        }
    };
    ladder.tensors.iter().enumerate().map(shard).collect()
}

/// What is left beside the blocks that are not chosen.
fn with_fixed(ladder: &Ladder, budgets: Budgets, read: &ReadRate) -> Option<Budgets> {
    let layers = ladder.tape.iter().enumerate();
    let mut parts = layers.flat_map(|(layer, parts)| parts.iter().map(move |part| (layer, part)));
    parts.try_fold(budgets, |left, (layer, part)| match part {
        Part::Tensor(_) => Some(left),
        Part::Fixed(blocks) => {
            let bytes = blocks.iter().map(|run| run.count as u64 * run.bytes).sum();
            left.less(layer, io_us(bytes, read), held_bytes(blocks, read.way))
        }
    })
}

fn held_bytes(blocks: &[BlockRun], way: Way) -> u64 {
    blocks.iter().map(|run| run.count as u64 * run.held_bytes(way)).sum()
}

/// The rungs of fewest bytes.
fn least(ladder: &Ladder) -> Vec<usize> {
    let fewest = |tensor: &LadderTensor| {
        let rungs = tensor.rungs.iter().enumerate();
        rungs.min_by_key(|(_, rung)| rung.bytes()).map_or(0, |(at, _)| at)
    };
    ladder.tensors.iter().map(fewest).collect()
}

/// Choices of one variant for all, from the best on, and what takes the fewest bytes.
fn uniform(ladder: &Ladder, least: &[usize]) -> Vec<Vec<usize>> {
    let rungs = ladder.tensors.first().map_or(&[][..], |tensor| &tensor.rungs);
    let all = rungs.iter().filter_map(|rung| {
        ladder.choice_of(&vec![rung.variant.clone(); ladder.tensors.len()]).ok()
    });
    all.chain([least.to_vec()]).collect()
}

/// Tensors by how much better answers are with the best of it than with the least.
fn order(ladder: &Ladder) -> Vec<usize> {
    let importance = |at: &usize| {
        let losses = ladder.tensors[*at].rungs.iter().map(|rung| rung.divergence);
        let (least, most) = losses
            .fold((f64::INFINITY, 0.0f64), |(least, most), loss| (least.min(loss), most.max(loss)));
        most - least
    };
    let mut order: Vec<usize> = (0..ladder.tensors.len()).collect();
    order.sort_by(|a, b| importance(b).total_cmp(&importance(a)));
    order
}

fn too_small(profile: &Profile, wish: &Wish, window_bytes: u64) -> PlanError {
    PlanError::Budget {
        model: profile.model.clone(),
        variant: profile.variant.clone(),
        tokens: wish.tokens,
        budget_bytes: wish.budget_bytes,
        least_bytes: profile.fixed_bytes(wish.tokens).saturating_add(window_bytes),
    }
}

#[cfg(test)]
#[path = "sti_tests.rs"]
mod tests;
