//! Products of 64-bit integers, for which tract has no kernel.

use super::ops::feed;
use tract_core::internal::*;
use tract_core::ops::einsum::EinSum;
use tract_core::ops::logic::IfThenElse;
use tract_core::ops::scan::Scan;

/// Products between two looks at whether anybody still wants the sums.
const PRODUCTS_AT_ONCE: usize = 1 << 20;

/// Sums of products of 64-bit integers, which wrap as ONNX Runtime's do.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct IntegerProduct {
    einsum: EinSum,
}

/// Puts them in the place of the products that tract would panic at, in bodies too.
pub fn replace_products(model: &mut TypedModel) {
    for node in &mut model.nodes {
        if let Some(scan) = node.op.downcast_mut::<Scan>() {
            replace_products(&mut scan.body);
        } else if let Some(branches) = node.op.downcast_mut::<IfThenElse>() {
            replace_products(&mut branches.then_body);
            replace_products(&mut branches.else_body);
        } else if let Some(einsum) = node.op_as::<EinSum>()
            && einsum.operating_dt == i64::datum_type()
            && einsum.q_params.is_none()
        {
            node.op = Box::new(IntegerProduct { einsum: einsum.clone() });
        }
    }
}

impl Op for IntegerProduct {
    fn name(&self) -> StaticName {
        "IntegerProduct".into()
    }

    op_as_typed_op!();
}

/// An axis of the product: its length, and how far apart its elements lie in each input, 0 in those
/// that have it not.
struct Axis {
    length: usize,
    strides: TVec<usize>,
}

impl EvalOp for IntegerProduct {
    op_out_of_plan!();

    fn eval(&self, context: &EvalContext, inputs: TVec<TValue>) -> TractResult<TVec<TValue>> {
        let inputs: TVec<Tensor> = inputs
            .iter()
            .map(|input| Ok(input.cast_to::<i64>()?.into_owned()))
            .collect::<TractResult<_>>()?;
        let axes = &self.einsum.axes;
        let mut outer = vec![];
        for position in 0..axes.rank(InOut::Out(0)) {
            outer.push(Axis::of(axes.axis((InOut::Out(0), position))?, &inputs));
        }
        let summed = axes.iter_all_axes().filter(|axis| axis.outputs[0].is_empty());
        let summed: Vec<Axis> = summed.map(|axis| Axis::of(axis, &inputs)).collect();
        let shape: TVec<usize> = outer.iter().map(|axis| axis.length).collect();
        let views = inputs.iter().map(|input| input.try_as_plain_ram());
        let views = views.collect::<TractResult<TVec<_>>>()?;
        let slices = views.iter().map(|view| view.as_slice::<i64>());
        let slices = slices.collect::<TractResult<TVec<_>>>()?;
        let mut output = Tensor::zero::<i64>(&shape)?;
        {
            let mut plain = output.try_as_plain_ram_mut()?;
            let mut values = plain.as_slice_mut::<i64>()?.iter_mut();
            let (feed, mut done) = (feed(context).ok(), 0);
            walk(&outer, &tvec![0; slices.len()], &mut |starts| {
                let mut sum = 0i64;
                walk(&summed, starts, &mut |at| {
                    let factors = slices.iter().zip(at).map(|(slice, at)| slice[*at]);
                    sum = sum.wrapping_add(factors.fold(1, i64::wrapping_mul));
                    done += 1;
                    match feed {
                        Some(feed) if done % PRODUCTS_AT_ONCE == 0 => feed.go_on(),
                        _ => Ok(()),
                    }
                })?;
                if let Some(value) = values.next() {
                    *value = sum;
                }
                Ok(())
            })?;
        }
        Ok(tvec!(output.into_tvalue()))
    }
}

impl Axis {
    fn of(axis: &tract_core::axes::Axis, inputs: &[Tensor]) -> Axis {
        let mut length = 1;
        let strides = inputs.iter().zip(&axis.inputs).map(|(input, positions)| {
            positions
                .iter()
                .filter(|position| input.shape()[**position] != 1)
                .map(|position| {
                    length = input.shape()[*position];
                    input.shape()[position + 1..].iter().product::<usize>()
                })
                .sum()
        });
        let strides = strides.collect();
        Axis { length, strides }
    }
}

/// Visits all elements along `axes` in their order, each as where it lies in the inputs.
fn walk(
    axes: &[Axis],
    at: &TVec<usize>,
    visit: &mut dyn FnMut(&TVec<usize>) -> TractResult<()>,
) -> TractResult<()> {
    let Some((axis, inner)) = axes.split_first() else { return visit(at) };
    let mut at = at.clone();
    for _ in 0..axis.length {
        walk(inner, &at, visit)?;
        at.iter_mut().zip(&axis.strides).for_each(|(at, stride)| *at += stride);
    }
    Ok(())
}

impl TypedOp for IntegerProduct {
    fn output_facts(&self, inputs: &[&TypedFact]) -> TractResult<TVec<TypedFact>> {
        self.einsum.output_facts(inputs)
    }

    as_op!();
}
