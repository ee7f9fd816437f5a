//! Sizes that values decide, told before anything of them is allocated: how far a range counts, how
//! often a value is repeated, how many of its elements are not zero.

use super::checked::{Checked, cut, numbers, scalar};
use tract_core::internal::*;

/// Beyond this, tract's count of a range's numbers, in 64-bit floats, is no longer exact.
const MAX_EXACT: f64 = (1u64 << f64::MANTISSA_DIGITS) as f64;

/// Bytes that a suppression keeps of each box that it selects, in vectors that double.
const SELECTED_BYTES: u64 = 128;

/// The same of each box that it looks at.
const CANDIDATE_BYTES: u64 = 48;

/// Dimensions of a node's outputs that its inputs' values decide, and what they come to. What makes
/// no sense is left to the op to refuse.
pub fn sizes(
    node: &TypedNode,
    symbols: &SymbolValues,
    inputs: &[TValue],
) -> TractResult<Vec<(TDim, usize)>> {
    let dim = |axis: usize| node.outputs[0].fact.shape[axis].clone();
    Ok(match (node.op_as::<Checked>(), inputs) {
        (Some(Checked::Range(_)), [start, end, step]) => {
            vec![(dim(0), range(symbols, [start, end, step])?)]
        }
        (Some(Checked::Tile(op)), [_, repeats]) => {
            let times = numbers(repeats, symbols)?.into_iter().map(usize::try_from);
            let dims = op.multiplier_placeholders.iter().cloned().zip(times);
            dims.filter_map(|(dim, times)| Some((dim, times.ok()?))).collect()
        }
        (Some(Checked::Slice(op)), [data, start, end]) => {
            let bounds = (scalar(start, symbols)?, scalar(end, symbols)?);
            let (start, end) = cut(op, data, bounds)?;
            vec![(op.len.clone(), end - start)]
        }
        (Some(Checked::Topk(op)), [data, k]) => {
            let k = usize::try_from(k.cast_to_scalar::<i64>()?).ok();
            let k = k.filter(|k| *k <= data.shape()[op.axis]);
            k.map(|k| (dim(op.axis), k)).into_iter().collect()
        }
        _ if node.op.name() == "NonZero" => vec![(dim(1), nonzeros(&inputs[0])?)],
        _ => vec![],
    })
}

/// Bytes that a node works with besides, as far as its inputs' values decide them.
pub fn work_bytes(node: &TypedNode, inputs: &[TValue]) -> TractResult<u64> {
    match inputs {
        [_, scores, most, ..] if node.op.name() == "NonMaxSuppression" => {
            let &[batch, classes, boxes] = scores.shape() else { bail!("scores of three axes") };
            let most = usize::try_from(most.cast_to_scalar::<i64>()?).unwrap_or(0);
            let selected = (batch * classes) as u64 * most.min(boxes) as u64;
            Ok(selected * SELECTED_BYTES + boxes as u64 * CANDIDATE_BYTES)
        }
        _ => Ok(0),
    }
}

/// How many numbers a range has.
fn range(symbols: &SymbolValues, bounds: [&TValue; 3]) -> TractResult<usize> {
    let number = |value: &TValue| match value.datum_type().is_float() {
        true => value.cast_to_scalar::<f64>(),
        false => scalar(value, symbols).map(|number| number as f64),
    };
    let [start, end, step] = bounds.map(number);
    let (start, end, step) = (start?, end?, step?);
    let is_exact = [start, end, step].iter().all(|number| number.abs() <= MAX_EXACT);
    ensure!(is_exact && step != 0.0, "a range from {start} to {end} in steps of {step}");
    Ok(((end - start) / step).ceil() as usize)
}

fn nonzeros(values: &Tensor) -> TractResult<usize> {
    fn count<T: Datum + Default + PartialEq>(values: &Tensor) -> TractResult<usize> {
        let (values, zero) = (values.to_plain_array_view::<T>()?, T::default());
        Ok(values.iter().filter(|value| **value != zero).count())
    }
    match values.datum_type() {
        DatumType::Bool => count::<bool>(values),
        other => dispatch_numbers!(count(other)(values)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_has_as_many_numbers_as_onnx_counts() {
        let check = |bounds: [Tensor; 3], expected: Option<usize>| {
            let values = bounds.map(Tensor::into_tvalue);
            let found = range(&SymbolValues::default(), values.each_ref()).ok();
            assert_eq!(found, expected, "{values:?}");
        };
        let ints = |numbers: [i64; 3]| numbers.map(tensor0);
        check(ints([0, 5, 2]), Some(3));
        check(ints([5, 0, -2]), Some(3));
        check(ints([5, 0, 2]), Some(0));
        check(ints([0, 5, 0]), None);
        check(ints([i64::MIN, i64::MAX, 1]), None);
        check([0.0f32, 1.0, 0.3].map(tensor0), Some(4));
        check([0.0f32, f32::INFINITY, 1.0].map(tensor0), None);
        check([0.0f32, f32::NAN, 1.0].map(tensor0), None);
        check([0, 10_000_000_000i64, 1].map(|n| tensor0(n.to_dim())), Some(10_000_000_000));
    }

    #[test]
    fn what_is_not_zero_is_counted() {
        assert_eq!(nonzeros(&tensor1(&[0.0f32, -0.0, f32::NAN, 1.0])).unwrap(), 2);
        assert_eq!(nonzeros(&tensor1(&[true, false, true])).unwrap(), 2);
        assert_eq!(nonzeros(&tensor2(&[[0i64, 3], [-1, 0]])).unwrap(), 2);
    }
}
