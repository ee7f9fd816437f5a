//! What a connection does: whether it serves a request, whether its client takes what is written.

use super::traffic::Exchange;
use crate::sys::lock::lock;
use hyper::body::{Body, Bytes, Frame, SizeHint};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Instant;
use tokio::sync::Notify;

/// What a connection does, as the stream, the service and whoever ends it see it.
#[derive(Debug)]
pub struct Activity {
    in_service: AtomicUsize,
    has_asked: AtomicBool,
    is_writing: AtomicBool,
    /// When it became idle.
    idle_since: Mutex<Instant>,
    is_ended: AtomicBool,
    ended: Notify,
    written: Notify,
}

impl Default for Activity {
    /// Of one that has asked nothing yet.
    fn default() -> Activity {
        Activity {
            in_service: AtomicUsize::default(),
            has_asked: AtomicBool::default(),
            is_writing: AtomicBool::default(),
            idle_since: Mutex::new(Instant::now()),
            is_ended: AtomicBool::default(),
            ended: Notify::default(),
            written: Notify::default(),
        }
    }
}

impl Activity {
    /// A request is served until what is returned is dropped.
    pub fn begin(activity: &Arc<Activity>) -> InService {
        activity.in_service.fetch_add(1, Ordering::Relaxed);
        activity.has_asked.store(true, Ordering::Relaxed);
        InService(Arc::clone(activity))
    }

    /// Whether a request's head has come by it.
    pub fn has_asked(&self) -> bool {
        self.has_asked.load(Ordering::Relaxed)
    }

    /// Whether a write waits for the client.
    pub fn set_writing(&self, is_writing: bool) {
        if self.is_writing.swap(is_writing, Ordering::Relaxed) && !is_writing {
            self.become_idle();
            self.written.notify_one();
        }
    }

    /// Waits until the client has taken what was written: the next of its requests would be
    /// answered to memory.
    pub async fn written(&self) {
        while self.is_writing.load(Ordering::Relaxed) {
            self.written.notified().await;
        }
    }

    /// Whether nobody waits for anything.
    pub fn is_idle(&self) -> bool {
        self.in_service.load(Ordering::Relaxed) == 0 && !self.is_writing.load(Ordering::Relaxed)
    }

    /// When it became idle.
    pub fn idle_since(&self) -> Instant {
        *lock(&self.idle_since)
    }

    /// Ends the connection.
    pub fn end(&self) {
        self.is_ended.store(true, Ordering::Relaxed);
        self.ended.notify_one();
    }

    /// Whether it was told to end.
    pub fn is_ended(&self) -> bool {
        self.is_ended.load(Ordering::Relaxed)
    }

    /// Waits for the end.
    pub async fn ended(&self) {
        while !self.is_ended() {
            self.ended.notified().await;
        }
    }

    fn become_idle(&self) {
        *lock(&self.idle_since) = Instant::now();
    }
}

/// A request that is served, from its head to the last byte of the reply's body.
#[derive(Debug)]
pub struct InService(Arc<Activity>);

impl Drop for InService {
    fn drop(&mut self) {
        self.0.become_idle();
        self.0.in_service.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A reply's body, the service that lasts as long, and what is told of it then.
pub struct WatchedBody<B> {
    body: B,
    exchange: Exchange,
    _service: InService,
}

impl<B> WatchedBody<B> {
    /// `body`, with which `exchange` and `service` end.
    pub fn new(body: B, exchange: Exchange, service: InService) -> WatchedBody<B> {
        WatchedBody { body, exchange, _service: service }
    }
}

impl<B: Body<Data = Bytes> + Unpin> Body for WatchedBody<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let polled = Pin::new(&mut self.body).poll_frame(context);
        if let Poll::Ready(Some(Ok(frame))) = &polled
            && let Some(piece) = frame.data_ref()
        {
            self.exchange.write(piece);
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
