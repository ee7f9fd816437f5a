//! BERT without its pooler: `BertModel` as exported for feature extraction.

use super::Dims;
use super::modules::{Graph, Modules, Scope};
use hermes::graph::writer::{DataType, Dim, Part, Value, int, int_tensor};

const EPSILON: f32 = 1e-12;

/// Three int64 inputs `[batch_size, sequence_length]` to `last_hidden_state`.
pub fn build(dims: Dims, vocabulary: u64, positions: u64) -> Graph {
    let mut graph = Graph::default();
    let tokens = [Dim::Any("batch_size"), Dim::Any("sequence_length")];
    for name in ["input_ids", "attention_mask", "token_type_ids"] {
        graph.input(name, DataType::Int64, &tokens);
    }
    let mut root = graph.root();
    let length = root.size("input_ids", 1);
    let mut x = embeddings(&mut root, dims, vocabulary, positions, &length);
    let mask = attention_mask(&mut root, &length);
    let mut encoder = root.at("encoder");
    for i in 0..dims.layers {
        x = layer(&mut encoder.at(&format!("layer.{i}")), dims, &x, &mask);
    }
    let [batch, sequence] = tokens;
    graph.output(&x, "last_hidden_state", &[batch, sequence, Dim::Is(dims.width)]);
    graph
}

fn embeddings(
    root: &mut Scope,
    dims: Dims,
    vocabulary: u64,
    positions: u64,
    length: &str,
) -> Value {
    let all: Vec<i64> = (0..positions as i64).collect();
    let all = root.constant(int_tensor(&[1, positions as i64], &all));
    let mut scope = root.at("embeddings");
    let axes = scope.constant_ints(&[1]);
    let start = scope.constant_ints(&[0]);
    let end = scope.unsqueeze(length, 0);
    let step = scope.constant_ints(&[1]);
    let used = scope.op("Slice", &[&all, &start, &end, &axes, &step]);
    let words = scope.embedding("word_embeddings", "input_ids", vocabulary, dims.width);
    let types = scope.embedding("token_type_embeddings", "token_type_ids", 2, dims.width);
    let sum = scope.op("Add", &[&words, &types]);
    let places = scope.embedding("position_embeddings", &used, positions, dims.width);
    let sum = scope.op("Add", &[&sum, &places]);
    scope.layer_norm("LayerNorm", &sum, dims.width, EPSILON)
}

/// The mask `[batch, 1, tokens, tokens]`: 0 where to look, the least float where not.
fn attention_mask(root: &mut Scope, length: &str) -> Value {
    let batch = root.size("attention_mask", 0);
    let source = root.size("attention_mask", 1);
    let mask = root.unsqueeze("attention_mask", 1);
    let mask = root.unsqueeze(&mask, 2);
    let shape = root.shape(&[Part::Of(&batch), Part::Is(1), Part::Of(length), Part::Of(&source)]);
    let mask = root.expand(&mask, &shape);
    let mask = root.cast(&mask, DataType::Float);
    let one = root.constant_float(1.0);
    let hidden = root.op("Sub", &[&one, &mask]);
    let is_hidden = root.cast(&hidden, DataType::Bool);
    let is_hidden = root.cast(&is_hidden, DataType::Bool);
    let least = root.constant_float(f32::MIN);
    root.op("Where", &[&is_hidden, &least, &hidden])
}

fn layer(scope: &mut Scope, dims: Dims, x: &str, mask: &str) -> Value {
    let mut attention = scope.at("attention");
    let mixed = self_attention(&mut attention.at("self"), dims, x, mask);
    let x = close(&mut attention.at("output"), &mixed, x, dims.width, dims.width);
    let mut intermediate = scope.at("intermediate");
    let inner = intermediate.linear("dense", &x, dims.width, dims.inner);
    let inner = intermediate.gelu("intermediate_act_fn", &inner);
    close(&mut scope.at("output"), &inner, &x, dims.inner, dims.width)
}

/// Project back, add the residual and normalize.
fn close(scope: &mut Scope, x: &str, residual: &str, depth: u64, width: u64) -> Value {
    let x = scope.linear("dense", x, depth, width);
    let x = scope.op("Add", &[&x, residual]);
    scope.layer_norm("LayerNorm", &x, width, EPSILON)
}

fn self_attention(scope: &mut Scope, dims: Dims, x: &str, mask: &str) -> Value {
    let batch = scope.size(x, 0);
    let length = scope.size(x, 1);
    let (heads, head) = (dims.heads as i64, dims.head() as i64);
    let query = scope.linear("query", x, dims.width, dims.width);
    let parts = [Part::Of(&batch), Part::Is(-1), Part::Is(heads), Part::Is(head)];
    let [query_shape, key_shape, value_shape] = [(); 3].map(|()| scope.shape(&parts));
    let query = scope.reshape(&query, &query_shape);
    let query = scope.transpose(&query, &[0, 2, 1, 3]);
    let key = scope.linear("key", x, dims.width, dims.width);
    let key = scope.reshape(&key, &key_shape);
    let value = scope.linear("value", x, dims.width, dims.width);
    let value = scope.reshape(&value, &value_shape);
    let value = scope.transpose(&value, &[0, 2, 1, 3]);
    let scores = scope.scores(&query, &key, &[0, 2, 3, 1]);
    let scores = scope.op("Add", &[&scores, mask]);
    let shares = scope.op_with("Softmax", &[&scores], vec![int("axis", -1)]);
    let mixed = scope.op("MatMul", &[&shares, &value]);
    let mixed = scope.transpose(&mixed, &[0, 2, 1, 3]);
    let width = dims.width as i64;
    let shape = scope.shape(&[Part::Of(&batch), Part::Of(&length), Part::Is(width)]);
    scope.reshape(&mixed, &shape)
}
