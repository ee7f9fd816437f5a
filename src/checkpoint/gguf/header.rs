//! What a GGUF file begins with: metadata and the places of tensors, up to their data. No length is
//! believed that the file has no bytes for, and no more is held than a vocabulary takes.

use super::ggml;
use super::keys::{Keys, Strings, Value};
use crate::checkpoint::file::open;
use crate::checkpoint::{CheckpointError, Tensor};
use crate::wire::quote::{quote, quote_bytes};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufReader, Read};
use std::path::Path;
use std::sync::Arc;

/// What the file begins with.
pub const MAGIC: &[u8; 4] = b"GGUF";

const MAX_KEYS: u64 = 1 << 16;
const MAX_TENSORS: u64 = 1 << 16;

/// Limit of a key's or a tensor's name.
const MAX_NAME_BYTES: u64 = 1 << 10;

/// Limit of a dimension count: GGML's.
const MAX_DIMENSIONS: u32 = 4;

/// How deep arrays may lie in each other.
const MAX_DEPTH: usize = 4;

/// Limit of what is held of all values: a vocabulary of 262,144 tokens with merges has some 12 MB.
const MAX_HELD_BYTES: u64 = 48 << 20;

/// Bytes to which data is aligned, unless the file says otherwise.
const ALIGNMENT: u64 = 32;

/// The key that says otherwise.
const ALIGNMENT_KEY: &str = "general.alignment";

/// What a file says of itself.
#[derive(Debug)]
pub struct Header {
    pub keys: Keys,
    /// By GGUF's names.
    pub tensors: BTreeMap<String, Tensor>,
}

impl Header {
    /// Reads the header of the file at `path`.
    ///
    /// # Errors
    /// It is no GGUF file of version 2 or 3, or is damaged.
    pub fn read(path: &Path) -> Result<Header, CheckpointError> {
        let (file, bytes) = open(path)?;
        let path: Arc<Path> = path.into();
        let file = BufReader::with_capacity(64 << 10, file);
        let mut reader = Reader { path: Arc::clone(&path), file, at: 0, bytes, held: 0 };
        reader.check_magic()?;
        let tensors = reader.count("the number of tensors", MAX_TENSORS)?;
        let keys = reader.count("the number of keys", MAX_KEYS)?;
        let mut header = Header { keys: Keys::new(Arc::clone(&path)), tensors: BTreeMap::new() };
        for _ in 0..keys {
            let key = reader.name("a key")?;
            let value = reader.value(&key)?;
            header.keys.insert(key, value)?;
        }
        let alignment = header.keys.number(ALIGNMENT_KEY)?.unwrap_or(ALIGNMENT);
        if !alignment.is_power_of_two() || alignment > 1 << 20 {
            let what = format!("it is {alignment}, expected a power of two");
            return Err(CheckpointError::key(&path, ALIGNMENT_KEY, what));
        }
        for _ in 0..tensors {
            let (name, tensor) = reader.tensor(alignment)?;
            if header.tensors.insert(name.clone(), tensor).is_some() {
                return Err(CheckpointError::tensor(&path, &name, "it is there twice"));
            }
        }
        // Alignments are far below what a file's length leaves to the end of u64.
        header.place(reader.at.next_multiple_of(alignment), bytes)?;
        Ok(header)
    }

    /// Makes offsets into the data, which begins at `data`, such into a file of `bytes`.
    fn place(&mut self, data: u64, bytes: u64) -> Result<(), CheckpointError> {
        let mut places = Vec::with_capacity(self.tensors.len());
        let data_bytes = bytes.saturating_sub(data);
        for (name, tensor) in &mut self.tensors {
            let end = tensor.offset.checked_add(tensor.bytes).filter(|end| *end <= data_bytes);
            if end.is_none() {
                let what = format!(
                    "its {} bytes at offset {} end beyond the file, which has {data_bytes} of data: \
                     it is cut short",
                    tensor.bytes, tensor.offset
                );
                return Err(CheckpointError::tensor(&tensor.file, name, what));
            }
            places.push((tensor.offset, tensor.bytes, name));
            tensor.offset += data;
        }
        places.sort_unstable();
        for pair in places.windows(2) {
            let [(first, bytes, before), (second, _, name)] = pair else { continue };
            if first + bytes > *second {
                let what = format!("it overlaps {} at offset {second}", quote(before));
                return Err(CheckpointError::tensor(self.keys.path(), name, what));
            }
        }
        Ok(())
    }
}

/// A file that is read from its beginning.
struct Reader {
    path: Arc<Path>,
    file: BufReader<File>,
    at: u64,
    bytes: u64,
    held: u64,
}

impl Reader {
    fn damaged(&self, what: impl Into<String>) -> CheckpointError {
        CheckpointError::damaged(&self.path, what)
    }

    fn check_magic(&mut self) -> Result<(), CheckpointError> {
        if self.bytes < 8 {
            let what = format!("has {} bytes, too short for a GGUF file", self.bytes);
            return Err(self.damaged(what));
        }
        let magic: [u8; 4] = self.array("the magic")?;
        if &magic != MAGIC {
            let is_old = [b"tjgg", b"fmgg", b"lmgg"].contains(&&magic);
            let what = match is_old {
                true => "is an old GGML file, of before GGUF".to_owned(),
                false => format!("is no GGUF file: it begins with {}", quote_bytes(&magic)),
            };
            let advice = match is_old {
                true => "download the model as GGUF, or convert it with llama.cpp's scripts",
                false => "name a GGUF file, a folder of Hugging Face or an ONNX model",
            };
            return Err(CheckpointError::file(&self.path, what, advice));
        }
        let version = self.u32("the version")?;
        let what = match version {
            2 | 3 => return Ok(()),
            _ if (1..=3).contains(&version.swap_bytes()) => {
                "is a GGUF file of a big-endian machine".to_owned()
            }
            _ => format!("is a GGUF file of version {version}, expected 2 or 3"),
        };
        Err(CheckpointError::file(&self.path, what, "download the model anew, in version 3"))
    }

    /// Fails unless the file has so many more bytes.
    fn need(&self, needed: u64, what: &str) -> Result<(), CheckpointError> {
        let left = self.bytes - self.at;
        match needed <= left {
            true => Ok(()),
            false => Err(self.damaged(format!(
                "ends too early: {what} at byte {} takes {needed} bytes, and {left} are left",
                self.at
            ))),
        }
    }

    fn exact(&mut self, buffer: &mut [u8], what: &str) -> Result<(), CheckpointError> {
        self.need(buffer.len() as u64, what)?;
        self.file.read_exact(buffer).map_err(CheckpointError::io(&self.path))?;
        self.at += buffer.len() as u64;
        Ok(())
    }

    fn array<const BYTES: usize>(&mut self, what: &str) -> Result<[u8; BYTES], CheckpointError> {
        let mut bytes = [0; BYTES];
        self.exact(&mut bytes, what)?;
        Ok(bytes)
    }

    fn u32(&mut self, what: &str) -> Result<u32, CheckpointError> {
        self.array(what).map(u32::from_le_bytes)
    }

    fn u64(&mut self, what: &str) -> Result<u64, CheckpointError> {
        self.array(what).map(u64::from_le_bytes)
    }

    fn count(&mut self, what: &str, limit: u64) -> Result<u64, CheckpointError> {
        let count = self.u64(what)?;
        match count <= limit {
            true => Ok(count),
            false => Err(self.damaged(format!("{what} is {count}, expected at most {limit}"))),
        }
    }

    /// The bytes of a text.
    fn bytes(&mut self, what: &str, limit: u64) -> Result<Vec<u8>, CheckpointError> {
        let length = self.u64(what)?;
        if length > limit {
            let at = self.at - 8;
            let what = format!(
                "{what} at byte {at} has a length of {length} bytes, expected at most {limit}"
            );
            return Err(self.damaged(what));
        }
        self.need(length, what)?;
        let mut text = vec![0; length as usize];
        self.exact(&mut text, what)?;
        Ok(text)
    }

    fn name(&mut self, what: &str) -> Result<String, CheckpointError> {
        let at = self.at;
        let bytes = self.bytes(what, MAX_NAME_BYTES)?;
        String::from_utf8(bytes).map_err(|error| {
            let found = quote_bytes(error.as_bytes());
            self.damaged(format!("{what} at byte {at} is not UTF-8: {found}"))
        })
    }

    /// Counts what is held.
    fn hold(&mut self, key: &str, bytes: u64) -> Result<(), CheckpointError> {
        self.held = self.held.saturating_add(bytes);
        match self.held <= MAX_HELD_BYTES {
            true => Ok(()),
            false => {
                let what =
                    format!("with it the metadata is too large, beyond {MAX_HELD_BYTES} bytes");
                Err(CheckpointError::key(&self.path, key, what))
            }
        }
    }

    fn value(&mut self, key: &str) -> Result<Value, CheckpointError> {
        let what = format!("the value of key {}", quote(key));
        match self.u32(&what)? {
            9 => self.values(key, &what),
            code => self.scalar(code, key, &what),
        }
    }

    fn scalar(&mut self, code: u32, key: &str, what: &str) -> Result<Value, CheckpointError> {
        let whole = |value| Ok(Value::Whole(value));
        match code {
            0 => whole(self.array(what).map(u8::from_le_bytes)?.into()),
            1 => whole(self.array(what).map(i8::from_le_bytes)?.into()),
            2 => whole(self.array(what).map(u16::from_le_bytes)?.into()),
            3 => whole(self.array(what).map(i16::from_le_bytes)?.into()),
            4 => whole(self.array(what).map(u32::from_le_bytes)?.into()),
            5 => whole(self.array(what).map(i32::from_le_bytes)?.into()),
            10 => whole(self.array(what).map(u64::from_le_bytes)?.into()),
            11 => whole(self.array(what).map(i64::from_le_bytes)?.into()),
            6 => self.array(what).map(|bytes| Value::Float(shortest(f32::from_le_bytes(bytes)))),
            12 => self.array(what).map(|bytes| Value::Float(f64::from_le_bytes(bytes))),
            7 => match self.array(what)? {
                [0] => Ok(Value::Flag(false)),
                [1] => Ok(Value::Flag(true)),
                [other] => {
                    let what = format!("it is {other}, expected a flag, 0 or 1");
                    Err(CheckpointError::key(&self.path, key, what))
                }
            },
            8 => {
                let text = self.bytes(what, MAX_HELD_BYTES)?;
                self.hold(key, text.len() as u64)?;
                Ok(Value::Text(String::from_utf8_lossy(&text).into_owned()))
            }
            other => Err(self.unknown_type(key, other)),
        }
    }

    fn unknown_type(&self, key: &str, code: u32) -> CheckpointError {
        CheckpointError::key(&self.path, key, format!("its value is of the unknown type {code}"))
    }

    fn values(&mut self, key: &str, what: &str) -> Result<Value, CheckpointError> {
        let (code, length) = (self.u32(what)?, self.u64(what)?);
        let Some(bytes) = least_bytes(code) else { return Err(self.unknown_type(key, code)) };
        let needed = length.checked_mul(bytes).filter(|needed| *needed <= self.bytes - self.at);
        if needed.is_none() {
            return Err(self.damaged(format!(
                "ends too early: {what} is an array of length {length}, and {} bytes are left",
                self.bytes - self.at
            )));
        }
        match code {
            0..=5 | 7 | 10 | 11 => {
                self.hold(key, length.saturating_mul(8))?;
                let mut values = Vec::with_capacity(length as usize);
                for _ in 0..length {
                    values.push(match self.scalar(code, key, what)? {
                        // Those of 64 bits without a sign are no sizes where they do not fit.
                        Value::Whole(value) => i64::try_from(value).unwrap_or(i64::MAX),
                        value => i64::from(value == Value::Flag(true)),
                    });
                }
                Ok(Value::Wholes(values))
            }
            6 | 12 => {
                self.hold(key, length.saturating_mul(4))?;
                let mut values = Vec::with_capacity(length as usize);
                for _ in 0..length {
                    values.push(match code {
                        6 => f32::from_le_bytes(self.array(what)?),
                        _ => f64::from_le_bytes(self.array(what)?) as f32,
                    });
                }
                Ok(Value::Floats(values))
            }
            8 => {
                let mut strings = Strings::default();
                for _ in 0..length {
                    let text = self.bytes(what, MAX_HELD_BYTES)?;
                    self.hold(key, text.len() as u64 + 4)?;
                    strings.push(&text);
                }
                Ok(Value::Strings(strings))
            }
            _ => {
                self.pass_over(key, what, length, 1)?;
                Ok(Value::Unread)
            }
        }
    }

    /// Moves past an array of arrays.
    fn pass_over(
        &mut self,
        key: &str,
        what: &str,
        length: u64,
        depth: usize,
    ) -> Result<(), CheckpointError> {
        if depth == MAX_DEPTH {
            let what = "its arrays lie too deep in each other";
            return Err(CheckpointError::key(&self.path, key, what));
        }
        for _ in 0..length {
            let (code, length) = (self.u32(what)?, self.u64(what)?);
            match code {
                9 => self.pass_over(key, what, length, depth + 1)?,
                8 => {
                    for _ in 0..length {
                        self.bytes(what, MAX_HELD_BYTES)?;
                    }
                }
                _ => {
                    let bytes = least_bytes(code).ok_or_else(|| self.unknown_type(key, code))?;
                    let bytes = length.saturating_mul(bytes);
                    self.need(bytes, what)?;
                    let mut rest = (&mut self.file).take(bytes);
                    std::io::copy(&mut rest, &mut std::io::sink())
                        .map_err(CheckpointError::io(&self.path))?;
                    self.at += bytes;
                }
            }
        }
        Ok(())
    }

    /// What is said of a tensor; its offset is one into the data.
    fn tensor(&mut self, alignment: u64) -> Result<(String, Tensor), CheckpointError> {
        let name = self.name("a tensor's name")?;
        let what = format!("tensor {}", quote(&name));
        let dimensions = match self.array(&what).map(u32::from_le_bytes)? {
            count @ 0..=MAX_DIMENSIONS => count,
            count => {
                let what = format!("it has {count} dimensions, expected at most {MAX_DIMENSIONS}");
                return Err(CheckpointError::tensor(&self.path, &name, what));
            }
        };
        let mut shape = Vec::with_capacity(MAX_DIMENSIONS as usize);
        for _ in 0..dimensions {
            shape.push(self.u64(&what)?);
        }
        let code = self.u32(&what)?;
        let offset = self.u64(&what)?;
        let wrong = |what: String| CheckpointError::tensor(&self.path, &name, what);
        let kind =
            ggml::kind(code).map_err(|what| CheckpointError::strange(&self.path, &name, what))?;
        // Innermost first, where others have it last.
        let row = shape.first().copied().unwrap_or(1);
        // Some writers give all dimensions that there may be. A matrix may be of one row.
        while shape.len() > 2 && shape.last() == Some(&1) {
            shape.pop();
        }
        shape.reverse();
        let values = shape.iter().try_fold(1_u64, |all, dimension| all.checked_mul(*dimension));
        let values = values.filter(|values| *values < 1 << 60);
        let values =
            values.ok_or_else(|| wrong(format!("its dimensions {shape:?} are too large")))?;
        if row % kind.block_values() != 0 {
            return Err(wrong(format!(
                "its rows of {row} values are no multiple of {}, a block of {}",
                kind.block_values(),
                kind.name()
            )));
        }
        let bytes = kind.bytes_of(values);
        let bytes =
            bytes.ok_or_else(|| wrong(format!("its dimensions {shape:?} are too large")))?;
        if offset % alignment != 0 {
            return Err(wrong(format!("its offset {offset} is no multiple of {alignment}")));
        }
        Ok((name, Tensor { file: Arc::clone(&self.path), offset, bytes, kind, shape }))
    }
}

/// The least bytes of a value of a type.
fn least_bytes(code: u32) -> Option<u64> {
    match code {
        0 | 1 | 7 => Some(1),
        2 | 3 => Some(2),
        4..=6 => Some(4),
        8 | 10..=12 => Some(8),
        9 => Some(12),
        _ => None,
    }
}

/// The number that whoever wrote an f32 meant: 1e-5, and not 9.999999747378752e-6.
fn shortest(value: f32) -> f64 {
    value.to_string().parse().unwrap_or(f64::from(value))
}
