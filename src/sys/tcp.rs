//! Ports: what the kernel holds of what came and was not read, and for how long it believes in a
//! client that is gone.

use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::time::Duration;

/// Time after which a client that says nothing, and acknowledges nothing, is asked whether it is
/// there; and between two of the questions.
const PROBE_INTERVAL: Duration = Duration::from_secs(10);

/// Questions without an answer after which it is gone.
const PROBES: libc::c_int = 3;

/// Bounds what the kernel holds of what clients of a listening socket have sent and nobody has read, to
/// twice `unread_bytes` a connection by its own count. Connections have it from their listener, and
/// from their first byte: one that is not accepted yet is sent to already.
///
/// # Errors
/// The kernel's.
pub fn bound_received(listener: &impl AsFd, unread_bytes: usize) -> io::Result<()> {
    let bytes = libc::c_int::try_from(unread_bytes).map_err(io::Error::other)?;
    set(listener, libc::SOL_SOCKET, libc::SO_RCVBUF, bytes)
}

/// Prepares a connection: small messages are sent at once, and a client whose machine or cable is gone
/// is given up after half a minute.
///
/// # Errors
/// The kernel's.
pub fn prepare(socket: &impl AsFd) -> io::Result<()> {
    let interval_s = libc::c_int::try_from(PROBE_INTERVAL.as_secs()).map_err(io::Error::other)?;
    let patience_ms = 1000 * interval_s * PROBES;
    for (level, name, value) in [
        (libc::SOL_SOCKET, libc::SO_KEEPALIVE, 1),
        (libc::IPPROTO_TCP, libc::TCP_NODELAY, 1),
        (libc::IPPROTO_TCP, libc::TCP_KEEPIDLE, interval_s),
        (libc::IPPROTO_TCP, libc::TCP_KEEPINTVL, interval_s),
        (libc::IPPROTO_TCP, libc::TCP_KEEPCNT, PROBES),
        // Also what was sent and is not acknowledged.
        (libc::IPPROTO_TCP, libc::TCP_USER_TIMEOUT, patience_ms),
    ] {
        set(socket, level, name, value)?;
    }
    Ok(())
}

fn set(
    socket: &impl AsFd,
    level: libc::c_int,
    name: libc::c_int,
    value: libc::c_int,
) -> io::Result<()> {
    let bytes = libc::socklen_t::try_from(size_of_val(&value)).map_err(io::Error::other)?;
    // SAFETY: the descriptor is open for as long as it is borrowed, and the kernel reads `bytes`
    // bytes of an integer that has as many.
    let result = unsafe {
        let fd = socket.as_fd().as_raw_fd();
        libc::setsockopt(fd, level, name, std::ptr::from_ref(&value).cast(), bytes)
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::socket::{getsockopt, sockopt};
    use std::net::{TcpListener, TcpStream};

    #[test]
    fn what_a_port_holds_of_a_client_is_bounded() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        bound_received(&listener, 32 << 10).unwrap();
        let _client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (connection, _) = listener.accept().unwrap();
        prepare(&connection).unwrap();
        assert_eq!(getsockopt(&connection, sockopt::RcvBuf).unwrap(), 64 << 10);
        assert!(getsockopt(&connection, sockopt::KeepAlive).unwrap());
        assert!(connection.nodelay().unwrap());
    }
}
