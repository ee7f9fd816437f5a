//! How many files the process may have open.

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use std::{fs, io};

/// Raises the limit of open files to what may be had without asking (the hard limit), and returns
/// it.
///
/// # Errors
///
/// The kernel's.
pub fn raise() -> io::Result<u64> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    // A limit that cannot be raised is the limit.
    let limit = if soft < hard && setrlimit(Resource::RLIMIT_NOFILE, hard, hard).is_ok() {
        hard
    } else {
        soft
    };
    Ok(limit)
}

/// The limit of open files.
///
/// # Errors
///
/// The kernel's.
pub fn get() -> io::Result<u64> {
    Ok(getrlimit(Resource::RLIMIT_NOFILE)?.0)
}

/// Files that are open; none where /proc is not there.
pub fn open() -> u64 {
    // The folder itself is open while it is read.
    fs::read_dir("/proc/self/fd").map_or(0, |entries| (entries.count() as u64).saturating_sub(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn open_files_are_counted() {
        let files: Vec<_> = (0..50).map(|_| fs::File::open("/dev/null").unwrap()).collect();
        assert!(open() >= 50);
        assert!(get().unwrap() > files.len() as u64);
    }
}
