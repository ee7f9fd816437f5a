//! From a checkpoint to a graph: each architecture draws its own, of modules that all share, in one
//! form that is imported like any other ONNX model. Weights stay where they are.
//!
//! Decoders take `input_ids` `[1, S]` and `past_key_values.N.key` and `.value`
//! `[1, heads, P, width]`, P from 0 on, and give the `logits` of the last 8 new
//! tokens and `present.N.key` and `.value` `[1, heads, P + S, width]`: places follow from S and P.
//! Encoders give `last_hidden_state`.

mod config;
mod decoder;
mod encoder;
mod gemma3;
mod gpt2;
mod gptj;
mod head;
mod llama;
mod module;
mod rope;
mod tensors;
#[cfg(test)]
mod tests;
mod vit;

use super::error::{ShardError, unfit};
use crate::checkpoint::Checkpoint;
use crate::graph::skim::{self, Skim};
use crate::wire::quote::quote;
use config::Config;
use module::Graph;
use tensors::Tensors;

/// Most layers of a model: far above any real one, and few enough to be declared.
const MAX_LAYERS: u64 = 1024;

/// The operators that graphs are drawn with: the first set that has RMSNormalization.
const OPSET: i64 = 23;

/// What draws an architecture.
type Draw = fn(&mut Graph, &Checkpoint, &Config, &Tensors) -> Result<Network, ShardError>;

/// The architectures, by the `model_type` of their configs.
const KNOWN: [(&str, Draw); 11] = [
    ("gpt2", gpt2::draw),
    ("gptj", gptj::draw),
    ("llama", llama::draw),
    ("mistral", llama::draw),
    ("qwen2", llama::draw),
    ("qwen3", llama::draw),
    ("gemma3_text", gemma3::draw),
    ("bert", encoder::draw),
    ("roberta", encoder::draw),
    ("xlm-roberta", encoder::draw),
    ("vit", vit::draw),
];

/// Keys of any config whose presence makes a model another one than is computed here.
const STRANGE: [&str; 6] = [
    "quantization_config",
    "num_experts",
    "num_local_experts",
    "n_routed_experts",
    "attn_logit_softcapping",
    "final_logit_softcapping",
];

/// What is to be said of a network that was drawn.
struct Network {
    layers: u64,
    /// Tokens that it was made for; none where there are none.
    context: Option<u64>,
    /// Rows of the table of words.
    vocabulary: Option<u64>,
    /// Which tensors are of no use.
    spare: Option<String>,
}

/// A checkpoint's graph.
pub struct Drawn {
    pub skim: Skim,
    /// Rows of the table of words, where there is one.
    pub vocabulary: Option<u64>,
    /// Tokens that it was made for; none where there are none.
    pub context: Option<u64>,
    /// What is to be said of it, line by line.
    pub notes: Vec<String>,
}

/// Draws the graph of a checkpoint; tensors of at least `threshold_bytes` become weights.
///
/// # Errors
/// An architecture that is not known, a config that asks for what is not computed, and tensors that
/// are missing, too many or of other shapes, each by name.
pub fn draw(checkpoint: &Checkpoint, threshold_bytes: u64) -> Result<Drawn, ShardError> {
    let file = checkpoint.config_file.display().to_string();
    let config = Config::new(&checkpoint.config, &file)?;
    let kind = config.given_text("model_type")?;
    let known = KNOWN.iter().find(|(name, _)| Some(*name) == kind);
    let Some((name, draw)) = known else {
        let names = KNOWN.map(|(name, _)| name).join(", ");
        return Err(match kind {
            Some(kind) => unfit!(
                "{file}: model_type {} is an architecture that is not known here\n\
                 known are {names}; others are taken as ONNX files (optimum-cli export onnx)",
                quote(kind)
            ),
            None => unfit!("{file}: it says no model_type\nknown are {names}"),
        });
    };
    for key in STRANGE {
        config.only(key, &[])?;
    }
    let tensors = Tensors::new(checkpoint);
    let mut graph = Graph::default();
    let network = draw(&mut graph, checkpoint, &config, &tensors)?;
    let skim = skim::assemble(graph, &format!("checkpoint {name}"), OPSET, threshold_bytes)?;
    let Network { layers, context, vocabulary, spare } = network;
    let made_for = context.map_or(String::new(), |tokens| format!(", made for {tokens} tokens"));
    let mut notes = vec![format!("architecture {name}, {layers} layers{made_for}")];
    notes.extend(checkpoint.notes.iter().cloned());
    notes.extend(spare);
    Ok(Drawn { skim, vocabulary, context, notes })
}

/// How many layers `key` says there are.
fn layers(config: &Config, key: &str, default: u64) -> Result<u64, ShardError> {
    match config.size(key, default)? {
        layers if layers <= MAX_LAYERS => Ok(layers),
        _ => Err(config.wrong(key, &format!("{MAX_LAYERS} layers at the most"))),
    }
}
