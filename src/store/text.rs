//! How a text becomes one vector: as the model's makers say in the files beside it.

use super::field::{ManifestError, at_most};
use serde::{Deserialize, Serialize};
use std::collections::HashSet;

/// Most prompts of a model.
pub const MAX_PROMPTS: usize = 64;

/// Most lines of [`TextRules::sources`].
const MAX_SOURCES: usize = 32;

/// How an embedding's token vectors become one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Pooling {
    /// Mean over the tokens that the attention mask keeps.
    #[serde(rename = "mean")]
    Mean,
    /// The first token's vector.
    #[serde(rename = "cls")]
    Cls,
    /// The largest of each component.
    #[serde(rename = "max")]
    Max,
    /// The last token's vector.
    #[serde(rename = "lasttoken")]
    LastToken,
    /// The sum over the square root of how many tokens there are.
    #[serde(rename = "mean_sqrt_len")]
    MeanSqrtLen,
    /// The mean weighted by position: the first token counts once, the second twice.
    #[serde(rename = "weightedmean")]
    WeightedMean,
    /// The output is one vector already.
    #[serde(rename = "none")]
    None,
}

impl Pooling {
    /// All of them.
    pub const ALL: [Pooling; 7] = [
        Pooling::Mean,
        Pooling::Cls,
        Pooling::Max,
        Pooling::LastToken,
        Pooling::MeanSqrtLen,
        Pooling::WeightedMean,
        Pooling::None,
    ];

    /// Its name in manifests and on command lines.
    pub fn name(self) -> &'static str {
        match self {
            Pooling::Mean => "mean",
            Pooling::Cls => "cls",
            Pooling::Max => "max",
            Pooling::LastToken => "lasttoken",
            Pooling::MeanSqrtLen => "mean_sqrt_len",
            Pooling::WeightedMean => "weightedmean",
            Pooling::None => "none",
        }
    }

    /// The one of that name.
    pub fn by_name(name: &str) -> Option<Pooling> {
        Pooling::ALL.into_iter().find(|pooling| pooling.name() == name)
    }
}

/// What a model's makers say about texts, as far as it was found beside the model.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TextRules {
    /// Most tokens of a text, special ones included.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_tokens: Option<u64>,
    /// Whether a longer text is cut there rather than refused.
    pub truncates: bool,
    /// Whether it is its beginning that is cut off.
    pub cuts_start: bool,
    /// Whether texts become lower case first.
    pub lowercase: bool,
    /// What is put before a text, by name.
    #[serde(deserialize_with = "at_most::<_, _, MAX_PROMPTS>")]
    pub prompts: Vec<Prompt>,
    /// Name of the prompt where a request names none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub default_prompt: Option<String>,
    /// Whether a prompt's tokens are left out of the pooling.
    pub skips_prompt: bool,
    /// Whether vectors keep the length that the model gives them; else it is made one.
    pub keeps_length: bool,
    /// What was found and what was guessed, a line each.
    #[serde(deserialize_with = "at_most::<_, _, MAX_SOURCES>")]
    pub sources: Vec<String>,
}

/// A text that is put before others.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Prompt {
    pub name: String,
    pub text: String,
}

/// Refuses more tokens than the texts of a model have, where it is known how many these are.
///
/// # Errors
/// What is wrong, in words.
pub fn check_length(model: &str, tokens: u64, longest: Option<u64>) -> Result<(), String> {
    match longest.filter(|longest| tokens > *longest) {
        None => Ok(()),
        Some(longest) => {
            Err(format!("texts of {model} have at most {longest} tokens, {tokens} are more"))
        }
    }
}

impl TextRules {
    /// The text of a prompt.
    pub fn prompt(&self, name: &str) -> Option<&str> {
        let prompt = self.prompts.iter().find(|prompt| prompt.name == name);
        prompt.map(|prompt| prompt.text.as_str())
    }

    pub(super) fn check(&self) -> Result<(), ManifestError> {
        let invalid = |field: &str, what: &str| {
            Err(ManifestError::Field { field: field.to_owned(), what: what.to_owned() })
        };
        let mut seen = HashSet::new();
        if !self.prompts.iter().all(|prompt| seen.insert(&prompt.name)) {
            return invalid("text.prompts", "has a name twice");
        }
        if self.max_tokens == Some(0) {
            return invalid("text.max_tokens", "is 0");
        }
        match &self.default_prompt {
            Some(name) if self.prompt(name).is_none() => {
                invalid("text.default_prompt", "is no prompt of the model")
            }
            _ => Ok(()),
        }
    }
}
