//! Which inputs of a model pick rows of its tables: token ids, positions.

use super::checked::Checked;
use super::ops::Gather;
use tract_core::internal::*;

/// Nodes between an input and a table, at most: casts, changed axes, checks.
const MOST_STEPS: usize = 16;

/// For each input of the plan the rows of the smallest table that it picks from; none for one that
/// picks from no table whose rows are known, or not as it is given.
pub fn indexed_rows(plan: &TypedSimplePlan) -> Vec<Option<usize>> {
    let model = plan.model();
    let mut rows: Vec<Option<usize>> = vec![None; model.inputs.len()];
    for node in &model.nodes {
        let Some((indices, most)) = streamed(node).or_else(|| resident(model, node)) else {
            continue;
        };
        if let Some(input) = origin(model, indices) {
            rows[input] = Some(rows[input].map_or(most, |least| least.min(most)));
        }
    }
    rows
}

/// What picks from a streamed table, and its rows.
fn streamed(node: &TypedNode) -> Option<(OutletId, usize)> {
    Some((*node.inputs.first()?, node.op_as::<Gather>()?.rows))
}

/// The same of a table that stays in memory.
fn resident(model: &TypedModel, node: &TypedNode) -> Option<(OutletId, usize)> {
    let Checked::Gather(gather) = node.op_as::<Checked>()? else { return None };
    let [table, indices] = node.inputs[..] else { return None };
    let rows = model.outlet_fact(table).ok()?.shape.as_concrete()?.get(gather.axis)?;
    Some((indices, *rows))
}

/// The input that `outlet` comes from by nodes that take nothing else.
fn origin(model: &TypedModel, mut outlet: OutletId) -> Option<usize> {
    for _ in 0..MOST_STEPS {
        if let Some(input) = model.inputs.iter().position(|input| *input == outlet) {
            return Some(input);
        }
        outlet = match &*model.node(outlet.node).inputs {
            [above] => *above,
            _ => return None,
        };
    }
    None
}
