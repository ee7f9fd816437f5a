//! Bodies within a graph. Either of two branches is evaluated as the graph around it, within what
//! the request has been granted; loops are tract's.

use super::super::checked::Checked;
use super::super::memory::Liveness;
use super::super::nan::keeping_nan;
use super::super::ops::TapeFeed;
use super::Lockstep;
use std::sync::Arc;
use tract_core::internal::*;
use tract_core::ops::logic::IfThenElse;
use tract_core::ops::scan::Scan;
use tract_core::optim::Optimizer;

/// Puts checks around ops of a decluttered model that need them, its loops and branches included.
pub fn check_ops(model: &mut TypedModel) -> TractResult<()> {
    for node in &mut model.nodes {
        if let Some(checked) = Checked::of(&*node.op) {
            node.op = Box::new(checked);
        } else if let Some(op) = keeping_nan(&*node.op) {
            node.op = Box::new(op);
        } else if let Some(scan) = node.op.downcast_mut::<Scan>() {
            check_ops(&mut scan.body)?;
            check_loop(&scan.body)?;
        } else if let Some(branches) = node.op.downcast_mut::<IfThenElse>() {
            check_ops(&mut branches.then_body)?;
            check_ops(&mut branches.else_body)?;
            node.op = Box::new(Branches::of(branches)?);
        }
    }
    Ok(())
}

/// Tract evaluates a loop's body by itself, and takes a size that values decide for the same in
/// each round: of what may become larger than it was there is none.
fn check_loop(body: &TypedModel) -> TractResult<()> {
    let grows = |node: &&TypedNode| {
        let op = node.op_as::<Checked>();
        let by_values = matches!(op, Some(Checked::Range(_) | Checked::Tile(_)));
        by_values || ["NonZero", "NonMaxSuppression"].contains(&&*node.op.name())
    };
    match body.nodes.iter().find(grows) {
        Some(node) => bail!("node {}: values decide a size within a loop", node.name),
        None => Ok(()),
    }
}

/// An `If` whose condition a request decides.
#[derive(Clone, Debug)]
pub struct Branches {
    met: Branch,
    unmet: Branch,
    outputs: TVec<TypedFact>,
}

#[derive(Clone, Debug)]
struct Branch {
    body: Arc<Lockstep>,
    /// Which of the node's inputs are the body's.
    inputs: Vec<usize>,
}

impl Branches {
    /// Prepares both bodies, which are decluttered and checked.
    pub fn of(op: &IfThenElse) -> TractResult<Branches> {
        let branch = |body: &TypedModel, inputs: &[usize]| -> TractResult<Branch> {
            let mut body = body.clone();
            Optimizer::codegen().optimize(&mut body)?;
            let body = Arc::new(Lockstep::new(TypedSimplePlan::new(body)?));
            Ok(Branch { body, inputs: inputs.to_vec() })
        };
        let outputs = op.then_body.outputs.iter().map(|o| op.then_body.outlet_fact(*o).cloned());
        Ok(Branches {
            outputs: outputs.collect::<TractResult<_>>()?,
            met: branch(&op.then_body, &op.then_input_mapping)?,
            unmet: branch(&op.else_body, &op.else_input_mapping)?,
        })
    }

    /// What lives when in each body.
    pub fn livenesses(&self) -> [Arc<Liveness>; 2] {
        [&self.met, &self.unmet].map(|branch| branch.body.liveness())
    }
}

impl PartialEq for Branches {
    fn eq(&self, _: &Branches) -> bool {
        false
    }
}

impl Eq for Branches {}

impl Op for Branches {
    fn name(&self) -> StaticName {
        "If".into()
    }

    op_as_typed_op!();
}

impl EvalOp for Branches {
    not_out_of_plan!();

    fn eval(&self, context: &EvalContext, inputs: TVec<TValue>) -> TractResult<TVec<TValue>> {
        let is_met = inputs[0].cast_to_scalar::<bool>()?;
        let Branch { body, inputs: taken } = if is_met { &self.met } else { &self.unmet };
        let taken: TVec<TValue> = taken.iter().map(|index| inputs[*index].clone()).collect();
        drop(inputs);
        let feed = context.shared.and_then(|shared| shared.get::<TapeFeed>());
        let feed = feed.context("an If needs a pass around it")?;
        // What shapes tell from outside was granted with the node.
        let shapes: Vec<Vec<usize>> = taken.iter().map(|value| value.shape().to_vec()).collect();
        let needed_bytes = body.footprint(&shapes).alone_bytes;
        let granted_bytes = body.liveness().footprint_of(context.symbols).alone_bytes;
        if needed_bytes > granted_bytes {
            feed.0.grow(needed_bytes - granted_bytes)?;
        }
        let outcomes = body.run(feed, vec![taken], &|_| Ok(()), &|_| ())?;
        outcomes.into_iter().next().context("a body has an outcome")?
    }
}

impl TypedOp for Branches {
    fn output_facts(&self, _: &[&TypedFact]) -> TractResult<TVec<TypedFact>> {
        Ok(self.outputs.clone())
    }

    as_op!();
}
