//! DynamicQuantizeLinear of zeros alone, whose scale tract makes 0: it is 1, for somebody may
//! divide by it.

use super::draft::Replacement;
use super::kinds::Kinds;
use super::output;
use tract_onnx::pb::NodeProto;

pub fn dynamic_quantize(
    node: &NodeProto,
    _: &Kinds,
    mut draft: Replacement,
) -> Result<Option<Vec<NodeProto>>, String> {
    let Some(wanted) = output(node, 1) else { return Ok(None) };
    let made = draft.copy(node, node.input.clone());
    let (zero, one) = (draft.float(0.0), draft.float(1.0));
    let is_zero = draft.node("Equal", &[&made[1], &zero]);
    let scale = draft.node("Where", &[&is_zero, &one, &made[1]]);
    draft.give(&scale, wanted);
    for at in [0, 2] {
        if let Some(wanted) = output(node, at) {
            draft.give(&made[at], wanted);
        }
    }
    Ok(Some(draft.finish()))
}
