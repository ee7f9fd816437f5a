//! Small tensors whose values the graph itself holds.

use super::repair::attribute;
use std::collections::HashMap;
use tract_onnx::pb::{GraphProto, TensorProto};

/// Initializers, and what `Constant` nodes make, by name.
pub fn constants(graph: &GraphProto) -> HashMap<&str, &TensorProto> {
    let nodes = graph.node.iter().filter(|node| node.op_type == "Constant");
    let of_nodes = nodes.filter_map(|node| {
        Some((node.output.first()?.as_str(), attribute(node, "value")?.t.as_ref()?))
    });
    let initializers = graph.initializer.iter().map(|tensor| (tensor.name.as_str(), tensor));
    initializers.chain(of_nodes).collect()
}
