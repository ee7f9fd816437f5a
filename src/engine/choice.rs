//! Which precision each tensor is played in.

use crate::store::layer_file::{Layout, TensorEntry};
use std::fmt;
use xxhash_rust::xxh3::Xxh3;

/// The variants in which a model's weights are played.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Variants {
    /// All in one.
    Alike(String),
    /// Each tensor that has a precision of its own in one: layers in the manifest's order, the
    /// tensors of a layer in the order of its index. Tables, of which a pass reads a few rows only,
    /// and what is no float are taken from the version's best variant.
    Each(Vec<String>),
}

/// What tells one choice of precisions of a version from another, written as 16 hexadecimal digits:
/// the same choice gives the same bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Choice(u64);

impl Choice {
    /// That of tensors, by name, in their variants, and of tables in theirs where that is not the
    /// version's best: as [`Ladder::digest`](crate::plan::Ladder::digest) where it is.
    pub(super) fn of<'a>(
        tensors: impl Iterator<Item = (&'a str, &'a str)>,
        tables: Option<&'a str>,
    ) -> Choice {
        let mut hash = Xxh3::new();
        for (name, variant) in tensors.chain(tables.map(|variant| ("", variant))) {
            for text in [name, "\0", variant, "\n"] {
                hash.update(text.as_bytes());
            }
        }
        Choice(hash.digest())
    }
}

/// What a tensor is called in a choice; no other of its version is.
pub(super) fn name_of(tensor: &TensorEntry) -> String {
    match tensor.layout {
        Layout::ColumnPanels => format!("{} (columns)", tensor.name),
        _ => tensor.name.clone(),
    }
}

impl fmt::Display for Choice {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn choices_are_told_apart() {
        let of = |variants: &[&'static str], tables| {
            let tensors = ["v", "w"].into_iter().zip(variants.iter().copied());
            Choice::of(tensors, tables).to_string()
        };
        let all = [
            of(&["f32", "q8"], None),
            of(&["q8", "f32"], None),
            of(&["f32", "q8"], Some("q8")),
            of(&["f32"], None),
            of(&[], None),
        ];
        for (index, choice) in all.iter().enumerate() {
            assert_eq!(choice.len(), 16, "{choice}");
            assert!(!all[..index].contains(choice), "{choice}");
        }
        assert_eq!(of(&["f32", "q8"], None), all[0]);
    }
}
