//! What can be seen to be wrong with a graph before tract looks at it.

use super::bounds;
use super::error::GraphError;
use std::collections::HashSet;
use tract_onnx::pb::{GraphProto, NodeProto};

/// Refuses names that nothing makes, names that two things make, and sizes that no model has.
pub fn check(graph: &GraphProto) -> Result<(), GraphError> {
    let mut outputs = HashSet::new();
    for node in &graph.node {
        let mut names = node.output.iter().filter(|name| !name.is_empty());
        if let Some(name) = names.find(|name| !outputs.insert(name.as_str())) {
            return Err(unsupported(node, format!("something else makes \"{name}\" too")));
        }
    }
    let made = made(graph);
    for node in &graph.node {
        let missing = node.input.iter().find(|name| !made.contains(name.as_str()));
        if let Some(name) = missing {
            return Err(unsupported(node, format!("nothing makes its input \"{name}\"")));
        }
    }
    if let Some((node, why)) = bounds::find(graph) {
        return Err(unsupported(node, why));
    }
    match graph.output.iter().find(|output| !made.contains(output.name.as_str())) {
        Some(output) => {
            Err(GraphError::Refused(format!("nothing makes the output \"{}\"", output.name)))
        }
        None => Ok(()),
    }
}

/// Names of everything there is in the graph; the empty one stands for an input left out.
fn made(graph: &GraphProto) -> HashSet<&str> {
    let inputs = graph.input.iter().map(|input| input.name.as_str());
    let tensors = graph.initializer.iter().map(|tensor| tensor.name.as_str());
    let sparse = graph.sparse_initializer.iter().filter_map(|tensor| tensor.values.as_ref());
    let tensors = tensors.chain(sparse.map(|values| values.name.as_str()));
    let outputs = graph.node.iter().flat_map(|node| &node.output).map(String::as_str);
    inputs.chain(tensors).chain(outputs).chain([""]).collect()
}

/// An error about one node.
pub fn unsupported(node: &NodeProto, why: String) -> GraphError {
    let name = match (node.name.is_empty(), node.output.first()) {
        (true, Some(output)) => output,
        _ => &node.name,
    };
    GraphError::Unsupported { node: name.clone(), op: node.op_type.clone(), why }
}
