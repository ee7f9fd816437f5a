//! Tokens become the bytes that they stand for.

use serde_json::Value;
use std::collections::HashMap;
use std::sync::OnceLock;

/// How a tokenizer.json says that its tokens become text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Detokenizer {
    /// Each character of a token is a byte, as GPT-2 has it.
    ByteLevel,
    /// As SentencePiece has it.
    Pieces {
        /// What stands for a space.
        space: String,
        /// Whether `<0x0A>` is a byte.
        has_bytes: bool,
        /// Spaces at the very beginning of a text that are none of it.
        strip: usize,
    },
}

impl Detokenizer {
    /// Reads the field `decoder` of a tokenizer.json.
    ///
    /// # Errors
    /// What of it is not known, in words.
    pub fn read(decoder: &Value) -> Result<Detokenizer, String> {
        let kind = |step: &Value| step["type"].as_str().unwrap_or("null").to_owned();
        let steps = match kind(decoder).as_str() {
            "Sequence" => decoder["decoders"].as_array().cloned().unwrap_or_default(),
            _ => vec![decoder.clone()],
        };
        let (mut space, mut has_bytes, mut strip) = (None, false, 0);
        for step in &steps {
            let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
            match kind(step).as_str() {
                "ByteLevel" if steps.len() == 1 => return Ok(Detokenizer::ByteLevel),
                "Replace" if step["content"] == " " && step["pattern"]["String"].is_string() => {
                    space = Some(text(&step["pattern"]["String"]));
                }
                "Metaspace" => {
                    space = Some(text(&step["replacement"]));
                    strip = usize::from(step["prepend_scheme"] != "never");
                }
                "ByteFallback" => has_bytes = true,
                "Fuse" => {}
                "Strip" if step["content"] == " " && step["stop"] == 0 => {
                    let count = step["start"].as_u64().unwrap_or(0);
                    strip = usize::try_from(count).unwrap_or(usize::MAX);
                }
                other => return Err(format!("its tokenizer's decoder {other:?} is not known")),
            }
        }
        match space.filter(|space| !space.is_empty()) {
            Some(space) => Ok(Detokenizer::Pieces { space, has_bytes, strip }),
            None => Err("its tokenizer does not say what stands for a space".to_owned()),
        }
    }

    /// The bytes of a token, wherever it stands.
    pub fn bytes(&self, token: &str) -> Vec<u8> {
        match self {
            Detokenizer::ByteLevel => {
                let bytes = token.chars().map(|c| byte_of().get(&c).copied());
                bytes.collect::<Option<Vec<u8>>>().unwrap_or_else(|| token.as_bytes().to_vec())
            }
            Detokenizer::Pieces { space, has_bytes, .. } => {
                let hex = token.strip_prefix("<0x").and_then(|rest| rest.strip_suffix('>'));
                let hex = hex.filter(|hex| *has_bytes && hex.len() == 2);
                match hex.and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
                    Some(byte) => vec![byte],
                    None => token.replace(space.as_str(), " ").into_bytes(),
                }
            }
        }
    }

    fn strip(&self) -> usize {
        match self {
            Detokenizer::ByteLevel => 0,
            Detokenizer::Pieces { strip, .. } => *strip,
        }
    }
}

/// The bytes of a text's tokens, one token after the other.
#[derive(Clone, Debug)]
pub struct Bytes {
    detokenizer: Detokenizer,
    /// Spaces that would still be none of the text.
    strip: usize,
}

impl Bytes {
    /// Those of a text that begins.
    pub fn new(detokenizer: Detokenizer) -> Bytes {
        Bytes { strip: detokenizer.strip(), detokenizer }
    }

    /// What a token adds to the text.
    pub fn push(&mut self, token: &str) -> Vec<u8> {
        let mut bytes = self.detokenizer.bytes(token);
        let spaces = bytes.iter().take(self.strip).take_while(|byte| **byte == b' ').count();
        bytes.drain(..spaces);
        self.strip = if bytes.is_empty() { self.strip - spaces } else { 0 };
        bytes
    }
}

/// The byte that each of GPT-2's characters stands for: those that can be seen stand for themselves,
/// the others follow from U+0100 on.
fn byte_of() -> &'static HashMap<char, u8> {
    static TABLE: OnceLock<HashMap<char, u8>> = OnceLock::new();
    TABLE.get_or_init(|| {
        let is_seen = |byte: &u8| matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
        let seen = (0..=u8::MAX).filter(is_seen).map(|byte| (char::from(byte), byte));
        let hidden = (0..=u8::MAX).filter(|byte| !is_seen(byte));
        let hidden = ('\u{100}'..).zip(hidden);
        seen.chain(hidden).collect()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn decoders_are_known_or_refused() {
        let check = |decoder: Value, right: Option<Detokenizer>| {
            assert_eq!(Detokenizer::read(&decoder).ok(), right, "{decoder}");
        };
        let pieces = |has_bytes, strip| {
            let space = "\u{2581}".to_owned();
            Some(Detokenizer::Pieces { space, has_bytes, strip })
        };
        let replace = json!({"type": "Replace", "pattern": {"String": "\u{2581}"}, "content": " "});
        let strip = json!({"type": "Strip", "content": " ", "start": 1, "stop": 0});
        let steps = json!([replace, {"type": "ByteFallback"}, {"type": "Fuse"}, strip]);
        check(json!({"type": "ByteLevel"}), Some(Detokenizer::ByteLevel));
        check(json!({"type": "Sequence", "decoders": steps}), pieces(true, 1));
        let metaspace = |scheme: &str| json!({"type": "Metaspace", "replacement": "\u{2581}", "prepend_scheme": scheme});
        check(metaspace("always"), pieces(false, 1));
        check(metaspace("never"), pieces(false, 0));
        check(json!({"type": "WordPiece", "prefix": "##"}), None);
        check(Value::Null, None);
        check(json!({"type": "Fuse"}), None);
    }

    #[test]
    fn every_byte_has_a_character() {
        assert_eq!(byte_of().len(), 256);
        assert_eq!(byte_of()[&'\u{120}'], b' ');
        assert_eq!(byte_of()[&'\u{10a}'], b'\n');
        let mut bytes =
            Bytes::new(Detokenizer::Pieces { space: "_".to_owned(), has_bytes: true, strip: 1 });
        assert_eq!(bytes.push(""), b"");
        assert_eq!(bytes.push("__a_"), b" a ");
        assert_eq!(bytes.push("_<0x41>"), b" <0x41>");
        assert_eq!(bytes.push("<0x41>"), b"A");
    }
}
