//! Request bodies: bounded, granted by the ledger as they come, and read within a time.

use super::error::ApiError;
use super::granted;
use super::state::Api;
use crate::engine::Cancel;
use crate::stream::{Grant, OverBudget};
use crate::sys::heap::large_bytes;
use crate::values::size::Size;
use crate::wire::JSON_BYTES_HEADER;
use crate::wire::infer_tensor::Reserve;
use crate::wire::quote::quote_bytes;
use axum::body::Body;
use axum::http::{HeaderMap, HeaderName, StatusCode, header};
use http_body_util::BodyExt;
use hyper::body::{Body as _, Bytes};
use serde::de::DeserializeOwned;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, timeout, timeout_at};

/// Longest silence within a body.
const SILENCE: Duration = Duration::from_secs(10);

/// Longest time for a body: a local client needs a fraction of a second.
const DEADLINE: Duration = Duration::from_secs(60);

/// Slowest rate at which a body of any length may come: a slow network behind a pipe.
const SLOWEST_BYTES_S: u64 = 64 << 10;

/// Bodies up to this are parsed on the event loop: at 200 MB/s, in a third of a millisecond.
const PARSE_INLINE_BYTES: usize = 64 << 10;

/// First step of a body; it doubles from there, up to the length that it declares.
const FIRST_BYTES: usize = 16 << 10;

/// A body and the ledger's grant for it.
#[derive(Debug)]
pub struct GrantedBody {
    /// The bytes.
    pub bytes: Vec<u8>,
    grant: Grant,
}

const JSON_BYTES: HeaderName = HeaderName::from_static(JSON_BYTES_HEADER);

const JSON_TYPE: &str = "application/json";
const FORM_TYPE: &str = "application/x-www-form-urlencoded";
const BINARY_TYPE: &str = "application/octet-stream";

/// A body of a few fields, as JSON; `None` where it is empty.
///
/// # Errors
///
/// Those of [`require_json`] and [`read`]; 400 where it is something else.
pub async fn read_json<T: DeserializeOwned>(
    api: &Arc<Api>,
    headers: &HeaderMap,
    body: Body,
) -> Result<Option<T>, ApiError> {
    require_json(headers)?;
    let body = read(body, FIRST_BYTES as u64, api).await?;
    if body.bytes.is_empty() {
        return Ok(None);
    }
    serde_json::from_slice(&body.bytes)
        .map(Some)
        .map_err(|error| ApiError::invalid(format!("the request body: {error}")))
}

/// Refuses a body that says it is something else than JSON. `curl -d` says so without being asked
/// (a form, which no path here takes), so that its word is not believed.
pub fn require_json(headers: &HeaderMap) -> Result<(), ApiError> {
    require_type(headers, &[JSON_TYPE, FORM_TYPE])
}

/// As [`require_json`] for a body that may hold binary tensor data; returns how many bytes of it
/// are the JSON before them, where there are any.
pub fn require_json_or_binary(headers: &HeaderMap) -> Result<Option<usize>, ApiError> {
    let mut lengths = headers.get_all(JSON_BYTES).iter();
    let Some(length) = lengths.next() else {
        return require_json(headers).map(|()| None);
    };
    let parsed = length.to_str().ok().and_then(|text| text.parse().ok());
    let Some(json_bytes) = parsed.filter(|_| lengths.next().is_none()) else {
        let length = quote_bytes(length.as_bytes());
        let message = format!("Inference-Header-Content-Length {length} is not one length");
        return Err(ApiError::invalid(message).closing());
    };
    require_type(headers, &[BINARY_TYPE, JSON_TYPE, FORM_TYPE]).map(|()| Some(json_bytes))
}

/// Refuses a body that says it is of another type than those `known`, or is compressed.
pub fn require_type(headers: &HeaderMap, known: &[&str]) -> Result<(), ApiError> {
    let refuse =
        |message: String| Err(ApiError::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, message).closing());
    if let Some(encoding) = headers.get(header::CONTENT_ENCODING)
        && !encoding.as_bytes().eq_ignore_ascii_case(b"identity")
    {
        let encoding = quote_bytes(encoding.as_bytes());
        return refuse(format!("content-encoding {encoding} is not supported: send it plain"));
    }
    let Some(kind) = headers.get(header::CONTENT_TYPE) else {
        return Ok(());
    };
    let essence = kind.to_str().unwrap_or("").split(';').next().unwrap_or("").trim();
    if known.iter().any(|known| essence.eq_ignore_ascii_case(known)) {
        return Ok(());
    }
    let hint = match essence.eq_ignore_ascii_case(BINARY_TYPE) {
        true => ", or say by Inference-Header-Content-Length how much of it is JSON",
        false => "",
    };
    let kind = quote_bytes(kind.as_bytes());
    refuse(format!("content-type {kind} is not supported: send {}{hint}", known[0]))
}

/// How long a body that is used while it comes may take: as long as any, and longer by its length.
#[derive(Debug)]
pub struct Pace {
    start: Instant,
    received_bytes: u64,
}

impl Pace {
    /// Starts now.
    pub fn new() -> Pace {
        Pace { start: Instant::now(), received_bytes: 0 }
    }

    /// Counts a piece.
    pub fn received(&mut self, bytes: usize) {
        self.received_bytes += bytes as u64;
    }

    /// When the next piece must have come.
    pub fn deadline(&self) -> Instant {
        self.start + DEADLINE + Duration::from_secs(self.received_bytes / SLOWEST_BYTES_S)
    }
}

/// Reads a body of at most `limit_bytes`.
///
/// # Errors
///
/// 413 over the limit, before anything is read if the length is declared; 503 if the ledger still
/// has no room after a while; 408 if it does not come; 400 if it breaks off. All of them close the
/// connection.
pub async fn read(
    mut body: Body,
    limit_bytes: u64,
    api: &Arc<Api>,
) -> Result<GrantedBody, ApiError> {
    let declared = body.size_hint().exact();
    if let Some(length) = declared.filter(|length| *length > limit_bytes) {
        return Err(too_large(&length.to_string(), limit_bytes));
    }
    // A length that is declared costs its client nothing: what is held follows what has come.
    let length = declared.and_then(|length| usize::try_from(length).ok()).unwrap_or(usize::MAX);
    let first = length.min(FIRST_BYTES);
    let grant = granted::grant(api, first as u64).await.map_err(ApiError::closing)?;
    let mut granted = GrantedBody { bytes: Vec::with_capacity(first), grant };
    let deadline = Instant::now() + DEADLINE;
    while let Some(piece) = next_piece(&mut body, deadline).await? {
        granted.append(api, &piece, length, limit_bytes).await?;
    }
    Ok(granted)
}

/// Reads the JSON body of a request that names its model within: where there is no room for it, the
/// least budget of any model is told, since which it is about was not read.
///
/// # Errors
///
/// Those of [`require_json`] and [`read`].
pub async fn read_unnamed(
    body: Body,
    headers: &HeaderMap,
    api: &Arc<Api>,
) -> Result<GrantedBody, ApiError> {
    require_json(headers)?;
    match read(body, api.body_limit_bytes(), api).await {
        Err(error) if error.over_budget.is_some() => {
            let least = |api: &Arc<Api>| Ok(api.engine.least_budget_of_any_bytes());
            let least_bytes = api.look(least).await?;
            Err(error.at_least(|| least_bytes))
        }
        read => read,
    }
}

impl GrantedBody {
    /// Appends a piece of a body that will have `whole` bytes, as far as that is known.
    async fn append(
        &mut self,
        api: &Arc<Api>,
        piece: &[u8],
        whole: usize,
        limit_bytes: u64,
    ) -> Result<(), ApiError> {
        let length = self.bytes.len() + piece.len();
        if length as u64 > limit_bytes {
            return Err(too_large(&format!("more than {limit_bytes}"), limit_bytes));
        }
        if length > self.bytes.capacity() {
            let capacity = length.max((2 * self.bytes.capacity()).min(whole));
            // What is small is copied: both are held for a moment. What is large has a mapping of
            // its own, which grows (`sys::heap`).
            let copied = self.bytes.capacity().min(large_bytes());
            let peak_bytes = (capacity + copied) as u64;
            granted::enlarge(api, &mut self.grant, peak_bytes).await.map_err(ApiError::closing)?;
            self.bytes.reserve_exact(capacity - self.bytes.len());
            self.grant.resize(self.bytes.capacity() as u64)?;
        }
        self.bytes.extend_from_slice(piece);
        Ok(())
    }

    /// Has `parse` make something of the bytes, which asks by its second argument for what it needs
    /// beside them, and says how much of that is held from then on: by the grant, which covers that
    /// alone afterwards. What there is no room for now is waited for on a helper thread.
    ///
    /// # Errors
    ///
    /// Those of `parse`; 503 where there is still no room after a while.
    pub async fn parse<T: Send + 'static>(
        mut self,
        api: &Arc<Api>,
        parse: impl Fn(&[u8], &mut Reserve<'_>) -> Result<(T, u64), ApiError> + Send + 'static,
    ) -> Result<(T, Grant), ApiError> {
        if self.bytes.len() <= PARSE_INLINE_BYTES {
            let parsed = self.parse_within(&parse, Grant::resize);
            if !parsed.as_ref().is_err_and(ApiError::may_pass) {
                return Ok((parsed?, self.grant));
            }
        }
        let work = move |api: &Arc<Api>, cancel: &Cancel| {
            let room = api.engine.room();
            let enlarge = |grant: &mut Grant, bytes| room.enlarge_in_time(grant, bytes, 0, cancel);
            let parsed = self.parse_within(&parse, enlarge)?;
            Ok((parsed, self.grant))
        };
        api.help(work).await
    }

    fn parse_within<T>(
        &mut self,
        parse: impl Fn(&[u8], &mut Reserve<'_>) -> Result<(T, u64), ApiError>,
        mut enlarge: impl FnMut(&mut Grant, u64) -> Result<(), OverBudget>,
    ) -> Result<T, ApiError> {
        let GrantedBody { bytes, grant } = self;
        let held_bytes = bytes.capacity() as u64;
        let (parsed, kept_bytes) = parse(bytes, &mut |more| enlarge(grant, held_bytes + more))?;
        *bytes = vec![];
        grant.resize(kept_bytes)?;
        Ok(parsed)
    }
}

/// The next piece of a body; `None` at its end.
///
/// # Errors
///
/// 408 if it does not come within [`SILENCE`] and before `deadline`; 400 if the body breaks off.
/// Both close the connection.
pub async fn next_piece(body: &mut Body, deadline: Instant) -> Result<Option<Bytes>, ApiError> {
    loop {
        let late = |what: &str| ApiError::new(StatusCode::REQUEST_TIMEOUT, what).closing();
        let frame = timeout_at(deadline, timeout(SILENCE, body.frame()))
            .await
            .map_err(|_| late("the request body took longer than it may"))?
            .map_err(|_| late("no byte of the request body for 10 s"))?;
        match frame {
            None => return Ok(None),
            Some(Err(error)) => {
                let message = format!("the request body broke off: {error}");
                return Err(ApiError::invalid(message).closing());
            }
            Some(Ok(frame)) => {
                if let Ok(data) = frame.into_data() {
                    return Ok(Some(data));
                }
            }
        }
    }
}

fn too_large(length: &str, limit_bytes: u64) -> ApiError {
    let message = format!(
        "the request body has {length} bytes; the limit is {limit_bytes} ({}): send less, or start \
         hermesd with a larger --budget",
        Size(limit_bytes)
    );
    ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, message).closing()
}
