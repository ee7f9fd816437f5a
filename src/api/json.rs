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

    /// Reads an object; `member` is called with each key and must consume its value.
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
            member(self, &key)?;
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

    /// Reads a string.
    pub fn string(&mut self) -> Result<Cow<'a, str>, JsonError> {
        if self.peek() != Some(b'"') {
            return Err(self.error("expected a string"));
        }
        let start = self.at;
        let escaped = self.pass_string()?;
        let quoted = &self.text[start..self.at];
        let wrong = JsonError { offset: start, what: "the string is not valid" };
        if escaped {
            return serde_json::from_slice(quoted).map(Cow::Owned).map_err(|_| wrong);
        }
        std::str::from_utf8(&quoted[1..quoted.len() - 1]).map(Cow::Borrowed).map_err(|_| wrong)
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
                    self.string()?;
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
        self.string()?;
        if self.take(b':') { Ok(()) } else { Err(self.error("expected ':'")) }
    }

    fn digits(&mut self) -> Result<(), JsonError> {
        let start = self.at;
        while let Some(b'0'..=b'9') = self.text.get(self.at) {
            self.at += 1;
        }
        if self.at == start { Err(self.error("expected a digit")) } else { Ok(()) }
    }

    /// Moves past a string; says whether it holds escapes.
    fn pass_string(&mut self) -> Result<bool, JsonError> {
        let mut escaped = false;
        self.at += 1;
        loop {
            match self.text.get(self.at) {
                Some(b'"') => {
                    self.at += 1;
                    return Ok(escaped);
                }
                Some(b'\\') => {
                    escaped = true;
                    self.at += 2;
                }
                Some(0..0x20) => return Err(self.error("control character in a string")),
                Some(_) => self.at += 1,
                None => {
                    self.at = self.text.len();
                    return Err(self.error("the string does not end"));
                }
            }
        }
    }
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
        ] {
            check(text);
        }
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
