//! Llama and its family: Llama 1 to 3 and what is built like it (SmolLM2), Mistral, Qwen2 and Qwen3.
//! They differ in biases, in norms of queries and keys, in windows, and in what a key that is left
//! out stands for.

use super::config::Config;
use super::decoder::{Decoder, Heads, Rotary, Sight};
use super::module::{Activation, Gated, Graph, Module, Norm, Product};
use super::rope::Rope;
use super::tensors::Tensors;
use super::{Network, head};
use crate::checkpoint::Checkpoint;
use crate::graph::writer::Value;
use crate::shard::error::{ShardError, ensure, unfit};

/// What transformers takes for keys that are left out, and what a member of the family has.
struct Family {
    vocabulary: u64,
    inner: u64,
    /// Heads of keys; none for as many as of queries, which null stands for with all.
    keys: Option<u64>,
    /// Values of a head; none for what the heads' number makes of the width.
    head: Option<u64>,
    context: u64,
    window: u64,
    /// Whether queries and keys are normed.
    norms_heads: bool,
}

const LLAMA: Family = Family {
    vocabulary: 32000,
    inner: 11008,
    keys: None,
    head: None,
    context: 2048,
    window: 4096,
    norms_heads: false,
};
const MISTRAL: Family = Family { inner: 14336, keys: Some(8), context: 131_072, ..LLAMA };
const QWEN2: Family =
    Family { vocabulary: 151_936, inner: 22016, keys: Some(32), context: 32768, ..LLAMA };
const QWEN3: Family = Family { head: Some(128), norms_heads: true, ..QWEN2 };

/// A model of the family.
struct Llama {
    width: u64,
    inner: u64,
    heads: Heads,
    epsilon: f64,
    activation: Activation,
    norms_heads: bool,
    /// Biases of queries, keys and values; of what attention comes to; of the feed-forward part.
    biases: [bool; 3],
    /// The window of each layer.
    windows: Vec<Option<u64>>,
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
    let kind = config.given_text("model_type")?.unwrap_or_default();
    let family = match kind {
        "mistral" => &MISTRAL,
        "qwen2" => &QWEN2,
        "qwen3" => &QWEN3,
        _ => &LLAMA,
    };
    config.only("partial_rotary_factor", &[1.0.into(), 1.into()])?;
    let prefix = tensors.prefix(&["model.", ""], "embed_tokens.weight");
    let layers = super::layers(config, "num_hidden_layers", 32)?;
    let model = Llama::read(kind, family, config, layers, &Named { tensors, prefix })?;
    let width = model.width;
    let vocabulary = config.size("vocab_size", family.vocabulary)?;
    let context = config.size("max_position_embeddings", family.context)?;
    let mut frequencies = Rope::of(config, 10000.0)?.frequencies(model.heads.width, context)?;
    if tensors.has(DIVISORS) {
        let divisors = tensors.values(DIVISORS, &[model.heads.width / 2])?;
        frequencies.radians.iter_mut().zip(divisors).for_each(|(own, divisor)| *own /= divisor);
    }
    let mut decoder = Decoder::begin(graph, layers, model.heads);
    let mut root = Module::root(graph, tensors, "model", prefix);
    let mut x = root.embedding("embed_tokens", "input_ids", vocabulary, width)?;
    let rotary = Rotary::new(&mut root, &decoder, &frequencies, checkpoint.rotation);
    for (layer, window) in model.windows.iter().enumerate() {
        let mut module = root.at(&format!("layers.{layer}"));
        x = model.layer(&mut module, &mut decoder, &rotary, &x, *window)?;
    }
    let x = Decoder::last(&mut root.scope, &x);
    let x = root.rms_norm("norm", &x, model.norm(width))?;
    let tied = config.flag("tie_word_embeddings", false)?;
    let table = format!("{prefix}embed_tokens.");
    let head = head::Head { vocabulary, width, table: tied.then_some(&*table), has_bias: false };
    let logits = head.draw(graph, tensors, &x)?;
    decoder.finish(graph, &logits, vocabulary);
    let is_spare =
        |name: &str| name.ends_with("rotary_emb.inv_freq") || (tied && name == head::NAME);
    Ok(Network {
        layers,
        context: Some(context),
        vocabulary: Some(vocabulary),
        spare: tensors.rest(kind, is_spare)?,
    })
}

/// What frequencies are divided by, where a GGUF file says it so.
const DIVISORS: &str = "rope_freqs.weight";

/// Tensors under a prefix.
struct Named<'t, 'a> {
    tensors: &'t Tensors<'a>,
    prefix: &'t str,
}

impl Named<'_, '_> {
    /// Whether the first layer has a tensor of that name.
    fn has(&self, name: &str) -> bool {
        self.tensors.has(&format!("{}layers.0.{name}", self.prefix))
    }
}

impl Llama {
    fn read(
        kind: &str,
        family: &Family,
        config: &Config,
        layers: u64,
        named: &Named,
    ) -> Result<Llama, ShardError> {
        let width = config.size("hidden_size", 4096)?;
        let queries = config.size("num_attention_heads", 32)?;
        let keys = match config.has("num_key_value_heads") {
            true => config.size("num_key_value_heads", queries)?,
            false => family.keys.unwrap_or(queries),
        };
        config.share(("num_attention_heads", queries), ("num_key_value_heads", keys))?;
        let head = match config.given_size("head_dim")?.or(family.head) {
            Some(head) => head,
            None => config.share(("hidden_size", width), ("num_attention_heads", queries))?,
        };
        ensure!(
            head.is_multiple_of(2),
            "{}: a head of {head} values, which are turned in pairs",
            config.file()
        );
        // A config that says nothing of biases leaves it to the tensors.
        let said = |key: &str, tensor: &str| -> Result<bool, ShardError> {
            Ok(config.given_flag(key)?.unwrap_or_else(|| named.has(tensor)))
        };
        let biases = match kind {
            "qwen2" => [true, false, false],
            "mistral" => [false; 3],
            _ => [
                said("attention_bias", "self_attn.q_proj.bias")?,
                said("attention_bias", "self_attn.o_proj.bias")?,
                said("mlp_bias", "mlp.down_proj.bias")?,
            ],
        };
        Ok(Llama {
            width,
            inner: config.size("intermediate_size", family.inner)?,
            heads: Heads { queries, keys, width: head },
            epsilon: config.number("rms_norm_eps", 1e-6)?,
            activation: Activation::of(config, "hidden_act", "silu")?,
            norms_heads: family.norms_heads,
            biases,
            windows: windows(kind, family, config, layers)?,
        })
    }

    fn norm(&self, width: u64) -> Norm {
        Norm { width, epsilon: self.epsilon, has_offset: false }
    }

    fn layer(
        &self,
        module: &mut Module,
        decoder: &mut Decoder,
        rotary: &Rotary,
        x: &str,
        window: Option<u64>,
    ) -> Result<Value, ShardError> {
        let Llama { width, inner, heads, biases, .. } = *self;
        let normal = module.rms_norm("input_layernorm", x, self.norm(width))?;
        let mut attention = module.at("self_attn");
        let mut parts = vec![];
        for (part, count) in [("q", heads.queries), ("k", heads.keys), ("v", heads.keys)] {
            let rows = count * heads.width;
            let product = Product { depth: width, rows, has_bias: biases[0] };
            let mut y = attention.linear(&format!("{part}_proj"), &normal, product)?;
            if self.norms_heads && part != "v" {
                y = decoder.split(&mut attention.scope, &y, count);
                y = attention.rms_norm(&format!("{part}_norm"), &y, self.norm(heads.width))?;
            }
            parts.push(y);
        }
        let scale = (heads.width as f64).powf(-0.5);
        let parts = [&*parts[0], &*parts[1], &*parts[2]];
        let mixed =
            decoder.attend(&mut attention.scope, parts, Some(rotary), Sight { window, scale });
        let depth = heads.queries * heads.width;
        let closing = Product { depth, rows: width, has_bias: biases[1] };
        let mixed = attention.linear("o_proj", &mixed, closing)?;
        let x = module.scope.op("Add", &[x, &mixed]);
        let normal = module.rms_norm("post_attention_layernorm", &x, self.norm(width))?;
        let gated = Gated { width, inner, activation: self.activation, has_bias: biases[2] };
        let hidden = gated.draw(&mut module.at("mlp"), &normal)?;
        Ok(module.scope.op("Add", &[&x, &hidden]))
    }
}

/// The window of each layer.
fn windows(
    kind: &str,
    family: &Family,
    config: &Config,
    layers: u64,
) -> Result<Vec<Option<u64>>, ShardError> {
    const KEY: &str = "sliding_window";
    let is_qwen = matches!(kind, "qwen2" | "qwen3");
    let has_window = kind == "mistral" || (is_qwen && config.flag("use_sliding_window", false)?);
    let window = match has_window {
        false => None,
        // Of a window null says that there is none.
        true if config.has(KEY) => config.given_size(KEY)?,
        true => Some(family.window),
    };
    let said = config.layer_types(layers)?;
    let slides = match (said, window) {
        (Some(slides), Some(_)) if is_qwen => slides,
        (Some(slides), _) if slides.iter().any(|slides| *slides != window.is_some()) => {
            return Err(config.wrong("layer_types", "what the other keys say of windows"));
        }
        (None, Some(_)) if is_qwen => {
            let first = config.count("max_window_layers", 28)?;
            (0..layers).map(|layer| layer >= first).collect()
        }
        _ => vec![window.is_some(); layers as usize],
    };
    Ok(slides.into_iter().map(|slides| window.filter(|_| slides)).collect())
}
