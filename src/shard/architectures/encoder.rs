//! BERT, RoBERTa and XLM-R: words, places and token types, and layers that are normed behind each part.
//! The latter two count places from the padding id on, over what is no padding.

use super::Network;
use super::config::Config;
use super::module::{Activation, Graph, Module, Product};
use super::tensors::Tensors;
use crate::checkpoint::Checkpoint;
use crate::graph::skim::Stored;
use crate::graph::writer::{DataType, Dim, Scope, Value, int};
use crate::shard::error::ShardError;
use serde_json::Value::{Bool, String as Text};

const BATCH: Dim = Dim::Any("batch_size");
const TOKENS: Dim = Dim::Any("sequence_length");

/// The sizes of a layer.
pub struct Sizes {
    pub width: u64,
    pub inner: u64,
    pub heads: u64,
    /// Values of a head.
    pub head: u64,
    pub epsilon: f64,
    pub activation: Activation,
    /// Whether queries, keys and values have biases.
    pub has_bias: bool,
}

impl Sizes {
    /// What `config` says, with transformers' defaults for those that are left out.
    ///
    /// # Errors
    /// Keys that are not what they have to be.
    pub fn of(config: &Config) -> Result<Sizes, ShardError> {
        let width = config.size("hidden_size", 768)?;
        let heads = config.size("num_attention_heads", 12)?;
        Ok(Sizes {
            width,
            inner: config.size("intermediate_size", 3072)?,
            heads,
            head: config.share(("hidden_size", width), ("num_attention_heads", heads))?,
            epsilon: config.number("layer_norm_eps", 1e-12)?,
            activation: Activation::of(config, "hidden_act", "gelu")?,
            has_bias: config.flag("qkv_bias", true)?,
        })
    }
}

/// Draws the model.
///
/// # Errors
/// A config or tensors that are none of such a model.
pub fn draw(
    graph: &mut Graph,
    _checkpoint: &Checkpoint,
    config: &Config,
    tensors: &Tensors,
) -> Result<Network, ShardError> {
    let kind = config.given_text("model_type")?.unwrap_or_default();
    let is_bert = kind == "bert";
    config.only("position_embedding_type", &[Text("absolute".to_string())])?;
    for key in ["is_decoder", "add_cross_attention"] {
        config.only(key, &[Bool(false)])?;
    }
    let sizes = Sizes::of(config)?;
    let layers = super::layers(config, "num_hidden_layers", 12)?;
    let default = if kind == "roberta" { 50265 } else { 30522 };
    let vocabulary = config.size("vocab_size", default)?;
    let places = config.size("max_position_embeddings", 512)?;
    let padding = (!is_bert).then_some(config.count("pad_token_id", 1)?);
    let types = config.size("type_vocab_size", 2)?;
    let mut inputs = vec!["input_ids", "attention_mask"];
    if types > 1 {
        inputs.push("token_type_ids");
    }
    for name in inputs {
        graph.input(name, DataType::Int64, &[BATCH, TOKENS]);
    }
    let own = if is_bert { "bert." } else { "roberta." };
    let prefix = tensors.prefix(&[own, ""], "embeddings.word_embeddings.weight");
    let mut root = Module::root(graph, tensors, "", prefix);
    let mut module = root.at("embeddings");
    let width = sizes.width;
    let words = module.embedding("word_embeddings", "input_ids", vocabulary, width)?;
    // A single type needs no input.
    let kinds = match types {
        1 => module.at("token_type_embeddings").weight("weight", &[1, width])?,
        _ => module.embedding("token_type_embeddings", "token_type_ids", types, width)?,
    };
    let sum = module.scope.op("Add", &[&words, &kinds]);
    let place = match padding {
        None => counted(&mut module.scope),
        Some(padding) => counted_from(&mut module.scope, padding),
    };
    let place = module.embedding("position_embeddings", &place, places, width)?;
    let sum = module.scope.op("Add", &[&sum, &place]);
    let mut x = module.layer_norm("LayerNorm", &sum, width, sizes.epsilon)?;
    let mask = mask(&mut root.scope);
    let mut encoder = root.at("encoder");
    for layer in 0..layers {
        x = bert_layer(&mut encoder.at(&format!("layer.{layer}")), &sizes, &x, &mask)?;
    }
    graph.output(&x, "last_hidden_state", &[BATCH, TOKENS, Dim::Is(width)]);
    let is_spare = |name: &str| {
        let bare = name.strip_prefix(own).unwrap_or(name);
        let heads = ["cls.", "classifier.", "lm_head.", "pooler.", "qa_outputs.", "score."];
        bare.starts_with("embeddings.position_ids")
            || bare.starts_with("embeddings.token_type_ids")
            || heads.iter().any(|head| bare.starts_with(head))
    };
    let context = places.saturating_sub(padding.map_or(0, |padding| padding + 1));
    Ok(Network {
        layers,
        context: Some(context),
        vocabulary: Some(vocabulary),
        spare: tensors.rest(kind, is_spare)?,
    })
}

/// Places 0, 1, 2 of the tokens, `[S]`.
fn counted(scope: &mut Scope<Stored>) -> Value {
    let length = scope.size("input_ids", 1);
    let (zero, one) = (scope.constant_int(0), scope.constant_int(1));
    scope.op("Range", &[&zero, &length, &one])
}

/// Places from `padding` + 1 on of what is no padding, whose own is `padding`: `[batch, S]`.
fn counted_from(scope: &mut Scope<Stored>, padding: u64) -> Value {
    let padding = scope.constant_int(padding.cast_signed());
    let is_padding = scope.op("Equal", &["input_ids", &padding]);
    let is_word = scope.op("Not", &[&is_padding]);
    let word = scope.cast(&is_word, DataType::Int64);
    let axis = scope.constant_int(1);
    let count = scope.op("CumSum", &[&word, &axis]);
    let count = scope.op("Mul", &[&count, &word]);
    scope.op("Add", &[&count, &padding])
}

/// What is added to scores, `[batch, 1, 1, S]`: 0 where to look, the least float where not.
fn mask(scope: &mut Scope<Stored>) -> Value {
    let mask = scope.cast("attention_mask", DataType::Float);
    let (one, least) = (scope.constant_float(1.0), scope.constant_float(f32::MIN));
    let hidden = scope.op("Sub", &[&one, &mask]);
    let mask = scope.op("Mul", &[&hidden, &least]);
    let axes = scope.constant_ints(&[1, 2]);
    scope.op("Unsqueeze", &[&mask, &axes])
}

fn bert_layer(
    module: &mut Module,
    sizes: &Sizes,
    x: &str,
    mask: &str,
) -> Result<Value, ShardError> {
    let mut attention = module.at("attention");
    let mixed = attend(&mut attention.at("self"), sizes, x, Some(mask))?;
    let x = close(&mut attention.at("output"), sizes, &mixed, x)?;
    let opening = Product { depth: sizes.width, rows: sizes.inner, has_bias: true };
    let inner = module.at("intermediate").linear("dense", &x, opening)?;
    let inner = sizes.activation.apply(&mut module.scope, &inner);
    let mut output = module.at("output");
    let closing = Product { depth: sizes.inner, rows: sizes.width, has_bias: true };
    let y = output.linear("dense", &inner, closing)?;
    let sum = output.scope.op("Add", &[&y, &x]);
    output.layer_norm("LayerNorm", &sum, sizes.width, sizes.epsilon)
}

/// Project attention's result back, add what went in, and norm.
fn close(module: &mut Module, sizes: &Sizes, x: &str, residual: &str) -> Result<Value, ShardError> {
    let product = Product { depth: sizes.width, rows: sizes.width, has_bias: true };
    let y = module.linear("dense", x, product)?;
    let sum = module.scope.op("Add", &[&y, residual]);
    module.layer_norm("LayerNorm", &sum, sizes.width, sizes.epsilon)
}

/// Attention of all tokens to all, `[batch, S, width]` from and to, by the modules `query`, `key` and
/// `value`.
///
/// # Errors
/// Tensors that are missing, or of other shapes.
pub fn attend(
    module: &mut Module,
    sizes: &Sizes,
    x: &str,
    mask: Option<&str>,
) -> Result<Value, ShardError> {
    let Sizes { width, heads, head, has_bias, .. } = *sizes;
    let product = Product { depth: width, rows: width, has_bias };
    let part = |module: &mut Module, name: &str, order: [i64; 4]| {
        let y = module.linear(name, x, product)?;
        let shape = [0, 0, heads.cast_signed(), head.cast_signed()];
        let shape = module.scope.constant_ints(&shape);
        let y = module.scope.reshape(&y, &shape);
        Ok::<_, ShardError>(module.scope.transpose(&y, &order))
    };
    let query = part(module, "query", [0, 2, 1, 3])?;
    let key = part(module, "key", [0, 2, 3, 1])?;
    let value = part(module, "value", [0, 2, 1, 3])?;
    let query = module.scaled(&query, (head as f64).powf(-0.5));
    let scope = &mut module.scope;
    let mut scores = scope.op("MatMul", &[&query, &key]);
    if let Some(mask) = mask {
        scores = scope.op("Add", &[&scores, mask]);
    }
    let shares = scope.op_with("Softmax", &[&scores], vec![int("axis", -1)]);
    let mixed = scope.op("MatMul", &[&shares, &value]);
    let mixed = scope.transpose(&mixed, &[0, 2, 1, 3]);
    let joined = scope.constant_ints(&[0, 0, width.cast_signed()]);
    Ok(scope.reshape(&mixed, &joined))
}
