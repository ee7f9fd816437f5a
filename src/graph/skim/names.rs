//! A name of its own for each node, which ONNX does not ask for and tract does.

use super::OnnxWeight;
use std::collections::{HashMap, HashSet};
use tract_onnx::pb::GraphProto;

/// Numbers the nodes of a graph, and of the graphs of its nodes, whose name another node or tensor
/// has already; `weights` are to be inputs. One without a name is called as its first output is.
pub fn tell_apart(graph: &mut GraphProto, weights: &[OnnxWeight]) {
    let tensors = graph.initializer.iter().map(|tensor| &tensor.name);
    let inputs = graph.input.iter().map(|input| &input.name);
    let weights = weights.iter().map(|weight| &weight.name);
    let mut taken: HashSet<String> = tensors.chain(inputs).chain(weights).cloned().collect();
    let mut counts: HashMap<String, usize> = HashMap::new();
    for node in &mut graph.node {
        let label = match (node.name.is_empty(), node.output.first()) {
            (true, Some(output)) => output.clone(),
            _ => node.name.clone(),
        };
        if !label.is_empty() && !taken.insert(label.clone()) {
            let count = counts.entry(label.clone()).or_insert(0);
            while {
                *count += 1;
                node.name = format!("{label}/{count}");
                !taken.insert(node.name.clone())
            } {}
        }
        for attribute in &mut node.attribute {
            attribute.g.iter_mut().chain(&mut attribute.graphs).for_each(|g| tell_apart(g, &[]));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tract_onnx::pb::{NodeProto, ValueInfoProto};

    #[test]
    fn names_that_are_taken_are_numbered() {
        let node = |(name, output): (&str, &str)| NodeProto {
            name: name.to_string(),
            output: vec![output.to_string()],
            ..NodeProto::default()
        };
        let names =
            [("a", "p"), ("a", "q"), ("", "a"), ("x", "r"), ("a/3", "s"), ("a", "t"), ("", "u")];
        let mut graph = GraphProto {
            node: names.map(node).to_vec(),
            input: vec![ValueInfoProto { name: "x".to_string(), ..ValueInfoProto::default() }],
            ..GraphProto::default()
        };
        tell_apart(&mut graph, &[]);
        let found: Vec<&str> = graph.node.iter().map(|node| node.name.as_str()).collect();
        assert_eq!(found, ["a", "a/1", "a/2", "x/1", "a/3", "a/4", ""]);
    }
}
