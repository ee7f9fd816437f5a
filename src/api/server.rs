//! Connections: accepted up to a limit, served by hyper with every wait bounded, drained at the
//! end.

use super::rights::Caller;
use super::routes::{Api, router};
use super::size::Size;
use super::stall::WriteDeadline;
use crate::daemon::{Control, Phase};
use crate::engine::Engine;
use crate::stream::{Category, Grant, OverBudget};
use crate::sys::peer::Peer;
use axum::Router;
use axum::extract::Request as HttpRequest;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::Service;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use std::future::poll_fn;
use std::io;
use std::os::unix::net::UnixListener as StdListener;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use thiserror::Error;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

/// Time for a request's head, and for a connection to be idle.
const HEAD_DEADLINE: Duration = Duration::from_secs(30);

/// Time for a client to take some of its reply.
const REPLY_PATIENCE: Duration = Duration::from_secs(30);

/// Time for a client to take the last response while what it still sends is thrown away.
const LINGER: Duration = Duration::from_secs(2);

/// Pause after the kernel refused a connection, for want of file descriptors say.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Most bytes of a request's head.
const MAX_HEAD_BYTES: usize = 16 << 10;

/// Most header lines of a request.
const MAX_HEADERS: usize = 64;

/// hyper's buffer for a connection, at most.
const MAX_BUFFER_BYTES: usize = 32 << 10;

/// What the ledger is asked for a connection: its buffers and its task.
const CONNECTION_BYTES: u64 = 32 << 10;

/// Connections granted at the start, so that the daemon can always say why it is busy.
const RESERVED_CONNECTIONS: usize = 8;

/// Most connections, whatever the budget.
const MAX_CONNECTIONS: u64 = 1024;

/// Share of the budget that connections may take.
const CONNECTIONS_SHARE: u64 = 8;

/// Why a daemon cannot serve.
#[derive(Debug, Error)]
pub enum ServeError {
    /// The kernel refused the listener.
    #[error("cannot serve the socket: {0}")]
    Listener(#[from] io::Error),
    /// Not even a few connections fit.
    #[error("no room for connections: {0}")]
    OverBudget(#[from] OverBudget),
}

/// Serves `engine` on `listener` until the phase of `control` is another than serving, then drains:
/// requests that run may end until the drain's deadline, or until the phase is cancelling.
///
/// # Errors
///
/// [`ServeError`] before the first connection; later trouble is logged and survived.
pub async fn serve(
    listener: StdListener,
    engine: Engine,
    control: Control,
) -> Result<(), ServeError> {
    listener.set_nonblocking(true)?;
    let listener = UnixListener::from_std(listener)?;
    let reserved = RESERVED_CONNECTIONS as u64 * CONNECTION_BYTES;
    let _reserved = engine.ledger().try_grant(Category::Request, reserved)?;
    let (limit, api) = (connection_limit(&engine), Api::new(engine.clone()));
    log::info!("serving: up to {limit} connections, bodies up to {}", Size(api.body_limit_bytes()));
    let (router, connections) = (router(Arc::clone(&api)), JoinSet::new());
    let mut server = Server { engine, api, router, control, connections };
    server.accept(listener).await;
    log::info!("stopping: {} connections are open", server.connections.len());
    server.drain().await;
    Ok(())
}

/// Connections that the budget has room for.
fn connection_limit(engine: &Engine) -> usize {
    let limit = engine.ledger().budget_bytes() / CONNECTIONS_SHARE / CONNECTION_BYTES;
    (limit.min(MAX_CONNECTIONS) as usize).max(RESERVED_CONNECTIONS)
}

struct Server {
    engine: Engine,
    api: Arc<Api>,
    router: Router,
    control: Control,
    connections: JoinSet<()>,
}

impl Server {
    async fn accept(&mut self, listener: UnixListener) {
        let mut phase = self.control.phase.clone();
        loop {
            tokio::select! {
                accepted = listener.accept() => match accepted {
                    Ok((stream, _)) => self.admit(stream),
                    Err(error) => {
                        log::warn!("cannot accept a connection: {error}");
                        sleep(ACCEPT_PAUSE).await;
                    }
                },
                Some(_) = self.connections.join_next() => {}
                () = reaches(&mut phase, Phase::Draining) => return,
            }
        }
    }

    fn admit(&mut self, stream: UnixStream) {
        let open = self.connections.len();
        if open >= connection_limit(&self.engine) {
            return refuse(&stream, &format!("{open} connections are open, the limit; try again"));
        }
        let grant = match open < RESERVED_CONNECTIONS {
            true => None,
            false => match self.engine.ledger().try_grant(Category::Request, CONNECTION_BYTES) {
                Ok(grant) => Some(grant),
                Err(error) => return refuse(&stream, &format!("no room: {error}; try again")),
            },
        };
        let peer = Peer::of(&stream);
        if let Err(error) = &peer {
            log::warn!("the kernel does not tell who connects: {error}");
        }
        let caller = Caller::new(peer.ok(), self.control.live.clone());
        let (router, phase) = (self.router.clone(), self.control.phase.clone());
        let counted = Counted::new(&self.api);
        self.connections.spawn(async move {
            let _counted = counted;
            connection(stream, router, caller, phase, grant).await;
        });
    }

    async fn drain(&mut self) {
        let deadline = self.control.live.borrow().drain;
        let drained = async { while self.connections.join_next().await.is_some() {} };
        let is_drained = tokio::select! {
            () = drained => true,
            () = sleep(deadline) => false,
            () = reaches(&mut self.control.phase, Phase::Cancelling) => false,
        };
        if !is_drained {
            log::warn!("{} connections are cut off", self.connections.len());
            self.connections.shutdown().await;
        }
    }
}

/// Counts a connection while it is open.
struct Counted(Arc<Api>);

impl Counted {
    fn new(api: &Arc<Api>) -> Counted {
        api.connections.fetch_add(1, Ordering::Relaxed);
        Counted(Arc::clone(api))
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.connections.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Serves one connection to its end; dropping the future cancels what it asked for.
async fn connection(
    stream: UnixStream,
    router: Router,
    caller: Caller,
    mut phase: watch::Receiver<Phase>,
    _grant: Option<Grant>,
) {
    let router = TowerToHyperService::new(router);
    let service = hyper::service::service_fn(move |mut request: HttpRequest<Incoming>| {
        request.extensions_mut().insert(caller.clone());
        Box::pin(router.call(request))
    });
    let mut connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_DEADLINE)
        .max_header_size(MAX_HEAD_BYTES)
        .max_headers(MAX_HEADERS)
        .max_buf_size(MAX_BUFFER_BYTES)
        .serve_connection(TokioIo::new(WriteDeadline::new(stream, REPLY_PATIENCE)), service);
    let served = tokio::select! {
        served = poll_fn(|context| connection.poll_without_shutdown(context)) => served,
        () = reaches(&mut phase, Phase::Draining) => {
            Pin::new(&mut connection).graceful_shutdown();
            poll_fn(|context| connection.poll_without_shutdown(context)).await
        }
    };
    if let Err(error) = served {
        log::debug!("a connection ended: {error}");
    }
    linger(connection.into_parts().io.into_inner().into_inner()).await;
}

/// Waits until the daemon has come as far as `phase`.
async fn reaches(follow: &mut watch::Receiver<Phase>, phase: Phase) {
    // A daemon that no longer says how far it has come has come to its end.
    let _ = follow.wait_for(|now| *now >= phase).await;
}

/// Throws away what the client still sends, so that it is not cut off before it has read why.
async fn linger(mut stream: UnixStream) {
    if stream.shutdown().await.is_err() {
        return;
    }
    let mut discarded = [0; 4096];
    let _ = timeout(LINGER, async {
        while matches!(stream.read(&mut discarded).await, Ok(count) if count > 0) {}
    })
    .await;
}

/// Answers a connection that is not served.
fn refuse(stream: &UnixStream, message: &str) {
    log::warn!("a connection is refused: {message}");
    let body = serde_json::json!({ "error": message }).to_string();
    let response = format!(
        "HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\n\
         content-length: {}\r\nretry-after: 1\r\nconnection: close\r\n\r\n{body}",
        body.len()
    );
    // A new socket's buffer takes this much at once; a client that has gone needs no answer.
    let _ = stream.try_write(response.as_bytes());
}
