//! What hermesctl says to hermesd, and how it prints the answers.

pub mod embed;
pub mod infer;
pub mod list;
mod npy;
mod table;
pub mod versions;

use crate::daemon::config::DEFAULT_SOCKET;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper::http::request;
use hyper::{Method, Request, StatusCode, header};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use std::io;
use std::path::{Path, PathBuf};
use thiserror::Error;
use tokio::net::UnixStream;
use tokio::runtime::Runtime;

/// Why a command failed; [`ClientError::exit_code`] tells scripts.
#[derive(Debug, Error)]
pub enum ClientError {
    /// The daemon refused.
    #[error("{message} (status {status})")]
    Refused {
        /// HTTP status.
        status: u16,
        /// The daemon's words.
        message: String,
    },
    /// A file or an argument that cannot be used.
    #[error("{0}")]
    Usage(String),
    /// Nobody answers on the socket.
    #[error("{socket}: cannot reach hermesd: {source}; is it running? --socket says where")]
    Unreachable {
        /// The socket.
        socket: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The daemon went away in the middle.
    #[error("the connection to hermesd broke off: {0}")]
    Broken(String),
}

impl ClientError {
    /// 1 refused by the daemon, 2 usage, 3 the daemon cannot be reached.
    pub fn exit_code(&self) -> u8 {
        match self {
            ClientError::Refused { .. } => 1,
            ClientError::Usage(_) => 2,
            ClientError::Unreachable { .. } | ClientError::Broken(_) => 3,
        }
    }
}

impl From<hyper::Error> for ClientError {
    fn from(error: hyper::Error) -> ClientError {
        ClientError::Broken(error.to_string())
    }
}

/// The socket of `$HERMES_SOCKET`, else `/run/hermes/hermes.sock`.
pub fn default_socket() -> PathBuf {
    std::env::var_os("HERMES_SOCKET").unwrap_or_else(|| DEFAULT_SOCKET.into()).into()
}

/// A caller of one daemon.
#[derive(Debug)]
pub struct Client {
    socket: PathBuf,
    runtime: Runtime,
}

impl Client {
    /// A caller of the daemon at `socket`; connects with each call.
    ///
    /// # Errors
    ///
    /// Where the kernel gives no event loop.
    pub fn new(socket: &Path) -> io::Result<Client> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        Ok(Client { socket: socket.to_owned(), runtime })
    }

    /// The body of a `GET`, as JSON.
    ///
    /// # Errors
    ///
    /// [`ClientError`]: unreachable, refused, or broken off.
    pub fn get(&self, path: &str) -> Result<Value, ClientError> {
        parse(&self.call(Method::GET, path, Vec::new())?)
    }

    /// The body of a `POST` of a JSON body.
    ///
    /// # Errors
    ///
    /// As for [`Client::get`].
    pub fn post(&self, path: &str, body: Vec<u8>) -> Result<Bytes, ClientError> {
        self.call(Method::POST, path, body)
    }

    fn call(&self, method: Method, path: &str, body: Vec<u8>) -> Result<Bytes, ClientError> {
        let request = Request::builder().method(method).uri(path);
        let request = request.header(header::CONTENT_TYPE, "application/json");
        self.send(request, Full::new(Bytes::from(body)).map_err(io::Error::other).boxed_unsync())
    }

    /// Sends a request on a connection of its own and returns the body of the reply.
    fn send(
        &self,
        request: request::Builder,
        body: UnsyncBoxBody<Bytes, io::Error>,
    ) -> Result<Bytes, ClientError> {
        self.runtime.block_on(async {
            let stream = UnixStream::connect(&self.socket).await.map_err(|source| {
                ClientError::Unreachable { socket: self.socket.clone(), source }
            })?;
            let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
            let connection = tokio::spawn(connection);
            let request = request
                .header(header::HOST, "hermes")
                .body(body)
                .map_err(|error| ClientError::Usage(format!("not a request: {error}")))?;
            let response = sender.send_request(request).await?;
            let status = response.status();
            let body = response.into_body().collect().await?.to_bytes();
            connection.abort();
            match status.is_success() {
                true => Ok(body),
                false => Err(refused(status, &body)),
            }
        })
    }
}

fn parse(body: &[u8]) -> Result<Value, ClientError> {
    serde_json::from_slice(body)
        .map_err(|error| ClientError::Broken(format!("the answer is not JSON: {error}")))
}

/// The daemon's words in either protocol's shape, or the body as it is.
fn refused(status: StatusCode, body: &[u8]) -> ClientError {
    let value: Value = serde_json::from_slice(body).unwrap_or_default();
    let message = [&value["error"]["message"], &value["error"]]
        .into_iter()
        .find_map(|message| message.as_str().map(str::to_owned))
        .unwrap_or_else(|| String::from_utf8_lossy(body).into_owned());
    ClientError::Refused { status: status.as_u16(), message }
}

/// A name as a segment of a path.
fn segment(name: &str) -> String {
    let mut text = String::new();
    for byte in name.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => {
                text.push(char::from(byte));
            }
            _ => text.push_str(&format!("%{byte:02X}")),
        }
    }
    text
}
