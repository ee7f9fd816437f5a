//! Positions of com.microsoft's RotaryEmbedding.

use super::draft::Replacement;
use super::kinds::Kinds;
use tract_onnx::pb::NodeProto;

/// `position_ids` may be one offset for all, which tract would take for the position of each
/// token. Where the graph does not declare its rank, a reshape that keeps two axes holds tract to
/// two.
pub fn rotary(
    node: &NodeProto,
    kinds: &Kinds,
    mut draft: Replacement,
) -> Result<Option<Vec<NodeProto>>, String> {
    if node.domain != "com.microsoft" {
        return Ok(None);
    }
    match kinds.rank(&node.input[1]) {
        Some(2) => Ok(None),
        Some(_) => Err("its position_ids are one offset; only one position for each token \
                        is computed"
            .to_string()),
        None => {
            let mut inputs = node.input.clone();
            inputs[1] = draft.reshape(&node.input[1], &[0, 0]);
            let y = draft.copy(node, inputs)[0].clone();
            Ok(Some(draft.finish_as(&y, node)))
        }
    }
}
