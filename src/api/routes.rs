//! Which path leads where, and what every handler shares.

use super::connections::Connections;
use super::error::ApiError;
use super::helpers::Helpers;
use super::install::{self, Installs};
use super::quote::{method_name, quote};
use super::rights::require;
use super::tokenizer::Tokenizers;
use super::{metrics, oip, openai, plan, repository, stats, trace, versions};
use crate::daemon::rights::Right;
use crate::engine::{Cancel, Engine, EngineError, Keeper, Reply, Request};
use crate::store::manifest::{Manifest, is_name};
use axum::Router;
use axum::extract::Request as HttpRequest;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, delete, get, post};
use std::sync::Arc;
use tokio::sync::oneshot;

/// Share of the budget that one request body may take.
const BODY_SHARE: u64 = 4;

/// What the handlers share.
pub struct Api {
    /// The engine.
    pub engine: Engine,
    /// Tokenizers loaded so far.
    pub tokenizers: Arc<Tokenizers>,
    /// Threads for what takes longer than the event loop may wait.
    pub helpers: Helpers,
    /// The install that is under way.
    pub installs: Installs,
    /// Who is connected.
    pub connections: Arc<Connections>,
}

impl Api {
    /// The handlers' state for `engine`.
    pub fn new(engine: Engine) -> Arc<Api> {
        let tokenizers = Arc::new(Tokenizers::default());
        let keeper: Arc<dyn Keeper> = Arc::clone(&tokenizers) as _;
        engine.add_keeper(Arc::downgrade(&keeper));
        Arc::new(Api {
            connections: Connections::new(Arc::clone(engine.ledger())),
            engine,
            tokenizers,
            helpers: Helpers::default(),
            installs: Installs::default(),
        })
    }

    /// Largest request body.
    pub fn body_limit_bytes(&self) -> u64 {
        self.engine.ledger().budget_bytes() / BODY_SHARE
    }

    /// The manifest of a model, and of a version of it if one is named.
    ///
    /// # Errors
    ///
    /// 404 for a name that no model or version has; no path is ever made of one that is no name.
    pub fn manifest(&self, model: &str, version: Option<&str>) -> Result<Arc<Manifest>, ApiError> {
        if !is_name(model) {
            return Err(ApiError::not_found(format!("there is no model {}", quote(model))));
        }
        let manifest = self.engine.manifest(model)?;
        match version {
            Some(version) if version != manifest.version => Err(ApiError::not_found(format!(
                "model {model:?} has no version {}: it serves {:?}",
                quote(version),
                manifest.version
            ))),
            _ => Ok(manifest),
        }
    }

    /// Runs `work` on a helper thread: [`Helpers::run`].
    pub async fn help<T: Send + 'static>(
        self: &Arc<Api>,
        work: impl FnOnce(&Arc<Api>, &Cancel) -> Result<T, ApiError> + Send + 'static,
    ) -> Result<T, ApiError> {
        let api = Arc::clone(self);
        self.helpers.run(move |cancel| work(&api, cancel)).await
    }
}

/// Waits for what the engine calls back with. Dropping this changes nothing for the engine.
pub async fn answer<T: Send + 'static>(
    ask: impl FnOnce(Box<dyn FnOnce(Result<T, EngineError>) + Send>),
) -> Result<T, ApiError> {
    let (sender, answer) = oneshot::channel();
    // The receiver is gone if the client is.
    ask(Box::new(move |result| drop(sender.send(result))));
    match answer.await {
        Ok(result) => result.map_err(ApiError::from),
        Err(_) => Err(ApiError::unavailable("the daemon is stopping")),
    }
}

/// A submitted request; dropping it, as when the client goes away, cancels it.
pub struct Submitted<T> {
    reply: oneshot::Receiver<Result<T, EngineError>>,
    cancel: Cancel,
}

impl<T: Send + 'static> Submitted<T> {
    /// Submits `request`; `digest` makes of the reply what is kept, on the engine's thread.
    pub fn new(
        engine: &Engine,
        request: Request,
        digest: impl FnOnce(Reply) -> T + Send + 'static,
    ) -> Submitted<T> {
        let cancel = request.cancel.clone();
        let (sender, reply) = oneshot::channel();
        engine.submit(request, move |result| {
            // The receiver is gone if the client is.
            let _ = sender.send(result.map(digest));
        });
        Submitted { reply, cancel }
    }

    /// The reply, once it is there.
    pub async fn wait(mut self) -> Result<T, ApiError> {
        match (&mut self.reply).await {
            Ok(result) => result.map_err(ApiError::from),
            Err(_) => Err(ApiError::unavailable("the daemon is stopping")),
        }
    }
}

impl<T> Drop for Submitted<T> {
    fn drop(&mut self) {
        self.cancel.cancel();
    }
}

/// A method, a path, what callers need to be allowed, and what answers there.
type Route = (&'static str, &'static str, Option<Right>, fn() -> MethodRouter<Arc<Api>>);

const INFER: Option<Right> = Some(Right::Infer);
const LOAD: Option<Right> = Some(Right::Load);
const INSTALL: Option<Right> = Some(Right::Install);

/// All routes; `openapi.json` beside this file describes each. Asking whether a model is ready loads it, as
/// inferring does.
#[rustfmt::skip]
const ROUTES: &[Route] = &[
    ("GET", "/v2", None, || get(oip::server_metadata)),
    ("GET", "/v2/health/live", None, || get(oip::live)),
    ("GET", "/v2/health/ready", None, || get(oip::ready)),
    ("GET", "/v2/models/stats", None, || get(stats::models)),
    ("GET", "/v2/models/{model}", None, || get(oip::model_metadata)),
    ("GET", "/v2/models/{model}/ready", INFER, || get(oip::model_ready)),
    ("POST", "/v2/models/{model}/infer", INFER, || post(oip::infer)),
    ("POST", "/v2/models/{model}/trace", INFER, || post(trace::trace)),
    ("GET", "/v2/models/{model}/plan", None, || get(plan::plan)),
    ("GET", "/v2/models/{model}/stats", None, || get(stats::model)),
    ("GET", "/v2/models/{model}/versions/{version}", None, || get(oip::model_metadata)),
    ("GET", "/v2/models/{model}/versions/{version}/ready", INFER, || get(oip::model_ready)),
    ("POST", "/v2/models/{model}/versions/{version}/infer", INFER, || post(oip::infer)),
    ("GET", "/v2/models/{model}/versions/{version}/stats", None, || get(stats::model)),
    ("GET", "/v2/repository/index", None, || get(repository::index)),
    ("POST", "/v2/repository/index", None, || post(repository::index)),
    ("POST", "/v2/repository/install", INSTALL, || post(install::install)),
    ("POST", "/v2/repository/gc", INSTALL, || post(versions::collect)),
    ("POST", "/v2/repository/models/{model}/load", LOAD, || post(repository::load)),
    ("POST", "/v2/repository/models/{model}/unload", LOAD, || post(repository::unload)),
    ("POST", "/v2/repository/models/{model}/profile", LOAD, || post(plan::profile)),
    ("POST", "/v2/repository/models/{model}/use", INSTALL, || post(versions::use_version)),
    ("POST", "/v2/repository/models/{model}/rollback", INSTALL, || post(versions::roll_back)),
    ("GET", "/v2/repository/models/{model}/versions", None, || get(versions::list)),
    ("DELETE", "/v2/repository/models/{model}/versions/{version}", INSTALL, || delete(versions::remove)),
    ("GET", "/v1/models", None, || get(openai::models)),
    ("GET", "/v1/models/{model}", None, || get(openai::model)),
    ("POST", "/v1/embeddings", INFER, || post(openai::embeddings)),
    ("GET", "/metrics", None, || get(metrics::metrics)),
];

/// Method and path of each route, and the right that a caller needs.
pub fn routes() -> impl Iterator<Item = (&'static str, &'static str, Option<Right>)> {
    ROUTES.iter().map(|(method, path, right, _)| (*method, *path, *right))
}

/// The router of all routes.
pub fn router(api: Arc<Api>) -> Router {
    let add = |router: Router<_>, (_, path, right, handler): &Route| match right {
        Some(right) => router.route(path, require(*right, handler())),
        None => router.route(path, handler()),
    };
    ROUTES
        .iter()
        .fold(Router::new(), add)
        .fallback(unknown_path)
        .method_not_allowed_fallback(wrong_method)
        .with_state(api)
}

async fn unknown_path(request: HttpRequest) -> Response {
    let path = quote(request.uri().path());
    let error =
        ApiError::not_found(format!("there is nothing at {path}; openapi.json lists all there is"));
    refuse(request.uri().path(), error)
}

async fn wrong_method(request: HttpRequest) -> Response {
    let (method, path) = (request.method(), request.uri().path());
    let here = routes().filter(|(_, template, _)| is_path_of(template, path));
    let allowed: Vec<_> = here.map(|(method, ..)| method).collect();
    let (method, place) = (method_name(method), quote(path));
    let message = format!("{method} is not allowed for {place}: use {}", allowed.join(" or "));
    let error = ApiError::new(StatusCode::METHOD_NOT_ALLOWED, message);
    let mut response = refuse(path, error);
    if let Ok(allowed) = HeaderValue::from_str(&allowed.join(", ")) {
        response.headers_mut().insert(header::ALLOW, allowed);
    }
    response
}

/// Whether `path` is one that `template` stands for.
fn is_path_of(template: &str, path: &str) -> bool {
    let is_same = |(part, segment): (&str, &str)| part == segment || part.starts_with('{');
    template.split('/').count() == path.split('/').count()
        && template.split('/').zip(path.split('/')).all(is_same)
}

/// The response of an error, in the shape of the protocol that `path` is of.
pub fn refuse(path: &str, error: ApiError) -> Response {
    match path.starts_with("/v1") {
        true => openai::OpenAiError(error).into_response(),
        false => oip::OipError(error).into_response(),
    }
}

/// The response of an error whose protocol has made `body` of it.
pub fn error_response(error: &ApiError, body: Vec<u8>) -> Response {
    log::debug!("refused: {error}");
    let json = HeaderValue::from_static("application/json");
    let mut response = (error.status, [(header::CONTENT_TYPE, json)], body).into_response();
    let headers = response.headers_mut();
    if error.close {
        headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    if error.status == StatusCode::SERVICE_UNAVAILABLE {
        headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
    }
    response
}
