//! How an engine is set up, and what that comes to where nothing was measured.

use super::error::EngineError;
use super::targets::Targets;
use crate::plan::{Dealing, Grouping, Overrides, PinPlace, Placement, Plan, Release, Way};
use crate::store::layer_file::BLOCK_BYTES;
use crate::store::manifest::Manifest;
use crate::stream::Faults;
use crate::sys::disk::Disk;
use std::path::PathBuf;

/// Tokens that requests are expected to have, where nobody says.
pub const EXPECTED_TOKENS: u64 = 128;

/// A variant that a model has.
pub(super) fn checked_variant(manifest: &Manifest, wanted: &str) -> Result<String, EngineError> {
    match manifest.variants.iter().any(|known| known == wanted) {
        true => Ok(wanted.to_owned()),
        false => Err(EngineError::UnknownVariant {
            model: manifest.model.clone(),
            variant: wanted.to_owned(),
            known: manifest.variants.clone(),
        }),
    }
}

/// How an engine is set up.
#[derive(Clone, Debug)]
pub struct Config {
    /// Folder of the store.
    pub store: PathBuf,
    /// Limit of everything the process holds.
    pub budget_bytes: u64,
    /// Bytes of tape ahead of and under compute; by default what suits the budget.
    pub window_bytes: Option<u64>,
    /// Compute threads; by default one a core.
    pub threads: Option<usize>,
    /// Loader threads; by default one for two cores. On two cores with an NVMe disk one loader
    /// came within 3 % of the limit, two within 20 %: they take compute's cores from it.
    pub loaders: Option<usize>,
    /// How blocks are brought in, mapped where there are no direct reads; by default what suits
    /// the disk's read-ahead.
    pub source: Option<Way>,
    /// Variant of every model; by default each model's best.
    pub variant: Option<String>,
    /// Whether a model that lacks it is served in its best instead of being refused.
    pub best_instead: bool,
    /// Most bytes of each model's tape that stay in memory; the ledger grants fewer where the
    /// budget has other uses.
    pub pin_bytes: u64,
    pub policy: Policy,
    /// Whether models are measured when there is nothing else to do; their plans follow.
    pub profiles: bool,
    /// Where profiles are kept; beside the models by default, those of an imitated disk nowhere.
    pub profile_folder: Option<PathBuf>,
    /// Tokens of the requests that plans are made for.
    pub tokens: u64,
    /// Within which time models are to answer, and how accurately.
    pub targets: Targets,
    pub disk: DiskKind,
    /// Whether graphs that were never imported are tried by a copy of this program before: its
    /// `main` must begin with [`rehearsal::performed`](super::rehearsal::performed).
    pub rehearses: bool,
}

impl Config {
    /// A streamed engine over `store` within `budget_bytes`, all else decided by the program.
    pub fn new(store: impl Into<PathBuf>, budget_bytes: u64) -> Config {
        Config {
            store: store.into(),
            budget_bytes,
            window_bytes: None,
            threads: None,
            loaders: None,
            variant: None,
            best_instead: false,
            source: None,
            pin_bytes: u64::MAX,
            policy: Policy::Tape,
            profiles: false,
            profile_folder: None,
            tokens: EXPECTED_TOKENS,
            targets: Targets::default(),
            disk: DiskKind::Board,
            rehearses: false,
        }
    }

    /// The variant in which a model is served.
    ///
    /// # Errors
    ///
    /// [`EngineError::UnknownVariant`], unless its best is taken instead.
    pub(super) fn variant_of(&self, manifest: &Manifest) -> Result<String, EngineError> {
        let best = manifest.variants.first().map_or("f32", String::as_str);
        match checked_variant(manifest, self.variant.as_deref().unwrap_or(best)) {
            Err(_) if self.best_instead => Ok(best.to_owned()),
            checked => checked,
        }
    }

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
            source: self.source.unwrap_or_else(|| usual_way(Disk::below(&self.store).as_ref())),
            loaders: self.loaders.unwrap_or(cores / 2).max(1),
            threads: self.threads.unwrap_or(cores).max(1),
            placement: Placement::Shared,
            grouping: Grouping::Blocks,
            turns: Dealing::Next,
            release: Release::AfterUse,
            window_bytes,
            pin_bytes: self.pin_bytes,
            pins: PinPlace::Spread,
            variants: vec![],
        }
    }
}

/// What blocks come from.
#[derive(Clone, Copy, Debug)]
pub enum DiskKind {
    /// The board's disk.
    Board,
    /// The same, slowed down.
    Throttled { bytes_per_s: u64 },
    /// The same, failing by seed.
    Faulty(Faults),
}

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

/// How blocks are brought in where nothing was measured. A kernel that reads less ahead than a block
/// is long, and 128 KiB are usual, needs several requests for a mapped one, each after the other.
fn usual_way(disk: Option<&Disk>) -> Way {
    let is_memory = disk.is_none_or(Disk::is_memory);
    let device = disk.and_then(|disk| disk.device.as_ref());
    match device.and_then(|device| device.read_ahead_kib) {
        Some(kib) if kib << 10 < BLOCK_BYTES && !is_memory => Way::Direct,
        _ => Way::Mapped,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::disk::Device;

    #[test]
    fn little_read_ahead_calls_for_direct_reads() {
        let check = |name: &str, read_ahead_kib, expected| {
            let device = Device { name: name.into(), read_ahead_kib, ..Device::default() };
            let disk = Disk { file_system: "ext4".into(), device: Some(device) };
            assert_eq!(usual_way(Some(&disk)), expected, "{disk:?}");
        };
        check("mmcblk0", Some(128), Way::Direct);
        check("mmcblk0", Some(1023), Way::Direct);
        check("sda", Some(1024), Way::Mapped);
        check("vda", Some(8192), Way::Mapped);
        check("sda", None, Way::Mapped);
        check("zram0", Some(128), Way::Mapped);
        assert_eq!(usual_way(None), Way::Mapped);
        assert_eq!(usual_way(Some(&Disk::default())), Way::Mapped, "no device");
    }
}
