//! Gemma 3: norms before and behind each part, windows in most layers, which turn by another base than
//! those that see all, and words scaled by the root of the width.

use super::config::Config;
use super::decoder::{Decoder, Heads, Rotary, Sight};
use super::module::{Activation, Gated, Graph, Module, Norm, Product};
use super::rope::Rope;
use super::tensors::Tensors;
use super::{Network, head};
use crate::checkpoint::Checkpoint;
use crate::graph::writer::Value;
use crate::shard::error::{ShardError, ensure, unfit};
use serde_json::Value::Bool;

struct Gemma3 {
    width: u64,
    inner: u64,
    heads: Heads,
    epsilon: f64,
    /// Whether norms lack their 1.
    has_offset: bool,
    activation: Activation,
    has_bias: bool,
    scale: f64,
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
    config.only("use_bidirectional_attention", &[Bool(false)])?;
    let queries = config.size("num_attention_heads", 8)?;
    let keys = config.size("num_key_value_heads", 4)?;
    config.share(("num_attention_heads", queries), ("num_key_value_heads", keys))?;
    let width = config.size("hidden_size", 2304)?;
    let model = Gemma3 {
        width,
        inner: config.size("intermediate_size", 9216)?,
        heads: Heads { queries, keys, width: config.size("head_dim", 256)? },
        epsilon: config.number("rms_norm_eps", 1e-6)?,
        has_offset: checkpoint.norm_offset,
        activation: Activation::of(config, "hidden_activation", "gelu_pytorch_tanh")?,
        has_bias: config.flag("attention_bias", false)?,
        scale: config.number("query_pre_attn_scalar", 256.0)?.powf(-0.5),
    };
    ensure!(
        model.heads.width.is_multiple_of(2),
        "{}: head_dim is {}, and values are turned in pairs",
        config.file(),
        model.heads.width
    );
    let layers = super::layers(config, "num_hidden_layers", 26)?;
    let vocabulary = config.size("vocab_size", 262_208)?;
    let context = config.size("max_position_embeddings", 131_072)?;
    let windows = windows(config, layers)?;
    let [all, near] = ropes(config)?;
    let mut decoder = Decoder::begin(graph, layers, model.heads);
    let prefix = tensors.prefix(&["model.", ""], "embed_tokens.weight");
    let mut root = Module::root(graph, tensors, "model", prefix);
    let words = root.embedding("embed_tokens", "input_ids", vocabulary, width)?;
    let mut x = root.scaled(&words, (width as f64).sqrt());
    let mut rotary = |rope: Rope| -> Result<Rotary, ShardError> {
        let frequencies = rope.frequencies(model.heads.width, context)?;
        Ok(Rotary::new(&mut root, &decoder, &frequencies, checkpoint.rotation))
    };
    let (all, near) = (rotary(all)?, rotary(near)?);
    for (layer, window) in windows.iter().enumerate() {
        let mut module = root.at(&format!("layers.{layer}"));
        let rotary = if window.is_some() { &near } else { &all };
        x = model.layer(&mut module, &mut decoder, rotary, &x, *window)?;
    }
    let x = Decoder::last(&mut root.scope, &x);
    let x = root.rms_norm("norm", &x, model.norm(width))?;
    let tied = config.flag("tie_word_embeddings", true)?;
    let table = format!("{prefix}embed_tokens.");
    let head = head::Head { vocabulary, width, table: tied.then_some(&*table), has_bias: false };
    let logits = head.draw(graph, tensors, &x)?;
    decoder.finish(graph, &logits, vocabulary);
    Ok(Network {
        layers,
        context: Some(context),
        vocabulary: Some(vocabulary),
        spare: tensors.rest("gemma3_text", |name| tied && name == head::NAME)?,
    })
}

/// The window of each layer: all but each sixth, or as `layer_types` says.
fn windows(config: &Config, layers: u64) -> Result<Vec<Option<u64>>, ShardError> {
    let window = config.size("sliding_window", 4096)?;
    let slides = match config.layer_types(layers)? {
        Some(slides) => slides,
        None => {
            let pattern = config.size("sliding_window_pattern", 6)?;
            (1..=layers).map(|layer| !layer.is_multiple_of(pattern)).collect()
        }
    };
    Ok(slides.into_iter().map(|slides| slides.then_some(window)).collect())
}

/// How layers turn that see all, and those with a window.
fn ropes<'a>(config: &Config<'a>) -> Result<[Rope<'a>; 2], ShardError> {
    let (base, local) = (1e6, config.number("rope_local_base_freq", 10000.0)?);
    let near = Rope::plain(local);
    let Some(parameters) = config.section("rope_parameters")? else {
        return Ok([Rope::of(config, base)?, near]);
    };
    let of = |key: &str, base: f64| -> Result<Option<Rope<'a>>, ShardError> {
        let section = parameters.section(key)?;
        section.map(|section| Rope::of_section(&section, base)).transpose()
    };
    match (of("full_attention", base)?, of("sliding_attention", local)?) {
        (None, None) => Ok([Rope::of(config, base)?, near]),
        (all, other) => Ok([all.unwrap_or(Rope::plain(base)), other.unwrap_or(near)]),
    }
}

impl Gemma3 {
    fn norm(&self, width: u64) -> Norm {
        Norm { width, epsilon: self.epsilon, has_offset: self.has_offset }
    }

    fn layer(
        &self,
        module: &mut Module,
        decoder: &mut Decoder,
        rotary: &Rotary,
        x: &str,
        window: Option<u64>,
    ) -> Result<Value, ShardError> {
        let Gemma3 { width, inner, heads, has_bias, .. } = *self;
        let normal = module.rms_norm("input_layernorm", x, self.norm(width))?;
        let mut attention = module.at("self_attn");
        let mut parts = vec![];
        for (part, count) in [("q", heads.queries), ("k", heads.keys), ("v", heads.keys)] {
            let product = Product { depth: width, rows: count * heads.width, has_bias };
            let mut y = attention.linear(&format!("{part}_proj"), &normal, product)?;
            if part != "v" {
                y = decoder.split(&mut attention.scope, &y, count);
                y = attention.rms_norm(&format!("{part}_norm"), &y, self.norm(heads.width))?;
            }
            parts.push(y);
        }
        let parts = [&*parts[0], &*parts[1], &*parts[2]];
        let sight = Sight { window, scale: self.scale };
        let mixed = decoder.attend(&mut attention.scope, parts, Some(rotary), sight);
        let closing = Product { depth: heads.queries * heads.width, rows: width, has_bias };
        let mixed = attention.linear("o_proj", &mixed, closing)?;
        let mixed = module.rms_norm("post_attention_layernorm", &mixed, self.norm(width))?;
        let x = module.scope.op("Add", &[x, &mixed]);
        let normal = module.rms_norm("pre_feedforward_layernorm", &x, self.norm(width))?;
        let gated = Gated { width, inner, activation: self.activation, has_bias: false };
        let hidden = gated.draw(&mut module.at("mlp"), &normal)?;
        let hidden = module.rms_norm("post_feedforward_layernorm", &hidden, self.norm(width))?;
        Ok(module.scope.op("Add", &[&x, &hidden]))
    }
}
