//! A pull scanner over JSON text: no tree, no copy, no recursion, errors with a byte offset.
//!
//! A tensor of a megabyte must not become a tree of forty, integers must stay exact over 2^53 and
//! floats must be rounded once, straight to their own precision. So numbers are handed out as
//! text, and values that are not wanted yet are skipped and found again by their [`Scanner::skip`]
//! slice.

use std::borrow::Cow;
use thiserror::Error;

/// Deepest nesting of arrays and objects that is read.
pub const MAX_DEPTH: usize = 64;

/// Longest key, name or word that is read. A client that sends a longer one means harm: what is
/// owned, quoted and logged of a request is bounded by it.
pub const MAX_STRING_BYTES: usize = 1 << 10;

/// Most bytes of text that stand for one byte of a string: `\u0001`.
const ESCAPE_BYTES: usize = 6;

/// Text that is not JSON, or not the JSON that was expected.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("byte {offset}: {what}")]
pub struct JsonError {
    /// Offset into the text.
    pub offset: usize,
    /// What was expected there.
    pub what: &'static str,
}

/// A position in JSON text.
#[derive(Clone, Debug)]
pub struct Scanner<'a> {
    text: &'a [u8],
    at: usize,
}

impl<'a> Scanner<'a> {
    /// Starts at the first byte of `text`, which need not be UTF-8.
    pub fn new(text: &'a [u8]) -> Scanner<'a> {
        Scanner { text, at: 0 }
    }

    /// The next byte that is not white space.
    pub fn peek(&mut self) -> Option<u8> {
        while let Some(b' ' | b'\n' | b'\r' | b'\t') = self.text.get(self.at) {
            self.at += 1;
        }
        self.text.get(self.at).copied()
    }

    /// An error at the current position.
    pub fn error(&self, what: &'static str) -> JsonError {
        JsonError { offset: self.at, what }
    }

    /// Takes `byte` if it is next.
    pub fn take(&mut self, byte: u8) -> bool {
        let found = self.peek() == Some(byte);
        self.at += usize::from(found);
        found
    }

    /// Checks that nothing but white space is left.
    pub fn end(&mut self) -> Result<(), JsonError> {
        match self.peek() {
            None => Ok(()),
            Some(_) => Err(self.error("expected the end of the document")),
        }
    }

    /// Reads an object; `member` is called with each key and must consume its value. A member that
    /// is `null` is one that was left out: many clients write those that they have no value for so.
    pub fn object<E: From<JsonError>>(
        &mut self,
        mut member: impl FnMut(&mut Scanner<'a>, &str) -> Result<(), E>,
    ) -> Result<(), E> {
        if !self.take(b'{') {
            return Err(self.error("expected an object").into());
        }
        if self.take(b'}') {
            return Ok(());
        }
        loop {
            let key = self.string()?;
            if !self.take(b':') {
                return Err(self.error("expected ':'").into());
            }
            match self.peek() {
                Some(b'n') => drop(self.literal()?),
                _ => member(self, &key)?,
            }
            if self.take(b'}') {
                return Ok(());
            }
            if !self.take(b',') {
                return Err(self.error("expected ',' or '}'").into());
            }
        }
    }

    /// Reads an array; `element` is called with each index and must consume the element.
    pub fn array<E: From<JsonError>>(
        &mut self,
        mut element: impl FnMut(&mut Scanner<'a>, usize) -> Result<(), E>,
    ) -> Result<(), E> {
        if !self.take(b'[') {
            return Err(self.error("expected an array").into());
        }
        if self.take(b']') {
            return Ok(());
        }
        let mut index = 0;
        loop {
            element(self, index)?;
            index += 1;
            if self.take(b']') {
                return Ok(());
            }
            if !self.take(b',') {
                return Err(self.error("expected ',' or ']'").into());
            }
        }
    }

    /// Reads a string of at most [`MAX_STRING_BYTES`].
    pub fn string(&mut self) -> Result<Cow<'a, str>, JsonError> {
        let (text, offset) = self.quoted()?;
        if text.len() <= ESCAPE_BYTES * MAX_STRING_BYTES {
            let decoded = decode(text);
            if decoded.len() <= MAX_STRING_BYTES {
                return Ok(decoded);
            }
        }
        Err(JsonError { offset, what: "the string is longer than 1024 bytes" })
    }

    /// Reads a string of any length; `reserve` is asked first with the bytes that it may take.
    pub fn long_string<E: From<JsonError>>(
        &mut self,
        reserve: impl FnOnce(usize) -> Result<(), E>,
    ) -> Result<Cow<'a, str>, E> {
        let (text, _) = self.quoted()?;
        reserve(text.len())?;
        Ok(decode(text))
    }

    /// Checks a string and hands out the text between its quotes, escapes and all, and where it is.
    fn quoted(&mut self) -> Result<(&'a str, usize), JsonError> {
        if self.peek() != Some(b'"') {
            return Err(self.error("expected a string"));
        }
        let start = self.at;
        self.pass_string()?;
        let text = std::str::from_utf8(&self.text[start + 1..self.at - 1]);
        Ok((text.map_err(|_| JsonError { offset: start, what: INVALID_STRING })?, start))
    }

    /// Reads a number, as the text that stands for it.
    pub fn number(&mut self) -> Result<&'a str, JsonError> {
        self.peek();
        let start = self.at;
        self.at += usize::from(self.text.get(self.at) == Some(&b'-'));
        match self.text.get(self.at) {
            Some(b'0') => self.at += 1,
            Some(b'1'..=b'9') => self.digits()?,
            _ => return Err(self.error("expected a number")),
        }
        if self.text.get(self.at) == Some(&b'.') {
            self.at += 1;
            self.digits()?;
        }
        if let Some(b'e' | b'E') = self.text.get(self.at) {
            self.at += 1;
            self.at += usize::from(matches!(self.text.get(self.at), Some(b'+' | b'-')));
            self.digits()?;
        }
        std::str::from_utf8(&self.text[start..self.at])
            .map_err(|_| JsonError { offset: start, what: "expected a number" })
    }

    /// Reads `true`, `false` (as `Some`) or `null` (as `None`).
    pub fn literal(&mut self) -> Result<Option<bool>, JsonError> {
        self.peek();
        for (word, value) in [("true", Some(true)), ("false", Some(false)), ("null", None)] {
            if self.text[self.at..].starts_with(word.as_bytes()) {
                self.at += word.len();
                return Ok(value);
            }
        }
        Err(self.error("expected a value"))
    }

    /// Checks one value of any kind and hands out its text.
    pub fn skip(&mut self) -> Result<&'a [u8], JsonError> {
        self.peek();
        let start = self.at;
        // One bit per open bracket: set for an object.
        let mut open: u64 = 0;
        let mut depth = 0;
        loop {
            match self.peek() {
                Some(bracket @ (b'[' | b'{')) => {
                    self.at += 1;
                    let object = bracket == b'{';
                    if !self.take(if object { b'}' } else { b']' }) {
                        if depth == MAX_DEPTH {
                            return Err(self.error("nested too deeply"));
                        }
                        open = open << 1 | u64::from(object);
                        depth += 1;
                        if object {
                            self.key()?;
                        }
                        continue;
                    }
                }
                Some(b'"') => {
                    self.quoted()?;
                }
                Some(b'-' | b'0'..=b'9') => {
                    self.number()?;
                }
                _ => {
                    self.literal()?;
                }
            }
            while depth > 0 && self.take(if open & 1 == 1 { b'}' } else { b']' }) {
                open >>= 1;
                depth -= 1;
            }
            if depth == 0 {
                return Ok(&self.text[start..self.at]);
            }
            if !self.take(b',') {
                return Err(self.error("expected ',' or a closing bracket"));
            }
            if open & 1 == 1 {
                self.key()?;
            }
        }
    }

    fn key(&mut self) -> Result<(), JsonError> {
        self.quoted()?;
        if self.take(b':') { Ok(()) } else { Err(self.error("expected ':'")) }
    }

    fn digits(&mut self) -> Result<(), JsonError> {
        let start = self.at;
        while let Some(b'0'..=b'9') = self.text.get(self.at) {
            self.at += 1;
        }
        if self.at == start { Err(self.error("expected a digit")) } else { Ok(()) }
    }

    /// Moves past a string, whose escapes are checked and whose bytes may be no UTF-8.
    fn pass_string(&mut self) -> Result<(), JsonError> {
        let start = self.at;
        self.at += 1;
        loop {
            match self.text.get(self.at) {
                Some(b'"') => {
                    self.at += 1;
                    return Ok(());
                }
                Some(b'\\') => {
                    let (_, bytes) = escape(&self.text[self.at..])
                        .ok_or(JsonError { offset: start, what: INVALID_STRING })?;
                    self.at += bytes;
                }
                Some(0..0x20) => return Err(self.error("control character in a string")),
                Some(_) => self.at += 1,
                None => return Err(self.error("the string does not end")),
            }
        }
    }
}

/// A string with a wrong escape, or with bytes that are no UTF-8.
const INVALID_STRING: &str = "the string is not valid";

/// The character of the escape that `text` begins with, and the bytes of the escape, both halves of
/// a surrogate pair; `None` for what is no escape.
fn escape(text: &[u8]) -> Option<(char, usize)> {
    let short = |c| Some((c, 2));
    match text.get(1)? {
        b'"' => short('"'),
        b'\\' => short('\\'),
        b'/' => short('/'),
        b'b' => short('\u{8}'),
        b'f' => short('\u{c}'),
        b'n' => short('\n'),
        b'r' => short('\r'),
        b't' => short('\t'),
        b'u' => match code_unit(text)? {
            high @ 0xd800..0xdc00 => match code_unit(text.get(6..)?)? {
                low @ 0xdc00..0xe000 => {
                    let c = 0x1_0000 + ((high - 0xd800) << 10 | (low - 0xdc00));
                    char::from_u32(c).map(|c| (c, 12))
                }
                _ => None,
            },
            unit => char::from_u32(unit).map(|c| (c, 6)),
        },
        _ => None,
    }
}

/// The UTF-16 unit of an escape such as `\u00e9` that `text` begins with.
fn code_unit(text: &[u8]) -> Option<u32> {
    let mut digits = text.strip_prefix(b"\\u")?.get(..4)?.iter();
    digits.try_fold(0, |unit, digit| Some(unit << 4 | char::from(*digit).to_digit(16)?))
}

/// Calls `put` with the parts of what a checked string stands for.
fn unescape(mut text: &str, mut put: impl FnMut(&str)) {
    while let Some(at) = text.find('\\') {
        put(&text[..at]);
        let (c, bytes) = escape(&text.as_bytes()[at..]).expect("the string was checked");
        put(c.encode_utf8(&mut [0; 4]));
        text = &text[at + bytes..];
    }
    put(text);
}

/// What a checked string stands for: a copy of its length only where it holds escapes.
fn decode(text: &str) -> Cow<'_, str> {
    if !text.contains('\\') {
        return Cow::Borrowed(text);
    }
    let mut bytes = 0;
    unescape(text, |part| bytes += part.len());
    let mut decoded = String::with_capacity(bytes);
    unescape(text, |part| decoded.push_str(part));
    Cow::Owned(decoded)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn skips(text: &[u8]) -> bool {
        let mut scanner = Scanner::new(text);
        scanner.skip().is_ok() && scanner.end().is_ok()
    }

    #[test]
    fn skip_agrees_with_serde_json() {
        let check = |text: &str| {
            let expected = serde_json::from_str::<serde_json::Value>(text).is_ok();
            assert_eq!(skips(text.as_bytes()), expected, "{text}");
        };
        for text in [
            "",
            " ",
            "1",
            "-",
            "-0",
            "01",
            "1.",
            "1.5e",
            "1e+5",
            "[]",
            "[ ]",
            "{}",
            "{ }",
            "[1,]",
            "[,]",
            "[1 2]",
            "{\"a\":1}",
            "{\"a\"}",
            "{\"a\":}",
            "{\"a\":1,}",
            "{1:2}",
            "[[[]]]",
            "[[[]]",
            "]",
            "nul",
            "null",
            "[true,false,null]",
            "\"\\u00e9\"",
            "\"\\x\"",
            "\"a",
            "\"\\",
            "{\"a\":{\"b\":[1,{\"c\":\"d\"}]},\"e\":[]}",
            "{\"a\":[}",
            "[{]}",
            "1 1",
            "\"\\ud800\"",
            "[\"\\u12\"]",
            "\"\\ud83d\\ude00\"",
            "\"\\ud83d\\u0041\"",
            "\"\\ud83d\"",
            "\"\\udc00\"",
            "\"\\u00g0\"",
            "\"\\u+123\"",
            "\"\\\"",
        ] {
            check(text);
        }
    }

    /// A request whose input was called 16 MiB of control characters took 308 MiB: the name was
    /// owned, and the error that quoted it was quoted again.
    #[test]
    fn strings_are_bounded_before_they_are_owned() {
        let check = |text: String, expected: Result<usize, &str>| {
            let mut scanner = Scanner::new(text.as_bytes());
            let read = scanner.string().map(|text| text.len()).map_err(|error| error.what);
            assert_eq!(read, expected);
            let mut scanner = Scanner::new(text.as_bytes());
            assert_eq!(scanner.skip().map(<[u8]>::len), Ok(text.len()));
        };
        let quoted = |piece: &str, count: usize| format!("\"{}\"", piece.repeat(count));
        let long = "the string is longer than 1024 bytes";
        check(quoted("a", 1024), Ok(1024));
        check(quoted("a", 1025), Err(long));
        check(quoted("\\u0001", 1024), Ok(1024));
        check(quoted("\\u0001", 1025), Err(long));
        check(quoted("\\u0001", 1 << 20), Err(long));
        check(quoted("\\ud83d\\ude00", 256), Ok(1024));
        check(quoted("\\ud83d\\ude00", 257), Err(long));
        let text = quoted("\\n", 2000);
        let mut asked = 0;
        let reserve = |bytes| {
            asked = bytes;
            Ok::<_, JsonError>(())
        };
        assert_eq!(Scanner::new(text.as_bytes()).long_string(reserve).unwrap().len(), 2000);
        assert_eq!(asked, 4000);
    }

    #[test]
    fn depth_is_bounded() {
        let nest = |depth: usize| [vec![b'['; depth], vec![b']'; depth]].concat();
        assert!(skips(&nest(MAX_DEPTH)));
        assert!(!skips(&nest(MAX_DEPTH + 2)));
        assert!(!skips(&vec![b'['; 1 << 20]));
    }

    proptest! {
        #[test]
        fn strings_agree_with_serde_json(text in "\"([a\u{e9}\"/bfnrtuU0-9d-f]|\\\\[\"bu\\\\]|\\\\ud[8c]3d){0,8}\"") {
            let expected = serde_json::from_str::<String>(&text).ok();
            let mut scanner = Scanner::new(text.as_bytes());
            let read = scanner.string().ok().map(Cow::into_owned);
            prop_assert_eq!(read.filter(|_| scanner.end().is_ok()), expected);
        }

        #[test]
        fn skip_agrees_on_any_text(text in "[\\[\\]{}:,\"a1\\\\ .eE+tn-]{0,24}") {
            let expected = serde_json::from_str::<serde_json::Value>(&text);
            // serde_json alone refuses numbers beyond f64.
            if !expected.as_ref().is_err_and(|e| e.to_string().contains("out of range")) {
                prop_assert_eq!(skips(text.as_bytes()), expected.is_ok(), "{}", text);
            }
        }

        #[test]
        fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            skips(&bytes);
        }
    }
}
