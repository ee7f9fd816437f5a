//! What this kernel offers of what older or otherwise configured ones lack.
//!
//! Probed once; code asks the value. [`WITHOUT`] takes features away, so that what stands in for
//! them can be tried on a kernel that has them all. What every kernel has, in one size or another,
//! is not here: the page size is [`map::page_size`](super::map::page_size). Instruction sets of the
//! processor are probed and remembered by the standard library and by tract.

use super::cgroup::MemoryCgroup;
use super::page::page_size;
use memmap2::{Advice, MmapOptions};
use std::fs;
use std::sync::OnceLock;

/// The environment variable that takes features away, by their names with commas between.
pub const WITHOUT: &str = "HERMES_WITHOUT";

/// What not every kernel has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Feature {
    /// MADV_POPULATE_READ of madvise(2).
    Populate,
    /// O_DIRECT of open(2). File systems differ: it is tried on each file.
    Direct,
    /// STATX_DIOALIGN of statx(2). File systems differ: it is asked of each file.
    DirectAlign,
    /// RENAME_EXCHANGE of renameat2(2). File systems differ: it is tried at each exchange.
    Exchange,
    /// Pressure stall information, in /proc/pressure and memory.pressure of cgroups.
    Psi,
    /// A memory cgroup of version 1 or 2 around this process.
    Cgroup,
}

/// All of them: the name, what it is, and what is done without it.
const FEATURES: [(Feature, &str, &str, &str); 6] = [
    (
        Feature::Populate,
        "populate",
        "MADV_POPULATE_READ (Linux 5.14)",
        "weights are read into memory of our own, not mapped",
    ),
    (Feature::Direct, "direct", "O_DIRECT", "weights are read through the page cache"),
    (
        Feature::DirectAlign,
        "dioalign",
        "STATX_DIOALIGN (Linux 6.1)",
        "direct reads are aligned to 4096 bytes",
    ),
    (
        Feature::Exchange,
        "exchange",
        "RENAME_EXCHANGE (Linux 3.15)",
        "a version that is installed again is moved aside first",
    ),
    (
        Feature::Psi,
        "psi",
        "PSI (Linux 4.20; it may want psi=1 on the kernel's command line)",
        "how short memory is, is looked for in the figures",
    ),
    (
        Feature::Cgroup,
        "cgroup",
        "a memory cgroup (it may want cgroup_enable=memory on the kernel's command line)",
        "MemoryMax= has no effect, and the budget alone limits the memory",
    ),
];

/// What there is.
#[derive(Clone, Debug)]
pub struct Capabilities {
    lacking: Vec<(Feature, Why)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Why {
    /// The kernel has it not, or was told to leave it off.
    Missing,
    /// By [`WITHOUT`].
    TakenAway,
}

impl Capabilities {
    /// This process's, probed at the first call, which also warns of unknown names in [`WITHOUT`].
    pub fn get() -> &'static Capabilities {
        static FOUND: OnceLock<Capabilities> = OnceLock::new();
        FOUND.get_or_init(|| {
            let names = std::env::var_os(WITHOUT).unwrap_or_default();
            let names = names.to_string_lossy();
            let (taken, unknown) = parse(&names);
            for name in unknown {
                let known = FEATURES.map(|(_, name, _, _)| name).join(", ");
                log::warn!("{WITHOUT}: \"{name}\" is none of {known}");
            }
            Capabilities::find(&taken, is_there)
        })
    }

    fn find(taken: &[Feature], is_there: impl Fn(Feature) -> bool) -> Capabilities {
        let why = |feature| match taken.contains(&feature) {
            true => Some(Why::TakenAway),
            false => (!is_there(feature)).then_some(Why::Missing),
        };
        let lacking = FEATURES.iter().filter_map(|(feature, ..)| Some((*feature, why(*feature)?)));
        Capabilities { lacking: lacking.collect() }
    }

    /// Whether it can be used; of what file systems differ in, whether it may be tried.
    pub fn has(&self, feature: Feature) -> bool {
        self.lacking.iter().all(|(lacking, _)| *lacking != feature)
    }

    /// The memory cgroup of this process, where there is one to use.
    pub fn memory_cgroup(&self) -> Option<MemoryCgroup> {
        self.has(Feature::Cgroup).then(MemoryCgroup::find).flatten()
    }

    /// A sentence on each feature that is not there: what it is and what is done without it.
    pub fn shortcomings(&self) -> Vec<String> {
        let sentence = |(feature, why): &(Feature, Why)| {
            let (_, name, what, without) =
                FEATURES.iter().find(|row| row.0 == *feature).expect("every feature has a row");
            match why {
                Why::Missing => format!("this kernel lacks {what}: {without}"),
                Why::TakenAway => format!("{WITHOUT} takes {name} away: {without}"),
            }
        };
        self.lacking.iter().map(sentence).collect()
    }
}

/// The features that `names` name, and the names that are of none.
fn parse(names: &str) -> (Vec<Feature>, Vec<&str>) {
    let names = names.split(',').map(str::trim).filter(|name| !name.is_empty());
    let (mut taken, mut unknown) = (vec![], vec![]);
    for name in names {
        match FEATURES.iter().find(|row| row.1 == name) {
            Some((feature, ..)) => taken.push(*feature),
            None => unknown.push(name),
        }
    }
    (taken, unknown)
}

/// Whether the kernel has it, as far as that can be told without a file.
fn is_there(feature: Feature) -> bool {
    match feature {
        Feature::Populate => {
            let probe = MmapOptions::new().len(page_size()).map_anon();
            probe.is_ok_and(|map| map.advise(Advice::PopulateRead).is_ok())
        }
        // The file may be there and reading it refused: PSI is built in and off.
        Feature::Psi => fs::read("/proc/pressure/memory").is_ok(),
        Feature::Cgroup => MemoryCgroup::find().is_some(),
        Feature::Direct | Feature::DirectAlign | Feature::Exchange => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_features() {
        let check = |names: &str, expected: &[Feature], strangers: &[&str]| {
            assert_eq!(parse(names), (expected.to_vec(), strangers.to_vec()), "{names}");
        };
        check("", &[], &[]);
        check("psi", &[Feature::Psi], &[]);
        check("populate, direct,", &[Feature::Populate, Feature::Direct], &[]);
        check("io_uring,PSI,cgroup", &[Feature::Cgroup], &["io_uring", "PSI"]);
    }

    #[test]
    fn what_is_missing_and_what_was_taken_away_is_told() {
        let found = Capabilities::find(&[Feature::Direct], |feature| feature != Feature::Populate);
        let has = |feature| found.has(feature);
        assert!(!has(Feature::Populate) && !has(Feature::Direct) && has(Feature::Psi));
        let expected = [
            "this kernel lacks MADV_POPULATE_READ (Linux 5.14): weights are read into memory of \
             our own, not mapped",
            "HERMES_WITHOUT takes direct away: weights are read through the page cache",
        ];
        assert_eq!(found.shortcomings(), expected);
        let whole = Capabilities::find(&[], |_| true);
        assert!(whole.shortcomings().is_empty() && whole.has(Feature::Cgroup));
    }
}
