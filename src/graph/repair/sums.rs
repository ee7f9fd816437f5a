//! Sums of wide integers, which wrap in their own type: tract adds them up in 32 bits.

use tract_core::internal::*;
use tract_core::ndarray::{ArrayD, ArrayViewD, Axis};

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct WholeSum {
    pub axes: TVec<usize>,
}

/// Whether tract's own sum of this type is another.
pub fn is_wide(kind: DatumType) -> bool {
    matches!(kind, DatumType::I64 | DatumType::U32 | DatumType::U64)
}

impl WholeSum {
    fn sum<T: Datum + Copy + Default>(
        &self,
        x: &Tensor,
        add: fn(T, T) -> T,
    ) -> TractResult<Tensor> {
        let along = |x: ArrayViewD<T>, axis: usize| {
            x.fold_axis(Axis(axis), T::default(), |a, b| add(*a, *b)).insert_axis(Axis(axis))
        };
        let whole = x.to_plain_array_view::<T>()?;
        let mut sums: Option<ArrayD<T>> = None;
        for axis in &self.axes {
            let view = sums.as_ref().map_or(whole.view(), |sums| sums.view());
            sums = Some(along(view, *axis));
        }
        Ok(sums.map_or_else(|| x.clone(), |sums| sums.into_tensor()))
    }
}

impl Op for WholeSum {
    fn name(&self) -> StaticName {
        "WholeSum".into()
    }

    op_as_typed_op!();
}

impl EvalOp for WholeSum {
    op_out_of_plan!();

    fn eval(&self, _: &EvalContext, inputs: TVec<TValue>) -> TractResult<TVec<TValue>> {
        let x = &inputs[0];
        let sums = match x.datum_type() {
            DatumType::I64 => self.sum(x, i64::wrapping_add)?,
            DatumType::U32 => self.sum(x, u32::wrapping_add)?,
            DatumType::U64 => self.sum(x, u64::wrapping_add)?,
            other => bail!("whole sums of {other:?}"),
        };
        Ok(tvec![sums.into_tvalue()])
    }
}

impl TypedOp for WholeSum {
    fn output_facts(&self, inputs: &[&TypedFact]) -> TractResult<TVec<TypedFact>> {
        let mut shape = inputs[0].shape.to_tvec();
        for axis in &self.axes {
            shape[*axis] = 1.to_dim();
        }
        Ok(tvec![inputs[0].datum_type.fact(shape)])
    }

    as_op!();
}
