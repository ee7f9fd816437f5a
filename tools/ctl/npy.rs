//! NumPy's .npy files to and from arrays.

use super::client::ClientError;
use hermes_base::store::Dtype;
use hermes_base::wire::{Array, npy};
use std::fs::File;
use std::io::{BufReader, BufWriter, Write};
use std::path::Path;

/// Reads an array of any dtype that Hermes knows; bf16 is not a type of NumPy's.
///
/// # Errors
///
/// [`ClientError::Usage`] with the path and what is wrong with the file.
pub fn read(path: &Path) -> Result<Array, ClientError> {
    let wrong = |what: String| ClientError::Usage(format!("{}: {what}", path.display()));
    let file = File::open(path).map_err(|error| wrong(error.to_string()))?;
    npy::read(&mut BufReader::new(file)).map_err(|error| wrong(error.to_string()))
}

/// Writes an array; BF16 as `<u2`, its bits.
///
/// # Errors
///
/// [`ClientError::Usage`] with the path and why it cannot be written.
pub fn write(path: &Path, array: &Array) -> Result<(), ClientError> {
    let wrong = |error: std::io::Error| ClientError::Usage(format!("{}: {error}", path.display()));
    let shape: Vec<u64> = array.shape.iter().map(|dim| *dim as u64).collect();
    let mut file = BufWriter::new(File::create(path).map_err(wrong)?);
    let mut put = |bytes: &[u8]| file.write_all(bytes).map_err(wrong);
    put(&header(array.dtype, &shape))?;
    put(&array.bytes)?;
    file.flush().map_err(wrong)
}

/// Bytes before an array's values, whatever its sizes are where it has two dimensions.
pub const HEADER_BYTES: usize = 128;

/// What stands before an array's values: [`HEADER_BYTES`], or more in steps of 64 where there are so
/// many dimensions.
pub fn header(dtype: Dtype, shape: &[u64]) -> Vec<u8> {
    let descr = match dtype {
        Dtype::Bool => "|b1",
        Dtype::Uint8 => "|u1",
        Dtype::Uint16 | Dtype::Bf16 => "<u2",
        Dtype::Uint32 => "<u4",
        Dtype::Uint64 => "<u8",
        Dtype::Int8 => "|i1",
        Dtype::Int16 => "<i2",
        Dtype::Int32 => "<i4",
        Dtype::Int64 => "<i8",
        Dtype::Fp16 => "<f2",
        Dtype::Fp32 => "<f4",
        Dtype::Fp64 => "<f8",
    };
    let shape: Vec<String> = shape.iter().map(|dim| format!("{dim},")).collect();
    let dict =
        format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': ({}), }}", shape.join(" "));
    // Magic, version 1.0, the rest's length; the dict, padded with spaces, and a newline.
    let bytes = (10 + dict.len() + 1).next_multiple_of(64).max(HEADER_BYTES);
    let rest = u16::try_from(bytes - 10).expect("a shape is short");
    let mut header = b"\x93NUMPY\x01\x00".to_vec();
    header.extend(rest.to_le_bytes());
    header.extend(dict.bytes());
    header.resize(bytes - 1, b' ');
    header.push(b'\n');
    header
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arrays_round_trip() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.npy");
        for dtype in Dtype::ALL.into_iter().filter(|dtype| *dtype != Dtype::Bf16) {
            for shape in [vec![], vec![3], vec![2, 3, 1], vec![0, 4]] {
                let count: usize = shape.iter().product();
                let bytes = (0..count * dtype.size()).map(|i| (i % 2) as u8).collect();
                let array = Array::new(dtype, shape, bytes).unwrap();
                write(&path, &array).unwrap();
                let back = read(&path).unwrap();
                assert_eq!((back.dtype, back.shape, back.bytes), (dtype, array.shape, array.bytes));
            }
        }
    }

    #[test]
    fn the_header_of_rows_has_one_length() {
        for (rows, width) in [(0, 0), (1, 384), (u64::MAX, u64::MAX)] {
            assert_eq!(header(Dtype::Fp32, &[rows, width]).len(), HEADER_BYTES);
        }
    }

    #[test]
    fn broken_files_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.npy");
        assert!(matches!(read(&path), Err(ClientError::Usage(_))));
        let array = Array::new(Dtype::Fp32, vec![4], vec![0; 16]).unwrap();
        write(&path, &array).unwrap();
        let whole = std::fs::read(&path).unwrap();
        for length in [0, 5, 20, whole.len() - 1] {
            std::fs::write(&path, &whole[..length]).unwrap();
            assert!(matches!(read(&path), Err(ClientError::Usage(_))), "{length}");
        }
    }
}
