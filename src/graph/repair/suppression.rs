//! How many boxes of a class NonMaxSuppression selects at most.

use super::draft::Replacement;
use super::input;
use super::kinds::Kinds;
use tract_onnx::pb::NodeProto;

/// Where the node has it.
const MOST: usize = 2;

/// None, which is also what a node without that input says, is what tract takes for all of them.
/// Where there are to be less than none it selects none.
pub fn non_max_suppression(
    node: &NodeProto,
    _: &Kinds,
    mut draft: Replacement,
) -> Result<Option<Vec<NodeProto>>, String> {
    let most = match input(node, MOST) {
        Some(most) => {
            let one = draft.ints(&[1]);
            let [any, fewer] = ["Min", "Sub"].map(|op| draft.node(op, &[most, &one]));
            draft.node("Add", &[&fewer, &any])
        }
        None => draft.ints(&[-1]),
    };
    let mut inputs = node.input.clone();
    inputs.resize(inputs.len().max(MOST + 1), String::new());
    inputs[MOST] = most;
    let selected = draft.copy(node, inputs).swap_remove(0);
    Ok(Some(draft.finish_as(&selected, node)))
}
