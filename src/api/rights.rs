//! Which right a route needs, checked before anything of the request's body is read.

use super::caller::{Caller, Remote};
use super::envelope::refuse;
use super::error::ApiError;
use crate::daemon::rights::Right;
use crate::wire::quote::{method_name, quote};
use axum::extract::Request;
use axum::http::StatusCode;
use axum::middleware::{Next, from_fn};
use axum::response::Response;
use axum::routing::MethodRouter;

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
    let remote = caller.map_or(&Remote::Unknown, |caller| &caller.remote);
    let (method, place) = (method_name(method.as_str()), quote(path));
    log::warn!("{remote} has not the right to {right}: {method} {place} is refused");
    let (who, how) = match remote {
        Remote::Process(peer) => (format!("uid {}", peer.uid), ""),
        Remote::Port { .. } => ("a client over TCP".to_string(), "\"tcp\" in "),
        Remote::Unknown => ("your user".to_string(), ""),
    };
    let message = format!(
        "{who} has not the right to {right}; the administrator grants it by {how}rights.{right} in \
         hermesd.toml"
    );
    refuse(path, ApiError::new(StatusCode::FORBIDDEN, message).closing())
}
