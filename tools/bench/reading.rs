//! What reading a tape asks of the kernel and of the disk.

use anyhow::Result;
use hermes::engine::PassStats;
use hermes::sys::disk::{Device, Disk, Requests};
use hermes::sys::memory::{PageFaults, faults};
use serde_json::{Value, json};
use std::path::Path;

/// Sums over some plays of a tape.
#[derive(Default)]
pub struct Reading {
    device: Option<Device>,
    plays: u64,
    bytes: u64,
    wall_us: u64,
    loader_cpu_us: u64,
    faults: PageFaults,
    /// Everybody's: the machine has to be idle otherwise.
    requests: Requests,
}

impl Reading {
    /// Of tapes below `store`.
    pub fn of(store: &Path) -> Result<Reading> {
        let disk = Disk::of(Path::new("/"), &store.canonicalize()?);
        Ok(Reading { device: disk.and_then(|disk| disk.device), ..Reading::default() })
    }

    /// Adds what `play` does; what it returns.
    pub fn add(&mut self, play: impl FnOnce() -> Result<PassStats>) -> Result<PassStats> {
        let asked = |device: &Option<Device>| {
            device.as_ref().and_then(|device| device.requests(Path::new("/"))).unwrap_or_default()
        };
        let (before, asked_before) = (faults(), asked(&self.device));
        let stats = play()?;
        let (after, asked_after) = (faults(), asked(&self.device));
        self.plays += 1;
        self.bytes += stats.bytes_read;
        self.wall_us += stats.latency_us;
        self.loader_cpu_us += stats.loader_cpu_us;
        self.faults.minor += after.minor - before.minor;
        self.faults.major += after.major - before.major;
        self.requests.count += asked_after.count - asked_before.count;
        self.requests.bytes += asked_after.bytes - asked_before.bytes;
        Ok(stats)
    }

    /// For people.
    pub fn print(&self) {
        let a_play = |count: u64| count as f64 / self.plays.max(1) as f64;
        let bytes = self.bytes.max(1) as f64;
        hermes::say!(
            "reading    {:8.1} MB/s, {:.3} s of the loaders' processor time a GB",
            bytes / self.wall_us.max(1) as f64,
            self.loader_cpu_us as f64 * 1e3 / bytes
        );
        hermes::say!(
            "faults     {:8.0} minor, {:.0} major a play",
            a_play(self.faults.minor),
            a_play(self.faults.major)
        );
        hermes::say!(
            "requests   {:8.0} a play, {:.0} KiB each, {:.2} times the bytes of the tape",
            a_play(self.requests.count),
            self.requests.bytes as f64 / self.requests.count.max(1) as f64 / 1024.0,
            self.requests.bytes as f64 / bytes
        );
    }

    /// For programs: sums.
    pub fn json(&self) -> Value {
        json!({
            "plays": self.plays,
            "bytes": self.bytes,
            "wall_us": self.wall_us,
            "loader_cpu_us": self.loader_cpu_us,
            "minor_faults": self.faults.minor,
            "major_faults": self.faults.major,
            "requests": self.requests.count,
            "requested_bytes": self.requests.bytes,
        })
    }
}
