//! How much longer a text may become by a tokenizer's rules, told from them before any text is there.

use super::characters::cost;
use super::charsmap::{self, Form, Given};
use super::error::{MAX_FACTOR, RuleError};
use super::rules::{as_tree, list, names};
use serde_json::Value;
use tokenizers::models::ModelWrapper;
use tokenizers::utils::SysRegex;
use tokenizers::{Model, NormalizedString, Normalizer, NormalizerWrapper, PreTokenizerWrapper};

/// Most characters that NFD and NFKD make of one.
const MOST_CANONICAL: u64 = 4;
const MOST_COMPATIBLE: u64 = 18;

/// Most bytes of a character.
const MOST_BYTES: u64 = 4;

/// Different characters that are looked at one by one, at each step behind the one that puts them in.
const MAX_PUT: usize = 1024;

/// How long a text may become.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Growth {
    /// Most characters that come of each of its bytes.
    factor: u64,
    /// Characters that are put before each piece between added tokens.
    before: u64,
    /// Characters that rules put into it, and no later rule changes; none where that is not known.
    put: Option<String>,
}

impl Growth {
    /// What rules do, one after the other.
    ///
    /// # Errors
    /// Rules that make a text too long, or of which nothing is known.
    pub(super) fn of(
        normalizer: Option<&NormalizerWrapper>,
        pre_tokenizer: Option<&PreTokenizerWrapper>,
    ) -> Result<Growth, RuleError> {
        let mut walk = Walk {
            field: "normalizer",
            factor: 1,
            before: 0,
            made: Made::Text,
            form: Form::Whole,
            pieces: Pieces::Few,
        };
        if let Some(normalizer) = normalizer {
            walk.normalize(&as_tree(normalizer)?)?;
        }
        walk.field = "pre_tokenizer";
        if let Some(pre_tokenizer) = pre_tokenizer {
            walk.cut(&as_tree(pre_tokenizer)?)?;
        }
        let put = match walk.made {
            Made::Text => Some(String::new()),
            Made::Put(put) => Some(put),
            Made::Any => None,
        };
        Ok(Growth { factor: walk.factor, before: walk.before, put })
    }

    /// The same where a model takes characters that it does not know apart, into bytes.
    pub(super) fn in_tokens_of(mut self, model: &ModelWrapper) -> Growth {
        let takes_apart = match model {
            ModelWrapper::BPE(model) => model.byte_fallback,
            ModelWrapper::Unigram(model) => model.byte_fallback(),
            ModelWrapper::WordPiece(_) | ModelWrapper::WordLevel(_) => false,
        };
        if !takes_apart {
            return self;
        }
        let (_, prefix, suffix) = names(model);
        let about = (prefix.len() + suffix.len()) as u64;
        let is_known = |c: char| model.token_to_id(c.encode_utf8(&mut [0; 4])).is_some();
        let all_known = self.put.as_ref().is_some_and(|put| put.chars().all(is_known));
        let bytes = if all_known && about == 0 { 1 } else { MOST_BYTES };
        self.factor = self.factor.saturating_mul(bytes + about);
        self
    }

    /// The same where the shortest added token has so many characters: as many of it as there may be
    /// pieces between, each of which something is put before.
    pub(super) fn between(mut self, shortest: Option<u64>) -> Growth {
        if shortest.is_some_and(|characters| characters <= self.before) {
            self.factor = self.factor.saturating_add(self.before);
        }
        self
    }

    /// Bytes of a text that takes as much to encode as what `text` may become, where each character
    /// of it is a token.
    pub fn bytes(&self, text: &str) -> u64 {
        let bytes = text.chars().map(cost).sum::<u64>();
        bytes.saturating_mul(self.factor).saturating_add(self.before)
    }

    /// Most characters that come of each byte of a word, and that are put before one.
    pub fn of_words(&self) -> (u64, u64) {
        (self.factor, self.before)
    }
}

/// What the characters are of which a text consists.
enum Made {
    /// Its own, whole: they have as many bytes as were counted for them.
    Text,
    /// Its own and these.
    Put(String),
    Any,
}

/// How a text is cut.
#[derive(PartialEq)]
enum Pieces {
    /// At added tokens.
    Few,
    /// At characters that go.
    Removed,
    /// Anywhere.
    Many,
}

/// A way along the rules.
struct Walk {
    field: &'static str,
    factor: u64,
    before: u64,
    made: Made,
    form: Form,
    pieces: Pieces,
}

impl Walk {
    /// Counts one more step of a normalizer.
    fn normalize(&mut self, step: &Value) -> Result<(), RuleError> {
        let kind = step["type"].as_str().unwrap_or_default();
        match kind {
            "Sequence" => {
                return list(step, "normalizers").iter().try_for_each(|step| self.normalize(step));
            }
            "Strip" | "StripAccents" | "Nmt" => {}
            "Lowercase" if self.form == Form::Whole => self.change(step, 2)?,
            "Lowercase" => {}
            "NFC" | "NFKC" => {
                let (form, most) = form_of(kind);
                let most = if self.form >= form { 1 } else { most };
                self.change(step, most)?;
                self.form = Form::Whole;
            }
            "NFD" | "NFKD" => {
                let (form, most) = form_of(kind);
                let most = if self.form >= form { 1 } else { most };
                self.change(step, most)?;
                (self.made, self.form) = (Made::Any, self.form.max(form));
            }
            "BertNormalizer" => {
                self.change(step, MOST_CANONICAL)?;
                self.made = Made::Any;
            }
            "Prepend" => {
                let prefix = step["prepend"].as_str().unwrap_or_default();
                self.put(prefix);
                self.begin(kind, length(&step["prepend"]))?;
            }
            "Replace" => {
                let content = &step["content"];
                self.times(kind, replaced(&step["pattern"], length(content)))?;
                self.put(content.as_str().unwrap_or_default());
            }
            "Precompiled" => {
                let map = step["precompiled_charsmap"].as_str().unwrap_or_default();
                let given = match self.made {
                    Made::Text => Given::Text,
                    Made::Put(_) | Made::Any => Given::Any(self.form),
                };
                self.times(kind, charsmap::growth(map, given)?)?;
                (self.made, self.form) = (Made::Any, Form::Whole);
            }
            "ByteLevel" => self.take_apart(kind)?,
            kind => return Err(self.unknown(kind)),
        }
        Ok(())
    }

    /// Counts one more step of a pre-tokenizer.
    fn cut(&mut self, step: &Value) -> Result<(), RuleError> {
        let kind = step["type"].as_str().unwrap_or_default();
        match kind {
            "Sequence" => {
                return list(step, "pretokenizers").iter().try_for_each(|step| self.cut(step));
            }
            "ByteLevel" => {
                if step["add_prefix_space"] == true {
                    self.begin(kind, 1)?;
                }
                if step["use_regex"] != false {
                    self.pieces = Pieces::Many;
                }
                self.take_apart(kind)?;
            }
            "Metaspace" => {
                self.put(step["replacement"].as_str().unwrap_or_default());
                if step["prepend_scheme"] != "never" {
                    self.begin(kind, 1)?;
                }
                if step["split"] != false {
                    self.pieces = Pieces::Many;
                }
            }
            "WhitespaceSplit" | "CharDelimiterSplit" if self.pieces == Pieces::Few => {
                self.pieces = Pieces::Removed;
            }
            "BertPreTokenizer" | "CharDelimiterSplit" | "Digits" | "FixedLength"
            | "Punctuation" | "Split" | "UnicodeScripts" | "Whitespace" | "WhitespaceSplit" => {
                self.pieces = Pieces::Many;
            }
            kind => return Err(self.unknown(kind)),
        }
        Ok(())
    }

    fn unknown(&self, kind: &str) -> RuleError {
        let kind = kind.chars().take(MAX_FACTOR as usize).collect();
        RuleError::Unknown { field: self.field, kind }
    }

    /// Each character becomes so many.
    fn times(&mut self, kind: &str, factor: u64) -> Result<(), RuleError> {
        self.factor = self.factor.saturating_mul(factor);
        self.before = self.before.saturating_mul(factor);
        match self.factor.max(self.before) {
            0..=MAX_FACTOR => Ok(()),
            factor => Err(RuleError::Growth { field: self.field, kind: kind.to_owned(), factor }),
        }
    }

    /// So many characters are put before each piece.
    fn begin(&mut self, kind: &str, characters: u64) -> Result<(), RuleError> {
        match self.pieces {
            Pieces::Many => self.times(kind, characters.saturating_add(1)),
            // For each piece behind the first a character has gone.
            Pieces::Few | Pieces::Removed => {
                if self.pieces == Pieces::Removed {
                    self.pieces = Pieces::Many;
                }
                self.before = self.before.saturating_add(characters);
                self.times(kind, 1)
            }
        }
    }

    /// Characters become bytes, and these characters.
    fn take_apart(&mut self, kind: &str) -> Result<(), RuleError> {
        let bytes = if matches!(self.made, Made::Text) { 1 } else { MOST_BYTES };
        (self.made, self.form) = (Made::Any, Form::Whole);
        self.times(kind, bytes)
    }

    /// Characters of a text's own become no more than was counted for them, others up to `most`.
    fn change(&mut self, step: &Value, most: u64) -> Result<(), RuleError> {
        let kind = step["type"].as_str().unwrap_or_default().to_owned();
        let factor = match &self.made {
            Made::Text => 1,
            Made::Any => most,
            Made::Put(put) => {
                let step = serde_json::from_value::<NormalizerWrapper>(step.clone());
                let step = step.map_err(|error| RuleError::Unread(error.to_string()))?;
                let (mut changed, mut longest) = (String::new(), 1);
                for c in put.chars() {
                    let mut one = NormalizedString::from(c.to_string());
                    let done = step.normalize(&mut one);
                    done.map_err(|error| RuleError::Unread(error.to_string()))?;
                    longest = longest.max(one.get().chars().count() as u64);
                    changed.push_str(one.get());
                }
                self.made = Made::Put(String::new());
                self.add(changed.chars());
                longest
            }
        };
        self.times(&kind, factor)
    }

    /// These may be among the characters from now on.
    fn put(&mut self, text: &str) {
        if text.is_ascii() {
            return;
        }
        self.form = Form::Whole;
        if matches!(self.made, Made::Text) {
            self.made = Made::Put(String::new());
        }
        self.add(text.chars().filter(|c| !c.is_ascii()));
    }

    /// These are among those that were put in, each once; many are any.
    fn add(&mut self, characters: impl Iterator<Item = char>) {
        let Made::Put(put) = &mut self.made else { return };
        let mut count = put.chars().count();
        for c in characters {
            if !put.contains(c) {
                put.push(c);
                count += 1;
            }
            if count > MAX_PUT {
                self.made = Made::Any;
                return;
            }
        }
    }
}

/// What a normal form leaves, and most characters that it makes of one.
fn form_of(kind: &str) -> (Form, u64) {
    match kind {
        "NFC" | "NFD" => (Form::Canonical, MOST_CANONICAL),
        _ => (Form::Compatible, MOST_COMPATIBLE),
    }
}

/// Most characters for each one where a pattern is replaced by so many.
fn replaced(pattern: &Value, content: u64) -> u64 {
    match (length(&pattern["String"]), pattern["Regex"].as_str()) {
        (_, Some(regex)) if content > 0 && may_be_nothing(regex) => content.saturating_add(1),
        (_, Some(_)) => content.max(1),
        (0, None) => content.saturating_add(1),
        (found, None) => content.div_ceil(found).max(1),
    }
}

/// Whether a pattern may be found between characters.
fn may_be_nothing(regex: &str) -> bool {
    let outside = regex.replace("[^", "[");
    let looks = ["(?", "\\b", "\\B", "\\K", "\\<", "\\>", "^", "$"]
        .iter()
        .any(|look| outside.contains(look));
    looks || SysRegex::new(regex).map_or(true, |regex| regex.find_iter("").next().is_some())
}

fn length(text: &Value) -> u64 {
    text.as_str().map_or(0, |text| text.chars().count() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn made(kind: &str, steps: &[Value]) -> Value {
        json!({ "type": "Sequence", (kind): steps })
    }

    fn growth(normalizer: &[Value], cut: &[Value]) -> Result<Growth, RuleError> {
        let normalizer = serde_json::from_value(made("normalizers", normalizer)).unwrap();
        let cut = serde_json::from_value(made("pretokenizers", cut)).unwrap();
        Growth::of(Some(&normalizer), Some(&cut))
    }

    fn replace(pattern: Value, content: &str) -> Value {
        json!({ "type": "Replace", "pattern": pattern, "content": content })
    }

    fn text(text: &str) -> Value {
        json!({ "String": text })
    }

    fn regex(regex: &str) -> Value {
        json!({ "Regex": regex })
    }

    fn prepend(text: &str) -> Value {
        json!({ "type": "Prepend", "prepend": text })
    }

    fn kind(kind: &str) -> Value {
        json!({ "type": kind })
    }

    fn metaspace(replacement: char) -> Value {
        json!({ "type": "Metaspace", "replacement": replacement, "prepend_scheme": "always" })
    }

    fn bytes(adds_space: bool) -> Value {
        json!({ "type": "ByteLevel", "add_prefix_space": adds_space, "trim_offsets": false })
    }

    fn bert() -> Value {
        json!({ "type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true,
            "strip_accents": null, "lowercase": true })
    }

    /// Seventeen rules that each double a letter made 13 MB of 100 letters, and 240 MiB of heap in a
    /// budget of 64.
    #[test]
    fn what_rules_make_of_a_text_is_bounded() {
        let check = |steps: &[Value], cut: &[Value], of_ten: u64| {
            let growth = growth(steps, cut).unwrap();
            assert_eq!(growth.bytes("0123456789"), of_ten, "{steps:?} {cut:?}");
        };
        check(&[], &[], 10);
        // As they are found beside models: BERT, GPT-2, Qwen, Llama, Gemma, T5, ALBERT, Falcon.
        check(&[bert()], &[kind("BertPreTokenizer")], 10);
        check(&[], &[bytes(false)], 10);
        check(&[kind("NFC")], &[kind("Whitespace"), bytes(false)], 10);
        check(&[kind("NFC"), kind("Lowercase")], &[bytes(true)], 11);
        check(&[prepend("\u{2581}"), replace(text(" "), "\u{2581}")], &[], 11);
        check(&[replace(text(" "), "\u{2581}")], &[], 10);
        check(&[replace(regex(" {2,}"), "\u{2581}")], &[metaspace('\u{2581}')], 11);
        check(&[kind("NFKC")], &[kind("WhitespaceSplit"), metaspace('\u{2581}')], 11);
        let albert = ["NFKD", "StripAccents", "Lowercase"].map(kind);
        let quotes = [replace(text("``"), "\""), replace(text("\u{27}\u{27}"), "\"")];
        check(&[&quotes[..], &albert[..]].concat(), &[metaspace('\u{2581}')], 11);
        check(
            &[],
            &[
                kind("Punctuation"),
                bytes(false),
                json!({ "type": "Digits", "individual_digits": true }),
            ],
            10,
        );
        check(&[replace(regex("\\s+"), " "), replace(regex("x"), "")], &[], 10);
        // As they are not.
        check(&[replace(text("a"), "aa"), replace(text("a"), "aaa")], &[], 60);
        check(&[prepend("abc"), replace(text("a"), "aa")], &[], 26);
        check(&[replace(text(""), "xy")], &[], 30);
        for nothing in ["", "x*", "(?=x)", "\\b", "\\<|\\>", "^"] {
            check(&[replace(regex(nothing), "x")], &[], 20);
        }
        check(&[kind("ByteLevel"), kind("ByteLevel")], &[], 40);
        check(&[], &[bytes(false), bytes(false)], 40);
        check(&[kind("NFD")], &[bytes(false)], 40);
        check(&[], &[metaspace('_'), metaspace('-')], 22);
        check(&[], &[kind("Punctuation"), bytes(true)], 20);
        check(&[replace(text("i"), "\u{130}"), kind("Lowercase")], &[], 20);
        check(&[replace(text("i"), "\u{fdfa}"), kind("NFKC")], &[], 180);
        check(&[kind("NFKD"), kind("NFKC"), kind("NFD")], &[], 40);
        check(&[bert(), kind("Lowercase"), bert()], &[], 80);
    }

    #[test]
    fn rules_that_make_a_text_too_long_are_refused_by_name() {
        let check = |steps: &[Value], cut: &[Value], field: &'static str, kind: &str, factor| {
            let wrong = RuleError::Growth { field, kind: kind.to_owned(), factor };
            assert_eq!(growth(steps, cut), Err(wrong), "{steps:?} {cut:?}");
        };
        check(&vec![replace(text("a"), "aa"); 17], &[], "normalizer", "Replace", 128);
        check(&[prepend(&"a".repeat(65))], &[], "normalizer", "Prepend", 65);
        check(&[], &vec![bytes(false); 22], "pre_tokenizer", "ByteLevel", 256);
        check(&[], &vec![metaspace('_'); 24], "pre_tokenizer", "Metaspace", 128);
        let ligatures = [replace(text("a"), "\u{fdfa}"), kind("NFKC"), replace(regex("[^a]"), "a")];
        check(&[&ligatures[..], &ligatures[..]].concat(), &[], "normalizer", "NFKC", 324);
    }

    /// A prefix goes before each piece between added tokens: of one letter, there may be as many.
    #[test]
    fn short_added_tokens_make_many_pieces() {
        let growth = growth(&[prepend("abc")], &[]).unwrap();
        let of_ten = |shortest| growth.clone().between(shortest).bytes("0123456789");
        assert_eq!([None, Some(4), Some(3), Some(1)].map(of_ten), [13, 13, 43, 43]);
    }

    #[test]
    fn characters_that_a_model_does_not_know_become_bytes() {
        let model = |more: Value| -> ModelWrapper {
            let mut model = json!({ "type": "BPE", "vocab": { "a": 0, "\u{2581}": 1 },
                "merges": [], "byte_fallback": true });
            model.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            serde_json::from_value(model).unwrap()
        };
        let check = |steps: &[Value], more: Value, of_ten: u64| {
            let growth = growth(steps, &[]).unwrap().in_tokens_of(&model(more));
            assert_eq!(growth.bytes("0123456789"), of_ten, "{steps:?}");
        };
        check(&[], json!({}), 10);
        check(&[replace(text(" "), "\u{2581}")], json!({}), 10);
        check(&[replace(text(" "), "\u{2582}")], json!({}), 40);
        check(&[kind("NFKD")], json!({}), 40);
        check(&[kind("NFKD")], json!({ "byte_fallback": false }), 10);
        // Each character is looked up with them, and taken apart with them.
        check(&[], json!({ "continuing_subword_prefix": "##" }), 60);
    }
}
