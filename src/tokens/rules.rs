//! What the rules of a tokenizer may be. They come with a model, and whoever wrote them may mean ill.

use super::charsmap;
use super::error::{
    MAX_DEPTH, MAX_FRAME_BYTES, MAX_FRAME_TOKENS, MAX_NAME_BYTES, MAX_STEPS, MAX_WORD_CHARS,
    RuleError,
};
use super::patterns;
use serde_json::Value;
use tokenizers::models::ModelWrapper;

/// Refuses a model whose tokens would not be those of one text, or take what no text pays for.
pub(super) fn check_model(model: &ModelWrapper) -> Result<(), RuleError> {
    let (unknown, prefix, suffix) = names(model);
    if let ModelWrapper::BPE(model) = model
        && let Some(chance) = model.dropout.filter(|chance| *chance > 0.0)
    {
        return Err(RuleError::Dropout(chance.to_string()));
    }
    if let ModelWrapper::WordPiece(model) = model
        && model.max_input_chars_per_word > MAX_WORD_CHARS
    {
        return Err(RuleError::Word(model.max_input_chars_per_word));
    }
    let names = [
        ("unk_token", unknown),
        ("continuing_subword_prefix", prefix),
        ("end_of_word_suffix", suffix),
    ];
    match names.iter().find(|(_, name)| name.len() > MAX_NAME_BYTES) {
        Some((field, name)) => Err(RuleError::Name { field, bytes: name.len() }),
        None => Ok(()),
    }
}

/// What stands for unknown words, and what is before words that go on and behind those that end.
pub(super) fn names(model: &ModelWrapper) -> (&str, &str, &str) {
    match model {
        ModelWrapper::BPE(model) => (
            model.unk_token.as_deref().unwrap_or_default(),
            model.continuing_subword_prefix.as_deref().unwrap_or_default(),
            model.end_of_word_suffix.as_deref().unwrap_or_default(),
        ),
        ModelWrapper::WordPiece(model) => (&model.unk_token, &model.continuing_subword_prefix, ""),
        ModelWrapper::WordLevel(model) => (&model.unk_token, "", ""),
        ModelWrapper::Unigram(_) => ("", "", ""),
    }
}

/// Checks rules before any of them is made: how many there are, that maps of characters are no larger
/// than they are, and what compiling patterns takes. Returns that, in bytes.
pub(super) fn check_unmade(field: &'static str, rules: &Value) -> Result<u64, RuleError> {
    let mut looked = Looked::default();
    looked.add(rules, 0)?;
    let Looked { steps, depth, pattern_bytes, longest_bytes } = looked;
    if depth > MAX_DEPTH {
        return Err(RuleError::Depth(field));
    }
    if steps > MAX_STEPS {
        return Err(RuleError::Steps { field, count: steps });
    }
    match pattern_bytes {
        // Each is compiled once more while it is looked at.
        0..=patterns::MAX_BYTES => Ok(pattern_bytes.saturating_add(longest_bytes)),
        bytes => Err(RuleError::Patterns { field, bytes }),
    }
}

/// What there is of rules.
#[derive(Default)]
struct Looked {
    steps: usize,
    /// How many are within each other.
    depth: usize,
    pattern_bytes: u64,
    /// Of these, those of the one that takes most.
    longest_bytes: u64,
}

impl Looked {
    fn add(&mut self, rules: &Value, outside: usize) -> Result<(), RuleError> {
        if let Some(map) = rules["precompiled_charsmap"].as_str() {
            charsmap::check(map)?;
        }
        let pattern = rules["Regex"].as_str().map_or(0, patterns::bytes);
        let text = rules["String"].as_str().map_or(0, patterns::text_bytes);
        self.pattern_bytes = self.pattern_bytes.saturating_add(pattern).saturating_add(text);
        self.longest_bytes = self.longest_bytes.max(pattern);
        // The library takes some without their type.
        let untyped =
            |list: &[Value]| list.iter().filter(|rule| rule.get("type").is_none()).count();
        let lists =
            ["normalizers", "pretokenizers", "processors"].map(|key| untyped(list(rules, key)));
        self.steps += usize::from(rules.get("type").is_some()) + lists.iter().sum::<usize>();
        let depth = outside + usize::from(rules.is_array());
        self.depth = self.depth.max(depth);
        let list = rules.as_array().into_iter().flatten();
        let fields = rules.as_object().into_iter().flatten();
        let mut inner = list.chain(fields.map(|(_, value)| value));
        inner.try_for_each(|inner| self.add(inner, depth))
    }
}

/// Checks what is put round a text: the library copies a text as often as it is named, and a name's
/// tokens as often as that.
pub(super) fn check_frame(processor: &Value) -> Result<(), RuleError> {
    let mut frame = Frame::default();
    frame.add(processor)?;
    if frame.templates > 1 {
        return Err(RuleError::Templates(frame.templates));
    }
    if frame.tokens > MAX_FRAME_TOKENS {
        return Err(RuleError::Frame(frame.tokens));
    }
    match frame.name_bytes {
        0..=MAX_FRAME_BYTES => Ok(()),
        bytes => Err(RuleError::Names(bytes)),
    }
}

/// What is round a text.
#[derive(Default)]
struct Frame {
    /// A second one takes what the first puts round a text for a pair of texts.
    templates: usize,
    tokens: usize,
    name_bytes: usize,
}

impl Frame {
    fn add(&mut self, processor: &Value) -> Result<(), RuleError> {
        for inner in list(processor, "processors") {
            self.add(inner)?;
        }
        let single = list(processor, "single");
        for name in ["cls", "sep"].map(|end| processor[end][0].as_str()).into_iter().flatten() {
            self.put(1, name.len());
        }
        for name in single.iter().filter_map(|piece| piece["SpecialToken"]["id"].as_str()) {
            let Some(token) = processor["special_tokens"].get(name) else {
                return Err(RuleError::Missing(name.chars().take(MAX_NAME_BYTES).collect()));
            };
            let bytes = list(token, "tokens").iter().filter_map(Value::as_str).map(str::len).sum();
            self.put(list(token, "ids").len(), bytes);
            if self.tokens > MAX_FRAME_TOKENS {
                break;
            }
        }
        if processor["type"] != "TemplateProcessing" {
            return Ok(());
        }
        self.templates += 1;
        let names = || single.iter().filter_map(|piece| piece["Sequence"]["id"].as_str());
        match (names().count(), names().all(|name| name == "A")) {
            (1, true) => Ok(()),
            (count, true) => Err(RuleError::Copies(count)),
            (_, false) => Err(RuleError::Copies(0)),
        }
    }

    fn put(&mut self, tokens: usize, name_bytes: usize) {
        self.tokens = self.tokens.saturating_add(tokens);
        self.name_bytes = self.name_bytes.saturating_add(name_bytes);
    }
}

pub(super) fn list<'a>(value: &'a Value, key: &str) -> &'a [Value] {
    value[key].as_array().map_or(&[], Vec::as_slice)
}

pub(super) fn as_tree(rules: &impl serde::Serialize) -> Result<Value, RuleError> {
    serde_json::to_value(rules).map_err(|error| RuleError::Unread(error.to_string()))
}
