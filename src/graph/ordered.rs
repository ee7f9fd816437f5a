//! Floats as integers of the same order, in which NaN is the greatest: what compares them needs no
//! rule of its own for NaN, and tract's comparisons have none.

use tract_core::element_wise_oop;
use tract_core::internal::*;

/// A float with a place among all others.
trait Ordered: Datum + Copy {
    type Key: Datum + Copy;

    /// Zeros of both signs have the same.
    fn key(self) -> Self::Key;

    fn of(key: Self::Key) -> Self;

    /// Whether it is below what tract takes for the least of all, or no number.
    fn is_odd(self) -> bool;
}

macro_rules! ordered {
    ($float:ty, $key:ty) => {
        impl Ordered for $float {
            type Key = $key;

            fn key(self) -> $key {
                let bits = (self + <$float>::from(0u8)).to_bits().cast_signed();
                match self.is_nan() {
                    true => <$key>::MAX,
                    // Those of negative floats count down where those of integers count up.
                    false if bits < 0 => bits ^ <$key>::MAX,
                    false => bits,
                }
            }

            fn of(key: $key) -> $float {
                let bits = if key < 0 { key ^ <$key>::MAX } else { key };
                <$float>::from_bits(bits.cast_unsigned())
            }

            fn is_odd(self) -> bool {
                self.is_nan() || self == <$float>::NEG_INFINITY
            }
        }
    };
}

ordered!(f16, i16);
ordered!(f32, i32);
ordered!(f64, i64);

element_wise_oop!(place, Place {},
    [f16] => i16 |_, xs, ys| { place_all(xs, ys); Ok(()) },
    [f32] => i32 |_, xs, ys| { place_all(xs, ys); Ok(()) },
    [f64] => i64 |_, xs, ys| { place_all(xs, ys); Ok(()) }
);

fn place_all<T: Ordered>(values: &[T], keys: &mut [T::Key]) {
    values.iter().zip(keys).for_each(|(value, key)| *key = value.key());
}

/// Evaluates what compares its first input's elements and gives some of them as its first output.
pub fn by_order(
    inputs: TVec<TValue>,
    eval: &dyn Fn(TVec<TValue>) -> TractResult<TVec<TValue>>,
) -> TractResult<TVec<TValue>> {
    match inputs[0].datum_type() {
        DatumType::F16 => through::<f16>(inputs, eval),
        DatumType::F32 => through::<f32>(inputs, eval),
        DatumType::F64 => through::<f64>(inputs, eval),
        _ => eval(inputs),
    }
}

fn through<T: Ordered>(
    mut inputs: TVec<TValue>,
    eval: &dyn Fn(TVec<TValue>) -> TractResult<TVec<TValue>>,
) -> TractResult<TVec<TValue>> {
    if !inputs[0].to_plain_array_view::<T>()?.iter().any(|value| value.is_odd()) {
        return eval(inputs);
    }
    let keys = inputs[0].to_plain_array_view::<T>()?.mapv(T::key);
    inputs[0] = keys.into_tensor().into_tvalue();
    let mut outputs = eval(inputs)?;
    let values = outputs[0].to_plain_array_view::<T::Key>()?.mapv(T::of);
    outputs[0] = values.into_tensor().into_tvalue();
    Ok(outputs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_have_the_order_of_their_floats() {
        let rising = [f32::NEG_INFINITY, f32::MIN, -1.0, -1e-40, 0.0, 1e-40, 2.5, f32::INFINITY];
        assert!(rising.is_sorted_by(|a, b| a.key() < b.key()));
        assert!(rising.iter().all(|x| f32::of(x.key()) == *x && x.key() < f32::NAN.key()));
        assert_eq!((-0.0f32).key(), 0.0f32.key());
        assert_eq!((-f32::NAN).key(), f32::NAN.key());
        assert!(f32::of(f32::NAN.key()).is_nan());
        assert_eq!(f16::of(f16::from_f32(-2.5).key()).to_f32(), -2.5);
        assert_eq!(f64::of((-2.5f64).key()), -2.5);
    }
}
