//! Which inputs of a model pick rows of its big tables: token ids, positions.

use super::ops::Gather;
use tract_core::internal::*;

/// Nodes between an input and a table, at most: casts, changed axes, checks.
const MOST_STEPS: usize = 16;

/// For each input of the plan the rows of the smallest streamed table that it picks from; none for
/// one that picks from no such table, or not as it is given.
pub fn indexed_rows(plan: &TypedSimplePlan) -> Vec<Option<usize>> {
    let model = plan.model();
    let mut rows: Vec<Option<usize>> = vec![None; model.inputs.len()];
    for node in &model.nodes {
        let Some(gather) = node.op_as::<Gather>() else { continue };
        let origin = node.inputs.first().and_then(|indices| origin(model, *indices));
        if let Some(input) = origin {
            rows[input] = Some(rows[input].map_or(gather.rows, |least| least.min(gather.rows)));
        }
    }
    rows
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
