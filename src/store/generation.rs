//! `generation.json`: what has to be known of a model to have it write texts.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Its file name in a version's folder.
pub const GENERATION_NAME: &str = "generation.json";

/// Version of the file's own format; a reader refuses any other.
pub const GENERATION_FORMAT: u64 = 1;

/// Most bytes of the file: it is read whole.
pub const MAX_GENERATION_BYTES: u64 = 4 << 20;

/// Most heap that reading it takes, and what is read holds, for each byte of the file: an empty line
/// of it is three bytes, and a string in a list that grows by doubling.
pub const GENERATION_HEAP_BYTES_PER_BYTE: u64 = 32;

/// What the files beside a language model say of texts that it writes.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Generation {
    pub format: u64,
    /// Tokens, any of which ends a text.
    pub end_tokens: Vec<u32>,
    /// Most tokens of prompt and text together. None where no file says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub context: Option<u64>,
    /// Chat templates by name; the one called `default` is taken where none is asked for.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub templates: BTreeMap<String, String>,
    /// Special tokens by the names that templates have for them.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub special_tokens: BTreeMap<String, String>,
    #[serde(default)]
    pub sampling: SamplingDefaults,
    /// What was found and what was guessed, a line each.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sources: Vec<String>,
}

/// What a model's makers would have for requests that say nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SamplingDefaults {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub temperature: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub top_k: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub top_p: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_p: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub repetition_penalty: Option<f64>,
}

impl Generation {
    /// Parses the file.
    ///
    /// # Errors
    /// What is wrong, in words.
    pub fn parse(json: &[u8]) -> Result<Generation, String> {
        let generation: Generation = serde_json::from_slice(json).map_err(|e| e.to_string())?;
        match generation.format {
            GENERATION_FORMAT => Ok(generation),
            found => {
                Err(format!("field format is {found}, this program reads {GENERATION_FORMAT}"))
            }
        }
    }

    /// The file's text.
    pub fn to_json(&self) -> Vec<u8> {
        let mut text = serde_json::to_vec_pretty(self).expect("its maps have names for keys");
        text.push(b'\n');
        text
    }
}
