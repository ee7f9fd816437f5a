//! What is measured: the policies of the papers, and the two times that bound them.

use anyhow::{Context, Result};
use hermes::store::ModelDir;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// A measurement of the experiment, by its name in the tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub enum Step {
    /// A pass by a policy.
    Pass(Policy),
    /// The tape played without computing: T_io.
    Play,
    /// A pass with everything pinned: T_compute.
    Resident,
}

/// How a pass moves weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Policy {
    /// Everything is loaded, then computed.
    LoadAll,
    /// One loader runs ahead of compute, nothing is released.
    PipeSwitch,
    /// Whole layers, loaded by several agents in a stride, released after use.
    PipeLoad { agents: usize },
    /// Blocks through a window.
    Tape,
}

/// The policies of the paper's tables and ours.
pub const POLICIES: [Policy; 7] = [
    Policy::LoadAll,
    Policy::PipeSwitch,
    Policy::PipeLoad { agents: 1 },
    Policy::PipeLoad { agents: 2 },
    Policy::PipeLoad { agents: 4 },
    Policy::PipeLoad { agents: 6 },
    Policy::Tape,
];

const MAX_AGENTS: usize = 64;

/// Bytes of a model that decide what a policy holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// All layer files of the variant.
    pub whole_bytes: u64,
    pub largest_layer_bytes: u64,
}

impl Shape {
    /// Of a model's variant; its best where none is named.
    pub fn of(dir: &ModelDir, variant: Option<&str>) -> Result<Shape> {
        let manifest = &dir.manifest;
        let best = manifest.variants.first().map(String::as_str);
        let variant = variant.or(best).context("the model has no variant")?;
        let sizes = manifest.layers.iter().map(|layer| {
            let file = layer.files.get(variant);
            file.map(|file| file.bytes)
                .with_context(|| format!("model {} has no variant {variant}", manifest.model))
        });
        let sizes = sizes.collect::<Result<Vec<u64>>>()?;
        let largest_layer_bytes = sizes.iter().copied().max().unwrap_or(0);
        Ok(Shape { whole_bytes: sizes.iter().sum(), largest_layer_bytes })
    }
}

impl Step {
    /// Bytes of weights that it may hold at once, at most.
    pub fn weight_bytes(self, shape: Shape, window_bytes: u64) -> u64 {
        match self {
            Step::Resident | Step::Pass(Policy::LoadAll | Policy::PipeSwitch) => shape.whole_bytes,
            Step::Pass(Policy::PipeLoad { agents }) => {
                (shape.largest_layer_bytes * (agents as u64 + 1)).min(shape.whole_bytes)
            }
            Step::Play | Step::Pass(Policy::Tape) => window_bytes,
        }
    }
}

impl Policy {
    /// The engine's name for it.
    pub fn engine(self) -> hermes::engine::Policy {
        match self {
            Policy::LoadAll => hermes::engine::Policy::LoadAll,
            Policy::PipeSwitch => hermes::engine::Policy::PipeSwitch,
            Policy::PipeLoad { agents } => hermes::engine::Policy::PipeLoad { agents },
            Policy::Tape => hermes::engine::Policy::Tape,
        }
    }
}

impl FromStr for Policy {
    type Err = String;

    fn from_str(text: &str) -> Result<Policy, String> {
        let agents = text.strip_prefix("pipeload-").and_then(|agents| agents.parse().ok());
        match (text, agents) {
            ("load-all", _) => Ok(Policy::LoadAll),
            ("pipeswitch", _) => Ok(Policy::PipeSwitch),
            ("tape", _) => Ok(Policy::Tape),
            (_, Some(agents)) if (1..=MAX_AGENTS).contains(&agents) => {
                Ok(Policy::PipeLoad { agents })
            }
            _ => Err("give load-all, pipeswitch, pipeload-N with N agents, or tape".to_string()),
        }
    }
}

impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Policy::LoadAll => f.pad("load-all"),
            Policy::PipeSwitch => f.pad("pipeswitch"),
            Policy::PipeLoad { agents } => f.pad(&format!("pipeload-{agents}")),
            Policy::Tape => f.pad("tape"),
        }
    }
}

impl FromStr for Step {
    type Err = String;

    fn from_str(text: &str) -> Result<Step, String> {
        match text {
            "T_io" => Ok(Step::Play),
            "T_compute" => Ok(Step::Resident),
            _ => text.parse().map(Step::Pass),
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Step::Pass(policy) => policy.fmt(f),
            Step::Play => f.pad("T_io"),
            Step::Resident => f.pad("T_compute"),
        }
    }
}

impl From<Step> for String {
    fn from(step: Step) -> String {
        step.to_string()
    }
}

impl TryFrom<String> for Step {
    type Error = String;

    fn try_from(text: String) -> Result<Step, String> {
        text.parse()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_come_back() {
        let passes = POLICIES.map(Step::Pass);
        for step in passes.into_iter().chain([Step::Play, Step::Resident]) {
            assert_eq!(step.to_string().parse(), Ok(step));
        }
        for wrong in ["", "pipeload", "pipeload-0", "pipeload-65", "pipeload-x", "tapes"] {
            assert!(wrong.parse::<Policy>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn policies_hold_what_the_papers_say() {
        let shape = Shape { whole_bytes: 1000, largest_layer_bytes: 50 };
        let held = |name: &str| name.parse::<Step>().unwrap().weight_bytes(shape, 16);
        assert_eq!((held("load-all"), held("pipeswitch"), held("T_compute")), (1000, 1000, 1000));
        assert_eq!((held("pipeload-1"), held("pipeload-6")), (100, 350));
        assert_eq!((held("pipeload-40"), held("tape"), held("T_io")), (1000, 16, 16));
    }
}
