//! The budget is what the kernel sees: the daemon's peak resident size stays within it.

mod common;

use common::daemon::Daemon;
use serde_json::json;
use std::path::Path;
use std::process::Command;

/// The sentence model within the budget of the README's demo.
const BUDGET: &str = "48MiB";
const BUDGET_KIB: u64 = 48 << 10;

#[test]
fn a_sentence_model_is_served_in_48_mib() {
    let models = std::env::var_os("HERMES_MODELS")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("models"), Into::into);
    let model = models.join("paraphrase-minilm-l3/paraphrase-MiniLM-L3-v2.onnx");
    assert!(model.is_file(), "fetch the model with tools/fetch_models.sh {}", models.display());
    let folder = tempfile::tempdir().unwrap();
    let store = folder.path().join("store");
    let sharded = Command::new(env!("CARGO_BIN_EXE_hermes-shard"))
        .arg("build")
        .arg(&model)
        .arg("--store")
        .arg(&store)
        .args(["--name", "paraphrase"])
        .output()
        .unwrap();
    assert!(sharded.status.success(), "{}", String::from_utf8_lossy(&sharded.stderr));
    let socket = folder.path().join("hermes.sock");
    let daemon = Daemon::start(&store, &socket, &["--budget", BUDGET]);
    let embed = |texts: &[&str]| {
        let body = json!({ "model": "paraphrase", "input": texts }).to_string();
        let (status, reply) = daemon.post("/v1/embeddings", &body);
        assert_eq!(status, 200, "{reply}");
        let vector = |i: usize| -> Vec<f64> {
            serde_json::from_value(reply["data"][i]["embedding"].clone()).unwrap()
        };
        (0..texts.len()).map(vector).collect::<Vec<_>>()
    };
    let vectors = embed(&[
        "A man is eating food.",
        "A man is eating a piece of bread.",
        "The girl is carrying a baby.",
    ]);
    let cosine = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(x, y)| x * y).sum::<f64>();
    assert!(cosine(&vectors[0], &vectors[1]) > 0.6, "two sentences about eating");
    assert!(cosine(&vectors[0], &vectors[2]) < 0.2, "two about different things");
    let long = "The daemon streams the weights of the model through a window. ".repeat(30);
    for _ in 0..5 {
        embed(&[&long]);
    }
    let peak_kib = daemon.status_kib("VmHWM:");
    println!("peak {} KiB of {BUDGET_KIB}", peak_kib);
    assert!(peak_kib <= BUDGET_KIB, "the peak is {peak_kib} KiB, the budget {BUDGET_KIB}");
}
