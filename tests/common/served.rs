//! A daemon over a store of small models, for the tests that speak to one.

use super::daemon::Daemon;
use super::programs::program;
use super::small_store;
use hermes::store::Dtype;
use serde_json::{Value, json};
use std::path::Path;
use std::process::Command;
use std::sync::LazyLock;
use std::thread;
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// Products of the model `slow`: enough for a pass of about a second.
const SLOW_PRODUCTS: usize = 60;

/// The store of all tests of one program.
pub static STORE: LazyLock<TempDir> = LazyLock::new(|| {
    let store = tempfile::tempdir().unwrap();
    small_store::write(store.path(), small_store::linear());
    small_store::write(store.path(), small_store::log());
    small_store::write(store.path(), small_store::constant());
    small_store::write(store.path(), small_store::words());
    small_store::write(store.path(), small_store::slow(SLOW_PRODUCTS));
    for dtype in Dtype::ALL.into_iter().filter(|dtype| *dtype != Dtype::Bf16) {
        let name = format!("same-{dtype}").to_lowercase().leak();
        small_store::write(store.path(), small_store::same(name, dtype));
    }
    store
});

/// A daemon with a folder of its own for its socket.
pub struct Served {
    pub daemon: Daemon,
    pub folder: TempDir,
}

/// hermesd over [`STORE`] with these arguments.
pub fn serve(arguments: &[&str]) -> Served {
    let folder = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(STORE.path(), &folder.path().join("s"), arguments);
    Served { daemon, folder }
}

/// The same with a budget that suffices for every model.
pub fn served() -> Served {
    serve(&["--budget", "96MiB", "--window", "8MiB"])
}

/// A request to `linear` for one token.
pub fn linear_request() -> Value {
    json!({"inputs": [{
        "name": "x", "datatype": "FP32", "shape": [1, 1, 4], "data": [1.0, 2.0, 3.0, 4.0]
    }]})
}

/// A request to `slow` that takes about a second.
pub fn slow_request() -> Value {
    let tokens = 512;
    json!({"inputs": [{
        "name": "x", "datatype": "FP32", "shape": [1, tokens, 1024], "data": vec![0; tokens * 1024]
    }]})
}

/// The daemon answers, and rightly.
pub fn check_alive(daemon: &Daemon) {
    let (status, reply) = daemon.post("/v2/models/linear/infer", &linear_request().to_string());
    assert_eq!(status, 200, "{reply}");
    assert_eq!(reply["outputs"][0]["data"], json!([20.0, 120.0, 220.0]));
}

/// A sample of the daemon's metrics, by its name and labels as the text has them; 0 where there is
/// none yet.
pub fn metric(daemon: &Daemon, sample: &str) -> f64 {
    let request = "GET /metrics HTTP/1.1\r\nhost: h\r\n\r\n";
    let (_, _, body) = daemon.connect().send(request).response();
    let text = String::from_utf8(body).unwrap();
    let value = text.lines().find_map(|line| line.strip_prefix(sample)?.strip_prefix(' '));
    value.map_or(0.0, |value| value.parse().unwrap())
}

/// Waits until such a sample is as `is_so` wants it.
pub fn wait_metric(daemon: &Daemon, sample: &str, is_so: impl Fn(f64) -> bool) {
    let start = Instant::now();
    while !is_so(metric(daemon, sample)) {
        assert!(start.elapsed() < Duration::from_secs(60), "{sample} stays as it is");
        thread::sleep(Duration::from_millis(2));
    }
}

/// Waits until a pass is under way, and holds what it computes.
pub fn wait_for_pass(daemon: &Daemon) {
    wait_metric(daemon, "hermes_ledger_bytes{category=\"activations\"}", |bytes| bytes > 0.0);
}

/// Fails unless the reply is an error of this status whose words contain `expected`.
pub fn check_error(reply: &(u16, Value), status: u16, expected: &str) {
    let message = reply.1["error"].as_str().unwrap_or_default();
    assert_eq!(reply.0, status, "{}", reply.1);
    assert!(message.contains(expected), "expected {expected:?} in {message:?}");
}

/// Runs hermesctl: exit code, standard output, standard error.
pub fn hermesctl(socket: &Path, arguments: &[&str]) -> (i32, String, String) {
    let output = Command::new(program("hermesctl"))
        .arg("--socket")
        .arg(socket)
        .args(arguments)
        .output()
        .unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code().unwrap(), text(&output.stdout), text(&output.stderr))
}
