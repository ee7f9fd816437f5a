//! What a model's precisions lose, as if it had been measured.

use hermes::store::{
    Measure, ModelDir, PRECISION_FORMAT, PRECISION_NAME, Precision, Probe, TensorPrecision,
};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use xxhash_rust::xxh3::xxh3_64;

/// What a weight loses in each variant, squared; the last is the probe's.
const LOSSES: [(&str, f64); 3] = [("f32", 0.0), ("q8", 0.01), ("a4", 1.0)];

/// How far answers are off with one tensor alone in the probe's variant.
const DIVERGENCE: f64 = 1e-3;

/// Writes into a version what its precisions lose, and what that does to answers if it was measured.
pub fn tell_precision(version: &Path, is_measured: bool) {
    let dir = ModelDir::open(version).unwrap();
    let (mut tensors, mut next) = (vec![], 0);
    for layer in 0..dir.manifest.layers.len() {
        let file = dir.open_layer(layer, "f32").unwrap();
        for tensor in file.index.tensors.iter().filter(|tensor| tensor.is_chosen()) {
            next += 1;
            let error = |(variant, loss): &(&str, f64)| (variant.to_string(), loss * 7.0);
            tensors.push(TensorPrecision {
                weight: tensor.name.clone(),
                layout: tensor.layout,
                layer,
                node: String::new(),
                elements: tensor.rows * tensor.depth,
                errors: LOSSES.iter().map(error).collect(),
                fed: vec![],
                // Some matter more than others.
                divergence: is_measured.then_some(DIVERGENCE * f64::from(1 + next % 5)),
            });
        }
    }
    let probe = Probe {
        variant: "a4".into(),
        measure: Measure::Cosine,
        inputs: 1,
        source: "made up".into(),
        together: BTreeMap::new(),
    };
    let probe = is_measured.then_some(probe);
    let precision = Precision { format: PRECISION_FORMAT, calibration: None, probe, tensors };
    let text = precision.to_json();
    fs::write(version.join(PRECISION_NAME), &text).unwrap();
    let file = version.join("manifest.json");
    let mut manifest: serde_json::Value =
        serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
    manifest["precision"] = serde_json::json!({
        "path": PRECISION_NAME,
        "bytes": text.len(),
        "checksum": format!("{:016x}", xxh3_64(&text)),
    });
    fs::write(file, manifest.to_string()).unwrap();
}
