//! How many bytes of activations a pass holds at its peak, before it is run.

use super::ops::{Constant, Linear};
use std::collections::HashMap;
use tract_core::internal::*;
use tract_core::model::memory::eval_tmp_memory_usage;
use tract_core::ops::konst::Const;

/// Peak bytes of a pass besides weights.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Footprint {
    /// Live node outputs at the hungriest step, and what that step works with.
    pub alone_bytes: u64,
    /// The same where the request shares its pass: linears then hold its columns twice, on their
    /// own and beside those of the others.
    pub together_bytes: u64,
}

/// Room for what a node holds besides its inputs and outputs, over the largest value it touches:
/// packed operands and reordered copies.
const WORKING_COPIES: u64 = 2;

/// The same for a linear of a pass that is shared.
const LINEAR_COPIES_TOGETHER: u64 = 3;

/// Estimates a pass with `inputs` shapes from the liveness of the plan's values.
///
/// Errors where the shapes do not agree with the model's symbols.
pub fn footprint(plan: &TypedSimplePlan, inputs: &[Vec<usize>]) -> TractResult<Footprint> {
    let model = plan.model();
    let symbols = bind(model, inputs)?;
    let order: Vec<usize> = plan.order_without_consts().to_vec();
    let steps = eval_tmp_memory_usage(model, &order, |node| !node.op_is::<Const>())?;
    let mut sizes: HashMap<usize, u64> = HashMap::new();
    let mut footprint = Footprint::default();
    for (node, live) in &steps {
        let node = model.node(*node);
        let mut largest = output_bytes(node, &symbols);
        for input in &node.inputs {
            let source = model.node(input.node);
            let size = *sizes.entry(source.id).or_insert_with(|| output_bytes(source, &symbols));
            largest = largest.max(if source.op_is::<Const>() { 0 } else { size });
        }
        let live = bytes_of(live, &symbols);
        let (alone, together) = match node {
            node if node.op_is::<Constant>() => (1, 1),
            node if node.op_is::<Linear>() => (1, LINEAR_COPIES_TOGETHER),
            _ => (WORKING_COPIES, WORKING_COPIES),
        };
        footprint.alone_bytes = footprint.alone_bytes.max(live + alone * largest);
        footprint.together_bytes = footprint.together_bytes.max(live + together * largest);
    }
    Ok(footprint)
}

fn output_bytes(node: &TypedNode, symbols: &SymbolValues) -> u64 {
    node.outputs.iter().map(|o| bytes_of(&o.fact.mem_size(), symbols)).sum()
}

/// A size in bytes; what the symbols do not decide (data-dependent shapes) counts as nothing.
fn bytes_of(size: &TDim, symbols: &SymbolValues) -> u64 {
    size.eval(symbols).to_i64().ok().and_then(|v| u64::try_from(v).ok()).unwrap_or(0)
}

/// Binds the model's symbols to the inputs' shapes.
fn bind(model: &TypedModel, inputs: &[Vec<usize>]) -> TractResult<SymbolValues> {
    let mut symbols = SymbolValues::default();
    for (outlet, shape) in model.inputs.iter().zip(inputs) {
        let fact = model.outlet_fact(*outlet)?;
        for (dim, size) in fact.shape.iter().zip(shape) {
            if let TDim::Sym(symbol) = dim {
                symbols.set(symbol, *size as i64);
            }
        }
    }
    Ok(symbols)
}
