//! Ensembles of trees. Tract takes nodes that branch where a value is greater or equal for leaves,
//! follows numbers of nodes wherever they lead, and where one of two classes is scored compares the
//! score with a nothing. What is not written down is as in ONNX Runtime, which exporters go by.

use super::draft::{self, Replacement};
use super::kinds::Kinds;
use super::{attribute, output, text};
use std::collections::HashMap;
use tract_onnx::pb::attribute_proto::AttributeType;
use tract_onnx::pb::{AttributeProto, NodeProto};

const MISSING: &str = "nodes_missing_value_tracks_true";

pub fn classifier(
    node: &NodeProto,
    _: &Kinds,
    draft: Replacement,
) -> Result<Option<Vec<NodeProto>>, String> {
    check(node)?;
    let mut node = node.clone();
    let is_turned = turn(&mut node);
    match one_of_two(&node, draft)? {
        Some(nodes) => Ok(Some(nodes)),
        None => Ok(is_turned.then(|| vec![node])),
    }
}

fn integers<'a>(node: &'a NodeProto, name: &str) -> &'a [i64] {
    attribute(node, name).map_or(&[], |list| &list.ints)
}

fn classes(node: &NodeProto) -> usize {
    let count = |name: &str| attribute(node, name).map_or(0, |l| l.ints.len() + l.strings.len());
    count("classlabels_int64s") + count("classlabels_strings")
}

/// Tract looks at no number before it uses it as a place: each has to be of something, and no way
/// from a tree's first node may come back.
fn check(node: &NodeProto) -> Result<(), String> {
    let numbers = ["nodes_treeids", "nodes_nodeids", "nodes_truenodeids", "nodes_falsenodeids"];
    let [trees, ids, yes, no] = numbers.map(|name| integers(node, name));
    let modes = attribute(node, "nodes_modes").map_or(&[][..], |modes| &modes.strings);
    if [ids.len(), yes.len(), no.len(), modes.len()] != [trees.len(); 4] {
        return Err("its lists of nodes differ in length".to_string());
    }
    let mut sizes: HashMap<i64, i64> = HashMap::new();
    trees.iter().for_each(|tree| *sizes.entry(*tree).or_default() += 1);
    let places: HashMap<(i64, i64), usize> =
        trees.iter().zip(ids).enumerate().map(|(at, (tree, id))| ((*tree, *id), at)).collect();
    let within = |(tree, id): (&i64, &i64)| (0..sizes[tree]).contains(id);
    if places.len() != trees.len() || !trees.iter().zip(ids).all(within) {
        return Err("a tree's nodes are not numbered from 0 on".to_string());
    }
    let is_leaf = |at: usize| modes[at] == b"LEAF";
    let mut children = vec![vec![]; trees.len()];
    let mut parents = vec![0u32; trees.len()];
    for at in (0..trees.len()).filter(|at| !is_leaf(*at)) {
        for id in [yes[at], no[at]] {
            let child = places.get(&(trees[at], id));
            let child = *child.ok_or_else(|| format!("no tree {} has a node {id}", trees[at]))?;
            children[at].push(child);
            parents[child] += 1;
        }
    }
    let mut ends: Vec<usize> = (0..trees.len()).filter(|at| parents[*at] == 0).collect();
    if ends.iter().filter(|at| ids[**at] == 0).count() != sizes.len() {
        return Err("a tree does not begin with its node 0".to_string());
    }
    let mut seen = 0;
    while let Some(at) = ends.pop() {
        seen += 1;
        for child in &children[at] {
            parents[*child] -= 1;
            if parents[*child] == 0 {
                ends.push(*child);
            }
        }
    }
    if seen != trees.len() {
        return Err("a tree's nodes go in circles".to_string());
    }
    let scored = integers(node, "class_ids");
    if let Some(id) = scored.iter().find(|id| !(0..classes(node) as i64).contains(*id)) {
        return Err(format!("it scores a class {id} of {}", classes(node)));
    }
    for at in integers(node, "class_treeids").iter().zip(integers(node, "class_nodeids")) {
        if !places.get(&(*at.0, *at.1)).is_some_and(|place| is_leaf(*place)) {
            return Err(format!("node {} of tree {} is scored and no leaf", at.1, at.0));
        }
    }
    Ok(())
}

/// Not less is greater or equal, but for what is missing. What is missing is unequal to anything,
/// as in ONNX Runtime. Whether anything changed.
fn turn(node: &mut NodeProto) -> bool {
    let modes = attribute(node, "nodes_modes").map_or(&[][..], |modes| &modes.strings);
    let places =
        |mode: &[u8]| -> Vec<usize> { (0..modes.len()).filter(|at| modes[*at] == mode).collect() };
    let (turned, unequal) = (places(b"BRANCH_GTE"), places(b"BRANCH_NEQ"));
    if turned.is_empty() && unequal.is_empty() {
        return false;
    }
    let mut missing = integers(node, MISSING).to_vec();
    missing.resize(modes.len(), 0);
    let mut yes = integers(node, "nodes_truenodeids").to_vec();
    let mut no = integers(node, "nodes_falsenodeids").to_vec();
    let mut modes = modes.to_vec();
    for at in turned {
        modes[at] = b"BRANCH_LT".to_vec();
        std::mem::swap(&mut yes[at], &mut no[at]);
        missing[at] = i64::from(missing[at] == 0);
    }
    unequal.into_iter().for_each(|at| missing[at] = 1);
    let modes = AttributeProto {
        name: "nodes_modes".to_string(),
        r#type: AttributeType::Strings as i32,
        strings: modes,
        ..Default::default()
    };
    set(node, modes);
    for (name, list) in [("nodes_truenodeids", yes), ("nodes_falsenodeids", no), (MISSING, missing)]
    {
        set(node, draft::ints(name, &list));
    }
    true
}

fn set(node: &mut NodeProto, value: AttributeProto) {
    node.attribute.retain(|attribute| attribute.name != value.name);
    node.attribute.push(value);
}

/// Classifiers of two classes that score one of them, as scikit-learn and XGBoost export them. A
/// score without negative weights is a probability, and any other is of either sign.
fn one_of_two(node: &NodeProto, mut draft: Replacement) -> Result<Option<Vec<NodeProto>>, String> {
    let count = classes(node);
    if count == 1 {
        return Err("of one class no label is computed".to_string());
    }
    // ONNX Runtime adds one of them to the other class's score, and ONNX's reference each to its own.
    let is_based = attribute(node, "base_values").is_some_and(|base| !base.floats.is_empty());
    if count == 2 && is_based {
        return Err("of two classes no base_values are computed".to_string());
    }
    let scored = integers(node, "class_ids");
    let class = match scored.first() {
        Some(class) if count == 2 && scored.iter().all(|other| other == class) => *class,
        _ => return Ok(None),
    };
    let weights = attribute(node, "class_weights").map_or(&[][..], |weights| &weights.floats);
    let is_probability = weights.iter().all(|weight| *weight >= 0.0);
    let transform = text(node, "post_transform", "NONE");
    if class == 0 && transform == "SOFTMAX" {
        return Err("of two classes one is scored, which has no SOFTMAX".to_string());
    }
    // The first class gets the threshold as its score: tract's own label is right then.
    let threshold = if is_probability { 0.5 } else { 0.0 };
    let mut trees = NodeProto { output: vec!["l".into(), "s".into()], ..node.clone() };
    trees.attribute.retain(|attribute| attribute.name != "post_transform");
    set(&mut trees, draft::ints("class_ids", &vec![1; scored.len()]));
    let base = AttributeProto {
        name: "base_values".to_string(),
        r#type: AttributeType::Floats as i32,
        floats: vec![threshold, 0.0],
        ..Default::default()
    };
    set(&mut trees, base);
    let made = draft.copy(&trees, node.input.clone());
    let mut score = draft.slice(&made[1], 1, 1, 2);
    let scores = if class == 0 {
        let is_logistic = transform == "LOGISTIC";
        if is_logistic {
            score = draft.node("Sigmoid", &[&score]);
        }
        let one = draft.float(if is_logistic || is_probability { 1.0 } else { 0.0 });
        let other = draft.node("Sub", &[&one, &score]);
        draft.concat(&[&other, &score], 1)
    } else {
        let nothing = draft.node("Sub", &[&score, &score]);
        let both = draft.concat(&[&nothing, &score], 1);
        match transform {
            "LOGISTIC" => draft.node("Sigmoid", &[&both]),
            "SOFTMAX" => draft.node_with("Softmax", &[&both], vec![draft::int("axis", 1)]),
            _ => both,
        }
    };
    for (from, wanted) in [(&made[0], output(node, 0)), (&scores, output(node, 1))] {
        if let Some(wanted) = wanted {
            draft.give(from, wanted);
        }
    }
    Ok(Some(draft.finish()))
}
