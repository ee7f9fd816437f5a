//! The metadata of a GGUF file: values by key, asked for by what they have to be.

use crate::checkpoint::CheckpointError;
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// A value of whatever width.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    Whole(i128),
    Float(f64),
    Flag(bool),
    Text(String),
    Strings(Strings),
    Wholes(Vec<i64>),
    Floats(Vec<f32>),
    /// Arrays of what nothing here asks for, which are passed over.
    Unread,
}

/// Texts of an array, end to end: a vocabulary has a quarter of a million.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Strings {
    bytes: Vec<u8>,
    ends: Vec<u32>,
}

impl Strings {
    pub fn push(&mut self, text: &[u8]) {
        self.bytes.extend_from_slice(text);
        self.ends.push(u32::try_from(self.bytes.len()).expect("what is held is bounded"));
    }

    pub fn len(&self) -> usize {
        self.ends.len()
    }

    pub fn get(&self, index: usize) -> Option<&[u8]> {
        let end = *self.ends.get(index)? as usize;
        let start = index.checked_sub(1).map_or(0, |before| self.ends[before] as usize);
        Some(&self.bytes[start..end])
    }

    pub fn iter(&self) -> impl Iterator<Item = &[u8]> {
        (0..self.len()).map(|index| self.get(index).expect("below the length"))
    }
}

/// All values of a file.
#[derive(Debug)]
pub struct Keys {
    path: Arc<Path>,
    values: BTreeMap<String, Held>,
}

#[derive(Debug)]
struct Held {
    value: Value,
    /// Whether anybody has asked for it.
    is_read: AtomicBool,
}

/// Whole numbers up to here are exact in JSON and may be sizes.
const MAX_WHOLE: u64 = 1 << 53;

impl Keys {
    pub fn new(path: Arc<Path>) -> Keys {
        Keys { path, values: BTreeMap::new() }
    }

    pub fn path(&self) -> &Arc<Path> {
        &self.path
    }

    pub fn insert(&mut self, key: String, value: Value) -> Result<(), CheckpointError> {
        match self.values.entry(key) {
            Entry::Vacant(place) => {
                place.insert(Held { value, is_read: AtomicBool::new(false) });
                Ok(())
            }
            Entry::Occupied(place) => {
                Err(CheckpointError::key(&self.path, place.key(), "it is there twice"))
            }
        }
    }

    pub fn get(&self, key: &str) -> Option<&Value> {
        let held = self.values.get(key)?;
        held.is_read.store(true, Ordering::Relaxed);
        Some(&held.value)
    }

    /// Keys that begin with `prefix`, without it.
    pub fn below<'a>(&'a self, prefix: &'a str) -> impl Iterator<Item = &'a str> {
        self.held_below(prefix).map(|(key, _)| key)
    }

    /// Those of them that nobody has asked for.
    pub fn unread<'a>(&'a self, prefix: &'a str) -> impl Iterator<Item = &'a str> {
        let own = self.held_below(prefix);
        own.filter(|(_, held)| !held.is_read.load(Ordering::Relaxed)).map(|(key, _)| key)
    }

    fn held_below<'a>(&'a self, prefix: &'a str) -> impl Iterator<Item = (&'a str, &'a Held)> {
        let own = self.values.range(prefix.to_owned()..);
        own.map_while(move |(key, held)| Some((key.strip_prefix(prefix)?, held)))
    }

    /// A count or a size. An array, one for each layer, is taken where all of it is equal.
    pub fn number(&self, key: &str) -> Result<Option<u64>, CheckpointError> {
        let whole = match self.get(key) {
            None => return Ok(None),
            Some(Value::Whole(whole)) => Some(*whole),
            Some(Value::Wholes(each)) => match &each[..] {
                [first, others @ ..] if others.iter().all(|other| other == first) => {
                    Some(i128::from(*first))
                }
                _ => {
                    let what = "it differs from layer to layer, which is not computed here";
                    return Err(CheckpointError::unknown(&self.path, key, what));
                }
            },
            Some(_) => None,
        };
        let number = whole.and_then(|whole| u64::try_from(whole).ok()).filter(|n| *n < MAX_WHOLE);
        match number {
            Some(number) => Ok(Some(number)),
            None => Err(self.wrong(key, "a whole number that is not negative")),
        }
    }

    /// The same, of a key that has to be there and is not 0.
    pub fn size(&self, key: &str) -> Result<u64, CheckpointError> {
        match self.number(key)? {
            Some(0) => Err(CheckpointError::key(&self.path, key, "it is 0")),
            Some(size) => Ok(size),
            None => Err(CheckpointError::key(&self.path, key, "it is missing")),
        }
    }

    pub fn float(&self, key: &str) -> Result<Option<f64>, CheckpointError> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Float(value)) if value.is_finite() => Ok(Some(*value)),
            Some(Value::Whole(value)) => Ok(Some(*value as f64)),
            Some(_) => Err(self.wrong(key, "a finite number")),
        }
    }

    pub fn flag(&self, key: &str) -> Result<Option<bool>, CheckpointError> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Flag(value)) => Ok(Some(*value)),
            Some(_) => Err(self.wrong(key, "true or false")),
        }
    }

    pub fn text(&self, key: &str) -> Result<Option<&str>, CheckpointError> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Text(text)) => Ok(Some(text)),
            Some(_) => Err(self.wrong(key, "a text")),
        }
    }

    pub fn strings(&self, key: &str) -> Result<Option<&Strings>, CheckpointError> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Strings(strings)) => Ok(Some(strings)),
            Some(_) => Err(self.wrong(key, "an array of texts")),
        }
    }

    pub fn wholes(&self, key: &str) -> Result<Option<&[i64]>, CheckpointError> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Wholes(values)) => Ok(Some(values)),
            Some(_) => Err(self.wrong(key, "an array of whole numbers")),
        }
    }

    pub fn floats(&self, key: &str) -> Result<Option<&[f32]>, CheckpointError> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Floats(values)) => Ok(Some(values)),
            Some(_) => Err(self.wrong(key, "an array of floats")),
        }
    }

    fn wrong(&self, key: &str, expected: &str) -> CheckpointError {
        let found = match self.get(key) {
            Some(Value::Whole(value)) => value.to_string(),
            Some(Value::Float(value)) => value.to_string(),
            Some(Value::Flag(value)) => value.to_string(),
            Some(Value::Text(_)) => "a text".to_owned(),
            _ => "an array".to_owned(),
        };
        CheckpointError::key(&self.path, key, format!("it is {found}, expected {expected}"))
    }
}
