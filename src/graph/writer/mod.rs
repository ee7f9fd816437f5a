//! A builder of ONNX graphs that names nodes and values as PyTorch's TorchScript exporter does.
//!
//! A [`Scope`] is a module's path. A node is called by its scope, its operator and a number where
//! there were others of the kind, `/encoder/layer.0/attention/self/Reshape_1`; its output has
//! `_output_0` behind. Weights are declared here with where their elements come from, a `T` that is
//! the caller's; no element exists yet.

mod scope;

use super::attention::{DOMAIN, DOMAIN_VERSION};
use std::collections::HashMap;
use tract_onnx::pb::attribute_proto::AttributeType;
use tract_onnx::pb::tensor_shape_proto::{Dimension, dimension};
use tract_onnx::pb::{
    AttributeProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, TensorProto,
    TensorShapeProto, TypeProto, ValueInfoProto, type_proto,
};

pub use scope::{Part, Scope};
pub use tract_onnx::pb::tensor_proto::DataType;

/// IR version that goes with the operators that are written.
const IR_VERSION: i64 = 10;

/// Name of a value: an input, an initializer or the output of a node.
pub type Value = String;

/// An initializer.
#[derive(Clone, Debug)]
pub struct Weight<T> {
    /// Name in the graph.
    pub name: String,
    /// Shape.
    pub dims: Vec<u64>,
    /// Where its elements come from.
    pub content: T,
}

impl<T> Weight<T> {
    /// Number of elements.
    pub fn elements(&self) -> u64 {
        self.dims.iter().product()
    }
}

/// One dimension of an input or output.
#[derive(Clone, Copy, Debug)]
pub enum Dim<'a> {
    /// A size.
    Is(u64),
    /// A symbol that each run chooses.
    Any(&'a str),
}

/// A graph under construction.
pub struct Graph<T> {
    /// Nodes, in the order of a run.
    pub nodes: Vec<NodeProto>,
    /// Inputs that a run feeds.
    pub inputs: Vec<ValueInfoProto>,
    /// Outputs.
    pub outputs: Vec<ValueInfoProto>,
    /// Initializers, in the order in which they were declared.
    pub weights: Vec<Weight<T>>,
    names: HashMap<String, u64>,
}

impl<T> Default for Graph<T> {
    fn default() -> Graph<T> {
        let names = HashMap::new();
        Graph { nodes: vec![], inputs: vec![], outputs: vec![], weights: vec![], names }
    }
}

impl<T> Graph<T> {
    /// Declare an input.
    pub fn input(&mut self, name: &str, dtype: DataType, dims: &[Dim]) {
        self.inputs.push(port(name, dtype, dims));
    }

    /// Declare a float32 output under `name`, which the value `from` takes on.
    pub fn output(&mut self, from: &str, name: &str, dims: &[Dim]) {
        for node in &mut self.nodes {
            for value in node.input.iter_mut().chain(&mut node.output) {
                if value == from {
                    *value = name.to_string();
                }
            }
        }
        self.outputs.push(port(name, DataType::Float, dims));
    }

    /// Transpose a matrix that has another use too, as the exporter writes tied weights.
    pub fn transpose_tied(&mut self, matrix: &str) -> Value {
        let output = format!("{matrix}_transposed");
        self.nodes.push(NodeProto {
            input: vec![matrix.to_string()],
            output: vec![output.clone()],
            name: format!("Transpose_{}", self.nodes.len()),
            op_type: "Transpose".to_string(),
            ..Default::default()
        });
        output
    }

    /// The scope of the whole model.
    pub fn root(&mut self) -> Scope<'_, T> {
        Scope::root(self)
    }

    /// Declare an initializer.
    pub fn weight(&mut self, name: &str, dims: &[u64], content: T) -> Value {
        self.weights.push(Weight { name: name.to_string(), dims: dims.to_vec(), content });
        name.to_string()
    }

    /// The model without its initializers, by the operators of version `opset`.
    pub fn proto(&self, producer: &str, opset: i64) -> ModelProto {
        let graph = GraphProto {
            name: "main_graph".to_string(),
            node: self.nodes.clone(),
            input: self.inputs.clone(),
            output: self.outputs.clone(),
            ..GraphProto::default()
        };
        let of = |domain: &str, version| OperatorSetIdProto { domain: domain.to_string(), version };
        let has_own = self.nodes.iter().any(|node| node.domain == DOMAIN);
        let own = has_own.then(|| of(DOMAIN, DOMAIN_VERSION));
        ModelProto {
            ir_version: IR_VERSION,
            producer_name: producer.to_string(),
            producer_version: env!("CARGO_PKG_VERSION").to_string(),
            opset_import: [of("", opset)].into_iter().chain(own).collect(),
            graph: Some(graph),
            ..ModelProto::default()
        }
    }

    fn unique(&mut self, name: String) -> String {
        let count = self.names.entry(name.clone()).or_insert(0);
        *count += 1;
        match *count - 1 {
            0 => name,
            n => format!("{name}_{n}"),
        }
    }
}

/// An integer attribute.
pub fn int(name: &str, value: i64) -> AttributeProto {
    AttributeProto { i: value, ..attribute(name, AttributeType::Int) }
}

/// A list of integers as an attribute.
pub fn ints(name: &str, values: &[i64]) -> AttributeProto {
    AttributeProto { ints: values.to_vec(), ..attribute(name, AttributeType::Ints) }
}

/// A float attribute.
pub fn float(name: &str, value: f32) -> AttributeProto {
    AttributeProto { f: value, ..attribute(name, AttributeType::Float) }
}

/// A text as an attribute.
pub fn text(name: &str, value: &str) -> AttributeProto {
    AttributeProto { s: value.as_bytes().to_vec(), ..attribute(name, AttributeType::String) }
}

/// A tensor attribute.
pub fn tensor_attribute(name: &str, value: TensorProto) -> AttributeProto {
    AttributeProto { t: Some(value), ..attribute(name, AttributeType::Tensor) }
}

fn attribute(name: &str, kind: AttributeType) -> AttributeProto {
    AttributeProto { name: name.to_string(), r#type: kind as i32, ..Default::default() }
}

/// An int64 tensor.
pub fn int_tensor(dims: &[i64], values: &[i64]) -> TensorProto {
    let raw = values.iter().flat_map(|v| v.to_le_bytes()).collect();
    raw_tensor(DataType::Int64, dims, raw)
}

/// A bool tensor of one element.
pub fn bool_tensor(value: bool) -> TensorProto {
    raw_tensor(DataType::Bool, &[1], vec![u8::from(value)])
}

/// A float32 tensor.
pub fn float_tensor(dims: &[i64], values: &[f32]) -> TensorProto {
    let raw = values.iter().flat_map(|v| v.to_le_bytes()).collect();
    raw_tensor(DataType::Float, dims, raw)
}

fn raw_tensor(dtype: DataType, dims: &[i64], raw_data: Vec<u8>) -> TensorProto {
    TensorProto { dims: dims.to_vec(), data_type: dtype as i32, raw_data, ..Default::default() }
}

fn port(name: &str, dtype: DataType, dims: &[Dim]) -> ValueInfoProto {
    let dim = dims
        .iter()
        .map(|dim| Dimension {
            value: Some(match dim {
                Dim::Is(size) => dimension::Value::DimValue(*size as i64),
                Dim::Any(symbol) => dimension::Value::DimParam(symbol.to_string()),
            }),
            ..Default::default()
        })
        .collect();
    let shape = Some(TensorShapeProto { dim });
    let tensor = type_proto::Tensor { elem_type: dtype as i32, shape };
    let value = Some(type_proto::Value::TensorType(tensor));
    ValueInfoProto {
        name: name.to_string(),
        r#type: Some(TypeProto { value, ..Default::default() }),
        ..Default::default()
    }
}
