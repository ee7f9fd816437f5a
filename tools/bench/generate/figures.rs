//! What was measured, as CSV for programs and a Markdown table for people.

use super::pass::Wrote;
use crate::paper::disks::Disk;
use crate::setup::Times;
use std::fmt::Write;

/// What nothing can be faster than.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Limits {
    /// As the tape is read with nothing computed.
    pub tape_bytes_per_s: f64,
    /// A step with all weights in memory.
    pub step_us: f64,
}

/// Texts that were written within one budget on one disk.
#[derive(Clone, Debug, PartialEq)]
pub struct Record {
    pub disk: Disk,
    pub budget_bytes: u64,
    pub limits: Limits,
    pub wrote: Wrote,
}

impl Record {
    /// Tokens a second, of all texts together.
    pub fn rate(&self) -> f64 {
        self.wrote.tokens as f64 / self.wrote.seconds.max(1e-9)
    }

    /// The least time from a token to the next: that of its bytes or of computing.
    fn limit_us(&self) -> f64 {
        let read_us = self.wrote.pass_bytes as f64 * 1e6 / self.limits.tape_bytes_per_s.max(1.0);
        read_us.max(self.limits.step_us)
    }

    /// Which part of what is possible was reached.
    pub fn ratio(&self) -> f64 {
        self.limit_us() / self.wrote.step_us.max(1.0)
    }

    /// Tokens a second that are possible.
    pub fn limit(&self) -> f64 {
        self.rate() / self.ratio().max(1e-9)
    }
}

/// One line a record.
pub fn csv(records: &[Record]) -> String {
    let mut text = String::from(
        "disk,budget_bytes,texts,first_us,tokens_per_s,step_us,pass_bytes,limit_us,ratio,\
         pinned_bytes,peak_bytes\n",
    );
    for record in records {
        let wrote = &record.wrote;
        let _ = writeln!(
            text,
            "{},{},{},{},{:.3},{:.0},{},{:.0},{:.3},{},{}",
            record.disk,
            record.budget_bytes,
            wrote.first_us.len(),
            Times(wrote.first_us.clone()).median(),
            record.rate(),
            wrote.step_us,
            wrote.pass_bytes,
            record.limit_us(),
            record.ratio(),
            wrote.pinned_bytes,
            wrote.peak_bytes
        );
    }
    text
}

/// A table for each disk.
pub fn markdown(records: &[Record]) -> String {
    let mut text = String::new();
    let mut last = None;
    for record in records {
        let Limits { tape_bytes_per_s, step_us } = record.limits;
        if last != Some(record.disk) {
            let _ = write!(
                text,
                "{}### {}: the tape alone {:.0} MB/s, a step from memory {:.1} ms\n\n\
                 | budget MiB | peak MiB | first token s | tokens/s | MB a pass | possible | ratio |\n\
                 |---|---|---|---|---|---|---|\n",
                if last.is_some() { "\n" } else { "" },
                record.disk.title(),
                tape_bytes_per_s / 1e6,
                step_us / 1e3
            );
            last = Some(record.disk);
        }
        let (wrote, mib) = (&record.wrote, |bytes: u64| bytes as f64 / f64::from(1 << 20));
        let _ = writeln!(
            text,
            "| {:.1} | {:.1} | {:.2} | {:.2} | {:.1} | {:.2} | {:.2} |",
            mib(record.budget_bytes),
            mib(wrote.peak_bytes),
            Times(wrote.first_us.clone()).median() as f64 / 1e6,
            record.rate(),
            wrote.pass_bytes as f64 / 1e6,
            record.limit(),
            record.ratio()
        );
    }
    text
}

/// Records as an experiment might give them, for tests of what is made of them.
#[cfg(test)]
pub fn example() -> Vec<Record> {
    let record = |budget_mib: u64, pass_bytes: u64, step_us: u64| Record {
        disk: "sd".parse().expect("the disk exists"),
        budget_bytes: budget_mib << 20,
        limits: Limits { tape_bytes_per_s: 100e6, step_us: 50_000.0 },
        wrote: Wrote {
            first_us: vec![2_000_000],
            step_us: step_us as f64,
            tokens: 10,
            seconds: step_us as f64 / 1e5,
            pass_bytes,
            pinned_bytes: 0,
            peak_bytes: budget_mib << 20,
        },
    };
    vec![record(40, 100_000_000, 1_250_000), record(160, 0, 50_000)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_is_the_disk_s_or_the_processor_s() {
        let records = example();
        let [slow, fast] = [&records[0], &records[1]];
        assert!((slow.limit_us() - 1e6).abs() < 1.0 && (slow.ratio() - 0.8).abs() < 1e-9);
        assert!((slow.rate() - 0.8).abs() < 1e-9 && (slow.limit() - 1.0).abs() < 1e-9);
        assert!((fast.limit_us() - 5e4).abs() < 1.0 && (fast.ratio() - 1.0).abs() < 1e-9);
    }

    #[test]
    fn every_record_has_its_line() {
        let records = example();
        let csv = csv(&records);
        assert!(csv.lines().all(|line| line.split(',').count() == 11), "{csv}");
        assert_eq!(csv.lines().count(), records.len() + 1);
        let table = markdown(&records);
        assert!(table.contains("| 40.0 | 40.0 | 2.00 | 0.80 | 100.0 | 1.00 | 0.80 |"), "{table}");
    }
}
