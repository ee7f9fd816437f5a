//! Triton's model repository extension: what models there are, load, unload.

use super::body;
use super::envelope::OipError;
use super::error::{ApiError, is_for_want_of_files};
use super::granted;
use super::state::{Api, Asked, FoundModel, ModelPathArg};
use crate::wire::quote::quote;
use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::Response;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::sync::Arc;

/// A model of the index.
#[derive(Serialize)]
pub struct IndexEntry {
    name: String,
    version: String,
    state: &'static str,
    reason: String,
}

impl IndexEntry {
    fn new(api: &Api, name: String, version: String) -> IndexEntry {
        let models = api.engine.stats().models;
        let model = models.into_iter().find(|model| model.name == name);
        let (state, reason) = match model.and_then(|model| model.loaded) {
            None => ("UNAVAILABLE", "unloaded"),
            Some(loaded) if loaded.in_service => ("READY", ""),
            Some(_) => ("UNAVAILABLE", "out of service after an error: load it anew"),
        };
        IndexEntry { name, version, state, reason: reason.to_owned() }
    }
}

/// The body of `index`, which may be empty.
#[derive(Default, Deserialize)]
#[serde(default)]
struct IndexRequest {
    /// Whether only models that are loaded are wanted.
    ready: Option<bool>,
}

/// The body of `load` and `unload`, which may be empty.
#[derive(Default, Deserialize)]
#[serde(default)]
struct LoadRequest {
    parameters: Option<Map<String, Value>>,
}

/// `GET` and `POST /v2/repository/index`.
pub async fn index(
    State(api): State<Arc<Api>>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, OipError> {
    let request = body::read_json::<IndexRequest>(&api, &headers, body).await?.unwrap_or_default();
    let index = api.look(move |api| {
        let mut entries = Vec::new();
        for name in api.engine.models()? {
            let entry = match api.engine.manifest(&name) {
                Ok(manifest) => IndexEntry::new(api, name, manifest.version.clone()),
                Err(error) => {
                    // What has no room now is served later: nothing is wrong with the model.
                    let may_pass = error.over_budget().is_some() || is_for_want_of_files(&error);
                    let served = may_pass.then(|| api.engine.store().served(&name).ok()).flatten();
                    let version = served.map_or_else(String::new, |served| served.current);
                    let reason = ApiError::from(error).message;
                    IndexEntry { name, version, state: "UNAVAILABLE", reason }
                }
            };
            entries.push(entry);
        }
        entries.retain(|entry| request.ready != Some(true) || entry.state == "READY");
        granted::json(&api.engine, &entries)
    });
    Ok(index.await?)
}

/// `POST /v2/repository/models/{model}/load`: anew where it is loaded already.
pub async fn load(
    State(api): State<Arc<Api>>,
    path: ModelPathArg,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<IndexEntry>, OipError> {
    let FoundModel { model, version } = api.find(path).await.map_err(ApiError::closing)?;
    let request = body::read_json::<LoadRequest>(&api, &headers, body).await?.unwrap_or_default();
    if let Some(name) = request.parameters.unwrap_or_default().keys().next() {
        let message = format!(
            "parameter {} is not supported: what a model is was decided when it was sharded",
            quote(name)
        );
        return Err(ApiError::invalid(message).into());
    }
    // Who asks for it gets another try.
    let name = model.clone();
    api.look(move |api| Ok(api.engine.forget_refusal(&name)?)).await?;
    Asked::new(|reply| api.engine.request_load(&model, reply)).wait().await?;
    Ok(Json(IndexEntry::new(&api, model, version)))
}

/// `POST /v2/repository/models/{model}/unload`; a model that is not loaded stays so. Parameters
/// (`unload_dependents`) mean nothing here: no model depends on another.
pub async fn unload(
    State(api): State<Arc<Api>>,
    path: ModelPathArg,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<IndexEntry>, OipError> {
    let FoundModel { model, version } = api.find(path).await.map_err(ApiError::closing)?;
    body::read_json::<LoadRequest>(&api, &headers, body).await?;
    Asked::new(|reply| api.engine.request_unload(&model, reply)).wait().await?;
    Ok(Json(IndexEntry::new(&api, model, version)))
}
