//! A small model that writes texts, of chance: what it writes means nothing, and is the same each time.

use super::programs::program;
use super::tiny::{path, run};
use serde_json::json;
use std::fs;
use std::path::Path;

/// A chat template with control tokens, as most models have one.
pub const TEMPLATE: &str = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}\
                            <|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>\
                            assistant\n{% endif %}";

/// Most tokens of prompt and text together.
pub const CONTEXT: usize = 256;

/// Builds it from the files that its makers would lay beside it.
pub fn build(store: &Path, name: &str, template: Option<&str>) {
    let tokenizer = include_str!("../data/text/tokenizers/byte-level.tokenizer.json");
    build_with(store, name, template, tokenizer, CONTEXT);
}

/// The same with another tokenizer, and for longer texts.
pub fn build_with(
    store: &Path,
    name: &str,
    template: Option<&str>,
    tokenizer: &str,
    context: usize,
) {
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("model.onnx");
    run(program("hermes-bench"), &["synth", "gpt2-tiny", "--past", "-o", path(&model)]);
    let config = json!({
        "chat_template": template, "eos_token": "<|im_end|>", "bos_token": "<|endoftext|>",
    });
    let files = [
        ("tokenizer.json", tokenizer.to_owned()),
        ("tokenizer_config.json", config.to_string()),
        ("config.json", json!({ "n_positions": context }).to_string()),
    ];
    for (file, text) in files {
        fs::write(folder.path().join(file), text).unwrap();
    }
    let arguments = ["build", path(&model), "--name", name, "--store", path(store)];
    run(program("hermes-shard"), &[&arguments[..], &["--variants", "f32"]].concat());
}
