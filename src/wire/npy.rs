//! NumPy's .npy: what stands before an array's values, and the array.

use super::Array;
use crate::store::Dtype;
use std::io::{self, Read};
use thiserror::Error;

/// Most bytes of an array that is read whole.
const MAX_BYTES: u64 = 4 << 30;

/// Longest description of an array; NumPy's own have some hundred bytes.
const MAX_HEADER_BYTES: u32 = 64 << 10;

/// Why something is no array that can be read.
#[derive(Debug, Error)]
pub enum NpyError {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error("not a .npy file: {0}")]
    Foreign(String),
    #[error("dtype {0} is not one that models take")]
    Dtype(String),
    #[error("big-endian; save x.astype(x.dtype.newbyteorder('<'))")]
    BigEndian,
    #[error("in Fortran order; save numpy.ascontiguousarray(x)")]
    Fortran,
    #[error("shape {0:?} is too large")]
    Large(Vec<usize>),
    #[error("holds {held} bytes of data; its header says {said}")]
    Short { held: u64, said: u64 },
    #[error("{0}")]
    Array(#[from] super::ArrayError),
}

/// The element type and sizes of an array in row-major order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NpyHeader {
    pub dtype: Dtype,
    pub shape: Vec<usize>,
}

impl NpyHeader {
    /// Reads what stands before the values; bf16 is not a type of NumPy's.
    ///
    /// # Errors
    /// What is no array of a dtype that Hermes knows, in an order that it reads.
    pub fn read(reader: &mut impl Read) -> Result<NpyHeader, NpyError> {
        let foreign = |what: &str| NpyError::Foreign(what.to_owned());
        let mut start = [0; 8];
        let is_whole = reader.read_exact(&mut start).is_ok();
        if !is_whole || !start.starts_with(b"\x93NUMPY") {
            return Err(foreign("it does not begin as one"));
        }
        let length = match start[6] {
            1 => {
                let mut bytes = [0; 2];
                reader.read_exact(&mut bytes)?;
                u32::from(u16::from_le_bytes(bytes))
            }
            2 | 3 => {
                let mut bytes = [0; 4];
                reader.read_exact(&mut bytes)?;
                u32::from_le_bytes(bytes)
            }
            version => return Err(foreign(&format!("its format is version {version}"))),
        };
        if length > MAX_HEADER_BYTES {
            return Err(foreign("its header is too long"));
        }
        let mut text = String::new();
        let read = reader.take(u64::from(length)).read_to_string(&mut text)?;
        if read != length as usize {
            return Err(foreign("its header is cut short"));
        }
        NpyHeader::parse(&text)
    }

    /// Reads `{'descr': '<f4', 'fortran_order': False, 'shape': (1, 3), }`.
    fn parse(text: &str) -> Result<NpyHeader, NpyError> {
        let foreign = |what: &str| NpyError::Foreign(format!("its header has no {what}"));
        let value = |key: &str| -> Option<&str> {
            let (_, rest) = text.split_once(&format!("'{key}':"))?;
            Some(rest.trim_start())
        };
        let descr = value("descr").ok_or_else(|| foreign("descr"))?;
        let quoted = descr.strip_prefix('\'').and_then(|rest| rest.split_once('\''));
        // Types with fields are lists.
        let Some((descr, _)) = quoted else {
            return Err(NpyError::Dtype(descr.chars().take(64).collect()));
        };
        let dtype = dtype_of(descr)?;
        let sizes = value("shape").and_then(|rest| rest.strip_prefix('(')?.split_once(')'));
        let (sizes, _) = sizes.ok_or_else(|| foreign("shape"))?;
        let sizes = sizes.split(',').map(str::trim).filter(|size| !size.is_empty());
        let shape: Vec<usize> = sizes
            .map(|size| size.parse().map_err(|_| foreign("shape of whole numbers")))
            .collect::<Result<_, _>>()?;
        let order = value("fortran_order").ok_or_else(|| foreign("fortran_order"))?;
        match order.starts_with("True") && shape.len() > 1 {
            true => Err(NpyError::Fortran),
            false => Ok(NpyHeader { dtype, shape }),
        }
    }

    /// Bytes of all values.
    ///
    /// # Errors
    /// [`NpyError::Large`] for more than can be read whole.
    pub fn value_bytes(&self) -> Result<u64, NpyError> {
        let size = self.dtype.size() as u64;
        let bytes = self.shape.iter().try_fold(size, |all, dim| all.checked_mul(*dim as u64));
        bytes.filter(|all| *all <= MAX_BYTES).ok_or_else(|| NpyError::Large(self.shape.clone()))
    }
}

/// Reads an array.
///
/// # Errors
/// As [`NpyHeader::read`], and where it ends too early.
pub fn read(reader: &mut impl Read) -> Result<Array, NpyError> {
    let header = NpyHeader::read(reader)?;
    let said = header.value_bytes()?;
    let mut bytes = vec![];
    reader.take(said).read_to_end(&mut bytes)?;
    let held = bytes.len() as u64;
    match held == said {
        true => Ok(Array::new(header.dtype, header.shape, bytes)?),
        false => Err(NpyError::Short { held, said }),
    }
}

fn dtype_of(descr: &str) -> Result<Dtype, NpyError> {
    let refuse = || NpyError::Dtype(format!("{descr:?}"));
    let (order, kind) = descr.split_at_checked(1).ok_or_else(refuse)?;
    let dtype = match kind {
        "b1" => Dtype::Bool,
        "u1" => Dtype::Uint8,
        "u2" => Dtype::Uint16,
        "u4" => Dtype::Uint32,
        "u8" => Dtype::Uint64,
        "i1" => Dtype::Int8,
        "i2" => Dtype::Int16,
        "i4" => Dtype::Int32,
        "i8" => Dtype::Int64,
        "f2" => Dtype::Fp16,
        "f4" => Dtype::Fp32,
        "f8" => Dtype::Fp64,
        _ => return Err(refuse()),
    };
    match order {
        "<" | "|" | "=" => Ok(dtype),
        ">" if dtype.size() == 1 => Ok(dtype),
        ">" => Err(NpyError::BigEndian),
        _ => Err(refuse()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file of version 1.0 with this description and these values.
    fn file(dict: &str, values: &[u8]) -> Vec<u8> {
        let mut file = b"\x93NUMPY\x01\x00".to_vec();
        file.extend((dict.len() as u16).to_le_bytes());
        file.extend(dict.bytes());
        file.extend(values);
        file
    }

    fn check(dict: &str, values: &[u8], expected: Result<(Dtype, &[usize]), &str>) {
        let found = read(&mut file(dict, values).as_slice());
        match (found, expected) {
            (Ok(array), Ok((dtype, shape))) => {
                assert_eq!((array.dtype, &*array.shape, &*array.bytes), (dtype, shape, values));
            }
            (Err(error), Err(words)) => {
                assert!(error.to_string().contains(words), "{dict}: {error}");
            }
            (found, _) => panic!("{dict}: {found:?}"),
        }
    }

    #[test]
    fn arrays_are_read_as_their_headers_say() {
        let dict = |descr: &str, order: &str, shape: &str| {
            format!("{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}\n")
        };
        let small = |descr: &str, values: &[u8], expected| {
            check(&dict(descr, "False", "(1, 2)"), values, expected);
        };
        small("'<f4'", &[0; 8], Ok((Dtype::Fp32, &[1, 2])));
        small("'|b1'", &[1, 0], Ok((Dtype::Bool, &[1, 2])));
        small("'>u1'", &[7, 9], Ok((Dtype::Uint8, &[1, 2])));
        small("'<i8'", &[3; 16], Ok((Dtype::Int64, &[1, 2])));
        small("'<f4'", &[0; 7], Err("holds 7 bytes of data; its header says 8"));
        small("'>f4'", &[0; 8], Err("big-endian"));
        small("'<U3'", &[0; 8], Err("dtype \"<U3\""));
        small("[('a', '<f4')]", &[0; 8], Err("dtype [('a', "));
        small("'|b1'", &[1, 2], Err("element 1 of a BOOL is 2"));
        check(&dict("'<f4'", "True", "(1, 2)"), &[0; 8], Err("Fortran order"));
        check(&dict("'<f4'", "True", "(2,)"), &[0; 8], Ok((Dtype::Fp32, &[2])));
        check(&dict("'<f2'", "False", "()"), &[0; 2], Ok((Dtype::Fp16, &[])));
        let huge = format!("({}, {})", usize::MAX, 2);
        check(&dict("'<f2'", "False", &huge), &[], Err("too large"));
        check(&dict("'<f2'", "False", "(x,)"), &[], Err("no shape"));
        check("{}", &[], Err("no descr"));
    }

    #[test]
    fn what_is_no_array_is_refused() {
        let whole = file("{'descr': '<f4', 'fortran_order': False, 'shape': (1,)}", &[0; 4]);
        for length in 0..whole.len() {
            assert!(read(&mut &whole[..length]).is_err(), "{length}");
        }
        assert!(read(&mut whole.as_slice()).is_ok());
        let mut other = whole;
        other[6] = 9;
        assert!(read(&mut other.as_slice()).unwrap_err().to_string().contains("version 9"));
    }
}
