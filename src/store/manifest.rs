//! `manifest.json`: what a version of a model consists of.

use super::Dtype;
pub use super::batch::{Batch, MAX_ROWS};
pub use super::field::{Dim, FORMAT, ManifestError, Port};
use super::field::{MAX_RANK, at_most};
pub use super::text::{MAX_PROMPTS, Pooling, Prompt, TextRules};
use serde::{Deserialize, Serialize, de::Error};
use std::collections::{BTreeMap, HashSet};

/// Its file name in a version's folder.
pub const MANIFEST_NAME: &str = "manifest.json";

/// File in a version's folder that says how importing the graph went when it was tried.
pub(super) const REHEARSAL_NAME: &str = "rehearsal";

/// File in a version's folder with what was measured of importance before that was interrupted.
pub const UNFINISHED_NAME: &str = "importance.part";

/// File in a model's folder that names the served version and, on a second line, the one that was
/// served before it. One file, so that both change in one step.
pub(super) const CURRENT_NAME: &str = "current";

/// Ends of the names of profiles, and of what tells that there can be none: they lie in the model's
/// folder too.
pub(super) const PLAN_SUFFIXES: [&str; 2] = [".profile.json", ".unmeasured.json"];

/// Limit of a model's or version's name.
pub const MAX_NAME_BYTES: usize = 128;

/// What parsing takes of the heap for each byte of the text at most, the text included: the limits
/// below keep small text from becoming large lists.
pub const HEAP_BYTES_PER_BYTE: u64 = 16;

/// Limit of a version's variants.
const MAX_VARIANTS: usize = 32;

/// Limit of a string as it is written; errors quote them.
const MAX_STRING_BYTES: usize = 4096;

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
    /// Which axes are the batch's, where a request may bring several rows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub batch: Option<Batch>,
    /// The graph without its big weights.
    pub graph: FileEntry,
    /// Heap that importing the graph took at its peak where it was built: from 6 to 32 times the
    /// file, which does not tell. None in what older programs built.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loading_bytes: Option<u64>,
    /// What serving takes. None in what older programs built.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub needs: Option<Needs>,
    /// Every big weight, in the order of the graph's inputs.
    pub weights: Vec<Weight>,
    /// Layers in tape order.
    pub layers: Vec<Layer>,
    /// Names of the variants that every layer has, best first.
    #[serde(deserialize_with = "at_most::<_, _, MAX_VARIANTS>")]
    pub variants: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokenizer: Option<FileEntry>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub task: Option<Task>,
    /// What the makers say about texts. None in what older programs built.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text: Option<TextRules>,
    /// What weights lose at each precision. None where there is one precision, or in what older
    /// programs built.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub precision: Option<FileEntry>,
    /// What is to be known to have it write texts. None of a model that writes none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generation: Option<FileEntry>,
    pub provenance: Provenance,
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
        check_strings(json)?;
        let OnlyFormat { format } = serde_json::from_slice(json)?;
        if format != FORMAT {
            return Err(ManifestError::Format { found: format });
        }
        let manifest: Manifest = serde_json::from_slice(json)?;
        manifest.check()?;
        Ok(manifest)
    }

    /// The file's text.
    pub fn to_json(&self) -> Vec<u8> {
        serde_json::to_vec_pretty(self).expect("its maps have names for keys")
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
        if !is_model_name(&self.model) {
            return invalid("model", "is no model name");
        }
        if !is_name(&self.version) {
            return invalid("version", "is no version name");
        }
        if self.outputs.is_empty() {
            return invalid("outputs", "is empty");
        }
        if let Some(batch) = &self.batch {
            batch.check(&self.inputs, &self.outputs)?;
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
        if let Some(text) = &self.text {
            text.check()?;
        }
        self.check_paths()
    }

    /// The files that are read whole.
    pub fn whole_files(&self) -> impl Iterator<Item = &FileEntry> {
        let files = [&self.graph].into_iter().chain(&self.tokenizer).chain(&self.precision);
        files.chain(&self.generation)
    }

    /// The inputs as requests give them.
    pub fn given_inputs(&self) -> impl Iterator<Item = Port> + Clone {
        let ports = self.inputs.iter().cloned().enumerate();
        ports.map(|(index, port)| match &self.batch {
            Some(batch) => batch.given(index, port),
            None => port,
        })
    }

    /// The outputs as replies give them.
    pub fn answered_outputs(&self) -> impl Iterator<Item = Port> + Clone {
        let ports = self.outputs.iter().cloned().enumerate();
        ports.map(|(index, port)| match &self.batch {
            Some(batch) => batch.answered(index, port),
            None => port,
        })
    }

    /// Every path stays inside the folder, and no two entries share a file.
    fn check_paths(&self) -> Result<(), ManifestError> {
        let mut paths = vec![("graph.path".to_owned(), &self.graph.path)];
        paths.extend(self.tokenizer.iter().map(|file| ("tokenizer.path".to_owned(), &file.path)));
        paths.extend(self.precision.iter().map(|file| ("precision.path".to_owned(), &file.path)));
        let generation = self.generation.iter();
        paths.extend(generation.map(|file| ("generation.path".to_owned(), &file.path)));
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
                _ if [MANIFEST_NAME, REHEARSAL_NAME, UNFINISHED_NAME].contains(&path.as_str())
                    || !seen.insert(path) =>
                {
                    "names a file of another entry"
                }
                _ => continue,
            };
            let what = format!("is {path:?}, which {what}");
            return Err(ManifestError::Field { field, what });
        }
        Ok(())
    }
}

/// Refuses strings that are too long, before any of them is held.
fn check_strings(json: &[u8]) -> Result<(), ManifestError> {
    let (mut start, mut is_escaped) = (None, false);
    for (at, byte) in json.iter().enumerate() {
        match (start, byte) {
            (None, b'"') => start = Some(at),
            (None, _) => {}
            (Some(start), _) if at - start > MAX_STRING_BYTES => {
                let what = format!("is a string of more than {MAX_STRING_BYTES} bytes");
                return Err(ManifestError::Field { field: format!("at byte {start}"), what });
            }
            (Some(_), _) if is_escaped => is_escaped = false,
            (Some(_), b'\\') => is_escaped = true,
            (Some(_), b'"') => start = None,
            (Some(_), _) => {}
        }
    }
    Ok(())
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
/// [`MAX_NAME_BYTES`], not starting with a dot (hidden) or a dash (an option), and none of those
/// that files in a model's folder have.
pub fn is_name(name: &str) -> bool {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    (1..=MAX_NAME_BYTES).contains(&name.len())
        && !name.starts_with(['.', '-'])
        && name.bytes().all(is_plain)
        && !is_reserved(name)
}

/// Whether `name` may be a model's: `/v2/models/stats` tells of all models.
pub fn is_model_name(name: &str) -> bool {
    is_name(name) && name != "stats"
}

/// Whether a model's folder has files of such names, which a version's folder would displace. On a
/// file system that ignores case they are the same in capitals.
fn is_reserved(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    name == CURRENT_NAME || PLAN_SUFFIXES.iter().any(|suffix| name.ends_with(suffix))
}

/// Whether `path` is relative, without `.`, `..`, empty parts, backslashes or control characters.
fn is_inner_path(path: &str) -> bool {
    const MAX_PATH_BYTES: usize = 1024;
    let is_odd = |c: char| c.is_control() || c == '\\';
    path.len() <= MAX_PATH_BYTES
        && !path.contains(is_odd)
        && path.split('/').all(|part| !matches!(part, "" | "." | ".."))
}

/// Limit of the lengths for which a manifest says what a pass takes.
const MAX_LENGTHS: usize = 32;

/// What serving takes of memory beside the process itself, the window and what a client sends.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Needs {
    /// Heap that the loaded graph holds, as measured where it was built.
    pub graph_bytes: u64,
    /// What a pass takes, by length, the shortest first.
    #[serde(deserialize_with = "at_most::<_, _, MAX_LENGTHS>")]
    pub passes: Vec<PassNeeds>,
    /// What the tokenizer takes, by what is in it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokenizer: Option<TokenizerNeeds>,
    /// Whether keys and values of a text are appended where they lie: elsewhere a pass has those of what
    /// is past beside those of all.
    #[serde(default, skip_serializing_if = "is_false")]
    pub appends: bool,
}

/// Heap that a tokenizer takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenizerNeeds {
    /// While it is loaded.
    pub loading_bytes: u64,
    /// From then on.
    pub held_bytes: u64,
}

fn is_false(flag: &bool) -> bool {
    !flag
}

/// What a pass takes where every open dimension of the inputs has one length.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PassNeeds {
    pub length: u64,
    pub bytes: u64,
}

impl Needs {
    /// What a pass takes whose longest open dimension has this length, or a little more: what is
    /// said of the next longer one. Beyond the longest, it is reckoned to grow by the square.
    pub fn pass_bytes(&self, length: u64) -> u64 {
        let known = self.passes.iter().find(|pass| pass.length >= length);
        let Some(PassNeeds { length: longest, bytes }) = known.or(self.passes.last()) else {
            return 0;
        };
        let times = length.div_ceil((*longest).max(1)).max(1);
        bytes.saturating_mul(times).saturating_mul(times)
    }
}

/// A big weight: an input of the stored graph that the engine feeds from the tape.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Weight {
    pub name: String,
    pub dtype: Dtype,
    #[serde(deserialize_with = "at_most::<_, _, MAX_RANK>")]
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

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::{Value, json};

    fn sample() -> Value {
        let layer = |name: &str| {
            json!({"path": format!("layers/{name}.layer"), "bytes": 4096,
                "index_checksum": "00000000000000ff", "relative_error": 0.0, "max_error": 0.0})
        };
        json!({
            "format": 1, "model": "minilm", "version": "1",
            "inputs": [{"name": "ids", "dtype": "INT64", "shape": [1, "tokens"]}],
            "outputs": [{"name": "hidden", "dtype": "FP32", "shape": [1, "tokens", 384]}],
            "graph": {"path": "graph.onnx", "bytes": 10, "checksum": "0123456789abcdef"},
            "weights": [{"name": "w", "dtype": "FP32", "shape": [384, 384]}],
            "layers": [
                {"name": "a", "files": {"f32": layer("a.f32"), "q8": layer("a.q8")}},
                {"name": "b", "files": {"f32": layer("b.f32"), "q8": layer("b.q8")}},
            ],
            "variants": ["f32", "q8"],
            "tokenizer": {"path": "tokenizer.json", "bytes": 10, "checksum": "0123456789abcdef"},
            "generation": {"path": "generation.json", "bytes": 9, "checksum": "0123456789abcdef"},
            "task": {"kind": "embedding", "output": "hidden", "pooling": "mean"},
            "text": {"max_tokens": 256, "truncates": true, "cuts_start": false, "lowercase": false,
                "prompts": [{"name": "query", "text": "query: "}], "default_prompt": "query",
                "skips_prompt": false, "keeps_length": false, "sources": ["pooling: mean, by 1_Pooling/config.json"]},
            "provenance": {"source": "m.onnx", "source_bytes": 1, "producer": "pytorch",
                "tool": "0.1.0", "created_s": 0},
        })
    }

    #[test]
    fn a_manifest_is_read_as_it_was_written() {
        let manifest = Manifest::parse(sample().to_string().as_bytes()).unwrap();
        assert_eq!(manifest.weights[0].bytes(), 384 * 384 * 4);
        let json = serde_json::to_vec(&manifest).unwrap();
        assert_eq!(serde_json::from_slice::<Value>(&json).unwrap(), sample());
        assert_eq!(Manifest::parse(&json).unwrap(), manifest);
    }

    /// Sets one field and expects an error that has all of `words`.
    fn check(pointer: &str, value: Value, words: &[&str]) {
        let mut manifest = sample();
        *manifest.pointer_mut(pointer).unwrap() = value;
        let error = Manifest::parse(manifest.to_string().as_bytes()).unwrap_err().to_string();
        assert!(words.iter().all(|word| error.contains(word)), "{error:?} lacks one of {words:?}");
    }

    #[test]
    fn lies_are_named_with_their_field() {
        check("/format", json!(2), &["format is 2", "reads 1"]);
        check("/model", json!("../etc"), &["field model"]);
        check("/model", json!(""), &["field model"]);
        check("/version", json!(".hidden"), &["field version"]);
        check("/version", json!("v".repeat(129)), &["field version"]);
        check("/outputs", json!([]), &["field outputs is empty"]);
        check("/weights/0/shape", json!([u64::MAX, 2]), &["weights[0].shape"]);
        check("/weights/0/shape", json!([0]), &["weights[0].shape"]);
        check("/weights/0/shape", json!([-1]), &["not a manifest"]);
        check("/weights/0/name", json!(""), &["field weights has an empty name"]);
        check("/layers/1/name", json!("a"), &["field layers has \"a\" twice"]);
        check("/variants", json!([]), &["field variants"]);
        check("/variants", json!(["f32", "q4"]), &["layers[0].files lacks variant \"q4\""]);
        check("/variants", json!(["f32", "f32"]), &["field variants has \"f32\" twice"]);
        check("/task/output", json!("pooled"), &["field task.output"]);
        check("/text/default_prompt", json!("passage"), &["field text.default_prompt"]);
        check("/text/max_tokens", json!(0), &["field text.max_tokens is 0"]);
        check("/text/sources", json!(vec![""; 33]), &["more than 32 items"]);
        check("/weights/0/shape", json!(vec![1; 33]), &["more than 32 items", "line 1"]);
        check("/inputs/0/shape", json!(vec![1; 33]), &["more than 32 items"]);
        check("/variants", json!(vec!["f32"; 33]), &["more than 32 items"]);
        let long = "\\\"".repeat(2000);
        check("/outputs/0/name", json!(long), &["at byte", "more than 4096 bytes"]);
        check("/graph/checksum", json!("+123456789abcdef"), &["is not a checksum"]);
        check("/graph/checksum", json!("ff"), &["is not a checksum"]);
        check("/graph/bytes", json!(-1), &["not a manifest"]);
        check("/layers/0/files/q8/max_error", json!(-1.0), &["layers[0].files.q8"]);
        check("/provenance/tool", json!(7), &["not a manifest"]);
    }

    #[test]
    fn paths_stay_in_the_folder() {
        let bad = [
            "",
            "/etc/passwd",
            "../x",
            "a/../x",
            "a/..",
            "./x",
            "a//x",
            "a/",
            "a\\x",
            "a\nx",
            "a\0",
        ];
        for path in bad {
            check("/graph/path", json!(path), &["field graph.path", "leaves"]);
            let words = ["layers[1].files.q8.path", "leaves"];
            check("/layers/1/files/q8/path", json!(path), &words);
        }
        let other = ["layers[1].files.q8.path", "names a file of another entry"];
        check("/layers/1/files/q8/path", json!("graph.onnx"), &other);
        check("/layers/1/files/q8/path", json!("manifest.json"), &other);
        check("/layers/1/files/q8/path", json!("rehearsal"), &other);
    }

    #[test]
    fn unknown_fields_are_refused() {
        let mut manifest = sample();
        manifest["graph"]["sha256"] = json!("");
        let error = Manifest::parse(manifest.to_string().as_bytes()).unwrap_err().to_string();
        assert!(error.contains("unknown field `sha256`"), "{error}");
    }

    #[test]
    fn needs_are_those_of_the_next_length() {
        let pass = |length, bytes| PassNeeds { length, bytes };
        let passes = vec![pass(1, 10), pass(128, 600)];
        let needs = Needs { graph_bytes: 7, passes, tokenizer: None, appends: false };
        for (length, bytes) in [(0, 10), (1, 10), (2, 600), (128, 600), (129, 2400), (300, 5400)] {
            assert_eq!(needs.pass_bytes(length), bytes, "{length}");
        }
        assert_eq!(Needs { passes: vec![], ..needs }.pass_bytes(3), 0);
        let mut manifest = sample();
        manifest["needs"] = json!({ "graph_bytes": 7, "passes": [{ "length": 1, "bytes": 10 }] });
        let parsed = Manifest::parse(manifest.to_string().as_bytes()).unwrap();
        assert_eq!(parsed.needs.unwrap().passes, [pass(1, 10)]);
    }

    #[test]
    fn names_are_plain() {
        for good in ["a", "bert-large", "GPT_2.v1", &"n".repeat(128)] {
            assert!(is_name(good), "{good:?}");
        }
        for bad in ["", ".", "..", ".x", "-x", "a/b", "a b", "a\0", "\u{e4}", &"n".repeat(129)] {
            assert!(!is_name(bad), "{bad:?}");
        }
    }

    /// A version called `current` took the place of the file that says which one is served.
    #[test]
    fn names_of_the_stores_own_files_are_reserved() {
        for own in [
            "current",
            "Current",
            "m.1.f32.profile.json",
            "1.unmeasured.json",
            ".staging-1-0",
            ".current-next",
        ] {
            assert!(!is_name(own), "{own:?}");
        }
        for other in ["current-1", "v.current", "profile.json", "profile"] {
            assert!(is_name(other), "{other:?}");
        }
    }

    /// Every pointer of the sample to something that is no object.
    fn pointers(value: &Value, at: &str, found: &mut Vec<String>) {
        match value {
            Value::Object(fields) => {
                fields.iter().for_each(|(name, v)| pointers(v, &format!("{at}/{name}"), found));
            }
            Value::Array(items) => {
                found.push(at.to_owned());
                let items = items.iter().enumerate();
                items.for_each(|(index, v)| pointers(v, &format!("{at}/{index}"), found));
            }
            _ => found.push(at.to_owned()),
        }
    }

    fn odd_value() -> impl Strategy<Value = Value> {
        prop_oneof![
            any::<u64>().prop_map(|v| json!(v)),
            any::<i64>().prop_map(|v| json!(v)),
            any::<f64>().prop_map(|v| json!(v)),
            "[a-f0-9/.]{0,20}".prop_map(|v| json!(v)),
            Just(json!(null)),
            prop::collection::vec(any::<u64>(), 0..4).prop_map(|v| json!(v)),
        ]
    }

    proptest! {
        #[test]
        fn mutated_manifests_are_refused_or_safe(
            changes in prop::collection::vec((any::<prop::sample::Index>(), odd_value()), 1..4),
        ) {
            let mut places = Vec::new();
            pointers(&sample(), "", &mut places);
            let mut manifest = sample();
            for (place, value) in changes {
                let pointer = &places[place.index(places.len())];
                if let Some(old) = manifest.pointer_mut(pointer) {
                    *old = value;
                }
            }
            if let Ok(manifest) = Manifest::parse(manifest.to_string().as_bytes()) {
                let files = manifest.layers.iter().flat_map(|layer| layer.files.values());
                for path in files.map(|file| &file.path).chain([&manifest.graph.path]) {
                    prop_assert!(!path.starts_with('/') && !path.split('/').any(|p| p == ".."));
                }
                // All weights may be gone; those that are there have a size, and so has their sum.
                let mut bytes = manifest.weights.iter().map(Weight::bytes);
                prop_assert!(bytes.all(|bytes| bytes > 0));
                let mut bytes = manifest.weights.iter().map(Weight::bytes);
                prop_assert!(bytes.try_fold(0u64, |sum, bytes| sum.checked_add(bytes)).is_some());
            }
        }

        #[test]
        fn any_text_is_refused(text in ".{0,200}") {
            prop_assert!(Manifest::parse(text.as_bytes()).is_err());
        }
    }
}
