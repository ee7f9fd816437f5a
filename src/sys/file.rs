//! Files that others may have put where ours are expected: only regular ones are opened, no more of
//! them is read than is told before, and nothing is written through them.

use std::cell::Cell;
use std::ffi::CString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

thread_local! {
    static IS_EVENT_LOOP: Cell<bool> = const { Cell::new(false) };
}

/// From now on nothing on this thread opens or reads a file: others would wait for the disk with it.
pub fn renounce() {
    IS_EVENT_LOOP.set(true);
}

/// Tells whoever opens, reads or lists files where they were renounced, by a panic in programs that
/// are built with checks.
pub fn check_renounced() {
    debug_assert!(!IS_EVENT_LOOP.get(), "the event loop opens, reads or lists a file");
}

/// Opens a regular file for reading and says how long it is. Links are not followed, and neither a
/// pipe nor a device makes anybody wait.
///
/// # Errors
/// The system's; [`io::ErrorKind::InvalidInput`] for what is no regular file.
pub fn open_regular(path: &Path) -> io::Result<(File, u64)> {
    check_renounced();
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_NOCTTY | libc::O_CLOEXEC;
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    let metadata = file.metadata()?;
    match metadata.is_file() {
        true => Ok((file, metadata.len())),
        false => Err(not_regular()),
    }
}

/// Whether that is why a file was not opened.
pub fn is_not_regular(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::InvalidInput
}

fn not_regular() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, "is not a regular file")
}

/// Reads a regular file of at most `limit` bytes.
///
/// # Errors
/// As [`open_regular`]; [`io::ErrorKind::FileTooLarge`] for one that is longer.
pub fn read_regular(path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    let (file, bytes) = open_regular(path)?;
    let too_long = |bytes| {
        let what = format!("has {bytes} bytes, expected at most {limit}");
        io::Error::new(io::ErrorKind::FileTooLarge, what)
    };
    if bytes > limit {
        return Err(too_long(bytes));
    }
    let mut content = Vec::new();
    // It may grow meanwhile.
    let read = file.take(limit + 1).read_to_end(&mut content)? as u64;
    if read > limit { Err(too_long(read)) } else { Ok(content) }
}

/// Writes the file `path` whole or not at all, by way of `next` in the same folder: a reader finds the
/// old one or this. The folder is synced by whoever changes more of it.
///
/// # Errors
/// The system's; nothing is left of `next` then.
pub fn replace(path: &Path, next: &Path, content: &[u8]) -> io::Result<()> {
    check_renounced();
    let write = || {
        // Whatever has the name is not ours, and not to be written through.
        match fs::remove_file(next) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = File::create_new(next)?;
        file.write_all(content)?;
        drop(file);
        sync(next)?;
        fs::rename(next, path)
    };
    write().inspect_err(|_| {
        // What is left of it is in nobody's way.
        let _ = fs::remove_file(next);
    })
}

/// Exchanges the names of two files or folders in one step (renameat2(2), RENAME_EXCHANGE).
///
/// # Errors
/// The system's; `EINVAL` and `ENOSYS` where the file system or the kernel cannot.
pub fn exchange(one: &Path, other: &Path) -> io::Result<()> {
    let name = |path: &Path| Ok::<_, io::Error>(CString::new(path.as_os_str().as_bytes())?);
    let (one, other) = (name(one)?, name(other)?);
    // By its number: the C library has had this call since 2.28.
    // SAFETY: the names are C strings, and there for as long as the call takes.
    let result = unsafe {
        libc::syscall(
            libc::SYS_renameat2,
            libc::AT_FDCWD,
            one.as_ptr(),
            libc::AT_FDCWD,
            other.as_ptr(),
            libc::RENAME_EXCHANGE,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Has all that was written to the file or folder `path` on the disk: what a folder holds are the
/// names in it.
///
/// # Errors
/// The system's.
pub fn sync(path: &Path) -> io::Result<()> {
    #[cfg(test)]
    if let Some(mut hear) = BEFORE_SYNC.take() {
        hear(path);
        BEFORE_SYNC.set(Some(hear));
    }
    File::open(path)?.sync_all()
}

#[cfg(test)]
thread_local! {
    /// Hears of each [`sync`] of its thread before it is done: who imitates a loss of power.
    pub static BEFORE_SYNC: std::cell::Cell<Option<Hear>> = const { std::cell::Cell::new(None) };
}

#[cfg(test)]
type Hear = Box<dyn FnMut(&Path)>;

/// Has a write beyond the limit of a file's size (ulimit -f) fail with an error, where its signal
/// would end the process: a log that is full is no reason to end.
pub fn ignore_size_signal() {
    // SAFETY: to ignore a signal runs no code.
    unsafe {
        libc::signal(libc::SIGXFSZ, libc::SIG_IGN);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::stat::Mode;
    use nix::unistd::mkfifo;

    /// A pipe in the place of a profile kept the engine's thread for ever, one in the place of a
    /// tokenizer a helper; a device was read until the memory was full.
    #[test]
    fn only_regular_files_are_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        fs::write(path("plain"), "twelve bytes").unwrap();
        assert_eq!(read_regular(&path("plain"), 12).unwrap(), b"twelve bytes");
        let error = read_regular(&path("plain"), 11).unwrap_err();
        assert_eq!(error.to_string(), "has 12 bytes, expected at most 11");
        mkfifo(&path("pipe"), Mode::S_IRWXU).unwrap();
        fs::create_dir(path("folder")).unwrap();
        for odd in [path("pipe"), path("folder"), "/dev/zero".into()] {
            let error = read_regular(&odd, 100).unwrap_err();
            assert!(is_not_regular(&error), "{}: {error}", odd.display());
        }
        std::os::unix::fs::symlink(path("plain"), path("link")).unwrap();
        assert_eq!(read_regular(&path("link"), 100).unwrap_err().raw_os_error(), Some(libc::ELOOP));
        let error = read_regular(&path("nothing"), 100).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }

    /// Each request had the event loop read files of the store: whoever shared it waited for the
    /// disk.
    #[test]
    #[should_panic = "the event loop opens, reads or lists a file"]
    fn who_renounced_files_is_told() {
        renounce();
        let _ = read_regular(Path::new("/dev/null"), 1);
    }

    #[test]
    fn names_are_exchanged_or_stay() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        fs::write(path("one"), "1").unwrap();
        fs::create_dir(path("other")).unwrap();
        match exchange(&path("one"), &path("other")) {
            Ok(()) => assert_eq!(fs::read(path("other")).unwrap(), b"1"),
            // A file system that cannot.
            Err(error) => assert_eq!(error.raw_os_error(), Some(libc::EINVAL)),
        }
        let error = exchange(&path("one"), &path("none")).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
        assert!(fs::symlink_metadata(path("one")).is_ok());
    }

    /// A link or a pipe under the name that a file is written by was written to.
    #[test]
    fn nothing_is_written_through_what_others_put_there() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        fs::write(path("other"), "theirs").unwrap();
        std::os::unix::fs::symlink(path("other"), path("next")).unwrap();
        replace(&path("ours"), &path("next"), b"first").unwrap();
        mkfifo(&path("next"), Mode::S_IRWXU).unwrap();
        replace(&path("ours"), &path("next"), b"second").unwrap();
        assert_eq!(fs::read(path("other")).unwrap(), b"theirs");
        assert_eq!(fs::read(path("ours")).unwrap(), b"second");
        assert!(fs::symlink_metadata(path("next")).is_err());
    }
}
