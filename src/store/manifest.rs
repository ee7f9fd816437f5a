//! `manifest.json`: what a version of a model consists of.

use super::Dtype;
use serde::{Deserialize, Serialize, de::Error};
use std::collections::{BTreeMap, HashSet};

/// Version of the manifest's own format; a reader refuses any other.
pub const FORMAT: u64 = 1;

/// Its file name in a version's folder.
pub const MANIFEST_NAME: &str = "manifest.json";

/// Limit of a model's or version's name.
pub const MAX_NAME_BYTES: usize = 128;

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

/// Why a manifest cannot be believed.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// Not JSON, or not the JSON of a manifest.
    #[error("not a manifest: {0}")]
    Json(#[from] serde_json::Error),
    /// Written by a newer program, or damaged.
    #[error("field format is {found}, this program reads {FORMAT}")]
    Format {
        /// What the manifest says.
        found: u64,
    },
    /// A field contradicts another, or is out of its limits.
    #[error("field {field} {what}")]
    Field {
        /// Which, as a path: `layers[3].files.q8.path`.
        field: String,
        /// What is wrong with it.
        what: String,
    },
}

impl Manifest {
    /// Parses and checks a manifest.
    ///
    /// # Errors
    /// The first field that cannot be believed.
    pub fn parse(json: &[u8]) -> Result<Manifest, ManifestError> {
        #[derive(Deserialize)]
        struct OnlyFormat {
            format: u64,
        }
        let OnlyFormat { format } = serde_json::from_slice(json)?;
        if format != FORMAT {
            return Err(ManifestError::Format { found: format });
        }
        let manifest: Manifest = serde_json::from_slice(json)?;
        manifest.check()?;
        Ok(manifest)
    }

    /// Checks what the types alone do not promise: names, paths, shapes, variants.
    ///
    /// # Errors
    /// The first field that cannot be believed.
    pub fn check(&self) -> Result<(), ManifestError> {
        let invalid = |field: &str, what: &str| {
            Err(ManifestError::Field { field: field.to_owned(), what: what.to_owned() })
        };
        if self.format != FORMAT {
            return Err(ManifestError::Format { found: self.format });
        }
        if !is_name(&self.model) {
            return invalid("model", "is no model name");
        }
        if !is_name(&self.version) {
            return invalid("version", "is no version name");
        }
        if self.outputs.is_empty() {
            return invalid("outputs", "is empty");
        }
        check_unique("inputs", self.inputs.iter().map(|port| &port.name))?;
        check_unique("outputs", self.outputs.iter().map(|port| &port.name))?;
        check_unique("weights", self.weights.iter().map(|weight| &weight.name))?;
        check_unique("layers", self.layers.iter().map(|layer| &layer.name))?;
        check_unique("variants", self.variants.iter())?;
        if self.variants.is_empty() || !self.variants.iter().all(|name| is_name(name)) {
            return invalid("variants", "must be names, at least one");
        }
        for (index, weight) in self.weights.iter().enumerate() {
            weight.check(&format!("weights[{index}]"))?;
        }
        for (index, layer) in self.layers.iter().enumerate() {
            layer.check(&format!("layers[{index}]"), &self.variants)?;
        }
        if let Some(Task::Embedding { output, .. }) = &self.task
            && !self.outputs.iter().any(|port| port.name == *output)
        {
            return invalid("task.output", "is no output of the model");
        }
        self.check_paths()
    }

    /// Every path stays inside the folder, and no two entries share a file.
    fn check_paths(&self) -> Result<(), ManifestError> {
        let mut paths = vec![("graph.path".to_owned(), &self.graph.path)];
        paths.extend(self.tokenizer.iter().map(|file| ("tokenizer.path".to_owned(), &file.path)));
        for (index, layer) in self.layers.iter().enumerate() {
            let files = layer.files.iter();
            paths.extend(files.map(|(variant, entry)| {
                (format!("layers[{index}].files.{variant}.path"), &entry.path)
            }));
        }
        let mut seen = HashSet::new();
        for (field, path) in paths {
            let what = match () {
                _ if !is_inner_path(path) => "leaves the version's folder, or is no plain path",
                _ if path == MANIFEST_NAME || !seen.insert(path) => "names a file of another entry",
                _ => continue,
            };
            let what = format!("is {path:?}, which {what}");
            return Err(ManifestError::Field { field, what });
        }
        Ok(())
    }
}

fn check_unique<'a>(
    field: &str,
    names: impl Iterator<Item = &'a String>,
) -> Result<(), ManifestError> {
    let mut seen = HashSet::new();
    for name in names {
        let what = match name.is_empty() {
            true => "has an empty name".to_owned(),
            false if seen.insert(name) => continue,
            false => format!("has {name:?} twice"),
        };
        return Err(ManifestError::Field { field: field.to_owned(), what });
    }
    Ok(())
}

/// Whether `name` may be that of a model, a version or a variant: `[A-Za-z0-9._-]`, at most
/// [`MAX_NAME_BYTES`], not starting with a dot (hidden) or a dash (an option).
pub fn is_name(name: &str) -> bool {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    (1..=MAX_NAME_BYTES).contains(&name.len())
        && !name.starts_with(['.', '-'])
        && name.bytes().all(is_plain)
}

/// Whether `path` is relative, without `.`, `..`, empty parts, backslashes or control characters.
fn is_inner_path(path: &str) -> bool {
    const MAX_PATH_BYTES: usize = 1024;
    let is_odd = |c: char| c.is_control() || c == '\\';
    path.len() <= MAX_PATH_BYTES
        && !path.contains(is_odd)
        && path.split('/').all(|part| !matches!(part, "" | "." | ".."))
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

impl Weight {
    /// Bytes of its values in the source's precision.
    pub fn bytes(&self) -> u64 {
        self.checked_bytes().expect("a checked manifest's shapes do not overflow")
    }

    fn checked_bytes(&self) -> Option<u64> {
        let size = self.dtype.size() as u64;
        self.shape.iter().try_fold(size, |product, dim| product.checked_mul(*dim))
    }

    fn check(&self, field: &str) -> Result<(), ManifestError> {
        const MAX_WEIGHT_BYTES: u64 = 1 << 48;
        if self.checked_bytes().is_some_and(|bytes| (1..=MAX_WEIGHT_BYTES).contains(&bytes)) {
            return Ok(());
        }
        let what = format!("is {:?}, which no weight can have", self.shape);
        Err(ManifestError::Field { field: format!("{field}.shape"), what })
    }
}

/// One layer: the unit of the manifest, of the files and of the choice of a variant.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Layer {
    pub name: String,
    /// Layer file by variant name.
    pub files: BTreeMap<String, LayerEntry>,
}

impl Layer {
    fn check(&self, field: &str, variants: &[String]) -> Result<(), ManifestError> {
        let missing = variants.iter().find(|variant| !self.files.contains_key(*variant));
        if let Some(variant) = missing {
            let what = format!("lacks variant {variant:?}");
            return Err(ManifestError::Field { field: format!("{field}.files"), what });
        }
        for (variant, entry) in &self.files {
            let field = format!("{field}.files.{variant}");
            if !is_name(variant) {
                let what = "is no variant name".to_owned();
                return Err(ManifestError::Field { field, what });
            }
            if !(entry.relative_error >= 0.0 && entry.max_error >= 0.0) {
                let what = "has an error below zero".to_owned();
                return Err(ManifestError::Field { field, what });
            }
        }
        Ok(())
    }
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
        let is_hex = text.len() == 16 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        let value = u64::from_str_radix(&text, 16).ok().filter(|_| is_hex);
        let error = || D::Error::custom(format!("{text:?} is not a checksum of 16 digits"));
        value.map(Checksum).ok_or_else(error)
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
