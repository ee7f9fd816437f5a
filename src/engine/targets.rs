//! Within which time models are to answer, and how accurately.

use crate::plan::Target;
use crate::sys::lock::lock;
use std::collections::BTreeMap;
use std::sync::Mutex;

/// The targets of an engine's models.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Targets {
    /// Of every model, as far as its own says nothing.
    pub all: Target,
    pub by_model: BTreeMap<String, Target>,
}

impl Targets {
    /// What a model is to keep to.
    pub fn of(&self, model: &str) -> Target {
        self.by_model.get(model).map_or(self.all, |own| merged(own, &self.all))
    }
}

/// A target, and what it leaves open as another has it.
pub(super) fn merged(target: &Target, other: &Target) -> Target {
    Target {
        latency_us: target.latency_us.or(other.latency_us),
        accuracy: target.accuracy.or(other.accuracy),
    }
}

/// A target as those are told apart that have one: also one of figures that are none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TargetKey {
    latency_bits: Option<u64>,
    accuracy_bits: Option<u64>,
}

impl TargetKey {
    /// That of a target.
    pub(super) fn of(target: &Target) -> TargetKey {
        let Target { latency_us, accuracy } = *target;
        let [latency_bits, accuracy_bits] =
            [latency_us, accuracy].map(|figure| figure.map(f64::to_bits));
        TargetKey { latency_bits, accuracy_bits }
    }

    /// The target.
    pub(super) fn target(self) -> Target {
        let [latency_us, accuracy] =
            [self.latency_bits, self.accuracy_bits].map(|bits| bits.map(f64::from_bits));
        Target { latency_us, accuracy }
    }
}

/// Whether a target says anything.
pub(super) fn is_set(target: &Target) -> bool {
    target.latency_us.is_some() || target.accuracy.is_some()
}

/// The targets as they are now, which somebody may change.
#[derive(Debug, Default)]
pub(super) struct SharedTargets(Mutex<Targets>);

impl SharedTargets {
    /// These, to begin with.
    pub fn new(targets: Targets) -> SharedTargets {
        SharedTargets(Mutex::new(targets))
    }

    /// What a model is to keep to.
    pub fn of(&self, model: &str) -> Target {
        lock(&self.0).of(model)
    }

    /// Whether any model has one.
    pub fn are_set(&self) -> bool {
        let targets = lock(&self.0);
        is_set(&targets.all) || targets.by_model.values().any(is_set)
    }

    /// Whether they changed.
    pub fn set(&self, targets: Targets) -> bool {
        let mut known = lock(&self.0);
        let has_changed = *known != targets;
        *known = targets;
        has_changed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_models_own_target_comes_before_that_of_all() {
        let target = |latency_us, accuracy| Target { latency_us, accuracy };
        let own = target(None, Some(0.9));
        let targets = Targets {
            all: target(Some(4e5), Some(0.99)),
            by_model: BTreeMap::from([("bert".to_owned(), own)]),
        };
        assert_eq!(targets.of("bert"), target(Some(4e5), Some(0.9)));
        assert_eq!(targets.of("gpt2"), targets.all);
        let shared = SharedTargets::new(targets.clone());
        assert!(!shared.set(targets) && shared.set(Targets::default()));
        assert!(!is_set(&shared.of("bert")));
    }

    /// A target that was no figure was in a line that nobody found: the engine took turns for ever.
    #[test]
    fn every_target_is_equal_to_itself() {
        for target in [f64::NAN, -0.0, 0.5]
            .map(|accuracy| Target { latency_us: Some(1.0), accuracy: Some(accuracy) })
        {
            let key = TargetKey::of(&target);
            assert_eq!(key, TargetKey::of(&key.target()));
            assert_ne!(key, TargetKey::of(&Target { latency_us: None, ..target }));
        }
    }
}
