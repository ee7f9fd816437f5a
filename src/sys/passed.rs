//! File descriptors that whoever started this process passed to it.

use super::lock::lock;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use std::io;
use std::os::fd::{BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::sync::Mutex;

/// The descriptors that were taken.
static TAKEN: Mutex<Vec<RawFd>> = Mutex::new(Vec::new());

/// Takes a descriptor that the process was started with, once.
///
/// # Errors
/// The kernel's where it is not open; [`io::ErrorKind::AlreadyExists`] where it was taken.
///
/// # Panics
/// For standard input, output and error, which the standard library owns.
pub fn take(fd: RawFd) -> io::Result<OwnedFd> {
    assert!(fd > 2, "descriptor {fd} is a standard stream");
    let mut taken = lock(&TAKEN);
    if taken.contains(&fd) {
        return Err(io::Error::new(io::ErrorKind::AlreadyExists, "it is in use already"));
    }
    taken.push(fd);
    // SAFETY: it is only borrowed for fcntl, which tells whether it is open, and has it closed in
    // programs that this one starts.
    fcntl(unsafe { BorrowedFd::borrow_raw(fd) }, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?;
    // SAFETY: it is open, it came with the process rather than from code of it, and nobody has
    // taken it before.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_open_is_refused_and_nothing_is_taken_twice() {
        // No process of the tests has so many files open.
        assert_eq!(take(900_000).unwrap_err().raw_os_error(), Some(libc::EBADF));
        assert_eq!(take(900_000).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
    }
}
