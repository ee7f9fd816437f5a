//! LSTM, GRU and RNN from the end of the sequence, and with the batch as the first axis.
//!
//! Tract reads neither `direction`: it takes the number of directions from the weights, and the
//! one of `reverse` for the forward one. As the second of two directions it goes backwards. With
//! `layout` it joins directions along the wrong axis.

use super::draft::Replacement;
use super::kinds::Kinds;
use super::{input, int, output, text};
use tract_onnx::pb::NodeProto;

/// Inputs that have a direction as their first axis: W, R, B and the initial states, P.
const DIRECTED: [usize; 6] = [1, 2, 3, 5, 6, 7];
/// The initial states, whose batch comes first with `layout`.
const STATES: [usize; 2] = [5, 6];

pub fn recurrent(
    node: &NodeProto,
    _: &Kinds,
    mut draft: Replacement,
) -> Result<Option<Vec<NodeProto>>, String> {
    let reverse = text(node, "direction", "forward") == "reverse";
    let batch_first = int(node, "layout", 0) == 1;
    if !reverse && !batch_first {
        return Ok(None);
    }
    let mut inputs = node.input.clone();
    if batch_first {
        inputs[0] = draft.transpose(&inputs[0], &[1, 0, 2]);
        for at in STATES {
            if let Some(state) = input(node, at) {
                inputs[at] = draft.transpose(state, &[1, 0, 2]);
            }
        }
    }
    if reverse {
        for at in DIRECTED {
            if input(node, at).is_some() {
                inputs[at] = draft.concat(&[&inputs[at], &inputs[at]], 0);
            }
        }
    }
    let outputs = draft.copy(node, inputs);
    draft.last().attribute.retain(|a| a.name != "layout" && a.name != "direction");
    for (at, made) in outputs.iter().enumerate() {
        let Some(wanted) = output(node, at) else { continue };
        let mut made = made.clone();
        if reverse {
            made = draft.slice(&made, if at == 0 { 1 } else { 0 }, 1, 2);
        }
        if batch_first {
            made = draft.transpose(&made, if at == 0 { &[2, 0, 1, 3] } else { &[1, 0, 2] });
        }
        draft.give(&made, wanted);
    }
    Ok(Some(draft.finish()))
}
