//! MeanVarianceNormalization, of which tract takes the mean square less the square of the mean: far
//! from zero that is anything, and negative.

use super::draft::Replacement;
use super::kinds::Kinds;
use super::{attribute, draft};
use tract_onnx::pb::NodeProto;

/// (x - mean) / (sqrt(mean((x - mean)^2)) + 1e-9)
pub fn mean_variance(
    node: &NodeProto,
    _: &Kinds,
    mut draft: Replacement,
) -> Result<Option<Vec<NodeProto>>, String> {
    let x = &node.input[0];
    let axes = attribute(node, "axes").map_or(vec![0, 2, 3], |axes| axes.ints.clone());
    let mean = |draft: &mut Replacement, x: &str| {
        if draft.opset() < 18 {
            return draft.node_with("ReduceMean", &[x], vec![draft::ints("axes", &axes)]);
        }
        let axes = draft.ints(&axes);
        draft.node("ReduceMean", &[x, &axes])
    };
    let middle = mean(&mut draft, x);
    let centred = draft.node("Sub", &[x, &middle]);
    let squares = draft.node("Mul", &[&centred, &centred]);
    let variance = mean(&mut draft, &squares);
    let deviation = draft.node("Sqrt", &[&variance]);
    let little = draft.float_like(1e-9, x);
    let divisor = draft.node("Add", &[&deviation, &little]);
    let y = draft.node("Div", &[&centred, &divisor]);
    Ok(Some(draft.finish_as(&y, node)))
}
