//! `f32`: the values themselves.

use super::columns::{self, Columns};
use super::steps::steps_of_values;
use super::{Codec, Sums};

/// Single precision, stored as it is.
#[derive(Debug)]
pub(super) struct F32;

impl Codec for F32 {
    fn name(&self) -> &'static str {
        "f32"
    }

    fn code(&self) -> u64 {
        1
    }

    fn stored_bytes(&self, depth: usize, lanes: usize) -> usize {
        depth * lanes * 4
    }

    fn encode(&self, values: &[f32], _lanes: usize, stored: &mut Vec<u8>) {
        stored.reserve(values.len() * 4);
        stored.extend(values.iter().flat_map(|value| value.to_le_bytes()));
    }

    fn decode(&self, stored: &[u8], _lanes: usize, values: &mut [f32]) {
        assert_eq!(stored.len(), values.len() * 4, "stored bytes of an f32 run");
        for (value, bytes) in values.iter_mut().zip(stored.as_chunks::<4>().0) {
            *value = f32::from_le_bytes(*bytes);
        }
    }

    fn multiply(&self, stored: &[u8], columns: &Columns, sums: &mut Sums) {
        columns::multiply::<F32>(stored, columns, sums);
    }

    fn error_bound(&self, _: f32, _: f32) -> f32 {
        0.0
    }

    fn is_plain_f32(&self) -> bool {
        true
    }
}

steps_of_values!(F32, 4, singles);
