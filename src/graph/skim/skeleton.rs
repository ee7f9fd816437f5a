//! The skeleton: what the walk kept, with the weights as inputs and a name for each open dimension.

use super::OnnxWeight;
use super::tensor::onnx_of_dtype;
use crate::graph::dims::name_dims;
use prost::Message;
use prost::encoding::{WireType, encode_key, encode_varint};
use std::collections::HashSet;
use tract_onnx::pb;
use tract_onnx::pb::tensor_shape_proto::{Dimension, dimension};
use tract_onnx::pb::type_proto;

/// A finished skeleton and what it says of itself.
pub struct Finished {
    pub bytes: Vec<u8>,
    pub producer: String,
    pub opset: i64,
}

fn encode_message(out: &mut Vec<u8>, number: u32, body: &[u8]) {
    encode_key(number, WireType::LengthDelimited, out);
    encode_varint(body.len() as u64, out);
    out.extend(body);
}

/// Joins the kept fields.
pub fn join(mut model: Vec<u8>, graph: &[u8]) -> Result<pb::ModelProto, String> {
    encode_message(&mut model, super::field::MODEL_GRAPH as u32, graph);
    pb::ModelProto::decode(&*model).map_err(|error| error.to_string())
}

/// Declares the weights and fixes what has to be.
pub fn finish(mut proto: pb::ModelProto, weights: &[OnnxWeight]) -> Result<Finished, String> {
    let graph = proto.graph.as_mut().ok_or("it holds no graph")?;
    let taken: HashSet<&str> = weights.iter().map(|weight| weight.name.as_str()).collect();
    if taken.len() != weights.len() {
        return Err("two tensors of one name".to_string());
    }
    graph.input.retain(|input| !taken.contains(input.name.as_str()));
    let initialized: HashSet<&str> = graph.initializer.iter().map(|t| t.name.as_str()).collect();
    graph.input.retain(|input| !initialized.contains(input.name.as_str()));
    name_dims(&mut graph.input);
    for output in &mut graph.output {
        if let Some(tensor) = tensor_type(output) {
            tensor.shape = None;
        }
    }
    graph.input.extend(weights.iter().map(declare));
    let opset = proto
        .opset_import
        .iter()
        .find(|import| import.domain.is_empty() || import.domain == "ai.onnx")
        .map_or(0, |import| import.version);
    let producer = format!("{} {}", proto.producer_name, proto.producer_version);
    let producer = producer.trim().to_string();
    Ok(Finished { bytes: proto.encode_to_vec(), producer, opset })
}

fn tensor_type(info: &mut pb::ValueInfoProto) -> Option<&mut type_proto::Tensor> {
    let type_proto::Value::TensorType(tensor) = info.r#type.as_mut()?.value.as_mut()?;
    Some(tensor)
}

fn declare(weight: &OnnxWeight) -> pb::ValueInfoProto {
    let dim = |size: &u64| Dimension {
        denotation: String::new(),
        value: Some(dimension::Value::DimValue(*size as i64)),
    };
    let tensor = type_proto::Tensor {
        elem_type: onnx_of_dtype(weight.dtype),
        shape: Some(pb::TensorShapeProto { dim: weight.shape.iter().map(dim).collect() }),
    };
    pb::ValueInfoProto {
        name: weight.name.clone(),
        r#type: Some(pb::TypeProto {
            denotation: String::new(),
            value: Some(type_proto::Value::TensorType(tensor)),
        }),
        doc_string: String::new(),
    }
}
