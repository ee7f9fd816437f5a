//! kill -9 whenever it is least convenient: the daemon starts again, serves, and its store is whole.

use crate::common::daemon::{self, Daemon};
use crate::common::small_store;
use hermes::store::{Package, Store};
use serde_json::json;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

/// Times the daemon is killed.
const ROUNDS: u64 = 100;

/// Longest life of a daemon that is killed, from the moment it is spawned.
const LIFE_US: u64 = 120_000;

/// Products of a pass that outlives its daemon in most rounds.
const SLOW_PRODUCTS: usize = 20;

/// A request as it goes over the wire.
fn request(method: &str, path: &str, kind: &str, body: &[u8]) -> Vec<u8> {
    let length = body.len();
    let head = format!(
        "{method} {path} HTTP/1.1\r\nhost: h\r\ncontent-type: {kind}\r\n\
         content-length: {length}\r\nconnection: close\r\n\r\n"
    );
    [head.as_bytes(), body].concat()
}

/// Sends each request and reads what comes, until the daemon is gone.
fn ask_until_it_dies(socket: &Path, requests: &[&[u8]]) {
    for request in requests.iter().cycle() {
        let Ok(mut stream) = UnixStream::connect(socket) else { return };
        let mut reply = vec![];
        if stream.write_all(request).is_err() || stream.read_to_end(&mut reply).is_err() {
            return;
        }
    }
}

/// The tar of a version of the slow model.
fn packed(version: &str) -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    small_store::write_version(folder.path(), small_store::slow_identity(SLOW_PRODUCTS), version);
    let mut bytes = vec![];
    let package = Package::open(&folder.path().join("slow").join(version));
    package.unwrap().read_to_end(&mut bytes).unwrap();
    bytes
}

fn check_store(store: &Path, round: u64) {
    let store = Store::open(store).unwrap();
    for model in store.models().unwrap() {
        store.current(&model).unwrap_or_else(|error| panic!("round {round}: {error}"));
        for version in store.versions(&model).unwrap() {
            let dir = store.version(&model, &version).unwrap();
            assert_eq!(dir.verify(|_| ()), [], "round {round}: version {version} of {model}");
        }
    }
}

/// Whether an install came to its end.
fn has_installed(store: &Path) -> bool {
    Store::open(store).unwrap().versions("slow").unwrap().len() > 1
}

#[test]
fn a_daemon_killed_at_any_moment_starts_again_on_a_whole_store() {
    let (store, run) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let store = store.path();
    for factor in [1, 2] {
        small_store::write_version(
            store,
            small_store::scaled_linear(factor as f32),
            &factor.to_string(),
        );
    }
    small_store::write_version(store, small_store::slow_identity(SLOW_PRODUCTS), "1");
    let socket = run.path().join("s");
    let json = "application/json";
    let infer = |model: &str, width: usize| {
        let input = json!({
            "name": "x", "datatype": "FP32", "shape": [1, 1, width], "data": vec![1.0; width]
        });
        let body = json!({ "inputs": [input] }).to_string();
        request("POST", &format!("/v2/models/{model}/infer"), json, body.as_bytes())
    };
    let change = |tail: &str, body: &str| {
        request("POST", &format!("/v2/repository/models/{tail}"), json, body.as_bytes())
    };
    let (linear, slow) = (infer("linear", 4), infer("slow", 1024));
    let (load, unload) = (change("slow/load", "{}"), change("slow/unload", "{}"));
    let (one, two) =
        (change("linear/use", r#"{"version":"1"}"#), change("linear/use", r#"{"version":"2"}"#));
    let install = |version: &str| {
        let path = "/v2/repository/install?force=true";
        request("POST", path, "application/x-tar", &packed(version))
    };
    let (second, third) = (install("2"), install("3"));
    let streams: [&[&[u8]]; 4] =
        [&[&linear, &one, &two], &[&load, &unload], &[&slow], &[&second, &third]];
    let mut random = 0x9e37_79b9_7f4a_7c15u64;
    let mut served = 0;
    let mut round = 0;
    // A busy machine gets less done in a life: then there are more of them, and longer ones.
    while round < ROUNDS || (round < 8 * ROUNDS && !has_installed(store)) {
        let life_us = LIFE_US * (1 + round / ROUNDS);
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let mut child = daemon::command(store, &socket, &["--budget", "96MiB"])
            .stderr(std::process::Stdio::null())
            .spawn()
            .unwrap();
        std::thread::scope(|scope| {
            for requests in streams {
                let socket = &socket;
                scope.spawn(move || {
                    // A socket may be left of the daemon before, and refuse.
                    for _ in 0..life_us / 5000 {
                        if UnixStream::connect(socket).is_ok() {
                            return ask_until_it_dies(socket, requests);
                        }
                        std::thread::sleep(Duration::from_millis(5));
                    }
                });
            }
            std::thread::sleep(Duration::from_micros((random >> 33) % life_us));
            served += u64::from(UnixStream::connect(&socket).is_ok());
            child.kill().unwrap();
            child.wait().unwrap();
        });
        check_store(store, round);
        round += 1;
    }
    assert!(served > ROUNDS / 4, "most lived long enough to serve: {served} of {round}");
    assert!(has_installed(store), "some installs came to their end");
    let daemon = Daemon::start(store, &socket, &["--budget", "96MiB"]);
    let input =
        json!({ "name": "x", "datatype": "FP32", "shape": [1, 1, 4], "data": [1, 1, 1, 1] });
    let body = json!({ "inputs": [input] }).to_string();
    let (status, reply) = daemon.post("/v2/models/linear/infer", &body);
    assert_eq!(status, 200, "{reply}");
    let first = reply["outputs"][0]["data"][0].as_f64();
    assert!(first == Some(6.0) || first == Some(12.0), "version 1 or 2 answers: {reply}");
    daemon.load("slow");
}
