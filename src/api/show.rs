//! What a version holds, whether it is served or not: for those who look at a store.

use super::envelope::OipError;
use super::granted;
use super::metadata::{BatchMetadata, ServedIn, TensorList};
use super::state::Api;
use super::versions::{PathArg, name, parsing_bytes};
use crate::engine::{Budget, budgets};
use crate::store::manifest::{HEAP_BYTES_PER_BYTE, Manifest, Provenance, Task, TextRules};
use crate::store::{Demand, PrecisionSummary, Role};
use crate::stream::Category;
use axum::extract::State;
use axum::response::Response;
use serde::{Serialize, Serializer};
use std::sync::Arc;

/// `GET /v2/repository/models/{model}/versions/{version}`.
pub async fn show(
    State(api): State<Arc<Api>>,
    path: PathArg<(String, String)>,
) -> Result<Response, OipError> {
    let (model, version) = name(path)?;
    let shown = api.look(move |api| {
        let store = api.engine.store();
        let bytes = parsing_bytes(api, std::slice::from_ref(&model));
        let _parsing = api.engine.room().grant(Category::Graph, bytes)?;
        let dir = store.version(&model, &version)?;
        let manifest = &*dir.manifest;
        let precision_bytes = manifest.precision.as_ref().map_or(0, |entry| entry.bytes);
        let precision_bytes = precision_bytes.saturating_mul(HEAP_BYTES_PER_BYTE);
        let _reading = api.engine.room().grant(Category::Graph, precision_bytes)?;
        let variant = api.engine.variant_of(manifest)?;
        // A manifest that is too long for this has no budget to tell.
        let demand = Demand::read(&dir.path).ok();
        let process_bytes = api.engine.ledger().held_bytes(Category::Process);
        let shown = Shown {
            model: &model,
            version: &version,
            role: Role::of(&version, store.served(&model).ok().as_ref()).name(),
            state: state(api, &model, &version),
            inputs: TensorList(manifest.given_inputs()),
            outputs: TensorList(manifest.answered_outputs()),
            batch: BatchMetadata::of(manifest),
            task: manifest.task.as_ref(),
            text: manifest.text.as_ref(),
            served: ServedIn::new(&variant, api.engine.wanted_variant()),
            variants: Variants(manifest),
            precision: dir.precision()?.map(|precision| precision.summary()),
            layers: manifest.layers.len(),
            budgets: demand.map_or_else(Vec::new, |demand| budgets(&demand, process_bytes)),
            files: Files(manifest),
            bytes: dir.bytes()?,
            provenance: &manifest.provenance,
        };
        granted::json(&api.engine, &shown)
    });
    Ok(shown.await?)
}

/// Whether it is this version that is loaded, and answers.
fn state(api: &Api, model: &str, version: &str) -> &'static str {
    let models = api.engine.stats().models;
    let loaded = models.into_iter().find(|one| one.name == model).and_then(|one| one.loaded);
    match loaded.filter(|loaded| loaded.version == version) {
        None => "unloaded",
        Some(loaded) if loaded.in_service => "ready",
        Some(_) => "failed",
    }
}

#[derive(Serialize)]
struct Shown<'a, I, O> {
    model: &'a str,
    version: &'a str,
    role: &'static str,
    state: &'static str,
    inputs: I,
    outputs: O,
    #[serde(skip_serializing_if = "Option::is_none")]
    batch: Option<BatchMetadata<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    task: Option<&'a Task>,
    #[serde(skip_serializing_if = "Option::is_none")]
    text: Option<&'a TextRules>,
    #[serde(flatten)]
    served: ServedIn<'a>,
    variants: Variants<'a>,
    /// What was measured of the variants, where they have such a file.
    #[serde(skip_serializing_if = "Option::is_none")]
    precision: Option<PrecisionSummary>,
    layers: usize,
    budgets: Vec<Budget>,
    files: Files<'a>,
    /// Of all files of the version.
    bytes: u64,
    provenance: &'a Provenance,
}

/// Each variant with its bytes on disk, the best first.
struct Variants<'a>(&'a Manifest);

impl Serialize for Variants<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct Variant<'a> {
            name: &'a str,
            bytes: u64,
            /// Of the layer that lost most.
            relative_error: f64,
        }
        let of = |name: &'_ String| -> (u64, f64) {
            let files = self.0.layers.iter().filter_map(|layer| layer.files.get(name));
            files.fold((0, 0.0), |(bytes, error), file| {
                (bytes + file.bytes, f64::max(error, file.relative_error))
            })
        };
        serializer.collect_seq(self.0.variants.iter().map(|name| {
            let (bytes, relative_error) = of(name);
            Variant { name, bytes, relative_error }
        }))
    }
}

/// Each file that the manifest names.
struct Files<'a>(&'a Manifest);

impl Serialize for Files<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct File<'a> {
            path: &'a str,
            bytes: u64,
        }
        let whole = self.0.whole_files();
        let whole = whole.map(|file| File { path: &file.path, bytes: file.bytes });
        let layers = self.0.layers.iter().flat_map(|layer| layer.files.values());
        let layers = layers.map(|file| File { path: &file.path, bytes: file.bytes });
        serializer.collect_seq(whole.chain(layers))
    }
}
