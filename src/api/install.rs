//! `POST /v2/repository/install`: a version as a tar, written to the store while it comes.
//!
//! The body goes piece by piece to a thread of its own, which writes, verifies and installs. A
//! short queue between them keeps a fast client at the disk's pace. Whoever goes away before the
//! end of the body leaves nothing.

use super::body::{self, Pace};
use super::envelope::OipError;
use super::error::ApiError;
use super::granted;
use super::state::Api;
use super::versions::Takeover;
use crate::engine::{Cancel, EngineError};
use crate::store::manifest::HEAP_BYTES_PER_BYTE;
use crate::store::{Archive, BUFFER_BYTES};
use crate::stream::{Grant, OverBudget};
use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, Uri};
use hyper::body::{Buf, Bytes};
use serde_json::{Value, json};
use std::io::{self, Read};
use std::sync::Arc;
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};

/// Pieces between the connection and the thread.
const QUEUE_PIECES: usize = 4;

/// What the ledger is asked for an install: the pieces on their way, of a connection's buffer each;
/// the buffers of receiving and of verifying; what the thread touches of its stack.
const INSTALL_BYTES: u64 =
    (QUEUE_PIECES as u64 + 2) * (32 << 10) + BUFFER_BYTES as u64 + (1 << 20) + (64 << 10);

/// What a layer file's index takes for each of its bytes while its blocks are verified.
const INDEX_BYTES_PER_BYTE: u64 = 4;

/// `POST /v2/repository/install`, with `?force=true` over a version that is there.
pub async fn install(
    State(api): State<Arc<Api>>,
    uri: Uri,
    headers: HeaderMap,
    mut pieces: Body,
) -> Result<Json<Value>, OipError> {
    let force = parse_force(uri.query())?;
    body::require_type(&headers, &["application/x-tar"])?;
    let permit = Arc::clone(&api.installs.0).try_acquire_owned().map_err(|_| {
        ApiError::unavailable("another install is under way: try again later").closing()
    })?;
    let grant = granted::grant(&api, INSTALL_BYTES).await.map_err(ApiError::closing)?;
    let (queued, queue) = mpsc::channel(QUEUE_PIECES);
    let (sender, outcome) = oneshot::channel();
    let gone = Gone(Cancel::new());
    let job = Job { api, force, grant, gone: gone.0.clone(), _permit: permit };
    std::thread::Builder::new()
        .name("install".to_owned())
        .spawn(move || {
            // The receiver is gone if the client is.
            let _ = sender.send(job.run(PieceReader::new(queue)));
        })
        .map_err(|error| ApiError::internal(format!("cannot start a thread: {error}")))?;
    let mut pace = Pace::new();
    loop {
        let piece = body::next_piece(&mut pieces, pace.deadline()).await?;
        let is_end = piece.is_none();
        pace.received(piece.as_ref().map_or(0, Bytes::len));
        // A closed queue means that the thread has found something to refuse.
        if queued.send(piece).await.is_err() || is_end {
            break;
        }
    }
    let outcome = outcome.await.map_err(|_| ApiError::internal("the install failed within"))?;
    let (swap, bytes) = outcome.map_err(ApiError::closing)?;
    let mut reply = swap.done().await.map_err(ApiError::closing)?;
    reply["bytes"] = json!(bytes);
    Ok(Json(reply))
}

/// Tells the thread, when it is dropped, that nobody waits any more.
struct Gone(Cancel);

impl Drop for Gone {
    fn drop(&mut self) {
        self.0.cancel();
    }
}

/// What the thread does, and what is held for it until its end.
struct Job {
    api: Arc<Api>,
    force: bool,
    grant: Grant,
    gone: Cancel,
    _permit: OwnedSemaphorePermit,
}

impl Job {
    fn run(mut self, input: PieceReader) -> Result<(Takeover, u64), ApiError> {
        let store = self.api.engine.store().clone();
        store.confirm()?;
        let archive = Archive::open(input)?;
        let manifest_bytes = archive.manifest_bytes().saturating_mul(HEAP_BYTES_PER_BYTE);
        self.enlarge(INSTALL_BYTES.saturating_add(manifest_bytes))?;
        let received = archive.receive(store.path(), self.force, |_| ())?;
        let index_bytes = received.largest_index_bytes()?.saturating_mul(INDEX_BYTES_PER_BYTE);
        self.enlarge(self.grant.bytes().saturating_add(index_bytes))?;
        let bytes = received.bytes();
        let verified = received.verify(|_| ())?;
        let is_awaited = || !self.gone.is_cancelled();
        self.api.engine.rehearse(verified.dir(), is_awaited).map_err(refusal)?;
        if self.gone.is_cancelled() {
            return Err(ApiError::unavailable("the client left"));
        }
        let dir = verified.install(self.force)?;
        let (model, version) = (dir.manifest.model.clone(), dir.manifest.version.clone());
        drop(dir);
        Ok((Takeover::begin(&self.api, model, version), bytes))
    }

    fn enlarge(&mut self, bytes: u64) -> Result<(), OverBudget> {
        let room = self.api.engine.room();
        room.enlarge_in_time(&mut self.grant, bytes, 0, &self.gone)
    }
}

/// What is wrong with the graph is wrong with what was sent.
fn refusal(error: EngineError) -> ApiError {
    match error {
        EngineError::Unfit { why, .. } => ApiError::invalid(format!(
            "graph.onnx is not to be served: {why}\nnothing was installed"
        )),
        error => error.into(),
    }
}

/// The body as the thread reads it.
struct PieceReader {
    queue: mpsc::Receiver<Option<Bytes>>,
    piece: Bytes,
    is_end: bool,
}

impl PieceReader {
    fn new(queue: mpsc::Receiver<Option<Bytes>>) -> PieceReader {
        PieceReader { queue, piece: Bytes::new(), is_end: false }
    }
}

impl Read for PieceReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while !self.piece.has_remaining() && !self.is_end {
            match self.queue.blocking_recv() {
                Some(Some(piece)) => self.piece = piece,
                Some(None) => self.is_end = true,
                None => {
                    let kind = io::ErrorKind::ConnectionAborted;
                    return Err(io::Error::new(kind, "the client left"));
                }
            }
        }
        let count = buffer.len().min(self.piece.len());
        self.piece.copy_to_slice(&mut buffer[..count]);
        Ok(count)
    }
}

fn parse_force(query: Option<&str>) -> Result<bool, ApiError> {
    match query {
        None | Some("" | "force=false") => Ok(false),
        Some("force=true") => Ok(true),
        Some(_) => Err(ApiError::invalid("the query is unknown: expected force=true").closing()),
    }
}
