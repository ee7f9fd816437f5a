//! What the handlers share, and how they wait for the engine.

use super::connections::Connections;
use super::error::ApiError;
use super::helpers::Helpers;
use super::places::Places;
use super::speed::Speed;
use super::tokenizers::Tokenizers;
use super::traffic::Traffic;
use crate::daemon::Phase;
use crate::daemon::address::Address;
use crate::engine::{
    BULK_LIMIT, Cancel, Class, Described, Engine, EngineError, Keeper, LONG_PATIENCE, QUEUE_LIMIT,
    Reply, Request, TICK,
};
use crate::store::manifest::is_model_name;
use crate::wire::quote::quote;
use axum::extract::Path;
use axum::extract::rejection::PathRejection;
use serde::Deserialize;
use std::sync::Arc;
use tokio::sync::{Semaphore, oneshot, watch};
use tokio::time::{Instant, sleep};

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
    /// For the texts of requests that have many.
    pub many_places: Places,
    /// The same for texts of those who have a few.
    pub few_places: Places,
    /// The install that is under way.
    pub installs: Installs,
    /// Who is connected.
    pub connections: Arc<Connections>,
    /// What was asked and answered.
    pub traffic: Arc<Traffic>,
    /// How fast texts were written.
    pub speed: Arc<Speed>,
    /// Where it listens.
    pub addresses: Vec<Address>,
    /// How far the daemon has come.
    phase: watch::Receiver<Phase>,
    /// Whether what runs is cut off.
    is_cut_off: watch::Sender<bool>,
}

impl Api {
    /// The handlers' state for `engine`, while the daemon listens at `addresses` and goes through its
    /// phases.
    pub fn new(engine: Engine, phase: watch::Receiver<Phase>, addresses: Vec<Address>) -> Arc<Api> {
        let tokenizers = Arc::new(Tokenizers::default());
        let keeper: Arc<dyn Keeper> = Arc::clone(&tokenizers) as _;
        engine.add_keeper(Arc::downgrade(&keeper));
        Arc::new(Api {
            connections: Connections::new(Arc::clone(engine.ledger())),
            engine,
            tokenizers,
            helpers: Helpers::default(),
            many_places: Places::new(BULK_LIMIT),
            few_places: Places::new(QUEUE_LIMIT / 4),
            installs: Installs::default(),
            traffic: Arc::default(),
            speed: Arc::default(),
            addresses,
            phase,
            is_cut_off: watch::Sender::new(false),
        })
    }

    /// Has all that runs end, and be told so.
    pub fn cut_off(&self) {
        self.is_cut_off.send_replace(true);
    }

    /// Waits until what runs is cut off: what is told then.
    pub async fn wait_cut_off(&self) -> ApiError {
        // There is a sender as long as there is this.
        let _ = self.is_cut_off.subscribe().wait_for(|is_so| *is_so).await;
        ApiError::unavailable("the daemon is stopping").closing()
    }

    /// Whether requests are welcome: there is an engine to serve them, and time to.
    pub fn is_ready(&self) -> bool {
        self.engine.is_alive() && *self.phase.borrow() == Phase::Serving
    }

    /// Largest request body.
    pub fn body_limit_bytes(&self) -> u64 {
        self.engine.ledger().budget_bytes() / BODY_SHARE
    }

    /// The manifest of the model that a path names: for helper threads, since files are read.
    ///
    /// # Errors
    ///
    /// 404 for a name that no model or version has; no path is ever made of one that is no name.
    pub fn manifest(&self, path: &ModelPath) -> Result<Described, ApiError> {
        let ModelPath { model, version } = path;
        if !is_model_name(model) {
            return Err(ApiError::not_found(format!("there is no model {}", quote(model))));
        }
        let manifest = self.engine.manifest(model)?;
        match version {
            Some(version) if *version != manifest.version => Err(ApiError::not_found(format!(
                "model {model:?} has no version {}: it serves {:?}",
                quote(version),
                manifest.version
            ))),
            _ => Ok(manifest),
        }
    }

    /// Whether there is what a path names, and which version is served.
    ///
    /// # Errors
    ///
    /// As [`Api::manifest`].
    pub async fn find(self: &Arc<Api>, path: ModelPathArg) -> Result<FoundModel, ApiError> {
        let path = ModelPath::of(path)?;
        self.look(move |api| {
            let manifest = api.manifest(&path)?;
            Ok(FoundModel { model: manifest.model.clone(), version: manifest.version.clone() })
        })
        .await
    }

    /// Runs `work` on a helper thread: [`Helpers::run`].
    pub async fn help<T: Send + 'static>(
        self: &Arc<Api>,
        work: impl FnOnce(&Arc<Api>, &Cancel) -> Result<T, ApiError> + Send + 'static,
    ) -> Result<T, ApiError> {
        let api = Arc::clone(self);
        self.helpers.run(move |cancel| work(&api, cancel)).await
    }

    /// Looks something up in files: [`Helpers::look`]. Where there is no room now for what that
    /// holds, it is tried again for a while.
    pub async fn look<T: Send + 'static>(
        self: &Arc<Api>,
        look: impl Fn(&Arc<Api>) -> Result<T, ApiError> + Send + Sync + 'static,
    ) -> Result<T, ApiError> {
        let (look, end) = (Arc::new(look), Instant::now() + LONG_PATIENCE);
        loop {
            let (api, look) = (Arc::clone(self), Arc::clone(&look));
            match self.helpers.look(move || look(&api)).await {
                Err(error) if error.may_pass() && Instant::now() < end => sleep(TICK).await,
                looked => return looked,
            }
        }
    }
}

/// What the engine was asked and will call back with. Dropping this changes nothing for the engine.
pub struct Asked<T>(oneshot::Receiver<Result<T, EngineError>>);

impl<T: Send + 'static> Asked<T> {
    /// Asks at once, whether anybody waits or not.
    pub fn new(ask: impl FnOnce(Box<dyn FnOnce(Result<T, EngineError>) + Send>)) -> Asked<T> {
        let (sender, answer) = oneshot::channel();
        // The receiver is gone if the client is.
        ask(Box::new(move |result| drop(sender.send(result))));
        Asked(answer)
    }

    /// The answer, once it is there.
    pub async fn wait(&mut self) -> Result<T, ApiError> {
        match (&mut self.0).await {
            Ok(result) => result.map_err(ApiError::from),
            Err(_) => Err(ApiError::unavailable("the daemon is stopping")),
        }
    }
}

/// A submitted request; dropping it, as when the client goes away, cancels it.
pub struct Submitted<T> {
    asked: Asked<T>,
    cancel: Cancel,
}

impl<T: Send + 'static> Submitted<T> {
    /// Submits `request`; `digest` makes of the reply what is kept, on the engine's thread.
    pub fn new(
        engine: &Engine,
        class: Class,
        request: Request,
        digest: impl FnOnce(Reply) -> T + Send + 'static,
    ) -> Submitted<T> {
        let cancel = request.cancel.clone();
        let asked = Asked::new(|reply| {
            engine.submit_as(class, request, move |result| reply(result.map(digest)));
        });
        Submitted { asked, cancel }
    }

    /// The reply, once it is there.
    pub async fn wait(mut self) -> Result<T, ApiError> {
        self.asked.wait().await
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

/// The part of a path that names a model, and a version of it where one is asked for.
#[derive(Deserialize)]
pub struct ModelPath {
    /// The model.
    pub model: String,
    /// The version.
    pub version: Option<String>,
}

/// The path's model, or why it has none.
pub type ModelPathArg = Result<Path<ModelPath>, PathRejection>;

impl ModelPath {
    /// The names of a path.
    ///
    /// # Errors
    ///
    /// 404 where they are no text.
    pub fn of(path: ModelPathArg) -> Result<ModelPath, ApiError> {
        let path = path.map_err(|_| ApiError::not_found("the model's name is not UTF-8"));
        path.map(|Path(path)| path)
    }
}

/// A model that is there.
pub struct FoundModel {
    /// Its name.
    pub model: String,
    /// The version that is served.
    pub version: String,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::Config;

    /// A daemon that drained, or whose engine was gone, said that it was ready: whoever spreads
    /// requests by that sent it more.
    #[test]
    fn readiness_tells_the_truth() {
        let store = tempfile::tempdir().unwrap();
        let engine = Engine::start(Config::new(store.path(), 256 << 20)).unwrap();
        let (phase, follow) = watch::channel(Phase::Serving);
        let api = Api::new(engine.clone(), follow, vec![]);
        assert!(api.is_ready());
        for (now, is_ready) in
            [(Phase::Draining, false), (Phase::Cancelling, false), (Phase::Serving, true)]
        {
            phase.send(now).unwrap();
            assert_eq!(api.is_ready(), is_ready, "{now:?}");
        }
        engine.shutdown();
        assert!(!api.is_ready());
    }
}
