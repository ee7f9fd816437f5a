//! DFT along the axis that it has without being told, from version 20 of the operators on the one
//! before the last; tract takes the second.

use super::draft::Replacement;
use super::input;
use super::kinds::Kinds;
use tract_onnx::pb::NodeProto;

pub fn dft(
    node: &NodeProto,
    _: &Kinds,
    mut draft: Replacement,
) -> Result<Option<Vec<NodeProto>>, String> {
    if draft.opset() < 20 || input(node, 2).is_some() {
        return Ok(None);
    }
    let mut inputs = node.input.clone();
    inputs.resize(2, String::new());
    inputs.push(draft.int(-2));
    let y = draft.copy(node, inputs)[0].clone();
    Ok(Some(draft.finish_as(&y, node)))
}
