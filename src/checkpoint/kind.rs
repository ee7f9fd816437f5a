use super::{blocks, superblocks};
use half::{bf16, f16};

/// How a tensor's values are stored: in blocks, of one value or of several that share scales.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    F32,
    F16,
    Bf16,
    Q8_0,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q2K,
    Q3K,
    Q4K,
    Q5K,
    Q6K,
    Iq4Nl,
    /// What no weight is read from here: integers, and floats of other widths. Old folders have
    /// buffers of such kinds that nothing needs.
    Other {
        /// As the file calls it.
        name: &'static str,
        /// Values of a block.
        values: u64,
        /// Bytes of a block.
        bytes: u64,
    },
}

impl Kind {
    /// The name that safetensors or GGML has for it.
    pub fn name(self) -> &'static str {
        match self {
            Kind::F32 => "F32",
            Kind::F16 => "F16",
            Kind::Bf16 => "BF16",
            Kind::Q8_0 => "Q8_0",
            Kind::Q4_0 => "Q4_0",
            Kind::Q4_1 => "Q4_1",
            Kind::Q5_0 => "Q5_0",
            Kind::Q5_1 => "Q5_1",
            Kind::Q2K => "Q2_K",
            Kind::Q3K => "Q3_K",
            Kind::Q4K => "Q4_K",
            Kind::Q5K => "Q5_K",
            Kind::Q6K => "Q6_K",
            Kind::Iq4Nl => "IQ4_NL",
            Kind::Other { name, .. } => name,
        }
    }

    /// Whether [`Kind::decode`] has values for it.
    pub fn is_decoded(self) -> bool {
        !matches!(self, Kind::Other { .. })
    }

    /// Values of a block.
    pub fn block_values(self) -> u64 {
        match self {
            Kind::F32 | Kind::F16 | Kind::Bf16 => 1,
            Kind::Q8_0 | Kind::Q4_0 | Kind::Q4_1 | Kind::Q5_0 | Kind::Q5_1 | Kind::Iq4Nl => 32,
            Kind::Q2K | Kind::Q3K | Kind::Q4K | Kind::Q5K | Kind::Q6K => 256,
            Kind::Other { values, .. } => values,
        }
    }

    /// Bytes of a block.
    pub fn block_bytes(self) -> u64 {
        match self {
            Kind::F32 => 4,
            Kind::F16 | Kind::Bf16 => 2,
            Kind::Q4_0 | Kind::Iq4Nl => 18,
            Kind::Q4_1 => 20,
            Kind::Q5_0 => 22,
            Kind::Q5_1 => 24,
            Kind::Q8_0 => 34,
            Kind::Q2K => 84,
            Kind::Q3K => 110,
            Kind::Q4K => 144,
            Kind::Q5K => 176,
            Kind::Q6K => 210,
            Kind::Other { bytes, .. } => bytes,
        }
    }

    /// Bytes that so many values take, if they are whole blocks and a file can have so many.
    pub fn bytes_of(self, values: u64) -> Option<u64> {
        match values % self.block_values() {
            0 => (values / self.block_values()).checked_mul(self.block_bytes()),
            _ => None,
        }
    }

    /// Appends the values of whole blocks to `values`. Products and sums are those of f32.
    ///
    /// # Panics
    /// For kinds that are not decoded, and for bytes that are no whole blocks.
    pub fn decode(self, stored: &[u8], values: &mut Vec<f32>) {
        assert_eq!(stored.len() as u64 % self.block_bytes(), 0, "whole blocks of {}", self.name());
        match self {
            Kind::F32 => {
                each(stored, values, |block, values| values.push(f32::from_le_bytes(*block)))
            }
            Kind::F16 => {
                each(stored, values, |block, values| {
                    values.push(f16::from_le_bytes(*block).into())
                });
            }
            Kind::Bf16 => {
                each(stored, values, |block, values| {
                    values.push(bf16::from_le_bytes(*block).into())
                });
            }
            Kind::Q8_0 => each(stored, values, blocks::q8_0),
            Kind::Q4_0 => each(stored, values, blocks::q4_0),
            Kind::Q4_1 => each(stored, values, blocks::q4_1),
            Kind::Q5_0 => each(stored, values, blocks::q5_0),
            Kind::Q5_1 => each(stored, values, blocks::q5_1),
            Kind::Iq4Nl => each(stored, values, blocks::iq4_nl),
            Kind::Q2K => each(stored, values, superblocks::q2_k),
            Kind::Q3K => each(stored, values, superblocks::q3_k),
            Kind::Q4K => each(stored, values, superblocks::q4_k),
            Kind::Q5K => each(stored, values, superblocks::q5_k),
            Kind::Q6K => each(stored, values, superblocks::q6_k),
            Kind::Other { name, .. } => panic!("{name} is not decoded"),
        }
    }
}

/// Decodes block after block.
fn each<const BYTES: usize>(
    stored: &[u8],
    values: &mut Vec<f32>,
    decode: impl Fn(&[u8; BYTES], &mut Vec<f32>),
) {
    for block in stored.as_chunks().0 {
        decode(block, values);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(serde::Deserialize)]
    struct Case {
        kind: String,
        stored: String,
        values: Vec<f32>,
    }

    const ALL: [Kind; 14] = [
        Kind::F32,
        Kind::F16,
        Kind::Bf16,
        Kind::Q8_0,
        Kind::Q4_0,
        Kind::Q4_1,
        Kind::Q5_0,
        Kind::Q5_1,
        Kind::Q2K,
        Kind::Q3K,
        Kind::Q4K,
        Kind::Q5K,
        Kind::Q6K,
        Kind::Iq4Nl,
    ];

    /// Random blocks, and what the Python package gguf 0.19 makes of them.
    #[test]
    fn blocks_have_the_values_that_ggml_gives_them() {
        let cases = include_str!("../../tests/refs/gguf-blocks.json");
        let cases: Vec<Case> = serde_json::from_str(cases).unwrap();
        assert_eq!(cases.len(), ALL.len() - 3);
        for case in cases {
            let kind = *ALL.iter().find(|kind| kind.name() == case.kind).unwrap();
            let byte = |at: usize| u8::from_str_radix(&case.stored[at..at + 2], 16).unwrap();
            let stored: Vec<u8> = (0..case.stored.len()).step_by(2).map(byte).collect();
            let count = case.values.len() as u64;
            assert_eq!(kind.bytes_of(count), Some(stored.len() as u64), "{kind:?}");
            assert_eq!(kind.bytes_of(count + 1), None, "{kind:?}");
            let mut values = vec![0.5];
            kind.decode(&stored, &mut values);
            assert_eq!(values[0], 0.5);
            assert_eq!(&values[1..], case.values, "{kind:?}");
        }
    }

    #[test]
    fn floats_are_what_they_are() {
        let check = |kind: Kind, stored: &[u8], expected: &[f32]| {
            let mut values = vec![];
            kind.decode(stored, &mut values);
            assert_eq!(values, expected, "{kind:?}");
        };
        check(Kind::F32, &[0, 0, 0x80, 0x3f, 0, 0, 0x20, 0xc0], &[1.0, -2.5]);
        check(Kind::F16, &[0, 0x3c, 1, 0], &[1.0, 2.0_f32.powi(-24)]);
        check(Kind::Bf16, &[0x80, 0x3f, 0x20, 0xc0], &[1.0, -2.5]);
        assert_eq!(Kind::F32.bytes_of(1 << 62), None);
    }
}
