//! ReduceLogSumExp, which tract takes literally: exp overflows from 88 on.

use super::draft::Replacement;
use super::input;
use super::kinds::Kinds;
use tract_onnx::pb::NodeProto;

/// log(sum(exp(x - m))) + m, with the largest value as m where that is finite.
pub fn log_sum_exp(
    node: &NodeProto,
    _: &Kinds,
    mut draft: Replacement,
) -> Result<Option<Vec<NodeProto>>, String> {
    let x = &node.input[0];
    let mut inputs = vec![x.as_str()];
    inputs.extend(input(node, 1));
    let kept: Vec<_> = node.attribute.iter().filter(|a| a.name != "keepdims").cloned().collect();
    let largest = draft.node_with("ReduceMax", &inputs, kept);
    let size = draft.node("Abs", &[&largest]);
    let infinity = draft.float_like(f32::INFINITY, x);
    let infinite = draft.node("Equal", &[&size, &infinity]);
    let zero = draft.float_like(0.0, x);
    let shift = draft.node("Where", &[&infinite, &zero, &largest]);
    let shifted = draft.node("Sub", &[x, &shift]);
    inputs[0] = &shift;
    let back = draft.node_with("ReduceMax", &inputs, node.attribute.clone());
    // ReduceLogSum takes its axes as ReduceMax does, ReduceSum did so later.
    let raised = draft.node("Exp", &[&shifted]);
    inputs[0] = &raised;
    let log = draft.node_with("ReduceLogSum", &inputs, node.attribute.clone());
    let y = draft.node("Add", &[&log, &back]);
    Ok(Some(draft.finish_as(&y, node)))
}
