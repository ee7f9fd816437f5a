//! The product that makes logits of a token's vector, with a matrix of its own or the table of words.

use super::module::{Graph, Module};
use super::tensors::Tensors;
use crate::graph::writer::Value;
use crate::shard::error::ShardError;

/// The name of a matrix of its own.
pub const NAME: &str = "lm_head.weight";

/// A head of a language model.
pub struct Head<'a> {
    pub vocabulary: u64,
    pub width: u64,
    /// What stands before the name of the table of words, where that is the matrix.
    pub table: Option<&'a str>,
    pub has_bias: bool,
}

impl Head<'_> {
    /// The logits of `x`, `[1, 1, vocabulary]`.
    ///
    /// # Errors
    /// A matrix that is missing, or of another shape.
    pub fn draw(&self, graph: &mut Graph, tensors: &Tensors, x: &str) -> Result<Value, ShardError> {
        let Head { vocabulary, width, table, has_bias } = *self;
        let mut module = Module::root(graph, tensors, "lm_head", table.unwrap_or("lm_head."));
        let weight = module.weight("weight", &[vocabulary, width])?;
        let turned = module.scope.transpose(&weight, &[1, 0]);
        let logits = module.scope.op("MatMul", &[x, &turned]);
        if !has_bias {
            return Ok(logits);
        }
        let mut module = Module::root(graph, tensors, "lm_head", "lm_head.");
        let bias = module.weight("bias", &[vocabulary])?;
        Ok(module.scope.op("Add", &[&logits, &bias]))
    }
}
