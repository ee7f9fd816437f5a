//! Triton's statistics extension: what each model has done, in its shape and in our own figures.

use super::envelope::OipError;
use super::error::ApiError;
use super::state::{Api, FoundModel, ModelPathArg};
use crate::engine::{Counted, ModelStats};
use axum::Json;
use axum::extract::State;
use serde_json::{Value, json};
use std::sync::Arc;

/// `GET /v2/models/stats`: every model that is loaded or was asked for.
pub async fn models(State(api): State<Arc<Api>>) -> Result<Json<Value>, OipError> {
    let stats = api.look(|api| {
        let of = |model: ModelStats| {
            // A version that was removed after its last request is not worth an error.
            let manifest = api.engine.manifest(&model.name);
            let version = manifest.map(|manifest| manifest.version.clone()).unwrap_or_default();
            describe(&model, &version, api.engine.wanted_variant())
        };
        Ok(api.engine.stats().models.into_iter().map(of).collect::<Vec<_>>())
    });
    Ok(Json(json!({ "model_stats": stats.await? })))
}

/// `GET /v2/models/{model}/stats`.
pub async fn model(
    State(api): State<Arc<Api>>,
    path: ModelPathArg,
) -> Result<Json<Value>, OipError> {
    let FoundModel { model: name, version } = api.find(path).await.map_err(ApiError::closing)?;
    let mut models = api.engine.stats().models;
    models.retain(|model| model.name == name);
    let none = || ModelStats { name, loaded: None, counted: Counted::default() };
    let model = models.pop().unwrap_or_else(none);
    let described = describe(&model, &version, api.engine.wanted_variant());
    Ok(Json(json!({ "model_stats": [described] })))
}

/// A model's figures. Triton counts the time of a pass for each of its requests; ours counts it
/// once, which is what the board spent.
fn describe(model: &ModelStats, version: &str, wanted: Option<&str>) -> Value {
    let ModelStats { name, loaded, counted } = model;
    let duration = |count: u64, us: u64| json!({ "count": count, "ns": us.saturating_mul(1000) });
    let state = match loaded {
        None => "unloaded",
        Some(loaded) if loaded.in_service => "ready",
        Some(_) => "failed",
    };
    let variant = loaded.as_ref().map(|loaded| &*loaded.variant);
    json!({
        "name": name,
        "version": loaded.as_ref().map_or(version, |loaded| &loaded.version),
        "inference_count": counted.seats,
        "execution_count": counted.passes,
        "inference_stats": {
            "success": duration(counted.answered, counted.queue_us.saturating_add(counted.pass_us)),
            "fail": duration(counted.failed, 0),
            "queue": duration(counted.seats, counted.queue_us),
            "compute_input": duration(0, 0),
            "compute_infer": duration(counted.passes, counted.pass_us),
            "compute_output": duration(0, 0),
        },
        "hermes": {
            "state": state,
            "variant": variant,
            "wanted_variant": wanted.filter(|wanted| variant.is_some_and(|name| name != *wanted)),
            "tape_bytes": loaded.as_ref().map_or(0, |loaded| loaded.tape_bytes),
            "graph_bytes": loaded.as_ref().map_or(0, |loaded| loaded.graph_bytes),
            "pinned_bytes": loaded.as_ref().map_or(0, |loaded| loaded.pinned_bytes),
            "answered": counted.answered,
            "failed": counted.failed,
            "cancelled": counted.cancelled,
            "refused": counted.refused,
            "passes": counted.passes,
            "pass_requests": counted.seats,
            "queue_us": counted.queue_us,
            "pass_us": counted.pass_us,
            "stall_us": counted.stall_us,
            "bytes_read": counted.bytes_read,
            "blocks_released": counted.blocks_released,
            "loads": counted.loads,
            "load_us": counted.load_us,
        },
    })
}
