//! Which precision each tensor is played in.

use std::fmt;
use xxhash_rust::xxh3::xxh3_64;

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
    /// That of tables in one variant, and of tensors in theirs, in the order of a choice.
    pub(super) fn of<'a>(tables: &str, tensors: impl Iterator<Item = &'a str>) -> Choice {
        let mut text = tables.to_owned();
        for variant in tensors {
            text.push('\n');
            text.push_str(variant);
        }
        Choice(xxh3_64(text.as_bytes()))
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
        let of = |tables: &str, tensors: &[&str]| {
            Choice::of(tables, tensors.iter().copied()).to_string()
        };
        let all = [
            of("f32", &["f32", "q8"]),
            of("f32", &["q8", "f32"]),
            of("q8", &["f32", "q8"]),
            of("f32", &["f32"]),
            of("f32", &[]),
        ];
        for (index, choice) in all.iter().enumerate() {
            assert_eq!(choice.len(), 16, "{choice}");
            assert!(!all[..index].contains(choice), "{choice}");
        }
        assert_eq!(of("f32", &["f32", "q8"]), all[0]);
    }
}
