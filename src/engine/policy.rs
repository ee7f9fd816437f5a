//! Which plan a model's passes follow: the program's own, one of the papers', or a given one.

use super::config::Policy;
use super::tape::Tape;
use crate::plan::{Dealing, Grouping, Placement, Plan, Release, largest_unit_bytes};

impl Policy {
    /// The plan for a tape whose blocks take `held_bytes` each, where nothing was measured.
    pub(super) fn plan(&self, tape: &Tape, held_bytes: &[u64], base: Plan) -> Plan {
        let whole_bytes: u64 = held_bytes.iter().sum();
        let paper = Plan { placement: Placement::Shared, pin_bytes: 0, ..base.clone() };
        match self {
            Policy::Tape => base,
            Policy::Fixed(plan) => plan.clone(),
            Policy::LoadAll => Plan {
                loaders: 1,
                grouping: Grouping::Whole,
                release: Release::AtEnd,
                window_bytes: whole_bytes,
                ..paper
            },
            Policy::PipeSwitch => Plan {
                loaders: 1,
                grouping: Grouping::Layers,
                release: Release::AtEnd,
                window_bytes: whole_bytes,
                ..paper
            },
            Policy::PipeLoad { agents } => {
                let agents = (*agents).max(1);
                let layers = tape.units(&Grouping::Layers);
                let largest = largest_unit_bytes(&layers, held_bytes);
                Plan {
                    loaders: agents,
                    grouping: Grouping::Layers,
                    turns: Dealing::Stride,
                    window_bytes: (largest * (agents as u64 + 1)).min(whole_bytes),
                    ..paper
                }
            }
        }
    }
}
