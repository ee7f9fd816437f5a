//! Where a weight's elements lie and how, and their way back to plain little-endian values.

mod quantized;

use crate::checkpoint::Kind;
use crate::store::Dtype;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Cursor, Read, Seek, SeekFrom};
use std::path::PathBuf;

pub use quantized::{Operand, Quantized};

/// A big weight where it lies.
#[derive(Clone, Debug, PartialEq)]
pub struct OnnxWeight {
    pub name: String,
    pub dtype: Dtype,
    pub shape: Vec<u64>,
    pub elements: Elements,
}

/// Where elements lie, and what has to be done to them.
#[derive(Clone, Debug, PartialEq)]
pub enum Elements {
    /// As they are: little-endian, in row-major order.
    Plain(Location),
    /// The same in memory: they are few.
    Held(Vec<u8>),
    /// Varints, one an element of this type, as in a tensor's `int32_data` and its like.
    Varints(Location, Dtype),
    /// Integers of a few bits, the first in the lowest; each becomes a byte.
    Packed { bytes: Box<Elements>, bits: u32, is_signed: bool },
    /// Integers with scales.
    Quantized(Box<Quantized>),
    /// Blocks of values that share scales, as GGUF files have them; they become f32.
    Blocks(Location, Kind),
}

/// Elements, and what they are once they are read.
#[derive(Clone, Debug, PartialEq)]
pub struct Stored {
    pub dtype: Dtype,
    pub elements: Elements,
}

/// Bytes of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Location {
    pub path: PathBuf,
    pub offset: u64,
    pub bytes: u64,
}

/// Bytes that are read or decoded at once.
const CHUNK_BYTES: usize = 64 << 10;

impl OnnxWeight {
    /// Bytes of its elements, one after the other.
    pub fn bytes(&self) -> u64 {
        self.shape.iter().product::<u64>() * self.dtype.size() as u64
    }

    /// Where its elements lie as they are; none where they have to be decoded.
    pub fn location(&self) -> Option<&Location> {
        match &self.elements {
            Elements::Plain(location) => Some(location),
            _ => None,
        }
    }

    /// Its elements, little-endian in row-major order, decoded as they are read.
    pub fn read(&self) -> io::Result<Box<dyn Read>> {
        Ok(Box::new(self.elements.read(self.dtype)?.take(self.bytes())))
    }
}

impl Elements {
    /// Everything in files that they are made of.
    pub fn locations(&self) -> Vec<&Location> {
        match self {
            Elements::Held(_) => vec![],
            Elements::Plain(location)
            | Elements::Varints(location, _)
            | Elements::Blocks(location, _) => vec![location],
            Elements::Packed { bytes, .. } => bytes.locations(),
            Elements::Quantized(quantized) => quantized.locations(),
        }
    }

    /// Plain elements of `dtype`, which decides what quantized ones become; behind them may come
    /// some that fill up the last byte.
    pub(super) fn read(&self, dtype: Dtype) -> io::Result<Box<dyn Read>> {
        Ok(match self {
            Elements::Plain(location) => Box::new(location.read()?),
            Elements::Held(bytes) => Box::new(Cursor::new(bytes.clone())),
            Elements::Varints(location, of) => {
                let (mut bytes, of) = (location.read()?, *of);
                Chunks::boxed(move |chunk| decode_varints(&mut bytes, of, chunk))
            }
            Elements::Packed { bytes, bits, is_signed } => {
                let (mut bytes, bits, is_signed) = (bytes.read(Dtype::Uint8)?, *bits, *is_signed);
                Chunks::boxed(move |chunk| unpack(&mut bytes, bits, is_signed, chunk))
            }
            Elements::Quantized(quantized) => quantized.read(dtype)?,
            Elements::Blocks(location, kind) => {
                let (mut bytes, kind) = (location.read()?, *kind);
                Chunks::boxed(move |chunk| decode_blocks(&mut bytes, kind, chunk))
            }
        })
    }
}

impl Location {
    fn read(&self) -> io::Result<io::Take<BufReader<File>>> {
        let mut file = File::open(&self.path)?;
        file.seek(SeekFrom::Start(self.offset))?;
        Ok(BufReader::with_capacity(CHUNK_BYTES, file).take(self.bytes))
    }
}

/// Reads what a closure makes, chunk by chunk; an empty one is the end.
pub(super) struct Chunks<F> {
    make: F,
    chunk: Vec<u8>,
    at: usize,
}

impl<F: FnMut(&mut Vec<u8>) -> io::Result<()> + 'static> Chunks<F> {
    pub(super) fn boxed(make: F) -> Box<dyn Read> {
        Box::new(Chunks { make, chunk: vec![], at: 0 })
    }
}

impl<F: FnMut(&mut Vec<u8>) -> io::Result<()>> Read for Chunks<F> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if self.at == self.chunk.len() {
            self.chunk.clear();
            self.at = 0;
            (self.make)(&mut self.chunk)?;
        }
        let count = out.len().min(self.chunk.len() - self.at);
        out[..count].copy_from_slice(&self.chunk[self.at..self.at + count]);
        self.at += count;
        Ok(count)
    }
}

/// Appends the elements of some varints. A negative number is a varint of ten bytes, of which the
/// low ones are the element.
fn decode_varints(bytes: &mut impl BufRead, dtype: Dtype, chunk: &mut Vec<u8>) -> io::Result<()> {
    let (mut number, mut shift) = (0u64, 0);
    for byte in bytes.bytes() {
        let byte = byte?;
        number |= u64::from(byte & 0x7f).checked_shl(shift).unwrap_or(0);
        shift += 7;
        if byte & 0x80 == 0 {
            let value = if dtype == Dtype::Bool { u64::from(number != 0) } else { number };
            chunk.extend(&value.to_le_bytes()[..dtype.size()]);
            (number, shift) = (0, 0);
            if chunk.len() >= CHUNK_BYTES {
                break;
            }
        }
    }
    Ok(())
}

/// Appends the values of some blocks as f32.
fn decode_blocks(bytes: &mut impl Read, kind: Kind, chunk: &mut Vec<u8>) -> io::Result<()> {
    let most = CHUNK_BYTES as u64 / 4 / kind.block_values() * kind.block_bytes();
    let mut blocks = vec![];
    bytes.take(most).read_to_end(&mut blocks)?;
    if !(blocks.len() as u64).is_multiple_of(kind.block_bytes()) {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let mut values = vec![];
    kind.decode(&blocks, &mut values);
    chunk.extend(values.iter().flat_map(|value| value.to_le_bytes()));
    Ok(())
}

/// Appends the integers of some bytes, each as a byte.
fn unpack(
    bytes: &mut impl Read,
    bits: u32,
    is_signed: bool,
    chunk: &mut Vec<u8>,
) -> io::Result<()> {
    let mut packed = [0; CHUNK_BYTES / 8];
    let count = bytes.read(&mut packed)?;
    let unused = 8 - bits;
    for byte in &packed[..count] {
        for step in 0..8 / bits {
            let high = byte >> (step * bits) << unused;
            chunk.push(match is_signed {
                true => (high.cast_signed() >> unused).cast_unsigned(),
                false => high >> unused,
            });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn decoded(elements: &Elements, dtype: Dtype) -> Vec<u8> {
        let mut bytes = vec![];
        elements.read(dtype).unwrap().read_to_end(&mut bytes).unwrap();
        bytes
    }

    #[test]
    fn integers_of_four_bits_come_lowest_first_with_their_signs() {
        let packed = |is_signed| Elements::Packed {
            bytes: Box::new(Elements::Held(vec![0x8f, 0x71])),
            bits: 4,
            is_signed,
        };
        assert_eq!(decoded(&packed(false), Dtype::Uint8), [15, 8, 1, 7]);
        assert_eq!(decoded(&packed(true), Dtype::Int8), [255, 248, 1, 7]);
    }

    #[test]
    fn varints_become_elements_of_their_type() {
        let numbers = [0u64, 1, 127, 300, 65535, (-2i64).cast_unsigned()];
        let mut content = b"head".to_vec();
        numbers.iter().for_each(|number| prost::encoding::encode_varint(*number, &mut content));
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(&content).unwrap();
        let (path, bytes) = (file.path().to_path_buf(), content.len() as u64 - 4);
        let location = Location { path, offset: 4, bytes };
        let check = |dtype: Dtype, expected: &[u8]| {
            assert_eq!(decoded(&Elements::Varints(location.clone(), dtype), dtype), expected);
        };
        check(Dtype::Fp16, &[0, 0, 1, 0, 127, 0, 44, 1, 255, 255, 254, 255]);
        check(Dtype::Int8, &[0, 1, 127, 44, 255, 254]);
        check(Dtype::Bool, &[0, 1, 1, 1, 1, 1]);
    }
}
