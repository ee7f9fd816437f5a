//! What a plan tells of its steps once for all passes, so that none looks for it at each node.

use std::collections::HashSet;
use tract_core::internal::*;

/// A step of a plan.
pub struct Step {
    /// Nodes whose values nobody needs once its inputs are taken.
    pub flush: TVec<usize>,
    /// Whether what it computes may bind a symbol, or contradict what one is bound to.
    pub may_bind: bool,
}

impl Step {
    /// The steps of a plan, each with what is flushed.
    pub fn all(plan: &TypedSimplePlan, flush: Vec<TVec<usize>>) -> Vec<Step> {
        let model = plan.model();
        let bare = |node: usize| {
            let dims = model.node(node).outputs.iter().flat_map(|output| output.fact.shape.iter());
            dims.filter_map(|dim| if let TDim::Sym(symbol) = dim { Some(symbol) } else { None })
        };
        // Those of inputs are bound before the first step.
        let mut bound: HashSet<&Symbol> =
            model.inputs.iter().flat_map(|input| bare(input.node)).collect();
        let step = |(node, flush): (&usize, TVec<usize>)| {
            let known = bound.len();
            bound.extend(bare(*node));
            let may_bind = bound.len() > known || model.node(*node).op.mints_runtime_symbols();
            Step { flush, may_bind }
        };
        plan.order_without_consts().iter().zip(flush).map(step).collect()
    }
}
