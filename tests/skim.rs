//! The walk over an ONNX file holds against whatever a file says of itself.

mod common;

use common::small_store::{graph_of, node, output, port};
use hermes::graph::skim::{Skim, SkimError, skim};
use hermes::store::Dtype;
use hermes::sys::heap::{self, CountingAllocator};
use proptest::prelude::*;
use prost::Message;
use std::fs;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use tract_onnx::pb::{
    AttributeProto, FunctionProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto,
    StringStringEntryProto, TensorProto, attribute_proto::AttributeType,
};

#[global_allocator]
static HEAP: CountingAllocator = CountingAllocator;

/// Bytes from which tensors of these tests are weights.
const THRESHOLD_BYTES: u64 = 64;

/// Memory that a byte of the file may cost: two bytes are an attribute, the largest of ONNX's
/// messages, in a list that has just grown.
const BYTES_A_BYTE: u64 = 3 * size_of::<AttributeProto>() as u64 / 2;

/// Memory that any file may cost, and what the other tests take meanwhile.
const BASE_BYTES: u64 = 256 << 10;

fn tensor(name: &str, dims: &[i64]) -> TensorProto {
    let dims = dims.to_vec();
    TensorProto { name: name.to_string(), data_type: 1, dims, ..TensorProto::default() }
}

/// A model with a weight in each place and form that ONNX knows, small tensors beside them, and a
/// function. Its external data is `weights.bin`, of 512 bytes.
fn model() -> ModelProto {
    let raw = TensorProto { raw_data: vec![7; 128], ..tensor("raw", &[4, 8]) };
    let small = TensorProto { raw_data: vec![7; 16], ..tensor("small", &[4]) };
    let packed = TensorProto { float_data: vec![0.5; 32], ..tensor("packed", &[8, 4]) };
    let outside = |name: &str, dims: &[i64], offset: &str| {
        let entry = |key: &str, value: &str| StringStringEntryProto {
            key: key.to_string(),
            value: value.to_string(),
        };
        let external_data = vec![entry("location", "weights.bin"), entry("offset", offset)];
        TensorProto { data_location: Some(1), external_data, ..tensor(name, dims) }
    };
    let mut constant = node("Constant", &[], "constant");
    constant.attribute.push(AttributeProto {
        name: "value".to_string(),
        r#type: AttributeType::Tensor as i32,
        t: Some(TensorProto { raw_data: vec![1; 64], ..tensor("", &[16]) }),
        ..AttributeProto::default()
    });
    let number = |name: &str, value: i64| AttributeProto {
        name: name.to_string(),
        r#type: AttributeType::Int as i32,
        i: value,
        ..AttributeProto::default()
    };
    let typed = |name: &str, data_type: i32, dims: &[i64]| TensorProto {
        int32_data: vec![300; dims.iter().product::<i64>() as usize],
        data_type,
        ..tensor(name, dims)
    };
    let codes = |name: &str, data_type: i32, dims: &[i64]| TensorProto {
        raw_data: vec![
            5;
            dims.iter().product::<i64>() as usize / if data_type == 22 { 2 } else { 1 }
        ],
        data_type,
        ..tensor(name, dims)
    };
    let scales = TensorProto { float_data: vec![0.5; 8], ..tensor("scales", &[8]) };
    let attribute = vec![number("axis", 0)];
    let dequantized = node("DequantizeLinear", &["codes", "scales"], "dequantized");
    let dequantized = NodeProto { attribute, ..dequantized };
    let few_bits = node("MatMulNBits", &["x", "packed_codes", "scales"], "few_bits");
    let sizes = [("K", 32), ("N", 4), ("bits", 4), ("block_size", 16)];
    let few_bits = NodeProto {
        attribute: sizes.map(|(name, size)| number(name, size)).to_vec(),
        domain: "com.microsoft".to_string(),
        ..few_bits
    };
    let call = NodeProto { domain: "own".to_string(), ..node("Twice", &["x"], "twice") };
    let twice = FunctionProto {
        name: Some("Twice".to_string()),
        domain: Some("own".to_string()),
        input: vec!["a".to_string()],
        output: vec!["b".to_string()],
        node: vec![node("Add", &["a", "a"], "b")],
        ..FunctionProto::default()
    };
    let nodes = vec![
        constant,
        dequantized,
        few_bits,
        call,
        node("MatMul", &["x", "raw"], "a"),
        node("MatMul", &["a", "packed"], "b"),
        node("MatMul", &["b", "outside"], "c"),
        node("Add", &["c", "small"], "y"),
    ];
    let inputs = vec![port("x", Dtype::Fp32, &["batch", "seq", "4"])];
    let graph = GraphProto {
        initializer: vec![
            raw,
            small,
            packed,
            scales,
            typed("halves", 10, &[8, 8]),
            typed("brains", 16, &[3]),
            codes("codes", 3, &[8, 16]),
            codes("packed_codes", 2, &[4, 2, 8]),
            codes("nibbles", 22, &[2]),
            outside("outside", &[4, 4], "256"),
            outside("bias", &[2], "8"),
        ],
        ..graph_of(inputs, nodes, vec![output("y", Dtype::Fp32)])
    };
    ModelProto {
        ir_version: 8,
        producer_name: "test".to_string(),
        opset_import: vec![OperatorSetIdProto { domain: String::new(), version: 17 }],
        graph: Some(graph),
        functions: vec![twice],
        ..ModelProto::default()
    }
}

/// A folder with the model's external data.
fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("weights.bin"), vec![3; 512]).unwrap();
    folder
}

/// Skims `content`, and checks what every skim promises.
fn check(folder: &Path, content: &[u8]) -> Result<Skim, SkimError> {
    // The peak is the process's: one skim at a time.
    static ALONE: Mutex<()> = Mutex::new(());
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let path = folder.join("model.onnx");
    fs::write(&path, content).unwrap();
    let before = heap::live_bytes();
    heap::reset_peak();
    let result = skim(&path, THRESHOLD_BYTES);
    let taken = heap::peak_bytes().saturating_sub(before);
    let file_bytes = content.len() as u64;
    let limit = BASE_BYTES + BYTES_A_BYTE * file_bytes;
    assert!(taken <= limit, "{taken} bytes of memory for a file of {file_bytes}");
    match &result {
        Ok(skim) => check_skim(skim, folder),
        Err(SkimError::Malformed { offset, .. }) => assert!(*offset <= file_bytes, "{offset}"),
        Err(SkimError::Tensor { .. } | SkimError::Node { .. }) => {}
        Err(other) => panic!("a small file that can be read: {other}"),
    }
    result
}

fn check_skim(skim: &Skim, folder: &Path) {
    let skeleton = ModelProto::decode(&*skim.skeleton).expect("the skeleton is a model");
    let graph = skeleton.graph.expect("it has a graph");
    for weight in &skim.weights {
        for location in weight.elements.locations() {
            assert!(location.path.starts_with(folder), "{}", location.path.display());
            let file_bytes = fs::metadata(&location.path).unwrap().len();
            assert!(location.bytes <= file_bytes && location.offset <= file_bytes - location.bytes);
        }
        if let Some(location) = weight.location() {
            assert!(weight.bytes() == location.bytes, "{weight:?}");
        }
        assert!(weight.bytes() >= THRESHOLD_BYTES, "{weight:?}");
        let declared = graph.input.iter().filter(|input| input.name == weight.name).count();
        assert_eq!(declared, 1, "{weight:?}");
    }
}

#[test]
fn weights_are_found_wherever_onnx_keeps_them() {
    let skim = check(folder().path(), &model().encode_to_vec()).unwrap();
    let names: Vec<&str> = skim.weights.iter().map(|weight| weight.name.as_str()).collect();
    let known =
        ["raw", "packed", "outside", "constant", "halves", "dequantized", "few_bits/weight"];
    assert_eq!(names.len(), known.len(), "{names:?}");
    for name in known {
        assert!(names.contains(&name), "{name} is not among {names:?}");
    }
}

/// One thing done to a file.
#[derive(Clone, Debug)]
enum Change {
    Flip(u8),
    /// Overwrites with a varint, as lengths and numbers are.
    Number(u64),
    Insert(Vec<u8>),
    Remove(usize),
    Truncate,
}

fn change() -> impl Strategy<Value = Change> {
    let number = prop_oneof![
        any::<u64>(),
        0u64..300,
        (0u32..64).prop_map(|bits| 1 << bits),
        (0u64..300).prop_map(|below| u64::MAX - below),
    ];
    prop_oneof![
        4 => (0u8..8).prop_map(Change::Flip),
        4 => number.prop_map(Change::Number),
        2 => prop::collection::vec(any::<u8>(), 1..12).prop_map(Change::Insert),
        2 => (1usize..40).prop_map(Change::Remove),
        1 => Just(Change::Truncate),
    ]
}

fn apply(content: &mut Vec<u8>, at: usize, change: Change) {
    let rest = content.len() - at;
    match change {
        Change::Flip(bit) => content[at] ^= 1 << bit,
        Change::Number(number) => {
            let mut bytes = vec![];
            prost::encoding::encode_varint(number, &mut bytes);
            let length = bytes.len().min(rest);
            content.splice(at..at + length, bytes);
        }
        Change::Insert(bytes) => drop(content.splice(at..at, bytes)),
        Change::Remove(count) => drop(content.drain(at..at + count.min(rest))),
        Change::Truncate => content.truncate(at),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]
    #[test]
    fn a_changed_model_is_skimmed_within_its_file_or_refused(
        changes in prop::collection::vec((any::<prop::sample::Index>(), change()), 1..4),
    ) {
        let folder = folder();
        let mut content = model().encode_to_vec();
        for (place, change) in changes {
            if !content.is_empty() {
                let at = place.index(content.len());
                apply(&mut content, at, change);
            }
        }
        let _ = check(folder.path(), &content);
    }

    #[test]
    fn any_bytes_are_skimmed_within_their_file_or_refused(
        content in prop::collection::vec(any::<u8>(), 0..300),
    ) {
        let _ = check(folder().path(), &content);
    }
}

/// Small messages in great number: what they take is bounded by what they are in the file.
#[test]
fn many_small_messages_take_memory_as_their_bytes_do() {
    let folder = folder();
    // Empty fields of a graph: nodes, initializers, inputs, outputs.
    for tag in [0x0a, 0x2a, 0x5a, 0x62] {
        let mut content = vec![0x3a];
        let graph = [tag, 0].repeat(20_000);
        prost::encoding::encode_varint(graph.len() as u64, &mut content);
        content.extend(graph);
        let _ = check(folder.path(), &content);
    }
}
