//! Values as users write them, in settings and on command lines: sizes, times, counts, what answers
//! are to be, and places where nothing else is said.

pub mod duration;
pub mod size;
mod target;

pub use target::{Accuracy, Latency, target};

use crate::plan::MAX_TOKENS;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use std::fmt;
use std::num::NonZeroU8;
use std::path::PathBuf;
use std::str::FromStr;

/// The socket, if nothing else is said.
pub const DEFAULT_SOCKET: &str = "/run/hermes/hermes.sock";

/// The store, if nothing else is said.
pub const DEFAULT_STORE: &str = "/var/lib/hermes";

/// Name of the variable that says where the store is.
const STORE_VARIABLE: &str = "HERMES_STORE";

/// The store that `$HERMES_STORE` names, for programs that read no config.
pub fn named_store() -> Option<PathBuf> {
    std::env::var_os(STORE_VARIABLE).filter(|path| !path.is_empty()).map(PathBuf::from)
}

/// So many of something: `1 layer`, `2 layers`.
pub fn counted(count: u64, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}

/// A number of threads: 1 to 255, beyond any board's cores.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "i64")]
pub struct Threads(
    /// How many.
    pub NonZeroU8,
);

impl TryFrom<i64> for Threads {
    type Error = String;

    fn try_from(count: i64) -> Result<Threads, String> {
        let threads = u8::try_from(count).ok().and_then(NonZeroU8::new);
        threads.map(Threads).ok_or_else(|| format!("{count} threads: give 1 to 255"))
    }
}

impl FromStr for Threads {
    type Err = String;

    fn from_str(text: &str) -> Result<Threads, String> {
        let count: i64 =
            text.parse().map_err(|_| format!("{text:?} is no number: give 1 to 255"))?;
        Threads::try_from(count)
    }
}

/// A number of tokens: 1 to [`MAX_TOKENS`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "i64")]
pub struct Tokens(
    /// How many.
    pub u64,
);

impl TryFrom<i64> for Tokens {
    type Error = String;

    fn try_from(count: i64) -> Result<Tokens, String> {
        let tokens = u64::try_from(count).ok().filter(|count| (1..=MAX_TOKENS).contains(count));
        tokens.map(Tokens).ok_or_else(|| format!("{count} tokens: give 1 to {MAX_TOKENS}"))
    }
}

impl FromStr for Tokens {
    type Err = String;

    fn from_str(text: &str) -> Result<Tokens, String> {
        let count: i64 =
            text.parse().map_err(|_| format!("{text:?} is no number: give 1 to {MAX_TOKENS}"))?;
        Tokens::try_from(count)
    }
}

/// A size: `"64MiB"`, or a number of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bytes(
    /// Bytes.
    pub u64,
);

impl FromStr for Bytes {
    type Err = size::SizeError;

    fn from_str(text: &str) -> Result<Bytes, size::SizeError> {
        size::parse(text).map(Bytes)
    }
}

impl Serialize for Bytes {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let exact = size::Size(self.0).to_string();
        match size::parse(&exact) {
            Ok(bytes) if bytes == self.0 => serializer.serialize_str(&exact.replace(' ', "")),
            _ => serializer.serialize_str(&self.0.to_string()),
        }
    }
}

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Bytes, D::Error> {
        struct Visitor;
        impl de::Visitor<'_> for Visitor {
            type Value = Bytes;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("a size, such as \"64MiB\", or a number of bytes")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Bytes, E> {
                text.parse().map_err(E::custom)
            }

            fn visit_i64<E: de::Error>(self, bytes: i64) -> Result<Bytes, E> {
                let wrong = |_| E::invalid_value(de::Unexpected::Signed(bytes), &self);
                u64::try_from(bytes).map(Bytes).map_err(wrong)
            }

            fn visit_u64<E: de::Error>(self, bytes: u64) -> Result<Bytes, E> {
                Ok(Bytes(bytes))
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_is_no_plural() {
        assert_eq!([0, 1, 2].map(|count| counted(count, "file")), ["0 files", "1 file", "2 files"]);
    }

    #[test]
    fn sizes_are_written_exactly() {
        let check = |bytes: u64, text: &str| {
            let value = serde_json::to_value(Bytes(bytes)).unwrap();
            assert_eq!(value.as_str(), Some(text));
            assert_eq!(serde_json::from_value::<Bytes>(value).unwrap(), Bytes(bytes));
        };
        check(64 << 20, "64MiB");
        check(3 << 29, "1.5GiB");
        check((64 << 20) + 1, "67108865");
        check(0, "0B");
    }
}
