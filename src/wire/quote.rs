//! What of a client's text is worth repeating to it, and to the log.

/// Longest method that is repeated.
const MAX_METHOD: usize = 16;

/// Most characters of a quotation.
const MAX_CHARS: usize = 64;

/// Most bytes of an error's message.
const MAX_MESSAGE_BYTES: usize = 2 << 10;

/// Stands for what is left out.
const ELLIPSIS: &str = "...";

/// `text` in quotation marks, escaped, and shortened where it is long.
pub fn quote(text: &str) -> String {
    let mut rest = text.chars();
    let start: String = rest.by_ref().take(MAX_CHARS).collect();
    let more = if rest.next().is_some() { ELLIPSIS } else { "" };
    format!("{start:?}{more}")
}

/// The same for bytes that should be text: what is none is replaced.
pub fn quote_bytes(bytes: &[u8]) -> String {
    // No character has more than four bytes.
    let start = &bytes[..bytes.len().min(4 * MAX_CHARS + 4)];
    quote(&String::from_utf8_lossy(start))
}

/// A method's name, which may be any word, where it is no longer than those there are.
pub fn method_name(method: &str) -> &str {
    match method {
        name if name.len() <= MAX_METHOD => name,
        _ => "this method",
    }
}

/// A message in one line of bounded length and of characters that JSON takes as they are, but for
/// quotation marks and backslashes: whatever is quoted in it, an answer has a few KiB.
pub fn one_line(message: &str) -> String {
    let mut line = String::with_capacity(message.len().min(MAX_MESSAGE_BYTES));
    for c in message.chars() {
        if line.len() > MAX_MESSAGE_BYTES {
            line.push_str(ELLIPSIS);
            break;
        }
        match c {
            // Our errors put what to do on a second line.
            '\n' => line.push_str("; "),
            c if c.is_control() => line.extend(c.escape_default()),
            c => line.push(c),
        }
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotations_are_short_and_escaped() {
        let check = |text: &str, expected: &str| {
            assert_eq!(quote(text), expected);
            assert_eq!(quote_bytes(text.as_bytes()), expected);
        };
        check("a \"b\"\n", r#""a \"b\"\n""#);
        check(&"\u{e9}".repeat(64), &format!("{:?}", "\u{e9}".repeat(64)));
        check(&"\u{1f600}".repeat(1 << 20), &format!("{:?}...", "\u{1f600}".repeat(64)));
        assert_eq!(quote_bytes(b"a\xffb"), "\"a\u{fffd}b\"");
        let longest = quote(&"\u{10ffff}".repeat(1 << 20));
        assert!(longest.len() < 1024, "{}", longest.len());
    }

    #[test]
    fn messages_are_one_line_of_bounded_length() {
        assert_eq!(one_line("what\nwhat to do"), "what; what to do");
        assert_eq!(one_line("a\u{1}b\u{7f}\u{85}"), r"a\u{1}b\u{7f}\u{85}");
        let long = one_line(&"\u{1}\"".repeat(1 << 20));
        assert!(long.ends_with(ELLIPSIS) && long.len() < MAX_MESSAGE_BYTES + 16);
        assert!(serde_json::to_string(&long).unwrap().len() < 2 * MAX_MESSAGE_BYTES + 32);
    }
}
