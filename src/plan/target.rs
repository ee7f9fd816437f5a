//! What answers are to be like, and what is chosen for that.

use super::forecast::ForecastError;
use super::ladder::{Ladder, LadderError};
use super::wish::{PlanError, Planned, mib};
use thiserror::Error;

/// The part of a latency that a pass may take by its forecast: what is measured is within a tenth
/// of that.
pub(super) const AIM: f64 = 0.97;

/// Longest latency that is aimed at: an hour.
const MAX_LATENCY_US: f64 = 3.6e9;

/// What is asked of answers: either, or both.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Target {
    /// Longest that a pass takes.
    pub latency_us: Option<f64>,
    /// Least accuracy, 1 being answers of the best variants: their cosine, or its equal.
    pub accuracy: Option<f64>,
}

/// The precisions and the plan that meet a target.
#[derive(Clone, Debug, PartialEq)]
pub struct Chosen {
    /// The plan names the variant of each tensor.
    pub planned: Planned,
    /// Index of each tensor's rung on the ladder.
    pub rungs: Vec<usize>,
    /// Expected of answers.
    pub accuracy: f64,
    /// Of the tape.
    pub bytes: u64,
    /// That a weight takes in the mean.
    pub bits: f64,
}

/// Why nothing meets a target.
#[derive(Clone, Debug, Error, PartialEq)]
pub enum TargetError {
    #[error("there is no target: ask for a latency, an accuracy or both")]
    Nothing,
    #[error("a latency of {} cannot be aimed at\nit is more than 0 and at most an hour", ms(*latency_us))]
    Latency { latency_us: f64 },
    #[error(
        "an accuracy of {accuracy} cannot be aimed at\nit is more than 0 and at most 1, which is that of the best variants"
    )]
    Accuracy { accuracy: f64 },
    #[error("{model} with {tokens} tokens cannot answer within {}: the least that can be met is {}\n{}", ms(*wanted_us), least_ms(*least_us), more_memory(more_bytes.as_ref()))]
    TooSoon {
        model: String,
        tokens: u64,
        wanted_us: f64,
        least_us: f64,
        /// Of budget, with which it could.
        more_bytes: Option<u64>,
    },
    #[error(
        "{model} has no variants with an accuracy of {accuracy}: the best have {best:.4}\nask for less, or shard it again with more variants"
    )]
    TooExact { model: String, accuracy: f64, best: f64 },
    #[error("{model} cannot answer within {} with an accuracy of {accuracy}: the best within that time is {best:.4}, and that accuracy takes {}\nask for less, or give it more memory", ms(*wanted_us), least_ms(*least_us))]
    Both { model: String, wanted_us: f64, accuracy: f64, best: f64, least_us: f64 },
    #[error(transparent)]
    Ladder(#[from] LadderError),
    #[error(transparent)]
    Plan(#[from] PlanError),
}

impl From<ForecastError> for TargetError {
    fn from(error: ForecastError) -> TargetError {
        TargetError::Plan(error.into())
    }
}

impl Chosen {
    /// A choice as it is planned.
    pub(super) fn new(ladder: &Ladder, rungs: Vec<usize>, mut planned: Planned) -> Chosen {
        let variants = ladder.variants(&rungs);
        let others = planned.alternatives.iter_mut().map(|other| &mut other.plan);
        others.for_each(|plan| plan.variants.clone_from(&variants));
        planned.plan.variants = variants;
        Chosen {
            planned,
            accuracy: ladder.accuracy(&rungs),
            bytes: ladder.bytes(&rungs),
            bits: ladder.bits(&rungs),
            rungs,
        }
    }
}

impl Target {
    /// Whether it can be aimed at.
    ///
    /// # Errors
    /// Neither a latency nor an accuracy; one that is no figure, or out of its range.
    pub fn check(&self) -> Result<(), TargetError> {
        let is_within = |value: f64, most: f64| value.is_finite() && value > 0.0 && value <= most;
        match *self {
            Target { latency_us: None, accuracy: None } => Err(TargetError::Nothing),
            Target { latency_us: Some(us), .. } if !is_within(us, MAX_LATENCY_US) => {
                Err(TargetError::Latency { latency_us: us })
            }
            Target { accuracy: Some(accuracy), .. } if !is_within(accuracy, 1.0) => {
                Err(TargetError::Accuracy { accuracy })
            }
            Target { .. } => Ok(()),
        }
    }
}

/// A time that was asked for, in milliseconds.
fn ms(us: f64) -> String {
    format!("{} ms", us / 1e3)
}

/// A time to ask for: whole milliseconds, as people write them, rounded up.
fn least_ms(us: f64) -> String {
    format!("{} ms", (us / 1e3).ceil())
}

fn more_memory(more_bytes: Option<&u64>) -> String {
    match more_bytes {
        Some(bytes) => format!("give it that long, or {} more of memory", mib(*bytes)),
        None => "give it that long: more memory alone would not do".to_owned(),
    }
}
