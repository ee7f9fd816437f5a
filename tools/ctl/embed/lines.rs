//! Texts from a file of lines, one at a time, whatever the file's length.

use super::STANDARD_INPUT;
use crate::client::ClientError;
use clap::ValueEnum;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

/// Longest line that is held; of a longer one the rest is passed over.
const MAX_LINE_BYTES: usize = 1 << 20;

/// Byte order mark, which some editors put before the first line.
const MARK: &[u8] = b"\xef\xbb\xbf";

/// What a line is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// The text itself.
    Text,
    /// A string, or an object whose "text" or "input" is one.
    Json,
}

impl Format {
    /// The usual one of a file of that name.
    pub fn of(path: &Path) -> Format {
        let is_json = path.extension().is_some_and(|e| e == "jsonl" || e == "ndjson");
        if is_json { Format::Json } else { Format::Text }
    }
}

/// One line of a file.
#[derive(Debug, PartialEq)]
pub struct Line {
    /// Counted from 1.
    pub number: u64,
    /// What its object calls it.
    pub id: Option<Value>,
    /// Its text, or what is wrong with it: words that follow the line's number.
    pub text: Result<String, String>,
}

/// How far a file was read, and a hash of all that stands before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    pub lines: u64,
    pub bytes: u64,
    pub hash: u64,
}

impl Place {
    /// The beginning of any file.
    pub const START: Place = Place { lines: 0, bytes: 0, hash: 0xcbf2_9ce4_8422_2325 };

    /// FNV-1a, which needs no crate.
    fn pass(&mut self, bytes: &[u8]) {
        self.bytes += bytes.len() as u64;
        for byte in bytes {
            self.hash = (self.hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }
}

/// A file's lines.
pub struct Lines {
    reader: BufReader<Box<dyn Read>>,
    path: PathBuf,
    format: Format,
    place: Place,
    /// The line that is read, without its end.
    line: Vec<u8>,
}

impl Lines {
    /// Opens a file, or standard input.
    ///
    /// # Errors
    ///
    /// [`ClientError::Usage`] with the path.
    pub fn open(path: &Path, format: Format) -> Result<Lines, ClientError> {
        let source: Box<dyn Read> = match path == Path::new(STANDARD_INPUT) {
            true => Box::new(io::stdin()),
            false => Box::new(File::open(path).map_err(|error| failed(path, &error))?),
        };
        let reader = BufReader::with_capacity(64 << 10, source);
        let (path, place, line) = (path.to_owned(), Place::START, Vec::new());
        Ok(Lines { reader, path, format, place, line })
    }

    /// How far it was read.
    pub fn place(&self) -> Place {
        self.place
    }

    /// Passes over what was read before; whether that is the same as it was.
    ///
    /// # Errors
    ///
    /// [`ClientError::Usage`] where it cannot be read.
    pub fn skip_to(&mut self, place: Place) -> Result<bool, ClientError> {
        while self.place.lines < place.lines && self.read()?.is_some() {}
        Ok(self.place == place)
    }

    /// The next line.
    ///
    /// # Errors
    ///
    /// [`ClientError::Usage`] where it cannot be read.
    pub fn line(&mut self) -> Result<Option<Line>, ClientError> {
        let Some(bytes) = self.read()? else { return Ok(None) };
        let number = self.place.lines;
        if bytes > MAX_LINE_BYTES as u64 {
            let text = Err(format!("has {bytes} bytes; {MAX_LINE_BYTES} are the limit"));
            return Ok(Some(Line { number, id: None, text }));
        }
        let mut line = self.line.as_slice();
        if number == 1 {
            line = line.strip_prefix(MARK).unwrap_or(line);
        }
        let (id, text) = match std::str::from_utf8(line) {
            Err(_) => (None, Err("is not UTF-8".to_owned())),
            Ok(line) => match self.format {
                Format::Text => (None, Ok(line.to_owned())),
                Format::Json => of_json(line),
            },
        };
        let text = text.and_then(|text| match text.is_empty() {
            true => Err("is empty".to_owned()),
            false => Ok(text),
        });
        Ok(Some(Line { number, id, text }))
    }

    /// Reads a line into `line`, as far as it is held; returns its bytes. The end of a line is LF or
    /// CR LF.
    fn read(&mut self) -> Result<Option<u64>, ClientError> {
        self.line.clear();
        let start = self.place.bytes;
        let is_ended = loop {
            let piece = self.reader.fill_buf().map_err(|error| failed(&self.path, &error))?;
            if piece.is_empty() {
                break false;
            }
            let end = piece.iter().position(|byte| *byte == b'\n');
            let piece = &piece[..end.map_or(piece.len(), |end| end + 1)];
            let room = MAX_LINE_BYTES + 2 - self.line.len();
            self.line.extend(&piece[..piece.len().min(room)]);
            self.place.pass(piece);
            let count = piece.len();
            self.reader.consume(count);
            if end.is_some() {
                break true;
            }
        };
        let mut bytes = self.place.bytes - start;
        if bytes == 0 {
            return Ok(None);
        }
        self.place.lines += 1;
        for end in [b'\n', b'\r'].iter().filter(|_| is_ended) {
            if self.line.last() == Some(end) {
                self.line.pop();
                bytes -= 1;
            }
        }
        Ok(Some(bytes))
    }
}

fn failed(path: &Path, error: &io::Error) -> ClientError {
    ClientError::Usage(format!("{}: {error}", path.display()))
}

/// The id and the text of a line of JSON.
fn of_json(line: &str) -> (Option<Value>, Result<String, String>) {
    if line.trim().is_empty() {
        return (None, Err("is empty".to_owned()));
    }
    let mut object = match serde_json::from_str(line) {
        Ok(Value::String(text)) => return (None, Ok(text)),
        Ok(Value::Object(object)) => object,
        Ok(_) => return (None, Err("is neither a string nor an object".to_owned())),
        Err(error) => return (None, Err(format!("is not JSON: {error}"))),
    };
    let id = object.remove("id");
    let text = match (object.remove("text"), object.remove("input")) {
        (Some(Value::String(text)), None) | (None, Some(Value::String(text))) => Ok(text),
        (None, None) => Err("has neither \"text\" nor \"input\"".to_owned()),
        (Some(_), Some(_)) => Err("has both \"text\" and \"input\"".to_owned()),
        _ => Err("has a text that is no string".to_owned()),
    };
    (id, text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn lines(bytes: &[u8], format: Format) -> Lines {
        let reader: Box<dyn Read> = Box::new(io::Cursor::new(bytes.to_vec()));
        let reader = BufReader::with_capacity(7, reader);
        Lines { reader, path: "t".into(), format, place: Place::START, line: Vec::new() }
    }

    fn all(bytes: &[u8], format: Format) -> Vec<(Option<Value>, Result<String, String>)> {
        let mut lines = lines(bytes, format);
        let mut all = Vec::new();
        while let Some(line) = lines.line().unwrap() {
            assert_eq!(line.number, all.len() as u64 + 1);
            all.push((line.id, line.text));
        }
        assert_eq!(lines.place().bytes, bytes.len() as u64);
        all
    }

    #[test]
    fn lines_end_as_editors_end_them() {
        let check = |bytes: &[u8], expected: &[&str]| {
            let texts: Vec<_> = all(bytes, Format::Text).into_iter().map(|line| line.1).collect();
            assert_eq!(texts.len(), expected.len(), "{texts:?}");
            for (text, expected) in texts.iter().zip(expected) {
                assert_eq!(text.as_ref().unwrap_or_else(|error| error), expected);
            }
        };
        check(b"", &[]);
        check(b"one two three\nfour", &["one two three", "four"]);
        check(b"one\r\ntwo\r\n", &["one", "two"]);
        check(b"\xef\xbb\xbfone\n\xef\xbb\xbftwo\n", &["one", "\u{feff}two"]);
        check(b"\none\n\n", &["is empty", "one", "is empty"]);
        check(b"one\n\xff\xfe\ntwo\n", &["one", "is not UTF-8", "two"]);
        check(b"end\r", &["end\r"]);
    }

    #[test]
    fn lines_of_json_are_strings_or_objects() {
        let check = |line: &str, id: Option<Value>, text: Result<&str, &str>| {
            let (found, said) = of_json(line);
            assert_eq!(found, id, "{line}");
            match (said, text) {
                (Ok(said), Ok(text)) => assert_eq!(said, text),
                (Err(said), Err(text)) => assert!(said.contains(text), "{said}"),
                (said, _) => panic!("{line}: {said:?}"),
            }
        };
        check("\"a\\nb\"", None, Ok("a\nb"));
        check(r#"{"text":"a","id":7,"more":[1]}"#, Some(json!(7)), Ok("a"));
        check(r#"{"input":"a","id":{"b":null}}"#, Some(json!({ "b": null })), Ok("a"));
        check(r#"{"input":"a","text":"b"}"#, None, Err("has both"));
        check(r#"{"id":"x"}"#, Some(json!("x")), Err("has neither"));
        check(r#"{"text":["a"]}"#, None, Err("no string"));
        check("[1]", None, Err("neither a string nor an object"));
        check("{\"text\":", None, Err("is not JSON"));
        check("  ", None, Err("is empty"));
    }

    #[test]
    fn what_is_too_long_is_passed_over() {
        for excess in [0, 1] {
            let long = "a".repeat(MAX_LINE_BYTES + excess);
            let mut lines = lines(format!("{long}\r\nb\n").as_bytes(), Format::Text);
            assert_eq!(lines.line().unwrap().unwrap().text.is_err(), excess > 0);
            assert_eq!(lines.line().unwrap().unwrap().text.as_deref(), Ok("b"));
            assert!(lines.line.capacity() < 3 << 20, "{} bytes are held", lines.line.capacity());
        }
    }

    #[test]
    fn a_place_is_found_again_in_what_begins_the_same() {
        let mut first = lines(b"a\nb\nc\n", Format::Text);
        (0..2).for_each(|_| drop(first.line().unwrap()));
        let place = first.place();
        let same = |bytes: &[u8]| lines(bytes, Format::Text).skip_to(place).unwrap();
        assert!(same(b"a\nb\nc\n") && same(b"a\nb\n") && same(b"a\nb\nd\ne\n"));
        assert!(!same(b"a\nB\nc\n") && !same(b"a\n") && !same(b"a\r\nb\n"));
        assert!(!same(b"a\nb"), "a line that had not ended may go on");
    }
}
