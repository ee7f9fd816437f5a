//! Activations that keep NaN: tract's kernels clamp it to the end of their range.

use tract_core::internal::*;
use tract_core::ops::element_wise::{ElementWiseMiniOp, ElementWiseOp};
use tract_core::ops::math::Tanh;
use tract_core::ops::nn::{Sigmoid, Silu};

/// An op of tract's on single numbers, of which a NaN is NaN.
#[derive(Clone, Debug)]
struct KeepsNan(Box<dyn ElementWiseMiniOp>);

/// The op with its NaN, where tract loses it.
pub fn keeping_nan(op: &dyn TypedOp) -> Option<ElementWiseOp> {
    let ElementWiseOp(op, dtype) = op.downcast_ref()?;
    let loses = op.is::<Sigmoid>() || op.is::<Tanh>() || op.is::<Silu>();
    loses.then(|| ElementWiseOp(Box::new(KeepsNan(op.clone())), *dtype))
}

impl PartialEq for KeepsNan {
    fn eq(&self, other: &KeepsNan) -> bool {
        // None of them has settings.
        self.0.name() == other.0.name()
    }
}

impl Eq for KeepsNan {}

impl ElementWiseMiniOp for KeepsNan {
    fn name(&self) -> String {
        self.0.name()
    }

    fn eval_in_place(&self, t: &mut Tensor, out_dt: Option<DatumType>) -> TractResult<()> {
        match t.datum_type() {
            DatumType::F16 => self.eval(t, out_dt, f16::is_nan, f16::NAN),
            DatumType::F32 => self.eval(t, out_dt, f32::is_nan, f32::NAN),
            _ => self.0.eval_in_place(t, out_dt),
        }
    }

    fn operating_datum_type(&self, dt: DatumType) -> DatumType {
        self.0.operating_datum_type(dt)
    }
}

impl KeepsNan {
    fn eval<T: Datum + Copy>(
        &self,
        values: &mut Tensor,
        out_dt: Option<DatumType>,
        is_nan: fn(T) -> bool,
        nan: T,
    ) -> TractResult<()> {
        // A bit for each element: most values have none, and a NaN takes no more than others.
        let mut places: Vec<u64> = vec![];
        let plain = values.try_as_plain_ram()?;
        let elements = plain.as_slice::<T>()?;
        if elements.iter().any(|x| is_nan(*x)) {
            let bits =
                |some: &[T]| some.iter().rev().fold(0, |bits, x| bits << 1 | u64::from(is_nan(*x)));
            places = elements.chunks(u64::BITS as usize).map(bits).collect();
        }
        self.0.eval_in_place(values, out_dt)?;
        if places.is_empty() {
            return Ok(());
        }
        let mut plain = values.try_as_plain_ram_mut()?;
        for (index, x) in plain.as_slice_mut::<T>()?.iter_mut().enumerate() {
            let bits = places[index / u64::BITS as usize];
            if bits >> (index % u64::BITS as usize) & 1 == 1 {
                *x = nan;
            }
        }
        Ok(())
    }
}
