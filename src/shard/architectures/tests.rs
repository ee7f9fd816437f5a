//! What is refused of a checkpoint, and by which words.

use super::*;
use crate::checkpoint::{Kind, Rotation, Tensor};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

/// A file of zeros for all tensors.
fn zeros() -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(1 << 20).unwrap();
    file
}

fn checkpoint(file: &Path, config: Value, tensors: &[(&str, &[u64])]) -> Checkpoint {
    let tensor = |shape: &[u64]| Tensor {
        file: file.into(),
        offset: 0,
        bytes: 4 * shape.iter().product::<u64>(),
        kind: Kind::F32,
        shape: shape.to_vec(),
    };
    Checkpoint {
        config_file: Arc::from(Path::new("config.json")),
        config,
        files: BTreeMap::new(),
        tensors: tensors.iter().map(|(name, s)| (name.to_string(), tensor(s))).collect(),
        rotation: Rotation::Halves,
        norm_offset: true,
        turned: true,
        notes: vec![],
    }
}

const LLAMA: [(&str, &[u64]); 11] = [
    ("model.embed_tokens.weight", &[20, 8]),
    ("model.layers.0.input_layernorm.weight", &[8]),
    ("model.layers.0.mlp.down_proj.weight", &[8, 12]),
    ("model.layers.0.mlp.gate_proj.weight", &[12, 8]),
    ("model.layers.0.mlp.up_proj.weight", &[12, 8]),
    ("model.layers.0.post_attention_layernorm.weight", &[8]),
    ("model.layers.0.self_attn.k_proj.weight", &[4, 8]),
    ("model.layers.0.self_attn.o_proj.weight", &[8, 8]),
    ("model.layers.0.self_attn.q_proj.weight", &[8, 8]),
    ("model.layers.0.self_attn.v_proj.weight", &[4, 8]),
    ("model.norm.weight", &[8]),
];

fn llama() -> Value {
    json!({
        "model_type": "llama", "vocab_size": 20, "hidden_size": 8, "intermediate_size": 12,
        "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1,
        "max_position_embeddings": 64, "tie_word_embeddings": true,
    })
}

/// The error that a Llama becomes with keys of its config and tensors changed; "" where it is taken.
fn error(keys: Value, change: impl FnOnce(&mut Checkpoint)) -> String {
    let file = zeros();
    let mut made = checkpoint(file.path(), llama(), &LLAMA);
    for (key, value) in keys.as_object().unwrap() {
        made.config[key] = value.clone();
    }
    change(&mut made);
    draw(&made, 64 << 10).err().map_or(String::new(), |error| error.to_string())
}

#[test]
fn keys_that_change_what_is_computed_are_never_ignored() {
    let check = |keys: Value, words: &[&str]| {
        let error = error(keys.clone(), |_| ());
        for word in ["config.json", "\n"].iter().chain(words).filter(|word| **word != "\n") {
            assert!(error.contains(word), "{keys}: {word:?} is not in {error:?}");
        }
    };
    check(json!({"model_type": "mamba2"}), &["mamba2", "not known", "llama", "gemma3_text"]);
    check(json!({"model_type": null}), &["no model_type"]);
    check(json!({"hidden_act": "swish2"}), &["hidden_act", "swish2", "gelu_new"]);
    check(json!({"num_attention_heads": 3}), &["3", "does not divide"]);
    check(json!({"num_key_value_heads": 4}), &["does not divide num_attention_heads 2"]);
    check(json!({"hidden_size": -16}), &["hidden_size is -16"]);
    check(json!({"num_hidden_layers": 1_000_000}), &["num_hidden_layers is 1000000"]);
    check(json!({"rope_scaling": {"type": "spiral"}}), &["spiral", "llama3 and yarn"]);
    check(json!({"rope_scaling": {"rope_type": "dynamic", "factor": 2}}), &["dynamic"]);
    check(json!({"rope_parameters": {"full_attention": {"rope_theta": 1e4}}}), &["kind of layer"]);
    check(json!({"partial_rotary_factor": 0.5}), &["partial_rotary_factor is 0.5"]);
    check(json!({"num_local_experts": 8}), &["num_local_experts is 8"]);
    check(json!({"quantization_config": {"bits": 4}}), &["quantization_config"]);
    check(json!({"final_logit_softcapping": 30.0}), &["final_logit_softcapping is 30.0"]);
    check(json!({"layer_types": ["sliding_attention"]}), &["layer_types"]);
    check(json!({"head_dim": 3}), &["3 values", "pairs"]);
    check(json!({"tie_word_embeddings": "yes"}), &["tie_word_embeddings"]);
    // Null stands for as many heads as of queries, a key that is left out for 32.
    let mistral = json!({"model_type": "mistral", "num_key_value_heads": null});
    let found = error(mistral, |_| ());
    assert!(found.contains("k_proj") && found.contains("[8, 8]"), "{found}");
    let found = error(json!({"model_type": "qwen2"}), |made| {
        made.config.as_object_mut().unwrap().remove("num_key_value_heads");
    });
    assert!(found.contains("num_key_value_heads 32 does not divide"), "{found}");
    // A key that nobody reads, and null, which is as good as nothing.
    for keys in [json!({"pretraining_tp": 1}), json!({"head_dim": null, "rope_scaling": null})] {
        assert_eq!(error(keys, |_| ()), "");
    }
}

#[test]
fn tensors_that_are_missing_misshapen_or_too_many_are_named_with_their_shapes() {
    const QUERIES: &str = "model.layers.0.self_attn.q_proj.weight";
    let check = |change: &dyn Fn(&mut Checkpoint), words: &[&str]| {
        let error = error(json!({}), change);
        for word in words {
            assert!(error.contains(word), "{word:?} is not in {error:?}");
        }
    };
    check(
        &|made| drop(made.tensors.remove(QUERIES)),
        &[QUERIES, "no tensor", "[8, 8]", "config.json"],
    );
    let narrow = |made: &mut Checkpoint| {
        made.tensors.get_mut(QUERIES).unwrap().shape = vec![8, 4];
    };
    check(&narrow, &[QUERIES, "is [8, 4], and has to be [8, 8]"]);
    let more = |made: &mut Checkpoint| {
        let tensor = made.tensors[QUERIES].clone();
        made.tensors.insert("model.layers.1.self_attn.q_proj.weight".to_string(), tensor);
    };
    check(&more, &["no place for model.layers.1.self_attn.q_proj.weight", "llama"]);
    let whole = |made: &mut Checkpoint| {
        let kind = Kind::Other { name: "I64", values: 1, bytes: 8 };
        made.tensors.get_mut(QUERIES).unwrap().kind = kind;
    };
    check(&whole, &[QUERIES, "I64"]);
    check(&|made| made.config["vocab_size"] = json!(21), &["embed_tokens", "[20, 8]", "[21, 8]"]);
    check(&|made| made.config["tie_word_embeddings"] = json!(false), &["lm_head.weight"]);
}

/// A head that is tied may be stored too, and a tensor of no elements is nothing.
#[test]
fn tensors_that_nothing_needs_are_told() {
    let file = zeros();
    let tensors = [&LLAMA[..], &[("lm_head.weight", &[20, 8]), ("left", &[0, 3])]].concat();
    let made = checkpoint(file.path(), llama(), &tensors);
    let notes = draw(&made, 64 << 10).unwrap().notes;
    let expected = [
        "architecture llama, 1 layers, made for 64 tokens",
        "left out, not needed here: lm_head.weight",
    ];
    assert_eq!(notes, expected);
}
