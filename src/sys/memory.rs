//! What the kernel says this process and this machine hold.

use std::fs;
use std::ops::Range;

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

/// Gives back the pages of program code and read-only data that are in memory: parsing and
/// optimizing a graph touches most of the program, a pass a small part, which comes back page by
/// page from the page cache.
pub fn release_code() {
    let Ok(smaps) = fs::read_to_string("/proc/self/smaps") else { return };
    for range in clean_code(&smaps) {
        // SAFETY: the range is a mapping of a file that holds no page of its own (Anonymous is
        // 0 and it is not writable), so every page reads back from the file as it was.
        let released = unsafe {
            libc::madvise(
                std::ptr::with_exposed_provenance_mut(range.start),
                range.len(),
                libc::MADV_DONTNEED,
            )
        };
        if released != 0 {
            log::debug!("madvise(DONTNEED) on code failed: {}", std::io::Error::last_os_error());
        }
    }
}

/// The mappings of smaps (proc_pid_smaps(5)) that are private, of a program or library, not
/// writable, and hold no page that differs from the file.
fn clean_code(smaps: &str) -> Vec<Range<usize>> {
    let mut found = vec![];
    let mut candidate = None;
    for line in smaps.lines() {
        let mut fields = line.split_whitespace();
        let (first, second) = (fields.next().unwrap_or(""), fields.next().unwrap_or(""));
        if let Some((start, end)) = first.split_once('-') {
            let bounds = (usize::from_str_radix(start, 16), usize::from_str_radix(end, 16));
            let file = fields.nth(3).is_some_and(|path| path.starts_with('/'));
            candidate = match (bounds, second) {
                ((Ok(start), Ok(end)), "r-xp" | "r--p") if file => Some(start..end),
                _ => None,
            };
        } else if first == "Anonymous:"
            && second == "0"
            && let Some(range) = candidate.take()
        {
            found.push(range);
        }
    }
    found
}

/// The machine's figures from /proc/meminfo, in bytes (proc_meminfo(5)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MachineMemory {
    /// What there is.
    pub total_bytes: u64,
    /// What the machine can give without swapping (MemAvailable).
    pub available_bytes: u64,
}

/// Reads the figures; `None` where /proc is not there.
pub fn machine() -> Option<MachineMemory> {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_clean_read_only_file_mappings_are_code() {
        let smaps = "55e0-55f0 r--p 00000000 fe:00 12 /usr/bin/hermesd\nRss: 16 kB\nAnonymous: 0 kB\n\
                     5600-5610 r-xp 00001000 fe:00 12 /usr/bin/hermesd\nAnonymous: 0 kB\n\
                     5610-5620 r--p 00002000 fe:00 12 /usr/bin/hermesd\nAnonymous: 4 kB\n\
                     5620-5630 rw-p 00003000 fe:00 12 /usr/bin/hermesd\nAnonymous: 0 kB\n\
                     5640-5650 r--s 00000000 fe:00 13 /store/a.layer\nAnonymous: 0 kB\n\
                     7000-7010 r-xp 00000000 00:00 0 [vdso]\nAnonymous: 0 kB\n";
        assert_eq!(clean_code(smaps), [0x55e0..0x55f0, 0x5600..0x5610]);
        release_code();
        assert!(process().resident_bytes > 0, "the program still runs");
    }

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
