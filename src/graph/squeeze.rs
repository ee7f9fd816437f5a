//! Axes of length 1 taken away. tract wants them in their order, and of those that it is not told
//! takes an open one for longer.

use tract_core::internal::*;
use tract_onnx::tract_hir::infer::{InferenceResult, Solver, TensorProxy};
use tract_onnx::tract_hir::internal::IntoExp;
use tract_onnx::tract_hir::ops::array::RmDims;
use tract_onnx::tract_hir::ops::expandable::Expansion;

#[derive(Clone, Debug)]
pub struct Squeeze {
    /// All that are of length 1 where none are told.
    pub axes: Option<Vec<i64>>,
}

impl Squeeze {
    /// The axes that go, in their order.
    fn resolve(&self, shape: &[TDim]) -> TractResult<Vec<usize>> {
        let Some(axes) = &self.axes else {
            let open = shape.iter().find(|dim| dim.as_i64().is_none());
            if let Some(open) = open {
                bail!(
                    "a Squeeze without axes takes those away that turn out to be of length 1, \
                     and {open} may be or not: fix it with --dim NAME=SIZE"
                );
            }
            return Ok((0..shape.len()).filter(|axis| shape[*axis].is_one()).collect());
        };
        let rank = shape.len() as i64;
        let mut found = vec![];
        for axis in axes {
            let axis = if *axis < 0 { axis + rank } else { *axis };
            let dim = usize::try_from(axis).ok().and_then(|axis| shape.get(axis));
            let dim = dim.with_context(|| format!("axis {axis} of {rank}"))?;
            ensure!(dim.is_one(), "axis {axis} to be taken away is {dim}, not 1");
            found.push(axis as usize);
        }
        found.sort_unstable();
        found.dedup();
        Ok(found)
    }
}

impl Expansion for Squeeze {
    fn name(&self) -> StaticName {
        "Squeeze".into()
    }

    fn rules<'r, 'p: 'r, 's: 'r>(
        &'s self,
        s: &mut Solver<'r>,
        inputs: &'p [TensorProxy],
        outputs: &'p [TensorProxy],
    ) -> InferenceResult {
        s.equals(&outputs[0].datum_type, &inputs[0].datum_type)?;
        if let Some(axes) = &self.axes {
            s.equals(&outputs[0].rank, inputs[0].rank.bex() - axes.len() as i64)?;
        }
        s.given(&inputs[0].shape, move |s, shape| {
            let gone = self.resolve(&shape)?;
            let left = shape.iter().enumerate().filter(|(axis, _)| !gone.contains(axis));
            let left: TVec<TDim> = left.map(|(_, dim)| dim.clone()).collect();
            s.equals(&outputs[0].shape, left)
        })
    }

    fn wire(
        &self,
        prefix: &str,
        model: &mut TypedModel,
        inputs: &[OutletId],
    ) -> TractResult<TVec<OutletId>> {
        let gone = self.resolve(&model.outlet_fact(inputs[0])?.shape.to_tvec())?;
        let gone = gone.into_iter().map(|axis| axis as isize).collect();
        Expansion::wire(&RmDims::new(gone), prefix, model, &inputs[..1])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Axes 3 and 2 were taken away in that order, and an open one stayed even where it was 1.
    #[test]
    fn axes_go_in_any_order_and_none_that_may_be_longer() {
        let open = SymbolScope::default().sym("s").to_dim();
        let check = |axes: Option<&[i64]>, shape: &[TDim], expected: Option<&[usize]>| {
            let found = Squeeze { axes: axes.map(<[i64]>::to_vec) }.resolve(shape).ok();
            assert_eq!(found.as_deref(), expected, "{axes:?} of {shape:?}");
        };
        let [one, two] = [1, 2].map(|size: i64| size.to_dim());
        let image = [two.clone(), open.clone(), one.clone(), one.clone()];
        check(Some(&[3, 2]), &image, Some(&[2, 3]));
        check(Some(&[-1, 2]), &image, Some(&[2, 3]));
        check(Some(&[1]), &image, None);
        check(Some(&[4]), &image, None);
        check(None, &image, None);
        check(None, &[one.clone(), two, one], Some(&[0, 2]));
    }
}
