//! Means and sums of several tensors of half floats, which tract adds up as such: the mean of two
//! large ones was infinite.

use super::draft::Replacement;
use super::kinds::Kinds;
use tract_onnx::pb::NodeProto;
use tract_onnx::pb::tensor_proto::DataType;

pub fn mean(
    node: &NodeProto,
    kinds: &Kinds,
    mut draft: Replacement,
) -> Result<Option<Vec<NodeProto>>, String> {
    // The sum of two is rounded once as it is.
    let is_plain = node.op_type == "Sum" && node.input.len() < 3;
    let is_half = |name: &String| kinds.kind(name) == Some(DataType::Float16);
    if is_plain || !node.input.iter().any(is_half) {
        return Ok(None);
    }
    let floats = node.input.iter().map(|name| draft.cast(name, DataType::Float)).collect();
    let made = draft.copy(node, floats);
    let half = draft.cast(&made[0], DataType::Float16);
    Ok(Some(draft.finish_as(&half, node)))
}
