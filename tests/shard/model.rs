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
