//! Classifiers of two classes that score one of them, as scikit-learn and XGBoost export them: tract
//! compares the score with a nothing, and answers the other class.

use super::draft::{self, Replacement};
use super::kinds::Kinds;
use super::{attribute, int, output, text};
use tract_onnx::pb::NodeProto;

pub fn classifier(
    node: &NodeProto,
    _: &Kinds,
    mut draft: Replacement,
) -> Result<Option<Vec<NodeProto>>, String> {
    let Some(labels) = attribute(node, "classlabels_int64s").filter(|l| l.ints.len() == 2) else {
        return Ok(None);
    };
    let scored = attribute(node, "class_ids").map_or(&[][..], |ids| &ids.ints);
    if scored.iter().all(|class| *class == 1) {
        return Ok(None);
    }
    let weights = attribute(node, "class_weights").map_or(&[][..], |weights| &weights.floats);
    // Where the scores are probabilities, the label is that of the larger one.
    let are_probabilities = match text(node, "post_transform", "NONE") {
        "NONE" => weights.iter().all(|weight| *weight >= 0.0),
        "LOGISTIC" => weights.iter().any(|weight| *weight < 0.0),
        _ => false,
    };
    if scored.iter().any(|class| *class != 0) || !are_probabilities {
        return Err("of two classes only probabilities of one are computed".to_string());
    }
    let made = draft.copy(node, node.input.clone());
    let largest = vec![draft::int("axis", 1), draft::int("keepdims", 0)];
    let class = draft.node_with("ArgMax", &[&made[1]], largest);
    let labels = draft.ints(&labels.ints);
    let label = draft.node_with("Gather", &[&labels, &class], vec![draft::int("axis", 0)]);
    if let Some(wanted) = output(node, 1) {
        draft.give(&made[1], wanted);
    }
    Ok(Some(draft.finish_as(&label, node)))
}

/// One linear score for two classes stands for its complement too, where tract gives its opposite.
pub fn linear(
    node: &NodeProto,
    _: &Kinds,
    _: Replacement,
) -> Result<Option<Vec<NodeProto>>, String> {
    let count = |name: &str| attribute(node, name).map(|list| list.ints.len() + list.floats.len());
    let is_one = count("intercepts").unwrap_or(1) == 1 && int(node, "multi_class", 0) == 0;
    let is_probability = text(node, "post_transform", "NONE") == "LOGISTIC";
    if count("classlabels_ints") == Some(2) && is_one && !is_probability {
        return Err("of two classes only a probability of one is computed".to_string());
    }
    Ok(None)
}
