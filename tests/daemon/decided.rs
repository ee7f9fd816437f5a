//! Sizes that a request's values decide: a few bytes once made a pass allocate without bound, since
//! such sizes counted as nothing, and the kernel ended the daemon. What is too much is refused with
//! its node and the bytes, alone, before it is allocated.

use crate::common::daemon::Daemon;
use crate::common::programs::program;
use crate::common::small_store::{graph_of, node, output, port};
use hermes::store::Dtype;
use prost::Message;
use serde_json::{Value, json};
use std::fs;
use std::path::Path;
use std::process::{Command, Output};
use std::thread;
use tract_onnx::pb::{
    AttributeProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, TensorProto,
    ValueInfoProto, attribute_proto::AttributeType,
};

const BUDGET_KIB: u64 = 64 << 10;

/// What no daemon of such a budget has: 10 GB of 64-bit integers.
const HUGE: i64 = 1_250_000_000;

fn int(name: &str, dims: &[i64], value: i64) -> TensorProto {
    let (dims, int64_data) = (dims.to_vec(), vec![value]);
    TensorProto { name: name.to_string(), data_type: 7, dims, int64_data, ..TensorProto::default() }
}

fn graph(inputs: Vec<ValueInfoProto>, nodes: Vec<NodeProto>, dtype: Dtype) -> GraphProto {
    let mut graph = graph_of(inputs, nodes, vec![output("y", dtype)]);
    let scalars = [("zero", 0), ("one", 1)].map(|(name, value)| int(name, &[], value));
    graph.initializer = [&scalars[..], &[int("first", &[1], 0)]].concat();
    graph
}

/// Nodes that make `places`, the numbers from 0 to `n`, and `sides`, twice their count.
fn places() -> Vec<NodeProto> {
    let axis = AttributeProto {
        name: "axis".to_string(),
        r#type: AttributeType::Int as i32,
        ..AttributeProto::default()
    };
    let sides = NodeProto { attribute: vec![axis], ..node("Concat", &["side", "side"], "sides") };
    vec![node("Range", &["zero", "n", "one"], "places"), node("Shape", &["places"], "side"), sides]
}

fn n() -> ValueInfoProto {
    port("n", Dtype::Int64, &[])
}

/// A model of one number `n`: what it makes, and what that comes to.
struct Made {
    name: &'static str,
    nodes: Vec<NodeProto>,
    sum: fn(i64) -> i64,
    /// More than there is room for.
    too_many: i64,
}

fn made() -> Vec<Made> {
    let wide = [places(), vec![node("Expand", &["places", "sides"], "made")]];
    let outer = vec![
        node("Unsqueeze", &["places", "first"], "row"),
        node("Transpose", &["row"], "column"),
        node("Add", &["row", "column"], "made"),
    ];
    let range = [places(), vec![node("Neg", &["places"], "made")]];
    vec![
        Made { name: "range", nodes: range.concat(), sum: |n| -n * (n - 1) / 2, too_many: 1 << 40 },
        Made {
            name: "outer",
            nodes: [places(), outer].concat(),
            sum: |n| n * n * (n - 1),
            too_many: 36_000,
        },
        Made {
            name: "expand",
            nodes: wide.concat(),
            sum: |n| n * n * (n - 1) / 2,
            too_many: 36_000,
        },
    ]
}

fn shard(store: &Path, name: &str, graph: GraphProto) -> Output {
    let opset_import = vec![OperatorSetIdProto { domain: String::new(), version: 17 }];
    let model =
        ModelProto { ir_version: 8, opset_import, graph: Some(graph), ..Default::default() };
    let file = store.join(format!("{name}.onnx"));
    fs::write(&file, model.encode_to_vec()).unwrap();
    let mut command = Command::new(program("hermes-shard"));
    command.arg("build").arg(&file).arg("--store").arg(store).args(["--name", name]);
    command.output().unwrap()
}

fn ask(daemon: &Daemon, model: &str, n: i64) -> (u16, Value) {
    let input = json!({"name": "n", "datatype": "INT64", "shape": [], "data": [n]});
    let body = json!({"inputs": [input]}).to_string();
    daemon.post(&format!("/v2/models/{model}/infer"), &body)
}

#[test]
fn what_values_ask_for_is_refused_with_its_bytes_and_the_daemon_serves_on() {
    let (store, folder) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    for Made { name, mut nodes, .. } in made() {
        nodes.push(node("ReduceSum", &["made"], "y"));
        let built = shard(store.path(), name, graph(vec![n()], nodes, Dtype::Int64));
        assert!(built.status.success(), "{name}: {}", String::from_utf8_lossy(&built.stderr));
    }
    let arguments = ["--budget", "64MiB", "--window", "4MiB", "--profiles", "false"];
    let daemon = Daemon::start(store.path(), &folder.path().join("s"), &arguments);
    for Made { name, sum, too_many, .. } in made() {
        let check = |n: i64| {
            let (status, reply) = ask(&daemon, name, n);
            assert_eq!(status, 200, "{name} of {n}: {reply}");
            assert_eq!(reply["outputs"][0]["data"], json!([sum(n)]), "{name} of {n}");
        };
        [0, 1, 5, 100].into_iter().for_each(check);
        for n in [HUGE, too_many, i64::MAX] {
            let (status, reply) = ask(&daemon, name, n);
            let said = reply["error"].as_str().unwrap_or_default();
            assert!([400, 413].contains(&status), "{name} of {n}: {status} {reply}");
            assert!(said.contains("node \""), "{name} of {n}: {said}");
            assert!(n == i64::MAX || said.contains("bytes are needed"), "{name} of {n}: {said}");
        }
        // Beside those that ask for too much, others are served.
        thread::scope(|scope| {
            for turn in 0..12 {
                let (daemon, check) = (&daemon, &check);
                scope.spawn(move || match turn % 3 {
                    0 => assert_ne!(ask(daemon, name, HUGE).0, 200, "{name}"),
                    _ => check(turn),
                });
            }
        });
    }
    let peak_kib = daemon.status_kib("VmHWM:");
    assert!(peak_kib <= BUDGET_KIB, "{peak_kib} KiB of a budget of {BUDGET_KIB}");
}

/// What tract cannot take from a request's values is refused when the model is sharded.
#[test]
fn sizes_that_no_request_can_give_are_refused_by_name() {
    let store = tempfile::tempdir().unwrap();
    let check = |op: &str, inputs: Vec<ValueInfoProto>, dtype: Dtype| {
        let names: Vec<String> = inputs.iter().map(|input| input.name.clone()).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let mut maker = node(op, &names, "y");
        maker.name = "maker".to_string();
        let built = shard(store.path(), "m", graph(inputs, vec![maker], dtype));
        let said = String::from_utf8_lossy(&built.stderr).into_owned();
        assert_eq!(built.status.code(), Some(1), "{op}: {said}");
        assert!(said.contains("maker") && said.contains(op), "{op}: {said}");
    };
    let x = || port("x", Dtype::Fp32, &["1", "4"]);
    check("ConstantOfShape", vec![port("shape", Dtype::Int64, &["2"])], Dtype::Fp32);
    check("Tile", vec![x(), port("repeats", Dtype::Int64, &["2"])], Dtype::Fp32);
    check("Expand", vec![x(), port("shape", Dtype::Int64, &["2"])], Dtype::Fp32);
    check("Pad", vec![x(), port("pads", Dtype::Int64, &["4"])], Dtype::Fp32);
    check("Reshape", vec![x(), port("shape", Dtype::Int64, &["2"])], Dtype::Fp32);
    let depth = vec![
        port("indices", Dtype::Int64, &["3"]),
        port("depth", Dtype::Int64, &[]),
        port("values", Dtype::Int64, &["2"]),
    ];
    check("OneHot", depth, Dtype::Int64);
}
