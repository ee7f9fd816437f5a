//! What clients connect to: the sockets that the service manager passed, and those of the config
//! that are not among them.

use super::activation::{self, ActivationError};
use super::address::{Address, Addresses};
use super::config::Settings;
use super::listener::Listener;
use super::socket::{self, SocketError, SocketFile};
use std::io;
use std::net::{SocketAddr, TcpListener};
use thiserror::Error;

/// Something that cannot be listened on.
#[derive(Debug, Error)]
pub enum ListenError {
    /// A passed socket is no good.
    #[error(transparent)]
    Passed(#[from] ActivationError),
    /// A Unix socket cannot be bound.
    #[error(transparent)]
    Unix(#[from] SocketError),
    /// A port cannot be opened.
    #[error("listen: tcp:{address}: cannot open the port: {source}; {advice}")]
    Tcp {
        /// The address.
        address: SocketAddr,
        /// Why not.
        source: io::Error,
        /// What to do.
        advice: &'static str,
    },
    /// A port beyond this machine, and nobody is asked for anything.
    #[error(
        "{0}: other machines may reach this address, and no token is asked for: set token-file, or \
         listen on tcp:127.0.0.1"
    )]
    Open(Address),
}

/// What is listened on.
#[derive(Debug)]
pub struct Listening {
    /// The sockets.
    pub listeners: Vec<Listener>,
    /// The files of those that this process has bound, removed on drop.
    pub files: Vec<SocketFile>,
}

impl Settings {
    /// Opens what clients connect to.
    ///
    /// Passed sockets are in the place of the socket of the config. What `listen` says is opened
    /// beside both, where it is not among them.
    ///
    /// # Errors
    ///
    /// [`ListenError`].
    pub fn listen(&self) -> Result<Listening, ListenError> {
        let mut listening = Listening { listeners: activation::passed()?, files: vec![] };
        let is_passed = !listening.listeners.is_empty();
        for listener in &listening.listeners {
            if listener.address.is_open() && self.token_file.is_none() {
                return Err(ListenError::Open(listener.address.clone()));
            }
            log::info!("listening on {}, which was passed", listener.address);
        }
        let own = self.own_address().filter(|_| !is_passed);
        for address in own.into_iter().chain(self.listen_addresses()) {
            if listening.listeners.iter().all(|listener| listener.address != address) {
                listening.open(address)?;
            }
        }
        Ok(listening)
    }

    /// What is listened on where nothing is passed.
    pub fn addresses(&self) -> Vec<Address> {
        let mut addresses: Vec<Address> = self.own_address().into_iter().collect();
        let own = addresses.first().cloned();
        addresses.extend(self.listen_addresses().filter(|other| own.as_ref() != Some(other)));
        addresses
    }

    fn own_address(&self) -> Option<Address> {
        self.socket().map(|path| Address::Unix(path.to_owned()))
    }

    fn listen_addresses(&self) -> impl Iterator<Item = Address> {
        self.listen.iter().flat_map(Addresses::iter).cloned()
    }
}

impl Listening {
    fn open(&mut self, address: Address) -> Result<(), ListenError> {
        let listener = match address {
            Address::Unix(path) => {
                let (socket, file) = socket::bind(&path)?;
                self.files.push(file);
                // Its name is that of the file that it was renamed from.
                let listener = Listener::of_unix(socket);
                listener.map(|listener| Listener { address: Address::Unix(path), ..listener })
            }
            Address::Tcp(address) => {
                let failed = |source| refused(address, source);
                Ok(TcpListener::bind(address).and_then(Listener::of_tcp).map_err(failed)?)
            }
        };
        let listener = listener.map_err(ActivationError::Io)?;
        log::info!("listening on {}", listener.address);
        self.listeners.push(listener);
        Ok(())
    }
}

fn refused(address: SocketAddr, source: io::Error) -> ListenError {
    let advice = match source.raw_os_error() {
        Some(libc::EADDRINUSE) => "another program has it (ss -ltnp tells which): choose another",
        Some(libc::EADDRNOTAVAIL) => "no network of this machine has that address",
        Some(libc::EACCES) => "ports below 1024 are root's: choose another",
        // The unit allows Unix sockets alone.
        Some(libc::EAFNOSUPPORT) => {
            "as a service, hermesd takes ports from hermesd.socket: systemctl edit hermesd.socket, \
             [Socket] and ListenStream= with the address and the port"
        }
        _ => "choose another",
    };
    ListenError::Tcp { address, source, advice }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_that_is_taken_is_told_with_the_key() {
        let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = taken.local_addr().unwrap();
        let addresses = format!("tcp:{address}").parse().unwrap();
        let settings = Settings { listen: Some(addresses), ..Settings::default() };
        let error = settings.listen().unwrap_err().to_string();
        let expected =
            format!("listen: tcp:{address}: cannot open the port: Address already in use");
        assert!(
            error.starts_with(&expected) && error.contains("another program has it"),
            "{error}"
        );
    }
}
