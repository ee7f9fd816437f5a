//! What the handlers share, and how they wait for the engine.

use super::connections::Connections;
use super::error::ApiError;
use super::helpers::Helpers;
use super::quote::quote;
use super::tokenizer::Tokenizers;
use crate::engine::{Cancel, Engine, EngineError, Keeper, Reply, Request};
use crate::store::manifest::{Manifest, is_name};
use axum::extract::Path;
use axum::extract::rejection::PathRejection;
use serde::Deserialize;
use std::sync::Arc;
use tokio::sync::{Semaphore, oneshot};

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

/// The one install that may be under way at a time: each holds a thread and disk.
#[derive(Debug)]
pub struct Installs(pub Arc<Semaphore>);

impl Default for Installs {
    fn default() -> Installs {
        Installs(Arc::new(Semaphore::new(1)))
    }
}

/// The part of a path that names a model.
#[derive(Deserialize)]
pub struct ModelPath {
    model: String,
    version: Option<String>,
}

/// The path's model, or why it has none.
pub type ModelPathArg = Result<Path<ModelPath>, PathRejection>;

/// The manifest of the model that the path names.
pub fn find(api: &Api, path: ModelPathArg) -> Result<Arc<Manifest>, ApiError> {
    let Path(path) = path.map_err(|_| ApiError::not_found("the model's name is not UTF-8"))?;
    api.manifest(&path.model, path.version.as_deref())
}
