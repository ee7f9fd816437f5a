//! What this board can do for a model, and what is best done with it.
//!
//! `profile` is what was measured, `forecast` plays a pass by it without touching a disk,
//! `planner` tries plans on the forecast and picks one. Nothing here measures, reads a weight or
//! knows tract: `engine` measures, and plays what is planned.

mod advice;
mod aim;
mod allot;
mod board;
mod choice;
mod cost;
mod disk;
#[cfg(test)]
mod fixture;
mod forecast;
mod grouping;
mod ladder;
mod pins;
mod planner;
mod profile;
mod report;
mod seek;
mod simulate;
mod speeds;
mod stale;
mod sti;
mod target;
mod unmeasured;
mod wish;

pub use crate::stream::{Dealing, Release};
pub use advice::{Advice, Change, WhatIf, advise};
pub use aim::plan_target;
pub use board::{Board, Core};
pub use forecast::{Bound, Forecast, ForecastError, Passing, forecast, forecast_spans};
pub use grouping::{largest_unit_bytes, pipeswitch_groups};
pub use ladder::{Ladder, LadderError, LadderTensor, Part, Rung};
pub use pins::pinned_units;
pub use planner::plan;
pub use profile::{
    BlockRun, BytesAt, CodecRate, Contention, FORMAT, LayerCost, PassTime, Profile, ProfileError,
    RESIDENT_PASS, ReadRate, Skipped, Subject,
};
pub use report::UnknownWay;
pub use simulate::{Doing, Lapse};
pub use stale::Stale;
pub use sti::plan_sti;
pub use target::{Chosen, Target, TargetError};
pub use unmeasured::Unmeasured;
pub use wish::{Alternative, Kind, MAX_TOKENS, Overrides, PlanError, Planned, Usage, Wish};

use serde::{Deserialize, Serialize};

/// How a model's passes are played.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    pub source: Way,
    pub loaders: usize,
    /// Compute threads.
    pub threads: usize,
    pub placement: Placement,
    pub grouping: Grouping,
    pub turns: Dealing,
    pub release: Release,
    /// Most bytes held of units that are not pinned.
    pub window_bytes: u64,
    /// Most bytes that stay between passes.
    pub pin_bytes: u64,
    pub pins: PinPlace,
    /// The variant of each tensor, in the order of a [`Ladder`]'s choice; all have the model's where
    /// none is named.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub variants: Vec<String>,
}

impl Placement {
    /// How many of so many cores compute may use, and how many so many loaders: compute has the
    /// first, loaders take turns at the last. Where they are to be apart, each has one at least.
    pub fn crew_cores(self, cores: usize, loaders: usize) -> (usize, usize) {
        match self {
            Placement::Apart if cores > 1 => {
                let own = loaders.clamp(1, cores - 1);
                (cores - own, own)
            }
            _ => (cores, loaders.clamp(1, cores.max(1))),
        }
    }
}

/// How blocks are brought in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Way {
    /// Mapped, or read through the page cache where the kernel cannot populate a mapping.
    Mapped,
    /// Read past the page cache into recycled slots.
    Direct,
}

/// Which cores loaders and compute get.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Placement {
    /// Compute has all cores, loaders share the last ones with it.
    Shared,
    /// Loaders have the last cores to themselves, compute has the others.
    Apart,
}

/// What is loaded, waited for and released as one: the units of a pass.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Grouping {
    /// Each block.
    Blocks,
    /// Each layer, as in PIPELOAD.
    Layers,
    /// Runs of layers, as in PipeSwitch: how many layers each has, the sum being all.
    Runs(Vec<usize>),
    /// The whole tape.
    Whole,
}

/// Which blocks are pinned.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PinPlace {
    /// The first of the tape: they hide the first loads of a pass that comes alone.
    Head,
    /// Every so many blocks, evenly: reading overlaps all of compute.
    Spread,
}
