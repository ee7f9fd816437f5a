//! SentencePiece's maps of characters: a tree of what is found, in a double array, and what each of it
//! becomes, with a zero byte behind each.

use super::characters::cost;
use super::error::RuleError;
use std::str;
use tokenizers::NormalizedString;

/// A map is asked for pieces of a text that are no longer.
const MAX_KEY_BYTES: usize = 5;

/// Pieces that are looked at for each unit of a table: where many lead to the same, a table has fewer
/// units than pieces.
const PIECES_PER_UNIT: usize = 4;

/// What becomes of one piece of a text may have so many bytes before it is counted in these.
const MAX_COUNTED_BYTES: usize = 1024;

/// What the characters are that a map is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Given {
    /// A text's own.
    Text,
    /// Any, in some form.
    Any(Form),
}

/// How far characters were taken apart before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Form {
    Whole,
    /// None is left that NFD takes apart.
    Canonical,
    /// Nor NFKD.
    Compatible,
}

/// Checks a map before it is made: the library allocates as much as it says that it has.
pub fn check(map: &str) -> Result<(), RuleError> {
    let map = decode(map)?;
    let (table, whole) = (u64::from(table_bytes(&map)), map.len() as u64);
    match table.saturating_add(4) > whole {
        true => Err(RuleError::Map { table, whole }),
        false => Ok(()),
    }
}

/// Most characters for each one by a map, of a text's own bytes or of any characters.
pub fn growth(map: &str, given: Given) -> Result<u64, RuleError> {
    let map = decode(map)?;
    let table = map.get(4..(table_bytes(&map) as usize).saturating_add(4)).unwrap_or_default();
    let texts = map.get(table.len() + 4..).unwrap_or_default();
    let units: Vec<u32> = table
        .chunks_exact(4)
        .map(|bytes| bytes.iter().rev().fold(0, |unit, byte| unit << 8 | u32::from(*byte)))
        .collect();
    let zeros = texts.iter().enumerate().filter(|(_, byte)| **byte == 0).map(|(at, _)| at);
    let zeros = zeros.collect();
    let mut walk = Walk { units, texts, zeros, given, nodes: 0, pieces: 0, most: 1 };
    if let Some(root) = walk.units.first().copied() {
        walk.go(offset(root), &mut vec![])?;
    }
    Ok(walk.most)
}

/// A way through a map.
struct Walk<'a> {
    units: Vec<u32>,
    texts: &'a [u8],
    zeros: Vec<usize>,
    given: Given,
    nodes: usize,
    pieces: usize,
    most: u64,
}

impl Walk<'_> {
    /// Looks at all that begins with `key`. What is found first hides what is longer.
    fn go(&mut self, node: usize, key: &mut Vec<u8>) -> Result<(), RuleError> {
        self.nodes += 1;
        if self.nodes > self.units.len() {
            return Err(RuleError::Circle);
        }
        for byte in 1..=u8::MAX {
            let at = node ^ usize::from(byte);
            let Some(unit) = self.units.get(at).copied() else { continue };
            if unit & 0x8000_00ff != u32::from(byte) {
                continue;
            }
            let below = at ^ offset(unit);
            key.push(byte);
            if unit >> 8 & 1 == 1 {
                self.pieces += 1;
                if self.pieces > PIECES_PER_UNIT * self.units.len() {
                    return Err(RuleError::Circle);
                }
                let value = self.units.get(below).map_or(0, |unit| unit & 0x7fff_ffff);
                self.most = self.most.max(self.grows(key, value as usize));
            } else if key.len() < MAX_KEY_BYTES {
                self.go(below, key)?;
            }
            key.pop();
        }
        Ok(())
    }

    /// How much longer a key becomes.
    fn grows(&self, key: &[u8], text: usize) -> u64 {
        let end = self.zeros.get(self.zeros.partition_point(|zero| *zero < text)).copied();
        let bytes = self.texts.get(text..end.unwrap_or(self.texts.len())).unwrap_or_default();
        let length = match str::from_utf8(bytes) {
            Ok(text) if bytes.len() <= MAX_COUNTED_BYTES => text.chars().count(),
            _ => bytes.len(),
        };
        let key = str::from_utf8(key);
        let room = match (self.given, key) {
            (Given::Text, Ok(key)) => key.chars().map(cost).sum(),
            (Given::Any(form), Ok(key)) if length > key.chars().count() => {
                match is_left(key, form) {
                    true => key.chars().count() as u64,
                    false => return 1,
                }
            }
            _ => 1,
        };
        (length as u64).div_ceil(room.max(1))
    }
}

/// Whether characters are still there in a form.
fn is_left(key: &str, form: Form) -> bool {
    let mut taken = NormalizedString::from(key);
    match form {
        Form::Whole => return true,
        Form::Canonical => taken.nfd(),
        Form::Compatible => taken.nfkd(),
    };
    taken.get() == key
}

/// Where what is below a unit lies, beside where the unit does.
fn offset(unit: u32) -> usize {
    (unit as usize >> 10) << ((unit & 1 << 9) >> 6)
}

/// How long the table of a map says that it is.
fn table_bytes(map: &[u8]) -> u32 {
    map.first_chunk().map_or(0, |length| u32::from_le_bytes(*length))
}

/// A map's bytes. The library reads them likewise.
fn decode(map: &str) -> Result<Vec<u8>, RuleError> {
    base64::decode(map).map_err(|error| RuleError::Base64(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ANY: Given = Given::Any(Form::Whole);

    /// A map of single bytes, and a text for each.
    fn map(entries: &[(&str, &str)]) -> String {
        let (mut units, mut texts) = (vec![0_u32; 2048], vec![]);
        // What is below the root lies from 256 on, and what each byte becomes behind that.
        units[0] = 256 << 10;
        for (index, (key, text)) in entries.iter().enumerate() {
            let byte = u32::from(key.as_bytes()[0]);
            let (at, leaf) = (256 ^ byte as usize, 1024 + index);
            units[at] = u32::try_from(at ^ leaf).unwrap() << 10 | 1 << 8 | byte;
            units[leaf] = 1 << 31 | u32::try_from(texts.len()).unwrap();
            texts.extend_from_slice(text.as_bytes());
            texts.push(0);
        }
        let table: Vec<u8> = units.iter().flat_map(|unit| unit.to_le_bytes()).collect();
        let length = u32::try_from(table.len()).unwrap().to_le_bytes();
        base64::encode([&length[..], &table, &texts].concat())
    }

    #[test]
    fn a_map_of_characters_is_looked_through() {
        let hold = |entries: &[(&str, &str)], of_text: u64, of_any: u64| {
            let map = map(entries);
            assert_eq!(check(&map), Ok(()));
            let step = serde_json::json!({ "type": "Precompiled", "precompiled_charsmap": map });
            let step: tokenizers::NormalizerWrapper = serde_json::from_value(step).unwrap();
            for (key, text) in entries.iter().filter(|(key, _)| key.is_ascii()) {
                let mut made = NormalizedString::from(*key);
                tokenizers::Normalizer::normalize(&step, &mut made).unwrap();
                assert_eq!(made.get(), *text);
            }
            assert_eq!(growth(&map, Given::Text), Ok(of_text), "{entries:?}");
            assert_eq!(growth(&map, ANY), Ok(of_any), "{entries:?}");
        };
        hold(&[], 1, 1);
        hold(&[("a", "b"), ("b", "")], 1, 1);
        hold(&[("a", "b"), ("b", "aaa")], 3, 3);
        hold(&[("a", &"x".repeat(2000))], 2000, 2000);
    }

    #[test]
    fn a_map_that_is_none_is_refused() {
        assert!(matches!(check("!"), Err(RuleError::Base64(_))));
        let wrong = RuleError::Map { table: 0x4141_4141, whole: 8 };
        assert_eq!(check("QUFBQUFBQUE="), Err(wrong));
        // Each byte leads back to where it was.
        let units: Vec<u32> = (0..256).map(|byte| (byte << 10) | byte).collect();
        let table: Vec<u8> = units.iter().flat_map(|unit| unit.to_le_bytes()).collect();
        let circle = base64::encode([&1024_u32.to_le_bytes()[..], &table].concat());
        assert_eq!(growth(&circle, ANY), Err(RuleError::Circle));
    }

    #[test]
    fn what_was_taken_apart_before_is_no_key() {
        let (half, letter) = ("\u{bd}", "a");
        assert!(is_left(half, Form::Canonical) && !is_left(half, Form::Compatible));
        assert!(!is_left("\u{e9}", Form::Canonical) && is_left(letter, Form::Compatible));
    }
}
