//! The Open Inference Protocol v2: metadata, health and `infer`.

use super::body;
use super::deadline::Deadline;
use super::envelope::OipError;
use super::error::ApiError;
use super::granted;
use super::metadata::{ServedIn, metadata};
use super::pieces::Pieces;
use super::state::{Api, ModelPath, ModelPathArg, Submitted};
use super::target;
use super::traffic::AnsweredBy;
use crate::engine::{Cancel, Class, Reply, Request};
use crate::store::manifest::Manifest;
use crate::stream::Trace;
use crate::wire::JSON_BYTES_HEADER;
use crate::wire::infer_json::InferRequest;
use crate::wire::infer_reply::{ReplyHead, ReplyParameters, ReplyPieces};
use crate::wire::infer_tensor::Reserve;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use hyper::body::Body as _;
use serde_json::{Value, json};
use std::sync::Arc;

/// `GET /v2`.
pub async fn server_metadata() -> Json<Value> {
    Json(json!({
        "name": "hermes",
        "version": env!("CARGO_PKG_VERSION"),
        "extensions": [
            "binary_tensor_data",
            "model_repository",
            "openai_chat_completions",
            "openai_completions",
            "openai_embeddings",
            "statistics",
        ],
    }))
}

/// `GET /v2/health/live`.
pub async fn live(State(api): State<Arc<Api>>) -> (StatusCode, Json<Value>) {
    let live = api.engine.is_alive();
    (health(live), Json(json!({ "live": live })))
}

/// `GET /v2/health/ready`.
pub async fn ready(State(api): State<Arc<Api>>) -> (StatusCode, Json<Value>) {
    let ready = api.is_ready();
    (health(ready), Json(json!({ "ready": ready })))
}

/// What tells those who only look at the status.
fn health(is_good: bool) -> StatusCode {
    if is_good { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }
}

/// `GET /v2/models/{model}`.
pub async fn model_metadata(
    State(api): State<Arc<Api>>,
    path: ModelPathArg,
) -> Result<Response, OipError> {
    let path = ModelPath::of(path)?;
    let described = api.look(move |api| {
        let manifest = api.manifest(&path)?;
        let ready = api.engine.is_ready(&manifest.model);
        let variant = api.engine.variant_of(&manifest)?;
        let served = ServedIn::new(&variant, api.engine.wanted_variant());
        granted::json(&api.engine, &metadata(&manifest, ready, served))
    });
    Ok(described.await?)
}

/// `GET /v2/models/{model}/ready`: whether a request to the model would be taken, as far as is known.
/// A model that is not loaded is ready, since a request loads it, and is not loaded for the question.
pub async fn model_ready(
    State(api): State<Arc<Api>>,
    path: ModelPathArg,
) -> Result<Json<Value>, OipError> {
    let path = ModelPath::of(path)?;
    let ready = api.look(move |api| {
        let manifest = api.manifest(&path)?;
        let model = &manifest.model;
        // Triton's clients look at the status alone: whatever is in the way is one of not ready.
        let not_ready =
            |why: String| ApiError::unavailable(format!("model {model:?} is not ready: {why}"));
        if !api.is_ready() {
            return Err(not_ready("the daemon takes no requests".to_owned()));
        }
        let loaded = api
            .engine
            .check_takes(&manifest)
            .map_err(|error| not_ready(ApiError::from(error).message))?;
        Ok(json!({ "name": model, "ready": true, "loaded": loaded }))
    });
    Ok(Json(ready.await?))
}

/// `POST /v2/models/{model}/infer`.
pub async fn infer(
    State(api): State<Arc<Api>>,
    path: ModelPathArg,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, OipError> {
    let done = run(&api, path, &headers, body, None).await?;
    let by = AnsweredBy(done.model.as_str().into());
    let choice = target::choice_header(&[done.reply.choice]);
    Ok((Extension(by), choice, infer_response(done)).into_response())
}

/// A request that was served.
pub struct ServedRequest {
    /// The model.
    pub model: String,
    /// The request, without its inputs.
    asked: InferRequest,
    /// The engine's reply.
    pub reply: Reply,
}

/// Reads a request and has the engine serve it.
pub async fn run(
    api: &Arc<Api>,
    path: ModelPathArg,
    headers: &HeaderMap,
    body: Body,
    trace: Option<Arc<Trace>>,
) -> Result<ServedRequest, ApiError> {
    let called = Called::find(api, path).await.map_err(ApiError::closing)?;
    let length = body.size_hint().lower();
    let deadline = Deadline::from_headers(headers)?;
    let target = target::from_headers(headers)?;
    let json_bytes = body::require_json_or_binary(headers)?;
    let parse = move |bytes: &[u8], reserve: &mut Reserve<'_>| parse(bytes, json_bytes, reserve);
    let parsed = match body::read(body, api.body_limit_bytes(), api).await {
        Ok(body) => body.parse(api, parse).await,
        Err(error) => Err(error),
    };
    let Called { model, first_input } = called;
    let (mut asked, _grant) = match parsed {
        Err(error) if error.over_budget.is_some() => {
            // Text and tensors are there at once.
            let least = move |api: &Arc<Api>| Ok(api.engine.least_budget_bytes(&model, 2 * length));
            let least_bytes = api.look(least).await?;
            return Err(error.at_least(|| least_bytes));
        }
        parsed => parsed?,
    };
    if let (true, Some(first)) = (asked.inputs.is_empty(), first_input) {
        return Err(ApiError::invalid(format!(
            "\"inputs\" is missing or empty: {first:?} is missing; send \
             {{\"inputs\": [{{\"name\": .., ..}}]}}"
        )));
    }
    let request = Request {
        model: model.clone(),
        inputs: std::mem::take(&mut asked.inputs),
        outputs: asked.outputs.iter().map(|wanted| wanted.name.clone()).collect(),
        target,
        cancel: Cancel::new(),
        trace,
    };
    let submitted = Submitted::new(&api.engine, Class::Interactive, request, |reply| reply);
    let reply = deadline.within(asked.timeout_us).bound(submitted.wait()).await?;
    Ok(ServedRequest { model, asked, reply })
}

/// What of a model's manifest a request needs before it is the engine's: no more is held while its
/// body comes and while it waits.
struct Called {
    model: String,
    first_input: Option<String>,
}

impl Called {
    /// Of the model that the path names. Nothing is read for a model that is loaded: the pass asks
    /// the store, and its reply says which version it met.
    async fn find(api: &Arc<Api>, path: ModelPathArg) -> Result<Called, ApiError> {
        let path = ModelPath::of(path)?;
        if path.version.is_none()
            && let Some(manifest) = api.engine.loaded_manifest(&path.model)
        {
            return Ok(Called::new(&manifest));
        }
        api.look(move |api| Ok(Called::new(&*api.manifest(&path)?))).await
    }

    fn new(manifest: &Manifest) -> Called {
        Called {
            model: manifest.model.clone(),
            first_input: manifest.inputs.first().map(|port| port.name.clone()),
        }
    }
}

/// Parses a body, of which binary data follows after `json_bytes`, and says how many bytes its
/// tensors take.
fn parse(
    bytes: &[u8],
    json_bytes: Option<usize>,
    reserve: &mut Reserve<'_>,
) -> Result<(InferRequest, u64), ApiError> {
    let json_bytes = json_bytes.unwrap_or(bytes.len());
    let Some((text, binary)) = bytes.split_at_checked(json_bytes) else {
        return Err(ApiError::invalid(format!(
            "Inference-Header-Content-Length is {json_bytes}, and the body has {} bytes",
            bytes.len()
        )));
    };
    let mut tensor_bytes = 0;
    let request = InferRequest::parse(text, binary, &mut |bytes| {
        tensor_bytes = bytes;
        reserve(bytes)
    })?;
    Ok((request, tensor_bytes))
}

fn infer_response(done: ServedRequest) -> Response {
    let ServedRequest { model, asked, reply } = done;
    // What the client still has to take is held by the reply's grant.
    let held = Arc::clone(&reply.held);
    let head = ReplyHead {
        model_name: model,
        model_version: reply.version,
        id: asked.id.clone(),
        parameters: ReplyParameters {
            latency_us: reply.stats.latency_us,
            stall_us: reply.stats.stall_us,
            bytes_read: reply.stats.bytes_read,
        },
    };
    let pieces = ReplyPieces::new(&head, reply.outputs, |name| asked.wants_binary(name));
    let json_bytes = pieces.json_bytes();
    let mut response = Body::new(Pieces::new(pieces, held)).into_response();
    let headers = response.headers_mut();
    if let Some(json_bytes) = json_bytes {
        headers.insert(JSON_BYTES_HEADER, HeaderValue::from(json_bytes));
    }
    let kind = if json_bytes.is_some() { "application/octet-stream" } else { "application/json" };
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}
