//! The losses of training, which evaluations of a model keep as outputs.

use super::draft::{self, Replacement};
use super::kinds::Kinds;
use super::{attribute, input, output, text};
use tract_onnx::pb::NodeProto;
use tract_onnx::pb::tensor_proto::DataType;

pub fn negative_log_likelihood(
    node: &NodeProto,
    kinds: &Kinds,
    mut draft: Replacement,
) -> Result<Option<Vec<NodeProto>>, String> {
    let loss = loss(node, &node.input[0], kinds, &mut draft)?;
    Ok(Some(draft.finish_as(&loss, node)))
}

pub fn softmax_cross_entropy(
    node: &NodeProto,
    kinds: &Kinds,
    mut draft: Replacement,
) -> Result<Option<Vec<NodeProto>>, String> {
    let logs = log_probabilities(&node.input[0], &mut draft);
    let loss = loss(node, &logs, kinds, &mut draft)?;
    if let Some(wanted) = output(node, 1) {
        draft.give(&logs, wanted);
    }
    Ok(Some(draft.finish_as(&loss, node)))
}

/// Of the classes. Before version 13 of the operators LogSoftmax took all axes from the one it was
/// given on.
fn log_probabilities(x: &str, draft: &mut Replacement) -> String {
    if draft.opset() >= 13 {
        return draft.node_with("LogSoftmax", &[x], vec![draft::int("axis", 1)]);
    }
    let classes = || vec![draft::ints("axes", &[1])];
    let largest = draft.node_with("ReduceMax", &[x], classes());
    let shifted = draft.node("Sub", &[x, &largest]);
    let raised = draft.node("Exp", &[&shifted]);
    let log = draft.node_with("ReduceLogSum", &[&raised], classes());
    draft.node("Sub", &[&shifted, &log])
}

/// Minus the log probability of each label, weighted by its class.
fn loss(
    node: &NodeProto,
    logs: &str,
    kinds: &Kinds,
    draft: &mut Replacement,
) -> Result<String, String> {
    let mut labels = node.input[1].clone();
    if kinds.kind(&labels) != Some(DataType::Int64) {
        labels = draft.cast(&labels, DataType::Int64);
    }
    let mut ignored = None;
    if let Some(class) = attribute(node, "ignore_index") {
        let (class, first) = (draft.int(class.i), draft.int(0));
        let places = draft.node("Equal", &[&labels, &class]);
        labels = draft.node("Where", &[&places, &first, &labels]);
        ignored = Some(places);
    }
    let places = draft.unsqueeze(&labels, &[1]);
    let axis = draft::int("axis", 1);
    let picked = draft.node_with("GatherElements", &[logs, &places], vec![axis]);
    let picked = draft.squeeze(&picked, &[1]);
    let mut loss = draft.node("Neg", &[&picked]);
    let mut weights = input(node, 2).map(|classes| {
        let axis = draft::int("axis", 0);
        draft.node_with("Gather", &[classes, &labels], vec![axis])
    });
    if let Some(places) = ignored {
        let zero = draft.float_like(0.0, &loss);
        let kept = weights.unwrap_or_else(|| draft.float_like(1.0, &loss));
        weights = Some(draft.node("Where", &[&places, &zero, &kept]));
    }
    if let Some(weights) = &weights {
        loss = draft.node("Mul", &[&loss, weights]);
    }
    let total = |draft: &mut Replacement, op: &str, x: &str| {
        draft.node_with(op, &[x], vec![draft::int("keepdims", 0)])
    };
    match (text(node, "reduction", "mean"), weights) {
        ("none", _) => Ok(loss),
        ("sum", _) => Ok(total(draft, "ReduceSum", &loss)),
        ("mean", None) => Ok(total(draft, "ReduceMean", &loss)),
        ("mean", Some(weights)) => {
            let (sum, weight) =
                (total(draft, "ReduceSum", &loss), total(draft, "ReduceSum", &weights));
            Ok(draft.node("Div", &[&sum, &weight]))
        }
        (other, _) => Err(format!("its attribute reduction is \"{other}\"")),
    }
}
