//! A builder of ONNX graphs that names nodes and values as PyTorch's TorchScript exporter does.
//!
//! A [`Scope`] is a module's path. A node is called by its scope, its operator and a number where
//! there were others of the kind, `/encoder/layer.0/attention/self/Reshape_1`; its output has
//! `_output_0` behind. Weights are declared here with what fills them; no element exists yet.

use std::collections::HashMap;
use tract_onnx::pb::attribute_proto::AttributeType;
use tract_onnx::pb::tensor_proto::DataType;
use tract_onnx::pb::tensor_shape_proto::{Dimension, dimension};
use tract_onnx::pb::{
    AttributeProto, NodeProto, TensorProto, TensorShapeProto, TypeProto, ValueInfoProto, type_proto,
};

/// Name of a value: an input, an initializer or the output of a node.
pub type Value = String;

/// What a tensor is filled with: normal-like numbers.
#[derive(Clone, Copy, Debug)]
pub struct Fill {
    /// Mean of the elements.
    pub mean: f32,
    /// Their standard deviation.
    pub deviation: f32,
}

impl Fill {
    /// Weights of products, embeddings and convolutions.
    pub const WEIGHT: Fill = Fill { mean: 0.0, deviation: 0.02 };
    /// Biases: small but different from each other, or an exporter would merge them.
    pub const BIAS: Fill = Fill { mean: 0.0, deviation: 0.01 };
    /// Scales of a normalization.
    pub const SCALE: Fill = Fill { mean: 1.0, deviation: 0.01 };
}

/// A float32 initializer.
#[derive(Clone, Debug)]
pub struct Tensor {
    /// Name in the graph.
    pub name: String,
    /// Shape.
    pub dims: Vec<u64>,
    /// What its elements are.
    pub fill: Fill,
}

impl Tensor {
    /// Number of elements.
    pub fn elements(&self) -> u64 {
        self.dims.iter().product()
    }

    /// Bytes of the elements.
    pub fn bytes(&self) -> u64 {
        4 * self.elements()
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

/// One number of a shape that is put together at run time.
#[derive(Clone, Copy)]
pub enum Part<'a> {
    /// A constant; -1 is what is left.
    Is(i64),
    /// A scalar computed in the graph.
    Of(&'a str),
}

/// A graph under construction.
#[derive(Default)]
pub struct Graph {
    /// Nodes, in the order of a run.
    pub nodes: Vec<NodeProto>,
    /// Inputs that a run feeds.
    pub inputs: Vec<ValueInfoProto>,
    /// Outputs.
    pub outputs: Vec<ValueInfoProto>,
    /// Weights that keep their parameter's name.
    parameters: Vec<Tensor>,
    /// Weights that the exporter has transposed, which lose it.
    folded: Vec<Tensor>,
    names: HashMap<String, u64>,
}

impl Graph {
    /// Weights in file order: parameters first, then the transposed ones.
    pub fn weights(&self) -> impl Iterator<Item = &Tensor> {
        self.parameters.iter().chain(&self.folded)
    }

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
    pub fn root(&mut self) -> Scope<'_> {
        Scope { graph: self, path: String::new() }
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

/// A place in the module tree where nodes and parameters are added.
pub struct Scope<'g> {
    graph: &'g mut Graph,
    path: String,
}

impl Scope<'_> {
    /// The scope of a module below this one.
    pub fn at(&mut self, module: &str) -> Scope<'_> {
        Scope { path: format!("{}/{module}", self.path), graph: self.graph }
    }

    /// Add a node with one output and no attributes.
    pub fn op(&mut self, op: &str, inputs: &[&str]) -> Value {
        self.op_with(op, inputs, vec![])
    }

    /// Add a node with one output.
    pub fn op_with(&mut self, op: &str, inputs: &[&str], attribute: Vec<AttributeProto>) -> Value {
        let mut outputs = self.op_many(op, inputs, attribute, 1);
        outputs.remove(0)
    }

    fn op_many(
        &mut self,
        op: &str,
        inputs: &[&str],
        attribute: Vec<AttributeProto>,
        outputs: usize,
    ) -> Vec<Value> {
        let name = self.graph.unique(format!("{}/{op}", self.path));
        let output: Vec<Value> = (0..outputs).map(|i| format!("{name}_output_{i}")).collect();
        self.graph.nodes.push(NodeProto {
            input: inputs.iter().map(|i| i.to_string()).collect(),
            output: output.clone(),
            name,
            op_type: op.to_string(),
            attribute,
            ..Default::default()
        });
        output
    }

    /// A parameter of this module.
    pub fn parameter(&mut self, name: &str, dims: &[u64], fill: Fill) -> Value {
        let path = self.path.trim_start_matches('/').replace('/', ".");
        let name = format!("{path}.{name}");
        let tensor = Tensor { name: name.clone(), dims: dims.to_vec(), fill };
        self.graph.parameters.push(tensor);
        name
    }

    /// A product with a weight `[depth, rows]` that the exporter has transposed.
    fn product(&mut self, x: &str, depth: u64, rows: u64) -> Value {
        // Values of the trace are numbered; the number of nodes so far is one nobody else has.
        let name = format!("onnx::MatMul_{}", self.graph.nodes.len());
        let tensor = Tensor { name: name.clone(), dims: vec![depth, rows], fill: Fill::WEIGHT };
        self.graph.folded.push(tensor);
        self.op("MatMul", &[x, &name])
    }

    /// The module `nn.Linear` called `module`.
    pub fn linear(&mut self, module: &str, x: &str, depth: u64, rows: u64) -> Value {
        let mut scope = self.at(module);
        let bias = scope.parameter("bias", &[rows], Fill::BIAS);
        let product = scope.product(x, depth, rows);
        scope.op("Add", &[&bias, &product])
    }

    /// The module `nn.LayerNorm` called `module`.
    pub fn layer_norm(&mut self, module: &str, x: &str, width: u64, epsilon: f32) -> Value {
        let mut scope = self.at(module);
        let scale = scope.parameter("weight", &[width], Fill::SCALE);
        let bias = scope.parameter("bias", &[width], Fill::BIAS);
        let attributes = vec![int("axis", -1), float("epsilon", epsilon)];
        scope.op_with("LayerNormalization", &[x, &scale, &bias], attributes)
    }

    /// The module `nn.Embedding` called `module`.
    pub fn embedding(&mut self, module: &str, ids: &str, rows: u64, width: u64) -> Value {
        let mut scope = self.at(module);
        let table = scope.parameter("weight", &[rows, width], Fill::WEIGHT);
        scope.op("Gather", &[&table, ids])
    }

    /// GELU by its definition, with the error function.
    pub fn gelu(&mut self, module: &str, x: &str) -> Value {
        let mut scope = self.at(module);
        let root = scope.constant_float(std::f32::consts::SQRT_2);
        let scaled = scope.op("Div", &[x, &root]);
        let erf = scope.op("Erf", &[&scaled]);
        let one = scope.constant_float(1.0);
        let shifted = scope.op("Add", &[&erf, &one]);
        let product = scope.op("Mul", &[x, &shifted]);
        let half = scope.constant_float(0.5);
        scope.op("Mul", &[&product, &half])
    }

    /// A constant tensor.
    pub fn constant(&mut self, tensor: TensorProto) -> Value {
        self.op_with("Constant", &[], vec![tensor_attribute("value", tensor)])
    }

    /// A scalar int64.
    pub fn constant_int(&mut self, value: i64) -> Value {
        self.constant(int_tensor(&[], &[value]))
    }

    /// A vector of int64.
    pub fn constant_ints(&mut self, values: &[i64]) -> Value {
        self.constant(int_tensor(&[values.len() as i64], values))
    }

    /// A scalar float32.
    pub fn constant_float(&mut self, value: f32) -> Value {
        self.constant(float_tensor(&[], value))
    }

    /// A float32 in a vector of one.
    pub fn constant_float_vector(&mut self, value: f32) -> Value {
        self.constant(float_tensor(&[1], value))
    }

    /// Convert to another element type.
    pub fn cast(&mut self, x: &str, to: DataType) -> Value {
        self.op_with("Cast", &[x], vec![int("to", to as i64)])
    }

    /// The size of an axis, as a scalar.
    pub fn size(&mut self, x: &str, axis: i64) -> Value {
        let shape = self.op("Shape", &[x]);
        let axis = self.constant_int(axis);
        self.op_with("Gather", &[&shape, &axis], vec![int("axis", 0)])
    }

    /// Insert an axis of size 1.
    pub fn unsqueeze(&mut self, x: &str, axis: i64) -> Value {
        let axis = self.constant_ints(&[axis]);
        self.op("Unsqueeze", &[x, &axis])
    }

    /// Put a shape together.
    pub fn shape(&mut self, parts: &[Part]) -> Value {
        let parts: Vec<Value> = parts
            .iter()
            .map(|part| match part {
                Part::Is(n) => self.constant_ints(&[*n]),
                Part::Of(scalar) => self.unsqueeze(scalar, 0),
            })
            .collect();
        let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
        self.concat(&parts, 0)
    }

    /// Join values along an axis.
    pub fn concat(&mut self, values: &[&str], axis: i64) -> Value {
        self.op_with("Concat", values, vec![int("axis", axis)])
    }

    /// Give `x` the shape that the value `shape` holds.
    pub fn reshape(&mut self, x: &str, shape: &str) -> Value {
        self.op_with("Reshape", &[x, shape], vec![int("allowzero", 0)])
    }

    /// Permute the axes.
    pub fn transpose(&mut self, x: &str, permutation: &[i64]) -> Value {
        self.op_with("Transpose", &[x], vec![ints("perm", permutation)])
    }

    /// Cut the last axis into pieces.
    pub fn split(&mut self, x: &str, sizes: &[i64], axis: i64) -> Vec<Value> {
        let lengths = self.constant_ints(sizes);
        self.op_many("Split", &[x, &lengths], vec![int("axis", axis)], sizes.len())
    }

    /// The last element of a shape, as a scalar: `x.size(-1)` where the rank is not known.
    pub fn last_size(&mut self, x: &str) -> Value {
        let shape = self.op("Shape", &[x]);
        let axes = self.constant_ints(&[0]);
        let start = self.constant_ints(&[-1]);
        let end = self.constant_ints(&[i64::MAX]);
        let last = self.op("Slice", &[&shape, &start, &end, &axes]);
        let axis = self.constant_ints(&[0]);
        self.op("Squeeze", &[&last, &axis])
    }

    /// `x.expand(shape)`, where -1 keeps an axis.
    pub fn expand(&mut self, x: &str, shape: &str) -> Value {
        let flat = self.constant_ints(&[-1]);
        let shape = self.reshape(shape, &flat);
        let rank = self.op("Shape", &[&shape]);
        let one = tensor_attribute("value", int_tensor(&[1], &[1]));
        let ones = self.op_with("ConstantOfShape", &[&rank], vec![one]);
        let minus = self.constant_int(-1);
        let minus = self.op("Mul", &[&ones, &minus]);
        let keep = self.op("Equal", &[&shape, &minus]);
        let shape = self.op("Where", &[&keep, &ones, &shape]);
        self.op("Expand", &[x, &shape])
    }

    /// Products of queries and keys over the square root of the head's width, as
    /// `scaled_dot_product_attention` is exported where the width is traced. Both are scaled by
    /// the fourth root. `permutation` turns `keys` into `[batch, heads, width, tokens]`.
    pub fn scores(&mut self, queries: &str, keys: &str, permutation: &[i64]) -> Value {
        let shape = self.op("Shape", &[queries]);
        let start = self.constant_ints(&[-1]);
        let end = self.constant_ints(&[i64::MAX]);
        let width = self.op("Slice", &[&shape, &start, &end]);
        let width = self.cast(&width, DataType::Float);
        let root = self.op("Sqrt", &[&width]);
        let one = self.constant_float_vector(1.0);
        let scale = self.op("Div", &[&one, &root]);
        let scale = self.cast(&scale, DataType::Float);
        let keys = self.transpose(keys, permutation);
        let root = self.op("Sqrt", &[&scale]);
        let queries = self.op("Mul", &[queries, &root]);
        let root = self.op("Sqrt", &[&scale]);
        let keys = self.op("Mul", &[&keys, &root]);
        self.op("MatMul", &[&queries, &keys])
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

fn float_tensor(dims: &[i64], value: f32) -> TensorProto {
    raw_tensor(DataType::Float, dims, value.to_le_bytes().to_vec())
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
