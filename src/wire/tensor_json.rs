//! Tensor elements between JSON text and little-endian bytes, in both directions.
//!
//! Integers are exact over their whole range and floats are rounded once. JSON has no NaN and no
//! infinity: a reply holds `null` in their place (and counts them, see `infer_json`), a request
//! may not.

use super::json::{JsonError, Scanner};
use crate::store::Dtype;
use crate::wire::Array;
use half::{bf16, f16};
use serde::Serialize;
use std::fmt::Display;
use std::str::FromStr;
use thiserror::Error;

/// Most dimensions a tensor may have.
pub const MAX_RANK: usize = 16;

/// Data that is not the tensor it should be.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum DataError {
    /// Not JSON.
    #[error(transparent)]
    Json(#[from] JsonError),
    /// An element that is not of the dtype.
    #[error("data[{index}] is {found}; expected {expected}")]
    Element {
        /// Index into the flat data.
        index: usize,
        /// What stands there.
        found: String,
        /// What should.
        expected: &'static str,
    },
    /// The number of elements does not agree with the shape.
    #[error("data has {found} elements; shape {shape:?} means {expected}")]
    Count {
        /// "3" or "more than 3".
        found: String,
        /// Elements of the shape.
        expected: usize,
        /// The shape.
        shape: Vec<usize>,
    },
    /// A nested array whose lengths do not agree with the shape.
    #[error(
        "data has {found} entries in dimension {axis} before data[{index}]; shape {shape:?} means \
         {expected}"
    )]
    Nested {
        /// The dimension.
        axis: usize,
        /// Index into the flat data.
        index: usize,
        /// Entries there.
        found: usize,
        /// Entries by the shape.
        expected: usize,
        /// The shape.
        shape: Vec<usize>,
    },
}

/// What `null` means among floats.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Nulls {
    /// An error: what a request may not hold.
    Refuse,
    /// NaN: what a client makes of a reply.
    AreNan,
}

/// Elements of a shape, `None` where the product overflows.
pub fn element_count(shape: &[usize]) -> Option<usize> {
    shape.iter().try_fold(1usize, |product, dim| product.checked_mul(*dim))
}

/// Reads `text`, a flat or nested array, as the `count` elements of `shape`.
///
/// # Errors
///
/// [`DataError`] with the index of the first element that is wrong.
pub fn parse(
    text: &[u8],
    dtype: Dtype,
    shape: &[usize],
    count: usize,
    nulls: Nulls,
) -> Result<Vec<u8>, DataError> {
    let mut scanner = Scanner::new(text);
    // Two bytes of text per element at least: a shape that lies reserves no more than that.
    let reserved = count.min(text.len() / 2 + 1) * dtype.size();
    let mut sink = Sink { dtype, shape, nulls, count: 0, bytes: Vec::with_capacity(reserved) };
    let mut ahead = scanner.clone();
    if shape.len() > 1 && ahead.take(b'[') && ahead.peek() == Some(b'[') {
        sink.nested(&mut scanner, 0)?;
    } else {
        scanner.array(|scanner, index| match index < count {
            true => sink.element(scanner),
            false => Err(sink.miscount(format!("more than {count}"), count)),
        })?;
    }
    scanner.end()?;
    match sink.count == count {
        true => Ok(sink.bytes),
        false => Err(sink.miscount(sink.count.to_string(), count)),
    }
}

struct Sink<'a> {
    dtype: Dtype,
    shape: &'a [usize],
    nulls: Nulls,
    count: usize,
    bytes: Vec<u8>,
}

impl Sink<'_> {
    fn miscount(&self, found: String, expected: usize) -> DataError {
        DataError::Count { found, expected, shape: self.shape.to_vec() }
    }

    /// One dimension of a nested array; as deep as the shape, which [`MAX_RANK`] bounds.
    fn nested(&mut self, scanner: &mut Scanner<'_>, axis: usize) -> Result<(), DataError> {
        let expected = self.shape[axis];
        let mut found = 0;
        scanner.array(|scanner, index| {
            found = index + 1;
            if found > expected {
                return Err(self.misnested(axis, found));
            }
            match axis + 1 == self.shape.len() {
                true => self.element(scanner),
                false => self.nested(scanner, axis + 1),
            }
        })?;
        if found == expected { Ok(()) } else { Err(self.misnested(axis, found)) }
    }

    fn misnested(&self, axis: usize, found: usize) -> DataError {
        let expected = self.shape[axis];
        DataError::Nested { axis, index: self.count, found, expected, shape: self.shape.to_vec() }
    }

    fn element(&mut self, scanner: &mut Scanner<'_>) -> Result<(), DataError> {
        match self.dtype {
            Dtype::Bool => self.boolean(scanner)?,
            Dtype::Uint8 => self.integer(scanner, u8::to_le_bytes)?,
            Dtype::Uint16 => self.integer(scanner, u16::to_le_bytes)?,
            Dtype::Uint32 => self.integer(scanner, u32::to_le_bytes)?,
            Dtype::Uint64 => self.integer(scanner, u64::to_le_bytes)?,
            Dtype::Int8 => self.integer(scanner, i8::to_le_bytes)?,
            Dtype::Int16 => self.integer(scanner, i16::to_le_bytes)?,
            Dtype::Int32 => self.integer(scanner, i32::to_le_bytes)?,
            Dtype::Int64 => self.integer(scanner, i64::to_le_bytes)?,
            Dtype::Fp16 => self.float(scanner, |v: f64| {
                let v = f16::from_f64(v);
                (v.is_infinite(), v.to_le_bytes())
            })?,
            Dtype::Bf16 => self.float(scanner, |v: f64| {
                let v = bf16::from_f64(v);
                (v.is_infinite(), v.to_le_bytes())
            })?,
            Dtype::Fp32 => self.float(scanner, |v: f32| (v.is_infinite(), v.to_le_bytes()))?,
            Dtype::Fp64 => self.float(scanner, |v: f64| (v.is_infinite(), v.to_le_bytes()))?,
        }
        self.count += 1;
        Ok(())
    }

    fn boolean(&mut self, scanner: &mut Scanner<'_>) -> Result<(), DataError> {
        if !matches!(scanner.peek(), Some(b't' | b'f')) {
            return Err(self.refuse(scanner));
        }
        let value = scanner.literal()?;
        self.bytes.push(u8::from(value == Some(true)));
        Ok(())
    }

    fn integer<T: FromStr, const N: usize>(
        &mut self,
        scanner: &mut Scanner<'_>,
        to_bytes: fn(T) -> [u8; N],
    ) -> Result<(), DataError> {
        if !matches!(scanner.peek(), Some(b'-' | b'0'..=b'9')) {
            return Err(self.refuse(scanner));
        }
        let text = scanner.number()?;
        let value = text.parse::<T>().map_err(|_| self.wrong(text))?;
        self.bytes.extend_from_slice(&to_bytes(value));
        Ok(())
    }

    /// `to_bytes` also says whether the value became infinite.
    fn float<T: FromStr + From<f32>, const N: usize>(
        &mut self,
        scanner: &mut Scanner<'_>,
        to_bytes: fn(T) -> (bool, [u8; N]),
    ) -> Result<(), DataError> {
        match scanner.peek() {
            Some(b'-' | b'0'..=b'9') => {}
            Some(b'n') if self.nulls == Nulls::AreNan => {
                scanner.literal()?;
                self.bytes.extend_from_slice(&to_bytes(T::from(f32::NAN)).1);
                return Ok(());
            }
            _ => return Err(self.refuse(scanner)),
        }
        let text = scanner.number()?;
        match text.parse::<T>().map(to_bytes) {
            Ok((false, bytes)) => {
                self.bytes.extend_from_slice(&bytes);
                Ok(())
            }
            _ => Err(self.wrong(text)),
        }
    }

    fn wrong(&self, found: impl Display) -> DataError {
        let mut found = found.to_string();
        if found.len() > 40 {
            found.truncate(37);
            found.push_str("...");
        }
        DataError::Element { index: self.count, found, expected: expectation(self.dtype) }
    }

    /// The error for a value of the wrong kind, or for none at all.
    fn refuse(&self, scanner: &mut Scanner<'_>) -> DataError {
        let found = match scanner.peek() {
            Some(b'n') => "null",
            Some(b't' | b'f') => "a boolean",
            Some(b'"') => "a string",
            Some(b'{') => "an object",
            Some(b'[') => "an array",
            Some(b'-' | b'0'..=b'9') => "a number",
            _ => return scanner.error("expected a value").into(),
        };
        self.wrong(found)
    }
}

fn expectation(dtype: Dtype) -> &'static str {
    match dtype {
        Dtype::Bool => "true or false",
        Dtype::Uint8 => "an integer from 0 to 255 (UINT8)",
        Dtype::Uint16 => "an integer from 0 to 65535 (UINT16)",
        Dtype::Uint32 => "an integer from 0 to 4294967295 (UINT32)",
        Dtype::Uint64 => "an integer from 0 to 18446744073709551615 (UINT64)",
        Dtype::Int8 => "an integer from -128 to 127 (INT8)",
        Dtype::Int16 => "an integer from -32768 to 32767 (INT16)",
        Dtype::Int32 => "an integer from -2147483648 to 2147483647 (INT32)",
        Dtype::Int64 => "an integer from -9223372036854775808 to 9223372036854775807 (INT64)",
        Dtype::Fp16 => "a number within the range of FP16",
        Dtype::Bf16 => "a number within the range of BF16",
        Dtype::Fp32 => "a number within the range of FP32",
        Dtype::Fp64 => "a number within the range of FP64",
    }
}

/// Appends elements `first..end` of `array` to `text`, separated by commas; returns how many of
/// them JSON cannot hold and are `null`.
pub fn write(array: &Array, first: usize, end: usize, text: &mut Vec<u8>) -> u64 {
    let size = array.dtype.size();
    let bytes = &array.bytes[first * size..end * size];
    match array.dtype {
        Dtype::Bool => write_run(bytes, text, |[b]: [u8; 1]| b != 0),
        Dtype::Uint8 => write_run(bytes, text, u8::from_le_bytes),
        Dtype::Uint16 => write_run(bytes, text, u16::from_le_bytes),
        Dtype::Uint32 => write_run(bytes, text, u32::from_le_bytes),
        Dtype::Uint64 => write_run(bytes, text, u64::from_le_bytes),
        Dtype::Int8 => write_run(bytes, text, i8::from_le_bytes),
        Dtype::Int16 => write_run(bytes, text, i16::from_le_bytes),
        Dtype::Int32 => write_run(bytes, text, i32::from_le_bytes),
        Dtype::Int64 => write_run(bytes, text, i64::from_le_bytes),
        Dtype::Fp16 => write_run(bytes, text, |b| f16::from_le_bytes(b).to_f32()),
        Dtype::Bf16 => write_run(bytes, text, |b| bf16::from_le_bytes(b).to_f32()),
        Dtype::Fp32 => write_run(bytes, text, f32::from_le_bytes),
        Dtype::Fp64 => write_run(bytes, text, f64::from_le_bytes),
    }
}

fn write_run<T: Serialize, const N: usize>(
    bytes: &[u8],
    text: &mut Vec<u8>,
    decode: impl Fn([u8; N]) -> T,
) -> u64 {
    let mut nulls = 0;
    for (index, element) in bytes.as_chunks::<N>().0.iter().enumerate() {
        if index > 0 {
            text.push(b',');
        }
        let start = text.len();
        serde_json::to_writer(&mut *text, &decode(*element)).expect("a vector takes every write");
        nulls += u64::from(text.get(start) == Some(&b'n'));
    }
    nulls
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(text: &str, dtype: Dtype, shape: &[usize]) -> Result<Vec<u8>, String> {
        let count = element_count(shape).unwrap();
        parse(text.as_bytes(), dtype, shape, count, Nulls::Refuse).map_err(|e| e.to_string())
    }

    #[test]
    fn data_is_flat_or_nested() {
        let check = |text: &str, shape: &[usize]| {
            assert_eq!(read(text, Dtype::Uint8, shape).unwrap(), [1, 2, 3, 4], "{text}");
        };
        check("[1,2,3,4]", &[4]);
        check("[ 1 , 2 , 3 , 4 ]", &[2, 2]);
        check("[[1,2],[3,4]]", &[2, 2]);
        check("[[[1],[2]],[[3],[4]]]", &[2, 2, 1]);
        assert!(read("[]", Dtype::Fp32, &[0, 3]).unwrap().is_empty());
        assert!(read("[[],[]]", Dtype::Fp32, &[2, 0]).unwrap().is_empty());
        assert_eq!(read("[5]", Dtype::Uint8, &[]).unwrap(), [5]);
    }

    #[test]
    fn errors_say_where_and_what() {
        let check = |text: &str, dtype: Dtype, shape: &[usize], expected: &str| {
            let error = read(text, dtype, shape).unwrap_err();
            assert!(error.contains(expected), "{text}: {error}");
        };
        check("[1,null]", Dtype::Fp32, &[2], "data[1] is null; expected a number within");
        check("[1,\"2\"]", Dtype::Fp32, &[2], "data[1] is a string");
        check("[1.5]", Dtype::Int64, &[1], "data[0] is 1.5; expected an integer from -9223");
        check("[9223372036854775808]", Dtype::Int64, &[1], "data[0] is 9223372036854775808");
        check("[-1]", Dtype::Uint8, &[1], "data[0] is -1; expected an integer from 0 to 255");
        check("[1]", Dtype::Bool, &[1], "data[0] is a number; expected true or false");
        check("[1e39]", Dtype::Fp32, &[1], "data[0] is 1e39");
        check("[65520]", Dtype::Fp16, &[1], "data[0] is 65520");
        check("[1,2,3]", Dtype::Fp32, &[2], "more than 2 elements; shape [2] means 2");
        check("[1]", Dtype::Fp32, &[2], "1 elements; shape [2] means 2");
        check("[[1,2],[3]]", Dtype::Fp32, &[2, 2], "1 entries in dimension 1 before data[3]");
        check("[[1,2]]", Dtype::Fp32, &[2, 2], "1 entries in dimension 0");
        check("[[1,2],[3,[4]]]", Dtype::Fp32, &[2, 2], "data[3] is an array");
        check("[1,", Dtype::Fp32, &[2], "byte 3: expected a value");
        check("[NaN]", Dtype::Fp32, &[1], "byte 1: expected a value");
        check("7", Dtype::Fp32, &[1], "byte 0: expected an array");
    }

    #[test]
    fn a_shape_that_lies_reserves_little() {
        let error = read("[1]", Dtype::Fp64, &[1 << 40]).unwrap_err();
        assert!(error.contains("means 1099511627776"), "{error}");
    }

    #[test]
    fn what_json_cannot_hold_is_null() {
        let values = [1.0f32, f32::NAN, f32::INFINITY, -0.0];
        let bytes = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        let array = Array::new(Dtype::Fp32, vec![4], bytes).unwrap();
        let mut text = Vec::new();
        assert_eq!(write(&array, 0, 4, &mut text), 2);
        assert_eq!(text, b"1.0,null,null,-0.0");
        let text = [b"[", text.as_slice(), b"]"].concat();
        let back = parse(&text, Dtype::Fp32, &[4], 4, Nulls::AreNan).unwrap();
        assert!(f32::from_le_bytes(back[4..8].try_into().unwrap()).is_nan());
    }

    /// Whether the element at `bytes` is a number that JSON can hold.
    fn holds(dtype: Dtype, bytes: &[u8]) -> bool {
        match dtype {
            Dtype::Bool => bytes[0] < 2,
            Dtype::Fp16 => f16::from_le_bytes(bytes.try_into().unwrap()).is_finite(),
            Dtype::Bf16 => bf16::from_le_bytes(bytes.try_into().unwrap()).is_finite(),
            Dtype::Fp32 => f32::from_le_bytes(bytes.try_into().unwrap()).is_finite(),
            Dtype::Fp64 => f64::from_le_bytes(bytes.try_into().unwrap()).is_finite(),
            _ => true,
        }
    }

    proptest! {
        #[test]
        fn every_dtype_round_trips(code in 0u64..13, raw in prop::collection::vec(any::<u64>(), 0..20)) {
            let dtype = Dtype::from_code(code).unwrap();
            let bytes: Vec<u8> = raw
                .iter()
                .map(|v| if dtype == Dtype::Bool { v & 1 } else { *v })
                .map(|v| v.to_le_bytes()[..dtype.size()].to_vec())
                .filter(|element| holds(dtype, element))
                .flatten()
                .collect();
            let count = bytes.len() / dtype.size();
            let array = Array::new(dtype, vec![count], bytes.clone()).unwrap();
            let mut text = b"[".to_vec();
            prop_assert_eq!(write(&array, 0, count, &mut text), 0);
            text.push(b']');
            let back = parse(&text, dtype, &[count], count, Nulls::Refuse).unwrap();
            prop_assert_eq!(back, bytes);
        }
    }
}
