//! The rows of a batch: a request is cut along the batch's axis, each row is computed on its own,
//! and the answers are joined again.

use super::error::EngineError;
use crate::wire::Array;

/// The rows' answers for the output `name` as one array, beside each other along `axis`.
///
/// # Errors
///
/// Where they are not of one shape: what a row comes to may depend on its values.
pub(super) fn join(name: &str, axis: usize, rows: Vec<Array>) -> Result<Array, EngineError> {
    let Some(first) = rows.first() else {
        return Err(EngineError::Internal(format!("output \"{name}\" of no rows")));
    };
    let fits = |row: &Array| {
        row.dtype == first.dtype && row.shape == first.shape && row.shape.get(axis) == Some(&1)
    };
    if let Some(index) = rows.iter().position(|row| !fits(row)) {
        return Err(EngineError::Invalid(format!(
            "output \"{name}\" has shape {:?} for row 0 of the batch and {:?} for row {index}: \
             ask for one row at a time",
            first.shape, rows[index].shape
        )));
    }
    let (outer, inner_bytes) = first.extents(axis);
    let (dtype, mut shape) = (first.dtype, first.shape.clone());
    shape[axis] = rows.len();
    let mut bytes = Vec::with_capacity(rows.len() * outer * inner_bytes);
    for block in 0..outer {
        let range = block * inner_bytes..(block + 1) * inner_bytes;
        rows.iter().for_each(|row| bytes.extend_from_slice(&row.bytes[range.clone()]));
    }
    Ok(Array { dtype, shape, bytes })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_cut_can_be_joined_along_any_axis() {
        let values: Vec<f32> = (0..24).map(|value| value as f32).collect();
        for (shape, axis) in [([4, 3, 2], 0), ([3, 4, 2], 1), ([3, 2, 4], 2), ([0, 4, 2], 1)] {
            let count: usize = shape.iter().product();
            let array = Array::from_f32(shape.to_vec(), &values[..count]).unwrap();
            let rows: Vec<Array> = (0..4).map(|row| array.row(axis, row)).collect();
            assert_eq!(join("y", axis, rows).unwrap(), array, "{shape:?}");
        }
        let array = Array::from_f32(vec![2, 3], &[0.0, 1.0, 2.0, 3.0, 4.0, 5.0]).unwrap();
        assert_eq!(array.row(1, 2), Array::from_f32(vec![2, 1], &[2.0, 5.0]).unwrap());
    }

    #[test]
    fn rows_that_differ_are_not_joined() {
        let row = |count: usize| Array::from_f32(vec![1, count], &vec![0.0; count]).unwrap();
        let error = join("y", 0, vec![row(2), row(2), row(3)]).unwrap_err().to_string();
        assert!(error.contains("\"y\" has shape [1, 2] for row 0"), "{error}");
        assert!(error.contains("[1, 3] for row 2"), "{error}");
        assert!(join("y", 0, vec![]).is_err());
    }
}
