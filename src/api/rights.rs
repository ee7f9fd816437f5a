//! Which right a route needs, checked before anything of the request's body is read.

use super::envelope::refuse;
use super::error::ApiError;
use crate::daemon::Live;
use crate::daemon::rights::Right;
use crate::sys::peer::Peer;
use crate::wire::quote::{method_name, quote};
use axum::extract::Request;
use axum::http::StatusCode;
use axum::middleware::{Next, from_fn};
use axum::response::Response;
use axum::routing::MethodRouter;
use std::sync::Arc;
use tokio::sync::watch;

/// Who sends the requests of a connection, and the rights in force; an extension of each request.
#[derive(Clone, Debug)]
pub struct Caller {
    peer: Option<Arc<Peer>>,
    live: watch::Receiver<Live>,
}

impl Caller {
    /// The process at the other end, `None` where the kernel does not tell.
    pub fn new(peer: Option<Peer>, live: watch::Receiver<Live>) -> Caller {
        Caller { peer: peer.map(Arc::new), live }
    }

    fn may(&self, right: Right) -> bool {
        self.peer.as_ref().is_some_and(|peer| self.live.borrow().rights.allow(right, peer))
    }
}

/// The routes, for callers who have a right; others are answered 403.
pub fn require<S: Clone + Send + Sync + 'static>(
    right: Right,
    routes: MethodRouter<S>,
) -> MethodRouter<S> {
    routes.route_layer(from_fn(move |request: Request, next: Next| check(right, request, next)))
}

async fn check(right: Right, request: Request, next: Next) -> Response {
    let caller = request.extensions().get::<Caller>();
    if caller.is_some_and(|caller| caller.may(right)) {
        return next.run(request).await;
    }
    let (method, path) = (request.method(), request.uri().path());
    let peer = caller.and_then(|caller| caller.peer.as_deref());
    let who = match peer {
        Some(Peer { uid, pid, .. }) => format!("uid {uid} (pid {pid})"),
        None => "a client whom the kernel does not name".to_string(),
    };
    let (method, place) = (method_name(method.as_str()), quote(path));
    log::warn!("{who} has not the right to {right}: {method} {place} is refused");
    let uid = peer.map_or("your user".to_string(), |peer| format!("uid {}", peer.uid));
    let message = format!(
        "{uid} has not the right to {right}; the administrator grants it by rights.{right} in \
         hermesd.toml"
    );
    refuse(path, ApiError::new(StatusCode::FORBIDDEN, message).closing())
}
