//! What the Open Inference Protocol tells of a model, and what Hermes knows beyond it.

use crate::store::manifest::{Dim, MAX_ROWS, Manifest, Port, Task, TextRules};
use serde::{Serialize, Serializer};
use std::collections::BTreeMap;

/// What `GET /v2/models/{model}` answers.
#[derive(Serialize)]
struct ModelMetadata<'a, I, O> {
    name: &'a str,
    versions: [&'a str; 1],
    platform: &'static str,
    inputs: I,
    outputs: O,
    parameters: ModelParameters<'a>,
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
struct ModelParameters<'a> {
    state: &'static str,
    /// Bytes on disk by variant.
    variant_bytes: BTreeMap<&'a str, u64>,
    variants: &'a [String],
    #[serde(flatten)]
    served: ServedIn<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    task: Option<&'a Task>,
    /// What the makers say about texts, and what of it was guessed.
    #[serde(skip_serializing_if = "Option::is_none")]
    text: Option<&'a TextRules>,
    #[serde(skip_serializing_if = "Option::is_none")]
    batch: Option<BatchMetadata<'a>>,
}

/// In which variant a model is served, or would be.
#[derive(Clone, Copy, Serialize)]
pub struct ServedIn<'a> {
    variant: &'a str,
    /// What the daemon is told to serve, where the model has no such variant.
    #[serde(skip_serializing_if = "Option::is_none")]
    wanted_variant: Option<&'a str>,
}

impl<'a> ServedIn<'a> {
    /// In this one, where that one is wanted.
    pub fn new(variant: &'a str, wanted: Option<&'a str>) -> ServedIn<'a> {
        ServedIn { variant, wanted_variant: wanted.filter(|wanted| *wanted != variant) }
    }
}

/// The axis along which a request may bring several rows.
#[derive(Serialize)]
pub struct BatchMetadata<'a> {
    /// As in `symbolic_shape`.
    name: &'a str,
    /// Rows that a request may bring.
    limit: usize,
}

impl BatchMetadata<'_> {
    /// That of a model, where it has one.
    pub fn of(manifest: &Manifest) -> Option<BatchMetadata<'_>> {
        let batch = manifest.batch.as_ref()?;
        Some(BatchMetadata { name: &batch.name, limit: MAX_ROWS })
    }
}

/// The metadata of a model, which borrow whatever has no limit.
pub fn metadata<'a>(
    manifest: &'a Manifest,
    ready: bool,
    served: ServedIn<'a>,
) -> impl Serialize + 'a {
    let mut variant_bytes = BTreeMap::new();
    for layer in &manifest.layers {
        for (variant, entry) in &layer.files {
            *variant_bytes.entry(variant.as_str()).or_default() += entry.bytes;
        }
    }
    ModelMetadata {
        name: &manifest.model,
        versions: [&*manifest.version],
        platform: "hermes_onnx",
        inputs: TensorList(manifest.given_inputs()),
        outputs: TensorList(manifest.answered_outputs()),
        parameters: ModelParameters {
            state: if ready { "ready" } else { "unloaded" },
            variant_bytes,
            variants: &manifest.variants,
            served,
            task: manifest.task.as_ref(),
            text: manifest.text.as_ref(),
            batch: BatchMetadata::of(manifest),
        },
    }
}

/// Tensors that are described one after the other.
pub struct TensorList<I>(pub I);

impl<I: Iterator<Item = Port> + Clone> Serialize for TensorList<I> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.0.clone().map(TensorMetadata::new))
    }
}

impl TensorMetadata {
    fn new(port: Port) -> TensorMetadata {
        let size = |dim: &Dim| match dim {
            Dim::Fixed(size) => i64::try_from(*size).unwrap_or(-1),
            Dim::Symbol(_) => -1,
        };
        TensorMetadata {
            shape: port.shape.iter().map(size).collect(),
            name: port.name,
            datatype: port.dtype.name(),
            parameters: TensorParameters { symbolic_shape: port.shape },
        }
    }
}
