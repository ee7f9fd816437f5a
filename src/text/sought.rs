//! What a template looks for in texts that are shielded: control tokens have a mark inside there, so
//! its own words are looked for as they read with one, too.

use minijinja::Value;
use minijinja::machinery::{CompiledTemplate, Instruction, Instructions};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Methods whose first argument is looked for.
const METHODS: [&str; 14] = [
    "split",
    "rsplit",
    "replace",
    "startswith",
    "endswith",
    "find",
    "rfind",
    "index",
    "rindex",
    "count",
    "partition",
    "rpartition",
    "removeprefix",
    "removesuffix",
];

/// How a part of a text reads where texts are shielded, if that is another way.
pub type Shielded<'a> = dyn Fn(&str) -> Option<String> + 'a;

/// The instructions of a template.
pub fn all<'a, 'b>(
    instructions: &'a Instructions<'b>,
) -> impl Iterator<Item = &'a Instruction<'b>> {
    (0..).map_while(|index| instructions.get(index))
}

/// The words of a template that read otherwise in shielded texts, and how they do.
#[derive(Clone, Debug, Default)]
pub struct Sought(Arc<BTreeMap<String, String>>);

impl Sought {
    /// By a template, where texts are shielded so.
    pub fn by(template: &CompiledTemplate, shielded: Option<&Shielded>) -> Sought {
        let Some(shielded) = shielded else { return Sought::default() };
        let words = all(&template.instructions).filter_map(|instruction| {
            let Instruction::LoadConst(word) = instruction else { return None };
            let word = word.as_str()?;
            Some((word.to_owned(), shielded(word)?))
        });
        Sought(Arc::new(words.collect()))
    }

    /// How a word reads in a text, where it is not there as it is.
    pub fn within(&self, text: &str, word: &str) -> Option<&str> {
        let shielded = self.0.get(word)?;
        let is_so = !text.contains(word) && text.contains(shielded.as_str());
        is_so.then_some(shielded)
    }

    /// What a method or a filter of that name is given, as it has to be to find something.
    pub fn given(&self, name: &str, given: &[Value]) -> Option<Vec<Value>> {
        let [text, word, ..] = given else { return None };
        if !METHODS.contains(&name) {
            return None;
        }
        let word = self.within(text.as_str()?, word.as_str()?)?;
        let mut given = given.to_vec();
        given[1] = Value::from(word);
        Some(given)
    }
}
