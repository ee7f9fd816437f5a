//! GPT-2: a table of places, one product for queries, keys and values, products with matrices that
//! stand as `[in, out]` in its own files.

use super::config::Config;
use super::decoder::{Decoder, Heads, Sight};
use super::module::{Activation, Graph, Module};
use super::tensors::Tensors;
use super::{Network, head};
use crate::checkpoint::Checkpoint;
use crate::graph::writer::Value;
use crate::shard::error::ShardError;
use serde_json::Value::Bool;

struct Gpt2 {
    width: u64,
    inner: u64,
    heads: Heads,
    epsilon: f64,
    activation: Activation,
    /// Whether matrices stand as `[in, out]`.
    is_turned: bool,
    has_scale: bool,
    scales_by_layer: bool,
}

/// Draws the model.
///
/// # Errors
/// A config or tensors that are none of such a model.
pub fn draw(
    graph: &mut Graph,
    checkpoint: &Checkpoint,
    config: &Config,
    tensors: &Tensors,
) -> Result<Network, ShardError> {
    config.only("add_cross_attention", &[Bool(false)])?;
    let width_key = config.named("n_embd", "hidden_size");
    let heads_key = config.named("n_head", "num_attention_heads");
    let width = config.size(width_key, 768)?;
    let queries = config.size(heads_key, 12)?;
    let model = Gpt2 {
        width,
        inner: config.size("n_inner", 4 * width)?,
        heads: Heads {
            queries,
            keys: queries,
            width: config.share((width_key, width), (heads_key, queries))?,
        },
        epsilon: config.number("layer_norm_epsilon", 1e-5)?,
        activation: Activation::of(config, "activation_function", "gelu_new")?,
        is_turned: checkpoint.turned,
        has_scale: config.flag("scale_attn_weights", true)?,
        scales_by_layer: config.flag("scale_attn_by_inverse_layer_idx", false)?,
    };
    let layers = super::layers(config, config.named("n_layer", "num_hidden_layers"), 12)?;
    let vocabulary = config.size("vocab_size", 50257)?;
    let context = config.size(config.named("n_positions", "max_position_embeddings"), 1024)?;
    let mut decoder = Decoder::begin(graph, layers, model.heads);
    let prefix = tensors.prefix(&["transformer.", ""], "wte.weight");
    let mut root = Module::root(graph, tensors, "transformer", prefix);
    let words = root.embedding("wte", "input_ids", vocabulary, width)?;
    let places = root.embedding("wpe", decoder.places(), context, width)?;
    let mut x = root.scope.op("Add", &[&words, &places]);
    for layer in 0..layers {
        let mut module = root.at(&format!("h.{layer}"));
        x = model.layer(&mut module, &mut decoder, layer, &x)?;
    }
    let x = Decoder::last(&mut root.scope, &x);
    let x = root.layer_norm("ln_f", &x, width, model.epsilon)?;
    let tied = config.flag("tie_word_embeddings", true)?;
    let table = format!("{prefix}wte.");
    let head = head::Head { vocabulary, width, table: tied.then_some(&*table), has_bias: false };
    let logits = head.draw(graph, tensors, &x)?;
    decoder.finish(graph, &logits, vocabulary);
    let is_spare = |name: &str| {
        name.ends_with(".attn.bias")
            || name.ends_with(".attn.masked_bias")
            || (tied && name == head::NAME)
    };
    Ok(Network {
        layers,
        context: Some(context),
        vocabulary: Some(vocabulary),
        spare: tensors.rest("gpt2", is_spare)?,
    })
}

impl Gpt2 {
    fn layer(
        &self,
        module: &mut Module,
        decoder: &mut Decoder,
        layer: u64,
        x: &str,
    ) -> Result<Value, ShardError> {
        let Gpt2 { width, inner, heads, .. } = *self;
        let normal = module.layer_norm("ln_1", x, width, self.epsilon)?;
        let mut attention = module.at("attn");
        let joined = self.product(&mut attention, "c_attn", &normal, [width, 3 * width])?;
        let parts = attention.scope.split(&joined, &[width.cast_signed(); 3], 2);
        let parts = [&*parts[0], &*parts[1], &*parts[2]];
        let mut scale = if self.has_scale { (heads.width as f64).powf(-0.5) } else { 1.0 };
        if self.scales_by_layer {
            scale /= (layer + 1) as f64;
        }
        let sight = Sight { window: None, scale };
        let mixed = decoder.attend(&mut attention.scope, parts, None, sight);
        let mixed = self.product(&mut attention, "c_proj", &mixed, [width, width])?;
        let x = module.scope.op("Add", &[x, &mixed]);
        let normal = module.layer_norm("ln_2", &x, width, self.epsilon)?;
        let mut mlp = module.at("mlp");
        let hidden = self.product(&mut mlp, "c_fc", &normal, [width, inner])?;
        let hidden = self.activation.apply(&mut mlp.scope, &hidden);
        let hidden = self.product(&mut mlp, "c_proj", &hidden, [inner, width])?;
        Ok(module.scope.op("Add", &[&x, &hidden]))
    }

    /// GPT-2's `Conv1D`, from so many values to so many.
    fn product(
        &self,
        module: &mut Module,
        name: &str,
        x: &str,
        [depth, rows]: [u64; 2],
    ) -> Result<Value, ShardError> {
        let mut module = module.at(name);
        let weight = match self.is_turned {
            true => module.weight("weight", &[depth, rows])?,
            false => {
                let weight = module.weight("weight", &[rows, depth])?;
                module.scope.transpose(&weight, &[1, 0])
            }
        };
        let bias = module.weight("bias", &[rows])?;
        let y = module.scope.op("MatMul", &[x, &weight]);
        Ok(module.scope.op("Add", &[&y, &bias]))
    }
}
