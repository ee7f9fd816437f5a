//! Where the daemon listens, as it is written in the config: `unix:/path`, `tcp:127.0.0.1:8000`.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;

/// Addresses that one daemon listens on, at most.
const MAX_ADDRESSES: usize = 16;

/// The forms of an address.
const FORMS: &str = "write \"unix:/path\", \"tcp:127.0.0.1:8000\" or \"tcp:[::1]:8000\"";

/// A place where clients connect.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Address {
    /// A socket in the file system: the kernel tells who a client is.
    Unix(PathBuf),
    /// A port: nobody tells who a client is. Port 0 is one that the kernel chooses.
    Tcp(SocketAddr),
}

impl Address {
    /// Whether programs of other machines may reach it.
    pub fn is_open(&self) -> bool {
        match self {
            Address::Unix(_) => false,
            Address::Tcp(address) => !is_loopback(address.ip()),
        }
    }
}

/// Whether `ip` is of this machine alone, also as an IPv4 address within IPv6.
pub fn is_loopback(ip: IpAddr) -> bool {
    ip.to_canonical().is_loopback()
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::Unix(path) => write!(f, "unix:{}", path.display()),
            Address::Tcp(address) => write!(f, "tcp:{address}"),
        }
    }
}

impl FromStr for Address {
    type Err = String;

    fn from_str(text: &str) -> Result<Address, String> {
        let wrong = |why: &str| Err(format!("{text:?} is no address: {why}; {FORMS}"));
        match text.split_once(':') {
            Some(("unix", path)) if path.starts_with('/') => Ok(Address::Unix(path.into())),
            Some(("unix", _)) => wrong("the path is not absolute"),
            Some(("tcp", address)) => match address.parse() {
                Ok(address) => Ok(Address::Tcp(address)),
                // What a name means may change; a port is opened once.
                Err(_) => wrong("TCP takes an IP address and a port, and no name"),
            },
            _ => wrong("it begins with neither unix: nor tcp:"),
        }
    }
}

impl TryFrom<String> for Address {
    type Error = String;

    fn try_from(text: String) -> Result<Address, String> {
        text.parse()
    }
}

impl From<Address> for String {
    fn from(address: Address) -> String {
        address.to_string()
    }
}

/// Addresses that differ, at least one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Vec<Address>", into = "Vec<Address>")]
pub struct Addresses(Vec<Address>);

impl Addresses {
    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = &Address> {
        self.0.iter()
    }
}

impl TryFrom<Vec<Address>> for Addresses {
    type Error = String;

    fn try_from(addresses: Vec<Address>) -> Result<Addresses, String> {
        if addresses.is_empty() {
            return Err(format!("there is no address; {FORMS}"));
        }
        if addresses.len() > MAX_ADDRESSES {
            return Err(format!("{} addresses: {MAX_ADDRESSES} at most", addresses.len()));
        }
        let mut earlier = addresses.iter().enumerate();
        match earlier.find(|(index, address)| addresses[..*index].contains(address)) {
            Some((_, address)) => Err(format!("{address} is there twice")),
            None => Ok(Addresses(addresses)),
        }
    }
}

impl From<Addresses> for Vec<Address> {
    fn from(addresses: Addresses) -> Vec<Address> {
        addresses.0
    }
}

impl FromStr for Addresses {
    type Err = String;

    /// Addresses with commas or spaces between.
    fn from_str(text: &str) -> Result<Addresses, String> {
        let parts = text.split([',', ' ']).filter(|part| !part.is_empty());
        Addresses::try_from(parts.map(str::parse).collect::<Result<Vec<Address>, String>>()?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_written_as_they_are_read() {
        let check = |text: &str, is_open: bool| {
            let address: Address = text.parse().unwrap();
            assert_eq!((address.to_string().as_str(), address.is_open()), (text, is_open));
        };
        check("unix:/run/hermes/hermes.sock", false);
        check("unix:/a:b c", false);
        check("tcp:127.0.0.1:8000", false);
        check("tcp:127.8.9.1:0", false);
        check("tcp:[::1]:8000", false);
        check("tcp:[::ffff:127.0.0.1]:8000", false);
        check("tcp:0.0.0.0:8000", true);
        check("tcp:[::]:8000", true);
        check("tcp:[fe80::1%2]:8000", true);
        check("tcp:192.168.1.5:8000", true);
    }

    #[test]
    fn what_is_no_address_is_told_how_to_be_one() {
        for (text, why) in [
            ("", "neither unix: nor tcp:"),
            ("/run/s", "neither"),
            ("127.0.0.1:8000", "neither"),
            ("http://127.0.0.1:8000", "neither"),
            ("unix:s", "not absolute"),
            ("tcp:8000", "an IP address and a port"),
            ("tcp:localhost:8000", "no name"),
            ("tcp:127.0.0.1", "an IP address and a port"),
            ("tcp:127.0.0.1:65536", "an IP address and a port"),
            ("tcp:::1:8000", "an IP address and a port"),
        ] {
            let error = text.parse::<Address>().unwrap_err();
            assert!(error.contains(why) && error.ends_with(FORMS), "{error}");
        }
        let list = |text: &str| text.parse::<Addresses>();
        assert_eq!(list("unix:/a, tcp:127.0.0.1:1,tcp:[::1]:1").unwrap().iter().count(), 3);
        assert!(list(" , ").unwrap_err().starts_with("there is no address; "));
        assert_eq!(list("unix:/a,unix:/b,unix:/a").unwrap_err(), "unix:/a is there twice");
        let many: Vec<_> = (0..17).map(|port| format!("tcp:127.0.0.1:{port}")).collect();
        assert_eq!(list(&many.join(",")).unwrap_err(), "17 addresses: 16 at most");
    }
}
