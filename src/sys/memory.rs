//! What the kernel says this process and this machine hold.

use super::file::check_renounced;
use nix::sys::resource::{UsageWho, getrusage};
use std::fs;

/// A process's figures from /proc/PID/status, in bytes (proc_pid_status(5)).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ProcessMemory {
    /// Resident now: anonymous and file-backed pages.
    pub resident_bytes: u64,
    /// Largest resident size since the start or the last [`reset_peak`].
    pub peak_bytes: u64,
    pub anonymous_bytes: u64,
    pub file_bytes: u64,
}

/// Reads the figures; zeros where /proc is not there.
pub fn process() -> ProcessMemory {
    check_renounced();
    parse_status(&fs::read_to_string("/proc/self/status").unwrap_or_default())
}

/// The figures of the process `id`; zeros where there is none.
pub fn process_of(id: u32) -> ProcessMemory {
    parse_status(&fs::read_to_string(format!("/proc/{id}/status")).unwrap_or_default())
}

/// Begins a new measurement of the peak (proc_pid_clear_refs(5), value 5). False where the
/// kernel refuses.
pub fn reset_peak() -> bool {
    fs::write("/proc/self/clear_refs", "5").is_ok()
}

/// Pages that were missing when they were touched or populated (getrusage(2)).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PageFaults {
    /// Those in memory already.
    pub minor: u64,
    /// Those that had to be read.
    pub major: u64,
}

/// This process's faults since its start.
pub fn faults() -> PageFaults {
    let usage = getrusage(UsageWho::RUSAGE_SELF).ok();
    let count = |faults: i64| u64::try_from(faults).unwrap_or(0);
    usage.map_or_else(PageFaults::default, |usage| PageFaults {
        minor: count(usage.minor_page_faults()),
        major: count(usage.major_page_faults()),
    })
}

/// The machine's figures from /proc/meminfo, in bytes (proc_meminfo(5)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MachineMemory {
    /// What there is.
    pub total_bytes: u64,
    /// What the machine can give without swapping (MemAvailable).
    pub available_bytes: u64,
}

/// What a machine has left is for others, below this part of what there is.
const OTHERS_SHARE: u64 = 6;

impl MachineMemory {
    /// Bytes that may be taken without the machine coming to be short.
    pub fn spare_bytes(self) -> u64 {
        self.available_bytes.saturating_sub(self.total_bytes / OTHERS_SHARE)
    }
}

/// Reads the figures; `None` where /proc is not there.
pub fn machine() -> Option<MachineMemory> {
    check_renounced();
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let total_bytes = kib_field(&text, "MemTotal:")?;
    Some(MachineMemory { total_bytes, available_bytes: kib_field(&text, "MemAvailable:")? })
}

fn parse_status(text: &str) -> ProcessMemory {
    let field = |name| kib_field(text, name).unwrap_or(0);
    ProcessMemory {
        resident_bytes: field("VmRSS:"),
        peak_bytes: field("VmHWM:"),
        anonymous_bytes: field("RssAnon:"),
        file_bytes: field("RssFile:"),
    }
}

/// A field of a file of /proc that is in kB, in bytes.
pub(super) fn kib_field(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find(|line| line.starts_with(name))?;
    let kib: u64 = line[name.len()..].split_whitespace().next()?.parse().ok()?;
    kib.checked_mul(1024)
}

/// Pages of a range of addresses that this process has mapped, by /proc/self/pagemap.
#[cfg(test)]
pub(super) fn mapped_pages(addresses: std::ops::Range<usize>) -> usize {
    use std::os::unix::fs::FileExt;
    let pagemap = fs::File::open("/proc/self/pagemap").unwrap();
    let page_size = super::page::page_size();
    let is_present = |address: usize| {
        let mut entry = [0; 8];
        pagemap.read_exact_at(&mut entry, (address / page_size) as u64 * 8).unwrap();
        u64::from_le_bytes(entry) >> 63 == 1
    };
    addresses.step_by(page_size).filter(|address| is_present(*address)).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn status_is_read_in_kib() {
        let text = "Name:\tx\nVmHWM:\t    2048 kB\nVmRSS:\t 1024 kB\nRssAnon:\t 1000 kB\n";
        let expected = ProcessMemory {
            resident_bytes: 1 << 20,
            peak_bytes: 2 << 20,
            anonymous_bytes: 1000 << 10,
            file_bytes: 0,
        };
        assert_eq!(parse_status(text), expected);
        assert_eq!(parse_status("VmHWM: many kB\nVmRSS"), ProcessMemory::default());
        assert!(process().resident_bytes > 0);
    }
}
