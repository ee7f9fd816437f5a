//! What a tokenizer.json takes of the heap, told from what is in it before it is built.
//!
//! A byte of the file comes to 13 bytes, to 50, or where somebody wants it to, to hundreds: it
//! depends on the kind of model, on how many words there are and on how their beginnings differ.

use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use std::collections::{HashMap, HashSet};
use std::fmt;

/// How a tokenizer finds its words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub enum VocabularyKind {
    #[serde(rename = "BPE")]
    Bpe,
    WordPiece,
    WordLevel,
    Unigram,
}

/// What is in a tokenizer.json, as far as it decides what that takes.
#[derive(Debug)]
pub struct Survey {
    /// None where the file does not say.
    pub kind: Option<VocabularyKind>,
    /// A long word whose id is another's too: the bytes of that, and the id.
    pub shared: Option<(usize, u32)>,
    /// What its rules add to it.
    pub load: Load,
    words: Heap,
    merges: u64,
    added: Heap,
    rules: Bulk,
    file_bytes: u64,
}

/// What the rules of a tokenizer add to what it takes.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    /// Most that compiling their patterns takes.
    pub pattern_bytes: u64,
    /// Most characters that they make of a byte of an added token, and put before one.
    pub factor: u64,
    pub before: u64,
}

/// How much of words there is.
#[derive(Clone, Copy, Debug)]
struct Heap {
    count: u64,
    bytes: u64,
    /// What the tree of their beginnings takes.
    tree_bytes: u64,
}

impl Heap {
    fn of(words: &Words, has_tree: bool) -> Heap {
        let tree_bytes = if has_tree { words.tree_bytes() } else { 0 };
        Heap { count: words.count(), bytes: words.bytes(), tree_bytes }
    }

    /// What they take as strings of their own.
    fn strings_bytes(&self) -> u64 {
        self.bytes + 32 * self.count
    }
}

/// A word that is longer than any text that pays for it, where it has another's id.
const LONG_BYTES: u32 = 64;

/// Patterns that are compiled, and what is there whatever the file says.
const FIXED_BYTES: u64 = 4 << 20;

/// Of the rules for characters: as they come, decoded, in words of twice their size.
const RULE_PER_BYTE: u64 = 12;
const RULE_BYTES: u64 = 256;

/// An added token is in several tables, and in an automaton in which a byte is a state.
const ADDED_BYTES: u64 = 1 << 10;
const ADDED_PER_BYTE: u64 = 1 << 10;

/// A merge while it is read, in two forms at once.
const MERGE_BYTES: u64 = 450;

/// Buckets of tables: a word and its number, a pair and what it becomes, a byte and its node.
const WORD_BUCKET: u64 = 32;
const MERGE_BUCKET: u64 = 16;
const NODE_BUCKET: u64 = 80;

/// A word with its likelihood, in a list that grows by doubling and is copied meanwhile.
const LISTED_BYTES: u64 = 3 * 32;

/// Where the kind is unknown, the model is read as a tree of values first, more than once.
const TREE_PER_BYTE: u64 = 48;

impl Survey {
    /// Looks through the text of a tokenizer.json. Holds [`Survey::own_bytes`] at most.
    ///
    /// # Errors
    ///
    /// Why it is none.
    pub fn of(json: &[u8]) -> Result<Survey, serde_json::Error> {
        let file: File = serde_json::from_slice(json)?;
        let rules = [file.normalizer, file.pre_tokenizer, file.post_processor, file.decoder];
        let Model { kind, vocab, merges } = file.model;
        let has_tree = matches!(kind, None | Some(VocabularyKind::Unigram));
        Ok(Survey {
            kind,
            shared: vocab.shared(),
            load: Load { pattern_bytes: 0, factor: 1, before: 0 },
            words: Heap::of(&vocab, has_tree),
            merges: merges.0,
            added: Heap::of(&file.added_tokens, false),
            rules: rules.into_iter().fold(Bulk::default(), Bulk::and),
            file_bytes: json.len() as u64,
        })
    }

    /// Most that surveying a file of so many bytes takes, the file's text included: its words once
    /// more, where each begins, and their ids, in lists that grow by doubling.
    pub fn own_bytes(file_bytes: u64) -> u64 {
        file_bytes.saturating_mul(13)
    }

    /// Most that loading the tokenizer takes at once, the file's text included: surveying it, then
    /// building it as one of this kind, or of one that is to be found out, with the added tokens once
    /// more where its model writes texts.
    pub fn loading_bytes(&self, kind: Option<VocabularyKind>, writes_texts: bool) -> u64 {
        let again = if writes_texts { self.added_bytes() } else { 0 };
        self.building_bytes(kind).saturating_add(again).max(Survey::own_bytes(self.file_bytes))
    }

    /// Most that it holds once it is built: its tables, without what was read to make them.
    pub fn held_bytes(&self, writes_texts: bool) -> u64 {
        let read_bytes = self.file_bytes + self.merges * MERGE_BYTES;
        self.loading_bytes(self.kind, writes_texts).saturating_sub(read_bytes)
    }

    fn building_bytes(&self, kind: Option<VocabularyKind>) -> u64 {
        let words = self.words.count;
        let tables = 2 * (table_bytes(words, WORD_BUCKET) + self.words.strings_bytes());
        let merges_bytes = self.merges * MERGE_BYTES;
        let model = match kind {
            Some(VocabularyKind::WordPiece | VocabularyKind::WordLevel) => tables,
            Some(VocabularyKind::Bpe) => {
                tables + merges_bytes + table_bytes(self.merges, MERGE_BUCKET)
            }
            Some(VocabularyKind::Unigram) => tables + words * LISTED_BYTES + self.words.tree_bytes,
            None => tables + self.words.tree_bytes + merges_bytes + self.file_bytes * TREE_PER_BYTE,
        };
        let rules = self.rules.values * RULE_BYTES + self.rules.bytes * RULE_PER_BYTE;
        let fixed = FIXED_BYTES.max(self.load.pattern_bytes);
        (self.file_bytes + model + rules + fixed).saturating_add(self.added_bytes())
    }

    /// Most that one set of the added tokens takes, as long as rules may make them.
    fn added_bytes(&self) -> u64 {
        let Load { factor, before, .. } = self.load;
        let put = self.added.count.saturating_mul(before);
        let characters = self.added.bytes.saturating_mul(factor).saturating_add(put);
        characters.saturating_mul(ADDED_PER_BYTE).saturating_add(self.added.count * ADDED_BYTES)
    }
}

/// A hash table of so many entries, and the smaller one from which it has just grown.
fn table_bytes(entries: u64, bucket: u64) -> u64 {
    let buckets = (entries * 8 / 7 + 1).next_power_of_two().max(4);
    (buckets + buckets / 2) * (bucket + 1) + 64
}

/// The parts of the file.
#[derive(Deserialize)]
struct File {
    #[serde(default)]
    added_tokens: Words,
    #[serde(default)]
    normalizer: Bulk,
    #[serde(default)]
    pre_tokenizer: Bulk,
    #[serde(default)]
    post_processor: Bulk,
    #[serde(default)]
    decoder: Bulk,
    model: Model,
}

#[derive(Deserialize)]
struct Model {
    #[serde(rename = "type")]
    kind: Option<VocabularyKind>,
    #[serde(default)]
    vocab: Words,
    #[serde(default)]
    merges: Length,
}

/// Words, one behind the other.
#[derive(Debug, Default)]
struct Words {
    text: String,
    /// Where each ends.
    ends: Vec<u32>,
    /// The number of each, where each has one.
    ids: Vec<u32>,
}

impl Words {
    fn push(&mut self, word: &str) {
        self.text.push_str(word);
        // A file that is read whole has fewer bytes than that.
        self.ends.push(u32::try_from(self.text.len()).unwrap_or(u32::MAX));
    }

    fn count(&self) -> u64 {
        self.ends.len() as u64
    }

    fn bytes(&self) -> u64 {
        self.text.len() as u64
    }

    /// A long word whose number another has too.
    fn shared(&self) -> Option<(usize, u32)> {
        let starts = std::iter::once(0).chain(self.ends.iter().copied());
        let lengths = starts.zip(&self.ends).map(|(start, end)| end - start);
        let long = self.ids.iter().zip(lengths).filter(|(_, length)| *length > LONG_BYTES);
        let long: HashMap<u32, usize> = long.map(|(id, length)| (*id, length as usize)).collect();
        let mut seen = HashSet::new();
        let mut ids = self.ids.iter().filter(|id| long.contains_key(id));
        let id = ids.find(|id| !seen.insert(**id))?;
        Some((long[id], *id))
    }

    fn sorted(&self) -> Vec<&[u8]> {
        let bytes = self.text.as_bytes();
        let starts = std::iter::once(0).chain(self.ends.iter().copied());
        let mut words: Vec<&[u8]> = starts
            .zip(&self.ends)
            .map(|(start, end)| &bytes[start as usize..*end as usize])
            .collect();
        words.sort_unstable();
        words
    }

    /// What the tree of their beginnings takes: a node for each, which has a table of those below.
    fn tree_bytes(&self) -> u64 {
        let mut bytes = 0;
        // Children of the nodes on the way to the word before.
        let mut path: Vec<u64> = vec![0];
        let mut before: &[u8] = &[];
        for word in self.sorted() {
            let common = before.iter().zip(word).take_while(|(a, b)| a == b).count();
            bytes += path.drain(common + 1..).map(node_bytes).sum::<u64>();
            for _ in common..word.len() {
                if let Some(children) = path.last_mut() {
                    *children += 1;
                }
                path.push(0);
            }
            before = word;
        }
        bytes + path.into_iter().map(node_bytes).sum::<u64>()
    }
}

/// The table of a node with so many below it.
fn node_bytes(children: u64) -> u64 {
    let buckets = match children {
        0 => return 0,
        1..=3 => 4,
        4..=7 => 8,
        more => (more * 8 / 7 + 1).next_power_of_two(),
    };
    buckets * (NODE_BUCKET + 1) + 32
}

impl<'de> Deserialize<'de> for Words {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Words, D::Error> {
        struct Reader;
        impl<'de> Visitor<'de> for Reader {
            type Value = Words;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("words")
            }

            fn visit_unit<E>(self) -> Result<Words, E> {
                Ok(Words::default())
            }

            /// Words with their numbers.
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Words, A::Error> {
                let mut words = Words::default();
                while let Some(Word(word)) = map.next_key()? {
                    words.ids.push(map.next_value()?);
                    words.push(&word);
                }
                Ok(words)
            }

            /// Words with their likelihood, or objects around them.
            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Words, A::Error> {
                let mut words = Words::default();
                while let Some(Word(word)) = list.next_element()? {
                    words.push(&word);
                }
                Ok(words)
            }
        }
        deserializer.deserialize_any(Reader)
    }
}

/// One word, by itself, at the head of a list, or what an object calls its content.
struct Word(String);

impl<'de> Deserialize<'de> for Word {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Word, D::Error> {
        struct Reader;
        impl<'de> Visitor<'de> for Reader {
            type Value = Word;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("a word")
            }

            fn visit_str<E>(self, word: &str) -> Result<Word, E> {
                Ok(Word(word.to_owned()))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Word, A::Error> {
                let word = list.next_element::<String>()?.unwrap_or_default();
                while list.next_element::<IgnoredAny>()?.is_some() {}
                Ok(Word(word))
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Word, A::Error> {
                let mut word = String::new();
                while let Some(key) = map.next_key::<String>()? {
                    match &*key {
                        "content" => word = map.next_value()?,
                        _ => drop(map.next_value::<IgnoredAny>()?),
                    }
                }
                Ok(Word(word))
            }
        }
        deserializer.deserialize_any(Reader)
    }
}

/// How many things a list has.
#[derive(Debug, Default)]
struct Length(u64);

impl<'de> Deserialize<'de> for Length {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Length, D::Error> {
        Bulk::deserialize(deserializer).map(|bulk| Length(bulk.items))
    }
}

/// How much of anything there is.
#[derive(Clone, Copy, Debug, Default)]
struct Bulk {
    /// Of the outermost list.
    items: u64,
    values: u64,
    /// Of strings.
    bytes: u64,
}

impl Bulk {
    fn and(self, other: Bulk) -> Bulk {
        Bulk {
            items: self.items + 1,
            values: self.values + other.values,
            bytes: self.bytes + other.bytes,
        }
    }
}

impl<'de> Deserialize<'de> for Bulk {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Bulk, D::Error> {
        struct Reader;
        const ONE: Bulk = Bulk { items: 0, values: 1, bytes: 0 };
        impl<'de> Visitor<'de> for Reader {
            type Value = Bulk;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("anything")
            }

            fn visit_unit<E>(self) -> Result<Bulk, E> {
                Ok(ONE)
            }

            fn visit_bool<E>(self, _: bool) -> Result<Bulk, E> {
                Ok(ONE)
            }

            fn visit_i64<E>(self, _: i64) -> Result<Bulk, E> {
                Ok(ONE)
            }

            fn visit_u64<E>(self, _: u64) -> Result<Bulk, E> {
                Ok(ONE)
            }

            fn visit_f64<E>(self, _: f64) -> Result<Bulk, E> {
                Ok(ONE)
            }

            fn visit_str<E>(self, text: &str) -> Result<Bulk, E> {
                Ok(Bulk { bytes: text.len() as u64, ..ONE })
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Bulk, A::Error> {
                let mut whole = ONE;
                while let Some(item) = list.next_element()? {
                    whole = whole.and(item);
                }
                Ok(whole)
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Bulk, A::Error> {
                let mut whole = ONE;
                while let Some((key, value)) = map.next_entry::<Bulk, Bulk>()? {
                    whole = whole.and(key).and(value);
                }
                Ok(whole)
            }
        }
        deserializer.deserialize_any(Reader)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(of: &[&str]) -> Words {
        let mut words = Words::default();
        of.iter().for_each(|word| words.push(word));
        words
    }

    /// Unigram models took four times what was granted: a node for each beginning of a word, with
    /// a table of its own.
    #[test]
    fn each_beginning_of_a_word_is_a_node() {
        let check = |of: &[&str], tables: &[u64]| {
            let bytes = tables.iter().map(|children| node_bytes(*children)).sum::<u64>();
            assert_eq!(words(of).tree_bytes(), bytes, "{of:?}");
        };
        check(&[], &[]);
        check(&["a"], &[1]);
        check(&["abc"], &[1, 1, 1]);
        check(&["abd", "abc", "ab", "x"], &[2, 1, 2]);
        check(&["a", "b", "c", "d", "e"], &[5]);
        check(&["same", "same"], &[1, 1, 1, 1]);
    }

    #[test]
    fn files_are_surveyed_whatever_their_kind() {
        let check = |model: &str, kind, count: u64, merges: u64| {
            let added = r#"[{"id":0,"content":"<s>","special":true}]"#;
            let file = format!(
                r#"{{"version":"1.0","truncation":null,"added_tokens":{added},"normalizer":
                   {{"type":"X","list":[1,-2,0.5,true,"four"]}},"model":{model}}}"#
            );
            let survey = Survey::of(file.as_bytes()).unwrap();
            assert_eq!((survey.kind, survey.words.count, survey.merges), (kind, count, merges));
            assert_eq!((survey.added.count, survey.added.bytes), (1, 3));
            assert_eq!((survey.rules.values, survey.rules.bytes), (10, 4 + 1 + 4 + 4));
        };
        let map = r#""vocab":{"a":0,"ab":1}"#;
        check(&format!(r#"{{"type":"WordPiece",{map}}}"#), Some(VocabularyKind::WordPiece), 2, 0);
        check(&format!(r#"{{"type":"WordLevel",{map}}}"#), Some(VocabularyKind::WordLevel), 2, 0);
        check(&format!(r#"{{{map}}}"#), None, 2, 0);
        let merges = format!(r#"{{"type":"BPE","merges":["a b",["a","b"]],{map}}}"#);
        check(&merges, Some(VocabularyKind::Bpe), 2, 2);
        check(
            r#"{"type":"Unigram","vocab":[["a",-1.5],["b",0]]}"#,
            Some(VocabularyKind::Unigram),
            2,
            0,
        );
        assert!(Survey::of(b"{}").is_err());
        assert!(Survey::of(br#"{"model":{"type":"Other"}}"#).is_err());
    }
}
