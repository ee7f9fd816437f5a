//! A GGUF file's metadata as config.json of transformers.

use super::header::Header;
use super::keys::{Keys, Value};
use super::names::{self, Names};
use super::rotary;
use super::sizes::Sizes;
use crate::checkpoint::{CheckpointError, Rotation};
use crate::wire::quote::quote;
use serde_json::{Map, json};

/// The key that names the architecture.
pub const ARCHITECTURE: &str = "general.architecture";

type Config = Map<String, serde_json::Value>;

/// Inserts what the config of one architecture has.
type Own = fn(&Header, &Sizes, &mut Config) -> Result<(), CheckpointError>;

/// An architecture that is known here.
#[derive(Debug)]
pub struct Architecture {
    /// As GGUF calls it; its keys begin so.
    pub name: &'static str,
    pub names: &'static Names,
    pub rotation: Rotation,
    /// What only its config has.
    own: Own,
    class: &'static str,
}

static ARCHITECTURES: [Architecture; 6] = [
    Architecture {
        name: "llama",
        names: &names::LLAMA,
        rotation: Rotation::Interleaved,
        own: llama,
        class: "LlamaForCausalLM",
    },
    Architecture {
        name: "qwen2",
        names: &names::QWEN2,
        rotation: Rotation::Halves,
        own: qwen2,
        class: "Qwen2ForCausalLM",
    },
    Architecture {
        name: "qwen3",
        names: &names::QWEN3,
        rotation: Rotation::Halves,
        own: qwen3,
        class: "Qwen3ForCausalLM",
    },
    Architecture {
        name: "gemma3",
        names: &names::GEMMA3,
        rotation: Rotation::Halves,
        own: gemma3,
        class: "Gemma3ForCausalLM",
    },
    Architecture {
        name: "gpt2",
        names: &names::GPT2,
        rotation: Rotation::Halves,
        own: gpt2,
        class: "GPT2LMHeadModel",
    },
    Architecture {
        name: "bert",
        names: &names::BERT,
        rotation: Rotation::Halves,
        own: bert,
        class: "BertModel",
    },
];

/// Keys behind the architecture's name that change nothing of what is computed.
const HARMLESS: [&str; 2] = ["rope.scaling.finetuned", "tensor_data_layout"];

/// What bends logits that are large.
const CAP: &str = "final_logit_softcapping";

/// Keys of windows, which change what is computed where one is narrower than the context.
const WINDOWS: [&str; 2] = ["attention.sliding_window", "attention.sliding_window_pattern"];

/// Keys that change what is computed unless they are 0 or false.
const REFUSED: [&str; 12] = [
    "attention.clamp_kqv",
    "attention.max_alibi_bias",
    "attention.scale",
    "attn_logit_softcapping",
    "embedding_scale",
    "expert_count",
    "leading_dense_block_count",
    "logit_scale",
    "nextn_predict_layers",
    "residual_scale",
    "rope.scaling.yarn_log_multiplier",
    "use_parallel_residual",
];

impl Architecture {
    /// The architecture that a header names.
    ///
    /// # Errors
    /// It names none, or one that is not computed here.
    pub fn of(keys: &Keys) -> Result<&'static Architecture, CheckpointError> {
        let name = keys.text(ARCHITECTURE)?;
        let missing = || CheckpointError::key(keys.path(), ARCHITECTURE, "it is missing");
        let name = name.ok_or_else(missing)?;
        ARCHITECTURES.iter().find(|known| known.name == name).ok_or_else(|| {
            let known: Vec<&str> = ARCHITECTURES.iter().map(|known| known.name).collect();
            let known = known.join(", ");
            let what = format!("{} is no architecture that is known here: {known}", quote(name));
            CheckpointError::unknown(keys.path(), ARCHITECTURE, what)
        })
    }

    /// What transformers would have written in config.json, but for tokens.
    ///
    /// # Errors
    /// A key is missing, or asks for what is not computed here.
    pub fn config(
        &self,
        header: &Header,
        sizes: &Sizes,
        notes: &mut Vec<String>,
    ) -> Result<Config, CheckpointError> {
        let keys = &header.keys;
        for name in REFUSED {
            let key = format!("{}.{name}", self.name);
            match keys.get(&key) {
                None | Some(Value::Whole(0) | Value::Flag(false)) => {}
                Some(Value::Float(value)) if *value == 0.0 => {}
                Some(_) => {
                    let what = "what it asks for is not computed here";
                    return Err(CheckpointError::unknown(keys.path(), &key, what));
                }
            }
        }
        let prefix = format!("{}.", self.name);
        let said = keys.number(&format!("{prefix}vocab_size"))?;
        if let Some(said) = said.filter(|said| *said != sizes.vocabulary) {
            let rows = sizes.vocabulary;
            notes.push(format!("vocab_size says {said}, the table of tokens has {rows} rows"));
        }
        let mut config = Map::new();
        config.insert("architectures".to_owned(), json!([self.class]));
        config.insert("vocab_size".to_owned(), json!(sizes.vocabulary));
        let is_tied = !header.tensors.contains_key("output.weight");
        config.insert("tie_word_embeddings".to_owned(), json!(is_tied));
        (self.own)(header, sizes, &mut config)?;
        self.refuse_unread(keys, sizes)?;
        Ok(config)
    }

    /// Refuses keys that this architecture does not go by, and that would change it.
    fn refuse_unread(&self, keys: &Keys, sizes: &Sizes) -> Result<(), CheckpointError> {
        let prefix = format!("{}.", self.name);
        let unread: Vec<&str> = keys.unread(&prefix).collect();
        let window = keys.number(&format!("{prefix}{}", WINDOWS[0]))?.unwrap_or(0);
        let is_narrow = (1..sizes.positions).contains(&window);
        for name in unread {
            let key = format!("{prefix}{name}");
            let changes = match name {
                CAP => keys.float(&key)?.is_some_and(|cap| cap != 0.0),
                _ if WINDOWS.contains(&name) => is_narrow,
                _ => false,
            };
            if changes {
                let what = format!("in a model of {} it is not computed here", self.name);
                return Err(CheckpointError::unknown(keys.path(), &key, what));
            }
        }
        Ok(())
    }

    /// Tells which keys nobody has asked for, once all are read.
    pub fn note_unread(&self, keys: &Keys, notes: &mut Vec<String>) {
        let prefix = format!("{}.", self.name);
        let unread = keys.unread(&prefix).filter(|name| !HARMLESS.contains(name)).take(8);
        let unread: Vec<&str> = unread.collect();
        if !unread.is_empty() {
            notes.push(format!("keys that nothing is known of: {}", quote(&unread.join(", "))));
        }
    }
}

/// Inserts keys and values.
macro_rules! insert {
    ($config:expr, $($key:literal: $value:expr),+ $(,)?) => {
        $($config.insert($key.to_owned(), json!($value));)+
    };
}

/// What models of the Llama kind have in common.
fn decoder(
    header: &Header,
    sizes: &Sizes,
    name: &str,
    config: &mut Config,
) -> Result<(), CheckpointError> {
    let keys = &header.keys;
    look_back(keys, name)?;
    let epsilon = needed_float(keys, &format!("{name}.attention.layer_norm_rms_epsilon"))?;
    let has = |name: &str| header.tensors.contains_key(name);
    insert!(config,
        "hidden_size": sizes.hidden,
        "intermediate_size": sizes.inner,
        "num_hidden_layers": sizes.layers,
        "num_attention_heads": sizes.heads,
        "num_key_value_heads": sizes.key_heads,
        "head_dim": sizes.head,
        "max_position_embeddings": sizes.positions,
        "rms_norm_eps": epsilon,
        "attention_bias": has("blk.0.attn_q.bias"),
        "mlp_bias": has("blk.0.ffn_up.bias"),
    );
    rotary::insert(keys, name, sizes, config)
}

fn llama(header: &Header, sizes: &Sizes, config: &mut Config) -> Result<(), CheckpointError> {
    decoder(header, sizes, "llama", config)?;
    insert!(config, "model_type": "llama", "hidden_act": "silu");
    let window = header.keys.number("llama.attention.sliding_window")?;
    if let Some(window) = window.filter(|window| *window > 0) {
        insert!(config, "model_type": "mistral", "sliding_window": window);
    }
    Ok(())
}

fn qwen2(header: &Header, sizes: &Sizes, config: &mut Config) -> Result<(), CheckpointError> {
    decoder(header, sizes, "qwen2", config)?;
    insert!(config, "model_type": "qwen2", "hidden_act": "silu", "use_sliding_window": false);
    Ok(())
}

fn qwen3(header: &Header, sizes: &Sizes, config: &mut Config) -> Result<(), CheckpointError> {
    decoder(header, sizes, "qwen3", config)?;
    insert!(config, "model_type": "qwen3", "hidden_act": "silu", "use_sliding_window": false);
    Ok(())
}

fn gemma3(header: &Header, sizes: &Sizes, config: &mut Config) -> Result<(), CheckpointError> {
    /// Layers of the only size whose queries are scaled by the width and not by a head.
    const LARGEST: u64 = 62;
    let keys = &header.keys;
    decoder(header, sizes, "gemma3", config)?;
    let base = keys.float("gemma3.rope.freq_base")?.unwrap_or(1e6);
    let scalar = if sizes.layers == LARGEST { sizes.hidden / sizes.heads } else { sizes.head };
    let cap = keys.float("gemma3.final_logit_softcapping")?.filter(|cap| *cap != 0.0);
    insert!(config,
        "model_type": "gemma3_text",
        "hidden_activation": "gelu_pytorch_tanh",
        "rope_theta": base,
        "rope_local_base_freq": keys.float("gemma3.rope.freq_base_swa")?.unwrap_or(1e4),
        "query_pre_attn_scalar": scalar,
        "sliding_window": keys.size("gemma3.attention.sliding_window")?,
        "final_logit_softcapping": cap,
    );
    const PATTERN: &str = "gemma3.attention.sliding_window_pattern";
    match keys.get(PATTERN) {
        Some(Value::Wholes(layers)) if layers.len() as u64 == sizes.layers => {
            let kind = |slides: &i64| match slides {
                0 => "full_attention",
                _ => "sliding_attention",
            };
            insert!(config, "layer_types": layers.iter().map(kind).collect::<Vec<_>>());
        }
        None => {
            insert!(config, "sliding_window_pattern": 6);
        }
        Some(_) => {
            insert!(config, "sliding_window_pattern": keys.size(PATTERN)?);
        }
    }
    Ok(())
}

fn gpt2(header: &Header, sizes: &Sizes, config: &mut Config) -> Result<(), CheckpointError> {
    look_back(&header.keys, "gpt2")?;
    plain_heads(&header.keys, "gpt2", sizes)?;
    insert!(config,
        "model_type": "gpt2",
        "activation_function": "gelu_new",
        "n_embd": sizes.hidden,
        "n_head": sizes.heads,
        "n_layer": sizes.layers,
        "n_positions": sizes.positions,
        "n_inner": sizes.inner,
        "layer_norm_epsilon": needed_float(&header.keys, "gpt2.attention.layer_norm_epsilon")?,
    );
    Ok(())
}

fn bert(header: &Header, sizes: &Sizes, config: &mut Config) -> Result<(), CheckpointError> {
    const CAUSAL: &str = "bert.attention.causal";
    if header.keys.flag(CAUSAL)? == Some(true) {
        let what = "a BERT that looks back only is not computed here";
        return Err(CheckpointError::unknown(header.keys.path(), CAUSAL, what));
    }
    plain_heads(&header.keys, "bert", sizes)?;
    config.remove("tie_word_embeddings");
    insert!(config,
        "model_type": "bert",
        "hidden_act": "gelu",
        "hidden_size": sizes.hidden,
        "intermediate_size": sizes.inner,
        "num_hidden_layers": sizes.layers,
        "num_attention_heads": sizes.heads,
        "max_position_embeddings": sizes.positions,
        "type_vocab_size": sizes.types,
        "layer_norm_eps": needed_float(&header.keys, "bert.attention.layer_norm_epsilon")?,
    );
    Ok(())
}

/// Refuses a decoder whose tokens see those behind them, too.
fn look_back(keys: &Keys, name: &str) -> Result<(), CheckpointError> {
    let key = format!("{name}.attention.causal");
    match keys.flag(&key)? {
        Some(false) => {
            let what = "a decoder that looks ahead is not computed here";
            Err(CheckpointError::unknown(keys.path(), &key, what))
        }
        _ => Ok(()),
    }
}

/// Refuses heads of keys that are fewer, and heads that are not a part of the width.
fn plain_heads(keys: &Keys, name: &str, sizes: &Sizes) -> Result<(), CheckpointError> {
    let key = match () {
        _ if sizes.key_heads != sizes.heads => "attention.head_count_kv",
        _ if sizes.head * sizes.heads != sizes.hidden => "attention.key_length",
        _ => return Ok(()),
    };
    let what = format!("in a model of {name} it is not computed here");
    Err(CheckpointError::unknown(keys.path(), &format!("{name}.{key}"), what))
}

fn needed_float(keys: &Keys, key: &str) -> Result<f64, CheckpointError> {
    let missing = || CheckpointError::key(keys.path(), key, "it is missing");
    keys.float(key)?.ok_or_else(missing)
}
