//! How fast texts are written, by model.

use super::traffic::{BOUNDS_US, Times};
use crate::sys::lock::lock;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

/// Models that have times of their own; those of others are counted without their names.
const MAX_SERIES: usize = 48;

/// Times until texts began, and from token to token.
#[derive(Debug, Default)]
pub struct Speed(Mutex<Speeds>);

/// The figures of [`Speed`] at one moment, by model.
#[derive(Clone, Debug, Default)]
pub struct Speeds {
    /// From a text's being asked for to its first token.
    pub first: BTreeMap<Arc<str>, Times>,
    /// From a token to the next.
    pub next: BTreeMap<Arc<str>, Times>,
}

impl Speed {
    /// Counts the time until the first token.
    pub fn first(&self, model: &Arc<str>, us: u64) {
        count(&mut lock(&self.0).first, model, us);
    }

    /// Counts the time until a later token.
    pub fn next(&self, model: &Arc<str>, us: u64) {
        count(&mut lock(&self.0).next, model, us);
    }

    /// The figures now.
    pub fn figures(&self) -> Speeds {
        lock(&self.0).clone()
    }
}

fn count(times: &mut BTreeMap<Arc<str>, Times>, model: &Arc<str>, us: u64) {
    let is_known = times.len() < MAX_SERIES || times.contains_key(model);
    let model = if is_known { Arc::clone(model) } else { Arc::from("") };
    let times = times.entry(model).or_default();
    times.counts[BOUNDS_US.partition_point(|bound| *bound < us)] += 1;
    times.sum_us = times.sum_us.saturating_add(us);
}
