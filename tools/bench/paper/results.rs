//! What was measured, and the figures that tables and plots are made of.

use super::disks::Disk;
use super::measure::Measured;
use super::policy::{Policy, Step};
use crate::setup::Times;

/// One measured pass.
#[derive(Clone, Debug)]
pub struct Record {
    pub model: String,
    pub disk: Disk,
    pub step: Step,
    /// From 1.
    pub repeat: usize,
    pub measured: Measured,
}

/// All measured passes, in their order.
#[derive(Clone, Debug, Default)]
pub struct Results {
    pub records: Vec<Record>,
    /// What could not be measured, in sentences.
    pub left_out: Vec<String>,
}

/// The repeats of one step on one disk.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Cell {
    pub latency_ms: Spread,
    /// Most bytes of streamed weights held at once.
    pub weights_mb: f64,
    pub rss_mb: f64,
}

/// Median, least and most of repeated values.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Spread {
    pub median: f64,
    pub low: f64,
    pub high: f64,
}

/// Whether a model's outputs were the same in every pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Agreement {
    Identical { passes: usize },
    Different,
}

impl Spread {
    /// Of microseconds, in milliseconds.
    pub fn of(us: Vec<u64>) -> Spread {
        let ms = |us: u64| us as f64 / 1e3;
        let (low, high) = (us.iter().min().copied(), us.iter().max().copied());
        let median = ms(Times(us).median());
        Spread { median, low: ms(low.unwrap_or(0)), high: ms(high.unwrap_or(0)) }
    }
}

impl Results {
    /// Models in the order in which they were measured.
    pub fn models(&self) -> Vec<&str> {
        distinct(self.records.iter().map(|record| record.model.as_str()))
    }

    /// Disks that a model was measured on, in that order.
    pub fn disks(&self, model: &str) -> Vec<Disk> {
        distinct(self.records.iter().filter(|r| r.model == model).map(|record| record.disk))
    }

    /// Policies that a model was measured with on a disk, in the order of their names.
    pub fn policies(&self, model: &str, disk: Disk) -> Vec<Policy> {
        let here = self.records.iter().filter(|r| r.model == model && r.disk == disk);
        let mut found = distinct(here.filter_map(|record| match record.step {
            Step::Pass(policy) => Some(policy),
            Step::Play | Step::Resident => None,
        }));
        found.sort_unstable();
        found
    }

    /// The repeats of a step; `None` where there are none.
    pub fn cell(&self, model: &str, disk: Disk, step: Step) -> Option<Cell> {
        let found: Vec<&Measured> = self
            .records
            .iter()
            .filter(|r| (r.model.as_str(), r.disk, r.step) == (model, disk, step))
            .map(|record| &record.measured)
            .collect();
        let all =
            |figure: fn(&Measured) -> u64| found.iter().map(|m| figure(m)).collect::<Vec<_>>();
        let most = |figure| all(figure).into_iter().max().unwrap_or(0) as f64 / 1e6;
        (!found.is_empty()).then(|| Cell {
            latency_ms: Spread::of(all(|m| m.latency_us)),
            weights_mb: most(|m| m.window_peak_bytes),
            rss_mb: most(|m| m.peak_rss_bytes),
        })
    }

    /// A policy's repeats.
    pub fn pass(&self, model: &str, disk: Disk, policy: Policy) -> Option<Cell> {
        self.cell(model, disk, Step::Pass(policy))
    }

    /// By which plans the passes of a policy were played, in the order in which they came.
    pub fn plans(&self, model: &str, disk: Disk, policy: Policy) -> Vec<&str> {
        let step = Step::Pass(policy);
        let is_of = |r: &&Record| r.model == model && r.disk == disk && r.step == step;
        let plans = self.records.iter().filter(is_of).map(|r| r.measured.plan.as_str());
        distinct(plans)
    }

    /// How often a model was measured on a disk.
    pub fn rounds(&self, model: &str, disk: Disk) -> usize {
        let here = self.records.iter().filter(|r| r.model == model && r.disk == disk);
        here.map(|record| record.repeat).max().unwrap_or(0)
    }

    /// The larger of the medians of T_io and T_compute, in milliseconds.
    pub fn limit_ms(&self, model: &str, disk: Disk) -> Option<f64> {
        let median = |step| Some(self.cell(model, disk, step)?.latency_ms.median);
        Some(median(Step::Play)?.max(median(Step::Resident)?))
    }

    /// The number of agents that PIPELOAD is fastest with, and its repeats.
    pub fn best_pipeload(&self, model: &str, disk: Disk) -> Option<(usize, Cell)> {
        let policies = self.policies(model, disk).into_iter();
        let cells = policies.filter_map(|policy| match policy {
            Policy::PipeLoad { agents } => Some((agents, self.pass(model, disk, policy)?)),
            _ => None,
        });
        cells.min_by(|(_, a), (_, b)| a.latency_ms.median.total_cmp(&b.latency_ms.median))
    }

    /// Whether every pass of a model gave the same outputs; `None` where none gave any.
    pub fn agreement(&self, model: &str) -> Option<Agreement> {
        let passes = self.records.iter().filter(|r| r.model == model && r.step != Step::Play);
        let digests: Vec<u64> = passes.map(|record| record.measured.digest).collect();
        let first = digests.first()?;
        Some(match digests.iter().all(|digest| digest == first) {
            true => Agreement::Identical { passes: digests.len() },
            false => Agreement::Different,
        })
    }
}

/// The values, each once, in the order in which they come first.
fn distinct<T: PartialEq>(values: impl Iterator<Item = T>) -> Vec<T> {
    let mut found = vec![];
    for value in values {
        if !found.contains(&value) {
            found.push(value);
        }
    }
    found
}

/// Results as an experiment might give them, for tests of what is made of them.
#[cfg(test)]
pub fn example() -> Results {
    use super::policy::POLICIES;
    let mut results = Results::default();
    let mut add = |disk, step, repeat, latency_us, window_peak_bytes| {
        let measured = Measured {
            load_us: 240_000,
            latency_us,
            stall_us: latency_us / 2,
            bytes_read: 1_200_000_000,
            window_peak_bytes,
            pinned_bytes: 0,
            peak_rss_bytes: window_peak_bytes + 40_000_000,
            charged_bytes: None,
            digest: if step == Step::Play { 0 } else { 42 },
            plan: "a plan, quickly".to_string(),
        };
        results.records.push(Record { model: "bert".to_string(), disk, step, repeat, measured });
    };
    let disks = [("real", 700_000), ("sata", 2_400_000)];
    for (name, io_us) in disks {
        let disk = name.parse().expect("the disk exists");
        for repeat in 1..=3 {
            let late = 1_000 * repeat as u64;
            for policy in POLICIES {
                let (latency_us, bytes) = match policy {
                    Policy::LoadAll => (io_us + 400_000, 1_200_000_000),
                    Policy::PipeSwitch => (io_us + 60_000, 1_200_000_000),
                    Policy::PipeLoad { agents } => {
                        (io_us + 50_000, 50_000_000 * (agents as u64 + 1))
                    }
                    Policy::Tape => (io_us + 20_000, 16_000_000),
                };
                add(disk, Step::Pass(policy), repeat, latency_us + late, bytes);
            }
            add(disk, Step::Play, repeat, io_us + late, 16_000_000);
            add(disk, Step::Resident, repeat, 400_000 + late, 0);
        }
    }
    results
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_of_the_repeats_of_one_step() {
        let results = example();
        let disk = Disk::Real;
        assert_eq!(results.models(), ["bert"]);
        assert_eq!(results.disks("bert").len(), 2);
        assert_eq!(results.policies("bert", disk).len(), 7);
        let tape = results.pass("bert", disk, Policy::Tape).unwrap();
        assert_eq!(tape.latency_ms, Spread { median: 722.0, low: 721.0, high: 723.0 });
        assert_eq!((tape.weights_mb, tape.rss_mb), (16.0, 56.0));
        assert_eq!(results.limit_ms("bert", disk), Some(702.0));
        assert_eq!(results.best_pipeload("bert", disk).unwrap().0, 1);
        assert!(results.cell("bert", Disk::Limited { mb_s: 1 }, Step::Play).is_none());
        assert!(results.limit_ms("gpt", disk).is_none());
    }

    #[test]
    fn one_pass_that_differs_is_noticed() {
        let mut results = example();
        assert_eq!(results.agreement("bert"), Some(Agreement::Identical { passes: 48 }));
        results.records[5].measured.digest = 43;
        assert_eq!(results.agreement("bert"), Some(Agreement::Different));
        assert_eq!(results.agreement("gpt"), None);
    }
}
