//! What is set for one model: the keys of `[models.NAME]`.

use super::{Accuracy, Key, Latency, Settings, live};
use crate::engine::{Engine, Targets};
use crate::values::target;
use serde::Deserialize;

/// What answers of one model are to be, where it is not as for all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ModelSettings {
    /// Time within which they are to be there.
    pub latency: Option<Latency>,
    /// How close they are to be to those of the best variant.
    pub accuracy: Option<Accuracy>,
}

/// The section that has a table for each model.
pub const SECTION: &str = "models";

/// The keys of one model.
pub const MODEL_KEYS: [Key; 2] = [live("latency", ""), live("accuracy", "")];

impl Settings {
    /// Within which time models are to answer, and how accurately.
    pub fn targets(&self) -> Targets {
        let of_model =
            |(name, of): (&String, &ModelSettings)| (name.clone(), target(of.latency, of.accuracy));
        Targets {
            all: target(self.latency, self.accuracy),
            by_model: self.models.iter().map(of_model).collect(),
        }
    }

    /// Says of which models there are settings and no version yet: they may be installed later. Lists
    /// the store.
    pub fn tell_missing_models(&self, engine: &Engine) {
        if self.models.is_empty() {
            return;
        }
        match engine.models() {
            Ok(known) => {
                for model in self.models.keys().filter(|model| !known.contains(model)) {
                    log::info!(
                        "[{SECTION}.{model}] of the config: the store has no such model now"
                    );
                }
            }
            Err(error) => log::warn!("the store's models cannot be listed: {error}"),
        }
    }
}
