//! Nodes that take the place of one.

use tract_onnx::pb::attribute_proto::AttributeType;
use tract_onnx::pb::tensor_proto::DataType;
use tract_onnx::pb::{AttributeProto, NodeProto, TensorProto};

/// Gathers nodes whose names begin with that of the node they replace.
pub struct Replacement {
    opset: i64,
    base: String,
    nodes: Vec<NodeProto>,
}

impl Replacement {
    pub fn of(node: &NodeProto, opset: i64) -> Replacement {
        // Outputs are unique in a graph, names of nodes need not be there.
        let output = node.output.iter().find(|name| !name.is_empty());
        let base = if node.name.is_empty() { output } else { Some(&node.name) };
        Replacement { opset, base: base.cloned().unwrap_or_default(), nodes: vec![] }
    }

    /// The version of ONNX's operators.
    pub fn opset(&self) -> i64 {
        self.opset
    }

    /// Adds a node; the name of its output.
    pub fn node(&mut self, op: &str, inputs: &[&str]) -> String {
        self.node_with(op, inputs, vec![])
    }

    pub fn node_with(
        &mut self,
        op: &str,
        inputs: &[&str],
        attribute: Vec<AttributeProto>,
    ) -> String {
        let output = format!("{}/{op}.{}", self.base, self.nodes.len());
        self.nodes.push(NodeProto {
            name: output.clone(),
            op_type: op.to_string(),
            input: inputs.iter().map(|name| name.to_string()).collect(),
            output: vec![output.clone()],
            attribute,
            ..Default::default()
        });
        output
    }

    /// Adds a copy of a node with these inputs and as many outputs; their names.
    pub fn copy(&mut self, node: &NodeProto, inputs: Vec<String>) -> Vec<String> {
        let base = format!("{}/{}.{}", self.base, node.op_type, self.nodes.len());
        let name = |(at, name): (usize, &String)| {
            if name.is_empty() { String::new() } else { format!("{base}.{at}") }
        };
        let outputs: Vec<String> = node.output.iter().enumerate().map(name).collect();
        let copy = NodeProto { input: inputs, output: outputs.clone(), ..node.clone() };
        self.nodes.push(NodeProto { name: base, ..copy });
        outputs
    }

    /// The copied node that was added last.
    pub fn last(&mut self) -> &mut NodeProto {
        self.nodes.last_mut().expect("a node was added")
    }

    /// Calls `from`, which a node of the draft makes, `to` from now on.
    pub fn give(&mut self, from: &str, to: &str) {
        let names = self.nodes.iter_mut().flat_map(|n| n.input.iter_mut().chain(&mut n.output));
        for name in names.filter(|name| *name == from) {
            *name = to.to_string();
        }
    }

    pub fn finish(self) -> Vec<NodeProto> {
        self.nodes
    }

    /// The draft, whose node `from` makes what the replaced one made as its first output.
    pub fn finish_as(mut self, from: &str, node: &NodeProto) -> Vec<NodeProto> {
        self.give(from, &node.output[0]);
        self.nodes
    }

    pub fn ints(&mut self, values: &[i64]) -> String {
        self.constant(DataType::Int64, vec![values.len() as i64], |tensor| {
            tensor.int64_data = values.to_vec();
        })
    }

    pub fn int(&mut self, value: i64) -> String {
        self.constant(DataType::Int64, vec![], |tensor| tensor.int64_data = vec![value])
    }

    pub fn float(&mut self, value: f32) -> String {
        self.constant(DataType::Float, vec![], |tensor| tensor.float_data = vec![value])
    }

    /// The value in the element type of `like`.
    pub fn float_like(&mut self, value: f32, like: &str) -> String {
        let value = self.float(value);
        self.node("CastLike", &[&value, like])
    }

    fn constant(
        &mut self,
        kind: DataType,
        dims: Vec<i64>,
        fill: impl FnOnce(&mut TensorProto),
    ) -> String {
        let mut tensor = TensorProto { data_type: kind as i32, dims, ..Default::default() };
        fill(&mut tensor);
        let value = AttributeProto {
            name: "value".to_string(),
            r#type: AttributeType::Tensor as i32,
            t: Some(tensor),
            ..Default::default()
        };
        self.node_with("Constant", &[], vec![value])
    }

    pub fn transpose(&mut self, x: &str, perm: &[i64]) -> String {
        self.node_with("Transpose", &[x], vec![ints("perm", perm)])
    }

    pub fn concat(&mut self, parts: &[&str], axis: i64) -> String {
        self.node_with("Concat", parts, vec![int("axis", axis)])
    }

    pub fn unsqueeze(&mut self, x: &str, axes: &[i64]) -> String {
        if self.opset < 13 {
            return self.node_with("Unsqueeze", &[x], vec![ints("axes", axes)]);
        }
        let axes = self.ints(axes);
        self.node("Unsqueeze", &[x, &axes])
    }

    pub fn squeeze(&mut self, x: &str, axes: &[i64]) -> String {
        if self.opset < 13 {
            return self.node_with("Squeeze", &[x], vec![ints("axes", axes)]);
        }
        let axes = self.ints(axes);
        self.node("Squeeze", &[x, &axes])
    }

    /// Elements `start..end` along an axis.
    pub fn slice(&mut self, x: &str, axis: i64, start: i64, end: i64) -> String {
        if self.opset < 10 {
            let attributes = [("axes", axis), ("starts", start), ("ends", end)];
            let attributes = attributes.map(|(name, value)| ints(name, &[value]));
            return self.node_with("Slice", &[x], attributes.to_vec());
        }
        let [start, end, axis] = [start, end, axis].map(|value| self.ints(&[value]));
        self.node("Slice", &[x, &start, &end, &axis])
    }

    pub fn reshape(&mut self, x: &str, shape: &[i64]) -> String {
        let shape = self.ints(shape);
        self.node("Reshape", &[x, &shape])
    }

    /// The size of an axis, as a list of one.
    pub fn size(&mut self, x: &str, axis: i64) -> String {
        let shape = self.node("Shape", &[x]);
        let axis = self.ints(&[axis]);
        self.node_with("Gather", &[&shape, &axis], vec![int("axis", 0)])
    }

    /// The size of an axis, as a scalar.
    pub fn length(&mut self, x: &str, axis: i64) -> String {
        let shape = self.node("Shape", &[x]);
        let axis = self.int(axis);
        self.node_with("Gather", &[&shape, &axis], vec![int("axis", 0)])
    }

    pub fn cast(&mut self, x: &str, kind: DataType) -> String {
        self.node_with("Cast", &[x], vec![int("to", kind as i64)])
    }
}

pub fn int(name: &str, value: i64) -> AttributeProto {
    AttributeProto {
        name: name.to_string(),
        r#type: AttributeType::Int as i32,
        i: value,
        ..Default::default()
    }
}

pub fn ints(name: &str, values: &[i64]) -> AttributeProto {
    AttributeProto {
        name: name.to_string(),
        r#type: AttributeType::Ints as i32,
        ints: values.to_vec(),
        ..Default::default()
    }
}

pub fn string(name: &str, value: &str) -> AttributeProto {
    AttributeProto {
        name: name.to_string(),
        r#type: AttributeType::String as i32,
        s: value.as_bytes().to_vec(),
        ..Default::default()
    }
}
