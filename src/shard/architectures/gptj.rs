//! GPT-J: attention and feed-forward side by side behind one norm, the first values of each head turned
//! in pairs of neighbours.

use super::config::Config;
use super::decoder::{Decoder, Heads, Rotary, Sight};
use super::module::{Activation, Graph, Module, Product};
use super::rope::Rope;
use super::tensors::Tensors;
use super::{Network, head};
use crate::checkpoint::{Checkpoint, Rotation};
use crate::graph::writer::Value;
use crate::shard::error::{ShardError, ensure, unfit};
use serde_json::Value::Bool;

struct GptJ {
    width: u64,
    inner: u64,
    heads: Heads,
    epsilon: f64,
    activation: Activation,
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
    config.only("rotary", &[Bool(true)])?;
    config.only("scale_attn_weights", &[Bool(true)])?;
    let width_key = config.named("n_embd", "hidden_size");
    let heads_key = config.named("n_head", "num_attention_heads");
    let width = config.size(width_key, 4096)?;
    let queries = config.size(heads_key, 16)?;
    let model = GptJ {
        width,
        inner: config.size("n_inner", 4 * width)?,
        heads: Heads {
            queries,
            keys: queries,
            width: config.share((width_key, width), (heads_key, queries))?,
        },
        epsilon: config.number("layer_norm_epsilon", 1e-5)?,
        activation: Activation::of(config, "activation_function", "gelu_new")?,
    };
    let layers = super::layers(config, config.named("n_layer", "num_hidden_layers"), 28)?;
    let vocabulary = config.size("vocab_size", 50400)?;
    let context = config.size(config.named("n_positions", "max_position_embeddings"), 2048)?;
    let turned = config.size("rotary_dim", 64)?;
    ensure!(
        turned.is_multiple_of(2) && turned <= model.heads.width,
        "{}: rotary_dim is {turned}, and a head has {} values",
        config.file(),
        model.heads.width
    );
    let mut decoder = Decoder::begin(graph, layers, model.heads);
    let prefix = tensors.prefix(&["transformer.", ""], "wte.weight");
    let mut root = Module::root(graph, tensors, "transformer", prefix);
    let mut x = root.embedding("wte", "input_ids", vocabulary, width)?;
    let frequencies = Rope::plain(10000.0).frequencies(turned, context)?;
    let rotary = Rotary::new(&mut root, &decoder, &frequencies, Rotation::Interleaved);
    for layer in 0..layers {
        let mut module = root.at(&format!("h.{layer}"));
        x = model.layer(&mut module, &mut decoder, &rotary, &x)?;
    }
    let x = Decoder::last(&mut root.scope, &x);
    let x = root.layer_norm("ln_f", &x, width, model.epsilon)?;
    let tied = config.flag("tie_word_embeddings", false)?;
    let table = format!("{prefix}wte.");
    let head = head::Head { vocabulary, width, table: tied.then_some(&*table), has_bias: true };
    let logits = head.draw(graph, tensors, &x)?;
    decoder.finish(graph, &logits, vocabulary);
    let buffers = [".attn.bias", ".attn.masked_bias", ".attn.embed_positions"];
    let is_spare =
        |name: &str| buffers.iter().any(|end| name.ends_with(end)) || (tied && name == head::NAME);
    Ok(Network {
        layers,
        context: Some(context),
        vocabulary: Some(vocabulary),
        spare: tensors.rest("gptj", is_spare)?,
    })
}

impl GptJ {
    fn layer(
        &self,
        module: &mut Module,
        decoder: &mut Decoder,
        rotary: &Rotary,
        x: &str,
    ) -> Result<Value, ShardError> {
        let GptJ { width, inner, heads, .. } = *self;
        let normal = module.layer_norm("ln_1", x, width, self.epsilon)?;
        let mut attention = module.at("attn");
        let square = Product { depth: width, rows: width, has_bias: false };
        let mut parts = vec![];
        for name in ["q_proj", "k_proj", "v_proj"] {
            parts.push(attention.linear(name, &normal, square)?);
        }
        let scale = (heads.width as f64).powf(-0.5);
        let parts = [&*parts[0], &*parts[1], &*parts[2]];
        let sight = Sight { window: None, scale };
        let mixed = decoder.attend(&mut attention.scope, parts, Some(rotary), sight);
        let mixed = attention.linear("out_proj", &mixed, square)?;
        let mut mlp = module.at("mlp");
        let hidden = Product { depth: width, rows: inner, has_bias: true };
        let hidden = mlp.linear("fc_in", &normal, hidden)?;
        let hidden = self.activation.apply(&mut mlp.scope, &hidden);
        let closing = Product { depth: inner, rows: width, has_bias: true };
        let hidden = mlp.linear("fc_out", &hidden, closing)?;
        let both = module.scope.op("Add", &[&mixed, &hidden]);
        Ok(module.scope.op("Add", &[x, &both]))
    }
}
