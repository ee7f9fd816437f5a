//! Pad with its constant in a list of one, which tract wants as a scalar.

use super::draft::Replacement;
use super::input;
use super::kinds::Kinds;
use tract_onnx::pb::NodeProto;

pub fn pad(
    node: &NodeProto,
    kinds: &Kinds,
    mut draft: Replacement,
) -> Result<Option<Vec<NodeProto>>, String> {
    let Some(constant) = input(node, 2) else { return Ok(None) };
    if kinds.rank(constant) == Some(0) {
        return Ok(None);
    }
    let mut inputs = node.input.clone();
    inputs[2] = draft.reshape(constant, &[]);
    let y = draft.copy(node, inputs)[0].clone();
    Ok(Some(draft.finish_as(&y, node)))
}
