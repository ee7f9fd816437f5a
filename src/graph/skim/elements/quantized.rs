//! Integers with scales: `(code - zero) * scale`, where each scale counts for a block of them.

use super::{Chunks, Elements, Location};
use crate::store::Dtype;
use half::{bf16, f16};
use std::io::{self, Read};

/// Integers, and what they stand for. The tensor is seen as `[rows, length, inner]`; blocks of a
/// number of places along `length` have `inner` scales in common, one for each of the places' last
/// axis. So everything is read in the order in which it lies.
#[derive(Clone, Debug, PartialEq)]
pub struct Quantized {
    pub codes: Operand,
    pub scales: Operand,
    /// What stands for 0, as many as there are scales.
    pub zeros: Option<Operand>,
    /// The same where there are none.
    pub default_zero: u8,
    pub rows: u64,
    pub length: u64,
    pub inner: u64,
    /// Places along `length` that share scales; the last block of a row may be shorter.
    pub block: u64,
    /// How often scales and zeros are gone through.
    pub rounds: u64,
    /// Codes behind each row that stand for nothing.
    pub spare_codes: u64,
    /// Zeros behind each row that stand for nothing.
    pub spare_zeros: u64,
}

/// Numbers that something is made of.
#[derive(Clone, Debug, PartialEq)]
pub struct Operand {
    pub dtype: Dtype,
    pub elements: Elements,
}

/// Most values that are decoded at once, where a line has not more.
const PIECE_VALUES: u64 = 16 << 10;

impl Quantized {
    pub(super) fn locations(&self) -> Vec<&Location> {
        let operands = [&self.codes, &self.scales].into_iter().chain(&self.zeros);
        operands.flat_map(|operand| operand.elements.locations()).collect()
    }

    /// Scales that there have to be.
    pub fn scale_count(&self) -> u64 {
        self.rows * self.length.div_ceil(self.block.max(1)) * self.inner / self.rounds.max(1)
    }

    /// The values in `dtype`, one of the floats.
    pub(super) fn read(&self, dtype: Dtype) -> io::Result<Box<dyn Read>> {
        let zeros = match &self.zeros {
            Some(zeros) => Some(Numbers::open(zeros, self.rounds)?),
            None => None,
        };
        let mut decoder = Decoder {
            codes: Numbers::open(&self.codes, 1)?,
            scales: Numbers::open(&self.scales, self.rounds)?,
            zeros,
            sizes: Sizes {
                rows: self.rows,
                length: self.length,
                inner: self.inner,
                block: self.block.max(1),
                spare_codes: self.spare_codes,
                spare_zeros: self.spare_zeros,
            },
            line_scales: vec![],
            line_zeros: vec![f64::from(self.default_zero); self.inner as usize],
            row: 0,
            place: 0,
            left_in_block: 0,
        };
        Ok(Chunks::boxed(move |chunk| decoder.decode(dtype, chunk)))
    }
}

/// The sizes of [`Quantized`].
struct Sizes {
    rows: u64,
    length: u64,
    inner: u64,
    block: u64,
    spare_codes: u64,
    spare_zeros: u64,
}

/// Where the reading of quantized values is.
struct Decoder {
    codes: Numbers,
    scales: Numbers,
    zeros: Option<Numbers>,
    sizes: Sizes,
    /// Of the block that is read.
    line_scales: Vec<f64>,
    line_zeros: Vec<f64>,
    row: u64,
    /// Where the next block begins.
    place: u64,
    left_in_block: u64,
}

impl Decoder {
    /// Appends some values.
    fn decode(&mut self, dtype: Dtype, chunk: &mut Vec<u8>) -> io::Result<()> {
        if self.left_in_block == 0 && !self.next_block()? {
            return Ok(());
        }
        let inner = self.sizes.inner;
        let lines = self.left_in_block.min((PIECE_VALUES / inner).max(1));
        self.left_in_block -= lines;
        let codes = self.codes.take(lines * inner)?;
        for line in codes.chunks(inner as usize) {
            for ((code, zero), scale) in line.iter().zip(&self.line_zeros).zip(&self.line_scales) {
                // Whole numbers differ exactly in f64; what is rounded is rounded as f32.
                let value = (code - zero) as f32 * *scale as f32;
                match dtype {
                    Dtype::Fp16 => chunk.extend(f16::from_f32(value).to_le_bytes()),
                    Dtype::Bf16 => chunk.extend(bf16::from_f32(value).to_le_bytes()),
                    _ => chunk.extend(value.to_le_bytes()),
                }
            }
        }
        Ok(())
    }

    /// Goes on to the next block; false where there is none.
    fn next_block(&mut self) -> io::Result<bool> {
        let Sizes { rows, length, inner, block, spare_codes, spare_zeros } = self.sizes;
        if self.place == length {
            (self.row, self.place) = (self.row + 1, 0);
            if self.row < rows {
                self.codes.take(spare_codes)?;
                if let Some(zeros) = &mut self.zeros {
                    zeros.take(spare_zeros)?;
                }
            }
        }
        if self.row >= rows || length == 0 || inner == 0 {
            return Ok(false);
        }
        self.left_in_block = block.min(length - self.place);
        self.place += self.left_in_block;
        self.line_scales = self.scales.take(inner)?;
        if let Some(zeros) = &mut self.zeros {
            self.line_zeros = zeros.take(inner)?;
        }
        Ok(true)
    }
}

/// Numbers, read one after the other.
struct Numbers {
    operand: Operand,
    bytes: Box<dyn Read>,
    rounds: u64,
}

impl Numbers {
    fn open(operand: &Operand, rounds: u64) -> io::Result<Numbers> {
        let bytes = operand.elements.read(operand.dtype)?;
        Ok(Numbers { operand: operand.clone(), bytes, rounds })
    }

    /// The next `count`, from the start again at the end of a round.
    fn take(&mut self, count: u64) -> io::Result<Vec<f64>> {
        let mut bytes = vec![0; count as usize * self.operand.dtype.size()];
        let mut done = 0;
        while done < bytes.len() {
            match self.bytes.read(&mut bytes[done..])? {
                0 if self.rounds <= 1 => return Err(io::ErrorKind::UnexpectedEof.into()),
                0 => {
                    self.rounds -= 1;
                    self.bytes = self.operand.elements.read(self.operand.dtype)?;
                }
                read => done += read,
            }
        }
        let words = bytes.chunks_exact(self.operand.dtype.size());
        Ok(words.map(|word| number(self.operand.dtype, word)).collect())
    }
}

/// A number of a type that codes, scales or zeros may have.
fn number(dtype: Dtype, word: &[u8]) -> f64 {
    match (dtype, word) {
        (Dtype::Int8, [a]) => f64::from(a.cast_signed()),
        (Dtype::Int16, [a, b]) => f64::from(i16::from_le_bytes([*a, *b])),
        (Dtype::Uint16, [a, b]) => f64::from(u16::from_le_bytes([*a, *b])),
        (Dtype::Fp16, [a, b]) => f16::from_le_bytes([*a, *b]).to_f64(),
        (Dtype::Bf16, [a, b]) => bf16::from_le_bytes([*a, *b]).to_f64(),
        (Dtype::Int32, [a, b, c, d]) => f64::from(i32::from_le_bytes([*a, *b, *c, *d])),
        (Dtype::Fp32, [a, b, c, d]) => f64::from(f32::from_le_bytes([*a, *b, *c, *d])),
        (_, [a]) => f64::from(*a),
        _ => unreachable!("operands are looked at when they are put together"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn held(dtype: Dtype, bytes: Vec<u8>) -> Operand {
        Operand { dtype, elements: Elements::Held(bytes) }
    }

    fn floats(values: &[f32]) -> Operand {
        held(Dtype::Fp32, values.iter().flat_map(|value| value.to_le_bytes()).collect())
    }

    fn values(quantized: &Quantized) -> Vec<f32> {
        let mut bytes = vec![];
        quantized.read(Dtype::Fp32).unwrap().read_to_end(&mut bytes).unwrap();
        bytes.as_chunks::<4>().0.iter().map(|word| f32::from_le_bytes(*word)).collect()
    }

    /// Blocks of 2 of rows of 3, with spare codes and zeros behind each row.
    #[test]
    fn blocks_have_their_scales_and_rows_their_spare_codes() {
        let quantized = Quantized {
            codes: held(Dtype::Uint8, vec![1, 2, 3, 99, 4, 5, 6, 99]),
            scales: floats(&[1.0, 10.0, 100.0, 1000.0]),
            zeros: Some(held(Dtype::Uint8, vec![1, 2, 99, 3, 4, 99])),
            default_zero: 0,
            rows: 2,
            length: 3,
            inner: 1,
            block: 2,
            rounds: 1,
            spare_codes: 1,
            spare_zeros: 1,
        };
        assert_eq!(quantized.scale_count(), 4);
        assert_eq!(values(&quantized), [0.0, 1.0, 10.0, 100.0, 200.0, 2000.0]);
    }

    /// Blocks along the first axis: `inner` scales a block.
    #[test]
    fn a_block_of_lines_has_a_line_of_scales() {
        let quantized = Quantized {
            codes: held(Dtype::Int8, vec![1, 2, 255, 4, 5, 6]),
            scales: floats(&[1.0, 10.0, 2.0, 20.0]),
            zeros: None,
            default_zero: 0,
            rows: 1,
            length: 3,
            inner: 2,
            block: 2,
            rounds: 1,
            spare_codes: 0,
            spare_zeros: 0,
        };
        assert_eq!(values(&quantized), [1.0, 20.0, -1.0, 40.0, 10.0, 120.0]);
    }

    /// Scales of a middle axis are gone through once for each place of the first.
    #[test]
    fn scales_come_again_with_each_round() {
        let quantized = Quantized {
            codes: held(Dtype::Int8, vec![1; 8]),
            scales: floats(&[1.0, 10.0]),
            zeros: Some(held(Dtype::Int8, vec![0, 3])),
            default_zero: 0,
            rows: 4,
            length: 2,
            inner: 1,
            block: 2,
            rounds: 2,
            spare_codes: 0,
            spare_zeros: 0,
        };
        let expected = [1.0, 1.0, -20.0, -20.0, 1.0, 1.0, -20.0, -20.0];
        assert_eq!(values(&quantized), expected);
    }
}
