//! Strings that end a text, found as it comes.

use std::collections::HashMap;
use thiserror::Error;

/// Most stop strings, and most bytes of all of them.
pub const MAX_STOPS: usize = 1024;
pub const MAX_STOP_BYTES: usize = 16 << 10;

/// Stop strings that are too many, too long, or empty.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum StopError {
    #[error("has an empty string, which would end every text")]
    Empty,
    #[error("has {0} strings; the limit is {MAX_STOPS}")]
    Many(usize),
    #[error("has {0} bytes; the limit is {MAX_STOP_BYTES}")]
    Long(usize),
}

/// Looks for stop strings: the one that ends first ends the text before it, and of several that end
/// at once the longest. So what is found does not hang on where tokens begin. Whatever may be the
/// beginning of one is held back.
///
/// This is the automaton of Aho and Corasick over bytes: a step for each byte, however many strings
/// there are.
#[derive(Clone, Debug)]
pub struct Stops {
    strings: Vec<String>,
    nodes: Vec<Node>,
    next: HashMap<(u32, u8), u32>,
    at: u32,
    held: String,
}

/// What has been read of one or more strings.
#[derive(Clone, Copy, Debug, Default)]
struct Node {
    /// Bytes of it.
    depth: usize,
    /// The longest other beginning that it ends with.
    shorter: u32,
    /// The longest string that it ends with.
    ends: Option<usize>,
}

/// What a piece of text leads to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Passed {
    /// What may go out.
    pub text: String,
    /// The string that ends the text there.
    pub stop: Option<String>,
}

impl Stops {
    /// An automaton for these strings.
    ///
    /// # Errors
    /// Strings that are too many, too long, or empty.
    pub fn new(strings: Vec<String>) -> Result<Stops, StopError> {
        let bytes = strings.iter().map(String::len).sum();
        match () {
            _ if strings.iter().any(String::is_empty) => return Err(StopError::Empty),
            _ if strings.len() > MAX_STOPS => return Err(StopError::Many(strings.len())),
            _ if bytes > MAX_STOP_BYTES => return Err(StopError::Long(bytes)),
            _ => {}
        }
        let mut stops = Stops {
            strings: vec![],
            nodes: vec![Node::default()],
            next: HashMap::new(),
            at: 0,
            held: String::new(),
        };
        for (number, string) in strings.iter().enumerate() {
            let mut at = 0;
            for byte in string.bytes() {
                at = stops.child(at, byte);
            }
            stops.nodes[at as usize].ends = Some(number);
        }
        stops.strings = strings;
        stops.link();
        Ok(stops)
    }

    fn child(&mut self, of: u32, byte: u8) -> u32 {
        if let Some(child) = self.next.get(&(of, byte)) {
            return *child;
        }
        let depth = self.nodes[of as usize].depth + 1;
        let child = u32::try_from(self.nodes.len()).expect("a node is a byte of a string at most");
        self.nodes.push(Node { depth, ..Node::default() });
        self.next.insert((of, byte), child);
        child
    }

    /// Finds the longest other beginning that each node ends with, those of few bytes first.
    fn link(&mut self) {
        let mut edges: Vec<(u32, u8, u32)> =
            self.next.iter().map(|((from, byte), to)| (*from, *byte, *to)).collect();
        edges.sort_unstable_by_key(|(_, _, to)| self.nodes[*to as usize].depth);
        for (from, byte, to) in edges {
            let shorter = match from {
                0 => 0,
                _ => self.step(self.nodes[from as usize].shorter, byte),
            };
            let ends = self.nodes[shorter as usize].ends;
            let node = &mut self.nodes[to as usize];
            node.shorter = shorter;
            node.ends = node.ends.or(ends);
        }
    }

    fn step(&self, mut at: u32, byte: u8) -> u32 {
        loop {
            match self.next.get(&(at, byte)) {
                Some(next) => return *next,
                None if at == 0 => return 0,
                None => at = self.nodes[at as usize].shorter,
            }
        }
    }

    /// The text that may go out with this piece. Nothing more is to be pushed once a string is met.
    pub fn push(&mut self, piece: &str) -> Passed {
        let read = self.held.len();
        self.held.push_str(piece);
        for (index, byte) in piece.bytes().enumerate() {
            self.at = self.step(self.at, byte);
            if let Some(number) = self.nodes[self.at as usize].ends {
                let stop = self.strings[number].clone();
                let mut text = std::mem::take(&mut self.held);
                text.truncate(read + index + 1 - stop.len());
                return Passed { text, stop: Some(stop) };
            }
        }
        // Both are whole characters: a piece is, and a string begins with one.
        let held = self.held.len() - self.nodes[self.at as usize].depth;
        let rest = self.held.split_off(held);
        Passed { text: std::mem::replace(&mut self.held, rest), stop: None }
    }

    /// What was held back, when no more text comes.
    pub fn end(&mut self) -> String {
        self.at = 0;
        std::mem::take(&mut self.held)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Where the first string ends, and the longest that ends there.
    fn naive<'a>(text: &str, strings: &'a [String]) -> Option<(usize, &'a str)> {
        let ends = (0..=text.len()).find_map(|end| {
            let here =
                strings.iter().filter(|string| text.as_bytes()[..end].ends_with(string.as_bytes()));
            here.max_by_key(|string| string.len()).map(|string| (end, string))
        });
        ends.map(|(end, string)| (end - string.len(), string.as_str()))
    }

    proptest! {
        #[test]
        fn what_is_found_is_what_a_search_of_all_finds(
            strings in prop::collection::vec("[ab\u{e9}]{1,4}", 0..5),
            pieces in prop::collection::vec("[abc\u{e9}\u{e8}]{0,4}", 0..8),
        ) {
            let mut stops = Stops::new(strings.clone()).unwrap();
            let (mut text, mut found) = (String::new(), None);
            for piece in &pieces {
                let passed = stops.push(piece);
                text += &passed.text;
                if passed.stop.is_some() {
                    found = passed.stop;
                    break;
                }
            }
            if found.is_none() {
                text += &stops.end();
            }
            let whole = pieces.concat();
            match naive(&whole, &strings) {
                Some((at, string)) => {
                    prop_assert_eq!(text, &whole[..at]);
                    prop_assert_eq!(found.as_deref(), Some(string));
                }
                None => prop_assert_eq!((text, found), (whole, None)),
            }
        }
    }

    #[test]
    fn stop_strings_are_bounded() {
        assert_eq!(Stops::new(vec![String::new()]).unwrap_err(), StopError::Empty);
        let many = vec!["x".to_owned(); MAX_STOPS + 1];
        assert_eq!(Stops::new(many).unwrap_err(), StopError::Many(MAX_STOPS + 1));
        let long = vec!["x".repeat(MAX_STOP_BYTES + 1)];
        assert_eq!(Stops::new(long).unwrap_err(), StopError::Long(MAX_STOP_BYTES + 1));
    }
}
