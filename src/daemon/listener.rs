//! A socket that clients connect to, of either kind.

use super::address::Address;
use nix::sys::socket::{
    AddressFamily, SockType, SockaddrLike, SockaddrStorage, getsockname, getsockopt, sockopt,
};
use std::io;
use std::net::TcpListener;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixListener;

/// A listening socket and the address it has.
#[derive(Debug)]
pub struct Listener {
    /// Where it listens; a port that the kernel chose is told.
    pub address: Address,
    /// The socket.
    pub socket: Socket,
}

/// A listening socket.
#[derive(Debug)]
pub enum Socket {
    /// In the file system.
    Unix(UnixListener),
    /// A port.
    Tcp(TcpListener),
}

impl Listener {
    /// A socket that somebody else has made, or why it cannot be listened on.
    ///
    /// # Errors
    ///
    /// What it is instead.
    pub fn from_passed(socket: OwnedFd) -> Result<Listener, NoListener> {
        let kind = getsockopt(&socket, sockopt::SockType)
            .map_err(|_| NoListener::Kind("a file and no socket"))?;
        let address: SockaddrStorage = getsockname(socket.as_raw_fd()).map_err(io::Error::from)?;
        if kind != SockType::Stream {
            return Err(NoListener::Kind("no stream socket"));
        }
        if !getsockopt(&socket, sockopt::AcceptConn).map_err(io::Error::from)? {
            return Err(NoListener::Kind("a socket that does not listen"));
        }
        match address.family() {
            Some(AddressFamily::Unix) => Ok(Listener::of_unix(UnixListener::from(socket))?),
            Some(AddressFamily::Inet | AddressFamily::Inet6) => {
                Ok(Listener::of_tcp(TcpListener::from(socket))?)
            }
            _ => Err(NoListener::Kind("a socket of another family")),
        }
    }

    /// A Unix socket.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub fn of_unix(socket: UnixListener) -> io::Result<Listener> {
        let name = socket.local_addr()?;
        let path = name.as_pathname().map(ToOwned::to_owned).unwrap_or_default();
        Ok(Listener { address: Address::Unix(path), socket: Socket::Unix(socket) })
    }

    /// A port.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub fn of_tcp(socket: TcpListener) -> io::Result<Listener> {
        let address = Address::Tcp(socket.local_addr()?);
        Ok(Listener { address, socket: Socket::Tcp(socket) })
    }
}

/// Why a descriptor is no listener.
#[derive(Debug, thiserror::Error)]
pub enum NoListener {
    /// The kernel refused to say.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// What it is.
    #[error("{0}")]
    Kind(&'static str),
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::{UnixDatagram, UnixStream};

    #[test]
    fn only_listening_streams_are_taken() {
        let refused = |socket: OwnedFd| Listener::from_passed(socket).unwrap_err().to_string();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        let listener = Listener::from_passed(UnixListener::bind(&path).unwrap().into()).unwrap();
        assert_eq!(listener.address, Address::Unix(path));
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let Ok(port) = TcpListener::bind(address) else { continue };
            let expected = Address::Tcp(port.local_addr().unwrap());
            assert_eq!(Listener::from_passed(port.into()).unwrap().address, expected);
        }
        assert!(refused(UnixStream::pair().unwrap().0.into()).contains("does not listen"));
        assert!(refused(UnixDatagram::unbound().unwrap().into()).contains("no stream"));
        assert!(refused(tempfile::tempfile().unwrap().into()).contains("no socket"));
    }
}
