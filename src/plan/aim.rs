//! From a target to the precisions and the plan that meet it.

use super::ladder::Ladder;
use super::profile::Profile;
use super::seek::{Judged, Seek};
use super::target::{AIM, Chosen, Target, TargetError};
use super::wish::{Overrides, Wish};

/// What a divergence may exceed the asked one by, for sums of so many figures are rounded.
const ROUNDING: f64 = 1e-12;

/// The precision of each tensor, and the plan to play them by, that meet a target: of a latency, the
/// most accurate that the forecast lets in; of an accuracy, the fastest that has it; of both, the
/// most accurate within the latency if that is enough.
///
/// `profile` is of one of the ladder's variants. Takes a few dozen plans' time; reads nothing.
///
/// # Errors
/// A target that cannot be aimed at; one that is not met, with the least that could be; a ladder
/// that the profile does not know enough about; a budget that not even the least variants fit.
pub fn plan_target(
    profile: &Profile,
    ladder: &Ladder,
    wish: &Wish,
    target: &Target,
    fixed: &Overrides,
) -> Result<Chosen, TargetError> {
    target.check()?;
    profile.check_ladder(ladder)?;
    let mut seek = Seek::new(profile, ladder, wish, fixed);
    let found = match (target.latency_us, target.accuracy) {
        (Some(wanted_us), None) => within_latency(&mut seek, wanted_us)?,
        (None, Some(accuracy)) => fastest(&mut seek, accuracy)?,
        (Some(wanted_us), Some(accuracy)) => both(&mut seek, wanted_us, accuracy)?,
        (None, None) => return Err(TargetError::Nothing),
    };
    let most_us = target.latency_us.map_or(f64::INFINITY, |us| us * AIM);
    seek.conclude(found, most_us)
}

/// The most accurate choice that answers within a latency.
fn within_latency(seek: &mut Seek, wanted_us: f64) -> Result<Judged, TargetError> {
    let most_us = wanted_us * AIM;
    let soonest = match seek.best_within(most_us)? {
        Ok(found) => return Ok(found),
        Err(soonest) => soonest,
    };
    Err(TargetError::TooSoon {
        model: seek.profile.model.clone(),
        tokens: seek.wish.tokens,
        wanted_us,
        least_us: least_us(&soonest),
        more_bytes: seek.more_bytes(&soonest, most_us)?,
    })
}

/// The fastest choice of an accuracy.
fn fastest(seek: &mut Seek, accuracy: f64) -> Result<Judged, TargetError> {
    match seek.fastest(1.0 - accuracy + ROUNDING)? {
        Some(found) => Ok(found),
        None => Err(TargetError::TooExact {
            model: seek.profile.model.clone(),
            accuracy,
            best: seek.ladder.accuracy(&seek.ladder.best()),
        }),
    }
}

fn both(seek: &mut Seek, wanted_us: f64, accuracy: f64) -> Result<Judged, TargetError> {
    let best = within_latency(seek, wanted_us)?;
    if best.loss <= 1.0 - accuracy + ROUNDING {
        return Ok(best);
    }
    // The search is not exhaustive: this one may find what that one did not.
    let exact = fastest(&mut seek.again(), accuracy)?;
    match exact.latency_us <= wanted_us * AIM {
        true => Ok(exact),
        false => Err(TargetError::Both {
            model: seek.profile.model.clone(),
            wanted_us,
            accuracy,
            best: (1.0 - best.loss).max(0.0),
            least_us: least_us(&exact),
        }),
    }
}

/// The least latency to ask for that a choice meets, in whole microseconds.
fn least_us(soonest: &Judged) -> f64 {
    (soonest.latency_us / AIM).ceil()
}

#[cfg(test)]
#[path = "aim_tests.rs"]
mod tests;
