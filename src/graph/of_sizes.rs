//! Sizes of open axes compared and divided, which tract keeps as expressions: what holds whatever
//! they turn out to be is told at once, and all else is computed once they are numbers.

use tract_core::broadcast::multi_broadcast;
use tract_core::internal::*;
use tract_core::ops::cast::wire_cast;
use tract_onnx::tract_hir::ops::expandable::Expansion;

/// Of numbers: sizes of open axes, which tract keeps as expressions, become such before.
fn as_numbers(
    operator: &dyn Expansion,
    prefix: &str,
    model: &mut TypedModel,
    inputs: &[OutletId],
) -> TractResult<TVec<OutletId>> {
    let numbers = to_numbers(prefix, model, inputs)?;
    Expansion::wire(operator, prefix, model, &numbers)
}

/// The same values, of which none is a size of an open axis.
pub(super) fn to_numbers(
    prefix: &str,
    model: &mut TypedModel,
    inputs: &[OutletId],
) -> TractResult<TVec<OutletId>> {
    let mut inputs: TVec<OutletId> = inputs.into();
    for (index, input) in inputs.iter_mut().enumerate() {
        if model.outlet_fact(*input)?.datum_type.is_tdim() {
            let name = format!("{prefix}.number.{index}");
            *input = wire_cast(name, model, &[*input], i64::datum_type())?[0];
        }
    }
    Ok(inputs)
}

/// Numbers as sizes.
pub(super) fn as_sizes(
    prefix: &str,
    model: &mut TypedModel,
    wires: &[OutletId],
) -> TractResult<TVec<OutletId>> {
    wire_cast(format!("{prefix}.size"), model, wires, TDim::datum_type())
}

/// Whether sizes are equal. tract has it that two expressions are not that read differently.
pub fn equal(
    operator: &dyn Expansion,
    prefix: &str,
    model: &mut TypedModel,
    inputs: &[OutletId],
) -> TractResult<TVec<OutletId>> {
    match each_of(model, inputs, are_equal)? {
        Told::Of(equal) => Ok(tvec!(model.add_const(prefix, equal)?)),
        Told::NoSizes => Expansion::wire(operator, prefix, model, inputs),
        Told::Nothing => as_numbers(operator, prefix, model, inputs),
    }
}

/// A quotient, which has the sign of both, towards zero.
pub fn quotient(
    operator: &dyn Expansion,
    prefix: &str,
    model: &mut TypedModel,
    inputs: &[OutletId],
) -> TractResult<TVec<OutletId>> {
    match each_of(model, inputs, |a, b| divided(a, b.as_i64()?))? {
        Told::Of(quotient) => Ok(tvec!(model.add_const(prefix, quotient)?)),
        Told::NoSizes => Expansion::wire(operator, prefix, model, inputs),
        Told::Nothing => sizes_again(operator, prefix, model, inputs),
    }
}

/// What remains, which has the sign of the divisor, or of what is divided where `fmod` says so.
pub fn remainder(
    operator: &dyn Expansion,
    prefix: &str,
    model: &mut TypedModel,
    inputs: &[OutletId],
) -> TractResult<TVec<OutletId>> {
    let is_of_divisor = Expansion::name(operator) == "Remint";
    let remaining = |a: &TDim, b: &TDim| match (a.as_i64(), b.as_i64()?) {
        (_, 0) => None,
        (Some(a), b) if is_of_divisor => Some(floored(a, b).to_dim()),
        (None, b) if b > 0 && least(a, 1).is_some_and(|least| least >= 0) => Some(a.clone() % b),
        _ => None,
    };
    match each_of(model, inputs, remaining)? {
        Told::Of(rest) => Ok(tvec!(model.add_const(prefix, rest)?)),
        Told::Nothing if is_of_divisor => sizes_again(operator, prefix, model, inputs),
        _ => Expansion::wire(operator, prefix, model, inputs),
    }
}

fn sizes_again(
    operator: &dyn Expansion,
    prefix: &str,
    model: &mut TypedModel,
    inputs: &[OutletId],
) -> TractResult<TVec<OutletId>> {
    let wires = as_numbers(operator, prefix, model, inputs)?;
    as_sizes(prefix, model, &wires)
}

/// What two values come to of which one is of sizes at least.
enum Told {
    NoSizes,
    Nothing,
    Of(Tensor),
}

fn each_of<T: Datum>(
    model: &TypedModel,
    inputs: &[OutletId],
    of: impl Fn(&TDim, &TDim) -> Option<T>,
) -> TractResult<Told> {
    let [a, b] = inputs else { return Ok(Told::NoSizes) };
    let (a, b) = (model.outlet_fact(*a)?, model.outlet_fact(*b)?);
    let is_number = |fact: &TypedFact| fact.datum_type.is_tdim() || fact.datum_type.is_integer();
    let is_of_sizes = a.datum_type.is_tdim() || b.datum_type.is_tdim();
    if !is_of_sizes || !is_number(a) || !is_number(b) {
        return Ok(Told::NoSizes);
    }
    let (Some(a), Some(b)) = (&a.konst, &b.konst) else { return Ok(Told::Nothing) };
    let (a, b) = (a.cast_to::<TDim>()?, b.cast_to::<TDim>()?);
    let shape = multi_broadcast(&[a.shape(), b.shape()])?;
    let (a, b) = (a.to_plain_array_view::<TDim>()?, b.to_plain_array_view::<TDim>()?);
    let (Some(a), Some(b)) = (a.broadcast(&*shape), b.broadcast(&*shape)) else {
        return Ok(Told::Nothing);
    };
    let told: Option<Vec<T>> = a.iter().zip(b.iter()).map(|(a, b)| of(a, b)).collect();
    Ok(match told {
        Some(told) => Told::Of(tract_ndarray::ArrayD::from_shape_vec(&*shape, told)?.into_tensor()),
        None => Told::Nothing,
    })
}

/// Whether two sizes are equal; none where that depends on the inputs.
fn are_equal(a: &TDim, b: &TDim) -> Option<bool> {
    let apart = a.clone() - b;
    if let Some(apart) = apart.as_i64() {
        return Some(apart == 0);
    }
    let is_above = |apart: &TDim| least(apart, 0).is_some_and(|least| least > 0);
    (is_above(&apart) || is_above(&(b.clone() - a))).then_some(false)
}

/// A size divided by a number, cut off towards zero.
fn divided(a: &TDim, b: i64) -> Option<TDim> {
    if let Some(a) = a.as_i64() {
        return a.checked_div(b).map(|quotient| quotient.to_dim());
    }
    let positive = |size: TDim| size / b.unsigned_abs();
    let quotient = match least(a, 1) {
        _ if b == 0 => return None,
        Some(0..) => positive(a.clone()),
        // A quotient of what may be negative is rounded down as one expression.
        _ => {
            let negated = 0.to_dim() - a.clone();
            positive(a.clone().maxi(0.to_dim())) - positive(negated.maxi(0.to_dim()))
        }
    };
    Some(if b < 0 { 0.to_dim() - quotient } else { quotient })
}

/// What remains of a division that is rounded down.
fn floored(a: i64, b: i64) -> i64 {
    let rest = a.wrapping_rem(b);
    if rest != 0 && (rest < 0) != (b < 0) { rest + b } else { rest }
}

/// No more than a size comes to where open axes are `of_open` long or longer; none where that is not
/// known.
pub fn least(size: &TDim, of_open: i64) -> Option<i64> {
    let each = |sizes: &[TDim]| -> Option<Vec<i64>> {
        sizes.iter().map(|size| least(size, of_open)).collect()
    };
    match size {
        TDim::Val(value) => Some(*value),
        TDim::Sym(_) => Some(of_open),
        TDim::Add(terms) => each(terms)?.into_iter().try_fold(0i64, i64::checked_add),
        TDim::MulInt(times, size) if *times >= 0 => least(size, of_open)?.checked_mul(*times),
        TDim::Mul(factors) => {
            let factors = each(factors)?;
            let is_known = factors.iter().all(|factor| *factor >= 0);
            is_known.then(|| factors.into_iter().try_fold(1, i64::checked_mul)).flatten()
        }
        TDim::Div(size, by) => {
            let least = least(size, of_open)?;
            (least >= 0).then(|| least / i64::try_from(*by).unwrap_or(i64::MAX))
        }
        TDim::Max(sizes) => sizes.iter().filter_map(|size| least(size, of_open)).max(),
        TDim::Min(sizes) => each(sizes)?.into_iter().min(),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sizes that read differently were never equal, and what is divided was rounded down.
    #[test]
    fn what_holds_for_all_sizes_is_told() {
        let symbols = SymbolScope::default();
        let size = |text: &str| symbols.parse_tdim(text).unwrap();
        let equal = |a: &str, b: &str, expected: Option<bool>| {
            assert_eq!(are_equal(&size(a), &size(b)), expected, "{a} and {b}");
        };
        equal("s", "s", Some(true));
        equal("s+1", "1+s", Some(true));
        equal("s", "7", None);
        equal("s", "t", None);
        equal("s", "-1", Some(false));
        equal("s", "s+2", Some(false));
        equal("s+1", "0", Some(false));
        equal("s", "0", None);
        equal("3", "4", Some(false));
        for (text, by) in [("s+-9", 3), ("s+-9", -2), ("-1*s", 3), ("s", 3), ("s+-1", 2)] {
            let quotient = divided(&size(text), by).unwrap();
            for s in 1..20 {
                let values = SymbolValues::default().with(&symbols.sym("s"), s);
                let a = size(text).eval_to_i64(&values).unwrap();
                assert_eq!(quotient.eval_to_i64(&values).unwrap(), a / by, "{text} of {s} by {by}");
            }
        }
        assert_eq!(divided(&size("s"), 0), None);
        assert_eq!([(-7, 3), (7, -3), (-6, 3), (7, 3)].map(|(a, b)| floored(a, b)), [2, -2, 0, 1]);
    }
}
