//! SpaceToDepth with the channel first, which tract takes for the block first.

use super::draft::{self, Replacement};
use super::kinds::Kinds;
use super::{int, text};
use tract_onnx::pb::NodeProto;

/// Where channels come before blocks, each channel is an image of its own.
pub fn space_to_depth(
    node: &NodeProto,
    _: &Kinds,
    mut draft: Replacement,
) -> Result<Option<Vec<NodeProto>>, String> {
    if text(node, "mode", "DCR") != "CRD" {
        return Ok(None);
    }
    let x = &node.input[0];
    let images = draft.reshape(x, &[-1, 1, 0, 0]);
    let block = draft::int("blocksize", int(node, "blocksize", 1));
    let deep = draft.node_with("SpaceToDepth", &[&images], vec![block]);
    let batch = draft.size(x, 0);
    let rest = draft.ints(&[-1, 0, 0]);
    let shape = draft.concat(&[&batch, &rest], 0);
    let y = draft.node("Reshape", &[&deep, &shape]);
    Ok(Some(draft.finish_as(&y, node)))
}
