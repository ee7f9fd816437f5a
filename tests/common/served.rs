//! A daemon over a store of small models, for the tests that speak to one.

use super::daemon::Daemon;
use super::programs::program;
use super::small_store;
use hermes::store::Dtype;
use serde_json::{Value, json};
use std::path::Path;
use std::process::Command;
use std::sync::LazyLock;
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
