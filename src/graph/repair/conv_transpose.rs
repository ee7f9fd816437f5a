//! ConvTranspose to a given size, of which tract takes the wrong end where it cannot be centred.

use super::draft::Replacement;
use super::kinds::Kinds;
use super::{attribute, input, text};
use tract_onnx::pb::{AttributeProto, NodeProto};

/// Without pads, then cut to the size: what is too much goes half from the beginning and half from
/// the end, the odd one from the beginning but with SAME_UPPER. What is too little is nothing but
/// the bias, at the end.
pub fn conv_transpose(
    node: &NodeProto,
    _: &Kinds,
    mut draft: Replacement,
) -> Result<Option<Vec<NodeProto>>, String> {
    let Some(wanted) = attribute(node, "output_shape") else {
        let is_more = |padding: &AttributeProto| padding.ints.iter().any(|size| *size != 0);
        let padded = attribute(node, "output_padding").is_some_and(is_more);
        return match padded && text(node, "auto_pad", "NOTSET").starts_with("SAME") {
            true => Err("its attribute output_padding is not honoured beside auto_pad".to_string()),
            false => Ok(None),
        };
    };
    let spatial = wanted.ints.len();
    let upper = text(node, "auto_pad", "NOTSET") == "SAME_UPPER";
    let mut inputs = node.input.clone();
    inputs.truncate(2);
    let whole = draft.copy(node, inputs)[0].clone();
    draft.last().attribute.retain(|attribute| {
        !["auto_pad", "output_shape", "pads"].contains(&attribute.name.as_str())
    });
    let shape = draft.node("Shape", &[&whole]);
    let sizes = draft.slice(&shape, 0, 2, i64::MAX);
    let size = draft.ints(&wanted.ints);
    let zeros = draft.ints(&vec![0; spatial]);
    let missing = draft.node("Sub", &[&size, &sizes]);
    let missing = draft.node("Max", &[&missing, &zeros]);
    let before = draft.ints(&vec![0; spatial + 4]);
    let pads = draft.concat(&[&before, &missing], 0);
    let padded = draft.node("Pad", &[&whole, &pads]);
    let spare = draft.node("Sub", &[&sizes, &size]);
    let spare = draft.node("Max", &[&spare, &zeros]);
    let two = draft.ints(&[2]);
    let mut start = draft.node("Div", &[&spare, &two]);
    if !upper {
        start = draft.node("Sub", &[&spare, &start]);
    }
    let end = draft.node("Add", &[&start, &size]);
    let axes: Vec<i64> = (2..2 + spatial as i64).collect();
    let axes = draft.ints(&axes);
    let mut y = draft.node("Slice", &[&padded, &start, &end, &axes]);
    if let Some(bias) = input(node, 2) {
        let mut shape = vec![1; spatial + 2];
        shape[1] = -1;
        let bias = draft.reshape(bias, &shape);
        y = draft.node("Add", &[&y, &bias]);
    }
    Ok(Some(draft.finish_as(&y, node)))
}
