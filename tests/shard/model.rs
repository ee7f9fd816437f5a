//! Models of one product, and what can be wrong with them.

use super::common::small_store::{graph_of, node, output, port};
use hermes::store::Dtype;
use tract_onnx::pb::{
    ModelProto, NodeProto, OperatorSetIdProto, StringStringEntryProto, TensorProto,
};

/// Rows and columns of the weight: 64 KiB, the least that counts as a weight by itself.
pub const SHAPE: [usize; 2] = [64, 256];

/// `y = x W` with `x` of FP32 `[1, seq, 64]`.
pub fn linear() -> ModelProto {
    let inputs = vec![port("x", Dtype::Fp32, &["1", "seq", "64"])];
    let nodes = vec![node("MatMul", &["x", "W"], "y")];
    let mut graph = graph_of(inputs, nodes, vec![output("y", Dtype::Fp32)]);
    let values = (0..SHAPE[0] * SHAPE[1]).map(|i| (i as f32 * 0.37).sin());
    graph.initializer.push(TensorProto {
        name: "W".to_string(),
        data_type: 1,
        dims: SHAPE.map(|size| size as i64).to_vec(),
        raw_data: values.flat_map(f32::to_le_bytes).collect(),
        ..TensorProto::default()
    });
    ModelProto {
        ir_version: 8,
        opset_import: vec![OperatorSetIdProto { domain: String::new(), version: 17 }],
        graph: Some(graph),
        ..ModelProto::default()
    }
}

/// Steps of the first product of [`perceptron`], and of the second.
pub const DEPTHS: [usize; 2] = [128, 256];

/// `y = relu(x W1) W2` with `x` of FP32 `[1, seq, 128]`, `W1` of 128 by 256 and `W2` of 256 by 128.
pub fn perceptron() -> ModelProto {
    let mut model = linear();
    let graph = model.graph.as_mut().unwrap();
    graph.input = vec![port("x", Dtype::Fp32, &["1", "seq", "128"])];
    let nodes = [("MatMul", ["x", "W1"].as_slice(), "h"), ("Relu", &["h"], "r")];
    let nodes = nodes.into_iter().chain([("MatMul", ["r", "W2"].as_slice(), "y")]);
    graph.node = nodes.map(|(op, inputs, output)| node(op, inputs, output)).collect();
    let [first, second] = DEPTHS;
    let weight = |name: &str, shape: [usize; 2], seed: usize| TensorProto {
        name: name.to_string(),
        data_type: 1,
        dims: shape.map(|size| size as i64).to_vec(),
        raw_data: noise(shape[0] * shape[1], seed).flat_map(f32::to_le_bytes).collect(),
        ..TensorProto::default()
    };
    graph.initializer = vec![weight("W1", [first, second], 1), weight("W2", [second, first], 2)];
    model
}

/// Values of both signs and about 0.1, as a normal distribution has them.
pub fn noise(count: usize, seed: usize) -> impl Iterator<Item = f32> {
    let mut state = seed as u64;
    let mut uniform = move || {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1 << 24) as f32 - 0.5
    };
    (0..count).map(move |_| 0.17 * (uniform() + uniform() + uniform() + uniform()))
}

/// The weight of [`linear`].
pub fn weight(model: &mut ModelProto) -> &mut TensorProto {
    &mut model.graph.as_mut().unwrap().initializer[0]
}

/// [`linear`] with one element of its weight replaced.
pub fn linear_with(row: usize, column: usize, value: f32) -> ModelProto {
    let mut model = linear();
    let at = (row * SHAPE[1] + column) * size_of::<f32>();
    weight(&mut model).raw_data[at..at + 4].copy_from_slice(&value.to_le_bytes());
    model
}

/// [`linear`] with one more node behind it.
pub fn linear_then(op: &str, name: &str) -> ModelProto {
    let mut model = linear();
    let graph = model.graph.as_mut().unwrap();
    graph.node.push(NodeProto { name: name.to_string(), ..node(op, &["y"], "z") });
    graph.output = vec![output("z", Dtype::Fp32)];
    model
}

/// [`linear`] with its weight in another file, as `entries` say; gives back the weight's bytes.
pub fn linear_outside(entries: &[(&str, &str)]) -> (ModelProto, Vec<u8>) {
    let mut model = linear();
    let tensor = weight(&mut model);
    let data = std::mem::take(&mut tensor.raw_data);
    tensor.data_location = Some(1);
    tensor.external_data = entries
        .iter()
        .map(|(key, value)| StringStringEntryProto {
            key: key.to_string(),
            value: value.to_string(),
        })
        .collect();
    (model, data)
}
