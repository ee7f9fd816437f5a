//! OpenAI's `/v1/models` and `/v1/embeddings`, for programs that speak nothing else.

use super::body;
use super::deadline::Deadline;
use super::embed::{Embedding, Measure};
use super::embeddings_json::{Cut, EmbeddingPieces, EmbeddingsRequest, Input};
use super::envelope::OpenAiError;
use super::error::ApiError;
use super::granted;
use super::helpers;
use super::pieces::Pieces;
use super::state::{Api, ModelPath, Submitted};
use super::tokenizer::Asker;
use super::traffic::AnsweredBy;
use crate::engine::{Cancel, Described};
use crate::store::manifest::Manifest;
use crate::stream::Grant;
use crate::wire::infer_tensor::Reserve;
use axum::body::Body;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, HeaderValue, header};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use serde_json::{Value, json};
use std::collections::VecDeque;
use std::sync::Arc;

/// Texts whose passes may be under way at once.
const IN_FLIGHT: usize = 16;

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
fn manifest(api: &Api, model: &str) -> Result<Described, ApiError> {
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

/// `POST /v1/embeddings`: unit vectors, one pass for each text.
pub async fn embeddings(
    State(api): State<Arc<Api>>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, OpenAiError> {
    let deadline = Deadline::from_headers(&headers)?;
    body::require_json(&headers)?;
    let body = match body::read(body, api.body_limit_bytes(), &api).await {
        Err(error) if error.over_budget.is_some() => {
            // Which model it is about was not read.
            let least = |api: &Arc<Api>| Ok(api.engine.least_budget_of_any_bytes());
            let least_bytes = api.look(least).await?;
            return Err(error.at_least(|| least_bytes).into());
        }
        body => body?,
    };
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
    let embedding = Embedding::new(&manifest)?;
    embedding.check_dimensions(dimensions)?;
    let tokenized = tokenize(&api, manifest, request, grant);
    let (texts, mut grant) = deadline.bound(tokenized).await?;
    let token_count = texts.iter().map(|text| text.tokens.len()).sum();
    let vectors = deadline.bound(embed(&api, embedding, texts, dimensions, &mut grant)).await?;
    let by = Extension(AnsweredBy(model.as_str().into()));
    let pieces = EmbeddingPieces::new(vectors, encoding, model, token_count);
    let json = HeaderValue::from_static("application/json");
    let body = Body::new(Pieces::new(pieces, grant));
    Ok((by, [(header::CONTENT_TYPE, json)], body).into_response())
}

/// A text in the model's tokens.
struct Text {
    tokens: Vec<u32>,
    /// Tokens at the beginning that are not pooled.
    skipped: usize,
}

/// The tokens of all inputs. The grant goes along: what is held for a client that has left is held
/// until the thread is told.
async fn tokenize(
    api: &Arc<Api>,
    manifest: Described,
    request: EmbeddingsRequest,
    mut grant: Grant,
) -> Result<(Vec<Text>, Grant), ApiError> {
    // A token of a text, or of the prompt before it, is at least one of its bytes.
    let prompts = manifest.text.iter().flat_map(|text| &text.prompts);
    let prompt_bytes = prompts.map(|prompt| prompt.text.len()).max().unwrap_or(0);
    let prompts_bytes = ((prompt_bytes + size_of::<Text>()) * request.inputs.len()) as u64;
    let texts_bytes = grant.bytes().saturating_add(prompts_bytes);
    let own_bytes = texts_bytes.saturating_mul(1 + size_of::<u32>() as u64);
    granted::enlarge(api, &mut grant, own_bytes).await?;
    let encoder = api.tokenizers.get((&api.helpers, &api.engine), &manifest, own_bytes).await?;
    let work = move |api: &Arc<Api>, cancel: &Cancel| {
        let asker = Asker { engine: &api.engine, own_bytes, cancel };
        let EmbeddingsRequest { inputs, cut, prompt_name, .. } = request;
        let prompt = encoder.prompt(prompt_name.as_deref())?;
        let prompt_tokens = encoder.skipped(prompt, asker)?;
        let encode = |input| match input {
            Input::Text(text) => {
                let text = if prompt.is_empty() { text } else { format!("{prompt}{text}") };
                let tokens = encoder.encode(&text, cut, asker)?;
                // Of a text that was cut in front, or to less than its prompt, all that is left.
                let is_pooled_whole = cut == Some(Cut::Start) || tokens.len() <= prompt_tokens;
                Ok(Text { skipped: if is_pooled_whole { 0 } else { prompt_tokens }, tokens })
            }
            Input::Tokens(_) if prompt_name.is_some() => {
                let message = "a prompt goes before texts, and this is an array of tokens";
                Err(ApiError::invalid(message).about("prompt_name"))
            }
            Input::Tokens(tokens) => Ok(Text { tokens: encoder.check(tokens)?, skipped: 0 }),
        };
        let encode = |(index, input)| {
            if cancel.is_cancelled() {
                return Err(helpers::left());
            }
            encode(input).map_err(|error| ApiError {
                message: format!("input[{index}]: {}", error.message),
                ..error
            })
        };
        let texts: Vec<Text> =
            inputs.into_iter().enumerate().map(encode).collect::<Result<_, ApiError>>()?;
        let held_bytes =
            |text: &Text| (text.tokens.capacity() * size_of::<u32>() + size_of::<Text>()) as u64;
        grant.resize(texts.iter().map(held_bytes).sum())?;
        Ok((texts, grant))
    };
    api.help(work).await
}

/// The vectors of all texts; dropping the future cancels the passes under way.
async fn embed(
    api: &Arc<Api>,
    embedding: Embedding,
    texts: Vec<Text>,
    dimensions: Option<usize>,
    grant: &mut Grant,
) -> Result<Vec<Vec<f32>>, ApiError> {
    let embedding = Arc::new(embedding);
    let base_bytes = grant.bytes();
    let mut in_flight = VecDeque::with_capacity(IN_FLIGHT);
    let mut vectors: Vec<Vec<f32>> = Vec::with_capacity(texts.len());
    let mut waiting = texts.iter();
    loop {
        while in_flight.len() < IN_FLIGHT
            && let Some(Text { tokens, skipped }) = waiting.next()
        {
            let request = embedding.request(tokens)?;
            let measure = Measure { tokens: tokens.len(), skipped: *skipped };
            let embedding = Arc::clone(&embedding);
            // Pooled on the engine's thread: of a pass's rows only the one vector is kept.
            let digest = move |reply| embedding.vector(&reply, measure, dimensions);
            in_flight.push_back(Submitted::new(&api.engine, request, digest));
        }
        let Some(first) = in_flight.pop_front() else {
            return Ok(vectors);
        };
        let vector = first.wait().await??;
        if vectors.is_empty() {
            let vectors_bytes = (texts.len() * vector.len() * 4) as u64;
            granted::enlarge(api, grant, base_bytes + vectors_bytes).await?;
        }
        vectors.push(vector);
    }
}
