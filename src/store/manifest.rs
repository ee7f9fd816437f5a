//! `manifest.json`: what a version of a model consists of.

use super::Dtype;
use serde::{Deserialize, Serialize, de::Error};
use std::collections::BTreeMap;

/// Version of the manifest's own format; a reader refuses any other.
pub const FORMAT: u64 = 1;

/// One version of one model, as `manifest.json` describes it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    pub format: u64,
    /// Model name: `[A-Za-z0-9._-]`, at most 128 characters, not starting with a dot.
    pub model: String,
    /// Version name, of the same alphabet.
    pub version: String,
    pub inputs: Vec<Port>,
    pub outputs: Vec<Port>,
    /// The graph without its big weights.
    pub graph: FileEntry,
    /// Every big weight, in the order of the graph's inputs.
    pub weights: Vec<Weight>,
    /// Layers in tape order.
    pub layers: Vec<Layer>,
    /// Names of the variants that every layer has, best first.
    pub variants: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokenizer: Option<FileEntry>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub task: Option<Task>,
    pub provenance: Provenance,
}

/// An input or output of the model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Port {
    pub name: String,
    pub dtype: Dtype,
    pub shape: Vec<Dim>,
}

/// One dimension: a size, or the symbol whose value each request chooses.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Dim {
    Fixed(u64),
    /// A symbol, or an expression of symbols such as `2*seq+1`.
    Symbol(String),
}

/// A big weight: an input of the stored graph that the engine feeds from the tape.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Weight {
    pub name: String,
    pub dtype: Dtype,
    pub shape: Vec<u64>,
}

/// One layer: the unit of the manifest, of the files and of the choice of a variant.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Layer {
    pub name: String,
    /// Layer file by variant name.
    pub files: BTreeMap<String, LayerEntry>,
}

/// A layer file of one variant.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LayerEntry {
    /// Path below the version's folder.
    pub path: String,
    /// Length of the file.
    pub bytes: u64,
    /// XXH3-64 of the file's header and index, which hold every block's checksum.
    pub index_checksum: Checksum,
    /// Root of the mean squared error over root mean square of the weights.
    pub relative_error: f64,
    /// Largest absolute error of a weight.
    pub max_error: f64,
}

/// A file that is read whole.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileEntry {
    pub path: String,
    pub bytes: u64,
    /// XXH3-64 of the whole file.
    pub checksum: Checksum,
}

/// XXH3-64, written as 16 hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Checksum(pub u64);

impl Serialize for Checksum {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("{:016x}", self.0))
    }
}

impl<'de> Deserialize<'de> for Checksum {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        u64::from_str_radix(&text, 16)
            .map(Checksum)
            .map_err(|_| D::Error::custom(format!("{text:?} is not a checksum")))
    }
}

/// What the model is for, where the daemon can do it from text.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase", deny_unknown_fields)]
pub enum Task {
    /// Text in, one vector out.
    Embedding { output: String, pooling: Pooling },
}

/// How an embedding's token vectors become one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Pooling {
    /// Mean over the tokens that the attention mask keeps.
    Mean,
    /// The first token's vector.
    Cls,
    /// The output is one vector already.
    None,
}

/// Where a version came from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Provenance {
    /// File name of the source model.
    pub source: String,
    /// Bytes of the source, external data included.
    pub source_bytes: u64,
    /// Exporter, as the ONNX file names it.
    pub producer: String,
    /// Version of hermes-shard.
    pub tool: String,
    /// Seconds since the epoch.
    pub created_s: u64,
}
