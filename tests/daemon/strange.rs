//! Graphs of some hundred bytes that take any memory or time to import: tract computes what is
//! constant in them. A daemon that loaded one was killed or hung for ever, and again after each
//! restart.

use crate::common::daemon::{self, Daemon};
use crate::common::programs::program;
use crate::common::small_store::{self, node, output, port};
use hermes::store::{Dtype, Rehearsal, Store};
use prost::Message;
use serde_json::{Value, json};
use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use tempfile::TempDir;
use tract_onnx::pb::{GraphProto, ModelProto, NodeProto, OperatorSetIdProto, TensorProto};
use xxhash_rust::xxh3::xxh3_64;

fn encoded(graph: GraphProto) -> Vec<u8> {
    let opset_import = vec![OperatorSetIdProto { domain: String::new(), version: 17 }];
    ModelProto { ir_version: 8, opset_import, graph: Some(graph), ..ModelProto::default() }
        .encode_to_vec()
}

/// `y = x + c`, where `c` is a tensor of zeros that is made of its shape alone: 4 GiB.
fn large() -> Vec<u8> {
    let nodes =
        vec![node("ConstantOfShape", &["shape"], "zeros"), node("Add", &["x", "zeros"], "y")];
    let inputs = vec![port("x", Dtype::Fp32, &["1", "n"])];
    let mut graph = small_store::graph_of(inputs, nodes, vec![output("y", Dtype::Fp32)]);
    graph.initializer.push(TensorProto {
        name: "shape".to_owned(),
        data_type: 7,
        dims: vec![2],
        int64_data: vec![1 << 14, 1 << 16],
        ..TensorProto::default()
    });
    encoded(graph)
}

/// A chain of so many additions that tract is busy with it for minutes.
fn long() -> Vec<u8> {
    let name = |index: usize| format!("h{index}");
    let add = |index: usize| NodeProto {
        name: String::new(),
        ..node("Add", &[&name(index), &name(index)], &name(index + 1))
    };
    let inputs = vec![port("h0", Dtype::Fp32, &["1", "n"])];
    let nodes = (0..20_000).map(add).collect();
    encoded(small_store::graph_of(inputs, nodes, vec![output("h20000", Dtype::Fp32)]))
}

/// A store with `linear`, and `strange`, whose graph is replaced by `graph`.
fn store_with(graph: &[u8]) -> TempDir {
    let store = tempfile::tempdir().unwrap();
    small_store::write(store.path(), small_store::linear());
    small_store::write(store.path(), small_store::same("strange", Dtype::Fp32));
    let folder = strange(store.path());
    fs::write(folder.join("graph.onnx"), graph).unwrap();
    let path = folder.join("manifest.json");
    let mut manifest: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    manifest["graph"]["bytes"] = json!(graph.len());
    manifest["graph"]["checksum"] = json!(format!("{:016x}", xxh3_64(graph)));
    fs::write(&path, manifest.to_string()).unwrap();
    store
}

fn strange(store: &Path) -> PathBuf {
    store.join("strange/1")
}

fn board(store: &Path, folder: &Path) -> Daemon {
    Daemon::start(store, &folder.join("s"), &["--budget", "64MiB", "--window", "4MiB"])
}

fn infer(daemon: &Daemon, model: &str, input: Value) -> (u16, Value) {
    daemon.post(&format!("/v2/models/{model}/infer"), &json!({"inputs": [input]}).to_string())
}

fn check_alive(daemon: &Daemon) {
    let input = json!({"name": "x", "datatype": "FP32", "shape": [1, 1, 4], "data": [1, 2, 3, 4]});
    let (status, reply) = infer(daemon, "linear", input);
    assert_eq!(status, 200, "{reply}");
}

/// What loading the strange model is refused with.
fn refusal(daemon: &Daemon) -> String {
    let input = json!({"name": "x", "datatype": "FP32", "shape": [1, 1], "data": [1]});
    let (status, reply) = infer(daemon, "strange", input);
    assert_eq!(status, 500, "{reply}");
    reply["error"].as_str().unwrap().to_owned()
}

/// A copy of hermesd imports a version within so many bytes and seconds, of the processor and by the
/// clock.
fn import_within(bytes: u64, [cpu_s, clock_s]: [u32; 2], version: &Path) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_hermesd"));
    let limits = [bytes.to_string(), cpu_s.to_string(), clock_s.to_string()];
    command.arg("--within").args(limits).arg("import").arg(version);
    command.stdin(Stdio::null()).output().unwrap()
}

#[test]
fn a_graph_that_takes_any_memory_is_refused_and_the_daemon_serves_on() {
    let store = store_with(&large());
    let folder = tempfile::tempdir().unwrap();
    let mut daemon = board(store.path(), folder.path());
    let said = refusal(&daemon);
    for word in ["strange", "version 1", "bytes of memory", "zeros", "ConstantOfShape"] {
        assert!(said.contains(word), "{word:?} is not in {said}");
    }
    check_alive(&daemon);
    // Nobody tries it again by himself, not even after a restart.
    let kept =
        || fs::metadata(strange(store.path()).join("rehearsal")).unwrap().modified().unwrap();
    let first = kept();
    daemon.signal("-TERM");
    assert!(daemon.wait().success());
    drop(daemon);
    let daemon = board(store.path(), folder.path());
    assert_eq!(refusal(&daemon), said);
    assert_eq!(kept(), first);
    // Who asks for it gets another try.
    let (status, reply) = daemon.post("/v2/repository/models/strange/load", "");
    assert_eq!(status, 500, "{reply}");
    assert!(kept() > first);
    check_alive(&daemon);
}

#[test]
fn a_graph_that_takes_any_memory_is_not_installed() {
    let elsewhere = store_with(&large());
    let store = tempfile::tempdir().unwrap();
    small_store::write(store.path(), small_store::linear());
    let folder = tempfile::tempdir().unwrap();
    let daemon = board(store.path(), folder.path());
    let source = strange(elsewhere.path());
    let mut ctl = Command::new(program("hermesctl"));
    ctl.arg("--socket").arg(&daemon.socket).arg("install").arg(&source);
    let mut shard = Command::new(program("hermes-shard"));
    shard.arg("install").arg(&source).arg("--store").arg(store.path());
    for mut command in [ctl, shard] {
        let output = command.stdin(Stdio::null()).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.contains("bytes of memory") && said.contains("zeros"), "{said}");
    }
    assert_eq!(fs::read_dir(store.path()).unwrap().count(), 1, "nothing is left behind");
    check_alive(&daemon);
}

/// What a good graph took is kept, and granted from then on, whatever the manifest says.
#[test]
fn a_graph_is_tried_once() {
    let store = tempfile::tempdir().unwrap();
    small_store::write(store.path(), small_store::linear());
    let folder = tempfile::tempdir().unwrap();
    let dir = Store::open(store.path()).unwrap().current("linear").unwrap();
    assert_eq!(Rehearsal::read(&dir.path, dir.manifest.graph.checksum), None);
    let mut daemon = board(store.path(), folder.path());
    check_alive(&daemon);
    let known = Rehearsal::read(&dir.path, dir.manifest.graph.checksum).unwrap();
    assert!(matches!(known, Rehearsal::Done { peak_bytes } if peak_bytes > 1000), "{known:?}");
    daemon.signal("-KILL");
    daemon.wait();
    Rehearsal::Refused { why: "on a whim".to_owned() }
        .write(&dir.path, dir.manifest.graph.checksum)
        .unwrap();
    let daemon = board(store.path(), folder.path());
    let input = json!({"name": "x", "datatype": "FP32", "shape": [1, 1, 4], "data": [1, 2, 3, 4]});
    let (status, reply) = infer(&daemon, "linear", input);
    assert_eq!(status, 500);
    assert!(reply["error"].as_str().unwrap().contains("on a whim"), "{reply}");
    let (status, reply) = daemon.get("/v2/models/linear/ready");
    assert!(status == 503 && reply.to_string().contains("on a whim"), "{reply}");
    assert_eq!(daemon.post("/v2/repository/models/linear/load", "").0, 200);
    check_alive(&daemon);
    assert_eq!(Rehearsal::read(&dir.path, dir.manifest.graph.checksum), Some(known));
}

#[test]
fn a_copy_keeps_its_limits() {
    const OVER_MEMORY: i32 = 77;
    const SIGPROF: i32 = 27;
    const SIGALRM: i32 = 14;
    let store = store_with(&large());
    let output = import_within(1 << 28, [60, 240], &strange(store.path()));
    assert_eq!(output.status.code(), Some(OVER_MEMORY));
    assert!(String::from_utf8_lossy(&output.stdout).lines().last().unwrap().contains("zeros"));
    let store = store_with(&long());
    for (seconds, signal) in [([1, 240], SIGPROF), ([60, 1], SIGALRM)] {
        let output = import_within(1 << 30, seconds, &strange(store.path()));
        assert_eq!(output.status.signal(), Some(signal), "{:?}", output.status);
    }
    let output = import_within(1 << 28, [60, 240], &store.path().join("linear/1"));
    assert!(output.status.success());
    assert!(String::from_utf8_lossy(&output.stdout).contains("\npeak "));
    // The same words behind others are no such call.
    let mut command = daemon::command(store.path(), &store.path().join("s"), &["--within", "1"]);
    assert_eq!(command.stderr(Stdio::null()).status().unwrap().code(), Some(2));
}
