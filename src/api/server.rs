//! Connections: accepted up to a limit, served by hyper with every wait bounded, drained at the
//! end.

use super::activity::{Activity, WatchedBody};
use super::caller::{Caller, Remote};
use super::connections::{Admission, CONNECTION_BYTES, NotAdmitted, RESERVED_CONNECTIONS, Who};
use super::departure::departed;
use super::envelope;
use super::gate;
use super::listeners::{AcceptError, Arrival, Duplex, Listeners};
use super::routes::{self, router};
use super::stall::WriteDeadline;
use super::state::Api;
use super::traffic::Exchange;
use crate::daemon::listener::Listener;
use crate::daemon::{Control, Phase};
use crate::engine::{Engine, LONG_PATIENCE, SERVER_BYTES, TICK};
use crate::stream::{Category, OverBudget};
use crate::sys::file_limit;
use crate::values::counted;
use crate::values::size::Size;
use axum::Router;
use axum::extract::Request as HttpRequest;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::Service;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use std::convert::Infallible;
use std::future::poll_fn;
use std::io;
use std::sync::Arc;
use std::time::Duration;
use thiserror::Error;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

/// Time for a request's head, and for a connection to be idle.
const HEAD_DEADLINE: Duration = Duration::from_secs(30);

/// Time for the first head of a client that came by a port: until then nobody knows whether it has the
/// token. One that has not is answered with the end of its connection.
const STRANGER_DEADLINE: Duration = Duration::from_secs(5);

/// Time for a client to take some of its reply.
const REPLY_PATIENCE: Duration = Duration::from_secs(30);

/// Time for a client to take the last response while what it still sends is thrown away.
const LINGER: Duration = Duration::from_secs(2);

/// Time for those who are cut off at the end to be told.
const FAREWELL: Duration = Duration::from_millis(500);

/// Pause after the kernel refused a connection, for want of file descriptors say.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Most bytes of a request's head.
const MAX_HEAD_BYTES: usize = 16 << 10;

/// Most header lines of a request.
const MAX_HEADERS: usize = 64;

const _: () = assert!(RESERVED_CONNECTIONS as u64 * CONNECTION_BYTES == SERVER_BYTES);

/// hyper's buffer for a connection, at most.
const MAX_BUFFER_BYTES: usize = 32 << 10;

/// Bytes of replies that the kernel holds for a client that does not read them, by its own count
/// half of what it takes for them.
const UNREAD_BYTES: usize = 16 << 10;

/// Most connections, whatever the budget.
const MAX_CONNECTIONS: u64 = 1024;

/// Most connections that wait for the memory of their place.
const MAX_WAITING: usize = RESERVED_CONNECTIONS;

/// Share of the budget that connections may take.
const CONNECTIONS_SHARE: u64 = 8;

/// Share of the files that may be opened that connections may take; the rest is for models.
const FILES_SHARE: u64 = 2;

/// Why a daemon cannot serve.
#[derive(Debug, Error)]
pub enum ServeError {
    /// The kernel refused the listener.
    #[error("cannot serve a socket: {0}")]
    Listener(#[from] io::Error),
    /// Not even a few connections fit.
    #[error("no room for connections: {0}")]
    OverBudget(#[from] OverBudget),
    /// Not even a few files can be opened.
    #[error(
        "the limit of open files (RLIMIT_NOFILE) is {limit}, and hermesd needs {needed} for a few \
         connections and a small model: raise it (LimitNOFILE= of the unit, ulimit -n)"
    )]
    TooFewFiles {
        /// What the limit is.
        limit: u64,
        /// What it must be.
        needed: u64,
    },
}

/// Serves `engine` on `listeners` until the phase of `control` is another than serving, then drains:
/// requests that run may end until the drain's deadline, or until the phase is cancelling.
///
/// # Errors
///
/// [`ServeError`] before the first connection; later trouble is logged and survived.
pub async fn serve(
    listeners: Vec<Listener>,
    engine: Engine,
    control: Control,
) -> Result<(), ServeError> {
    let addresses = listeners.iter().map(|listener| listener.address.clone()).collect();
    let listeners = Listeners::new(listeners)?;
    let _reserved = engine.ledger().try_grant(Category::Process, SERVER_BYTES)?;
    let files = files_for_connections()?;
    let limit = connection_limit(&engine, files);
    let api = Api::new(engine.clone(), control.phase.clone(), addresses);
    log::info!("serving: up to {limit} connections, bodies up to {}", Size(api.body_limit_bytes()));
    if (limit as u64) < connection_limit(&engine, u64::MAX) as u64 {
        log::warn!(
            "the limit of open files (RLIMIT_NOFILE) allows no more connections than that, and as \
             many files of models: raise it (LimitNOFILE= of the unit, ulimit -n)"
        );
    }
    let router = router(Arc::clone(&api));
    let (connections, waiting) = (JoinSet::new(), JoinSet::new());
    let mut server = Server { engine, api, router, control, files, connections, waiting };
    server.accept(listeners).await;
    let open = counted(server.connections.len() as u64, "connection");
    log::info!("stopping, with {open} open");
    server.drain().await;
    Ok(())
}

/// Connections that the budget has room for, `files` at most.
fn connection_limit(engine: &Engine, files: u64) -> usize {
    let limit = engine.ledger().budget_bytes() / CONNECTIONS_SHARE / CONNECTION_BYTES;
    (limit.min(MAX_CONNECTIONS).min(files) as usize).max(RESERVED_CONNECTIONS)
}

/// Files that connections may have open: a share of those that are not open yet.
fn files_for_connections() -> Result<u64, ServeError> {
    let (limit, open) = (file_limit::raise()?, file_limit::open());
    let share = limit.saturating_sub(open) / FILES_SHARE;
    if share < RESERVED_CONNECTIONS as u64 {
        let needed = open + FILES_SHARE * RESERVED_CONNECTIONS as u64;
        return Err(ServeError::TooFewFiles { limit, needed });
    }
    Ok(share)
}

struct Server {
    engine: Engine,
    api: Arc<Api>,
    router: Router,
    control: Control,
    /// That connections may have open.
    files: u64,
    connections: JoinSet<()>,
    /// Connections that wait for the memory of their place.
    waiting: JoinSet<(Arrival, Result<Admission, NotAdmitted>)>,
}

impl Server {
    async fn accept(&mut self, mut listeners: Listeners) {
        let mut phase = self.control.phase.clone();
        loop {
            tokio::select! {
                accepted = listeners.accept() => match accepted {
                    Ok(arrival) => self.admit(arrival),
                    Err(refused) => self.make_room(&refused).await,
                },
                Some(_) = self.connections.join_next() => {}
                Some(Ok((arrival, admitted))) = self.waiting.join_next() => {
                    self.end_waiting(arrival, admitted);
                }
                () = reaches(&mut phase, Phase::Draining) => return,
            }
        }
    }

    /// Where file descriptors are short, an idle connection has one, and gives it up for who waits.
    async fn make_room(&mut self, AcceptError { is_awaited, error }: &AcceptError) {
        match Refusal::of(error) {
            Refusal::OfOne => return log::debug!("a client did not wait: {error}"),
            Refusal::OfDescriptors if *is_awaited => {
                log::warn!("cannot accept a connection: {error}");
                if self.api.connections.end_one() {
                    // Not another one before this one's descriptor is there.
                    let _ = timeout(ACCEPT_PAUSE, self.connections.join_next()).await;
                    return;
                }
            }
            Refusal::OfDescriptors => {}
            Refusal::Other => log::warn!("cannot accept a connection: {error}"),
        }
        sleep(ACCEPT_PAUSE).await;
    }

    fn admit(&mut self, arrival: Arrival) {
        let (who, _) = arrival.client();
        let limit = connection_limit(&self.engine, self.files);
        match self.api.connections.admit(who, limit) {
            Ok(admission) => self.serve(arrival, admission),
            Err(why) if why.may_pass && self.waiting.len() < MAX_WAITING => {
                let (api, mut phase) = (Arc::clone(&self.api), self.control.phase.clone());
                self.waiting.spawn(async move {
                    let admitted = tokio::select! {
                        admitted = place_in_time(&api, who, limit) => admitted,
                        // Nothing is served any more.
                        () = reaches(&mut phase, Phase::Draining) => Err(why),
                    };
                    (arrival, admitted)
                });
            }
            Err(_) => {
                let admitted = self.api.connections.admit_at_last(who, limit);
                self.end_waiting(arrival, admitted);
            }
        }
    }

    /// A connection that waited for its place is served or refused.
    fn end_waiting(&mut self, arrival: Arrival, admitted: Result<Admission, NotAdmitted>) {
        match admitted {
            Ok(admission) => self.serve(arrival, admission),
            // Whoever comes by a port is told nothing of the daemon before it is let in.
            Err(why) if arrival.client().0 == Who::Tcp => {
                log::debug!("a connection by a port is refused: {why}");
                answer_refused(&arrival, "too many connections: try again");
            }
            Err(why) => {
                let limit = connection_limit(&self.engine, self.files);
                refuse(&arrival, &format!("{why}; up to {limit} are; try again"));
            }
        }
    }

    fn serve(&mut self, arrival: Arrival, admission: Admission) {
        let (who, remote) = arrival.client();
        if let Err(error) = arrival.bound_unread(UNREAD_BYTES) {
            return refuse(&arrival, &format!("the socket's buffer cannot be bounded: {error}"));
        }
        let caller = Caller::new(remote, self.control.live.clone());
        let (stream, socket) = arrival.into_stream();
        let (router, phase) = (self.router.clone(), self.control.phase.clone());
        let api = Arc::clone(&self.api);
        self.connections.spawn(async move {
            let activity = &admission.activity;
            tokio::select! {
                () = connection(stream, router, api, caller, phase, activity) => {}
                () = gone(socket.as_deref()) => log::debug!("a client has gone"),
                () = activity.ended() => log::debug!("an idle connection is ended"),
                () = silence(activity), if who == Who::Tcp => {
                    log::debug!("a client by a port asked nothing in time: its connection is ended");
                }
            }
        });
    }

    async fn drain(&mut self) {
        while let Some(Ok((arrival, admitted))) = self.waiting.join_next().await {
            self.end_waiting(arrival, admitted);
        }
        let deadline = self.control.live.borrow().drain;
        let drained = async { while self.connections.join_next().await.is_some() {} };
        let is_drained = tokio::select! {
            () = drained => true,
            () = sleep(deadline) => false,
            () = reaches(&mut self.control.phase, Phase::Cancelling) => false,
        };
        if !is_drained {
            log::warn!("cutting off {}", counted(self.connections.len() as u64, "connection"));
            self.api.cut_off();
            let told = async { while self.connections.join_next().await.is_some() {} };
            let _ = timeout(FAREWELL, told).await;
            self.connections.shutdown().await;
        }
    }
}

/// What accept(2) failed for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Refusal {
    /// The client has gone again, or the call was interrupted: the next may come at once.
    OfOne,
    /// No file descriptor is free.
    OfDescriptors,
    /// Memory, or what the kernel has no better word for.
    Other,
}

impl Refusal {
    fn of(error: &io::Error) -> Refusal {
        match error.raw_os_error() {
            Some(libc::ECONNABORTED | libc::ECONNRESET | libc::EPROTO | libc::EINTR) => {
                Refusal::OfOne
            }
            Some(libc::EMFILE | libc::ENFILE) => Refusal::OfDescriptors,
            _ => Refusal::Other,
        }
    }
}

/// A place for who came while others hold the memory that it takes: what they give back is left to it,
/// and where that is not enough in time, an idle connection ends. No model goes for its sake.
async fn place_in_time(api: &Api, who: Who, limit: usize) -> Result<Admission, NotAdmitted> {
    let end = Instant::now() + LONG_PATIENCE;
    let _claim = api.engine.ledger().claim(who.bytes());
    while Instant::now() < end {
        sleep(TICK).await;
        match api.connections.admit(who, limit) {
            Err(why) if why.may_pass => {}
            admitted => return admitted,
        }
    }
    api.connections.admit_at_last(who, limit)
}

/// Ends when the client of a Unix socket has gone. Hyper sees for itself when a port's sends no
/// more, which is all that such a client tells.
async fn gone(socket: Option<&UnixStream>) {
    match socket {
        Some(socket) => departed(socket).await,
        None => std::future::pending().await,
    }
}

/// Ends where no request's head has come in time.
async fn silence(activity: &Activity) {
    sleep(STRANGER_DEADLINE).await;
    if activity.has_asked() {
        std::future::pending::<()>().await;
    }
}

/// Serves one connection to its end; dropping the future cancels what it asked for.
async fn connection(
    stream: Box<dyn Duplex>,
    router: Router,
    api: Arc<Api>,
    caller: Caller,
    mut phase: watch::Receiver<Phase>,
    activity: &Arc<Activity>,
) {
    let router = TowerToHyperService::new(router);
    // Whether who sends no more is gone, too.
    let may_half_close = !matches!(caller.remote, Remote::Port { .. });
    let serving = Arc::clone(activity);
    let service = hyper::service::service_fn(move |mut request: HttpRequest<Incoming>| {
        let route = routes::labels(request.method(), request.uri().path());
        let mut exchange = Exchange::begin(&api.traffic, caller.remote.clone(), route);
        let admitted = gate::admit(&caller, request.uri(), request.headers());
        request.extensions_mut().insert(caller.clone());
        let (activity, service) = (Arc::clone(&serving), Activity::begin(&serving));
        let (router, api) = (router.clone(), Arc::clone(&api));
        Box::pin(async move {
            activity.written().await;
            let uri = request.uri().clone();
            let served = match admitted {
                Ok(()) => tokio::select! {
                    response = router.call(request) => Ok(response?),
                    error = api.wait_cut_off() => Err(error),
                },
                Err(error) => Err(error),
            };
            let response = served.unwrap_or_else(|error| envelope::refuse(uri.path(), error));
            exchange.answer(response.status(), response.extensions().get());
            Ok::<_, Infallible>(response.map(|body| WatchedBody::new(body, exchange, service)))
        })
    });
    let mut connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_DEADLINE)
        .max_header_size(MAX_HEAD_BYTES)
        .max_headers(MAX_HEADERS)
        .max_buf_size(MAX_BUFFER_BYTES)
        .half_close(may_half_close)
        .serve_connection(
            TokioIo::new(WriteDeadline::new(stream, REPLY_PATIENCE, Arc::clone(activity))),
            service,
        );
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
async fn linger(mut stream: Box<dyn Duplex>) {
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
fn refuse(arrival: &Arrival, message: &str) {
    log::warn!("a connection is refused: {message}");
    answer_refused(arrival, message);
}

fn answer_refused(arrival: &Arrival, message: &str) {
    let body = serde_json::json!({ "error": message }).to_string();
    let response = format!(
        "HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\n\
         content-length: {}\r\nretry-after: 1\r\nconnection: close\r\n\r\n{body}",
        body.len()
    );
    // A new socket's buffer takes this much at once; a client that has gone needs no answer.
    let _ = arrival.try_write(response.as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An idle client's connection ended because another client had not waited.
    #[test]
    fn only_where_descriptors_are_short_does_a_connection_end_for_another() {
        let of = |number| Refusal::of(&io::Error::from_raw_os_error(number));
        assert_eq!([libc::EMFILE, libc::ENFILE].map(of), [Refusal::OfDescriptors; 2]);
        assert_eq!([libc::ECONNABORTED, libc::EPROTO].map(of), [Refusal::OfOne; 2]);
        assert_eq!([libc::ENOBUFS, libc::ENOMEM].map(of), [Refusal::Other; 2]);
    }
}
