//! Activations of which tract forgets the alpha, or overflows.

use super::draft::Replacement;
use super::float;
use super::kinds::Kinds;
use tract_onnx::pb::NodeProto;

/// x * sigmoid(alpha * x)
pub fn swish(
    node: &NodeProto,
    _: &Kinds,
    mut draft: Replacement,
) -> Result<Option<Vec<NodeProto>>, String> {
    let alpha = float(node, "alpha", 1.0);
    if alpha == 1.0 {
        return Ok(None);
    }
    let x = &node.input[0];
    let alpha = draft.float_like(alpha, x);
    let scaled = draft.node("Mul", &[x, &alpha]);
    let gate = draft.node("Sigmoid", &[&scaled]);
    let y = draft.node("Mul", &[x, &gate]);
    Ok(Some(draft.finish_as(&y, node)))
}

/// x where it is positive, else alpha * (exp(x / alpha) - 1): an Elu of x / alpha.
pub fn celu(
    node: &NodeProto,
    _: &Kinds,
    mut draft: Replacement,
) -> Result<Option<Vec<NodeProto>>, String> {
    let alpha = float(node, "alpha", 1.0);
    let x = &node.input[0];
    if alpha == 1.0 {
        let y = draft.node("Elu", &[x]);
        return Ok(Some(draft.finish_as(&y, node)));
    }
    let alpha = draft.float_like(alpha, x);
    let scaled = draft.node("Div", &[x, &alpha]);
    let elu = draft.node("Elu", &[&scaled]);
    let y = draft.node("Mul", &[&elu, &alpha]);
    Ok(Some(draft.finish_as(&y, node)))
}

/// log(1 + exp(x)), by the exponential of what is negative.
pub fn softplus(
    node: &NodeProto,
    _: &Kinds,
    mut draft: Replacement,
) -> Result<Option<Vec<NodeProto>>, String> {
    let x = &node.input[0];
    let size = draft.node("Abs", &[x]);
    let negative = draft.node("Neg", &[&size]);
    let raised = draft.node("Exp", &[&negative]);
    let one = draft.float_like(1.0, x);
    let sum = draft.node("Add", &[&raised, &one]);
    let log = draft.node("Log", &[&sum]);
    let positive = draft.node("Relu", &[x]);
    let y = draft.node("Add", &[&positive, &log]);
    Ok(Some(draft.finish_as(&y, node)))
}
