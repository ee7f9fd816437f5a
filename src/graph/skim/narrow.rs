//! Element types that are stored but not computed with: bf16 is held as f32, integers of a few bits
//! as bytes. Values of them may be cast, moved about and dequantized. What else a node would do
//! with them it would do in the wider type, and round or saturate otherwise.

use super::tensor::{ElementType, Files};
use super::{Elements, OnnxWeight, SkimError, node_error};
use crate::store::Dtype;
use std::collections::HashSet;
use tract_onnx::pb::{GraphProto, ModelProto, NodeProto, TensorProto};

/// Operators whose outputs are elements of their first input.
const MOVING: [&str; 13] = [
    "Identity",
    "Reshape",
    "Transpose",
    "Squeeze",
    "Unsqueeze",
    "Flatten",
    "Slice",
    "Split",
    "Gather",
    "GatherND",
    "GatherElements",
    "Expand",
    "Tile",
];

/// Operators that make something else of their first input, exactly.
const READING: [&str; 5] = ["Cast", "CastLike", "DequantizeLinear", "Shape", "Size"];

/// Names of the tensors of a model, but for its weights, that are of such a type.
pub fn names(proto: &ModelProto) -> HashSet<String> {
    let mut found = HashSet::new();
    if let Some(graph) = &proto.graph {
        note(graph, &mut found);
    }
    found
}

fn note(graph: &GraphProto, found: &mut HashSet<String>) {
    found.extend(graph.initializer.iter().filter(|t| is_narrow(t)).map(|t| t.name.clone()));
    for node in &graph.node {
        for attribute in &node.attribute {
            if attribute.t.as_ref().is_some_and(is_narrow) {
                found.extend(node.output.first().cloned());
            }
            attribute.g.iter().chain(&attribute.graphs).for_each(|graph| note(graph, found));
        }
    }
}

fn is_narrow(tensor: &TensorProto) -> bool {
    let element = ElementType::of(u64::from(tensor.data_type.cast_unsigned()));
    element.is_some_and(|element| element.bits < 8 || element.dtype == Dtype::Bf16)
}

/// Refuses nodes that would compute with values of such a type, and outputs of one.
pub fn check(
    proto: &ModelProto,
    weights: &[OnnxWeight],
    mut narrow: HashSet<String>,
    files: &Files,
) -> Result<(), SkimError> {
    let weights = weights.iter().filter(|weight| {
        weight.dtype == Dtype::Bf16 || matches!(weight.elements, Elements::Packed { .. })
    });
    narrow.extend(weights.map(|weight| weight.name.clone()));
    match &proto.graph {
        Some(graph) if !narrow.is_empty() => check_graph(graph, &mut narrow, files),
        _ => Ok(()),
    }
}

fn check_graph(
    graph: &GraphProto,
    narrow: &mut HashSet<String>,
    files: &Files,
) -> Result<(), SkimError> {
    for node in &graph.node {
        check_node(node, narrow, files)?;
        for attribute in &node.attribute {
            for graph in attribute.g.iter().chain(&attribute.graphs) {
                check_graph(graph, narrow, files)?;
            }
        }
    }
    match graph.output.iter().find(|output| narrow.contains(&output.name)) {
        None => Ok(()),
        Some(output) => {
            let node = NodeProto { name: output.name.clone(), ..NodeProto::default() };
            let node = NodeProto { op_type: "output".to_string(), ..node };
            Err(node_error(files, &node, "it is of a type that is only stored".to_string()))
        }
    }
}

fn check_node(
    node: &NodeProto,
    narrow: &mut HashSet<String>,
    files: &Files,
) -> Result<(), SkimError> {
    let op = node.op_type.as_str();
    let is_moving = MOVING.contains(&op);
    for (index, name) in node.input.iter().enumerate().filter(|(_, name)| narrow.contains(*name)) {
        let is_taken = match op {
            "Concat" => node.input.iter().all(|name| narrow.contains(name)),
            // Its scale may not be: it is multiplied with.
            "DequantizeLinear" => index != 1,
            _ => index == 0 && (is_moving || READING.contains(&op)),
        };
        if !is_taken {
            let what = format!(
                "it computes with \"{name}\", which is bf16 or has less than 8 bits; such are only \
                 stored: cast it to float before"
            );
            return Err(node_error(files, node, what));
        }
        if is_moving || op == "Concat" {
            narrow.extend(node.output.iter().cloned());
            break;
        }
    }
    Ok(())
}
