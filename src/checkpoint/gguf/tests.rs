use super::*;
use crate::checkpoint::{Kind, Rotation};
use crate::gguf::Meta::{Flag, Float, Floats, Number, Numbers, Raw};
use crate::gguf::{F32, I32, Meta, Q8_0, Sketch};
use proptest::prelude::*;
use std::fs;

/// What a file comes to.
trait Outcome {
    fn open(&self) -> Result<Checkpoint, CheckpointError>;
    fn refused(&self, expected: &str);
    /// tokenizer.json, and what was noted.
    fn tokenizer(&self) -> (Value, Vec<String>);
}

impl Outcome for Sketch {
    fn open(&self) -> Result<Checkpoint, CheckpointError> {
        open_bytes(&self.bytes())
    }

    fn refused(&self, expected: &str) {
        let error = self.open().unwrap_err().to_string();
        assert!(error.contains("model.gguf: "), "{error}");
        assert!(error.contains(expected), "{error}: lacks {expected:?}");
    }

    fn tokenizer(&self) -> (Value, Vec<String>) {
        let checkpoint = self.open().unwrap();
        let json = &checkpoint.files["tokenizer.json"];
        (serde_json::from_slice(json).unwrap(), checkpoint.notes)
    }
}

fn open_bytes(bytes: &[u8]) -> Result<Checkpoint, CheckpointError> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    fs::write(&path, bytes).unwrap();
    open(&path)
}

#[test]
fn metadata_becomes_a_config_and_tensors_get_transformers_names() {
    let checkpoint = Sketch::llama().open().unwrap();
    let expected = json!({
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": 9,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 16,
        "hidden_act": "silu",
        "max_position_embeddings": 64,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": true,
        "attention_bias": false,
        "mlp_bias": false,
        "bos_token_id": 1,
        "eos_token_id": 2,
    });
    assert_eq!(checkpoint.config, expected);
    let of_files = (checkpoint.rotation, checkpoint.norm_offset, checkpoint.turned);
    assert_eq!(of_files, (Rotation::Interleaved, false, false));
    let values = &checkpoint.tensors["model.layers.0.self_attn.v_proj.weight"];
    assert_eq!((values.kind, &values.shape[..], values.bytes), (Kind::Bf16, &[16, 32][..], 1024));
    assert_eq!(values.offset % 32, 0);
    let norm = &checkpoint.tensors["model.layers.0.post_attention_layernorm.weight"];
    assert_eq!(norm.kind, Kind::F32);
    assert_eq!(checkpoint.tensors.len(), 11);
    let generation: Value =
        serde_json::from_slice(&checkpoint.files["generation_config.json"]).unwrap();
    assert_eq!(generation, json!({ "bos_token_id": 1, "eos_token_id": 2 }));
}

#[test]
fn keys_of_every_type_and_other_versions_are_read() {
    let nested = [9_u32.to_le_bytes().to_vec(), 2_u64.to_le_bytes().to_vec()];
    let inner = |kind: u32, count: u64, bytes: &[u8]| {
        [&kind.to_le_bytes()[..], &count.to_le_bytes(), bytes].concat()
    };
    let texts = inner(8, 1, &[&1_u64.to_le_bytes()[..], b"x"].concat());
    let nested = [nested.concat(), inner(2, 2, &[0; 4]), texts].concat();
    let mut sketch = Sketch::llama()
        .set("a.u8", Raw(0, vec![255]))
        .set("a.i8", Raw(1, vec![255]))
        .set("a.u16", Raw(2, vec![255; 2]))
        .set("a.i16", Raw(3, vec![255; 2]))
        .set("a.i32", Raw(5, vec![255; 4]))
        .set("a.u64", Raw(10, vec![255; 8]))
        .set("a.i64", Raw(11, vec![255; 8]))
        .set("a.f64", Raw(12, vec![255; 8]))
        .set("a.flags", Raw(9, inner(7, 3, &[0, 1, 0])))
        .set("a.nested", Raw(9, nested))
        .set("general.alignment", Number(64));
    (sketch.version, sketch.alignment) = (2, 64);
    let checkpoint = sketch.open().unwrap();
    assert!(checkpoint.tensors.values().all(|tensor| tensor.offset % 64 == 0));
    assert_eq!(checkpoint.config["hidden_size"], 32);
}

#[test]
fn rotations_and_windows_become_transformers_keys() {
    let config = |sketch: Sketch| sketch.open().unwrap().config;
    let base = Sketch::llama().set("llama.rope.freq_base", Float(5e5));
    assert_eq!(config(base.clone())["rope_theta"], 5e5);
    let linear = base
        .set("llama.rope.scaling.type", Meta::text("linear"))
        .set("llama.rope.scaling.factor", Float(4.0));
    let expected = json!({ "rope_type": "linear", "factor": 4.0 });
    assert_eq!(config(linear.clone())["rope_scaling"], expected);
    let yarn = linear
        .set("llama.rope.scaling.type", Meta::text("yarn"))
        .set("llama.rope.scaling.original_context_length", Number(16));
    let expected =
        json!({ "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16 });
    assert_eq!(config(yarn.clone())["rope_scaling"], expected);
    let none = yarn.clone().set("llama.rope.scaling.type", Meta::text("none"));
    assert_eq!(config(none)["rope_scaling"], Value::Null);
    yarn.set("llama.rope.scaling.type", Meta::text("longrope"))
        .refused("\"longrope\" is not computed");
    let window = config(Sketch::llama().set("llama.attention.sliding_window", Number(8)));
    assert_eq!((&window["model_type"], &window["sliding_window"]), (&json!("mistral"), &json!(8)));
}

#[test]
fn keys_that_are_not_gone_by_are_told_and_ones_behind_shapes_are_none() {
    let unread = Sketch::llama()
        .set("llama.rope.freq_base_swa", Float(1e4))
        .set("llama.pooling_type", Number(1))
        .set("llama.rope.scaling.finetuned", Flag(true))
        .tensor("output_norm.weight", &[32, 1, 1], F32)
        .tensor("token_embd.weight", &[32, 9, 1, 1], F32);
    let checkpoint = unread.open().unwrap();
    let told = "keys that nothing is known of: \"pooling_type, rope.freq_base_swa\"";
    assert!(checkpoint.notes.iter().any(|note| note == told), "{:?}", checkpoint.notes);
    assert_eq!(checkpoint.tensors["model.norm.weight"].shape, [32]);
    assert_eq!(checkpoint.tensors["model.embed_tokens.weight"].shape, [9, 32]);
}

#[test]
fn what_a_header_cannot_say_is_refused() {
    let llama = Sketch::llama;
    let mut old = llama();
    old.version = 1;
    old.refused("is a GGUF file of version 1, expected 2 or 3");
    old.version = 3_u32.swap_bytes();
    old.refused("of a big-endian machine");
    let mut twice = llama();
    twice.keys.push(twice.keys[0].clone());
    twice.refused("key \"general.architecture\": it is there twice");
    twice = llama();
    twice.tensors.push(twice.tensors[0].clone());
    twice.refused("tensor \"token_embd.weight\": it is there twice");
    llama().set("a", Raw(77, vec![])).refused("key \"a\": its value is of the unknown type 77");
    llama().set("a", Raw(7, vec![2])).refused("key \"a\": it is 2, expected a flag");
    let endless = |kind: u32| [&kind.to_le_bytes()[..], &(1_u64 << 60).to_le_bytes()].concat();
    llama().set("a", Raw(9, endless(8))).refused("is an array of length 1152921504606846976");
    llama().set("a", Raw(9, endless(78))).refused("unknown type 78");
    let deep = (0..5).flat_map(|_| [&9_u32.to_le_bytes()[..], &1_u64.to_le_bytes()].concat());
    llama().set("a", Raw(9, deep.collect())).refused("lie too deep");
    for alignment in [0, 3, 48] {
        llama().set("general.alignment", Number(alignment)).refused("expected a power of two");
    }
    let query = "blk.0.attn_q.weight";
    llama().tensor(query, &[40, 32], Q8_0).refused("its rows of 40 values are no multiple of 32");
    llama().tensor(query, &[1 << 33, 1 << 33], F32).refused("are too large");
    llama().tensor(query, &[1; 1000], F32).refused("it has 1000 dimensions, expected at most 4");
    llama().tensor(query, &[32, 1 << 30], F32).refused("end beyond the file");
    llama().tensor(query, &[256, 32], 16).refused("it is of type IQ2_XXS, which is not read");
    llama().tensor(query, &[32, 32], 999).refused("it is of the unknown type 999");
    let error = open_bytes(b"tjgg\x03\0\0\0").unwrap_err().to_string();
    assert!(error.contains("is an old GGML file"), "{error}");
}

#[test]
fn what_a_model_cannot_be_is_refused() {
    let llama = Sketch::llama;
    llama()
        .set("general.architecture", Meta::text("rwkv6"))
        .refused("known here: llama, qwen2, qwen3");
    llama().without("general.architecture").refused("key \"general.architecture\": it is missing");
    let heads = "llama.attention.head_count";
    llama().without(heads).refused("key \"llama.attention.head_count\": it is missing");
    llama().set(heads, Number(0)).refused("it is 0");
    llama().set(heads, Meta::text("two")).refused("it is a text, expected a whole number");
    llama().set(heads, Number(3)).refused("3 heads do not divide a width of 32");
    llama().set(heads, Numbers(vec![2, 4])).refused("it differs from layer to layer");
    llama().set("llama.expert_count", Number(8)).refused("what it asks for is not computed here");
    llama().set("llama.attention.value_length", Number(8)).refused("it is 8 of 16");
    llama().set("llama.attention.causal", Flag(false)).refused("looks ahead");
    let cap = "llama.final_logit_softcapping";
    llama().set(cap, Float(30.0)).refused("in a model of llama it is not computed");
    assert!(llama().set(cap, Float(0.0)).open().is_ok());
    let window = llama().set("llama.attention.sliding_window", Number(8));
    window.set("llama.attention.sliding_window_pattern", Number(2)).refused("_pattern\": in a");
    llama().set("llama.block_count", Number(1_000_000)).refused("blk.1.attn_norm.weight");
    llama().without("blk.0.ffn_up.weight").refused("tensor \"blk.0.ffn_up.weight\": it is missing");
    let key = "blk.0.attn_k.weight";
    llama().tensor(key, &[32, 8], F32).refused("its shape is [8, 32], expected [16, 32]");
    llama().tensor(key, &[32, 16], I32).refused("it is of type I32, expected floats");
    let gate = "blk.0.attn_gate.weight";
    llama().tensor(gate, &[32], F32).refused("nothing is known here of what is computed with it");
    llama()
        .set("tokenizer.ggml.bos_token_id", Number(9))
        .refused("it is 9, and there are 9 tokens");
    let types = "tokenizer.ggml.token_type";
    llama().set(types, Numbers(vec![1])).refused("it has 1 values for 9 tokens");
}

/// Parts are told by their names, and a model is all of them.
#[test]
fn parts_are_joined() {
    let folder = tempfile::tempdir().unwrap();
    let path = |part: u32| folder.path().join(format!("tiny-{part:05}-of-00002.gguf"));
    let whole = Sketch::llama().set("split.count", Number(2));
    let mut first = whole.clone().set("split.no", Number(0));
    let mut second = whole.set("split.no", Number(1));
    let count = first.tensors.len() as u32;
    first = first.set("split.tensors.count", Number(count));
    second.tensors = first.tensors.split_off(4);
    fs::write(path(1), first.bytes()).unwrap();
    let error = open(&path(1)).unwrap_err().to_string();
    assert!(error.contains("00002-of-00002.gguf: is not there"), "{error}");
    fs::write(path(2), second.bytes()).unwrap();
    let checkpoint = open(&path(1)).unwrap();
    assert_eq!(checkpoint.tensors.len(), 11);
    let file = &checkpoint.tensors["model.layers.0.mlp.up_proj.weight"].file;
    assert_eq!(**file, *path(2));
    let error = open(&path(2)).unwrap_err().to_string();
    assert!(error.contains("name the first one, tiny-00001-of-00002.gguf"), "{error}");
    second.tensors.pop();
    fs::write(path(2), second.bytes()).unwrap();
    let error = open(&path(1)).unwrap_err().to_string();
    assert!(error.contains("it is 11, and the parts have 10 tensors"), "{error}");
    let check = |name: &str, expected: bool| assert_eq!(is_first_part(name), expected, "{name}");
    check("a.gguf", true);
    check("a-00001-of-00002.gguf", true);
    check("a-00002-of-00002.gguf", false);
    check("a.bin", false);
}

#[test]
fn sentencepiece_is_merged_by_scores() {
    let (json, notes) = Sketch::llama().tokenizer();
    assert_eq!(notes, Vec::<String>::new());
    assert_eq!(json["model"]["merges"], json!([["a", "b"]]));
    assert_eq!(json["model"]["vocab"]["<0x0A>"], 7);
    assert_eq!(json["normalizer"]["normalizers"][0]["type"], "Prepend");
    let added = json["added_tokens"].as_array().unwrap();
    let added: Vec<_> = added.iter().map(|token| (&token["content"], &token["special"])).collect();
    let (yes, no) = (json!(true), json!(false));
    let texts = ["<unk>", "<s>", "</s>", "<u>"].map(|text| json!(text));
    let expected = [(&texts[0], &yes), (&texts[1], &yes), (&texts[2], &yes), (&texts[3], &no)];
    assert_eq!(added, expected);
    let single = &json["post_processor"]["single"];
    assert_eq!(single[0]["SpecialToken"]["id"], "<s>");
    assert_eq!(single.as_array().unwrap().len(), 2);
    let plain = Sketch::llama()
        .set("tokenizer.ggml.add_space_prefix", Flag(false))
        .set("tokenizer.ggml.add_bos_token", Flag(false));
    let (json, _) = plain.tokenizer();
    assert_eq!(
        (&json["normalizer"]["type"], &json["post_processor"]),
        (&json!("Replace"), &Value::Null)
    );
    Sketch::llama().without("tokenizer.ggml.scores").refused("tokenizer.ggml.scores");
}

/// A type that GGML does not have was taken for a row without a token, and a score that is no
/// number put merges in some order.
#[test]
fn types_and_scores_that_are_none_are_refused() {
    let types = |last: i32| Numbers(vec![2, 3, 3, 1, 1, 1, 1, 6, last]);
    for wrong in [-9, 7, i32::MAX] {
        let what = format!("token 8, \"<u>\", is of type {wrong}: 0 to 6 are known");
        Sketch::llama().set("tokenizer.ggml.token_type", types(wrong)).refused(&what);
    }
    let scores = |third: f32| Floats(vec![0., 0., 0., third, -3., -1., -4., 0., 0.]);
    for (wrong, shown) in [(f32::NAN, "NaN"), (f32::NEG_INFINITY, "-inf")] {
        let what = format!("token 3, \"a\", has the score {shown}, which is no number");
        for model in ["llama", "t5", "gpt2", "bert"] {
            let sketch = Sketch::llama().set("tokenizer.ggml.model", Meta::text(model));
            sketch.set("tokenizer.ggml.scores", scores(wrong)).refused(&what);
        }
    }
}

/// A token of a megabyte was looked through for minutes, and 1,500 tokens, each two letters longer
/// than the one before, came to a tokenizer.json of 3 GB.
#[test]
fn tokens_that_take_for_ever_to_join_are_refused() {
    let of = |more: Vec<String>| {
        let mut tokens = ["<unk>", "<s>", "</s>"].map(str::to_owned).to_vec();
        tokens.extend(more);
        let types = tokens.iter().map(|token| if token.starts_with('<') { 3 } else { 1 });
        Sketch::llama()
            .set("tokenizer.ggml.scores", Floats(vec![0.0; tokens.len()]))
            .set("tokenizer.ggml.token_type", Numbers(types.collect()))
            .tensor("token_embd.weight", &[32, tokens.len() as u64], Q8_0)
            .set("tokenizer.ggml.tokens", Meta::Texts(tokens))
    };
    let what = "tokenizer.ggml.tokens\": token 3 has 1025 bytes; the limit is 1024";
    of(vec!["a".repeat(1025)]).refused(what);
    of((1..500).map(|count| "a".repeat(count)).collect()).refused("in more than ");
    assert!(of((1..64).map(|count| "a".repeat(count)).collect()).open().is_ok());
}

/// The same tokens as byte-level BPE.
fn bytes_kind(pre: &str, merges: &[&str]) -> Sketch {
    Sketch::llama()
        .set("tokenizer.ggml.model", Meta::text("gpt2"))
        .set("tokenizer.ggml.pre", Meta::text(pre))
        .set("tokenizer.ggml.merges", Meta::texts(merges))
}

#[test]
fn byte_level_tokenizers_are_cut_as_their_makers_cut() {
    let (json, _) = bytes_kind("llama-bpe", &["a b"]).tokenizer();
    assert_eq!(json["model"]["ignore_merges"], true);
    assert_eq!(json["model"]["merges"], json!([["a", "b"]]));
    assert_eq!(json["post_processor"]["single"][0]["SpecialToken"]["id"], "<s>");
    let (json, _) = bytes_kind("qwen2", &[]).tokenizer();
    assert_eq!(
        (&json["normalizer"]["type"], &json["post_processor"]),
        (&json!("NFC"), &Value::Null)
    );
    let (json, _) = bytes_kind("smollm", &[]).tokenizer();
    let digits = &json["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"];
    assert_eq!(digits, r"\p{N}");
    let (json, notes) = bytes_kind("gpt-2", &["a b", "b a"]).tokenizer();
    assert_eq!(json["model"]["merges"], json!([["a", "b"]]));
    assert_eq!(notes, ["1 merges of what is no token are left out"]);
    bytes_kind("gpt-2", &["ab"]).refused("\"ab\" is no pair of tokens");
    let (_, notes) = bytes_kind("gpt-2", &[]).without("tokenizer.ggml.pre").tokenizer();
    assert_eq!(notes, ["texts are cut as by default: guessed, tokenizer.ggml.pre is missing"]);
    let unknown = bytes_kind("klingon", &[]).open().unwrap();
    assert!(!unknown.files.contains_key("tokenizer.json"));
    assert!(unknown.notes[0].contains("how \"klingon\" cuts texts is not known"));
}

#[test]
fn templates_and_ends_of_turns_are_found() {
    let config = |sketch: Sketch| {
        let checkpoint = sketch.open().unwrap();
        let text = &checkpoint.files["tokenizer_config.json"];
        (serde_json::from_slice::<Value>(text).unwrap(), checkpoint)
    };
    let tokens = ["<unk>", "<s>", "</s>", "a", "b", "ab", "\u{2581}", "<0x0A>", "<|im_end|>"];
    let chat = Sketch::llama()
        .set("tokenizer.ggml.tokens", Meta::texts(&tokens))
        .set("tokenizer.chat_template", Meta::text("{{ x }}<|im_end|>"))
        .set("general.sampling.temp", Float(0.6))
        .set("general.sampling.top_k", Number(20));
    let (said, checkpoint) = config(chat.clone());
    assert_eq!(said["chat_template"], "{{ x }}<|im_end|>");
    assert_eq!(said["eos_token"], "</s>");
    assert_eq!(checkpoint.config["eos_token_id"], json!([2, 8]));
    assert!(checkpoint.notes[0].starts_with("<|im_end|> ends replies too: guessed"));
    let generation: Value =
        serde_json::from_slice(&checkpoint.files["generation_config.json"]).unwrap();
    assert_eq!(generation["temperature"], 0.6);
    assert_eq!((&generation["top_k"], &generation["do_sample"]), (&json!(20), &json!(true)));
    let (said, _) = config(chat.set("tokenizer.chat_template.tool_use", Meta::text("t")));
    assert_eq!(said["chat_template"][1], json!({ "name": "tool_use", "template": "t" }));
}

/// Who has ids needs no tokenizer.
#[test]
fn a_file_without_tokens_is_taken() {
    let none = Sketch::llama().without("tokenizer.ggml.model").open().unwrap();
    assert!(!none.files.contains_key("tokenizer.json"));
    let other = Sketch::llama().set("tokenizer.ggml.model", Meta::text("rwkv")).open().unwrap();
    assert!(!other.files.contains_key("tokenizer.json"));
    assert_eq!(other.notes, ["no tokenizer is made of the kind \"rwkv\""]);
}

proptest! {
    /// Whatever is cut or flipped, there is an error or places within the file.
    #[test]
    fn damage_is_an_error(
        cut in 0_usize..20_000,
        flips in prop::collection::vec((0_usize..2_000, 1_u8..=255), 0..4),
    ) {
        let sound = Sketch::llama().bytes();
        let mut bytes = sound[..cut.min(sound.len())].to_vec();
        for (at, flip) in flips {
            if let Some(byte) = bytes.get_mut(at) {
                *byte ^= flip;
            }
        }
        if let Ok(checkpoint) = open_bytes(&bytes) {
            for tensor in checkpoint.tensors.values() {
                prop_assert!(tensor.offset + tensor.bytes <= bytes.len() as u64);
            }
        }
    }
}
