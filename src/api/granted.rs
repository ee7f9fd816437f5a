//! What handlers hold: granted before, also where that has to be waited for; and replies that are as
//! long as what a store says, granted until the client has taken them.

use super::error::ApiError;
use super::pieces::Pieces;
use super::state::Api;
use crate::engine::{Engine, LONG_PATIENCE, TICK};
use crate::stream::{Category, Grant};
use axum::body::Body;
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use hyper::body::Bytes;
use serde::Serialize;
use std::io::{self, Write};
use std::iter;
use std::sync::Arc;
use tokio::time::{Instant, sleep};

/// A grant for a handler; as [`enlarge`].
///
/// # Errors
///
/// Those of the ledger.
pub async fn grant(api: &Arc<Api>, bytes: u64) -> Result<Grant, ApiError> {
    let mut grant = api.engine.ledger().try_grant(Category::Request, 0)?;
    enlarge(api, &mut grant, bytes).await?;
    Ok(grant)
}

/// Changes a handler's grant as [`Room::enlarge_in_time`](crate::engine::Room::enlarge_in_time) does
/// on a thread: what does not fit now, and would in an idle daemon, waits for what others give back.
/// That ends when the future is dropped, as when the client leaves.
///
/// # Errors
///
/// Those of the ledger.
pub async fn enlarge(api: &Arc<Api>, grant: &mut Grant, bytes: u64) -> Result<(), ApiError> {
    let end = Instant::now() + LONG_PATIENCE;
    let mut claim = None;
    loop {
        let Err(refused) = grant.resize(bytes) else { return Ok(()) };
        if !refused.can_fit() {
            return Err(refused.into());
        }
        claim.get_or_insert_with(|| api.engine.ledger().claim(refused.need_bytes));
        let is_last = Instant::now() >= end || !api.engine.is_alive();
        let give_way = move |api: &Arc<Api>| {
            let room = api.engine.room();
            Ok(if is_last { room.make_room("") } else { room.spare_room("") })
        };
        match (api.look(give_way).await?, is_last) {
            (true, _) => {}
            (false, true) => return Err(refused.into()),
            (false, false) => {
                api.engine.room().narrow();
                sleep(TICK).await;
            }
        }
    }
}

/// The JSON of `value`, which borrows what it tells and so holds nothing itself.
///
/// # Errors
///
/// Those of the ledger.
pub fn json(engine: &Engine, value: &impl Serialize) -> Result<Response, ApiError> {
    let bytes = json_bytes(value)?;
    let grant = engine.room().grant(Category::Request, bytes as u64)?;
    json_reply(value, bytes, grant)
}

/// The same for somebody who can wait for the room.
///
/// # Errors
///
/// Those of the ledger.
pub async fn json_in_time(api: &Arc<Api>, value: &impl Serialize) -> Result<Response, ApiError> {
    let bytes = json_bytes(value)?;
    let grant = grant(api, bytes as u64).await?;
    json_reply(value, bytes, grant)
}

fn json_reply(value: &impl Serialize, bytes: usize, grant: Grant) -> Result<Response, ApiError> {
    let mut text = Vec::with_capacity(bytes);
    write_json(&mut text, value)?;
    Ok(reply(text, HeaderValue::from_static("application/json"), grant))
}

/// Bytes of the JSON of `value` between `before` and `behind`, granted until who has taken them has
/// dropped them.
///
/// # Errors
///
/// Those of the ledger.
pub async fn framed(
    api: &Arc<Api>,
    before: &[u8],
    value: &impl Serialize,
    behind: &[u8],
) -> Result<Bytes, ApiError> {
    let bytes = before.len() + json_bytes(value)? + behind.len();
    let _grant = grant(api, bytes as u64).await?;
    let mut text = Vec::with_capacity(bytes);
    text.extend_from_slice(before);
    write_json(&mut text, value)?;
    text.extend_from_slice(behind);
    Ok(Bytes::from_owner(Granted { text, _grant }))
}

struct Granted {
    text: Vec<u8>,
    _grant: Grant,
}

impl AsRef<[u8]> for Granted {
    fn as_ref(&self) -> &[u8] {
        &self.text
    }
}

fn json_bytes(value: &impl Serialize) -> Result<usize, ApiError> {
    let mut length = ByteCount(0);
    write_json(&mut length, value)?;
    Ok(length.0)
}

fn write_json(to: impl Write, value: &impl Serialize) -> Result<(), ApiError> {
    serde_json::to_writer(to, value).map_err(|error| ApiError::internal(error.to_string()))
}

/// A text of the type `kind`.
///
/// # Errors
///
/// Those of the ledger.
pub fn text(engine: &Engine, text: Vec<u8>, kind: HeaderValue) -> Result<Response, ApiError> {
    let grant = engine.room().grant(Category::Request, text.capacity() as u64)?;
    Ok(reply(text, kind, grant))
}

fn reply(text: Vec<u8>, kind: HeaderValue, grant: Grant) -> Response {
    let headers =
        [(header::CONTENT_TYPE, kind), (header::CONTENT_LENGTH, HeaderValue::from(text.len()))];
    (headers, Body::new(Pieces::new(iter::once(Bytes::from(text)), grant))).into_response()
}

/// Counts what is written to it.
struct ByteCount(usize);

impl Write for ByteCount {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0 += bytes.len();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::body;
    use super::*;
    use crate::daemon::Phase;
    use crate::engine::{Cancel, Config, Keeper};
    use crate::sys::lock::lock;
    use crate::wire::infer_tensor::Reserve;
    use std::collections::BTreeSet;
    use std::sync::Mutex;
    use tokio::sync::watch;

    /// Holds what is asked for, until room is looked for the second time.
    #[derive(Default)]
    struct Busy {
        held: Mutex<Option<Grant>>,
        asked: Mutex<usize>,
    }

    impl Keeper for Busy {
        fn oldest(&self, _: &BTreeSet<String>) -> Option<u64> {
            *lock(&self.asked) += 1;
            if *lock(&self.asked) == 2 {
                *lock(&self.held) = None;
            }
            None
        }

        fn give_way(&self, _: &BTreeSet<String>) -> bool {
            false
        }

        fn forget(&self, _: &str) {}
    }

    /// Of 15,969 right requests two, of a few words each, were refused for the 2 KiB of their reply,
    /// and one for its body: passes held all there was at that moment.
    #[test]
    fn what_a_request_needs_is_waited_for() {
        let store = tempfile::tempdir().unwrap();
        let engine = Engine::start(Config::new(store.path(), 256 << 20)).unwrap();
        let (_phase, follow) = watch::channel(Phase::Serving);
        let api = Api::new(engine.clone(), follow, vec![]);
        let busy = Arc::new(Busy::default());
        let keeper: Arc<dyn Keeper> = Arc::clone(&busy) as _;
        engine.add_keeper(Arc::downgrade(&keeper));
        let ledger = Arc::clone(engine.ledger());
        // The window has given way before.
        let all = ledger.try_grant(Category::Request, ledger.free_bytes()).unwrap();
        let window_bytes = ledger.held_bytes(Category::Window);
        let never = Cancel::new();
        let _window =
            engine.room().grant_in_time(Category::Request, window_bytes, 0, &never).unwrap();
        drop(all);
        let hold_all_but = |bytes: u64| {
            let all = ledger.free_bytes() - bytes;
            *lock(&busy.held) = Some(ledger.try_grant(Category::Activations, all).unwrap());
            *lock(&busy.asked) = 0;
        };
        let has_waited = || *lock(&busy.asked) == 2 && lock(&busy.held).is_none();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(async {
            hold_all_but(1000);
            let granted = grant(&api, 2000).await.unwrap();
            assert!(has_waited() && granted.bytes() == 2000);
            hold_all_but(20 << 10);
            let text = vec![b'1'; 40 << 10];
            let body = body::read(Body::from(text.clone()), 1 << 20, &api).await.unwrap();
            assert!(has_waited() && body.bytes == text);
            hold_all_but(1000);
            let parse = |bytes: &[u8], reserve: &mut Reserve<'_>| {
                reserve(2000)?;
                Ok((bytes.len(), 5))
            };
            let (length, granted) = body.parse(&api, parse).await.unwrap();
            assert!(has_waited());
            assert_eq!((length, granted.bytes()), (text.len(), 5));
            hold_all_but(1000);
            let look = |api: &Arc<Api>| Ok(api.engine.room().grant(Category::Request, 2000)?);
            assert_eq!(api.look(look).await.unwrap().bytes(), 2000);
            let refused = grant(&api, 1 << 30).await.unwrap_err();
            assert_eq!(refused.status.as_u16(), 413);
        });
    }
}
