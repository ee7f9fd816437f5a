//! What the rules of a tokenizer may do to a text. They come with a model: what they make of a text
//! is bounded before a text is there, and what is no tokenizer of one text is refused.

use serde_json::Value;
use thiserror::Error;
use tokenizers::models::ModelWrapper;
use tokenizers::utils::SysRegex;
use tokenizers::{NormalizerWrapper, Tokenizer};

/// Longest token that stands for unknown words: each of them holds a copy.
const MAX_UNKNOWN_BYTES: usize = 256;

/// Longest text that a sound map of characters has for one: U+FDFA becomes 18 characters.
const MAX_MAPPED_BYTES: u64 = 33;

/// Rules that no text is to be cut by.
#[derive(Debug, PartialEq, Eq, Error)]
pub enum RuleError {
    #[error("model.dropout is {0}: words would be cut by chance; set it to null")]
    Dropout(String),
    #[error("model.unk_token has {0} bytes; the limit is {MAX_UNKNOWN_BYTES}")]
    Unknown(usize),
    #[error("post_processor.single has the text {0} times: it has to be there once, as A")]
    Copies(usize),
    #[error("precompiled_charsmap has a table of {table} bytes in {whole}")]
    Map { table: u64, whole: u64 },
    #[error("the rules cannot be read: {0}")]
    Unread(String),
}

/// Refuses a tokenizer whose tokens would not be those of one text.
///
/// # Errors
/// The first rule that is none.
pub fn check(tokenizer: &Tokenizer) -> Result<(), RuleError> {
    let (dropout, unknown) = match tokenizer.get_model() {
        ModelWrapper::BPE(model) => (model.dropout, model.unk_token.as_deref()),
        ModelWrapper::WordPiece(model) => (None, Some(&*model.unk_token)),
        ModelWrapper::WordLevel(model) => (None, Some(&*model.unk_token)),
        ModelWrapper::Unigram(_) => (None, None),
    };
    if let Some(chance) = dropout.filter(|chance| *chance > 0.0) {
        return Err(RuleError::Dropout(chance.to_string()));
    }
    match unknown.map(str::len) {
        Some(length) if length > MAX_UNKNOWN_BYTES => return Err(RuleError::Unknown(length)),
        _ => {}
    }
    match tokenizer.get_post_processor() {
        Some(processor) => check_frame(&as_tree(processor)?),
        None => Ok(()),
    }
}

/// Checks the maps of characters of a normalizer, before it is made: the library allocates as much as
/// they say that they have.
///
/// # Errors
/// A map with a table that is longer than itself.
pub fn check_maps(normalizer: &Value) -> Result<(), RuleError> {
    let list = normalizer.as_array().into_iter().flatten();
    let fields = normalizer.as_object().into_iter().flatten();
    if let Some(map) = normalizer["precompiled_charsmap"].as_str() {
        let map = from_base64(map);
        let (table, whole) = (u64::from(table_bytes(&map)), map.len() as u64);
        if table.saturating_add(4) > whole {
            return Err(RuleError::Map { table, whole });
        }
    }
    list.chain(fields.map(|(_, value)| value)).try_for_each(check_maps)
}

/// Checks that a text stands once in its frame: the library copies it as often as it is named.
fn check_frame(processor: &Value) -> Result<(), RuleError> {
    for inner in list(processor, "processors") {
        check_frame(inner)?;
    }
    if processor["type"] != "TemplateProcessing" {
        return Ok(());
    }
    let names =
        || list(processor, "single").iter().filter_map(|piece| piece["Sequence"]["id"].as_str());
    match (names().count(), names().all(|name| name == "A")) {
        (1, true) => Ok(()),
        (count, true) => Err(RuleError::Copies(count)),
        (_, false) => Err(RuleError::Copies(0)),
    }
}

/// How long a text may become by a tokenizer's normalizer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Growth {
    /// Most characters that one comes to.
    factor: u64,
    /// Characters that are put before it.
    added: u64,
}

impl Growth {
    /// What a tokenizer does.
    ///
    /// # Errors
    /// Rules that cannot be looked at.
    pub fn of(normalizer: Option<&NormalizerWrapper>) -> Result<Growth, RuleError> {
        let mut growth = Growth { factor: 1, added: 0 };
        if let Some(normalizer) = normalizer {
            growth.follow(&as_tree(normalizer)?, &mut vec![]);
        }
        Ok(growth)
    }

    /// Bytes of a text that takes as much to encode as what `text` may become, where each character
    /// of it is a token.
    pub fn bytes(self, text: &str) -> u64 {
        // Of those that Unicode takes apart, these become more than they have bytes.
        let apart = |c: char| match c {
            '\u{fdfa}' | '\u{fdfb}' => 15,
            '\u{3300}'..='\u{33ff}' => 3,
            _ => 0,
        };
        let bytes = text.len() as u64 + text.chars().map(apart).sum::<u64>();
        bytes.saturating_mul(self.factor).saturating_add(self.added)
    }

    /// Does one more step; `seen` are the kinds of those before.
    fn follow(&mut self, step: &Value, seen: &mut Vec<String>) {
        let kind = step["type"].as_str().unwrap_or_default();
        let again = seen.iter().any(|before| before == kind);
        let factor = match kind {
            "Sequence" => {
                list(step, "normalizers").iter().for_each(|inner| self.follow(inner, seen));
                return;
            }
            "Prepend" => {
                self.added = self.added.saturating_add(length(&step["prepend"]));
                return;
            }
            "Replace" => replaced(&step["pattern"], length(&step["content"])),
            "Precompiled" => mapped(&step["precompiled_charsmap"]),
            // A character of several bytes has room for what these make of it, once.
            "BertNormalizer" if again => 3,
            "ByteLevel" if again => 2,
            _ => 1,
        };
        seen.push(kind.to_owned());
        self.factor = self.factor.saturating_mul(factor);
        self.added = self.added.saturating_mul(factor);
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
    let looks = ["(?", "\\b", "\\B", "\\K", "^", "$"].iter().any(|look| regex.contains(look));
    looks || SysRegex::new(regex).map_or(true, |regex| regex.find_iter("").next().is_some())
}

/// Most characters for each one by a map of SentencePiece's: what characters become lies behind a
/// table, with a zero byte behind each.
fn mapped(map: &Value) -> u64 {
    let map = from_base64(map.as_str().unwrap_or_default());
    let texts = map.get((table_bytes(&map) as usize).saturating_add(4)..).unwrap_or_default();
    let longest = texts.split(|byte| *byte == 0).map(<[u8]>::len).max();
    match longest.unwrap_or(0) as u64 {
        0..=MAX_MAPPED_BYTES => 1,
        longest => longest,
    }
}

/// How long the table of a map says that it is.
fn table_bytes(map: &[u8]) -> u32 {
    map.first_chunk().map_or(0, |length| u32::from_le_bytes(*length))
}

/// The bytes that a text stands for, up to where it is no base64.
fn from_base64(text: &str) -> Vec<u8> {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let digit = |byte| DIGITS.iter().position(|digit| *digit == byte);
    let digits: Vec<usize> = text.bytes().map_while(digit).collect();
    let bytes = |four: &[usize]| {
        let bits = (0..4).fold(0, |bits, at| bits << 6 | four.get(at).copied().unwrap_or(0));
        (0..four.len() - 1).map(move |at| (bits >> (16 - 8 * at) & 0xff) as u8)
    };
    digits.chunks(4).flat_map(bytes).collect()
}

fn length(text: &Value) -> u64 {
    text.as_str().map_or(0, |text| text.chars().count() as u64)
}

fn list<'a>(value: &'a Value, key: &str) -> &'a [Value] {
    value[key].as_array().map_or(&[], Vec::as_slice)
}

fn as_tree(rules: &impl serde::Serialize) -> Result<Value, RuleError> {
    serde_json::to_value(rules).map_err(|error| RuleError::Unread(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn growth(steps: &[Value]) -> Growth {
        let steps = json!({ "type": "Sequence", "normalizers": steps });
        Growth::of(Some(&serde_json::from_value(steps).unwrap())).unwrap()
    }

    /// Seventeen rules that each double a letter made 13 MB of 100 letters, and 240 MiB of heap in a
    /// budget of 64.
    #[test]
    fn what_a_normalizer_makes_of_a_text_is_bounded() {
        let replace = |pattern: Value, content: &str| json!({ "type": "Replace", "pattern": pattern, "content": content });
        let text = |text: &str| json!({ "String": text });
        let regex = |regex: &str| json!({ "Regex": regex });
        let check = |steps: &[Value], of_ten: u64| {
            assert_eq!(growth(steps).bytes("0123456789"), of_ten, "{steps:?}");
        };
        check(&[], 10);
        // As they are found beside models.
        let prepend = |text: &str| json!({ "type": "Prepend", "prepend": text });
        check(&[prepend("\u{2581}"), replace(text(" "), "\u{2581}")], 11);
        let kinds =
            ["NFC", "NFKD", "StripAccents", "Lowercase"].map(|kind| json!({ "type": kind }));
        check(&kinds, 10);
        check(&[replace(text("``"), "\""), replace(regex(" {2,}"), " ")], 10);
        check(&[replace(regex("\\s+"), " "), replace(regex("x"), "")], 10);
        // As they are not.
        check(&[replace(text("a"), "aa"), replace(text("a"), "aaa")], 60);
        check(&[prepend("abc"), replace(text("a"), "aa")], 26);
        check(&[replace(text(""), "xy")], 30);
        for nothing in ["", "x*", "(?=x)", "\\b", "^"] {
            check(&[replace(regex(nothing), "x")], 20);
        }
        check(&vec![replace(text("a"), "aa"); 100], u64::MAX);
        let bytes = json!({ "type": "ByteLevel" });
        check(&[bytes.clone(), bytes.clone(), bytes], 40);
        assert_eq!(growth(&[]).bytes("\u{fdfa}"), 18);
    }

    #[test]
    fn a_map_of_characters_is_looked_through() {
        assert_eq!(from_base64("YQBiYwA="), b"a\0bc\0");
        // A table of four bytes, and what characters become: "a", "bc"; then 300 times "aaa".
        assert_eq!(mapped(&json!("BAAAAAcHBwdhAGJjAA==")), 1);
        assert_eq!(mapped(&json!(format!("BAAAAAcHBwdh{}AA==", "YWFh".repeat(300)))), 901);
        assert_eq!(mapped(&json!("!")), 1);
        let check = |map: &str| {
            let step = json!({ "type": "Precompiled", "precompiled_charsmap": map });
            check_maps(&json!({ "type": "Sequence", "normalizers": [step] }))
        };
        assert_eq!(check("BAAAAAcHBwdhAGJjAA=="), Ok(()));
        let wrong = RuleError::Map { table: 0x4141_4141, whole: 8 };
        assert_eq!(check("QUFBQUFBQUE="), Err(wrong));
    }
}
