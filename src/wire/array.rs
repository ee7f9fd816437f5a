//! Typed bytes with a shape, as they cross the engine's border.

use crate::store::Dtype;
use half::{bf16, f16};
use thiserror::Error;

/// A tensor as it crosses the engine's border: element type, shape, little-endian bytes in
/// row-major order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Array {
    pub dtype: Dtype,
    pub shape: Vec<usize>,
    pub bytes: Vec<u8>,
}

/// An array whose parts disagree.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum ArrayError {
    #[error("shape {shape:?} of {dtype} takes {expected} bytes, there are {found}")]
    Length { dtype: Dtype, shape: Vec<usize>, expected: u64, found: usize },
    #[error("shape {shape:?} is too large")]
    Shape { shape: Vec<usize> },
    #[error("element {index} of a BOOL is {value}, not 0 or 1")]
    Bool { index: usize, value: u8 },
}

impl Array {
    /// Checks that the parts agree.
    pub fn new(dtype: Dtype, shape: Vec<usize>, bytes: Vec<u8>) -> Result<Array, ArrayError> {
        let size = shape.iter().try_fold(dtype.size(), |size, dim| size.checked_mul(*dim));
        let Some(expected) = size.filter(|size| *size <= isize::MAX as usize) else {
            return Err(ArrayError::Shape { shape });
        };
        if expected != bytes.len() {
            let (expected, found) = (expected as u64, bytes.len());
            return Err(ArrayError::Length { dtype, shape, expected, found });
        }
        if dtype == Dtype::Bool
            && let Some(index) = bytes.iter().position(|value| *value > 1)
        {
            return Err(ArrayError::Bool { index, value: bytes[index] });
        }
        Ok(Array { dtype, shape, bytes })
    }

    /// An f32 array.
    pub fn from_f32(shape: Vec<usize>, values: &[f32]) -> Result<Array, ArrayError> {
        let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        Array::new(Dtype::Fp32, shape, bytes)
    }

    /// An i64 array.
    pub fn from_i64(shape: Vec<usize>, values: &[i64]) -> Result<Array, ArrayError> {
        let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        Array::new(Dtype::Int64, shape, bytes)
    }

    /// Its values, where it is f32.
    pub fn to_f32(&self) -> Option<Vec<f32>> {
        (self.dtype == Dtype::Fp32).then(|| {
            let (values, _) = self.bytes.as_chunks::<4>();
            values.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
        })
    }

    /// Its values, where they are floats; those of FP64 as near as f32 comes.
    pub fn floats(&self) -> Option<Vec<f32>> {
        let bytes = &self.bytes;
        Some(match self.dtype {
            Dtype::Fp32 => bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect(),
            Dtype::Fp64 => {
                bytes.as_chunks().0.iter().map(|b| f64::from_le_bytes(*b) as f32).collect()
            }
            Dtype::Fp16 => {
                bytes.as_chunks().0.iter().map(|b| f16::from_le_bytes(*b).to_f32()).collect()
            }
            Dtype::Bf16 => {
                bytes.as_chunks().0.iter().map(|b| bf16::from_le_bytes(*b).to_f32()).collect()
            }
            _ => return None,
        })
    }

    /// Row `row` along `axis`, which keeps a length of 1.
    ///
    /// Panics where there is none.
    pub fn row(&self, axis: usize, row: usize) -> Array {
        let (outer, inner_bytes) = self.extents(axis);
        let rows = self.shape[axis];
        let mut bytes = Vec::with_capacity(outer * inner_bytes);
        for block in 0..outer {
            let start = (block * rows + row) * inner_bytes;
            bytes.extend_from_slice(&self.bytes[start..start + inner_bytes]);
        }
        let mut shape = self.shape.clone();
        shape[axis] = 1;
        Array { dtype: self.dtype, shape, bytes }
    }

    /// How many pieces of how many bytes a row along `axis` consists of.
    pub fn extents(&self, axis: usize) -> (usize, usize) {
        let outer = self.shape[..axis].iter().product();
        let inner: usize = self.shape[axis + 1..].iter().product();
        (outer, inner * self.dtype.size())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_must_agree() {
        let length = Array::new(Dtype::Fp32, vec![2, 3], vec![0; 23]);
        assert!(matches!(length, Err(ArrayError::Length { expected: 24, found: 23, .. })));
        let huge = Array::new(Dtype::Fp64, vec![usize::MAX, 2], vec![]);
        assert!(matches!(huge, Err(ArrayError::Shape { .. })));
        let boolean = Array::new(Dtype::Bool, vec![2], vec![1, 2]);
        assert_eq!(boolean, Err(ArrayError::Bool { index: 1, value: 2 }));
    }
}
