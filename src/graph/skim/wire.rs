//! Protobuf's wire format, read from a file by small reads.

use super::SkimError;
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// Bytes of numbers that are read at once.
const PIECE_BYTES: u64 = 64 << 10;

/// A file of nested protobuf messages.
pub struct WireFile {
    file: File,
    path: PathBuf,
    length: u64,
}

/// One field of a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Field {
    pub number: u64,
    pub value: Value,
    /// Where it stands in the file, tag included.
    pub whole: Range<u64>,
}

/// A field's value, or where it lies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// A varint.
    Number(u64),
    /// Length-delimited bytes, by their place in the file.
    Bytes(Range<u64>),
    /// A fixed 32- or 64-bit value.
    Fixed,
}

/// Most fields of one message: far above any real graph.
const FIELDS_LIMIT: usize = 1 << 20;

/// Longest name, op type or path.
const TEXT_LIMIT_BYTES: u64 = 64 << 10;

/// Bytes of a tag and a length, or of a tag and a number.
const HEAD_BYTES: usize = 20;

impl WireFile {
    /// Opens `path`; nothing is read yet.
    pub fn open(path: &Path) -> Result<WireFile, SkimError> {
        let io = |error| SkimError::Io { path: path.to_path_buf(), error };
        let file = File::open(path).map_err(io)?;
        let length = file.metadata().map_err(io)?.len();
        Ok(WireFile { file, path: path.to_path_buf(), length })
    }

    pub fn len(&self) -> u64 {
        self.length
    }

    /// An error at `offset`.
    pub fn malformed(&self, offset: u64, what: String) -> SkimError {
        SkimError::Malformed { path: self.path.clone(), offset, what }
    }

    /// The fields of the message that lies at `range`. Values are not read.
    pub fn fields(&self, range: Range<u64>) -> Result<Vec<Field>, SkimError> {
        let mut fields = vec![];
        let mut at = range.start;
        let mut buffered = Buffered::default();
        while at < range.end {
            let head = buffered.get(self, at, range.end)?;
            let field = parse_field(head, at, range.end).map_err(|w| self.malformed(at, w))?;
            at = field.whole.end;
            fields.push(field);
            if fields.len() > FIELDS_LIMIT {
                return Err(self.malformed(at, "a message of too many fields".to_string()));
            }
        }
        Ok(fields)
    }

    /// The bytes at `range`, which the caller has bounded.
    pub fn bytes(&self, range: Range<u64>) -> Result<Vec<u8>, SkimError> {
        let mut bytes = vec![0; (range.end - range.start) as usize];
        self.read(&mut bytes, range.start)?;
        Ok(bytes)
    }

    /// A short text.
    pub fn text(&self, range: Range<u64>) -> Result<String, SkimError> {
        if range.end - range.start > TEXT_LIMIT_BYTES {
            return Err(self.malformed(range.start, "a name of absurd length".to_string()));
        }
        let start = range.start;
        String::from_utf8(self.bytes(range)?)
            .map_err(|_| self.malformed(start, "a name that is not UTF-8".to_string()))
    }

    /// Packed varints, at most `limit` of them.
    pub fn packed_numbers(&self, range: Range<u64>, limit: usize) -> Result<Vec<u64>, SkimError> {
        let start = range.start;
        if range.end - range.start > (limit * 10) as u64 {
            return Err(self.malformed(start, "too many numbers".to_string()));
        }
        let bytes = self.bytes(range)?;
        let (mut numbers, mut rest) = (vec![], &bytes[..]);
        while !rest.is_empty() {
            let (number, used) = varint(rest).map_err(|what| self.malformed(start, what))?;
            numbers.push(number);
            rest = &rest[used..];
        }
        Ok(numbers)
    }

    /// How many varints end in `range`, which is read piece by piece.
    pub fn count_numbers(&self, range: Range<u64>) -> Result<u64, SkimError> {
        let (mut count, mut at) = (0, range.start);
        let mut piece = vec![0; PIECE_BYTES.min(range.end - range.start) as usize];
        while at < range.end {
            piece.truncate((range.end - at).min(PIECE_BYTES) as usize);
            self.read(&mut piece, at)?;
            count += piece.iter().filter(|byte| **byte & 0x80 == 0).count() as u64;
            at += piece.len() as u64;
        }
        if piece.last().is_some_and(|byte| byte & 0x80 != 0) {
            return Err(self.malformed(at, "a number that does not end".to_string()));
        }
        Ok(count)
    }

    fn read(&self, out: &mut [u8], offset: u64) -> Result<(), SkimError> {
        self.file
            .read_exact_at(out, offset)
            .map_err(|error| SkimError::Io { path: self.path.clone(), error })
    }
}

/// A window of the file for reading field heads: many small fields cost one read.
#[derive(Default)]
struct Buffered {
    bytes: Vec<u8>,
    start: u64,
}

impl Buffered {
    const BYTES: u64 = 4096;

    fn get(&mut self, wire: &WireFile, at: u64, end: u64) -> Result<&[u8], SkimError> {
        let held = self.start..self.start + self.bytes.len() as u64;
        let wanted = (at + HEAD_BYTES as u64).min(end);
        if at < held.start || wanted > held.end {
            let to = (at + Buffered::BYTES).min(end);
            self.bytes.resize((to - at) as usize, 0);
            wire.read(&mut self.bytes, at)?;
            self.start = at;
        }
        Ok(&self.bytes[(at - self.start) as usize..])
    }
}

/// The field whose head is at the start of `head`, at offset `at` of a message that ends at
/// `end`.
fn parse_field(head: &[u8], at: u64, end: u64) -> Result<Field, String> {
    let (tag, tag_bytes) = varint(head)?;
    let rest = &head[tag_bytes..];
    let body = at + tag_bytes as u64;
    let (value, next) = match tag & 7 {
        0 => {
            let (number, used) = varint(rest)?;
            (Value::Number(number), body.checked_add(used as u64))
        }
        1 => (Value::Fixed, body.checked_add(8)),
        2 => {
            let (length, used) = varint(rest)?;
            let start = body + used as u64;
            let stop = start.checked_add(length);
            (Value::Bytes(start..stop.unwrap_or(start)), stop)
        }
        5 => (Value::Fixed, body.checked_add(4)),
        kind => return Err(format!("wire type {kind}")),
    };
    match next {
        _ if tag >> 3 == 0 => Err("field number 0".to_string()),
        Some(next) if next <= end => Ok(Field { number: tag >> 3, value, whole: at..next }),
        _ => Err("a field that runs past its message's end".to_string()),
    }
}

/// A varint and how many bytes it takes.
fn varint(bytes: &[u8]) -> Result<(u64, usize), String> {
    let mut number = 0u64;
    for (index, byte) in bytes.iter().take(10).enumerate() {
        let part = u64::from(byte & 0x7f);
        if index == 9 && part > 1 {
            break;
        }
        number |= part << (7 * index);
        if byte & 0x80 == 0 {
            return Ok((number, index + 1));
        }
    }
    Err("a number that does not end".to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::io::Write;

    fn wire_file(content: &[u8]) -> (tempfile::NamedTempFile, WireFile) {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(content).unwrap();
        let wire = WireFile::open(file.path()).unwrap();
        (file, wire)
    }

    #[test]
    fn fields_are_found_by_their_places() {
        let content = [0x08, 0x96, 0x01, 0x12, 0x03, b'a', b'b', b'c', 0x1d, 1, 2, 3, 4];
        let (_file, wire) = wire_file(&content);
        let fields = wire.fields(0..wire.len()).unwrap();
        let values: Vec<(u64, Value)> = fields.into_iter().map(|f| (f.number, f.value)).collect();
        let expected = vec![(1, Value::Number(150)), (2, Value::Bytes(5..8)), (3, Value::Fixed)];
        assert_eq!(values, expected);
        assert_eq!(wire.text(5..8).unwrap(), "abc");
    }

    #[test]
    fn lies_about_length_are_refused_with_their_offset() {
        for content in [&[0x12, 0x05, 1][..], &[0x08, 0xff], &[0x0b], &[0x00, 0x01]] {
            let (_file, wire) = wire_file(content);
            let error = wire.fields(0..wire.len()).unwrap_err();
            assert!(matches!(error, SkimError::Malformed { offset: 0, .. }), "{error}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_panic(content in prop::collection::vec(any::<u8>(), 0..300)) {
            let (_file, wire) = wire_file(&content);
            if let Ok(fields) = wire.fields(0..wire.len()) {
                prop_assert_eq!(fields.iter().map(|f| f.whole.end - f.whole.start).sum::<u64>(), wire.len());
            }
        }
    }
}
