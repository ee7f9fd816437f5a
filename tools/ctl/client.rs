//! A caller of hermesd, and why a call failed.

use hermes_base::values::DEFAULT_SOCKET;
use hermes_base::wire::JSON_BYTES_HEADER;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper::http::{request, response};
use hyper::{Request, header};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;
use thiserror::Error;
use tokio::net::UnixStream;
use tokio::runtime::Runtime;

/// The last lines of each command's help.
pub const EXIT_CODES: &str = "Exit codes: 0 done, 1 refused by the daemon, 2 usage (arguments or \
                              files), 3 the daemon cannot be reached.";

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
        /// The field of the request that it names, as OpenAI's protocol has it.
        param: Option<String>,
        /// When to try again, where it says so.
        retry_after: Option<Duration>,
    },
    /// A file or an argument that cannot be used.
    #[error("{0}")]
    Usage(String),
    /// Nobody answers on the socket.
    #[error("{socket}: cannot reach hermesd: {source}; {}", advice(.source))]
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

fn advice(source: &io::Error) -> &'static str {
    match source.kind() {
        io::ErrorKind::PermissionDenied => {
            "you must be in the socket's group: join it and log in again"
        }
        _ => "is it running? --socket says where",
    }
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

/// What the daemon advises those who write requests, and what those do who have hermesctl write them.
const ADVICE: [(&str, &str); 2] =
    [("send \"truncate\": true", "give --truncate"), ("\nshorten the text", "; shorten it")];

impl ClientError {
    /// The same, with the daemon's advice put as flags.
    pub fn for_flags(self) -> ClientError {
        match self {
            ClientError::Refused { status, message, param, retry_after } => {
                let message =
                    ADVICE.iter().fold(message, |text, (said, ours)| text.replace(said, ours));
                ClientError::Refused { status, message, param, retry_after }
            }
            other => other,
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
    let named = std::env::var_os("HERMES_SOCKET").filter(|path| !path.is_empty());
    named.unwrap_or_else(|| DEFAULT_SOCKET.into()).into()
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

    /// The event loop that its calls wait on.
    pub fn runtime(&self) -> &Runtime {
        &self.runtime
    }

    /// Where the daemon listens.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// The body of a `GET`, as JSON.
    ///
    /// # Errors
    ///
    /// [`ClientError`]: unreachable, refused, or broken off.
    pub fn get(&self, path: &str) -> Result<Value, ClientError> {
        parse(&self.call(Request::get(path), Vec::new())?.1)
    }

    /// The body of a `GET`, as text.
    ///
    /// # Errors
    ///
    /// As for [`Client::get`].
    pub fn get_text(&self, path: &str) -> Result<String, ClientError> {
        let (_, body) = self.call(Request::get(path), Vec::new())?;
        Ok(String::from_utf8_lossy(&body).into_owned())
    }

    /// The body of a `POST` of a JSON body.
    ///
    /// # Errors
    ///
    /// As for [`Client::get`].
    pub fn post(&self, path: &str, body: Vec<u8>) -> Result<Bytes, ClientError> {
        self.post_binary(path, body, None).map(|(body, _)| body)
    }

    /// As [`Client::post`] for a body of which binary tensor data follows after `json_bytes`;
    /// returns also how many bytes of the reply are JSON, where binary data follows.
    ///
    /// # Errors
    ///
    /// As for [`Client::get`].
    pub fn post_binary(
        &self,
        path: &str,
        body: Vec<u8>,
        json_bytes: Option<usize>,
    ) -> Result<(Bytes, Option<usize>), ClientError> {
        let mut request = Request::post(path);
        request = match json_bytes {
            Some(json_bytes) => request
                .header(header::CONTENT_TYPE, "application/octet-stream")
                .header(JSON_BYTES_HEADER, json_bytes),
            None => request.header(header::CONTENT_TYPE, "application/json"),
        };
        let (head, body) = self.call(request, body)?;
        let json_bytes = head.headers.get(JSON_BYTES_HEADER);
        Ok((body, json_bytes.and_then(|length| length.to_str().ok()?.parse().ok())))
    }

    /// Sends a request with a whole body.
    ///
    /// # Errors
    ///
    /// As for [`Client::get`].
    pub fn call(
        &self,
        request: request::Builder,
        body: Vec<u8>,
    ) -> Result<(response::Parts, Bytes), ClientError> {
        self.send(request, Full::new(Bytes::from(body)).map_err(io::Error::other).boxed_unsync())
    }

    /// Sends a request on a connection of its own and returns the reply.
    ///
    /// # Errors
    ///
    /// As for [`Client::get`].
    pub fn send(
        &self,
        request: request::Builder,
        body: UnsyncBoxBody<Bytes, io::Error>,
    ) -> Result<(response::Parts, Bytes), ClientError> {
        let request = request
            .header(header::HOST, "hermes")
            .body(body)
            .map_err(|error| ClientError::Usage(format!("no request can be made: {error}")))?;
        self.runtime.block_on(async {
            let stream = UnixStream::connect(&self.socket).await.map_err(|source| {
                ClientError::Unreachable { socket: self.socket.clone(), source }
            })?;
            let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
            let connection = tokio::spawn(connection);
            let (head, body) = sender.send_request(request).await?.into_parts();
            let body = body.collect().await?.to_bytes();
            connection.abort();
            match head.status.is_success() {
                true => Ok((head, body)),
                false => Err(refused(&head, &body)),
            }
        })
    }

    /// The events that a `POST` of a JSON body is answered with, as they come. What `take` fails by is
    /// that its output is closed; once `end` is there, the stream is ended.
    ///
    /// # Errors
    ///
    /// As for [`Client::get`]; an event that tells an error.
    pub fn events(
        &self,
        path: &str,
        body: Vec<u8>,
        end: impl Future<Output = ()>,
        mut take: impl FnMut(&Value) -> io::Result<()>,
    ) -> Result<Ended, ClientError> {
        let request = Request::post(path)
            .header(header::CONTENT_TYPE, "application/json")
            .header(header::HOST, "hermes")
            .body(Full::new(Bytes::from(body)))
            .map_err(|error| ClientError::Usage(format!("no request can be made: {error}")))?;
        let whole = async {
            let stream = UnixStream::connect(&self.socket).await.map_err(|source| {
                ClientError::Unreachable { socket: self.socket.clone(), source }
            })?;
            let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
            // With it the connection ends, and the daemon sees that nobody waits.
            let _connection = AbortOnDrop(tokio::spawn(connection));
            let (head, mut body) = sender.send_request(request).await?.into_parts();
            if !head.status.is_success() {
                return Err(refused(&head, &body.collect().await?.to_bytes()));
            }
            let mut events = Events::default();
            while let Some(frame) = body.frame().await.transpose()? {
                for event in events.push(&frame.into_data().unwrap_or_default()) {
                    if event == "[DONE]" {
                        return Ok(Ended::Whole);
                    }
                    let event = parse(event.as_bytes())?;
                    if event["error"].is_object() {
                        return Err(refused(&head, event.to_string().as_bytes()));
                    }
                    if take(&event).is_err() {
                        return Ok(Ended::Closed);
                    }
                }
            }
            Err(ClientError::Broken("the text broke off".to_owned()))
        };
        self.runtime.block_on(async {
            tokio::select! {
                ended = whole => ended,
                () = end => Ok(Ended::Interrupted),
            }
        })
    }
}

struct AbortOnDrop<T>(tokio::task::JoinHandle<T>);

impl<T> Drop for AbortOnDrop<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// How a stream of events ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// As the daemon meant.
    Whole,
    /// By whoever waited for it.
    Interrupted,
    /// Nobody takes the events any more.
    Closed,
}

/// Events as their bytes come.
#[derive(Default)]
struct Events(Vec<u8>);

impl Events {
    /// The data of those that are whole with these bytes.
    fn push(&mut self, bytes: &[u8]) -> Vec<String> {
        self.0.extend_from_slice(bytes);
        let mut events = vec![];
        while let Some(end) = self.0.windows(2).position(|pair| pair == b"\n\n") {
            let event: Vec<u8> = self.0.drain(..end + 2).collect();
            let event = String::from_utf8_lossy(&event);
            let data = event.lines().filter_map(|line| line.strip_prefix("data: "));
            events.extend(data.map(str::to_owned));
        }
        events
    }
}

/// The JSON of an answer.
///
/// # Errors
///
/// [`ClientError::Broken`] where it is none.
pub fn parse(body: &[u8]) -> Result<Value, ClientError> {
    serde_json::from_slice(body)
        .map_err(|error| ClientError::Broken(format!("the answer is not JSON: {error}")))
}

/// The daemon's words in either protocol's shape, or the body as it is.
fn refused(head: &response::Parts, body: &[u8]) -> ClientError {
    let value: Value = serde_json::from_slice(body).unwrap_or_default();
    let message = [&value["error"]["message"], &value["error"]]
        .into_iter()
        .find_map(|message| message.as_str().map(str::to_owned))
        .unwrap_or_else(|| String::from_utf8_lossy(body).into_owned());
    let param = value["error"]["param"].as_str().map(str::to_owned);
    let seconds = head.headers.get(header::RETRY_AFTER);
    let seconds = seconds.and_then(|seconds| seconds.to_str().ok()?.parse().ok());
    let retry_after = seconds.map(Duration::from_secs);
    ClientError::Refused { status: head.status.as_u16(), message, param, retry_after }
}

/// A name as a segment of a path.
pub fn segment(name: &str) -> String {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_whole_however_their_bytes_come() {
        let text = "data: {\"a\":\"\u{e9}\"}\n\n: a comment\n\ndata: [DONE]\n\n";
        for cut in 1..text.len() {
            let mut events = Events::default();
            let got: Vec<String> =
                text.as_bytes().chunks(cut).flat_map(|piece| events.push(piece)).collect();
            assert_eq!(got, ["{\"a\":\"\u{e9}\"}", "[DONE]"]);
        }
    }

    /// The way with curl was told to who had given a file of texts.
    #[test]
    fn advice_is_put_as_flags() {
        let message = "600 tokens; the model takes at most 512\n\
                       shorten the text, or send \"truncate\": true";
        let refused = ClientError::Refused {
            status: 400,
            message: message.to_owned(),
            param: None,
            retry_after: None,
        };
        let expected = "600 tokens; the model takes at most 512; shorten it, or give --truncate \
                        (status 400)";
        assert_eq!(refused.for_flags().to_string(), expected);
    }

    #[test]
    fn who_may_not_connect_is_told_of_the_group() {
        let told = |errno| {
            let source = io::Error::from_raw_os_error(errno);
            ClientError::Unreachable { socket: "/s".into(), source }.to_string()
        };
        let (denied, refused) = (told(libc::EACCES), told(libc::ECONNREFUSED));
        assert!(denied.contains("socket's group") && !denied.contains("running"), "{denied}");
        assert!(refused.contains("is it running?") && !refused.contains("group"), "{refused}");
    }
}
