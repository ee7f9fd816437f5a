//! JSON as Python writes it: with `NaN` and `Infinity`, which are no numbers of JSON.

use serde_json::Value;
use std::borrow::Cow;

/// What Python writes for numbers that JSON has not; the longer before what it begins with.
const STRANGE: [&[u8]; 3] = [b"-Infinity", b"Infinity", b"NaN"];

/// Reads JSON in which they may stand: they become texts, so that whoever wants a number there
/// refuses them, and keys that nobody looks at do no harm.
///
/// # Errors
/// What else is no JSON.
pub fn read(text: &[u8]) -> serde_json::Result<Value> {
    serde_json::from_slice(&quoted(text))
}

fn quoted(text: &[u8]) -> Cow<'_, [u8]> {
    let mut quoted = vec![];
    let (mut copied, mut at, mut is_text) = (0, 0, false);
    while let Some(byte) = text.get(at) {
        let strange = STRANGE.iter().find(|strange| !is_text && text[at..].starts_with(strange));
        if let Some(strange) = strange {
            quoted.extend_from_slice(&text[copied..at]);
            quoted.extend([b"\"", *strange, b"\""].concat());
            at += strange.len();
            copied = at;
            continue;
        }
        match byte {
            b'"' => is_text = !is_text,
            b'\\' => at += 1,
            _ => {}
        }
        at += 1;
    }
    if copied == 0 {
        return Cow::Borrowed(text);
    }
    quoted.extend_from_slice(&text[copied..]);
    Cow::Owned(quoted)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn numbers_that_json_has_not_become_texts() {
        let text = br#"{"a": [NaN, -Infinity, 1], "Infinity\" NaN": Infinity, "b\\": NaN}"#;
        let right = json!({
            "a": ["NaN", "-Infinity", 1], "Infinity\" NaN": "Infinity", "b\\": "NaN",
        });
        assert_eq!(read(text).unwrap(), right);
        for text in [&b"NaNa"[..], b"\"NaN", b"\\", b"inf", b"{\"a\": 1, Infinity}"] {
            assert!(read(text).is_err(), "{}", text.escape_ascii());
        }
    }
}
