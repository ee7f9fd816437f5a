//! Answers within a time and as accurate as is asked, as users meet them: by the config, by headers, by
//! `hermesctl plan`.

use crate::common::daemon::{Daemon, wait_logged};
use crate::common::precision::tell_precision;
use crate::common::programs::program;
use crate::common::served::{check_error, hermesctl, served};
use crate::common::tiny::{self, path};
use serde_json::{Value, json};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use tempfile::TempDir;

const MODEL: &str = "bert-tiny";

const INFER: &str = "POST /v2/models/bert-tiny/infer";

/// A store whose model says what its precisions lose, and what was measured of it here.
fn store() -> &'static Path {
    static STORE: OnceLock<PathBuf> = OnceLock::new();
    STORE.get_or_init(|| {
        let store = tiny::store().join("store");
        tell_precision(&store.join(MODEL).join("1"), true);
        let folder = tempfile::tempdir().unwrap();
        let daemon = start(&store, &folder, "");
        let path = format!("/v2/repository/models/{MODEL}/profile");
        assert_eq!(daemon.post(&path, "").0, 200);
        drop(daemon);
        store
    })
}

/// A daemon with this config, which serves what nobody asks otherwise for in its roughest variant; the
/// folder has `c.toml` and `log`.
fn start(store: &Path, folder: &TempDir, config: &str) -> Daemon {
    let at = |name: &str| folder.path().join(name);
    fs::write(at("c.toml"), config).unwrap();
    let file = at("c.toml");
    let arguments = ["--budget", "256MiB", "--profiles", "false", "--variant", "a4"];
    let arguments = [&arguments[..], &["--config", path(&file)]].concat();
    let mut command = crate::common::daemon::command(store, &at("s"), &arguments);
    command.stderr(File::create(at("log")).unwrap());
    Daemon::spawn(&mut command, &at("s"))
}

/// A request of a few tokens.
fn body() -> String {
    let input = |name: &str, value: u64| {
        let data = vec![value; 5];
        json!({"name": name, "datatype": "INT64", "shape": [1, 5], "data": data})
    };
    let inputs = [input("input_ids", 7), input("attention_mask", 1), input("token_type_ids", 0)];
    json!({ "inputs": inputs }).to_string()
}

/// What the answer to a request with these headers says of its precisions.
fn choice(daemon: &Daemon, headers: &[(&str, &str)]) -> String {
    choice_of(daemon, INFER, headers)
}

fn choice_of(daemon: &Daemon, call: &str, headers: &[(&str, &str)]) -> String {
    let headers = [&[("host", "h")], headers].concat();
    let (status, head, reply) = daemon.connect().ask(call, &headers, &body()).response();
    assert_eq!(status, 200, "{}", String::from_utf8_lossy(&reply));
    let line = head.lines().find_map(|line| line.strip_prefix("x-hermes-choice: "));
    line.expect("it tells").to_owned()
}

fn planned(daemon: &Daemon, query: &str) -> Value {
    let (status, plan) = daemon.get(&format!("/v2/models/{MODEL}/plan?{query}"));
    assert_eq!(status, 200, "{plan}");
    plan
}

fn digest(plan: &Value) -> &str {
    plan["choice"]["digest"].as_str().unwrap()
}

#[test]
fn a_plan_for_a_target_tells_its_choice() {
    let folder = tempfile::tempdir().unwrap();
    let daemon = start(store(), &folder, "");
    assert!(planned(&daemon, "")["choice"].is_null());
    let plan = planned(&daemon, "latency=10s");
    let choice = &plan["choice"];
    assert_eq!((digest(&plan).len(), choice["accuracy"].as_f64()), (16, Some(1.0)), "{plan}");
    assert_eq!(plan["more"][0]["what"], "2 x the time");
    assert_eq!(plan["more"][1]["what"], "2 x the memory");
    let plan = planned(&daemon, "accuracy=0.9");
    let (choice, number) = (&plan["choice"], |of: &Value| of.as_f64().unwrap());
    assert!((0.9..=1.0).contains(&number(&choice["accuracy"])), "{plan}");
    let tensors = choice["tensors"].as_array().unwrap();
    let lost: f64 = tensors.iter().map(|tensor| number(&tensor["divergence"])).sum();
    assert!((number(&choice["accuracy"]) + lost - 1.0).abs() < 1e-9, "{plan}");
    let text = plan["text"].as_str().unwrap();
    assert!(text.contains(&format!("Choice {}: ", digest(&plan))), "{text}");
    assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");

    let refused = |query: &str, words: &str| {
        check_error(&daemon.get(&format!("/v2/models/{MODEL}/plan?{query}")), 400, words);
    };
    refused("latency=1us", "the least");
    refused("latency=0", "parameter \"latency\": no answer takes no time");
    refused("latency=31536000s", "is more than an hour");
    refused("accuracy=2", "give more than 0 and at most 1");
    refused("accuracy=NaN", "an accuracy of NaN");
    let (_, plain) = daemon.get("/v2/models/gpt2-tiny/plan?accuracy=0.9");
    assert!(plain["error"].as_str().unwrap().contains("gpt2-tiny"), "{plain}");
}

#[test]
fn answers_keep_to_what_headers_and_the_config_ask() {
    let folder = tempfile::tempdir().unwrap();
    let config = "[models.bert-tiny]\naccuracy = 1.0\n[models.later]\nlatency = \"400ms\"\n";
    let daemon = start(store(), &folder, config);
    let log = folder.path().join("log");
    wait_logged(&log, "[models.later] of the config: the store has no such model now", 0);
    let by = |query: &str| digest(&planned(&daemon, query)).to_owned();
    let exact = by("accuracy=1");
    assert_eq!(choice(&daemon, &[]), exact);
    // A header comes before the config.
    assert_eq!(choice(&daemon, &[("x-hermes-accuracy", "0.9")]), by("accuracy=0.9"));
    assert_eq!(choice(&daemon, &[("x-hermes-latency", "100s")]), by("latency=100s"));
    let trace = INFER.replace("/infer", "/trace");
    let traced = choice_of(&daemon, &trace, &[("x-hermes-accuracy", "0.9")]);
    assert_eq!(traced, by("accuracy=0.9"));
    let refused = |headers: &[(&str, &str)], words: &str| {
        let headers = [&[("host", "h")], headers].concat();
        check_error(&daemon.connect().ask(INFER, &headers, &body()).reply(), 400, words);
    };
    refused(&[("x-hermes-latency", "soon")], "header x-hermes-latency: \"soon\" is not a time");
    refused(&[("x-hermes-latency", "0")], "header x-hermes-latency: no answer takes no time");
    refused(&[("x-hermes-accuracy", "2")], "header x-hermes-accuracy: an accuracy of 2");
    refused(&[("x-hermes-latency", "1us")], "the least");

    // Where nothing is asked any more, all is as it is served.
    fs::write(folder.path().join("c.toml"), "").unwrap();
    daemon.signal("-HUP");
    wait_logged(&log, "the config is reloaded", 0);
    assert_ne!(choice(&daemon, &[]), exact);
    assert_eq!(choice(&daemon, &[("x-hermes-accuracy", "1")]), exact);
}

#[test]
fn vectors_tell_their_choice_too() {
    let served = served();
    let body = json!({"model": "words", "input": ["cat", "dog"]}).to_string();
    let ask = |headers: &[(&str, &str)]| {
        let headers = [&[("host", "h")], headers].concat();
        served.daemon.connect().ask("POST /v1/embeddings", &headers, &body).response()
    };
    let (status, head, _) = ask(&[]);
    let told = head.lines().find_map(|line| line.strip_prefix("x-hermes-choice: ")).unwrap();
    assert_eq!((status, told.len()), (200, 16), "{head}");
    let (status, _, refusal) = ask(&[("x-hermes-accuracy", "-1")]);
    let refusal = String::from_utf8(refusal).unwrap();
    assert!(status == 400 && refusal.contains("give more than 0 and at most 1"), "{refusal}");
}

#[test]
fn hermesctl_prints_and_draws_a_choice() {
    let folder = tempfile::tempdir().unwrap();
    let daemon = start(store(), &folder, "");
    let ask =
        |arguments: &[&str]| hermesctl(&daemon.socket, &[&["plan", MODEL], arguments].concat());
    let map = folder.path().join("map.svg");
    let (code, text, error) = ask(&["--accuracy", "0.9", "--latency", "10s", "--map", path(&map)]);
    assert_eq!(code, 0, "{error}");
    assert!(text.contains("bits a weight") && text.contains("2 x the memory"), "{text}");
    let drawn = fs::read_to_string(&map).unwrap();
    let (code, json, _) = ask(&["--accuracy", "0.9", "--latency", "10s", "--json"]);
    let plan: Value = serde_json::from_str(&json).unwrap();
    let tensors = plan["choice"]["tensors"].as_array().unwrap();
    assert_eq!((code, drawn.matches("<title>").count()), (0, tensors.len()));
    let (code, _, error) = ask(&["--map", path(&map)]);
    assert!(code == 2 && error.contains("ask for one with --latency or --accuracy"), "{error}");
    for wrong in [["--latency", "0"], ["--accuracy", "2"], ["--latency", "31536000"]] {
        assert_eq!(ask(&wrong).0, 2, "{wrong:?}");
    }
}

#[test]
fn show_and_inspect_tell_what_was_measured_of_precisions() {
    let folder = tempfile::tempdir().unwrap();
    let daemon = start(store(), &folder, "");
    let (code, shown, error) = hermesctl(&daemon.socket, &["show", MODEL]);
    assert_eq!(code, 0, "{error}");
    let mut inspect = Command::new(program("hermes-shard"));
    inspect.args(["inspect", MODEL, "--store", path(store())]);
    let inspected = String::from_utf8(inspect.output().unwrap().stdout).unwrap();
    let words = "tensors   matter by 1 - cosine, each alone in a4, 1 inputs of made up";
    for (told, words) in [(shown, words), (inspected, &words.replacen("  ", " ", 1)[..])] {
        assert!(told.contains(words) && told.contains("onnx::MatMul_"), "{told}");
        assert!(told.contains("encoded") && told.contains("by the weights alone"), "{told}");
        for variant in ["f32", "q8", "a4"] {
            assert!(
                told.contains(&format!("variant  {variant:5}"))
                    || told.contains(&format!("variant   {variant:5}")),
                "{told}"
            );
        }
    }
    let (_, plain, _) = hermesctl(&daemon.socket, &["show", "gpt2-tiny"]);
    assert!(plain.contains("which of them matter was not measured"), "{plain}");
}
