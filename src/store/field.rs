//! What a manifest's fields are made of, and what may be wrong with them.

use super::Dtype;
use serde::{
    Deserialize, Deserializer, Serialize,
    de::{Error, SeqAccess, Visitor},
};
use std::{fmt, marker::PhantomData};

/// Version of the manifest's own format; a reader refuses any other.
pub const FORMAT: u64 = 1;

/// Limit of a shape's dimensions.
pub(super) const MAX_RANK: usize = 32;

/// Reads a list of at most `MAX` items, and holds no more.
pub(super) fn at_most<'de, D, T, const MAX: usize>(deserializer: D) -> Result<Vec<T>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    struct AtMost<T, const MAX: usize>(PhantomData<T>);
    impl<'de, T: Deserialize<'de>, const MAX: usize> Visitor<'de> for AtMost<T, MAX> {
        type Value = Vec<T>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "a list of at most {MAX}")
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Vec<T>, A::Error> {
            let mut list = Vec::new();
            while let Some(item) = items.next_element()? {
                if list.len() == MAX {
                    return Err(A::Error::custom(format!("a list has more than {MAX} items")));
                }
                list.push(item);
            }
            Ok(list)
        }
    }
    deserializer.deserialize_seq(AtMost::<T, MAX>(PhantomData))
}

/// An input or output of the model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Port {
    pub name: String,
    pub dtype: Dtype,
    #[serde(deserialize_with = "at_most::<_, _, MAX_RANK>")]
    pub shape: Vec<Dim>,
}

/// One dimension: a size, or the symbol whose value each request chooses.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Dim {
    Fixed(u64),
    /// A symbol, or an expression of symbols such as `2*seq+1`.
    Symbol(String),
}

/// Why a manifest cannot be believed.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// Not JSON, or not the JSON of a manifest.
    #[error("not a manifest: {0}")]
    Json(#[from] serde_json::Error),
    /// Written by a newer program, or damaged.
    #[error("field format is {found}, this program reads {FORMAT}")]
    Format {
        /// What the manifest says.
        found: u64,
    },
    /// A field contradicts another, or is out of its limits.
    #[error("field {field} {what}")]
    Field {
        /// Which, as a path: `layers[3].files.q8.path`.
        field: String,
        /// What is wrong with it.
        what: String,
    },
}
