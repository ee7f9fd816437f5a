//! Checkpoints, folders of Hugging Face and GGUF files, built and served as they are: against what
//! PyTorch computes with the same weights in f32.
//!
//! `tests/data/checkpoints` has small ones of random weights; `right.json` names each with the logits
//! behind its ids, or with the last hidden state of an encoder. Those of `made.json` have weights that
//! follow from their names, and what is right was computed of them in 64-bit floats by NumPy.

mod common;

use common::crews::CREWS;
use common::made::{self, made_up};
use common::programs::program;
use hermes::engine::{Array, Cancel, Config, Engine, Reply, Request};
use hermes::store::Dtype;
use hermes::store::manifest::{Dim, Port};
use serde::Deserialize;
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// A checkpoint and what is right of it.
#[derive(Deserialize)]
struct Right {
    /// Where it lies, unless it is made.
    #[serde(default)]
    path: String,
    #[serde(default)]
    config: Value,
    /// Shapes of tensors that are made.
    #[serde(default)]
    tensors: BTreeMap<String, Vec<u64>>,
    /// Of a decoder.
    #[serde(default)]
    ids: Vec<i64>,
    #[serde(default)]
    logits: Vec<f32>,
    /// Of an encoder.
    #[serde(default)]
    shape: Vec<usize>,
    #[serde(default)]
    input_ids: Vec<i64>,
    #[serde(default)]
    attention_mask: Vec<i64>,
    #[serde(default)]
    token_type_ids: Vec<i64>,
    #[serde(default)]
    last_hidden_state: Vec<f32>,
}

fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/checkpoints").join(name)
}

fn right() -> Vec<Right> {
    let read = |name: &str| -> Vec<Right> {
        serde_json::from_slice(&fs::read(data(name)).unwrap()).unwrap()
    };
    read("right.json").into_iter().chain(read("made.json")).collect()
}

impl Right {
    fn name(&self) -> &str {
        self.config["model_type"].as_str().unwrap_or(&self.path)
    }

    /// Where it is, once it is made.
    fn place(&self, folder: &Path) -> PathBuf {
        if !self.path.is_empty() {
            return data(&self.path);
        }
        made::write(folder, &self.config, &self.tensors);
        folder.to_owned()
    }
}

fn build(model: &Path, store: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(program("hermes-shard"));
    command.arg("build").arg(model).arg("--store").arg(store).args(["--name", "model"]);
    command.args(arguments).output().unwrap()
}

fn said(output: &Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Engines that stream all they can, by 1 to 8 threads.
fn engines(store: &Path) -> Vec<Engine> {
    let config = Config { pin_bytes: 0, ..Config::new(store, 1 << 30) };
    CREWS.into_iter().map(|crew| Engine::start(crew.of(config.clone())).unwrap()).collect()
}

fn answer(engine: &Engine, inputs: Vec<(String, Array)>) -> Reply {
    let model = "model".to_string();
    let (cancel, target, trace) = (Cancel::new(), None, None);
    let request = Request { model, inputs, outputs: vec![], cancel, target, trace };
    engine.infer(request).unwrap()
}

fn output(reply: &Reply, name: &str) -> Array {
    let found = reply.outputs.iter().find(|(own, _)| own == name);
    found.unwrap_or_else(|| panic!("no output {name}")).1.clone()
}

/// Keys and values of no token.
fn nothing_past(port: &Port) -> (String, Array) {
    let size = |dim: &Dim| match dim {
        Dim::Fixed(size) => *size as usize,
        Dim::Symbol(_) => 0,
    };
    let shape = port.shape.iter().map(size).collect();
    (port.name.clone(), Array::new(Dtype::Fp32, shape, vec![]).unwrap())
}

/// Logits behind `ids`, which are given in parts, each with what came of those before.
fn decoded(engine: &Engine, ids: &[i64], parts: &[usize]) -> Vec<f32> {
    let ports = engine.manifest("model").unwrap().inputs.clone();
    let past = ports.iter().filter(|port| port.name.starts_with("past_key_values."));
    let mut past: Vec<(String, Array)> = past.map(nothing_past).collect();
    let (mut at, mut logits) = (0, vec![]);
    for part in parts {
        let new = Array::from_i64(vec![1, *part], &ids[at..at + part]).unwrap();
        at += part;
        let mut inputs = past.clone();
        inputs.push(("input_ids".to_string(), new));
        let reply = answer(engine, inputs);
        for (name, array) in &mut past {
            *array = output(&reply, &name.replace("past_key_values", "present"));
            assert_eq!(array.shape[2], at, "{name}");
        }
        let last = output(&reply, "logits");
        // Those of the last few tokens come out.
        assert_eq!(last.shape[..2], [1, (*part).min(8)]);
        logits = last.to_f32().unwrap().split_off(((*part).min(8) - 1) * last.shape[2]);
    }
    assert_eq!(at, ids.len());
    logits
}

fn largest_difference(found: &[f32], right: &[f32]) -> f32 {
    assert_eq!(found.len(), right.len());
    let off = found.iter().zip(right).map(|(a, b)| (a - b).abs());
    // NaN must fail.
    off.fold(0.0, |most, off| if off <= most { most } else { off })
}

/// Whatever threads compute, and whether the weights are streamed or so small that they are not.
#[test]
fn logits_are_those_of_the_weights_as_the_file_holds_them() {
    for model in right() {
        let (path, ids, right) = (model.name(), &model.ids, &model.logits);
        if ids.is_empty() {
            continue;
        }
        let folder = tempfile::tempdir().unwrap();
        let place = model.place(folder.path());
        for threshold in ["1K", "64K"] {
            let store = folder.path().join(threshold);
            said(&build(&place, &store, &["--threshold", threshold]));
            let engines = engines(&store);
            let whole = decoded(&engines[0], ids, &[ids.len()]);
            let off = largest_difference(&whole, right);
            println!("{path}: off by {off:.1e}");
            assert!(off <= 5e-4, "{path}, threshold {threshold}: off by {off}");
            for engine in &engines[1..] {
                assert!(decoded(engine, ids, &[ids.len()]) == whole, "{path}: other bits");
            }
            let parts = [ids.len() / 2, 1, 1, ids.len() - ids.len() / 2 - 2];
            let cut = decoded(&engines[1], ids, &parts);
            let off = largest_difference(&cut, right);
            assert!(off <= 5e-4, "{path}, threshold {threshold}, in parts: off by {off}");
        }
    }
}

#[test]
fn encoders_give_the_hidden_state_of_the_weights() {
    for right in right() {
        if right.last_hidden_state.is_empty() {
            continue;
        }
        let path = right.name();
        let folder = tempfile::tempdir().unwrap();
        let place = right.place(folder.path());
        for threshold in ["1K", "64K"] {
            let store = folder.path().join(threshold);
            said(&build(&place, &store, &["--threshold", threshold]));
            let ports = [
                ("input_ids", &right.input_ids),
                ("attention_mask", &right.attention_mask),
                ("token_type_ids", &right.token_type_ids),
            ];
            let given = ports.into_iter().filter(|(_, values)| !values.is_empty());
            let mut inputs: Vec<(String, Array)> = given
                .map(|(name, values)| {
                    (name.to_string(), Array::from_i64(right.shape.clone(), values).unwrap())
                })
                .collect();
            if right.input_ids.is_empty() {
                let pixels = made_up("pixel_values", &[1, 3, 16, 16]);
                let pixels = Array::from_f32(vec![1, 3, 16, 16], &pixels).unwrap();
                inputs.push(("pixel_values".to_string(), pixels));
            }
            let state = |engine| output(&answer(engine, inputs.clone()), "last_hidden_state");
            let engines = engines(&store);
            let first = state(&engines[0]);
            for engine in &engines[1..] {
                assert!(state(engine) == first, "{path}: other bits");
            }
            let found = first.to_f32().unwrap();
            let width = first.shape[2];
            let largest = right.last_hidden_state.iter().fold(0.0f32, |most, v| most.max(v.abs()));
            for token in 0..found.len() / width {
                let kept = right.attention_mask.get(token).unwrap_or(&1);
                let at = token * width..(token + 1) * width;
                let off = largest_difference(&found[at.clone()], &right.last_hidden_state[at]);
                assert!(*kept == 0 || off <= 1e-4 * largest, "{path}, token {token}: {off}");
            }
        }
    }
}

#[test]
fn a_build_tells_what_was_found_and_what_was_not_taken() {
    let folder = tempfile::tempdir().unwrap();
    let store = folder.path().join("store");
    let text = said(&build(&data("gemma3"), &store, &[]));
    assert!(text.contains("architecture gemma3_text, 4 layers, made for 256 tokens"), "{text}");
    assert!(text.contains("no tokenizer.json"), "{text}");
    // Beside an ONNX file the weights are left, unless they are named.
    let both = folder.path().join("both");
    fs::create_dir(&both).unwrap();
    for name in ["config.json", "model.safetensors"] {
        fs::copy(data("qwen2").join(name), both.join(name)).unwrap();
    }
    let onnx = both.join("model.onnx");
    let arguments = ["synth", "gpt2-tiny", "-o", onnx.to_str().unwrap()];
    assert!(Command::new(program("hermes-bench")).args(arguments).status().unwrap().success());
    let text = said(&build(&both, &store, &["--force"]));
    assert!(text.contains("took ") && text.contains("model.onnx, not the weights"), "{text}");
    let text = said(&build(&both.join("model.safetensors"), &store, &["--force"]));
    assert!(text.contains("architecture qwen2, 2 layers"), "{text}");
}
