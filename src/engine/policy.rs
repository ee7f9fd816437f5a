//! Which plan a model's passes follow: the program's own, one of the papers', or a given one.

use super::service::Config;
use super::sources::{disk_of, usual_way};
use super::tape::Tape;
use crate::plan::{Grouping, Overrides, PinPlace, Placement, Plan, Release, Turns};

/// Whose way of playing a tape is followed. All play the same blocks with the same kernels.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Policy {
    /// Hermes's: blocks flow through a small window.
    #[default]
    Tape,
    /// Everything is loaded before anything is computed.
    LoadAll,
    /// PipeSwitch (OSDI 2020): one loader, layers follow each other, nothing is released before
    /// the end.
    PipeSwitch,
    /// PIPELOAD (Hermes, ICCD 2024): loading agents take layers in turns, and each is released
    /// after its use.
    PipeLoad { agents: usize },
    /// Exactly this.
    Fixed(Plan),
}

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
                    turns: Turns::Stride,
                    window_bytes: (largest * (agents as u64 + 1)).min(whole_bytes),
                    ..paper
                }
            }
        }
    }
}

impl Config {
    /// What of a plan is set by hand.
    pub(super) fn overrides(&self) -> Overrides {
        Overrides {
            source: self.source,
            loaders: self.loaders,
            threads: self.threads,
            window_bytes: self.window_bytes,
            pin_bytes: (self.pin_bytes != u64::MAX).then_some(self.pin_bytes),
            ..Overrides::default()
        }
    }

    /// As many compute threads and loaders as a plan has on so many cores.
    pub(super) fn most_threads(&self, cores: usize) -> (usize, usize) {
        let agents = match self.policy {
            Policy::PipeLoad { agents } => agents,
            _ => cores,
        };
        (self.threads.unwrap_or(cores), self.loaders.unwrap_or(agents))
    }

    /// What suits most boards, with what is set by hand: for models that were not measured.
    pub(super) fn base_plan(&self, cores: usize, window_bytes: u64) -> Plan {
        Plan {
            source: self.source.unwrap_or_else(|| usual_way(disk_of(&self.store).as_ref())),
            loaders: self.loaders.unwrap_or(cores / 2).max(1),
            threads: self.threads.unwrap_or(cores).max(1),
            placement: Placement::Shared,
            grouping: Grouping::Blocks,
            turns: Turns::Next,
            release: Release::AfterUse,
            window_bytes,
            pin_bytes: self.pin_bytes,
            pins: PinPlace::Spread,
        }
    }
}

/// Bytes of memory of the largest unit.
pub(super) fn largest_unit_bytes(units: &[usize], held_bytes: &[u64]) -> u64 {
    if units.is_empty() {
        return held_bytes.iter().copied().max().unwrap_or(0);
    }
    let mut rest = held_bytes;
    let bytes = units.iter().map(|length| {
        let (unit, others) = rest.split_at(*length);
        rest = others;
        unit.iter().sum()
    });
    bytes.max().unwrap_or(0)
}
