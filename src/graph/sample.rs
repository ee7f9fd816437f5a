//! Inputs that a model accepts whatever they mean, to measure it with.

use crate::store::Dtype;
use crate::store::manifest::{Dim, Port};
use crate::wire::{Array, ArrayError};
use std::iter;

/// Ids are below it where nothing is known of a table: most have more rows.
const MANY: i64 = 1000;

/// An array for each input: small ids, ones in masks, a ramp of floats; every open dimension is
/// `tokens`.
pub fn sample_inputs(ports: &[Port], tokens: usize) -> Result<Vec<(String, Array)>, ArrayError> {
    let size = |dim: &Dim| match dim {
        // What does not fit is refused with the shape's bytes.
        Dim::Fixed(size) => usize::try_from(*size).unwrap_or(usize::MAX),
        Dim::Symbol(_) => tokens,
    };
    let shapes = ports.iter().map(|port| port.shape.iter().map(size).collect());
    sample_of_shapes(ports, shapes.collect(), &[])
}

/// The same of these shapes, one for each input; `rows` are those of the table that each picks from,
/// where they are known: ids are below them.
pub fn sample_of_shapes(
    ports: &[Port],
    shapes: Vec<Vec<usize>>,
    rows: &[Option<usize>],
) -> Result<Vec<(String, Array)>, ArrayError> {
    let rows = rows.iter().copied().chain(iter::repeat(None));
    let ports = ports.iter().zip(shapes).zip(rows);
    let samples =
        ports.map(|((port, shape), rows)| Ok((port.name.clone(), sample(port, shape, rows)?)));
    samples.collect()
}

/// Whether the inputs have an open dimension, so that the number of tokens matters.
pub fn has_open_dimension(ports: &[Port]) -> bool {
    ports.iter().flat_map(|port| &port.shape).any(|dim| matches!(dim, Dim::Symbol(_)))
}

fn sample(port: &Port, shape: Vec<usize>, rows: Option<usize>) -> Result<Array, ArrayError> {
    let limit = rows.map_or(MANY, |rows| (rows as i64).clamp(1, MANY));
    let count = shape.iter().try_fold(1usize, |count, size| count.checked_mul(*size));
    let Some(count) = count.filter(|count| *count <= isize::MAX as usize / port.dtype.size())
    else {
        return Err(ArrayError::Shape { shape });
    };
    let ids = (0..count as i64).map(|i| match port.name.as_str() {
        name if name.contains("mask") => 1,
        name if name.contains("type") => 0,
        name if name.contains("position") => i,
        _ => (i * 37 + 101) % limit,
    });
    match port.dtype {
        Dtype::Int64 => Array::from_i64(shape, &ids.collect::<Vec<_>>()),
        Dtype::Int32 => {
            let bytes = ids.flat_map(|id| (id as i32).to_le_bytes()).collect();
            Array::new(Dtype::Int32, shape, bytes)
        }
        Dtype::Fp32 => {
            let floats: Vec<f32> = (0..count).map(|i| (i % 97) as f32 / 48.5 - 1.0).collect();
            Array::from_f32(shape, &floats)
        }
        other => Array::new(other, shape, vec![0; count * other.size()]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_input_gets_an_array_of_its_shape() {
        let port = |name: &str, dtype, shape: &[Dim]| Port {
            name: name.to_owned(),
            dtype,
            shape: shape.to_vec(),
        };
        let open = Dim::Symbol("sequence".to_owned());
        let ports: Vec<Port> = Dtype::ALL
            .into_iter()
            .map(|dtype| port(dtype.name(), dtype, &[Dim::Fixed(2), open.clone()]))
            .collect();
        assert!(has_open_dimension(&ports));
        for (_, array) in sample_inputs(&ports, 7).unwrap() {
            assert_eq!(array.shape, [2, 7]);
        }
        let mask = port("attention_mask", Dtype::Int64, &[Dim::Fixed(1), open]);
        let (_, mask) = sample_inputs(&[mask], 3).unwrap().remove(0);
        assert_eq!(mask, Array::from_i64(vec![1, 3], &[1, 1, 1]).unwrap());
        let ids = port("input_ids", Dtype::Int64, &[Dim::Fixed(1), Dim::Fixed(4)]);
        let below = sample_of_shapes(&[ids], vec![vec![1, 4]], &[Some(100)]).unwrap();
        assert_eq!(below[0].1, Array::from_i64(vec![1, 4], &[1, 38, 75, 12]).unwrap());
        let huge = port("x", Dtype::Fp32, &[Dim::Fixed(u64::MAX), Dim::Fixed(9)]);
        assert!(!has_open_dimension(std::slice::from_ref(&huge)));
        assert!(sample_inputs(&[huge], 1).is_err());
    }
}
