//! The Open Inference Protocol v2: metadata, health and `infer`.

use super::body::{self, GrantedBody};
use super::error::ApiError;
use super::infer_json::{InferRequest, ReplyHead, ReplyParameters, ReplyPieces, RequestError};
use super::pieces::Pieces;
use super::routes::{Api, Submitted, error_response, wait};
use crate::engine::{Array, Cancel, PassStats, Request};
use crate::store::manifest::{Dim, Manifest, Port, Task};
use crate::stream::{Category, Grant};
use axum::Json;
use axum::body::Body;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, HeaderValue, header};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Bodies up to this are parsed on the event loop: at 200 MB/s, in a third of a millisecond.
const PARSE_INLINE_BYTES: usize = 64 << 10;

/// An error in this protocol's shape.
pub struct OipError(
    /// What is refused.
    pub ApiError,
);

impl<E: Into<ApiError>> From<E> for OipError {
    fn from(error: E) -> OipError {
        OipError(error.into())
    }
}

impl IntoResponse for OipError {
    fn into_response(self) -> Response {
        let body = json!({ "error": self.0.message }).to_string().into_bytes();
        error_response(&self.0, body)
    }
}

/// The part of a path that names a model.
#[derive(Deserialize)]
pub struct ModelPath {
    model: String,
    version: Option<String>,
}

type ModelPathArg = Result<Path<ModelPath>, PathRejection>;

/// `GET /v2`.
pub async fn server_metadata() -> Json<Value> {
    Json(json!({
        "name": "hermes",
        "version": env!("CARGO_PKG_VERSION"),
        "extensions": ["openai_embeddings"],
    }))
}

/// `GET /v2/health/live`.
pub async fn live() -> Json<Value> {
    Json(json!({ "live": true }))
}

/// `GET /v2/health/ready`.
pub async fn ready() -> Json<Value> {
    Json(json!({ "ready": true }))
}

/// `GET /v2/models/{model}`.
pub async fn model_metadata(
    State(api): State<Arc<Api>>,
    path: ModelPathArg,
) -> Result<Json<ModelMetadata>, OipError> {
    let manifest = find(&api, path)?;
    let ready = api.engine.is_ready(&manifest.model);
    Ok(Json(ModelMetadata::new(&manifest, ready)))
}

/// `GET /v2/models/{model}/ready`: loads the model if need be, since a request would.
pub async fn model_ready(
    State(api): State<Arc<Api>>,
    path: ModelPathArg,
) -> Result<Json<Value>, OipError> {
    let manifest = find(&api, path)?;
    if !api.engine.is_ready(&manifest.model) {
        api.load(&manifest.model).await?;
    }
    Ok(Json(json!({ "name": manifest.model, "ready": true })))
}

/// `POST /v2/models/{model}/infer`.
pub async fn infer(
    State(api): State<Arc<Api>>,
    path: ModelPathArg,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, OipError> {
    let manifest = find(&api, path).map_err(ApiError::closing)?;
    body::require_json(&headers)?;
    let body = body::read(body, api.body_limit_bytes, api.engine.ledger()).await?;
    let (request, grant) = match body.bytes.len() <= PARSE_INLINE_BYTES {
        true => parse(body)?,
        false => wait(|| parse(body)).await?,
    };
    let id = request.id;
    let request = Request {
        model: manifest.model.clone(),
        inputs: request.inputs,
        outputs: request.outputs,
        cancel: Cancel::new(),
        trace: None,
    };
    let reply = Submitted::new(&api.engine, request, |reply| reply).wait().await?;
    // The engine has dropped the inputs by now; what the client still has to take is held here.
    drop(grant);
    let held = reply.outputs.iter().map(|(_, array)| array.bytes.len() as u64).sum();
    let grant = api.engine.ledger().try_grant(Category::Request, held).map_err(ApiError::from)?;
    Ok(infer_response(&manifest, id, reply.outputs, &reply.stats, grant))
}

/// Parses a body; the grant returned covers the tensors alone.
fn parse(mut body: GrantedBody) -> Result<(InferRequest, Grant), ApiError> {
    let text_bytes = body.bytes.capacity() as u64;
    let text = std::mem::take(&mut body.bytes);
    let mut tensor_bytes = 0;
    let request = InferRequest::parse(&text, &mut |bytes| {
        tensor_bytes = bytes;
        body.grant_mut().resize(text_bytes + bytes)
    });
    drop(text);
    let request = request.map_err(|error: RequestError| ApiError::from(error))?;
    let mut grant = body.into_grant();
    grant.resize(tensor_bytes)?;
    Ok((request, grant))
}

fn infer_response(
    manifest: &Manifest,
    id: Option<String>,
    outputs: Vec<(String, Array)>,
    stats: &PassStats,
    grant: Grant,
) -> Response {
    let head = ReplyHead {
        model_name: manifest.model.clone(),
        model_version: manifest.version.clone(),
        id,
        parameters: ReplyParameters {
            latency_us: stats.latency_us,
            stall_us: stats.stall_us,
            bytes_read: stats.bytes_read,
        },
    };
    let body = Body::new(Pieces::new(ReplyPieces::new(&head, outputs), grant));
    let json = HeaderValue::from_static("application/json");
    ([(header::CONTENT_TYPE, json)], body).into_response()
}

fn find(api: &Api, path: ModelPathArg) -> Result<Arc<Manifest>, ApiError> {
    let Path(path) = path.map_err(|_| ApiError::not_found("the model's name is not UTF-8"))?;
    api.manifest(&path.model, path.version.as_deref())
}

/// What `GET /v2/models/{model}` answers.
#[derive(Serialize)]
pub struct ModelMetadata {
    name: String,
    versions: Vec<String>,
    platform: &'static str,
    inputs: Vec<TensorMetadata>,
    outputs: Vec<TensorMetadata>,
    parameters: ModelParameters,
}

#[derive(Serialize)]
struct TensorMetadata {
    name: String,
    datatype: &'static str,
    /// -1 for a size that each request chooses.
    shape: Vec<i64>,
    parameters: TensorParameters,
}

#[derive(Serialize)]
struct TensorParameters {
    /// The shape with the symbols' names: equal names mean equal sizes.
    symbolic_shape: Vec<Dim>,
}

/// What Hermes knows beyond the protocol.
#[derive(Serialize)]
struct ModelParameters {
    state: &'static str,
    /// Bytes on disk by variant.
    variant_bytes: BTreeMap<String, u64>,
    variants: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    task: Option<Task>,
}

impl ModelMetadata {
    fn new(manifest: &Manifest, ready: bool) -> ModelMetadata {
        let mut variant_bytes = BTreeMap::new();
        for layer in &manifest.layers {
            for (variant, entry) in &layer.files {
                *variant_bytes.entry(variant.clone()).or_default() += entry.bytes;
            }
        }
        ModelMetadata {
            name: manifest.model.clone(),
            versions: vec![manifest.version.clone()],
            platform: "hermes_onnx",
            inputs: manifest.inputs.iter().map(TensorMetadata::new).collect(),
            outputs: manifest.outputs.iter().map(TensorMetadata::new).collect(),
            parameters: ModelParameters {
                state: if ready { "ready" } else { "unloaded" },
                variant_bytes,
                variants: manifest.variants.clone(),
                task: manifest.task.clone(),
            },
        }
    }
}

impl TensorMetadata {
    fn new(port: &Port) -> TensorMetadata {
        let size = |dim: &Dim| match dim {
            Dim::Fixed(size) => i64::try_from(*size).unwrap_or(-1),
            Dim::Symbol(_) => -1,
        };
        TensorMetadata {
            name: port.name.clone(),
            datatype: port.dtype.name(),
            shape: port.shape.iter().map(size).collect(),
            parameters: TensorParameters { symbolic_shape: port.shape.clone() },
        }
    }
}
