//! The largest or the smallest number along axes: NaN where there is one, minus or plus infinity
//! where there is nothing.

use tract_core::internal::*;
use tract_core::ndarray::{ArrayD, Axis};

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Extreme {
    pub axes: TVec<usize>,
    pub largest: bool,
}

impl Extreme {
    fn reduce<T: Datum + Copy>(
        &self,
        input: &Tensor,
        least: T,
        beats: fn(T, T) -> bool,
    ) -> TractResult<Tensor> {
        let mut array: ArrayD<T> = input.to_plain_array_view::<T>()?.to_owned();
        for axis in &self.axes {
            let along = |best: T, x: T| if beats(x, best) { x } else { best };
            array = array
                .map_axis(Axis(*axis), |lane| lane.iter().fold(least, |best, x| along(best, *x)))
                .insert_axis(Axis(*axis));
        }
        Ok(array.into_tensor())
    }
}

impl Op for Extreme {
    fn name(&self) -> StaticName {
        if self.largest { "Largest".into() } else { "Smallest".into() }
    }

    op_as_typed_op!();
}

impl EvalOp for Extreme {
    op_out_of_plan!();

    fn eval(&self, _: &EvalContext, inputs: TVec<TValue>) -> TractResult<TVec<TValue>> {
        let input = &inputs[0];
        // A NaN beats all and is beaten by none.
        let output = match (input.datum_type(), self.largest) {
            (DatumType::F32, true) => {
                self.reduce(input, f32::NEG_INFINITY, |x, best| x > best || x.is_nan())?
            }
            (DatumType::F32, false) => {
                self.reduce(input, f32::INFINITY, |x, best| x < best || x.is_nan())?
            }
            (DatumType::F64, true) => {
                self.reduce(input, f64::NEG_INFINITY, |x, best| x > best || x.is_nan())?
            }
            (DatumType::F64, false) => {
                self.reduce(input, f64::INFINITY, |x, best| x < best || x.is_nan())?
            }
            (DatumType::F16, true) => {
                self.reduce(input, f16::NEG_INFINITY, |x, best| x > best || x.is_nan())?
            }
            (DatumType::F16, false) => {
                self.reduce(input, f16::INFINITY, |x, best| x < best || x.is_nan())?
            }
            (other, _) => bail!("extremes of {other:?}"),
        };
        Ok(tvec![output.into_tvalue()])
    }
}

impl TypedOp for Extreme {
    fn output_facts(&self, inputs: &[&TypedFact]) -> TractResult<TVec<TypedFact>> {
        let mut shape = inputs[0].shape.to_tvec();
        for axis in &self.axes {
            shape[*axis] = 1.to_dim();
        }
        Ok(tvec![inputs[0].datum_type.fact(shape)])
    }

    as_op!();
}
