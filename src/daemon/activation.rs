//! The socket to serve: the one that the service manager bound for us (sd_listen_fds(3)), or else
//! one of our own.

use super::socket::{self, SocketError, SocketFile};
use crate::sys::passed;
use nix::sys::socket::{
    AddressFamily, SockType, SockaddrLike, SockaddrStorage, getsockname, getsockopt, sockopt,
};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::Path;
use thiserror::Error;

/// A passed socket that cannot be served.
#[derive(Debug, Error)]
pub enum ActivationError {
    /// The variables or the descriptor are no good.
    #[error("LISTEN_FDS: cannot take the socket that was passed: {0}")]
    Io(#[from] io::Error),
    /// Not one socket.
    #[error("LISTEN_FDS: {0} sockets were passed; hermesd.socket must have one ListenStream=")]
    Count(usize),
    /// Another kind of file or socket.
    #[error(
        "LISTEN_FDS: what was passed is {0}; hermesd.socket must have one ListenStream= with the \
         path of a Unix socket"
    )]
    Kind(&'static str),
    /// None was passed, and ours cannot be bound.
    #[error(transparent)]
    Own(#[from] SocketError),
}

/// The socket that the service manager passed, or else one bound to `path`, with its file.
///
/// # Errors
///
/// [`ActivationError`].
pub fn listen(path: &Path) -> Result<(UnixListener, Option<SocketFile>), ActivationError> {
    if let Some(listener) = passed()? {
        log::info!("listening on the socket that was passed");
        return Ok((listener, None));
    }
    let (listener, file) = socket::bind(path)?;
    log::info!("listening on {}", path.display());
    Ok((listener, Some(file)))
}

/// The listening socket that was passed to this process; `None` where none was.
fn passed() -> Result<Option<UnixListener>, ActivationError> {
    let mut passed = sd_notify::listen_fds()?;
    match passed.len() {
        0 => Ok(None),
        1 => {
            let first = passed.next().expect("there is one");
            check(passed::take(first)?).map(Some)
        }
        count => Err(ActivationError::Count(count)),
    }
}

fn check(socket: OwnedFd) -> Result<UnixListener, ActivationError> {
    let kind = getsockopt(&socket, sockopt::SockType)
        .map_err(|_| ActivationError::Kind("a file and no socket"))?;
    let address: SockaddrStorage = getsockname(socket.as_raw_fd()).map_err(io::Error::from)?;
    if address.family() != Some(AddressFamily::Unix) {
        return Err(ActivationError::Kind("a socket of another family"));
    }
    if kind != SockType::Stream {
        return Err(ActivationError::Kind("no stream socket"));
    }
    if !getsockopt(&socket, sockopt::AcceptConn).map_err(io::Error::from)? {
        return Err(ActivationError::Kind("a socket that does not listen"));
    }
    Ok(UnixListener::from(socket))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;
    use std::os::unix::net::{UnixDatagram, UnixStream};

    #[test]
    fn only_a_listening_unix_stream_is_taken() {
        let refused = |socket: OwnedFd| check(socket).unwrap_err().to_string();
        let folder = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(folder.path().join("s")).unwrap();
        assert!(check(listener.into()).is_ok());
        assert!(refused(UnixStream::pair().unwrap().0.into()).contains("does not listen"));
        assert!(refused(UnixDatagram::unbound().unwrap().into()).contains("no stream"));
        assert!(refused(TcpListener::bind("127.0.0.1:0").unwrap().into()).contains("family"));
        assert!(refused(tempfile::tempfile().unwrap().into()).contains("no socket"));
    }
}
