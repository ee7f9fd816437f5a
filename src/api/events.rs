//! An answer as server-sent events: each piece of a text goes out as it is written.

use super::envelope::OpenAiError;
use super::error::ApiError;
use super::granted;
use super::job::{Job, Session};
use super::replies::{Answer, Usage};
use super::state::Api;
use super::writing::Piece;
use axum::body::Body;
use hyper::body::{Body as HttpBody, Bytes, Frame};
use serde::Serialize;
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use tokio::sync::mpsc::{Receiver, Sender, channel};
use tokio::task::JoinHandle;

/// Events that wait for the client; the text waits with them.
const EVENTS: usize = 4;

/// The end of a stream that succeeded.
const DONE: &[u8] = b"data: [DONE]\n\n";

/// A body of events for `job`, of which the first text is being written and has come as far as
/// `first`. When it is dropped, as when the client goes away, so is all that writes for it.
pub fn body(
    api: Arc<Api>,
    job: Job,
    session: Session,
    first: Option<Piece>,
    answer: Answer,
) -> Body {
    let (sender, events) = channel(EVENTS);
    let writer = tokio::spawn(async move {
        let stream = Stream { api: &api, sender: &sender, job: &job, answer: &answer };
        let written = tokio::select! {
            written = stream.write(session, first) => written,
            error = api.wait_cut_off() => Err(Stop::Failed(error)),
        };
        if let Err(Stop::Failed(error)) = written {
            // An event of its own, and no end after it: what breaks off is no success. It is short,
            // and may be that there is no room.
            let event = format!("data: {}\n\n", OpenAiError(error).json());
            let _ = sender.send(Bytes::from(event)).await;
        }
    });
    Body::new(Events { events, writer })
}

/// Why a stream ends before its end.
enum Stop {
    /// Nobody reads it.
    Left,
    Failed(ApiError),
}

impl From<ApiError> for Stop {
    fn from(error: ApiError) -> Stop {
        Stop::Failed(error)
    }
}

struct Stream<'a> {
    api: &'a Arc<Api>,
    sender: &'a Sender<Bytes>,
    job: &'a Job,
    answer: &'a Answer,
}

impl Stream<'_> {
    /// Writes the texts, one after the other.
    async fn write(&self, session: Session, first: Option<Piece>) -> Result<(), Stop> {
        let mut usage = Usage::default();
        self.text(0, session, first, &mut usage).await?;
        for index in 1..self.job.prompts.len() {
            let mut session = Session::begin(self.api, self.job, index)?;
            let first = session.next().await?;
            self.text(index, session, first, &mut usage).await?;
        }
        if self.job.includes_usage {
            self.send(&self.answer.usage(&usage)).await?;
        }
        self.sender.send(Bytes::from_static(DONE)).await.map_err(|_| Stop::Left)
    }

    async fn text(
        &self,
        index: usize,
        mut session: Session,
        first: Option<Piece>,
        usage: &mut Usage,
    ) -> Result<(), Stop> {
        if let Some(begin) = self.answer.begin(index) {
            self.send(&begin).await?;
        }
        let mut next = first;
        let tells = self.job.logprobs.is_some();
        while let Some(piece) = next {
            if !piece.is_empty() {
                self.send(&self.answer.piece(index, &piece, tells)).await?;
            }
            next = session.next().await?;
        }
        let ending = session.ending();
        usage.add(&ending);
        self.send(&self.answer.end(index, ending.finish)).await
    }

    /// Sends an event, which stays granted until the connection has written it.
    async fn send(&self, event: &impl Serialize) -> Result<(), Stop> {
        let event = granted::framed(self.api, b"data: ", event, b"\n\n").await?;
        self.sender.send(event).await.map_err(|_| Stop::Left)
    }
}

/// The events, and the task that writes them.
struct Events {
    events: Receiver<Bytes>,
    writer: JoinHandle<()>,
}

impl HttpBody for Events {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.events.poll_recv(context).map(|event| event.map(|event| Ok(Frame::data(event))))
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        self.writer.abort();
    }
}
