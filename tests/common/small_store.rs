//! Stores of models so small that a test knows their answers.

use hermes::graph::skim::{Elements, OnnxWeight, Skim};
use hermes::shard::{Draft, Order, Source, TokenizerFile};
use hermes::store::Dtype;
use hermes::store::manifest::{Pooling, Task};
use prost::Message;
use serde_json::Value;
use std::fs;
use std::path::Path;
use tract_onnx::pb::tensor_shape_proto::{Dimension, dimension::Value as DimValue};
use tract_onnx::pb::type_proto::{Tensor as TensorType, Value as TypeValue};
use tract_onnx::pb::{
    AttributeProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, TensorProto,
    TensorShapeProto, TypeProto, ValueInfoProto, attribute_proto::AttributeType,
};

/// A graph and its big weights.
pub struct SmallModel {
    pub name: &'static str,
    pub graph: GraphProto,
    /// Name, shape and values of each weight, which is an input of the graph too.
    pub weights: Vec<(&'static str, [u64; 2], Vec<f32>)>,
    pub tokenizer: Option<String>,
    pub task: Option<Task>,
}

/// Installs a model as version 1.
pub fn write(store: &Path, model: SmallModel) {
    write_version(store, model, "1");
}

/// A store whose model `words` has these rules of texts in its manifest.
pub fn with_rules(rules: Value) -> tempfile::TempDir {
    let store = tempfile::tempdir().unwrap();
    write(store.path(), words());
    let path = store.path().join("words/1/manifest.json");
    let mut manifest: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    manifest["text"] = rules;
    fs::write(&path, manifest.to_string()).unwrap();
    store
}

/// Installs a version of a model, as hermes-shard makes it that tries nothing.
pub fn write_version(store: &Path, model: SmallModel, version: &str) {
    let proto = ModelProto {
        ir_version: 8,
        opset_import: vec![OperatorSetIdProto { domain: String::new(), version: 17 }],
        graph: Some(model.graph),
        ..ModelProto::default()
    };
    let weights = model.weights.iter().map(|(name, shape, values)| OnnxWeight {
        name: name.to_string(),
        dtype: Dtype::Fp32,
        shape: shape.to_vec(),
        elements: Elements::Held(values.iter().flat_map(|value| value.to_le_bytes()).collect()),
    });
    let skim = Skim {
        skeleton: proto.encode_to_vec(),
        weights: weights.collect(),
        producer: "test".to_string(),
        opset: 17,
        source_bytes: 0,
    };
    let tokenizer = model
        .tokenizer
        .map(|text| TokenizerFile { path: "tokenizer.json".into(), bytes: text.into_bytes() });
    let source = Source {
        name: model.name.to_string(),
        file: "test".to_string(),
        folder: "/nothing/beside/it".into(),
        skim,
        tokenizer,
        checkpoint: None,
        vocabulary: None,
        context: None,
        notes: vec![],
    };
    let order =
        Order { version: version.to_string(), trial: false, ..Order::new("test.onnx", store) };
    let mut draft = Draft::of(&order, &source).unwrap();
    draft.manifest.task = model.task;
    draft.manifest.text = None;
    draft.write(&order, source, &()).unwrap();
}

/// ONNX's number for a dtype.
fn elem_type(dtype: Dtype) -> i32 {
    match dtype {
        Dtype::Fp32 => 1,
        Dtype::Uint8 => 2,
        Dtype::Int8 => 3,
        Dtype::Uint16 => 4,
        Dtype::Int16 => 5,
        Dtype::Int32 => 6,
        Dtype::Int64 => 7,
        Dtype::Bool => 9,
        Dtype::Fp16 => 10,
        Dtype::Fp64 => 11,
        Dtype::Uint32 => 12,
        Dtype::Uint64 => 13,
        Dtype::Bf16 => 16,
    }
}

/// A port; a dimension that is no number is a symbol.
pub fn port(name: &str, dtype: Dtype, shape: &[&str]) -> ValueInfoProto {
    let dim = |text: &&str| Dimension {
        value: Some(match text.parse() {
            Ok(size) => DimValue::DimValue(size),
            Err(_) => DimValue::DimParam(text.to_string()),
        }),
        ..Dimension::default()
    };
    let shape = TensorShapeProto { dim: shape.iter().map(dim).collect() };
    let tensor = TensorType { elem_type: elem_type(dtype), shape: Some(shape) };
    let r#type = TypeProto { value: Some(TypeValue::TensorType(tensor)), ..TypeProto::default() };
    ValueInfoProto { name: name.to_string(), r#type: Some(r#type), ..ValueInfoProto::default() }
}

/// An output, whose shape is left to be found.
pub fn output(name: &str, dtype: Dtype) -> ValueInfoProto {
    let tensor = TensorType { elem_type: elem_type(dtype), shape: None };
    let r#type = TypeProto { value: Some(TypeValue::TensorType(tensor)), ..TypeProto::default() };
    ValueInfoProto { name: name.to_string(), r#type: Some(r#type), ..ValueInfoProto::default() }
}

pub fn node(op: &str, inputs: &[&str], output: &str) -> NodeProto {
    NodeProto {
        op_type: op.to_string(),
        name: format!("/{output}"),
        input: inputs.iter().map(|name| name.to_string()).collect(),
        output: vec![output.to_string()],
        ..NodeProto::default()
    }
}

pub fn graph_of(
    inputs: Vec<ValueInfoProto>,
    nodes: Vec<NodeProto>,
    outputs: Vec<ValueInfoProto>,
) -> GraphProto {
    GraphProto {
        name: "test".to_string(),
        input: inputs,
        node: nodes,
        output: outputs,
        ..GraphProto::default()
    }
}

/// `y = x W` with `x` of FP32 `[1, seq, 4]` and `W[i][j] = i + 10 j` of 4 by 3; and `r = relu(y)`.
pub fn linear() -> SmallModel {
    let weights = (0..4).flat_map(|i| (0..3).map(move |j| (i + 10 * j) as f32)).collect();
    let inputs =
        vec![port("x", Dtype::Fp32, &["1", "seq", "4"]), port("W", Dtype::Fp32, &["4", "3"])];
    let nodes = vec![node("MatMul", &["x", "W"], "y"), node("Relu", &["y"], "r")];
    let outputs = vec![output("y", Dtype::Fp32), output("r", Dtype::Fp32)];
    SmallModel {
        name: "linear",
        graph: graph_of(inputs, nodes, outputs),
        weights: vec![("W", [4, 3], weights)],
        tokenizer: None,
        task: None,
    }
}

/// [`linear`] with its weights times `factor`: versions that answer differently.
pub fn scaled_linear(factor: f32) -> SmallModel {
    let mut model = linear();
    model.weights[0].2.iter_mut().for_each(|value| *value *= factor);
    model
}

/// [`slow`] with a weight that keeps its input: `y = relu(x)`, where [`slow`]'s is 0.
pub fn slow_identity(products: usize) -> SmallModel {
    let mut model = slow(products);
    let values = &mut model.weights[0].2;
    (0..1024).for_each(|row| values[row * 1024 + row] = 1.0);
    model
}

/// `y = table[ids] W` with a table of two rows in the graph, `[1, 2, 3, 4]` and `[0, 0, 0, 1]`, and
/// the weight of [`linear`].
pub fn segments() -> SmallModel {
    let table = TensorProto {
        name: "table".to_string(),
        dims: vec![2, 4],
        data_type: elem_type(Dtype::Fp32),
        float_data: vec![1.0, 2.0, 3.0, 4.0, 0.0, 0.0, 0.0, 1.0],
        ..TensorProto::default()
    };
    let inputs =
        vec![port("ids", Dtype::Int64, &["1", "seq"]), port("W", Dtype::Fp32, &["4", "3"])];
    let nodes = vec![node("Gather", &["table", "ids"], "x"), node("MatMul", &["x", "W"], "y")];
    let mut graph = graph_of(inputs, nodes, vec![output("y", Dtype::Fp32)]);
    graph.initializer.push(table);
    SmallModel { name: "segments", graph, ..linear() }
}

/// `y = a op b` of so many whole numbers.
pub fn of_two(name: &'static str, op: &str, count: &str) -> SmallModel {
    let inputs = ["a", "b"].map(|name| port(name, Dtype::Int64, &["1", count])).to_vec();
    let graph = graph_of(inputs, vec![node(op, &["a", "b"], "y")], vec![output("y", Dtype::Int64)]);
    SmallModel { name, graph, weights: vec![], tokenizer: None, task: None }
}

/// Many products with one weight of 4 MiB: a pass that takes a while.
pub fn slow(products: usize) -> SmallModel {
    let size = 1024u64;
    let inputs = vec![
        port("x", Dtype::Fp32, &["1", "seq", "1024"]),
        port("W", Dtype::Fp32, &["1024", "1024"]),
    ];
    let name = |index: usize| format!("h{index}");
    let mut nodes = vec![node("Relu", &["x"], "h0")];
    for index in 0..products {
        nodes.push(node("MatMul", &[&name(index), "W"], &name(index + 1)));
    }
    nodes.push(node("Relu", &[&name(products)], "y"));
    SmallModel {
        name: "slow",
        graph: graph_of(inputs, nodes, vec![output("y", Dtype::Fp32)]),
        weights: vec![("W", [size, size], vec![0.0; (size * size) as usize])],
        tokenizer: None,
        task: None,
    }
}

/// No input: what is positive of the weight.
pub fn constant() -> SmallModel {
    let inputs = vec![port("W", Dtype::Fp32, &["2", "2"])];
    let nodes = vec![node("Relu", &["W"], "y")];
    SmallModel {
        name: "constant",
        graph: graph_of(inputs, nodes, vec![output("y", Dtype::Fp32)]),
        weights: vec![("W", [2, 2], vec![1.0, -2.0, 3.0, -4.0])],
        tokenizer: None,
        task: None,
    }
}

/// [`linear`] with a second output that divides by an input of ids, which tract panics at where one
/// is 0.
pub fn dividing() -> SmallModel {
    let mut model = linear();
    model.name = "dividing";
    let graph = &mut model.graph;
    graph.input.push(port("n", Dtype::Int64, &["1", "seq"]));
    graph.input.push(port("token_type_ids", Dtype::Int64, &["1", "seq"]));
    graph.node.push(node("Div", &["n", "token_type_ids"], "q"));
    graph.output.push(output("q", Dtype::Int64));
    model
}

/// [`linear`] as a decoder that is given what is past: its mask, whose length has the name
/// `mask_length`, is as long as what is past and what is new together.
pub fn with_past(name: &'static str, mask_length: &str) -> SmallModel {
    let mut model = linear();
    model.name = name;
    let graph = &mut model.graph;
    graph.input.push(port("past", Dtype::Fp32, &["1", "past_length", "3"]));
    graph.input.push(port("attention_mask", Dtype::Fp32, &["1", mask_length, "1"]));
    let mut all = node("Concat", &["past", "y"], "all");
    all.attribute.push(AttributeProto {
        name: "axis".to_string(),
        r#type: AttributeType::Int as i32,
        i: 1,
        ..AttributeProto::default()
    });
    graph.node.push(all);
    graph.node.push(node("Mul", &["all", "attention_mask"], "masked"));
    graph.output.push(output("masked", Dtype::Fp32));
    model
}

/// An input and an equal output of `dtype`.
pub fn same(name: &'static str, dtype: Dtype) -> SmallModel {
    let inputs = vec![port("x", dtype, &["1", "n"])];
    let nodes = vec![node("Identity", &["x"], "y")];
    SmallModel {
        name,
        graph: graph_of(inputs, nodes, vec![output("y", dtype)]),
        weights: vec![],
        tokenizer: None,
        task: None,
    }
}

/// `y = log(x)`: minus infinity for 0, NaN below.
pub fn log() -> SmallModel {
    let inputs = vec![port("x", Dtype::Fp32, &["1", "n"])];
    let nodes = vec![node("Log", &["x"], "y")];
    SmallModel {
        name: "log",
        graph: graph_of(inputs, nodes, vec![output("y", Dtype::Fp32)]),
        weights: vec![],
        tokenizer: None,
        task: None,
    }
}

/// [`words`] whose vectors are of FP16.
pub fn words_in_half() -> SmallModel {
    let mut model = words();
    model.name = "halves";
    let graph = &mut model.graph;
    *graph.node.last_mut().unwrap() = node("Mul", &["rows", "column"], "wide");
    let mut cast = node("Cast", &["wide"], "hidden");
    cast.attribute.push(AttributeProto {
        name: "to".to_string(),
        r#type: AttributeType::Int as i32,
        i: 10,
        ..AttributeProto::default()
    });
    graph.node.push(cast);
    graph.output = vec![output("hidden", Dtype::Fp16)];
    model
}

/// [`words`] where `car` is token 9 of a table of 12 rows: three ids are of no word before it.
pub fn words_with_holes() -> SmallModel {
    let mut model = words();
    model.name = "holes";
    model.graph.input[2] = port("table", Dtype::Fp32, &["12", "4"]);
    let (_, shape, table) = &mut model.weights[0];
    let car = table.split_off(12);
    table.extend([0.0; 24]);
    table.extend(car);
    table.extend([0.0; 8]);
    *shape = [12, 4];
    model.tokenizer = model.tokenizer.map(|text| text.replace("\"car\":3", "\"car\":9"));
    model
}

/// Word `i` of the vocabulary `[UNK] cat dog car` has the vector with 1 at `i` and 0.5 elsewhere;
/// a text is the mean of its words.
pub fn words() -> SmallModel {
    let table = (0..4).flat_map(|i| (0..4).map(move |j| if i == j { 1.0 } else { 0.5 })).collect();
    let inputs = vec![
        port("input_ids", Dtype::Int64, &["1", "seq"]),
        port("attention_mask", Dtype::Int64, &["1", "seq"]),
        port("table", Dtype::Fp32, &["4", "4"]),
    ];
    let mut cast = node("Cast", &["attention_mask"], "mask");
    cast.attribute.push(AttributeProto {
        name: "to".to_string(),
        r#type: AttributeType::Int as i32,
        i: 1,
        ..AttributeProto::default()
    });
    let mut axes = node("Constant", &[], "axes");
    axes.attribute.push(AttributeProto {
        name: "value_ints".to_string(),
        r#type: AttributeType::Ints as i32,
        ints: vec![-1],
        ..AttributeProto::default()
    });
    let nodes = vec![
        node("Gather", &["table", "input_ids"], "rows"),
        cast,
        axes,
        node("Unsqueeze", &["mask", "axes"], "column"),
        node("Mul", &["rows", "column"], "hidden"),
    ];
    let tokenizer = r#"{"version":"1.0","truncation":{"direction":"Right","max_length":6,
        "strategy":"LongestFirst","stride":0},"padding":{"strategy":{"Fixed":6},
        "direction":"Right","pad_to_multiple_of":null,"pad_id":0,"pad_type_id":0,
        "pad_token":"[UNK]"},"added_tokens":[],"normalizer":null,
        "pre_tokenizer":{"type":"Whitespace"},"post_processor":null,"decoder":null,
        "model":{"type":"WordLevel","vocab":{"[UNK]":0,"cat":1,"dog":2,"car":3},
        "unk_token":"[UNK]"}}"#;
    SmallModel {
        name: "words",
        graph: graph_of(inputs, nodes, vec![output("hidden", Dtype::Fp32)]),
        weights: vec![("table", [4, 4], table)],
        tokenizer: Some(tokenizer.to_string()),
        task: Some(Task::Embedding { output: "hidden".to_string(), pooling: Pooling::Mean }),
    }
}
