//! Classifiers of two classes that have one linear score.

use super::draft::Replacement;
use super::kinds::Kinds;
use super::{attribute, int, text};
use tract_onnx::pb::NodeProto;

/// One linear score for two classes stands for its complement too, where tract gives its opposite.
pub fn linear(
    node: &NodeProto,
    _: &Kinds,
    _: Replacement,
) -> Result<Option<Vec<NodeProto>>, String> {
    let count = |name: &str| {
        attribute(node, name).map(|list| list.ints.len() + list.floats.len() + list.strings.len())
    };
    let classes = count("classlabels_ints").or(count("classlabels_strings"));
    let is_one = count("intercepts").unwrap_or(1) == 1 && int(node, "multi_class", 0) == 0;
    let is_probability = text(node, "post_transform", "NONE") == "LOGISTIC";
    if classes == Some(2) && is_one && !is_probability {
        return Err("of two classes only a probability of one is computed".to_string());
    }
    Ok(None)
}
