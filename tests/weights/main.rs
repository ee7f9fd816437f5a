//! Whatever a graph does to its weights, and however a file keeps them, answers are right in every
//! variant: models of a few nodes, sharded by `hermes-shard` and asked through the engine.

#[path = "../common/mod.rs"]
mod common;
mod formats;
mod functions;
mod quantized;
mod uses;

use common::programs::program;
use common::small_store::{graph_of, output, port};
use hermes::engine::{Array, Cancel, Config, Engine, Request};
use hermes::store::Dtype;
use prost::Message;
use std::fs;
use std::process::{Command, Output};
use tract_onnx::pb::{
    AttributeProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, TensorProto,
    attribute_proto::AttributeType,
};

/// Bytes from which tensors of these tests are weights.
const THRESHOLD: &str = "1024";

/// Tokens of the inputs.
const TOKENS: usize = 5;

/// A model's folder, its file and the store in it.
struct Place {
    folder: tempfile::TempDir,
    /// Encoded fields behind the model's.
    more: Vec<u8>,
}

impl Place {
    fn new() -> Place {
        Place { folder: tempfile::tempdir().unwrap(), more: vec![] }
    }

    /// Puts a file beside the model.
    fn put(&self, name: &str, content: &[u8]) {
        let path = self.folder.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }

    fn shard(&self, model: &ModelProto, variants: &str) -> Output {
        self.put("model.onnx", &[model.encode_to_vec(), self.more.clone()].concat());
        Command::new(program("hermes-shard"))
            .arg("build")
            .arg(self.folder.path().join("model.onnx"))
            .arg("--store")
            .arg(self.folder.path().join("store"))
            .args(["--name", "m", "--force", "--threshold", THRESHOLD, "--variants", variants])
            .output()
            .unwrap()
    }

    /// The model's answer, output by output.
    fn ask(&self, variant: &str, inputs: Vec<(String, Array)>) -> Vec<(String, Array)> {
        let store = self.folder.path().join("store");
        let variant = Some(variant.to_string());
        let config = Config { variant, ..Config::new(store, 256 << 20) };
        let engine = Engine::start(config).unwrap();
        let request = Request {
            model: "m".to_string(),
            inputs,
            outputs: vec![],
            cancel: Cancel::new(),
            target: None,
            trace: None,
        };
        engine.infer(request).unwrap().outputs
    }
}

/// Shards a model into every variant and compares each one's answer with what is right.
fn check(model: &ModelProto, inputs: &[(&str, Array)], expected: &[(&str, Vec<f32>)]) {
    check_in(&Place::new(), model, inputs, expected);
}

fn check_in(
    place: &Place,
    model: &ModelProto,
    inputs: &[(&str, Array)],
    expected: &[(&str, Vec<f32>)],
) {
    // A lower precision has its say, another weight, scale or bit would not fit.
    let bounds = [("f32", 1e-5), ("f16", 1e-2), ("q8", 5e-2), ("a4", 0.45)];
    let built = place.shard(model, "f32,f16,q8,a4");
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    check_answers(place, &bounds, inputs, expected);
}

/// The same in f32 alone, where a small error may become a large one: truncation.
fn check_exact(model: &ModelProto, inputs: &[(&str, Array)], expected: &[(&str, Vec<f32>)]) {
    let place = Place::new();
    let built = place.shard(model, "f32");
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    check_answers(&place, &[("f32", 1e-5)], inputs, expected);
}

fn check_answers(
    place: &Place,
    bounds: &[(&str, f32)],
    inputs: &[(&str, Array)],
    expected: &[(&str, Vec<f32>)],
) {
    for (variant, bound) in bounds {
        let inputs = inputs.iter().map(|(name, array)| (name.to_string(), array.clone()));
        let outputs = place.ask(variant, inputs.collect());
        for (name, right) in expected {
            let found = &outputs.iter().find(|(found, _)| found == name).unwrap().1;
            check_values(&format!("{name} in {variant}"), &floats(found), right, *bound);
        }
    }
}

fn check_values(what: &str, found: &[f32], right: &[f32], bound: f32) {
    assert_eq!(found.len(), right.len(), "{what}");
    let norm = |values: &mut dyn Iterator<Item = f32>| values.map(|v| v * v).sum::<f32>().sqrt();
    let error = norm(&mut found.iter().zip(right).map(|(found, right)| found - right));
    let error = error / norm(&mut right.iter().copied()).max(1e-6);
    assert!(error <= bound, "{what} is {error} off: {found:?}, not {right:?}");
    // A single value may be further off by chance.
    let largest = right.iter().fold(1e-6f32, |most, value| most.max(value.abs()));
    for (index, (found, right)) in found.iter().zip(right).enumerate() {
        let error = (found - right).abs() / largest;
        assert!(error <= 2.0 * bound, "{what}[{index}] is {found}, not {right}: {error} off");
    }
}

/// The values of an array of any of the types that these tests have.
fn floats(array: &Array) -> Vec<f32> {
    let bytes = &array.bytes;
    match array.dtype {
        Dtype::Fp32 => array.to_f32().unwrap(),
        Dtype::Fp16 => {
            let words = bytes.as_chunks::<2>().0.iter();
            words.map(|word| half::f16::from_le_bytes(*word).to_f32()).collect()
        }
        Dtype::Fp64 => {
            let words = bytes.as_chunks::<8>().0.iter();
            words.map(|word| f64::from_le_bytes(*word) as f32).collect()
        }
        Dtype::Int64 => {
            let words = bytes.as_chunks::<8>().0.iter();
            words.map(|word| i64::from_le_bytes(*word) as f32).collect()
        }
        Dtype::Uint64 => {
            let words = bytes.as_chunks::<8>().0.iter();
            words.map(|word| u64::from_le_bytes(*word) as f32).collect()
        }
        Dtype::Uint32 => {
            let words = bytes.as_chunks::<4>().0.iter();
            words.map(|word| u32::from_le_bytes(*word) as f32).collect()
        }
        Dtype::Int32 => {
            let words = bytes.as_chunks::<4>().0.iter();
            words.map(|word| i32::from_le_bytes(*word) as f32).collect()
        }
        Dtype::Int8 => bytes.iter().map(|byte| f32::from(byte.cast_signed())).collect(),
        Dtype::Uint8 | Dtype::Bool => bytes.iter().map(|byte| f32::from(*byte)).collect(),
        other => panic!("{other}"),
    }
}

/// Numbers around 0 that differ from each other.
fn wave(count: usize, step: f32) -> Vec<f32> {
    (0..count).map(|i| (i as f32 * step + 0.3).sin() * 3.0).collect()
}

/// `x` of FP32 `[1, TOKENS, depth]`.
fn activations(depth: usize) -> (Vec<f32>, Array) {
    let values = wave(TOKENS * depth, 0.61);
    let array = Array::from_f32(vec![1, TOKENS, depth], &values).unwrap();
    (values, array)
}

/// `x [.., depth] w [depth, outputs]`.
fn product(x: &[f32], w: &[f32], depth: usize) -> Vec<f32> {
    let outputs = w.len() / depth;
    let cell = |row: &[f32], column: usize| -> f64 {
        let steps = row.iter().enumerate();
        steps.map(|(k, x)| f64::from(*x) * f64::from(w[k * outputs + column])).sum()
    };
    let rows = x.chunks(depth);
    rows.flat_map(|row| (0..outputs).map(move |column| cell(row, column) as f32)).collect()
}

/// `w [rows, columns]` turned.
fn transposed(w: &[f32], columns: usize) -> Vec<f32> {
    let rows = w.len() / columns;
    (0..columns).flat_map(|c| (0..rows).map(move |r| w[r * columns + c])).collect()
}

/// Rows of a table.
fn rows(table: &[f32], width: usize, ids: &[i64]) -> Vec<f32> {
    ids.iter().flat_map(|id| table[*id as usize * width..][..width].to_vec()).collect()
}

/// A tensor of ONNX's element type `data_type`, from its bytes.
fn raw(name: &str, data_type: i32, dims: &[usize], raw_data: Vec<u8>) -> TensorProto {
    TensorProto { raw_data, ..empty(name, data_type, dims) }
}

/// A tensor without elements yet.
fn empty(name: &str, data_type: i32, dims: &[usize]) -> TensorProto {
    TensorProto {
        name: name.to_string(),
        data_type,
        dims: dims.iter().map(|dim| *dim as i64).collect(),
        ..TensorProto::default()
    }
}

fn f32s(name: &str, dims: &[usize], values: &[f32]) -> TensorProto {
    raw(name, 1, dims, values.iter().flat_map(|value| value.to_le_bytes()).collect())
}

/// A node of several inputs and attributes.
fn node(op: &str, inputs: &[&str], output: &str, attributes: &[(&str, &[i64])]) -> NodeProto {
    let attribute = attributes.iter().map(|(name, values)| match values {
        [value] if !["perm", "axes"].contains(name) => int(name, *value),
        _ => AttributeProto {
            name: name.to_string(),
            r#type: AttributeType::Ints as i32,
            ints: values.to_vec(),
            ..AttributeProto::default()
        },
    });
    NodeProto { attribute: attribute.collect(), ..common::small_store::node(op, inputs, output) }
}

fn int(name: &str, value: i64) -> AttributeProto {
    AttributeProto {
        name: name.to_string(),
        r#type: AttributeType::Int as i32,
        i: value,
        ..AttributeProto::default()
    }
}

/// `x` of FP32 `[1, seq, depth]` in, outputs of FP32 out.
fn model(
    depth: usize,
    nodes: Vec<NodeProto>,
    tensors: Vec<TensorProto>,
    outs: &[&str],
) -> ModelProto {
    let x = port("x", Dtype::Fp32, &["1", "seq", &depth.to_string()]);
    let outputs = outs.iter().map(|name| output(name, Dtype::Fp32)).collect();
    onnx(GraphProto { initializer: tensors, ..graph_of(vec![x], nodes, outputs) })
}

/// `ids` of INT64 `[1, seq]` in, outputs of FP32 out.
fn lookup(nodes: Vec<NodeProto>, tensors: Vec<TensorProto>, outs: &[&str]) -> ModelProto {
    let ids = port("ids", Dtype::Int64, &["1", "seq"]);
    let outputs = outs.iter().map(|name| output(name, Dtype::Fp32)).collect();
    onnx(GraphProto { initializer: tensors, ..graph_of(vec![ids], nodes, outputs) })
}

fn ids(values: &[i64]) -> Array {
    Array::from_i64(vec![1, values.len()], values).unwrap()
}

fn onnx(graph: GraphProto) -> ModelProto {
    let opset = |domain: &str, version| OperatorSetIdProto { domain: domain.to_string(), version };
    ModelProto {
        ir_version: 10,
        opset_import: vec![opset("", 21), opset("com.microsoft", 1)],
        graph: Some(graph),
        ..ModelProto::default()
    }
}
