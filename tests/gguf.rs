//! Tokenizers that are made of what GGUF files hold, against the ids that llama.cpp and
//! transformers both come to.

mod common;

use common::gguf::Meta::{Flag, Floats, Number, Numbers};
use common::gguf::{Meta, Q8_0, Sketch};
use hermes::checkpoint::Checkpoint;
use hermes::sys::heap::{self, CountingAllocator};
use serde_json::Value;
use std::collections::BTreeMap;
use tokenizers::Tokenizer;

/// A file of these tokens.
fn sketch(tokens: &[&str]) -> Sketch {
    let rows = tokens.len() as u64;
    let sketch = Sketch::llama().tensor("token_embd.weight", &[32, rows], Q8_0);
    sketch.set("tokenizer.ggml.tokens", Meta::texts(tokens))
}

fn tokenizer(sketch: &Sketch) -> Tokenizer {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    std::fs::write(&path, sketch.bytes()).unwrap();
    let checkpoint = Checkpoint::open(&path).unwrap();
    Tokenizer::from_bytes(&checkpoint.files["tokenizer.json"]).unwrap()
}

fn borrowed(texts: &[String]) -> Vec<&str> {
    texts.iter().map(String::as_str).collect()
}

fn check(tokenizer: &Tokenizer, text: &str, expected: &[u32]) {
    let encoding = tokenizer.encode(text, true).unwrap();
    assert_eq!(encoding.get_ids(), expected, "{text:?}: {:?}", encoding.get_tokens());
}

/// A tokenizer of a file, a text, and its tokens.
#[derive(serde::Deserialize)]
struct Case {
    name: String,
    model: String,
    pre: String,
    tokens: Vec<String>,
    token_type: Vec<i32>,
    scores: Option<Vec<f32>>,
    merges: Option<Vec<String>>,
    ids_of: BTreeMap<String, u32>,
    flags: BTreeMap<String, bool>,
    prompt: String,
    ids: Vec<u32>,
}

#[test]
fn tokenizers_of_all_kinds_give_the_ids_of_llama_cpp() {
    let cases: Vec<Case> = serde_json::from_str(include_str!("refs/gguf-tokenizers.json")).unwrap();
    assert_eq!(cases.len(), 7);
    for case in cases {
        let key = |name: &str| format!("tokenizer.ggml.{name}");
        let mut made = sketch(&borrowed(&case.tokens))
            .set(&key("model"), Meta::text(&case.model))
            .set(&key("pre"), Meta::text(&case.pre))
            .set(&key("token_type"), Numbers(case.token_type));
        let scores = case.scores.map(Floats);
        let merges = case.merges.map(|merges| Meta::texts(&borrowed(&merges)));
        made = made.without(&key("scores")).without(&key("bos_token_id"));
        for (name, value) in [("scores", scores), ("merges", merges)] {
            if let Some(value) = value {
                made = made.set(&key(name), value);
            }
        }
        for (name, id) in case.ids_of {
            made = made.set(&key(&format!("{name}_token_id")), Number(id));
        }
        for (name, flag) in case.flags {
            made = made.set(&key(&name), Flag(flag));
        }
        println!("{}", case.name);
        let tokenizer = tokenizer(&made);
        check(&tokenizer, &case.prompt, &case.ids);
        let unused = tokenizer.get_vocab(true).into_keys().any(|token| token.starts_with("[PAD"));
        assert!(!unused, "rows without a token become tokens");
    }
}

/// BERT's own list has `##` before what goes on; in GGUF files words begin with a space instead.
#[test]
fn word_pieces_are_joined_as_before() {
    let tokens = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "\u{2581}the",
        "\u{2581}boat",
        "s",
        "\u{2581}.",
        "\u{2581}s",
    ];
    let made = sketch(&tokens)
        .set("tokenizer.ggml.model", Meta::text("bert"))
        .set("tokenizer.ggml.token_type", Numbers(vec![3, 3, 3, 3, 1, 1, 1, 1, 1]))
        .without("tokenizer.ggml.scores")
        .without("tokenizer.ggml.eos_token_id")
        .set("tokenizer.ggml.bos_token_id", Number(2));
    let words = tokenizer(&made);
    check(&words, "The boats. s", &[2, 4, 5, 6, 7, 8, 3]);
    check(&words, "thes", &[2, 4, 6, 3]);
    check(&words, "x [SEP]", &[2, 1, 3, 3]);
    let pair = words.encode(("the", "boat"), true).unwrap();
    assert_eq!(pair.get_ids(), [2, 4, 3, 5, 3]);
    assert_eq!(pair.get_type_ids(), [0, 0, 0, 1, 1]);
}

#[test]
fn unigrams_are_the_likeliest() {
    let tokens = ["<pad>", "</s>", "<unk>", "\u{2581}a", "b", "\u{2581}ab", "\u{2581}", "a"];
    let made = sketch(&tokens)
        .set("tokenizer.ggml.model", Meta::text("t5"))
        .set("tokenizer.ggml.token_type", Numbers(vec![3, 3, 2, 1, 1, 1, 1, 1]))
        .set("tokenizer.ggml.scores", Floats(vec![0., 0., 0., -1., -1., -3., -4., -4.]))
        .set("tokenizer.ggml.eos_token_id", Number(1))
        .set("tokenizer.ggml.unknown_token_id", Number(2))
        .set("tokenizer.ggml.remove_extra_whitespaces", Flag(true))
        .without("tokenizer.ggml.bos_token_id");
    let unigrams = tokenizer(&made);
    check(&unigrams, "ab  a", &[3, 4, 3, 1]);
    check(&unigrams, "b", &[6, 4, 1]);
}

/// A vocabulary as large as any: what is made of it is read as it was meant.
#[test]
fn tokens_with_every_character_survive() {
    let odd = ["\"", "\\", "\n", "\u{1}", "\u{fffd}", "\u{1f600}", "a b", "</s>\t"];
    let made = sketch(&odd)
        .set("tokenizer.ggml.model", Meta::text("gpt2"))
        .set("tokenizer.ggml.pre", Meta::text("gpt-2"))
        .set("tokenizer.ggml.merges", Meta::texts(&[]))
        .set("tokenizer.ggml.token_type", Numbers(vec![4; 8]))
        .without("tokenizer.ggml.scores");
    let tokenizer = tokenizer(&made);
    for (id, token) in odd.iter().enumerate() {
        assert_eq!(tokenizer.token_to_id(token), Some(id as u32), "{token:?}");
        check(&tokenizer, token, &[id as u32]);
    }
    let json: Value = serde_json::from_str(&tokenizer.to_string(false).unwrap()).unwrap();
    assert_eq!(json["added_tokens"].as_array().unwrap().len(), odd.len());
}

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

/// A quarter of a million tokens, all of which are merged of others in every way: as much as the
/// largest vocabularies have.
#[test]
fn a_vocabulary_takes_few_times_its_size() {
    const LETTERS: u8 = 22;
    let mut tokens: Vec<String> = vec![String::new()];
    let mut scores = vec![];
    for length in 1..=4 {
        let longer: Vec<String> = tokens
            .iter()
            .filter(|token| token.len() == length - 1)
            .flat_map(|token| {
                (0..LETTERS).map(move |letter| format!("{token}{}", char::from(b'a' + letter)))
            })
            .collect();
        tokens.extend(longer);
    }
    tokens.remove(0);
    scores.extend((0..tokens.len()).map(|index| -(index as f32)));
    let made = sketch(&borrowed(&tokens))
        .set("tokenizer.ggml.token_type", Numbers(vec![1; tokens.len()]))
        .set("tokenizer.ggml.scores", Floats(scores));
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    std::fs::write(&path, made.bytes()).unwrap();
    drop(made);
    let (checkpoint, metered) = heap::metered(|| Checkpoint::open(&path).unwrap());
    let json_bytes = checkpoint.files["tokenizer.json"].len();
    let peak = metered.peak_bytes;
    println!("{} tokens, tokenizer.json {json_bytes} bytes, peak {peak} bytes", tokens.len());
    assert!(tokens.len() > 240_000 && json_bytes > 10_000_000, "{json_bytes}");
    assert!(peak < 100 << 20, "{peak} bytes");
}
