//! OpenAI's completions and chat calls: prompts become tokens, sessions write texts, and these go
//! out whole or as events.

use super::body;
use super::deadline::Deadline;
use super::envelope::OpenAiError;
use super::error::ApiError;
use super::events;
use super::generation_json::{Call, GenerationRequest};
use super::granted;
use super::job::{Job, SIDE_BY_SIDE, Session};
use super::replies::{Answer, Choice, Style, Usage};
use super::state::Api;
use super::target;
use super::traffic::AnsweredBy;
use crate::wire::infer_tensor::Reserve;
use axum::Extension;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, header};
use axum::response::{IntoResponse, Response};
use std::collections::VecDeque;
use std::sync::Arc;

/// `POST /v1/completions`: prompts go on.
pub async fn completions(
    State(api): State<Arc<Api>>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, OpenAiError> {
    Ok(answer(api, Call::Completion, headers, body).await?)
}

/// `POST /v1/chat/completions`: a chat goes on.
pub async fn chat(
    State(api): State<Arc<Api>>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, OpenAiError> {
    Ok(answer(api, Call::Chat, headers, body).await?)
}

async fn answer(
    api: Arc<Api>,
    call: Call,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    let deadline = Deadline::from_headers(&headers)?;
    let target = target::from_headers(&headers)?;
    let body = body::read_unnamed(body, &headers, &api).await?;
    let parse =
        move |text: &[u8], reserve: &mut Reserve<'_>| GenerationRequest::parse(call, text, reserve);
    let (request, grant) = body.parse(&api, parse).await?;
    let job = deadline.bound(Job::prepare(&api, request, grant)).await?;
    let job = job.within(target, deadline.end());
    let by = Extension(AnsweredBy(Arc::clone(&job.model)));
    let answer = Answer::new(style_of(call), &job.model);
    if job.streams {
        // What can be refused is, before the status is sent.
        let mut session = Session::begin(&api, &job, 0)?;
        let first = deadline.bound(session.next()).await?;
        let events = events::body(api, job, session, first, answer);
        let kind = HeaderValue::from_static("text/event-stream");
        let still = HeaderValue::from_static("no-cache");
        let headers = [(header::CONTENT_TYPE, kind), (header::CACHE_CONTROL, still)];
        return Ok((by, headers, events).into_response());
    }
    let whole = deadline.bound(whole(&api, &job, &answer)).await?;
    Ok((by, whole).into_response())
}

fn style_of(call: Call) -> Style {
    match call {
        Call::Completion => Style::Completion,
        Call::Chat => Style::Chat,
    }
}

/// All texts of a request at once. A few are written side by side, in their order: who came first has
/// the first of what memory there is.
async fn whole(api: &Arc<Api>, job: &Job, answer: &Answer) -> Result<Response, ApiError> {
    let mut usage = Usage::default();
    let mut choices = vec![];
    let mut begun = VecDeque::new();
    let mut waiting = 0..job.prompts.len();
    loop {
        while begun.len() < SIDE_BY_SIDE
            && let Some(index) = waiting.next()
        {
            begun.push_back((index, Session::begin(api, job, index)?));
        }
        let Some((index, mut session)) = begun.pop_front() else { break };
        let mut pieces = vec![];
        while let Some(piece) = session.next().await? {
            pieces.push(piece);
        }
        let ending = session.ending();
        usage.add(&ending);
        choices.push(Choice { index, pieces, finish: ending.finish });
    }
    let whole = answer.whole(&choices, &usage, job.logprobs.is_some());
    granted::json_in_time(api, &whole).await
}
