//! The socket file: taken over from a daemon that died, never from one that lives.

use nix::unistd::Uid;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use thiserror::Error;

/// Owner and group may connect.
const MODE: u32 = 0o660;

/// A socket that cannot be served.
#[derive(Debug, Error)]
pub enum SocketError {
    /// A daemon serves it.
    #[error("{0}: another hermesd serves this socket; stop it or choose another --socket")]
    Live(PathBuf),
    /// The lock beside it is none of ours.
    #[error("{0}: is a link, no file, or another user's; remove it or choose another --socket")]
    Foreign(PathBuf),
    /// Something else has the name.
    #[error("{0}: exists and is not a socket; remove it or choose another --socket")]
    NotASocket(PathBuf),
    /// There is nowhere to put it.
    #[error("{path}: there is no folder {folder}; make it or choose another --socket")]
    NoFolder {
        /// The socket.
        path: PathBuf,
        /// The folder it would be in.
        folder: PathBuf,
    },
    /// The kernel refused.
    #[error("{path}: {what}: {source}")]
    Io {
        /// The socket, or the lock beside it.
        path: PathBuf,
        /// What was tried.
        what: &'static str,
        /// Why not.
        source: io::Error,
    },
}

/// A bound socket file; removed on drop, if it still is this one.
///
/// The file `<socket>.lock` beside it is locked for as long and stays behind, so that of two
/// daemons that start together one is refused.
#[derive(Debug)]
pub struct SocketFile {
    path: PathBuf,
    identity: (u64, u64),
    _lock: File,
}

/// Binds `path` with mode 0660; it appears at once, with its rights, in place of a stale socket.
///
/// # Errors
///
/// [`SocketError`] where a live daemon or a file that is no socket has the name, where its folder
/// is missing, and where the kernel refuses.
pub fn bind(path: &Path) -> Result<(UnixListener, SocketFile), SocketError> {
    let failed = |path: &Path, what| {
        let path = path.to_owned();
        move |source| SocketError::Io { path, what, source }
    };
    let lock = lock(path)?;
    refuse_if_taken(path)?;
    let new = beside(path, ".new");
    match fs::remove_file(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(failed(&new, "cannot remove")(error));
        }
        _ => {}
    }
    let listener = UnixListener::bind(&new).map_err(failed(&new, "cannot bind"))?;
    let publish = || {
        fs::set_permissions(&new, fs::Permissions::from_mode(MODE))?;
        let metadata = fs::symlink_metadata(&new)?;
        fs::rename(&new, path)?;
        Ok((metadata.dev(), metadata.ino()))
    };
    let identity = publish().map_err(|error| {
        let _ = fs::remove_file(&new);
        failed(path, "cannot publish the socket")(error)
    })?;
    Ok((listener, SocketFile { path: path.to_owned(), identity, _lock: lock }))
}

fn lock(path: &Path) -> Result<File, SocketError> {
    let name = beside(path, ".lock");
    let failed = |source| SocketError::Io { path: name.clone(), what: "cannot lock", source };
    let mut options = OpenOptions::new();
    options.create(true).truncate(false).write(true).mode(0o600);
    // Whoever may write to the folder may have put a link or a pipe there.
    options.custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK);
    let file = options.open(&name).map_err(|source| match path.parent() {
        Some(folder) if source.kind() == io::ErrorKind::NotFound && !folder.exists() => {
            SocketError::NoFolder { path: path.to_owned(), folder: folder.to_owned() }
        }
        _ if matches!(source.raw_os_error(), Some(libc::ELOOP | libc::ENXIO)) => {
            SocketError::Foreign(name.clone())
        }
        _ => failed(source),
    })?;
    let metadata = file.metadata().map_err(failed)?;
    // Another user's would be locked for as long as they like.
    if !metadata.is_file() || metadata.uid() != Uid::effective().as_raw() {
        return Err(SocketError::Foreign(name));
    }
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(SocketError::Live(path.to_owned())),
        Err(TryLockError::Error(source)) => Err(failed(source)),
    }
}

fn refuse_if_taken(path: &Path) -> Result<(), SocketError> {
    let metadata = match fs::symlink_metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(source) => {
            return Err(SocketError::Io { path: path.to_owned(), what: "cannot look at", source });
        }
    };
    if !metadata.file_type().is_socket() {
        return Err(SocketError::NotASocket(path.to_owned()));
    }
    match UnixStream::connect(path) {
        Ok(_) => Err(SocketError::Live(path.to_owned())),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Ok(()),
        Err(source) => {
            Err(SocketError::Io { path: path.to_owned(), what: "cannot try the socket", source })
        }
    }
}

fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let is_ours = fs::symlink_metadata(&self.path)
            .is_ok_and(|metadata| (metadata.dev(), metadata.ino()) == self.identity);
        if is_ours && let Err(error) = fs::remove_file(&self.path) {
            log::warn!("{}: cannot remove the socket: {error}", self.path.display());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_is_private_and_removed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        let (_listener, file) = bind(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, MODE);
        assert!(UnixStream::connect(&path).is_ok());
        drop(file);
        assert!(!path.exists());
    }

    #[test]
    fn a_live_daemon_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        let _other = UnixListener::bind(&path).unwrap();
        assert!(matches!(bind(&path), Err(SocketError::Live(_))));
        assert!(UnixStream::connect(&path).is_ok());
    }

    #[test]
    fn a_stale_socket_is_taken_over() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        drop(UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        let (_listener, _file) = bind(&path).unwrap();
        assert!(UnixStream::connect(&path).is_ok());
        assert!(matches!(bind(&path), Err(SocketError::Live(_))));
    }

    /// The lock was opened through a link, and locked whosever it was: who may write to the folder
    /// kept the daemon from starting, without a word why.
    #[test]
    fn a_lock_that_is_not_ours_is_told() {
        use nix::sys::stat::Mode;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        let lock = folder.path().join("s.lock");
        let is_foreign = || matches!(bind(&path), Err(SocketError::Foreign(name)) if name == lock);
        let target = folder.path().join("target");
        std::os::unix::fs::symlink(&target, &lock).unwrap();
        assert!(is_foreign() && !target.exists(), "a link");
        fs::remove_file(&lock).unwrap();
        nix::unistd::mkfifo(&lock, Mode::S_IRWXU).unwrap();
        assert!(is_foreign(), "a pipe");
        fs::remove_file(&lock).unwrap();
        fs::write(&lock, "").unwrap();
        // Only root can give files away, and not to users that its namespace does not have.
        if nix::unistd::chown(&lock, Some(Uid::from_raw(12345)), None).is_ok() {
            assert!(is_foreign(), "another user's");
            fs::remove_file(&lock).unwrap();
        }
        assert!(bind(&path).is_ok());
    }

    #[test]
    fn a_file_is_not_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        fs::write(&path, "precious").unwrap();
        assert!(matches!(bind(&path), Err(SocketError::NotASocket(_))));
        assert_eq!(fs::read(&path).unwrap(), b"precious");
    }
}
