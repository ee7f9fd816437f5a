//! The skeleton: what the walk kept, with the weights as inputs and the batch fixed.

use super::WeightSource;
use super::tensor::onnx_of_dtype;
use prost::Message;
use prost::encoding::{WireType, encode_key, encode_varint};
use std::collections::{BTreeMap, BTreeSet, HashSet};
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
pub fn finish(mut proto: pb::ModelProto, weights: &[WeightSource]) -> Result<Finished, String> {
    let graph = proto.graph.as_mut().ok_or("it holds no graph")?;
    let taken: HashSet<&str> = weights.iter().map(|weight| weight.name.as_str()).collect();
    if taken.len() != weights.len() {
        return Err("two tensors of one name".to_string());
    }
    graph.input.retain(|input| !taken.contains(input.name.as_str()));
    fix_batch(graph);
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

/// A request has a batch of 1: a leading dimension that the model leaves open becomes 1, every
/// other open dimension a symbol.
fn fix_batch(graph: &mut pb::GraphProto) {
    let initialized: HashSet<String> = graph.initializer.iter().map(|t| t.name.clone()).collect();
    let mut batch_names = HashSet::new();
    for input in &mut graph.input {
        let Some(dims) = dims_of(input, &initialized) else { continue };
        if let [Dimension { value: Some(dimension::Value::DimParam(name)), .. }, _, ..] = &dims[..]
            && !name.is_empty()
        {
            batch_names.insert(name.clone());
        }
    }
    for input in &mut graph.input {
        let label = identifier(&input.name);
        let Some(dims) = dims_of(input, &initialized) else { continue };
        let rank = dims.len();
        for (axis, dim) in dims.iter_mut().enumerate() {
            let value = match dim.value.take() {
                Some(dimension::Value::DimValue(size)) if size > 0 => {
                    dimension::Value::DimValue(size)
                }
                Some(dimension::Value::DimParam(name)) if batch_names.contains(&name) => {
                    dimension::Value::DimValue(1)
                }
                Some(dimension::Value::DimParam(name)) if !name.is_empty() => {
                    dimension::Value::DimParam(identifier(&name))
                }
                _ if axis == 0 && rank > 1 => dimension::Value::DimValue(1),
                _ => dimension::Value::DimParam(format!("{label}_{axis}")),
            };
            dim.value = Some(value);
        }
    }
}

/// Gives the open dimensions named in `sizes` those sizes, in every input.
///
/// Errors where the skeleton is not one that [`super::skim`] made.
pub fn fix_dims(skeleton: &[u8], sizes: &BTreeMap<String, u64>) -> Result<Vec<u8>, String> {
    let mut proto = pb::ModelProto::decode(skeleton).map_err(|error| error.to_string())?;
    let graph = proto.graph.as_mut().ok_or("it holds no graph")?;
    for input in &mut graph.input {
        for dim in dims_of(input, &HashSet::new()).into_iter().flatten() {
            if let Some(dimension::Value::DimParam(name)) = &dim.value
                && let Some(size) = sizes.get(name)
            {
                dim.value = Some(dimension::Value::DimValue(*size as i64));
            }
        }
    }
    Ok(proto.encode_to_vec())
}

/// Names of the dimensions that the inputs leave open.
///
/// Errors where the skeleton is not one that [`super::skim`] made.
pub fn open_dims(skeleton: &[u8]) -> Result<BTreeSet<String>, String> {
    let mut proto = pb::ModelProto::decode(skeleton).map_err(|error| error.to_string())?;
    let graph = proto.graph.as_mut().ok_or("it holds no graph")?;
    let mut names = BTreeSet::new();
    for input in &mut graph.input {
        for dim in dims_of(input, &HashSet::new()).into_iter().flatten() {
            if let Some(dimension::Value::DimParam(name)) = &dim.value {
                names.insert(name.clone());
            }
        }
    }
    Ok(names)
}

fn tensor_type(info: &mut pb::ValueInfoProto) -> Option<&mut type_proto::Tensor> {
    let type_proto::Value::TensorType(tensor) = info.r#type.as_mut()?.value.as_mut()?;
    Some(tensor)
}

fn dims_of<'a>(
    info: &'a mut pb::ValueInfoProto,
    initialized: &HashSet<String>,
) -> Option<&'a mut Vec<Dimension>> {
    if initialized.contains(&info.name) {
        return None;
    }
    Some(&mut tensor_type(info)?.shape.as_mut()?.dim)
}

/// A name as a symbol: letters, digits and underscores.
fn identifier(name: &str) -> String {
    let mut text: String =
        name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect();
    if !text.starts_with(|c: char| c.is_ascii_alphabetic()) {
        text.insert_str(0, "dim_");
    }
    text
}

fn declare(weight: &WeightSource) -> pb::ValueInfoProto {
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
