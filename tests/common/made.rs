//! Checkpoints whose weights follow from their names.

use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

/// Writes one with such a config and tensors of such shapes into `folder`.
pub fn write(folder: &Path, config: &Value, tensors: &BTreeMap<String, Vec<u64>>) {
    let (mut head, mut bytes) = (json!({}), vec![]);
    for (name, shape) in tensors {
        let begin = bytes.len();
        bytes.extend(made_up(name, shape).into_iter().flat_map(f32::to_le_bytes));
        let offsets = [begin, bytes.len()];
        head[name] = json!({"dtype": "F32", "shape": shape, "data_offsets": offsets});
    }
    let head = head.to_string();
    let length = (head.len() as u64).to_le_bytes();
    let whole = [&length[..], head.as_bytes(), &bytes].concat();
    fs::write(folder.join("model.safetensors"), whole).unwrap();
    fs::write(folder.join("config.json"), config.to_string()).unwrap();
}

/// A model of two layers like Mistral, of 40 words, each token of which sees so many.
pub fn write_mistral(folder: &Path, window: Option<u64>) {
    write_mistral_of(folder, window, 40);
}

/// The same of so many words.
pub fn write_mistral_of(folder: &Path, window: Option<u64>, words: u64) {
    let config = json!({
        "model_type": "mistral", "vocab_size": words, "hidden_size": 32, "intermediate_size": 48,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
        "max_position_embeddings": 4096, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
        "tie_word_embeddings": false, "sliding_window": window,
    });
    let mut tensors = BTreeMap::new();
    let mut add = |name: String, shape: &[u64]| drop(tensors.insert(name, shape.to_vec()));
    for layer in 0..2 {
        let mut add =
            |name: &str, shape: &[u64]| add(format!("model.layers.{layer}.{name}.weight"), shape);
        for norm in ["input_layernorm", "post_attention_layernorm"] {
            add(norm, &[32]);
        }
        for (part, rows) in [("q", 32), ("k", 16), ("v", 16), ("o", 32)] {
            add(&format!("self_attn.{part}_proj"), &[rows, 32]);
        }
        for part in ["gate", "up"] {
            add(&format!("mlp.{part}_proj"), &[48, 32]);
        }
        add("mlp.down_proj", &[32, 48]);
    }
    add("model.embed_tokens.weight".to_string(), &[words, 32]);
    add("model.norm.weight".to_string(), &[32]);
    add("lm_head.weight".to_string(), &[words, 32]);
    write(folder, &config, &tensors);
}

/// Values between -0.5 and 0.5 that follow from a name; about 1 for the weights of norms.
pub fn made_up(name: &str, shape: &[u64]) -> Vec<f32> {
    let seed = name.bytes().fold(0xcbf2_9ce4_8422_2325u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    let number = |index: u64| {
        let mut z = seed.wrapping_add(index).wrapping_add(0x9e37_79b9_7f4a_7c15);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        let value = ((z ^ (z >> 31)) >> 40) as f32 / (1u32 << 24) as f32 - 0.5;
        match (shape.len(), name.ends_with("weight")) {
            (1, true) => value * 0.25 + 1.0,
            (1, false) => value * 0.25,
            _ => value,
        }
    };
    (0..shape.iter().product()).map(number).collect()
}
