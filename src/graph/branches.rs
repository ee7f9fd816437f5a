//! Either of two bodies, which is evaluated as the graph around it: within what the request has been
//! granted.

use super::lockstep::Lockstep;
use super::ops::TapeFeed;
use std::sync::Arc;
use tract_core::internal::*;
use tract_core::ops::logic::IfThenElse;
use tract_core::optim::Optimizer;

/// An `If` whose condition a request decides.
#[derive(Clone, Debug)]
pub struct Branches {
    met: Branch,
    unmet: Branch,
    outputs: TVec<TypedFact>,
}

#[derive(Clone)]
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
}

impl std::fmt::Debug for Branch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "a body of inputs {:?}", self.inputs)
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
        let shapes: Vec<Vec<usize>> = taken.iter().map(|value| value.shape().to_vec()).collect();
        feed.0.grow(body.footprint(&shapes).alone_bytes)?;
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
