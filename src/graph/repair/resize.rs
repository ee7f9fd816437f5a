//! Resize of the operators' version 10, whose nearest element is another one.

use super::draft::{self, Replacement};
use super::kinds::Kinds;
use super::{input, text};
use tract_onnx::pb::NodeProto;

/// As ONNX Runtime has it, the one before along an axis that grows and the one after along an axis
/// that shrinks. Tract takes the nearer one.
pub fn resize(
    node: &NodeProto,
    kinds: &Kinds,
    mut draft: Replacement,
) -> Result<Option<Vec<NodeProto>>, String> {
    let (Some(x), Some(scales)) = (input(node, 0), input(node, 1)) else { return Ok(None) };
    if draft.opset() != 10 || text(node, "mode", "nearest") != "nearest" {
        return Ok(None);
    }
    let known = kinds.floats(scales);
    let any = |is_so: fn(&f32) -> bool| known.as_ref().is_none_or(|k| k.iter().any(is_so));
    let (grows, shrinks) = (any(|scale| *scale > 1.0), any(|scale| *scale < 1.0));
    let mut y = x.to_string();
    for (limit, nearest, is_so) in [("Max", "floor", grows || !shrinks), ("Min", "ceil", shrinks)] {
        if !is_so {
            continue;
        }
        let mut scales = scales.to_string();
        if grows && shrinks {
            let one = draft.float(1.0);
            scales = draft.node(limit, &[&scales, &one]);
        }
        let mode = [("mode", "nearest"), ("nearest_mode", nearest)];
        let mode = mode.map(|(name, value)| draft::string(name, value)).to_vec();
        y = draft.node_with("Resize", &[&y, &scales], mode);
    }
    Ok(Some(draft.finish_as(&y, node)))
}
