//! The sockets that the service manager bound for us (sd_listen_fds(3)).

use super::listener::{Listener, NoListener};
use crate::sys::passed;
use std::io;
use thiserror::Error;

/// A passed socket that cannot be served.
#[derive(Debug, Error)]
pub enum ActivationError {
    /// The variables or a descriptor are no good.
    #[error("LISTEN_FDS: cannot take the sockets that were passed: {0}")]
    Io(#[from] io::Error),
    /// Another kind of file or socket.
    #[error(
        "LISTEN_FDS: what was passed as descriptor {fd} is {what}; hermesd.socket may have \
         ListenStream= with the path of a Unix socket or with an address and a port, and Accept=no"
    )]
    Kind {
        /// The descriptor.
        fd: i32,
        /// What it is.
        what: NoListener,
    },
}

/// The listening sockets that were passed to this process.
///
/// # Errors
///
/// [`ActivationError`].
pub fn passed() -> Result<Vec<Listener>, ActivationError> {
    let take = |fd| {
        let socket = passed::take(fd)?;
        Listener::from_passed(socket).map_err(|what| ActivationError::Kind { fd, what })
    };
    sd_notify::listen_fds()?.map(take).collect()
}
