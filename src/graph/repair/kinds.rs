//! The element types of a graph's tensors, as far as they can be seen without tract.

use super::{attribute, int};
use std::collections::HashMap;
use tract_onnx::pb::tensor_proto::DataType;
use tract_onnx::pb::tensor_shape_proto::dimension;
use tract_onnx::pb::type_proto::{self, Tensor};
use tract_onnx::pb::{GraphProto, NodeProto, TensorProto, ValueInfoProto};

/// What makes each tensor of a graph.
pub struct Kinds<'a> {
    made: HashMap<&'a str, Maker<'a>>,
}

#[derive(Clone, Copy)]
enum Maker<'a> {
    Input(&'a Tensor),
    Tensor(&'a TensorProto),
    Node(&'a NodeProto),
}

/// A chain of nodes longer than this is given up.
const LONGEST_CHAIN: usize = 1000;

impl<'a> Kinds<'a> {
    pub fn of(graph: &'a GraphProto) -> Kinds<'a> {
        let mut made = HashMap::new();
        for info in &graph.input {
            made.extend(tensor_of(info).map(|t| (info.name.as_str(), Maker::Input(t))));
        }
        for tensor in &graph.initializer {
            made.insert(tensor.name.as_str(), Maker::Tensor(tensor));
        }
        for node in &graph.node {
            made.extend(node.output.iter().map(|name| (name.as_str(), Maker::Node(node))));
        }
        Kinds { made }
    }

    /// The element type of a tensor, in ONNX's numbers.
    pub fn kind(&self, name: &str) -> Option<DataType> {
        let mut name = name;
        for _ in 0..LONGEST_CHAIN {
            let code = match *self.made.get(name)? {
                Maker::Input(tensor) => tensor.elem_type,
                Maker::Tensor(tensor) => tensor.data_type,
                Maker::Node(node) => match kind_of(node) {
                    Kind::Is(code) => code,
                    Kind::Input(at) => {
                        name = node.input.get(at)?;
                        continue;
                    }
                },
            };
            return DataType::try_from(code).ok();
        }
        None
    }

    /// The rank of a tensor that the graph declares.
    pub fn rank(&self, name: &str) -> Option<usize> {
        self.dims(name).map(|dims| dims.len())
    }

    /// Sizes of a declared tensor; `None` where an axis is open.
    pub fn dims(&self, name: &str) -> Option<Vec<Option<i64>>> {
        match self.made.get(name)? {
            Maker::Input(tensor) => {
                let size = |dim: &tract_onnx::pb::tensor_shape_proto::Dimension| match dim.value {
                    Some(dimension::Value::DimValue(size)) => Some(size),
                    _ => None,
                };
                Some(tensor.shape.as_ref()?.dim.iter().map(size).collect())
            }
            Maker::Tensor(tensor) => Some(tensor.dims.iter().copied().map(Some).collect()),
            Maker::Node(_) => None,
        }
    }

    /// The values of a constant of f32, where the graph has it as one.
    pub fn floats(&self, name: &str) -> Option<Vec<f32>> {
        let tensor = match *self.made.get(name)? {
            Maker::Tensor(tensor) => tensor,
            Maker::Node(node) if node.op_type == "Constant" => {
                attribute(node, "value")?.t.as_ref()?
            }
            Maker::Input(_) | Maker::Node(_) => return None,
        };
        if tensor.data_type() != DataType::Float {
            return None;
        }
        let (bytes, _) = tensor.raw_data.as_chunks::<4>();
        let raw = bytes.iter().map(|bytes| f32::from_le_bytes(*bytes));
        Some(raw.chain(tensor.float_data.iter().copied()).collect())
    }
}

fn tensor_of(info: &ValueInfoProto) -> Option<&Tensor> {
    let type_proto::Value::TensorType(tensor) = info.r#type.as_ref()?.value.as_ref()?;
    Some(tensor)
}

enum Kind {
    Is(i32),
    Input(usize),
}

/// Most operators keep the type of their first input.
fn kind_of(node: &NodeProto) -> Kind {
    match node.op_type.as_str() {
        "And" | "Or" | "Xor" | "Not" | "Equal" | "Greater" | "GreaterOrEqual" | "Less"
        | "LessOrEqual" | "IsNaN" | "IsInf" => Kind::Is(DataType::Bool as i32),
        "Shape" | "Size" | "NonZero" | "ArgMax" | "ArgMin" => Kind::Is(DataType::Int64 as i32),
        "Cast" => Kind::Is(int(node, "to", 0) as i32),
        "Constant" | "ConstantOfShape" => Kind::Is(constant_kind(node) as i32),
        "CastLike" | "Where" => Kind::Input(1),
        "OneHot" => Kind::Input(2),
        "DequantizeLinear" => Kind::Is(DataType::Float as i32),
        "QuantizeLinear" if node.input.len() > 2 => Kind::Input(2),
        "QuantizeLinear" => Kind::Is(DataType::Uint8 as i32),
        "MatMulInteger" | "ConvInteger" => Kind::Is(DataType::Int32 as i32),
        "If" | "Loop" | "Scan" => Kind::Is(DataType::Undefined as i32),
        _ => Kind::Input(0),
    }
}

fn constant_kind(node: &NodeProto) -> DataType {
    let tensor = attribute(node, "value").and_then(|value| value.t.as_ref());
    let has = |name: &str| attribute(node, name).is_some();
    match tensor {
        Some(tensor) => DataType::try_from(tensor.data_type).unwrap_or(DataType::Undefined),
        None if has("value_int") || has("value_ints") => DataType::Int64,
        None if has("value_string") || has("value_strings") => DataType::String,
        None => DataType::Float,
    }
}
