//! What was measured, as CSV for programs and a Markdown table for people.

use super::systems::System;
use crate::paper::disks::Disk;
use crate::setup::Times;
use std::fmt::Write;

/// One system on one disk within one time.
#[derive(Clone, Debug, PartialEq)]
pub struct Record {
    pub model: String,
    pub disk: Disk,
    pub system: System,
    /// None for systems that follow no target.
    pub target_ms: Option<f64>,
    pub outcome: Outcome,
}

/// What came of it.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    Played(Played),
    /// There is no such plan, and why.
    Refused(String),
}

/// Passes that were played.
#[derive(Clone, Debug, PartialEq)]
pub struct Played {
    /// Bits that a chosen weight takes in the mean.
    pub bits: f64,
    /// By importance, and of the answers.
    pub expected: f64,
    pub accuracy: f64,
    pub forecast_ms: Option<f64>,
    pub latency_us: Vec<u64>,
    /// Of weights: most in the window, and what stays.
    pub window_bytes: u64,
    pub pinned_bytes: u64,
    /// Of the process.
    pub peak_bytes: u64,
    pub bytes_read: u64,
}

impl Played {
    /// The median, in milliseconds.
    pub fn latency_ms(&self) -> f64 {
        Times(self.latency_us.clone()).median() as f64 / 1e3
    }

    /// Weights that are held at once.
    pub fn weights_mb(&self) -> f64 {
        (self.window_bytes + self.pinned_bytes) as f64 / 1e6
    }
}

/// One line a record.
pub fn csv(records: &[Record]) -> String {
    let mut text = String::from(
        "model,disk,system,target_ms,bits,expected,accuracy,forecast_ms,latency_ms,fastest_ms,\
         slowest_ms,window_bytes,pinned_bytes,peak_bytes,bytes_read,refused\n",
    );
    let optional = |value: Option<f64>| value.map_or(String::new(), |value| format!("{value:.1}"));
    for Record { model, disk, system, target_ms, outcome } in records {
        let target = optional(*target_ms);
        let line = match outcome {
            Outcome::Refused(why) => {
                let why = why.replace(['\n', '"'], " ");
                format!("{model},{disk},{system},{target},,,,,,,,,,,,\"{why}\"")
            }
            Outcome::Played(p) => {
                let ms = |us: Option<&u64>| us.map_or(0.0, |us| *us as f64 / 1e3);
                let (low, high) = (p.latency_us.iter().min(), p.latency_us.iter().max());
                format!(
                    "{model},{disk},{system},{target},{:.3},{:.5},{:.5},{},{:.1},{:.1},{:.1},{},{},{},{},",
                    p.bits,
                    p.expected,
                    p.accuracy,
                    optional(p.forecast_ms),
                    p.latency_ms(),
                    ms(low),
                    ms(high),
                    p.window_bytes,
                    p.pinned_bytes,
                    p.peak_bytes,
                    p.bytes_read
                )
            }
        };
        let _ = writeln!(text, "{line}");
    }
    text
}

/// A table for each disk.
pub fn markdown(records: &[Record]) -> String {
    let mut text = String::new();
    let mut last = None;
    for Record { model, disk, system, target_ms, outcome } in records {
        if last != Some((model, disk)) {
            let _ = write!(
                text,
                "{}### {model} on {}\n\n\
                 | system | within ms | took ms | accuracy | expected | bits | weights MB | process MB |\n\
                 |---|---|---|---|---|---|---|---|\n",
                if last.is_some() { "\n" } else { "" },
                disk.title()
            );
            last = Some((model, disk));
        }
        let target = target_ms.map_or(String::from("-"), |ms| format!("{ms:.0}"));
        let _ = match outcome {
            Outcome::Refused(why) => {
                let why = why.lines().next().unwrap_or_default();
                writeln!(text, "| {system} | {target} | {why} | | | | | |")
            }
            Outcome::Played(p) => writeln!(
                text,
                "| {system} | {target} | {:.0} | {:.4} | {:.4} | {:.2} | {:.1} | {:.1} |",
                p.latency_ms(),
                p.accuracy,
                p.expected,
                p.bits,
                p.weights_mb(),
                p.peak_bytes as f64 / 1e6
            ),
        };
    }
    text
}

/// Records as an experiment might give them, for tests of what is made of them.
#[cfg(test)]
pub fn example() -> Vec<Record> {
    let record = |system: &str, target_ms: Option<f64>, accuracy: f64, latency_ms: u64, mb: u64| {
        let played = Played {
            bits: 4.5,
            expected: accuracy,
            accuracy,
            forecast_ms: target_ms,
            latency_us: vec![latency_ms * 1000; 3],
            window_bytes: mb * 1_000_000,
            pinned_bytes: 0,
            peak_bytes: (mb + 40) * 1_000_000,
            bytes_read: 1,
        };
        Record {
            model: "bert".to_owned(),
            disk: "sd".parse().expect("the disk exists"),
            system: system.parse().expect("the system exists"),
            target_ms,
            outcome: Outcome::Played(played),
        }
    };
    let mut records = vec![
        record("load-all", None, 1.0, 1200, 340),
        record("pipeline-a2", None, 0.4, 180, 4),
        record("preload-a6", None, 0.998, 90, 70),
    ];
    for (target, sti, ours) in [(150.0, 0.80, 0.85), (400.0, 0.95, 0.98)] {
        records.push(record("sti", Some(target), sti, target as u64, 6));
        records.push(record("hermes", Some(target), ours, target as u64, 6));
    }
    records.push(Record {
        outcome: Outcome::Refused("the least time is 90 ms\ntake more".to_owned()),
        ..records[3].clone()
    });
    records
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_record_has_its_line() {
        let records = example();
        let csv = csv(&records);
        let fields = |line: &str| line.split(',').count();
        assert!(csv.lines().all(|line| fields(line) == 16), "{csv}");
        assert_eq!(csv.lines().count(), records.len() + 1);
        let table = markdown(&records);
        assert_eq!(table.matches("\n| ").count(), records.len() + 1, "{table}");
        assert!(table.contains("| sti | 150 | the least time is 90 ms | |"), "{table}");
        assert!(table.contains("| hermes | 400 | 400 | 0.9800 |"), "{table}");
    }
}
