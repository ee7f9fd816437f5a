//! The listening sockets on the event loop, and the connections that come by them.

use super::caller::Remote;
use super::connections::{UNTAKEN_BYTES, Who};
use super::departure::SharedStream;
use crate::daemon::listener::{Listener, Socket};
use crate::sys::peer::{Peer, bound_unread, is_keeper};
use crate::sys::tcp;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};

/// All listening sockets.
pub struct Listeners {
    sockets: Vec<Listening>,
    /// The one that is asked first: they take turns, so that none waits for a crowd at another.
    next: usize,
}

enum Listening {
    Unix(UnixListener),
    Tcp {
        socket: TcpListener,
        /// Whether other machines may reach it.
        is_open: bool,
    },
}

/// A connection that was accepted.
pub enum Arrival {
    /// By a Unix socket.
    Unix(UnixStream),
    /// By a port.
    Tcp {
        /// The connection.
        stream: TcpStream,
        /// The client's address.
        address: SocketAddr,
        /// Whether other machines may reach the port.
        is_open: bool,
    },
}

/// Accepting failed.
pub struct AcceptError {
    /// Whether somebody waits to be accepted there.
    pub is_awaited: bool,
    /// Why.
    pub error: io::Error,
}

impl Listeners {
    /// Takes over listening sockets. Needs the runtime's context.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub fn new(listeners: Vec<Listener>) -> io::Result<Listeners> {
        let take = |Listener { address, socket }| match socket {
            Socket::Unix(socket) => {
                socket.set_nonblocking(true)?;
                UnixListener::from_std(socket).map(Listening::Unix)
            }
            Socket::Tcp(socket) => {
                socket.set_nonblocking(true)?;
                tcp::bound_received(&socket, UNTAKEN_BYTES / 2)?;
                let socket = TcpListener::from_std(socket)?;
                Ok(Listening::Tcp { socket, is_open: address.is_open() })
            }
        };
        let sockets = listeners.into_iter().map(take).collect::<io::Result<_>>()?;
        Ok(Listeners { sockets, next: 0 })
    }

    /// The next connection.
    ///
    /// # Errors
    ///
    /// [`AcceptError`]; others may come after it.
    pub async fn accept(&mut self) -> Result<Arrival, AcceptError> {
        poll_fn(|context| self.poll_accept(context)).await
    }

    fn poll_accept(&mut self, context: &mut Context<'_>) -> Poll<Result<Arrival, AcceptError>> {
        let count = self.sockets.len();
        for index in (self.next..count).chain(0..self.next) {
            let socket = &self.sockets[index];
            if let Poll::Ready(accepted) = socket.poll_accept(context) {
                self.next = (index + 1) % count;
                let failed = |error| AcceptError { is_awaited: socket.is_awaited(), error };
                return Poll::Ready(accepted.map_err(failed));
            }
        }
        Poll::Pending
    }
}

impl Listening {
    fn poll_accept(&self, context: &mut Context<'_>) -> Poll<io::Result<Arrival>> {
        Poll::Ready(match self {
            Listening::Unix(socket) => {
                ready!(socket.poll_accept(context)).map(|(stream, _)| Arrival::Unix(stream))
            }
            Listening::Tcp { socket, is_open } => ready!(socket.poll_accept(context))
                .map(|(stream, address)| Arrival::Tcp { stream, address, is_open: *is_open }),
        })
    }

    /// Whether somebody wants to be accepted: without a descriptor to spare accept(2) fails before
    /// it looks.
    fn is_awaited(&self) -> bool {
        let socket = match self {
            Listening::Unix(socket) => socket.as_fd(),
            Listening::Tcp { socket, .. } => socket.as_fd(),
        };
        let mut ready = [PollFd::new(socket, PollFlags::POLLIN)];
        poll(&mut ready, PollTimeout::ZERO).is_ok_and(|count| count > 0)
    }
}

/// What is read from and written to, whatever it is.
pub trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Duplex for S {}

impl Arrival {
    /// Who it is: for the shares of connections, and for the rights.
    pub fn client(&self) -> (Who, Remote) {
        let stream = match self {
            Arrival::Unix(stream) => stream,
            Arrival::Tcp { address, is_open, .. } => {
                return (Who::Tcp, Remote::Port { address: *address, is_open: *is_open });
            }
        };
        match Peer::of(stream) {
            Ok(peer) => {
                let who = if is_keeper(peer.uid) { Who::Keeper } else { Who::User(peer.uid) };
                (who, Remote::Process(Arc::new(peer)))
            }
            Err(error) => {
                log::warn!("the kernel does not tell who connects: {error}");
                (Who::Unknown, Remote::Unknown)
            }
        }
    }

    /// Bounds what the kernel holds of replies to twice `bytes`, [`bound_unread`], and how long it
    /// believes in a client that came by a port.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub fn bound_unread(&self, bytes: usize) -> io::Result<()> {
        match self {
            // Beside what its buffer takes comes one more piece, as long as half of that.
            Arrival::Unix(stream) => bound_unread(stream, bytes * 2 / 3),
            Arrival::Tcp { stream, .. } => {
                bound_unread(stream, bytes)?;
                tcp::prepare(stream)
            }
        }
    }

    /// Writes what a new socket's buffer takes at once.
    pub fn try_write(&self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Arrival::Unix(stream) => stream.try_write(bytes),
            Arrival::Tcp { stream, .. } => stream.try_write(bytes),
        }
    }

    /// The connection, and the socket that tells when its client has gone, where it tells.
    pub fn into_stream(self) -> (Box<dyn Duplex>, Option<Arc<UnixStream>>) {
        match self {
            Arrival::Unix(stream) => {
                let socket = Arc::new(stream);
                (Box::new(SharedStream(Arc::clone(&socket))), Some(socket))
            }
            Arrival::Tcp { stream, .. } => (Box::new(stream), None),
        }
    }
}
