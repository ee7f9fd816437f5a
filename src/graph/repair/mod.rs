//! Rewrites of ONNX nodes that tract would compute wrongly, or not at all, into others that it
//! computes rightly.
//!
//! Each file has one rewrite. They are applied whenever a skeleton is imported, so that the
//! sharder and the daemon see the same graph; what is refused was refused by `vet` before. `typed`
//! does the same for what only shows in tract's own form of the graph.

mod attention;
mod conv_transpose;
mod dft;
mod draft;
mod dynamic_quantize;
mod einsum;
mod elementwise;
mod extremes;
mod gemm;
mod grid_sample;
mod kinds;
mod log_sum_exp;
mod loss;
mod lp_pool;
mod mean;
mod mean_variance;
mod numbers;
mod pad;
mod recurrent;
mod resize;
mod rotary;
mod space_to_depth;
mod sums;
mod suppression;
#[cfg(test)]
mod tests;
mod tidy;
mod trees;
mod two_classes;
pub mod typed;

use super::check::unsupported;
use super::error::GraphError;
use draft::Replacement;
use kinds::Kinds;
use tract_onnx::pb::{AttributeProto, GraphProto, ModelProto, NodeProto};

/// Rewrites one node: `None` leaves it as it is, an error says why it cannot be run.
type Rewrite = fn(&NodeProto, &Kinds, Replacement) -> Result<Option<Vec<NodeProto>>, String>;

const REWRITES: &[(&str, Rewrite)] = &[
    ("Attention", attention::attention),
    ("Celu", elementwise::celu),
    ("ConvTranspose", conv_transpose::conv_transpose),
    ("DFT", dft::dft),
    ("DynamicQuantizeLinear", dynamic_quantize::dynamic_quantize),
    ("Einsum", einsum::einsum),
    ("GRU", recurrent::recurrent),
    ("Gemm", gemm::gemm),
    ("GlobalLpPool", lp_pool::global_lp_pool),
    ("GridSample", grid_sample::grid_sample),
    ("LSTM", recurrent::recurrent),
    ("LinearClassifier", two_classes::linear),
    ("Mean", mean::mean),
    ("MeanVarianceNormalization", mean_variance::mean_variance),
    ("MultiHeadAttention", attention::multi_head),
    ("NegativeLogLikelihoodLoss", loss::negative_log_likelihood),
    ("NonMaxSuppression", suppression::non_max_suppression),
    ("Pad", pad::pad),
    ("RNN", recurrent::recurrent),
    ("ReduceLogSumExp", log_sum_exp::log_sum_exp),
    ("Resize", resize::resize),
    ("RotaryEmbedding", rotary::rotary),
    ("SoftmaxCrossEntropyLoss", loss::softmax_cross_entropy),
    ("Softplus", elementwise::softplus),
    ("SpaceToDepth", space_to_depth::space_to_depth),
    ("Sum", mean::mean),
    ("Swish", elementwise::swish),
    ("TreeEnsembleClassifier", trees::classifier),
];

/// Operators that are rewritten, at least as some attributes have it.
#[cfg(test)]
pub fn operators() -> impl Iterator<Item = &'static str> {
    REWRITES.iter().map(|(op, _)| *op)
}

/// Rewrites the model's graphs in place.
pub fn repair(model: &mut ModelProto) -> Result<(), GraphError> {
    let opset = model.opset_import.iter().find(|i| i.domain.is_empty() || i.domain == "ai.onnx");
    let opset = opset.map_or(1, |import| import.version);
    match &mut model.graph {
        Some(graph) => repair_graph(graph, opset),
        None => Ok(()),
    }
}

fn repair_graph(graph: &mut GraphProto, opset: i64) -> Result<(), GraphError> {
    for node in &mut graph.node {
        tidy::tidy(node);
        for attribute in &mut node.attribute {
            for body in attribute.g.iter_mut().chain(&mut attribute.graphs) {
                repair_graph(body, opset)?;
            }
        }
    }
    let mut rewritten = vec![];
    let kinds = Kinds::of(graph);
    for (index, node) in graph.node.iter().enumerate() {
        let Some((_, rewrite)) = REWRITES.iter().find(|(op, _)| *op == node.op_type) else {
            continue;
        };
        let nodes = rewrite(node, &kinds, Replacement::of(node, opset));
        rewritten.extend(nodes.map_err(|why| unsupported(node, why))?.map(|nodes| (index, nodes)));
    }
    for (index, nodes) in rewritten.into_iter().rev() {
        graph.node.splice(index..=index, nodes);
    }
    Ok(())
}

/// A node's attribute, where it has it.
pub fn attribute<'a>(node: &'a NodeProto, name: &str) -> Option<&'a AttributeProto> {
    node.attribute.iter().find(|attribute| attribute.name == name)
}

fn int(node: &NodeProto, name: &str, default: i64) -> i64 {
    attribute(node, name).map_or(default, |attribute| attribute.i)
}

fn float(node: &NodeProto, name: &str, default: f32) -> f32 {
    attribute(node, name).map_or(default, |attribute| attribute.f)
}

fn text<'a>(node: &'a NodeProto, name: &str, default: &'a str) -> &'a str {
    let found = attribute(node, name).and_then(|a| str::from_utf8(&a.s).ok());
    found.unwrap_or(default)
}

/// The name of a node's input, where it is given one.
fn input(node: &NodeProto, at: usize) -> Option<&str> {
    node.input.get(at).map(String::as_str).filter(|name| !name.is_empty())
}

/// The name of a node's output, where somebody may want it.
fn output(node: &NodeProto, at: usize) -> Option<&str> {
    node.output.get(at).map(String::as_str).filter(|name| !name.is_empty())
}
