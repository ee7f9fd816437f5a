//! OpenAI's `/v1/models` and `/v1/embeddings`, for programs that speak nothing else.

use super::body;
use super::deadline::Deadline;
use super::embed::Embedding;
use super::embeddings_json::{EmbeddingPieces, EmbeddingsRequest, Input};
use super::envelope::OpenAiError;
use super::error::ApiError;
use super::granted;
use super::pieces::Pieces;
use super::state::{Api, ModelPath};
use super::target;
use super::texts;
use super::traffic::AnsweredBy;
use super::vectors;
use crate::engine::Described;
use crate::store::manifest::Manifest;
use crate::wire::infer_tensor::Reserve;
use axum::body::Body;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, HeaderValue, header};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use serde_json::{Value, json};
use std::sync::Arc;

/// `GET /v1/models`.
pub async fn models(State(api): State<Arc<Api>>) -> Result<Response, OpenAiError> {
    let listed = api.look(|api| {
        let mut data = Vec::new();
        for name in api.engine.models()? {
            match api.engine.manifest(&name) {
                Ok(manifest) => data.push(describe(&manifest)),
                Err(error) => log::warn!("model {name:?} is left out of the list: {error}"),
            }
        }
        granted::json(&api.engine, &json!({ "object": "list", "data": data }))
    });
    Ok(listed.await?)
}

/// `GET /v1/models/{model}`.
pub async fn model(
    State(api): State<Arc<Api>>,
    path: Result<Path<String>, PathRejection>,
) -> Result<Json<Value>, OpenAiError> {
    let Path(model) = path.map_err(|_| ApiError::not_found("the model's name is not UTF-8"))?;
    let described = api.look(move |api| Ok(describe(&*manifest(api, &model)?)));
    Ok(Json(described.await?))
}

/// The manifest of the model that a request names.
pub fn manifest(api: &Api, model: &str) -> Result<Described, ApiError> {
    let path = ModelPath { model: model.to_owned(), version: None };
    api.manifest(&path).map_err(|error| error.about("model"))
}

fn describe(manifest: &Manifest) -> Value {
    json!({
        "id": manifest.model,
        "object": "model",
        "created": manifest.provenance.created_s,
        "owned_by": "hermes",
    })
}

/// `POST /v1/embeddings`: a vector for each text.
pub async fn embeddings(
    State(api): State<Arc<Api>>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, OpenAiError> {
    let deadline = Deadline::from_headers(&headers)?;
    let target = target::from_headers(&headers)?;
    let body = body::read_unnamed(body, &headers, &api).await?;
    let parse = |text: &[u8], reserve: &mut Reserve<'_>| {
        let request = EmbeddingsRequest::parse(text, reserve)?;
        let held_bytes = request.inputs.iter().map(Input::held_bytes).sum();
        Ok((request, held_bytes))
    };
    let (request, grant) = body.parse(&api, parse).await?;
    let (encoding, dimensions, model) =
        (request.encoding, request.dimensions, request.model.clone());
    let named = model.clone();
    let manifest = api.look(move |api| manifest(api, &named)).await?;
    let embedding = Embedding::new(&manifest, request.normalize)?.within(target);
    embedding.check_dimensions(dimensions)?;
    let tokenized = texts::tokenize(&api, manifest, request, grant);
    let (texts, mut grant) = deadline.bound(tokenized).await?;
    let token_count = texts.iter().map(|text| text.tokens.len()).sum();
    let vectors = vectors::embed(&api, embedding, texts, dimensions, &mut grant);
    let vectors = deadline.bound(vectors).await?;
    let by = Extension(AnsweredBy(model.as_str().into()));
    let choice = target::choice_header(vectors.choices());
    let pieces = EmbeddingPieces::new(vectors, encoding, model, token_count);
    let json = HeaderValue::from_static("application/json");
    let body = Body::new(Pieces::new(pieces, grant));
    Ok((by, choice, [(header::CONTENT_TYPE, json)], body).into_response())
}
