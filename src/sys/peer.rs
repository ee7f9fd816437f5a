//! Who is at the other end of a Unix socket, as the kernel saw them connect.

use nix::sys::socket::{getsockopt, setsockopt, sockopt};
use nix::unistd::{Gid, Uid, User, geteuid, getgrouplist};
use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd};

/// Groups that one process can be in: NGROUPS_MAX of the kernel.
const MAX_GROUPS: usize = 65_536;

/// Groups that fit at the first try.
const FEW_GROUPS: usize = 32;

/// A client's process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Its process, 0 where it is in another namespace.
    pub pid: i32,
    /// Its user.
    pub uid: u32,
    /// Its group.
    pub gid: u32,
    /// Its supplementary groups.
    pub groups: Box<[u32]>,
}

impl Peer {
    /// The process that connected `socket` (SO_PEERCRED and SO_PEERGROUPS of unix(7)). A kernel
    /// before 4.13 does not tell the groups: they are looked up by the user's name.
    ///
    /// # Errors
    /// The kernel's.
    pub fn of(socket: &impl AsFd) -> io::Result<Peer> {
        let credentials = getsockopt(socket, sockopt::PeerCredentials)?;
        let (pid, uid, gid) = (credentials.pid(), credentials.uid(), credentials.gid());
        let groups = groups(socket).unwrap_or_else(|error| {
            log::debug!("the kernel does not tell a client's groups ({error}): looking them up");
            groups_of_user(uid, gid)
        });
        Ok(Peer { pid, uid, gid, groups })
    }

    /// Whether the process is in a group.
    pub fn is_in(&self, gid: u32) -> bool {
        self.gid == gid || self.groups.contains(&gid)
    }
}

/// Whether `uid` is root or the user that this process runs as.
pub fn is_keeper(uid: u32) -> bool {
    uid == 0 || uid == geteuid().as_raw()
}

/// Bounds what the kernel holds of what was written to `socket` and not read at its other end, to
/// twice `bytes`, its own counted with them. A Unix socket takes one more piece before that is
/// reached, as long as half of it.
///
/// # Errors
/// The kernel's.
pub fn bound_unread(socket: &impl AsFd, bytes: usize) -> io::Result<()> {
    Ok(setsockopt(socket, sockopt::SndBuf, &bytes)?)
}

fn groups(socket: &impl AsFd) -> io::Result<Box<[u32]>> {
    let mut groups: Vec<libc::gid_t> = vec![0; FEW_GROUPS];
    loop {
        let mut bytes = libc::socklen_t::try_from(size_of_val(groups.as_slice()))
            .expect("the groups of a process take 256 KiB at most");
        // SAFETY: the file descriptor is open for as long as it is borrowed; the kernel writes at
        // most `bytes` bytes to the buffer, which has as many, and any bytes are gid_t.
        let result = unsafe {
            libc::getsockopt(
                socket.as_fd().as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_PEERGROUPS,
                groups.as_mut_ptr().cast(),
                &mut bytes,
            )
        };
        let count = bytes as usize / size_of::<libc::gid_t>();
        if result == 0 {
            groups.truncate(count);
            return Ok(groups.into_boxed_slice());
        }
        let error = io::Error::last_os_error();
        // The kernel has said how many there are.
        let more = groups.len() + 1..=MAX_GROUPS;
        if error.raw_os_error() != Some(libc::ERANGE) || !more.contains(&count) {
            return Err(error);
        }
        groups.resize(count, 0);
    }
}

/// The groups that the system's databases give a user; none where it is not known.
fn groups_of_user(uid: u32, gid: u32) -> Box<[u32]> {
    let name = User::from_uid(Uid::from_raw(uid)).ok().flatten().map(|user| user.name);
    let name = name.and_then(|name| CString::new(name).ok());
    let groups = name.and_then(|name| getgrouplist(&name, Gid::from_raw(gid)).ok());
    groups.unwrap_or_default().into_iter().map(Gid::as_raw).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::unistd::{getegid, geteuid, getgroups};
    use std::os::unix::net::UnixStream;

    #[test]
    fn a_pair_of_sockets_is_of_this_process() {
        let (near, _far) = UnixStream::pair().unwrap();
        let peer = Peer::of(&near).unwrap();
        assert_eq!(peer.pid, std::process::id() as i32);
        assert_eq!((peer.uid, peer.gid), (geteuid().as_raw(), getegid().as_raw()));
        let mut expected: Vec<u32> = getgroups().unwrap().into_iter().map(Gid::as_raw).collect();
        let mut found = peer.groups.to_vec();
        expected.sort_unstable();
        found.sort_unstable();
        assert_eq!(found, expected);
        assert!(peer.is_in(getegid().as_raw()));
        assert!(!peer.is_in(u32::MAX - 1));
    }

    #[test]
    fn the_groups_of_root_are_looked_up() {
        assert!(groups_of_user(0, 0).contains(&0));
        assert!(groups_of_user(u32::MAX - 1, 7).is_empty());
    }
}
