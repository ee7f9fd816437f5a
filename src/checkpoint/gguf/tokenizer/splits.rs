//! How texts are cut into words before pairs are merged: by the name that llama.cpp gives to a
//! model's way, the expressions that its makers published.

use serde_json::{Value, json};

/// A way to cut texts.
#[derive(Clone, Copy, Debug)]
pub struct Split {
    /// Names of it.
    names: &'static [&'static str],
    /// Each cuts what the one before it left.
    expressions: &'static [&'static str],
    /// Words that are tokens are taken whole.
    pub ignores_merges: bool,
    /// Whether texts begin with a token for it, where the file does not say.
    pub adds_begin: bool,
    /// Whether texts are composed before.
    pub composes: bool,
}

const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";

const LLAMA3: &str = concat!(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}",
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
);

const QWEN2: &str = concat!(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}",
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
);

const TEKKEN: &str = concat!(
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+",
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*",
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
);

const PLAIN: Split = Split {
    names: &["gpt-2", "phi-2", "mpt", "olmo", "jais", "gigachat"],
    expressions: &[GPT2],
    ignores_merges: false,
    adds_begin: false,
    composes: false,
};

static SPLITS: [Split; 7] = [
    PLAIN,
    Split {
        names: &["llama-bpe", "llama3", "llama-v3", "falcon3", "pixtral", "lfm2"],
        expressions: &[LLAMA3],
        ignores_merges: true,
        adds_begin: true,
        composes: false,
    },
    Split { names: &["dbrx", "smaug-bpe", "glm4", "chatglm-bpe"], expressions: &[LLAMA3], ..PLAIN },
    Split { names: &["qwen2", "deepseek-r1-qwen"], expressions: &[QWEN2], composes: true, ..PLAIN },
    Split {
        names: &["smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"],
        expressions: &[r"\p{N}", GPT2],
        ..PLAIN
    },
    Split {
        names: &["tekken"],
        expressions: &[TEKKEN],
        ignores_merges: true,
        adds_begin: true,
        composes: false,
    },
    Split {
        names: &["default"],
        expressions: &[
            r"[\p{P}\$\+<=>\^~\|]+",
            r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)",
            r"\p{N}+",
            r"[0-9][0-9][0-9]",
        ],
        ..PLAIN
    },
];

impl Split {
    /// The way of a name.
    pub fn by_name(name: &str) -> Option<&'static Split> {
        SPLITS.iter().find(|split| split.names.contains(&name))
    }

    /// All names.
    pub fn names() -> String {
        let names: Vec<&str> = SPLITS.iter().flat_map(|split| split.names).copied().collect();
        names.join(", ")
    }

    /// As a pre-tokenizer of tokenizer.json.
    pub fn pre_tokenizer(&self) -> Value {
        let byte_level = |cuts: bool| {
            json!({
                "type": "ByteLevel",
                "add_prefix_space": false,
                "trim_offsets": true,
                "use_regex": cuts,
            })
        };
        let split = |expression: &&str| {
            json!({
                "type": "Split",
                "pattern": { "Regex": expression },
                "behavior": "Isolated",
                "invert": false,
            })
        };
        let mut parts: Vec<Value> = self.expressions.iter().map(split).collect();
        parts.push(byte_level(false));
        json!({ "type": "Sequence", "pretokenizers": parts })
    }
}
