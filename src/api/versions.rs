//! Which versions a model has and which is served: list, use, roll back, remove, collect.

use super::body;
use super::envelope::OipError;
use super::error::ApiError;
use super::state::{Api, Asked};
use crate::engine::{Cancel, Engine, Keeper};
use crate::store::manifest::HEAP_BYTES_PER_BYTE;
use crate::store::{Removed, RemovedModel};
use crate::stream::{Category, Grant};
use crate::values::counted;
use axum::Json;
use axum::body::Body;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::http::HeaderMap;
use serde::Deserialize;
use serde_json::{Value, json};
use std::sync::Arc;

pub(super) type PathArg<T> = Result<Path<T>, PathRejection>;

/// A version that has become current, and what the engine was told of it at once: the next request
/// meets it, a pass that runs ends with the old one.
pub struct Takeover {
    model: String,
    version: String,
    is_ready: bool,
    told: Asked<()>,
}

impl Takeover {
    /// Has the engine serve what the store says is current, where it has the model.
    pub fn begin(api: &Api, model: String, version: String) -> Takeover {
        api.tokenizers.forget(&model);
        let engine: &Engine = &api.engine;
        let is_ready = engine.is_ready(&model);
        let told = Asked::new(|reply| match is_ready {
            true => engine.request_load(&model, |loaded| reply(loaded.map(drop))),
            // What failed is dropped too: the next request loads the new version.
            false => engine.request_unload(&model, reply),
        });
        Takeover { model, version, is_ready, told }
    }

    /// Waits until it is served, without a thread: a load may take minutes.
    ///
    /// # Errors
    ///
    /// The engine's, where the new version cannot be loaded; it stays the current one.
    pub async fn done(mut self) -> Result<Value, ApiError> {
        let told = self.told.wait().await;
        let Takeover { model, version, is_ready, .. } = self;
        told.map_err(|error| {
            let message = format!(
                "version {version} of {model} is current now, but cannot be loaded: {}; go back \
                 with hermesctl rollback {model}",
                error.message
            );
            ApiError { message, ..error }
        })?;
        log::info!("model {model}: version {version} is current");
        let state = if is_ready { "ready" } else { "unloaded" };
        Ok(json!({ "model": model, "version": version, "state": state }))
    }
}

/// What parsing the manifests of these models' versions takes, one after the other.
pub(super) fn parsing_bytes(api: &Api, models: &[String]) -> u64 {
    let store = api.engine.store();
    // What cannot be looked at is told by whoever parses it.
    let bytes = models.iter().map(|model| store.largest_manifest_bytes(model).unwrap_or(0));
    bytes.max().unwrap_or(0).saturating_mul(HEAP_BYTES_PER_BYTE)
}

/// A grant for that, on a helper thread.
fn grant_parsing(api: &Api, models: &[String], cancel: &Cancel) -> Result<Grant, ApiError> {
    let bytes = parsing_bytes(api, models);
    Ok(api.engine.room().grant_in_time(Category::Graph, bytes, 0, cancel)?)
}

/// `GET /v2/repository/models/{model}/versions`: the newest first.
pub async fn list(
    State(api): State<Arc<Api>>,
    path: PathArg<String>,
) -> Result<Json<Value>, OipError> {
    let model = name(path)?;
    let versions = api.look(move |api| {
        let bytes = parsing_bytes(api, std::slice::from_ref(&model));
        let _parsing = api.engine.room().grant(Category::Graph, bytes)?;
        let versions = api.engine.store().list(&model)?.into_iter().map(|info| {
            json!({
                "version": info.version,
                "role": info.role.name(),
                "bytes": info.bytes,
                "created_s": info.created_s,
            })
        });
        Ok(json!({ "model": model, "versions": versions.collect::<Vec<_>>() }))
    });
    Ok(Json(versions.await?))
}

/// What `POST /v2/repository/models/{model}/use` takes.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct UseRequest {
    version: String,
}

/// `POST /v2/repository/models/{model}/use`.
pub async fn use_version(
    State(api): State<Arc<Api>>,
    path: PathArg<String>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<Value>, OipError> {
    let model = name(path)?;
    let UseRequest { version } = body::read_json(&api, &headers, body)
        .await?
        .ok_or_else(|| ApiError::invalid("the body is empty: expected {\"version\": \"NAME\"}"))?;
    let swap = api.help(move |api, cancel| {
        let _parsing = grant_parsing(api, std::slice::from_ref(&model), cancel)?;
        api.engine.store().use_version(&model, &version)?;
        Ok(Takeover::begin(api, model, version))
    });
    Ok(Json(swap.await?.done().await?))
}

/// `POST /v2/repository/models/{model}/rollback`.
pub async fn roll_back(
    State(api): State<Arc<Api>>,
    path: PathArg<String>,
) -> Result<Json<Value>, OipError> {
    let model = name(path)?;
    let swap = api.help(move |api, cancel| {
        let _parsing = grant_parsing(api, std::slice::from_ref(&model), cancel)?;
        let version = api.engine.store().roll_back(&model)?.manifest.version.clone();
        Ok(Takeover::begin(api, model, version))
    });
    Ok(Json(swap.await?.done().await?))
}

/// `DELETE /v2/repository/models/{model}/versions/{version}`.
pub async fn remove(
    State(api): State<Arc<Api>>,
    path: PathArg<(String, String)>,
) -> Result<Json<Value>, OipError> {
    let (model, version) = name(path)?;
    let removed =
        api.help(move |api, _| Ok(describe(&api.engine.store().remove(&model, &version)?)));
    Ok(Json(removed.await?))
}

/// `DELETE /v2/repository/models/{model}`: all of its versions. A pass that runs ends with the files
/// that it has open; what waits for the model is answered 404.
pub async fn remove_model(
    State(api): State<Arc<Api>>,
    path: PathArg<String>,
) -> Result<Json<Value>, OipError> {
    let model = name(path)?;
    let removing = api.help(move |api, _| {
        let removed = api.engine.store().remove_model(&model)?;
        api.tokenizers.forget(&model);
        // Nothing can load it again by now.
        let told = Asked::new(|reply| api.engine.request_unload(&model, reply));
        Ok((removed, told))
    });
    let (RemovedModel { model, versions, bytes }, mut told) = removing.await?;
    told.wait().await?;
    log::info!("model {model} is removed, with its versions {}", versions.join(", "));
    Ok(Json(json!({ "model": model, "versions": versions, "bytes": bytes })))
}

/// What `POST /v2/repository/gc` takes.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct CollectRequest {
    /// Newest versions of each model that stay, whether they were served or not.
    #[serde(default)]
    keep: Option<usize>,
}

/// `POST /v2/repository/gc`.
pub async fn collect(
    State(api): State<Arc<Api>>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<Value>, OipError> {
    let CollectRequest { keep } = body::read_json(&api, &headers, body).await?.unwrap_or_default();
    let collected = api.help(move |api, cancel| {
        let _parsing = grant_parsing(api, &api.engine.models()?, cancel)?;
        let collected = api.engine.store().collect(keep.unwrap_or(0))?;
        log::info!("collected {}", counted(collected.removed.len() as u64, "version"));
        Ok(json!({
            "removed": collected.removed.iter().map(describe).collect::<Vec<_>>(),
            "abandoned": collected.abandoned,
            "abandoned_bytes": collected.abandoned_bytes,
            "bytes": collected.bytes(),
        }))
    });
    Ok(Json(collected.await?))
}

fn describe(removed: &Removed) -> Value {
    let Removed { model, version, bytes } = removed;
    json!({ "model": model, "version": version, "bytes": bytes })
}

pub(super) fn name<T>(path: PathArg<T>) -> Result<T, ApiError> {
    let Path(name) = path.map_err(|_| ApiError::not_found("the path's names are not UTF-8"))?;
    Ok(name)
}
