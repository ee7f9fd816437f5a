//! Profiles and plans as users meet them: measured on request or while the daemon is idle, asked
//! for by socket and command line, answered in words.

use crate::common::daemon::Daemon;
use crate::common::served::{
    Served, check_alive, check_error, hermesctl, slow_request, wait_metric,
};
use crate::common::small_store;
use serde_json::{Value, json};
use std::fs::{self, DirEntry};
use std::time::{Duration, Instant};

/// Longest wait for anything that must happen.
const PATIENCE: Duration = Duration::from_secs(120);

/// Products of `slow`, each with a weight of 4 MiB.
const PRODUCTS: usize = 4;

/// A daemon over a store of its own with `slow`, `linear` and `words`.
fn served(arguments: &[&str]) -> Served {
    let folder = tempfile::tempdir().unwrap();
    let store = folder.path().join("store");
    std::fs::create_dir(&store).unwrap();
    small_store::write(&store, small_store::slow(PRODUCTS));
    small_store::write(&store, small_store::linear());
    small_store::write(&store, small_store::words());
    let usual = ["--budget", "96MiB", "--window", "8MiB"];
    let arguments = [&usual, arguments].concat();
    let daemon = Daemon::start(&store, &folder.path().join("s"), &arguments);
    Served { daemon, folder }
}

/// The same that measures nothing by itself, and has measured `slow`.
fn measured() -> Served {
    let served = served(&["--profiles", "false"]);
    let (status, profile) = served.daemon.post("/v2/repository/models/slow/profile", "");
    assert_eq!((status, &profile["model"]), (200, &json!("slow")), "{profile}");
    assert!(!profile["reads"].as_array().unwrap().is_empty(), "{profile}");
    served
}

#[test]
fn a_plan_is_answered_once_the_model_is_measured() {
    let served = measured();
    let daemon = &served.daemon;
    check_error(&daemon.get("/v2/models/linear/plan"), 409, "hermesctl profile linear");
    check_error(&daemon.get("/v2/models/nobody/plan"), 404, "nobody");
    check_error(&daemon.get("/v2/models/slow/plan?bugdet=1"), 400, "there are latency, accuracy");
    let (status, plan) = daemon.get("/v2/models/slow/plan");
    assert_eq!(status, 200, "{plan}");
    assert_eq!((&plan["budget_bytes"], &plan["tokens"]), (&json!(96 << 20), &json!(128)));
    // The daemon's own --window holds unless another is asked for.
    assert_eq!(plan["plan"]["window_bytes"], json!(8 << 20));
    assert_eq!((&plan["fits"], &plan["forecast"]["bytes_read"]), (&json!(true), &json!(0)));
    let number = |value: &Value| value.as_u64().unwrap();
    let pass = &plan["forecast"];
    assert!(number(&pass["latency_us"]) >= number(&pass["compute_us"]), "{plan}");
    assert!(number(&pass["peak_bytes"]) <= number(&plan["granted_bytes"]), "{plan}");
    assert!(number(&plan["granted_bytes"]) <= 96 << 20, "{plan}");
    let least = "/v2/models/slow/plan?tokens=1&window=4MiB&loaders=1&use=one-shot&source=mapped";
    let (status, plan) = daemon.get(least);
    assert_eq!((status, &plan["tokens"], &plan["use"]), (200, &json!(1), &json!("one-shot")));
    let found = &plan["plan"];
    assert_eq!(
        (&found["source"], &found["loaders"], &found["window_bytes"]),
        (&json!("mapped"), &json!(1), &json!(4 << 20))
    );
    let none = daemon.get("/v2/models/slow/plan?budget=1MiB");
    check_error(&none, 400, "the least that would do is");
    check_error(&daemon.get("/v2/models/slow/plan?window=4KiB"), 400, "a window of 4096 bytes");
    // Nothing of it needs the model in memory, nor loads it.
    assert_eq!(daemon.post("/v2/repository/models/slow/unload", "").0, 200);
    assert_eq!(daemon.get("/v2/models/slow/plan").0, 200);
    let (_, stats) = daemon.get("/v2/models/slow/stats");
    assert_eq!(stats["model_stats"][0]["hermes"]["state"], "unloaded");
}

#[test]
fn requests_are_answered_while_a_model_is_measured() {
    let served = served(&["--profiles", "false"]);
    let measuring = served.daemon.connect().post("/v2/repository/models/slow/profile", "");
    let mut answered = 0;
    std::thread::scope(|scope| {
        let mut measuring = measuring;
        let measured = scope.spawn(move || measuring.reply().0);
        while !measured.is_finished() {
            check_alive(&served.daemon);
            assert_eq!(served.daemon.get("/v2/health/live").0, 200);
            // These waited until all was measured.
            for what in ["load", "unload"] {
                let path = format!("/v2/repository/models/linear/{what}");
                assert_eq!(served.daemon.post(&path, "").0, 200, "{what}");
            }
            answered += 1;
        }
        assert_eq!(measured.join().unwrap(), 200);
    });
    assert!(answered > 3, "{answered} requests were answered beside it");
}

#[test]
fn hermesctl_prints_profiles_and_plans() {
    let served = measured();
    let socket = &served.daemon.socket;
    let printed = |arguments: &[&str]| {
        let (code, output, error) = hermesctl(socket, arguments);
        assert_eq!(code, 0, "{arguments:?}: {error}");
        output
    };
    let profile = printed(&["profile", "linear"]);
    for part in ["linear version 1 (f32)", "processor ", "reading ", "computing ", "layer "] {
        assert!(profile.contains(part), "{part:?} is not in\n{profile}");
    }
    let text = printed(&["plan", "slow", "--budget", "40MiB", "--tokens", "64"]);
    let lines: Vec<&str> = text.lines().collect();
    let head = "slow 1 (f32), passes of 64 tokens, cyclic use, a budget of 40 MiB.";
    assert_eq!(lines[0], head, "{text}");
    assert!(lines[1].contains("is the bound: ") || lines[1].starts_with("It fits"), "{text}");
    let table: Vec<&&str> = lines.iter().filter(|line| line.contains(" ms")).skip(1).collect();
    assert!(table.iter().any(|line| line.starts_with("plan  ")), "{text}");
    assert!(table.iter().filter(|line| line.starts_with("other ")).count() <= 2, "{text}");
    assert!(text.contains("would help"), "{text}");
    assert!(lines.iter().any(|line| line.contains(" WINDOW ")), "{text}");
    // Rows of 140 characters broke in the middle on every terminal.
    assert!(lines.iter().all(|line| line.len() <= 80), "{text}");
    assert!(text.is_ascii(), "{text}");
    let json = printed(&["plan", "slow", "--use", "one-shot", "--json"]);
    let json: Value = serde_json::from_str(&json).unwrap();
    assert_eq!((&json["use"], &json["model"]), (&json!("one-shot"), &json!("slow")));
    assert!(json["text"].as_str().unwrap().starts_with("slow 1 (f32)"));

    let check = |arguments: &[&str], expected: i32, words: &str| {
        let (code, _, error) = hermesctl(socket, arguments);
        assert_eq!(code, expected, "{arguments:?}: {error}");
        assert!(error.contains(words), "{arguments:?}: {error}");
    };
    check(&["plan", "words"], 1, "not measured on this board");
    check(&["profile", "words"], 1, "no weights to stream");
    check(&["plan", "slow", "--use", "daily"], 2, "one-shot");
    check(&["plan", "slow", "--budget", "1Mbit"], 2, "is not a size");
    check(&["plan", "slow", "--tokens", "0"], 2, "0");
}

/// The engine's thread was gone after the first idle moment with a model whose graph panics on the
/// inputs that measuring makes up: nobody was served any more, and health said that all is well. It
/// is tried once, told, and not tried again after a start.
#[test]
fn a_model_that_cannot_be_measured_hurts_nobody_and_is_remembered() {
    let folder = tempfile::tempdir().unwrap();
    let (store, log) = (folder.path().join("store"), folder.path().join("log"));
    std::fs::create_dir(&store).unwrap();
    small_store::write(&store, small_store::linear());
    small_store::write(&store, small_store::dividing());
    let start = |arguments: &[&str]| {
        let socket = folder.path().join("s");
        let arguments = [&["--budget", "96MiB", "--window", "8MiB"], arguments].concat();
        let mut command = crate::common::daemon::command(&store, &socket, &arguments);
        let file = std::fs::File::options().create(true).append(true).open(&log).unwrap();
        Daemon::spawn(command.stderr(file), &socket)
    };
    let request = |divisor: i64| {
        let x = json!({"name": "x", "datatype": "FP32", "shape": [1, 1, 4], "data": [1, 0, 0, 0]});
        let n = json!({"name": "n", "datatype": "INT64", "shape": [1, 1], "data": [12]});
        let d = json!({"name": "token_type_ids", "datatype": "INT64", "shape": [1, 1], "data": [divisor]});
        json!({ "inputs": [x, n, d] }).to_string()
    };
    let infer = "/v2/models/dividing/infer";
    let check_answer = |daemon: &Daemon| {
        let (status, reply) = daemon.post(infer, &request(4));
        assert_eq!((status, &reply["outputs"][2]["data"]), (200, &json!([3])), "{reply}");
        assert_eq!(daemon.get("/v2/health/ready").0, 200);
    };
    let refused = |daemon: &Daemon| {
        let began = Instant::now();
        loop {
            let (status, told) = daemon.get("/v2/models/dividing/plan");
            let text = told["error"].as_str().unwrap_or_default().to_string();
            if text.contains("could not be measured on this board: ") {
                return assert_eq!(status, 409, "{text}");
            }
            assert!(began.elapsed() < PATIENCE, "{told}");
            std::thread::sleep(Duration::from_millis(20));
        }
    };
    let daemon = start(&[]);
    check_answer(&daemon);
    let (status, told) = daemon.post(infer, &request(0));
    assert!(status == 400 || status == 500, "{told}");
    refused(&daemon);
    check_answer(&daemon);
    let text = std::fs::read_to_string(&log).unwrap();
    let told = "model dividing could not be measured: ";
    assert_eq!(text.matches(told).count(), 1, "{text}");
    drop(daemon);
    // Known before it is loaded, and not tried again when it is.
    let daemon = start(&[]);
    refused(&daemon);
    check_answer(&daemon);
    assert_eq!(daemon.post("/v2/models/linear/infer", &linear_request()).0, 200);
    wait_measured(&daemon, "linear");
    let text = std::fs::read_to_string(&log).unwrap();
    assert_eq!(text.matches(told).count(), 1, "{text}");
    // Whoever asks for it is told.
    let (status, told) = daemon.post("/v2/repository/models/dividing/profile", "");
    assert!(status == 400 || status == 500, "{told}");
    check_answer(&daemon);
}

/// Every open dimension of made-up inputs got the same size: decoders that are given keys and values
/// of the past, whose mask is as long as both together, could not be measured.
#[test]
fn decoders_with_a_past_are_measured() {
    let folder = tempfile::tempdir().unwrap();
    let store = folder.path().join("store");
    std::fs::create_dir(&store).unwrap();
    small_store::write(&store, small_store::with_past("sum", "past_length + seq"));
    small_store::write(&store, small_store::with_past("named", "total_length"));
    let arguments = ["--budget", "96MiB", "--window", "8MiB", "--profiles", "false"];
    let daemon = Daemon::start(&store, &folder.path().join("s"), &arguments);
    for model in ["sum", "named"] {
        let (status, profile) = daemon.post(&format!("/v2/repository/models/{model}/profile"), "");
        assert_eq!(status, 200, "{profile}");
        let tokens = |pass: &Value| pass["tokens"].as_u64().unwrap();
        let passes = profile["passes"].as_array().unwrap();
        assert!(passes.iter().any(|pass| tokens(pass) == 128), "{profile}");
        assert_eq!(profile.get("skipped"), None, "{profile}");
    }
}

fn linear_request() -> String {
    let x = json!({"name": "x", "datatype": "FP32", "shape": [1, 1, 4], "data": [1, 0, 0, 0]});
    json!({ "inputs": [x] }).to_string()
}

/// Asks until a plan is answered: the daemon has measured by itself.
fn wait_measured(daemon: &Daemon, model: &str) -> Value {
    let start = Instant::now();
    loop {
        let (status, plan) = daemon.get(&format!("/v2/models/{model}/plan"));
        if status == 200 {
            return plan;
        }
        assert!(status == 409 && start.elapsed() < PATIENCE, "{plan}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn an_idle_daemon_measures_what_was_loaded() {
    let served = served(&["--tokens", "16", "--source", "mapped"]);
    for _ in 0..3 {
        check_alive(&served.daemon);
    }
    let plan = wait_measured(&served.daemon, "linear");
    assert_eq!((&plan["tokens"], &plan["plan"]["source"]), (&json!(16), &json!("mapped")));
    // What was never loaded is not read.
    check_error(&served.daemon.get("/v2/models/slow/plan"), 409, "not measured");
    // A trial is broken off by each request, and begun anew after it.
    let slow = slow_request().to_string();
    let held = "hermes_ledger_bytes{category=\"activations\"}";
    let folder = served.folder.path().join("store/slow");
    let profile = |entry: DirEntry| entry.path().to_string_lossy().ends_with(".profile.json");
    let is_measured = || fs::read_dir(&folder).unwrap().any(|entry| profile(entry.unwrap()));
    for _ in 0..10 {
        assert_eq!(served.daemon.post("/v2/models/slow/infer", &slow).0, 200);
        wait_metric(&served.daemon, held, |bytes| bytes > 0.0 || is_measured());
    }
    wait_measured(&served.daemon, "slow");
    check_alive(&served.daemon);
    let ledger = hermesctl(&served.daemon.socket, &["top", "--json"]).1;
    let ledger: Value = serde_json::from_str(&ledger).unwrap();
    assert_eq!(ledger["ledger_bytes"]["activations"], json!(0), "{ledger}");
}
