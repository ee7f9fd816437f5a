//! Who may do what: lists of users and groups, one for each right.

use crate::sys::peer::Peer;
use nix::unistd::{Group, User, geteuid};
use serde::Deserialize;
use std::fmt;

/// What a request needs to be allowed. Reading metadata and the daemon's health needs nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Right {
    /// Have a model compute.
    Infer,
    /// Load and unload models.
    Load,
    /// Install, choose and remove versions.
    Install,
}

impl fmt::Display for Right {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Right::Infer => "infer",
            Right::Load => "load",
            Right::Install => "install",
        })
    }
}

/// Who has which right. A list is complete: who is not on it, root included, is denied.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Rights {
    infer: Vec<Principal>,
    load: Vec<Principal>,
    install: Vec<Principal>,
}

impl Default for Rights {
    /// Whoever can connect may infer, over TCP too; only root and the daemon's own user may change
    /// what is served.
    fn default() -> Rights {
        let keepers = || vec![Principal::root(), Principal::own()];
        Rights {
            infer: vec![Principal::everyone(), Principal::tcp()],
            load: keepers(),
            install: keepers(),
        }
    }
}

impl Rights {
    /// Whether a client has a right.
    pub fn allow(&self, right: Right, client: Client<'_>) -> bool {
        self.list(right).iter().any(|principal| principal.is(client))
    }

    /// The list of a right, as it is written in the config.
    pub fn texts(&self, right: Right) -> Vec<String> {
        self.list(right).iter().map(|principal| principal.text.clone()).collect()
    }

    fn list(&self, right: Right) -> &[Principal] {
        match right {
            Right::Infer => &self.infer,
            Right::Load => &self.load,
            Right::Install => &self.install,
        }
    }
}

/// Who asks.
#[derive(Clone, Copy, Debug)]
pub enum Client<'a> {
    /// A process of this machine, as the kernel knows it.
    Process(&'a Peer),
    /// Whoever reached a port, and sent the token where one is asked for.
    Tcp,
}

/// An entry of a list: `*` for every user, `tcp` for every TCP client, `self`, a user's name or
/// number, `@` and a group's name or number.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
struct Principal {
    text: String,
    who: Meant,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Meant {
    Everyone,
    Tcp,
    User(u32),
    Group(u32),
}

impl Principal {
    fn everyone() -> Principal {
        Principal { text: "*".to_string(), who: Meant::Everyone }
    }

    fn tcp() -> Principal {
        Principal { text: "tcp".to_string(), who: Meant::Tcp }
    }

    fn root() -> Principal {
        Principal { text: "root".to_string(), who: Meant::User(0) }
    }

    fn own() -> Principal {
        Principal { text: "self".to_string(), who: Meant::User(geteuid().as_raw()) }
    }

    /// Nobody whom the kernel knows is meant by `tcp`, and nobody else by the other entries: what was
    /// granted to all users of a machine is not granted to its network when a port is opened.
    fn is(&self, client: Client<'_>) -> bool {
        match (self.who, client) {
            (Meant::Tcp, Client::Tcp) | (Meant::Everyone, Client::Process(_)) => true,
            (Meant::User(uid), Client::Process(peer)) => peer.uid == uid,
            (Meant::Group(gid), Client::Process(peer)) => peer.is_in(gid),
            _ => false,
        }
    }
}

impl TryFrom<String> for Principal {
    type Error = String;

    fn try_from(text: String) -> Result<Principal, String> {
        let who = match text.strip_prefix('@') {
            Some(group) => Meant::Group(group_id(group)?),
            None => match text.as_str() {
                "*" => return Ok(Principal::everyone()),
                "tcp" => return Ok(Principal::tcp()),
                "self" => return Ok(Principal::own()),
                user => Meant::User(user_id(user)?),
            },
        };
        Ok(Principal { text, who })
    }
}

const FORMS: &str = "write \"*\", \"tcp\", \"self\", a user's name or number, or @ and a group's";

fn user_id(user: &str) -> Result<u32, String> {
    if let Ok(uid) = user.parse() {
        return Ok(uid);
    }
    match User::from_name(user) {
        Ok(Some(user)) => Ok(user.uid.as_raw()),
        Ok(None) => Err(format!("there is no user {user:?}; {FORMS}")),
        Err(error) => Err(format!("user {user:?} cannot be looked up: {error}")),
    }
}

fn group_id(group: &str) -> Result<u32, String> {
    if let Ok(gid) = group.parse() {
        return Ok(gid);
    }
    match Group::from_name(group) {
        Ok(Some(group)) => Ok(group.gid.as_raw()),
        Ok(None) => Err(format!("there is no group {group:?}; {FORMS}")),
        Err(error) => Err(format!("group {group:?} cannot be looked up: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(uid: u32, gid: u32, groups: &[u32]) -> Peer {
        Peer { pid: 1, uid, gid, groups: groups.into() }
    }

    fn check(entry: &str, peer: &Peer, expected: bool) {
        let infer = vec![Principal::try_from(entry.to_string()).unwrap()];
        let rights = Rights { infer, load: vec![], install: vec![] };
        let client = Client::Process(peer);
        assert_eq!(rights.allow(Right::Infer, client), expected, "{entry} for {peer:?}");
        assert_eq!(rights.allow(Right::Infer, Client::Tcp), entry == "tcp", "{entry}");
        for client in [client, Client::Tcp] {
            assert!(!rights.allow(Right::Load, client), "an empty list allows nobody");
        }
    }

    #[test]
    fn users_and_groups_are_told_apart() {
        let client = peer(7, 8, &[9, 10]);
        check("*", &client, true);
        check("7", &client, true);
        check("8", &client, false);
        check("@7", &client, false);
        check("@8", &client, true);
        check("@10", &client, true);
        check("root", &client, false);
        check("root", &peer(0, 8, &[]), true);
        check("@root", &peer(7, 0, &[]), true);
        check("self", &peer(geteuid().as_raw(), 8, &[]), true);
        check("tcp", &client, false);
        check("tcp", &peer(0, 0, &[]), false);
    }

    #[test]
    fn only_keepers_change_what_is_served_by_default() {
        let rights = Rights::default();
        let stranger = peer(u32::MAX - 1, 0, &[0]);
        for client in [Client::Process(&stranger), Client::Tcp] {
            assert!(rights.allow(Right::Infer, client));
            assert!(!rights.allow(Right::Load, client));
            assert!(!rights.allow(Right::Install, client));
        }
        assert!(rights.allow(Right::Install, Client::Process(&peer(0, 1, &[]))));
    }

    #[test]
    fn names_that_nobody_has_are_refused() {
        let refused = |text: &str| Principal::try_from(text.to_string()).unwrap_err();
        assert!(refused("no such user").contains("no user \"no such user\""));
        assert!(refused("@no such group").contains("no group"));
        assert!(refused("").contains("no user"));
        assert!(refused("-1").contains("no user"));
    }
}
