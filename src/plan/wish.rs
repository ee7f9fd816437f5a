//! What is wished of a plan, and what the planner answers.

use super::forecast::{Forecast, ForecastError};
use super::{Dealing, Grouping, PinPlace, Placement, Plan, Release, Way};
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// Most tokens of a pass that is planned: far beyond any model's, and from what overflows.
pub const MAX_TOKENS: u64 = 1_000_000;

/// What a plan is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wish {
    /// Of the whole process.
    pub budget_bytes: u64,
    /// Of the passes to come.
    pub tokens: u64,
    pub usage: Usage,
}

/// How passes come. It decides between pins at the head and spread ones where the forecast does
/// not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Usage {
    /// Each alone, long after the one before.
    OneShot,
    /// One after the other.
    Cyclic,
}

/// What is set by hand. What is not is searched, or where there is nothing to search (grouping,
/// turns, release) the tape's own way.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Overrides {
    pub source: Option<Way>,
    pub loaders: Option<usize>,
    pub threads: Option<usize>,
    pub placement: Option<Placement>,
    pub grouping: Option<Grouping>,
    pub turns: Option<Dealing>,
    pub release: Option<Release>,
    pub window_bytes: Option<u64>,
    pub pin_bytes: Option<u64>,
    pub pins: Option<PinPlace>,
}

impl Overrides {
    /// What is set here, and of the rest what is set in `other`.
    pub fn or(self, other: Overrides) -> Overrides {
        Overrides {
            source: self.source.or(other.source),
            loaders: self.loaders.or(other.loaders),
            threads: self.threads.or(other.threads),
            placement: self.placement.or(other.placement),
            grouping: self.grouping.or(other.grouping),
            turns: self.turns.or(other.turns),
            release: self.release.or(other.release),
            window_bytes: self.window_bytes.or(other.window_bytes),
            pin_bytes: self.pin_bytes.or(other.pin_bytes),
            pins: self.pins.or(other.pins),
        }
    }
}

/// A plan with what it will take.
#[derive(Clone, Debug, PartialEq)]
pub struct Planned {
    pub plan: Plan,
    /// Of a pass that finds its pins.
    pub forecast: Forecast,
    /// Bytes that the plan may come to hold: of the process, graph, activations, window and pins.
    pub granted_bytes: u64,
    /// Whether all of the model stays in memory.
    pub fits: bool,
    /// The fastest that differ in kind, at most two.
    pub alternatives: Vec<Alternative>,
}

/// Another plan that was tried.
#[derive(Clone, Debug, PartialEq)]
pub struct Alternative {
    pub plan: Plan,
    pub forecast: Forecast,
    pub differs_in: Kind,
}

/// The most telling difference between two plans.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Source,
    Placement,
    Loaders,
    Threads,
    Pins,
}

/// Why there is no plan.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum PlanError {
    #[error("a budget of {} is too small for {model} ({variant}) with {tokens} tokens: the least that would do is {}\ngive it more memory, fewer tokens or a variant of less", mib(*.budget_bytes), mib(*.least_bytes))]
    Budget { model: String, variant: String, tokens: u64, budget_bytes: u64, least_bytes: u64 },
    #[error(transparent)]
    Forecast(#[from] ForecastError),
}

/// Bytes rounded up to tenths of a MiB.
pub(super) fn mib(bytes: u64) -> String {
    let tenths = (u128::from(bytes) * 10).div_ceil(1 << 20);
    format!("{}.{} MiB", tenths / 10, tenths % 10)
}
