//! Texts of a file in a model's tokens.

use crate::shard::error::{ShardError, ensure, unfit};
use crate::shard::inputs::spread;
use crate::shard::source::TokenizerFile;
use crate::store::Dtype;
use crate::store::manifest::{Dim, Manifest, Port};
use crate::sys::panics;
use crate::wire::Array;
use serde_json::Value;
use std::collections::HashSet;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom};
use std::path::Path;
use tokenizers::{Tokenizer, TruncationDirection, TruncationParams};
use xxhash_rust::xxh3::xxh3_64;

/// Longest line of a file in bytes.
const MOST_LINE_BYTES: u64 = 1 << 20;

/// Tokens of a text that are used: many texts tell more than long ones.
const MOST_TOKENS: usize = 128;

/// What a line is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// A text.
    Lines,
    /// An object of JSON with the text as `"text"`.
    Objects,
}

/// A pass for each of at most `most` texts, spread over the file.
///
/// # Errors
/// A model that does not take texts; a file that cannot be read or is none of texts, with the line.
pub fn read(
    file: &Path,
    form: Form,
    manifest: &Manifest,
    tokenizer: Option<&TokenizerFile>,
    most: usize,
) -> Result<Vec<Vec<Array>>, ShardError> {
    let names: Vec<&str> = manifest.inputs.iter().map(|port| port.name.as_str()).collect();
    let advice = format!("give its inputs as .npz: numpy.savez(FILE, {})", keywords(&names));
    let Some(tokenizer) = tokenizer else {
        return Err(unfit!(
            "{} is of texts, and the model has no tokenizer\n{advice}, or give --tokenizer FILE",
            file.display()
        ));
    };
    let roles: Vec<Role> = manifest
        .inputs
        .iter()
        .map(|port| Role::of(port).map_err(|why| unfit!("texts do not fill {why}\n{advice}")))
        .collect::<Result<_, _>>()?;
    let tokenizer = prepared(tokenizer, manifest)?;
    let mut lines = Lines::open(file, form)?;
    let mut seen = HashSet::new();
    let mut places = vec![];
    while let Some(line) = lines.next()? {
        if !line.text.trim().is_empty() && seen.insert(xxh3_64(line.text.as_bytes())) {
            places.push((line.place, line.number));
        }
    }
    let mut passes = vec![];
    for index in spread(places.len(), most) {
        let (place, number) = places[index];
        let told = |what: String| unfit!("{}, line {}: {what}", file.display(), number + 1);
        let text = lines.at(place, number)?;
        let lowers = manifest.text.as_ref().is_some_and(|rules| rules.lowercase);
        let text = if lowers { text.to_lowercase() } else { text };
        let encoding = panics::caught(|| tokenizer.encode_fast(text, true)).map_err(told)?;
        let encoding = encoding.map_err(|error| told(error.to_string()))?;
        let (ids, segments) = (encoding.get_ids(), encoding.get_type_ids());
        ensure!(!ids.is_empty(), "{}, line {}: it has no tokens", file.display(), number + 1);
        let arrays = manifest.inputs.iter().zip(&roles);
        passes.push(arrays.map(|(port, role)| role.array(port, ids, segments)).collect());
    }
    Ok(passes)
}

/// The keywords of a call of numpy.savez with these names.
pub fn keywords(names: &[&str]) -> String {
    let is_plain = |name: &&str| name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
    match names.iter().all(is_plain) {
        true => names.iter().map(|name| format!("{name}=...")).collect::<Vec<_>>().join(", "),
        false => {
            let pairs: Vec<String> = names.iter().map(|name| format!("{name:?}: ...")).collect();
            format!("**{{{}}}", pairs.join(", "))
        }
    }
}

/// The model's tokenizer with the longest text that is used, as the model's rules cut it.
fn prepared(file: &TokenizerFile, manifest: &Manifest) -> Result<Tokenizer, ShardError> {
    let mut tokenizer = file.parse()?.tokenizer;
    let own = tokenizer.get_truncation().map(|own| (own.max_length, own.direction));
    let rules = manifest.text.as_ref();
    let said = rules.and_then(|rules| usize::try_from(rules.max_tokens?).ok());
    let most = [said, own.map(|(most, _)| most), Some(MOST_TOKENS)].into_iter().flatten().min();
    let cuts_start = match (rules, own) {
        (Some(rules), _) => rules.cuts_start,
        (None, own) => own.is_some_and(|(_, cut)| cut == TruncationDirection::Left),
    };
    let direction = if cuts_start { TruncationDirection::Left } else { TruncationDirection::Right };
    let cut = TruncationParams {
        max_length: most.unwrap_or(MOST_TOKENS),
        direction,
        ..TruncationParams::default()
    };
    let path = file.path.display();
    tokenizer.with_truncation(Some(cut)).map_err(|error| unfit!("{path}: {error}"))?;
    Ok(tokenizer)
}

/// What of a text fills an input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    Tokens,
    Mask,
    Segment,
    Position,
}

impl Role {
    /// # Errors
    /// The input and why a text does not fill it.
    fn of(port: &Port) -> Result<Role, String> {
        let Port { name, dtype, shape } = port;
        let role = match name.as_str() {
            "input_ids" => Role::Tokens,
            "attention_mask" => Role::Mask,
            "token_type_ids" => Role::Segment,
            "position_ids" => Role::Position,
            _ => return Err(format!("input \"{name}\"")),
        };
        match shape[..] {
            _ if !matches!(dtype, Dtype::Int64 | Dtype::Int32) => {
                Err(format!("input \"{name}\", which is {dtype}"))
            }
            [Dim::Fixed(1), Dim::Symbol(_)] => Ok(role),
            _ => Err(format!("input \"{name}\", whose length is fixed")),
        }
    }

    fn array(self, port: &Port, ids: &[u32], segments: &[u32]) -> Array {
        let value = |position: usize, id: u32| match self {
            Role::Tokens => u64::from(id),
            Role::Mask => 1,
            Role::Segment => segments.get(position).map_or(0, |segment| u64::from(*segment)),
            Role::Position => position as u64,
        };
        // No value reaches the sign bit: the low bytes are the narrow one.
        let values = ids.iter().enumerate().map(|(position, id)| value(position, *id));
        let bytes = values.flat_map(|value| value.to_le_bytes()[..port.dtype.size()].to_vec());
        Array { dtype: port.dtype, shape: vec![1, ids.len()], bytes: bytes.collect() }
    }
}

/// The lines of a file, which may be read again.
struct Lines<'a> {
    path: &'a Path,
    form: Form,
    reader: BufReader<File>,
    place: u64,
    number: usize,
}

struct Line {
    /// Its first byte in the file, and its number from 0.
    place: u64,
    number: usize,
    text: String,
}

impl Lines<'_> {
    fn open(path: &Path, form: Form) -> Result<Lines<'_>, ShardError> {
        let file = File::open(path).map_err(ShardError::io(format!("open {}", path.display())))?;
        Ok(Lines { path, form, reader: BufReader::new(file), place: 0, number: 0 })
    }

    fn next(&mut self) -> Result<Option<Line>, ShardError> {
        let (place, number) = (self.place, self.number);
        let mut bytes = vec![];
        let mut reader = self.reader.by_ref().take(MOST_LINE_BYTES);
        let read = reader.read_until(b'\n', &mut bytes);
        let read = read.map_err(ShardError::io(format!("read {}", self.path.display())))?;
        if read == 0 {
            return Ok(None);
        }
        self.place += read as u64;
        self.number += 1;
        let told = |what: &str| unfit!("{}, line {}: {what}", self.path.display(), number + 1);
        if read as u64 == MOST_LINE_BYTES && bytes.last() != Some(&b'\n') {
            return Err(told("it is longer than 1 MiB\nput one text on each line"));
        }
        let text = String::from_utf8(bytes)
            .map_err(|_| told("it is not UTF-8\nsave the file as UTF-8 text, or inputs as .npz"))?;
        let text = match self.form {
            Form::Lines => text.trim_end_matches(['\n', '\r']).to_owned(),
            Form::Objects if text.trim().is_empty() => String::new(),
            Form::Objects => {
                let object: Value = serde_json::from_str(&text)
                    .map_err(|error| told(&format!("it is no JSON: {error}")))?;
                let text = object.get("text").and_then(Value::as_str);
                text.ok_or_else(|| told("it is no object with \"text\""))?.to_owned()
            }
        };
        Ok(Some(Line { place, number, text }))
    }

    /// The text of the line `number` at `place`.
    fn at(&mut self, place: u64, number: usize) -> Result<String, ShardError> {
        let sought = self.reader.seek(SeekFrom::Start(place));
        sought.map_err(ShardError::io(format!("read {}", self.path.display())))?;
        (self.place, self.number) = (place, number);
        let line = self.next()?;
        line.map(|line| line.text)
            .ok_or_else(|| unfit!("{} changed while it was read", self.path.display()))
    }
}
