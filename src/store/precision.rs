//! `precision.json`: what a version's weights lose at each precision, and what that does to answers.

use super::layer_file::Layout;
use super::manifest::{Checksum, Manifest};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashSet};

/// Its file name in a version's folder.
pub const PRECISION_NAME: &str = "precision.json";

/// Version of the file's own format; a reader refuses any other.
pub const PRECISION_FORMAT: u64 = 1;

/// Errors and importance of the tensors that lie on disk at several precisions.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Precision {
    pub format: u64,
    /// Inputs that the encoders were told of; none where they knew of the weights alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub calibration: Option<Calibration>,
    /// How importance was measured, once it was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub probe: Option<Probe>,
    /// Every tensor of the layer files that is streamed by blocks and has a float dtype, in the order
    /// of the files and of their indexes.
    pub tensors: Vec<TensorPrecision>,
}

/// The inputs that told what weights are used for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Calibration {
    /// In words: `docs.txt, 64 texts`; `64 rows of random token ids`.
    pub source: String,
    /// Whether the program made them up.
    pub is_made_up: bool,
    /// Passes that were computed, and columns that the products had in all of them.
    pub inputs: u64,
    pub columns: u64,
    /// Digests of those inputs that encoders learnt from: less is lost with them than with others.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub learnt: Vec<Checksum>,
}

/// How each tensor's importance was measured.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Probe {
    /// The variant that one tensor had at a time, all others being the best.
    pub variant: String,
    pub measure: Measure,
    /// Inputs that were compared, and where they were from.
    pub inputs: u64,
    pub source: String,
    /// By variant, how far answers were off with all tensors in it, for each unit of what the tensors
    /// alone come to; 1 where it was not measured.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub together: BTreeMap<String, f64>,
}

/// How far answers are from those of the best variant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Measure {
    /// One less the cosine of the outputs, the mean over inputs.
    Cosine,
    /// Kullback-Leibler divergence of the next token's probabilities, in nats, the mean over tokens.
    Kl,
}

/// One tensor of the layer files.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TensorPrecision {
    /// Name of its weight, and its layout as in the index of the layer file.
    pub weight: String,
    pub layout: Layout,
    /// Index of its layer.
    pub layer: usize,
    /// The first node that uses it, whose name may say more than the weight's.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub node: String,
    pub elements: u64,
    /// By variant, the squared error of what it computes: `tr(D H D^T)` over rows and columns, D being
    /// the error of the weights and H the mean of `x x^T` over the inputs; 0 where nothing is lost.
    pub errors: BTreeMap<String, f64>,
    /// Variants that were encoded with error feedback.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub fed: Vec<String>,
    /// How far answers are off with this tensor alone in the probe's variant.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub divergence: Option<f64>,
}

impl TensorPrecision {
    /// How far answers are off with this tensor alone in `variant`: divergence goes by the squared
    /// error. None where that was not measured.
    pub fn divergence_alone(&self, variant: &str, probe: &Probe) -> Option<f64> {
        let error = *self.errors.get(variant)?;
        let (measured, probed) = (self.divergence?, *self.errors.get(&probe.variant)?);
        match error > 0.0 {
            true if probed > 0.0 => Some(measured * error / probed),
            true => None,
            false => Some(0.0),
        }
    }

    /// The tensor's share of how far answers are off that have it in `variant` among others: what
    /// is to be summed. None where that was not measured.
    pub fn divergence_in(&self, variant: &str, probe: &Probe) -> Option<f64> {
        let together = probe.together.get(variant).copied().unwrap_or(1.0);
        Some(self.divergence_alone(variant, probe)? * together)
    }
}

impl Precision {
    /// Parses the file of a version with this manifest, and checks it.
    ///
    /// # Errors
    /// What is wrong, in words, the field first.
    pub fn parse(json: &[u8], manifest: &Manifest) -> Result<Precision, String> {
        let precision: Precision = serde_json::from_slice(json).map_err(|e| e.to_string())?;
        precision.check(manifest)?;
        Ok(precision)
    }

    /// The file's text.
    pub fn to_json(&self) -> Vec<u8> {
        let mut text = serde_json::to_vec_pretty(self).expect("its maps have names for keys");
        text.push(b'\n');
        text
    }

    /// Whether importance was measured of every tensor.
    pub fn is_measured(&self) -> bool {
        self.probe.is_some() && self.tensors.iter().all(|tensor| tensor.divergence.is_some())
    }

    fn check(&self, manifest: &Manifest) -> Result<(), String> {
        if self.format != PRECISION_FORMAT {
            return Err(format!(
                "format is {}, this program reads {PRECISION_FORMAT}",
                self.format
            ));
        }
        let is_known = |variant: &String| manifest.variants.contains(variant);
        if let Some(probe) = &self.probe
            && !is_known(&probe.variant)
        {
            return Err(format!("probe.variant {:?} is none of the version's", probe.variant));
        }
        for (variant, factor) in self.probe.iter().flat_map(|probe| &probe.together) {
            if !is_known(variant) || !factor.is_finite() || *factor <= 0.0 {
                return Err(format!("probe.together: {factor} of {variant:?} is no such figure"));
            }
        }
        let weights: HashSet<&str> = manifest.weights.iter().map(|w| w.name.as_str()).collect();
        let mut seen = HashSet::new();
        for (index, tensor) in self.tensors.iter().enumerate() {
            let wrong = |what: &str| Err(format!("tensors[{index}].{what}"));
            if !weights.contains(tensor.weight.as_str()) {
                return wrong("weight is none of the version's");
            }
            if !seen.insert((&tensor.weight, tensor.layout)) {
                return wrong("weight is there twice in one layout");
            }
            if tensor.layer >= manifest.layers.len() {
                return wrong("layer is none of the version's");
            }
            let figures = tensor.errors.values().chain(&tensor.divergence);
            if !figures.into_iter().all(|figure| figure.is_finite() && *figure >= 0.0) {
                return wrong("errors or divergence is no figure of zero or more");
            }
            if !tensor.errors.keys().chain(&tensor.fed).all(is_known) {
                return wrong("errors or fed has a variant that the version lacks");
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn manifest() -> Manifest {
        let layer = |name: &str| {
            json!({"path": name, "bytes": 1, "index_checksum": "0000000000000000",
                "relative_error": 0.0, "max_error": 0.0})
        };
        let text = json!({
            "format": 1, "model": "m", "version": "1", "inputs": [],
            "outputs": [{"name": "y", "dtype": "FP32", "shape": [4]}],
            "graph": {"path": "graph.onnx", "bytes": 10, "checksum": "0123456789abcdef"},
            "weights": [{"name": "w", "dtype": "FP32", "shape": [4, 4]}],
            "layers": [{"name": "a", "files": {"f32": layer("x"), "a3": layer("y"), "a4": layer("z")}}],
            "variants": ["f32", "a4", "a3"],
            "precision": {"path": PRECISION_NAME, "bytes": 1, "checksum": "0123456789abcdef"},
            "provenance": {"source": "m.onnx", "source_bytes": 1, "producer": "", "tool": "", "created_s": 0},
        });
        Manifest::parse(text.to_string().as_bytes()).unwrap()
    }

    fn sample() -> Value {
        json!({
            "format": 1,
            "calibration": {"source": "docs.txt, 64 texts", "is_made_up": false, "inputs": 64, "columns": 1530,
                "learnt": ["0123456789abcdef"]},
            "probe": {"variant": "a3", "measure": "cosine", "inputs": 64, "source": "docs.txt",
                "together": {"a4": 1.5}},
            "tensors": [{"weight": "w", "layout": "panels", "layer": 0, "elements": 16,
                "errors": {"f32": 0.0, "a4": 0.25, "a3": 1.0}, "fed": ["a3"], "divergence": 0.02}],
        })
    }

    fn parse(value: &Value) -> Result<Precision, String> {
        Precision::parse(value.to_string().as_bytes(), &manifest())
    }

    #[test]
    fn divergence_goes_by_the_squared_error() {
        let precision = parse(&sample()).unwrap();
        let (tensor, probe) = (&precision.tensors[0], precision.probe.as_ref().unwrap());
        let variants = ["f32", "a4", "a3", "a2"];
        let alone = variants.map(|variant| tensor.divergence_alone(variant, probe));
        assert_eq!(alone, [Some(0.0), Some(0.005), Some(0.02), None]);
        let among = variants.map(|variant| tensor.divergence_in(variant, probe));
        assert_eq!(among, [Some(0.0), Some(0.0075), Some(0.02), None]);
        assert!(precision.is_measured());
        let text = precision.to_json();
        assert_eq!(Precision::parse(&text, &manifest()).unwrap(), precision);
        let mut unmeasured = sample();
        unmeasured["tensors"][0].as_object_mut().unwrap().remove("divergence");
        assert!(!parse(&unmeasured).unwrap().is_measured());
    }

    #[test]
    fn lies_are_named_with_their_field() {
        let check = |pointer: &str, value: Value, words: &str| {
            let mut sample = sample();
            *sample.pointer_mut(pointer).unwrap() = value;
            let error = parse(&sample).unwrap_err();
            assert!(error.contains(words), "{error}");
        };
        check("/format", json!(2), "format is 2");
        check("/probe/variant", json!("q8"), "probe.variant \"q8\"");
        check("/probe/together/a4", json!(0.0), "probe.together: 0 of \"a4\"");
        check("/probe/together", json!({"q8": 1.0}), "probe.together: 1 of \"q8\"");
        check("/tensors/0/weight", json!("v"), "tensors[0].weight");
        check("/tensors/0/layer", json!(1), "tensors[0].layer");
        check("/tensors/0/divergence", json!(-1.0), "tensors[0].errors or divergence");
        check("/tensors/0/errors", json!({"q8": 1.0}), "tensors[0].errors or fed");
        check("/tensors/0/layout", json!("sideways"), "unknown variant");
    }
}
