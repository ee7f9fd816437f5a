use serde::{Deserialize, Serialize};
use std::fmt;

/// Element type of a tensor, with the names of the Open Inference Protocol v2.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Dtype {
    Bool,
    Uint8,
    Uint16,
    Uint32,
    Uint64,
    Int8,
    Int16,
    Int32,
    Int64,
    Fp16,
    Bf16,
    Fp32,
    Fp64,
}

impl Dtype {
    /// Every element type, in the order of their on-disk codes.
    pub const ALL: [Dtype; 13] = [
        Dtype::Bool,
        Dtype::Uint8,
        Dtype::Uint16,
        Dtype::Uint32,
        Dtype::Uint64,
        Dtype::Int8,
        Dtype::Int16,
        Dtype::Int32,
        Dtype::Int64,
        Dtype::Fp16,
        Dtype::Bf16,
        Dtype::Fp32,
        Dtype::Fp64,
    ];

    /// Bytes of one element.
    pub fn size(self) -> usize {
        match self {
            Dtype::Bool | Dtype::Uint8 | Dtype::Int8 => 1,
            Dtype::Uint16 | Dtype::Int16 | Dtype::Fp16 | Dtype::Bf16 => 2,
            Dtype::Uint32 | Dtype::Int32 | Dtype::Fp32 => 4,
            Dtype::Uint64 | Dtype::Int64 | Dtype::Fp64 => 8,
        }
    }

    /// Whether a lower-precision variant may stand in for it.
    pub fn is_float(self) -> bool {
        matches!(self, Dtype::Fp16 | Dtype::Bf16 | Dtype::Fp32)
    }

    /// The code that stands for it in a layer file.
    pub fn code(self) -> u64 {
        Dtype::ALL.iter().position(|d| *d == self).expect("ALL lists every dtype") as u64
    }

    /// The dtype of a layer file's code, `None` for a code this version does not know.
    pub fn from_code(code: u64) -> Option<Dtype> {
        usize::try_from(code).ok().and_then(|i| Dtype::ALL.get(i)).copied()
    }

    /// The name the Open Inference Protocol gives it ("FP32", "INT64", ...).
    pub fn name(self) -> &'static str {
        match self {
            Dtype::Bool => "BOOL",
            Dtype::Uint8 => "UINT8",
            Dtype::Uint16 => "UINT16",
            Dtype::Uint32 => "UINT32",
            Dtype::Uint64 => "UINT64",
            Dtype::Int8 => "INT8",
            Dtype::Int16 => "INT16",
            Dtype::Int32 => "INT32",
            Dtype::Int64 => "INT64",
            Dtype::Fp16 => "FP16",
            Dtype::Bf16 => "BF16",
            Dtype::Fp32 => "FP32",
            Dtype::Fp64 => "FP64",
        }
    }
}

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
