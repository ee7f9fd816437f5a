//! What is asked of answers, and the precisions that are chosen for it.

use super::ladder::{Ladder, LadderError};
use super::planner::plan;
use super::profile::Profile;
use super::wish::{Overrides, PlanError, Planned, Wish};
use thiserror::Error;

/// Longest time that may be asked for: a day.
const MAX_LATENCY_US: f64 = 86_400e6;

/// Within which time a pass is to be computed, and how close its answers are to come to those of the
/// best precision.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Target {
    pub latency_us: Option<f64>,
    /// 1 where they are the same.
    pub accuracy: Option<f64>,
}

/// A choice of precisions, and how it is played.
#[derive(Clone, Debug, PartialEq)]
pub struct Chosen {
    /// Its plan has the variant of each tensor.
    pub planned: Planned,
    /// How close answers are expected to come.
    pub accuracy: f64,
    /// Of the tape.
    pub bytes: u64,
}

/// Why no choice is made for a target.
#[derive(Clone, Debug, Error, PartialEq)]
pub enum TargetError {
    #[error("a latency of {latency_us} us cannot be asked for\ngive one above 0 and up to a day")]
    Latency { latency_us: f64 },
    #[error("an accuracy of {accuracy} cannot be asked for\ngive one from 0 to 1")]
    Accuracy { accuracy: f64 },
    #[error(
        "no precisions answer within {:.1} ms as accurately as is asked: the least time that can be \
         met is {:.1} ms\ngive more time, more memory or less accuracy", .latency_us / 1e3, .least_us / 1e3
    )]
    Unmet { latency_us: f64, least_us: f64 },
    #[error(transparent)]
    Plan(#[from] PlanError),
    #[error(transparent)]
    Ladder(#[from] LadderError),
}

/// The choice that is expected to be most accurate among those that keep to a target; where that asks
/// for no time, the fastest.
///
/// # Errors
/// A target that nobody can ask for; [`TargetError::Unmet`] with the least time that can be met; what
/// stands against any plan.
pub fn plan_target(
    profile: &Profile,
    ladder: &Ladder,
    wish: &Wish,
    target: &Target,
    fixed: &Overrides,
) -> Result<Chosen, TargetError> {
    let Target { latency_us, accuracy } = *target;
    if let Some(latency_us) = latency_us.filter(|us| !(*us > 0.0 && *us <= MAX_LATENCY_US)) {
        return Err(TargetError::Latency { latency_us });
    }
    if let Some(accuracy) = accuracy.filter(|accuracy| !(0.0..=1.0).contains(accuracy)) {
        return Err(TargetError::Accuracy { accuracy });
    }
    profile.check_ladder(ladder)?;
    let widths = ladder.tensors.iter().map(|tensor| tensor.rungs.len()).max().unwrap_or(1);
    let mut least_us = f64::INFINITY;
    let mut best: Option<Chosen> = None;
    for width in 0..widths {
        // One precision for all, as far as each tensor has it.
        let rung = |rungs: usize| width.min(rungs - 1);
        let choice: Vec<usize> = ladder.tensors.iter().map(|t| rung(t.rungs.len())).collect();
        let expected = ladder.accuracy(&choice);
        if accuracy.is_some_and(|accuracy| expected < accuracy) {
            continue;
        }
        let mut planned = plan(&profile.with_choice(ladder, &choice)?, wish, fixed)?;
        planned.plan.variants = ladder.variants(&choice);
        let us = planned.forecast.latency_us;
        least_us = least_us.min(us);
        let is_better = |best: &Chosen| match latency_us {
            Some(_) => expected > best.accuracy,
            None => us < best.planned.forecast.latency_us,
        };
        if latency_us.is_none_or(|most_us| us <= most_us) && best.as_ref().is_none_or(is_better) {
            best = Some(Chosen { planned, accuracy: expected, bytes: ladder.bytes(&choice) });
        }
    }
    let latency_us = latency_us.unwrap_or(f64::INFINITY);
    best.ok_or(TargetError::Unmet { latency_us, least_us })
}
