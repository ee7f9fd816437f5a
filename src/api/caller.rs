//! Who sends the requests of a connection.

use crate::daemon::Live;
use crate::daemon::rights::{Client, Right};
use crate::daemon::token::Token;
use crate::sys::peer::Peer;
use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use tokio::sync::watch;

/// Who is at the other end of a connection.
#[derive(Clone, Debug)]
pub enum Remote {
    /// A process of this machine.
    Process(Arc<Peer>),
    /// Whoever reached a port.
    Port {
        /// The client's address.
        address: SocketAddr,
        /// Whether other machines may reach the port.
        is_open: bool,
    },
    /// Somebody whom the kernel does not name.
    Unknown,
}

impl fmt::Display for Remote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Remote::Process(peer) => write!(f, "uid {} (pid {})", peer.uid, peer.pid),
            Remote::Port { address, .. } => write!(f, "tcp {address}"),
            Remote::Unknown => f.write_str("a client whom the kernel does not name"),
        }
    }
}

/// A connection's client, and the settings in force; an extension of each request.
#[derive(Clone, Debug)]
pub struct Caller {
    /// Who it is.
    pub remote: Remote,
    live: watch::Receiver<Live>,
}

impl Caller {
    /// A client, whose rights follow `live`.
    pub fn new(remote: Remote, live: watch::Receiver<Live>) -> Caller {
        Caller { remote, live }
    }

    /// Whether the client has a right.
    pub fn may(&self, right: Right) -> bool {
        let client = match &self.remote {
            Remote::Process(peer) => Client::Process(peer),
            Remote::Port { .. } => Client::Tcp,
            Remote::Unknown => return false,
        };
        self.live.borrow().rights.allow(right, client)
    }

    /// The token that TCP clients have to send now.
    pub fn token(&self) -> Option<Token> {
        self.live.borrow().token.clone()
    }
}
