//! Tract's element types and the API's.

use crate::store::Dtype;
use crate::wire::Array;
use tract_core::internal::*;

/// The element type of the API that stands for one of tract's; symbolic dimensions leave as
/// 64-bit integers.
pub fn dtype_of(dtype: DatumType) -> Option<Dtype> {
    Some(match dtype {
        DatumType::Bool => Dtype::Bool,
        DatumType::U8 => Dtype::Uint8,
        DatumType::U16 => Dtype::Uint16,
        DatumType::U32 => Dtype::Uint32,
        DatumType::U64 => Dtype::Uint64,
        DatumType::I8 => Dtype::Int8,
        DatumType::I16 => Dtype::Int16,
        DatumType::I32 => Dtype::Int32,
        DatumType::I64 | DatumType::TDim => Dtype::Int64,
        DatumType::F16 => Dtype::Fp16,
        DatumType::F32 => Dtype::Fp32,
        DatumType::F64 => Dtype::Fp64,
        _ => return None,
    })
}

/// Tract's element type for one of the API; `None` for bf16, which tract does not have.
pub fn datum_of(dtype: Dtype) -> Option<DatumType> {
    Some(match dtype {
        Dtype::Bool => DatumType::Bool,
        Dtype::Uint8 => DatumType::U8,
        Dtype::Uint16 => DatumType::U16,
        Dtype::Uint32 => DatumType::U32,
        Dtype::Uint64 => DatumType::U64,
        Dtype::Int8 => DatumType::I8,
        Dtype::Int16 => DatumType::I16,
        Dtype::Int32 => DatumType::I32,
        Dtype::Int64 => DatumType::I64,
        Dtype::Fp16 => DatumType::F16,
        Dtype::Fp32 => DatumType::F32,
        Dtype::Fp64 => DatumType::F64,
        Dtype::Bf16 => return None,
    })
}

/// The tensor tract computes with; `None` for an element type it does not have.
pub fn tensor_of(array: &Array) -> Option<TractResult<Tensor>> {
    let datum = datum_of(array.dtype)?;
    Some(Tensor::zero_dt(datum, &array.shape).map(|mut tensor| {
        tensor.as_bytes_mut().copy_from_slice(&array.bytes);
        tensor
    }))
}

/// The array of a tensor; symbolic dimensions become 64-bit integers.
pub fn array_of(tensor: &Tensor) -> TractResult<Array> {
    let dtype = dtype_of(tensor.datum_type())
        .with_context(|| format!("{:?} cannot leave the engine", tensor.datum_type()))?;
    let datum = datum_of(dtype).context("every type that leaves has a tract type")?;
    let tensor = tensor.cast_to_dt(datum)?;
    Ok(Array { dtype, shape: tensor.shape().to_vec(), bytes: tensor.as_bytes().to_vec() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tensors_come_back_as_they_went() {
        let array = Array::from_f32(vec![2, 2], &[1.0, -2.5, f32::NAN, 0.0]).unwrap();
        let tensor = tensor_of(&array).unwrap().unwrap();
        assert_eq!(array_of(&tensor).unwrap(), array);
        assert!(tensor_of(&Array::new(Dtype::Bf16, vec![1], vec![0; 2]).unwrap()).is_none());
    }
}
