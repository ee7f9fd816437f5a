//! The inputs and outputs of a graph, which tract knows by its own names and ONNX by others.

use super::datum::dtype_of;
use crate::store::manifest::{Dim, Port};
use std::collections::HashSet;
use tract_core::internal::*;
use tract_onnx::pb::{GraphProto, NodeProto};

/// Names of the graph's inputs, in their order.
pub fn input_names(graph: &GraphProto) -> Vec<String> {
    let initialized: HashSet<&str> = graph.initializer.iter().map(|t| t.name.as_str()).collect();
    let inputs = graph.input.iter().filter(|input| !initialized.contains(input.name.as_str()));
    inputs.map(|input| input.name.clone()).collect()
}

/// Has a node make each output: tract forgets the type of an input or a constant that is an output
/// itself.
pub fn make_outputs(graph: &mut GraphProto) {
    let made: HashSet<&str> =
        graph.node.iter().flat_map(|node| &node.output).map(String::as_str).collect();
    let passed: Vec<usize> = (0..graph.output.len())
        .filter(|index| !made.contains(graph.output[*index].name.as_str()))
        .collect();
    for index in passed {
        let made = format!("hermes.output.{index}");
        let name = std::mem::replace(&mut graph.output[index].name, made.clone());
        graph.node.push(NodeProto {
            op_type: "Identity".to_string(),
            name: made.clone(),
            input: vec![name],
            output: vec![made],
            ..NodeProto::default()
        });
    }
}

/// Gives the inputs of a typed model their names again: some of tract's operators that do nothing
/// call their input by their own.
pub fn restore_names(model: &mut TypedModel, names: Vec<String>) {
    for (input, name) in model.inputs.clone().into_iter().zip(names) {
        model.node_mut(input.node).name = name;
    }
}

/// Outlets of a model as the API has them.
pub fn ports(model: &TypedModel, outlets: &[OutletId]) -> TractResult<Vec<Port>> {
    outlets
        .iter()
        .map(|outlet| {
            let fact = model.outlet_fact(*outlet)?;
            let dtype = dtype_of(fact.datum_type)
                .with_context(|| format!("{:?} cannot cross the API", fact.datum_type))?;
            let shape = fact.shape.iter().map(dim_of).collect();
            Ok(Port { name: model.node(outlet.node).name.clone(), dtype, shape })
        })
        .collect()
}

fn dim_of(dim: &TDim) -> Dim {
    match dim.to_i64().ok().and_then(|size| u64::try_from(size).ok()) {
        Some(size) => Dim::Fixed(size),
        None => Dim::Symbol(dim.to_string()),
    }
}
