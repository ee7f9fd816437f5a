//! Einsum with its result written out, of one letter at least, and of two operands at most.
//!
//! Tract takes an empty result for one that is not written, and gives it letters; of a result that
//! is not written it forgets the ellipsis, as beside a scalar. More than two operands it multiplies
//! element by element, in one op that takes long and that nobody can stop.

use super::draft::{self, Replacement};
use super::kinds::Kinds;
use super::text;
use std::collections::BTreeMap;
use tract_onnx::pb::NodeProto;

/// Stands for the ellipsis, as one more letter.
const REST: char = '*';

pub fn einsum(
    node: &NodeProto,
    _: &Kinds,
    mut draft: Replacement,
) -> Result<Option<Vec<NodeProto>>, String> {
    let equation: String = text(node, "equation", "").split_whitespace().collect();
    let (operands, result) = parse(&equation)
        .filter(|(operands, _)| operands.len() == node.input.len())
        .ok_or_else(|| format!("its equation is \"{equation}\""))?;
    let is_plain = equation.contains("->") && !result.is_empty();
    if is_plain && operands.len() <= 2 && !operands.iter().any(String::is_empty) {
        return Ok(None);
    }
    let (mut name, mut letters) = (node.input[0].clone(), operands[0].clone());
    for at in 1..operands.len().max(2) {
        let later = operands.get(at + 1..).unwrap_or_default().concat() + &result;
        let second = operands.get(at).map(|letters| (&node.input[at], letters));
        let both = letters.clone() + second.map_or("", |(_, letters)| letters);
        let wanted = match at + 1 < operands.len() {
            true => distinct(&both).filter(|letter| later.contains(*letter)).collect(),
            false => result.clone(),
        };
        let mut factors = vec![(name.as_str(), letters.as_str())];
        factors.extend(second.map(|(name, letters)| (name.as_str(), letters.as_str())));
        name = product(&mut draft, &factors, &wanted)?;
        letters = wanted;
    }
    Ok(Some(draft.finish_as(&name, node)))
}

/// The letters of each operand and of the result, which are those that occur once, in their order,
/// after an ellipsis, where it is not written.
fn parse(equation: &str) -> Option<(Vec<String>, String)> {
    let equation = equation.replace("...", "*");
    let (operands, result) = match equation.split_once("->") {
        Some((operands, result)) => (operands, Some(result.to_string())),
        None => (equation.as_str(), None),
    };
    let mut counts = BTreeMap::new();
    operands.chars().filter(|c| *c != ',').for_each(|c| *counts.entry(c).or_insert(0) += 1);
    let result = result.unwrap_or_else(|| {
        let once = counts.iter().filter(|(c, count)| **c == REST || **count == 1);
        once.map(|(c, _)| *c).collect()
    });
    let known = |c: &char| *c == REST || c.is_ascii_alphabetic();
    let is_one = counts.keys().all(known) && result.chars().all(|c| counts.contains_key(&c));
    is_one.then(|| (operands.split(',').map(str::to_string).collect(), result))
}

fn distinct(letters: &str) -> impl Iterator<Item = char> {
    letters.char_indices().filter(|(at, c)| !letters[..*at].contains(*c)).map(|(_, c)| c)
}

/// A node for the product of one or two factors, of which one may be a scalar. Of no letter it is
/// the sum along one.
fn product(
    draft: &mut Replacement,
    factors: &[(&str, &str)],
    wanted: &str,
) -> Result<String, String> {
    if let [a, b] = factors
        && let Some((_, letters)) = [(a, b), (b, a)].iter().find(|(scalar, _)| scalar.1.is_empty())
    {
        let y = draft.node("Mul", &[a.0, b.0]);
        return match letters.1 == wanted {
            true => Ok(y),
            false => product(draft, &[(&y, letters.1)], wanted),
        };
    }
    let names: Vec<&str> = factors.iter().map(|(name, _)| *name).collect();
    let letters: Vec<&str> = factors.iter().map(|(_, letters)| *letters).collect();
    let letters = letters.join(",");
    let kept = match wanted {
        "" => letters.chars().find(char::is_ascii_alphabetic).map(String::from),
        wanted => Some(wanted.to_string()),
    };
    let Some(kept) = kept else {
        return match letters.contains(REST) {
            true => Err("its equation sums its ellipsis alone".to_string()),
            false => Ok(draft.node("Identity", &names)),
        };
    };
    let equation = format!("{letters}->{kept}").replace(REST, "...");
    let y = draft.node_with("Einsum", &names, vec![draft::string("equation", &equation)]);
    match wanted {
        "" => Ok(draft.node_with("ReduceSum", &[&y], vec![draft::int("keepdims", 0)])),
        _ => Ok(y),
    }
}
