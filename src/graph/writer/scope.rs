//! Places in a graph under construction, and the operators that are added there.

use super::super::attention::DOMAIN;
use super::{DataType, Graph, Value, float_tensor, int, int_tensor, ints, tensor_attribute};
use tract_onnx::pb::{AttributeProto, NodeProto, TensorProto};

/// One number of a shape that is put together at run time.
#[derive(Clone, Copy)]
pub enum Part<'a> {
    /// A constant; -1 is what is left.
    Is(i64),
    /// A scalar computed in the graph.
    Of(&'a str),
}

/// A place in the module tree where nodes and parameters are added.
pub struct Scope<'g, T> {
    graph: &'g mut Graph<T>,
    path: String,
}

impl<T> Scope<'_, T> {
    pub(super) fn root(graph: &mut Graph<T>) -> Scope<'_, T> {
        Scope { graph, path: String::new() }
    }

    /// The scope of a module below this one.
    pub fn at(&mut self, module: &str) -> Scope<'_, T> {
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

    /// Add a node of an operator that graphs drawn here have for themselves.
    pub fn own(
        &mut self,
        op: &str,
        inputs: &[&str],
        attribute: Vec<AttributeProto>,
        outputs: usize,
    ) -> Vec<Value> {
        let values = self.op_many(op, inputs, attribute, outputs);
        if let Some(node) = self.graph.nodes.last_mut() {
            node.domain = DOMAIN.to_string();
        }
        values
    }

    /// That scope in the place of this one.
    pub fn into_at(mut self, module: &str) -> Self {
        self.path = format!("{}/{module}", self.path);
        self
    }

    /// The graph that it is a place of.
    pub fn graph(&mut self) -> &mut Graph<T> {
        self.graph
    }

    /// A parameter of this module.
    pub fn parameter(&mut self, name: &str, dims: &[u64], content: T) -> Value {
        let path = self.path.trim_start_matches('/').replace('/', ".");
        self.graph.weight(&format!("{path}.{name}"), dims, content)
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
        self.constant(float_tensor(&[], &[value]))
    }

    /// A float32 in a vector of one.
    pub fn constant_float_vector(&mut self, value: f32) -> Value {
        self.constant(float_tensor(&[1], &[value]))
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

    /// Cut an axis into pieces.
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
}
