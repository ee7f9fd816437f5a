//! Whoever made a store and whoever serves it: the files and the answers are the same.
//!
//! The other programs are those in the folder `HERMES_OTHER_BIN`, run by the command
//! `HERMES_OTHER_RUN`; `cross/compare.sh` sets both, to programs for aarch64 and qemu-user. Without
//! them, the programs are held against themselves: twice the same files, twice the same answers.

mod common;

use common::daemon::Daemon;
use common::references::{Case, cases, model_file};
use hermes::engine::Array;
use hermes::store::Dtype;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::{env, fs};

/// Largest difference of an answer over the answer's largest magnitude.
const TOLERANCE: f64 = 1e-5;

#[test]
fn paraphrase_minilm_l3() {
    check("paraphrase-minilm-l3/paraphrase-MiniLM-L3-v2.onnx", "paraphrase-l3");
}

#[test]
fn ddddocr_common() {
    check("ddddocr/common.onnx", "ddddocr-common");
}

#[test]
fn magika() {
    check("magika/model.onnx", "magika");
}

/// Programs of one architecture.
struct Programs {
    /// What runs them: a program and its arguments, or nothing.
    run: Vec<String>,
    folder: PathBuf,
}

impl Programs {
    fn ours() -> Programs {
        let folder = Path::new(env!("CARGO_BIN_EXE_hermesd")).parent().unwrap();
        Programs { run: vec![], folder: folder.to_owned() }
    }

    fn others() -> Programs {
        let Some(folder) = env::var_os("HERMES_OTHER_BIN") else { return Programs::ours() };
        let run = env::var("HERMES_OTHER_RUN").unwrap_or_default();
        Programs {
            run: run.split_whitespace().map(str::to_string).collect(),
            folder: PathBuf::from(folder),
        }
    }

    fn command(&self, name: &str) -> Command {
        let program = self.folder.join(name);
        assert!(program.is_file(), "{} is not built", program.display());
        let Some((first, rest)) = self.run.split_first() else { return Command::new(program) };
        let mut command = Command::new(first);
        command.args(rest).arg(program);
        command
    }

    fn shard(&self, model: &Path, store: &Path) {
        let mut command = self.command("hermes-shard");
        command.arg("build").arg(model).arg("--store").arg(store);
        command.args(["--name", "model", "--version", "1", "--variants", "f32,f16,q8"]);
        let output = command.output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    /// What a daemon answers to each case, output by output.
    fn answers(&self, store: &Path, cases: &[Case]) -> Vec<Vec<Value>> {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("s");
        let mut command = self.command("hermesd");
        command.arg("--store").arg(store).arg("--socket").arg(&socket);
        command.args(["--variant", "f32", "--budget", "2GiB", "--window", "8MiB"]);
        command.stdin(Stdio::null()).env("MEMORY_PRESSURE_WATCH", "/dev/null");
        let daemon = Daemon::spawn(&mut command, &socket);
        let answer = |case: &Case| {
            let (status, reply) = daemon.post("/v2/models/model/infer", &request(case));
            assert_eq!(status, 200, "{reply}");
            reply["outputs"].as_array().unwrap().clone()
        };
        cases.iter().map(answer).collect()
    }
}

fn check(model: &str, reference: &str) {
    let model = model_file(model);
    let cases = cases(reference);
    let folder = tempfile::tempdir().unwrap();
    let [ours, theirs] = ["ours", "theirs"].map(|name| folder.path().join(name));
    Programs::ours().shard(&model, &ours);
    Programs::others().shard(&model, &theirs);
    check_files(&ours.join("model/1"), &theirs.join("model/1"));
    let expected = Programs::ours().answers(&ours, &cases);
    let found = Programs::others().answers(&ours, &cases);
    for (i, (expected, found)) in expected.iter().zip(&found).enumerate() {
        assert_eq!(expected.len(), found.len(), "case {i} has as many outputs");
        for (expected, found) in expected.iter().zip(found) {
            let error = difference(expected, found);
            println!("{reference}, case {i}, output {}: {error:.1e}", expected["name"]);
            // NaN must fail.
            assert!(error <= TOLERANCE, "case {i}, output {}: {error:.1e} off", expected["name"]);
        }
    }
}

/// The graph and every layer file, byte for byte. Variants that are encoded by what weights are used
/// for are not among them: that is computed, and sums have other last bits on another processor.
fn check_files(ours: &Path, theirs: &Path) {
    let (ours, theirs) = (files(ours), files(theirs));
    assert!(ours.keys().eq(theirs.keys()), "{:?} and {:?}", ours.keys(), theirs.keys());
    let variants = ["f32", "f16", "q8"].map(|name| format!(".{name}.layer"));
    for suffix in variants {
        assert!(ours.keys().any(|name| name.ends_with(&suffix)), "there are files of {suffix}");
    }
    for (name, path) in &ours {
        let same = fs::read(path).unwrap() == fs::read(&theirs[name]).unwrap();
        assert!(same, "{name} differs by who made it");
    }
}

/// The files of a version by their names, without those that tell of the machine: the manifest says
/// who built it and when, the rehearsal what the import took there, and precision.json has sums.
fn files(version: &Path) -> BTreeMap<String, PathBuf> {
    let list = |folder: &Path| {
        let entries = fs::read_dir(folder).unwrap();
        entries.map(|entry| entry.unwrap().path()).filter(|path| path.is_file()).collect()
    };
    let (top, layers): (Vec<_>, Vec<_>) = (list(version), list(&version.join("layers")));
    let named = |path: PathBuf| (path.file_name().unwrap().to_str().unwrap().to_string(), path);
    let all = top.into_iter().chain(layers).map(named);
    let tells = ["manifest.json", "rehearsal", "precision.json"];
    all.filter(|(name, _)| !tells.contains(&name.as_str())).collect()
}

fn request(case: &Case) -> String {
    let inputs = case.inputs.iter().map(|(name, array)| {
        json!({
            "name": name,
            "datatype": array.dtype.to_string(),
            "shape": array.shape,
            "data": values(array),
        })
    });
    json!({ "inputs": inputs.collect::<Vec<_>>() }).to_string()
}

fn values(array: &Array) -> Value {
    let words = array.bytes.chunks_exact(array.dtype.size());
    let integer = |word: &[u8]| match word.len() {
        4 => i64::from(i32::from_le_bytes(word.try_into().unwrap())),
        _ => i64::from_le_bytes(word.try_into().unwrap()),
    };
    match array.dtype {
        Dtype::Int32 | Dtype::Int64 => words.map(integer).collect(),
        _ => json!(array.to_f32().expect("the inputs are floats and integers")),
    }
}

/// Of one output in two replies: the largest difference over the largest magnitude.
fn difference(expected: &Value, found: &Value) -> f64 {
    for field in ["name", "datatype", "shape"] {
        assert_eq!(expected[field], found[field]);
    }
    let values = |output: &Value| -> Vec<f64> {
        let data = output["data"].as_array().expect("an output has data");
        data.iter().map(|value| value.as_f64().unwrap_or(f64::NAN)).collect()
    };
    let (expected, found) = (values(expected), values(found));
    assert!(!expected.is_empty() && expected.len() == found.len(), "outputs have their values");
    let larger = |a: f64, b: f64| if b > a || b.is_nan() { b } else { a };
    let largest = expected.iter().map(|value| value.abs()).fold(0.0, larger);
    let error = expected.iter().zip(&found).map(|(a, b)| (a - b).abs()).fold(0.0, larger);
    if error == 0.0 { 0.0 } else { error / largest }
}
