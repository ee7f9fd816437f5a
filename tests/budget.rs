//! The budget is what the kernel sees: the daemon's peak resident size stays within it.

mod common;

use common::daemon::{self, Daemon};
use common::programs::program;
use serde_json::json;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The sentence model within the budget of the README's demo.
const BUDGET: &str = "48MiB";
const BUDGET_KIB: u64 = 48 << 10;

#[test]
fn a_sentence_model_is_served_in_48_mib() {
    let folder = tempfile::tempdir().unwrap();
    let store = folder.path().join("store");
    shard(&paraphrase(), &store, "paraphrase");
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

/// Others take memory with each text of a call, and keep it: gigabytes after some hundreds. Here
/// 2,048 texts of mixed length take what 256 of them take.
#[test]
fn many_texts_take_the_memory_of_few() {
    let folder = tempfile::tempdir().unwrap();
    let store = folder.path().join("store");
    shard(&paraphrase(), &store, "paraphrase");
    let budget_kib = 64 << 10;
    let text = |index: usize| "a river and a boat ".repeat([1, 2, 1, 3, 12][index % 5]);
    let peak_kib = |count: usize| {
        let socket = folder.path().join("hermes.sock");
        let mut command = daemon::command(&store, &socket, &["--budget", "64MiB"]);
        let daemon = Daemon::spawn(command.env("HERMES_PROFILES", "false"), &socket);
        let (texts, vectors) = (folder.path().join("texts.txt"), folder.path().join("v.npy"));
        std::fs::write(&texts, (0..count).map(text).collect::<Vec<_>>().join("\n")).unwrap();
        let mut command = Command::new(program("hermesctl"));
        command.arg("--socket").arg(&socket).args(["embed", "paraphrase", "--file"]);
        let embedded = command.arg(&texts).arg("--output").arg(&vectors).output().unwrap();
        assert!(embedded.status.success(), "{}", String::from_utf8_lossy(&embedded.stderr));
        assert_eq!(std::fs::metadata(&vectors).unwrap().len(), 128 + 384 * 4 * count as u64);
        daemon.status_kib("VmHWM:")
    };
    let (few, many) = (peak_kib(256), peak_kib(2048));
    println!("{few} KiB for 256 texts, {many} for 2,048, of {budget_kib}");
    // Where blocks are read into memory of our own, nothing of the window hid what the heap had lost.
    assert!(many <= budget_kib, "the peak is {many} KiB, the budget {budget_kib}");
    // What one run differs from another by.
    assert!(many <= few + (8 << 10), "{few} KiB for 256 texts, {many} for 2,048");
}

/// A call of some hundred documents is one padded batch elsewhere, and costs gigabytes.
#[test]
fn two_thousand_texts_at_once_take_the_memory_of_sixty() {
    let folder = tempfile::tempdir().unwrap();
    let store = folder.path().join("store");
    shard(&paraphrase(), &store, "paraphrase");
    // Of one length, so that passes are of one size whatever their number; and of several, of which
    // the longest share passes.
    let even = |index: usize| format!("a river of {}", ["salt", "stone", "wood"][index % 3]);
    let uneven = |index: usize| "a river ".repeat([1, 2, 1, 9][index % 4]);
    let peak = |count: usize, text: &dyn Fn(usize) -> String| {
        let socket = folder.path().join("hermes.sock");
        let daemon = Daemon::start(&store, &socket, &["--budget", "64MiB", "--profiles", "false"]);
        let texts: Vec<String> = (0..count).map(text).collect();
        for _ in 0..(256 / count).max(1) {
            let body =
                json!({ "model": "paraphrase", "input": texts, "encoding_format": "base64" });
            let (status, reply) = daemon.post("/v1/embeddings", &body.to_string());
            assert_eq!(status, 200, "{reply}");
            assert_eq!(reply["data"].as_array().unwrap().len(), count);
        }
        daemon.status_kib("VmHWM:")
    };
    let [few, many] = [64, 2048].map(|count| peak(count, &even));
    let mixed = peak(2048, &uneven);
    println!("peak {few} KiB with 64 texts at once, {many} with 2048, {mixed} of several lengths");
    assert!(many.max(mixed) <= 64 << 10, "the peak is {many} or {mixed} KiB");
    // The texts themselves, their tokens and vectors, and what one run differs from another by.
    assert!(many <= few + (8 << 10), "{few} KiB with 64 texts at once, {many} with 2048");
}

/// The sentence model's file.
fn paraphrase() -> PathBuf {
    let models = std::env::var_os("HERMES_MODELS")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("models"), PathBuf::from);
    let model = models.join("paraphrase-minilm-l3/paraphrase-MiniLM-L3-v2.onnx");
    assert!(model.is_file(), "fetch the model with tools/fetch_models.sh {}", models.display());
    model
}

fn shard(model: &Path, store: &Path, name: &str) {
    let mut command = Command::new(program("hermes-shard"));
    command.arg("build").arg(model).arg("--store").arg(store).args(["--name", name]);
    let sharded = command.output().unwrap();
    assert!(sharded.status.success(), "{}", String::from_utf8_lossy(&sharded.stderr));
}

/// The budget that an error says would do.
fn smallest_budget(message: &str) -> u64 {
    let (_, rest) = message.split_once("a budget of ").expect(message);
    rest.split_once(" would do").expect(message).0.parse().unwrap()
}

/// A refusal names the budget that does, not the next grant: there were up to 34 refusals in a row,
/// then three, since nothing named more than the next that was asked for where there was no room for
/// a manifest. What the kernel sees then is within that budget, and it is small.
#[test]
fn too_small_a_budget_is_refused_with_the_one_that_would_do() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("tiny.onnx");
    let mut synth = Command::new(program("hermes-bench"));
    assert!(synth.args(["synth", "bert-tiny", "-o"]).arg(&file).status().unwrap().success());
    let names = ["input_ids", "attention_mask", "token_type_ids"];
    for (model, file, names, most_mib) in
        [("tiny", file, &names[..], 22), ("paraphrase", paraphrase(), &names[..2], 26)]
    {
        let store = folder.path().join(model);
        shard(&file, &store, model);
        for is_tried in [true, false] {
            if !is_tried {
                std::fs::remove_file(store.join(model).join("1/rehearsal")).unwrap();
            }
            let (budget_kib, peak_kib) = smallest_served(&store, model, names);
            println!("{model}: {budget_kib} KiB do, the peak is {peak_kib} KiB");
            assert!(peak_kib <= budget_kib, "{model}: {peak_kib} KiB resident of {budget_kib}");
            assert!(budget_kib <= most_mib << 10, "{model} needs {budget_kib} KiB");
        }
    }
}

/// The budget that a request of 64 tokens is served in, found by what a refusal says, and the
/// daemon's peak, in KiB. It is served there again after others, which have more code run and leave
/// other holes.
fn smallest_served(store: &Path, model: &str, inputs: &[&str]) -> (u64, u64) {
    let folder = tempfile::tempdir().unwrap();
    let request = |tokens: usize| {
        let tensor = |name: &&str| json!({ "name": name, "datatype": "INT64", "shape": [1, tokens], "data": vec![1; tokens] });
        json!({ "inputs": inputs.iter().map(tensor).collect::<Vec<_>>() }).to_string()
    };
    let path = format!("/v2/models/{model}/infer");
    let socket = folder.path().join("hermes.sock");
    let ((budget_kib, _), daemon) = serve_by_refusals(store, &socket, &path, &request(64));
    for tokens in [1, 64, 16, 1, 64] {
        let (status, reply) = daemon.post(&path, &request(tokens));
        assert_eq!(status, 200, "{tokens} tokens in {budget_kib} KiB: {reply}");
    }
    (budget_kib, daemon.status_kib("VmHWM:"))
}

/// Starts with a budget in which nothing starts, whose refusal names one in which the model is
/// served; and with one in which the daemon starts and no more. Returns the smaller of the budgets
/// named and its peak, in KiB, and the daemon.
fn serve_by_refusals(
    store: &Path,
    socket: &Path,
    path: &str,
    request: &str,
) -> ((u64, u64), Daemon) {
    let nothing = tempfile::tempdir().unwrap();
    let idle_bytes = refused_bytes(nothing.path(), socket, 4 << 20, path, request);
    let named = [4 << 20, idle_bytes].map(|too_small_bytes| {
        let budget_bytes = refused_bytes(store, socket, too_small_bytes, path, request);
        let daemon = start(store, socket, budget_bytes).unwrap();
        let (status, reply) = daemon.post(path, request);
        assert_eq!(status, 200, "{budget_bytes} bytes, after {too_small_bytes}: {reply}");
        budget_bytes
    });
    println!("{idle_bytes} bytes are refused, {named:?} are named");
    let budget_bytes = named[0].min(named[1]);
    let daemon = start(store, socket, budget_bytes).unwrap();
    let (status, reply) = daemon.post(path, request);
    assert_eq!(status, 200, "{budget_bytes} bytes: {reply}");
    ((budget_bytes >> 10, daemon.status_kib("VmHWM:")), daemon)
}

/// The budget that a refusal names where there are only so many bytes.
fn refused_bytes(store: &Path, socket: &Path, budget: u64, path: &str, request: &str) -> u64 {
    let message = match start(store, socket, budget) {
        Err(message) => message,
        Ok(daemon) => match daemon.post(path, request) {
            (413, reply) => reply["error"].as_str().unwrap().to_string(),
            (200, _) => return budget,
            (status, reply) => panic!("{status}: {reply}"),
        },
    };
    let smallest = smallest_budget(&message);
    assert!(smallest > budget, "{message}");
    smallest
}

/// A daemon with so many bytes, or what it says to having too few.
fn start(store: &Path, socket: &Path, budget_bytes: u64) -> Result<Daemon, String> {
    let (budget, log) = (budget_bytes.to_string(), socket.with_extension("log"));
    let mut command = daemon::command(store, socket, &["--budget", &budget]);
    command.env("HERMES_PROFILES", "false");
    command.stderr(File::create(&log).unwrap());
    Daemon::try_start(&mut command, socket).map_err(|status| {
        assert_eq!(status.code(), Some(1));
        std::fs::read_to_string(&log).unwrap()
    })
}

/// Tract keeps scratch memory by thread and state; what requests that share passes are given must
/// all be gone after them.
#[test]
fn requests_that_share_passes_leave_nothing_in_the_heap() {
    let folder = tempfile::tempdir().unwrap();
    let (file, store) = (folder.path().join("tiny.onnx"), folder.path().join("store"));
    let mut synth = Command::new(program("hermes-bench"));
    assert!(synth.args(["synth", "bert-tiny", "-o"]).arg(&file).status().unwrap().success());
    shard(&file, &store, "tiny");
    let daemon = Daemon::start(&store, &folder.path().join("hermes.sock"), &["--budget", "96MiB"]);
    let tensor = |name: &str| json!({ "name": name, "datatype": "INT64", "shape": [1, 16], "data": [vec![1; 16]] });
    let inputs = ["input_ids", "attention_mask", "token_type_ids"].map(tensor);
    let request = json!({ "inputs": inputs }).to_string();
    let path = "/v2/models/tiny/infer";
    let rounds = |count: usize| {
        for _ in 0..count {
            let asked: Vec<_> = (0..8).map(|_| daemon.connect().post(path, &request)).collect();
            asked.into_iter().for_each(|mut asked| assert_eq!(asked.reply().0, 200));
        }
        let mut connection = daemon.connect().send("GET /metrics HTTP/1.1\r\nhost: h\r\n\r\n");
        let metrics = String::from_utf8(connection.response().2).unwrap();
        let value = |name: &str| -> f64 {
            let line = metrics.lines().find(|line| line.starts_with(name)).expect(name);
            line.rsplit(' ').next().unwrap().parse().unwrap()
        };
        let seats = value("hermes_pass_requests_total{") / value("hermes_passes_total{");
        (value("hermes_heap_bytes "), seats)
    };
    rounds(20);
    let (before, _) = rounds(5);
    let (after, seats) = rounds(100);
    assert!(seats > 1.5, "passes are shared: {seats} requests in one");
    // What the last replies hold may not be gone yet.
    assert!(after < before + 65536.0, "the heap has grown from {before} to {after} bytes");
}

/// Decoders with past keys and values have hundreds of inputs, outputs and nodes: gpt2-xl with a
/// budget of 65 MiB was 94 MiB resident after seven requests. What parsing leaves between what is
/// kept of a graph, and each request's place for every node, were in no ledger.
#[test]
fn a_decoder_with_past_inputs_keeps_its_smallest_budget() {
    let folder = tempfile::tempdir().unwrap();
    let (file, store) = (folder.path().join("decoder.onnx"), folder.path().join("store"));
    let mut synth = Command::new(program("hermes-bench"));
    synth.args(["synth", "gpt2-tiny", "--layers", "24", "--past", "-o"]).arg(&file);
    assert!(synth.status().unwrap().success());
    shard(&file, &store, "decoder");
    let tensor = |name: &str, datatype: &str, shape: &[usize], data: Vec<usize>| json!({ "name": name, "datatype": datatype, "shape": shape, "data": data });
    let request = |tokens: usize| {
        let mut inputs = vec![
            tensor("input_ids", "INT64", &[1, tokens], vec![7; tokens]),
            tensor("attention_mask", "INT64", &[1, 16 + tokens], vec![1; 16 + tokens]),
            tensor("position_ids", "INT64", &[1, tokens], (0..tokens).collect()),
        ];
        for layer in 0..24 {
            for part in ["key", "value"] {
                let name = format!("past_key_values.{layer}.{part}");
                inputs.push(tensor(&name, "FP32", &[1, 2, 16, 64], vec![1; 2 * 16 * 64]));
            }
        }
        json!({ "inputs": inputs }).to_string()
    };
    let socket = folder.path().join("hermes.sock");
    let path = "/v2/models/decoder/infer";
    let ((budget_kib, _), daemon) = serve_by_refusals(&store, &socket, path, &request(8));
    for tokens in [8, 1, 8, 4, 8, 1, 8] {
        let (status, reply) = daemon.post(path, &request(tokens));
        assert_eq!(status, 200, "{tokens} tokens in {budget_kib} KiB: {reply}");
    }
    let (peak_kib, now_kib) = (daemon.status_kib("VmHWM:"), daemon.status_kib("VmRSS:"));
    println!(
        "{budget_kib} KiB do, {now_kib} KiB are resident after 8 requests, {peak_kib} at the peak"
    );
    assert!(peak_kib <= budget_kib, "{peak_kib} KiB resident of {budget_kib}");
    check_figures(&daemon, now_kib);
    // Made-up inputs were there twice, once in no grant: 45.1 MiB of 41.2 while it was measured.
    daemon.post("/v2/repository/models/decoder/profile", "");
    let peak_kib = daemon.status_kib("VmHWM:");
    println!("{peak_kib} KiB at the peak of measuring");
    assert!(peak_kib <= budget_kib, "measuring: {peak_kib} KiB resident of {budget_kib}");
}

/// What is resident is in the ledger.
fn check_figures(daemon: &Daemon, now_kib: u64) {
    let mut connection = daemon.connect().send("GET /metrics HTTP/1.1\r\nhost: h\r\n\r\n");
    let metrics = String::from_utf8(connection.response().2).unwrap();
    let held = metrics.lines().filter(|line| line.starts_with("hermes_ledger_bytes{"));
    let held_kib: f64 =
        held.map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap() / 1024.0).sum();
    assert!((now_kib as f64) <= held_kib, "{now_kib} KiB are resident, {held_kib} in the ledger");
}

/// Whoever asked about a model that was not loaded had its manifest parsed, in no ledger: 60
/// requests at once about one of 2 MB came to 321 MiB of a budget of 64.
#[test]
fn manifests_of_models_that_are_not_loaded_are_held_once() {
    let folder = tempfile::tempdir().unwrap();
    let (file, store) = (folder.path().join("tiny.onnx"), folder.path().join("store"));
    let mut synth = Command::new(program("hermes-bench"));
    assert!(synth.args(["synth", "bert-tiny", "-o"]).arg(&file).status().unwrap().success());
    shard(&file, &store, "tiny");
    let path = store.join("tiny/1/manifest.json");
    let mut manifest: serde_json::Value =
        serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    let weight =
        |index| json!({ "name": format!("weight.{index}"), "dtype": "FP32", "shape": [1, 1] });
    manifest["weights"] = (0..30_000).map(weight).collect();
    std::fs::remove_file(&path).unwrap();
    std::fs::write(&path, manifest.to_string()).unwrap();
    let daemon = Daemon::start(&store, &folder.path().join("hermes.sock"), &["--budget", "64MiB"]);
    let asked: Vec<_> = (0..60)
        .map(|_| daemon.connect().send("GET /v2/models/tiny HTTP/1.1\r\nhost: h\r\n\r\n"))
        .collect();
    for mut asked in asked {
        assert_eq!(asked.reply().0, 200);
    }
    let peak_kib = daemon.status_kib("VmHWM:");
    println!("{peak_kib} KiB at the peak");
    assert!(peak_kib <= 64 << 10, "{peak_kib} KiB resident of 64 MiB");
}
