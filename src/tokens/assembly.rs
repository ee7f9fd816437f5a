//! The parts of a tokenizer.json, put together one after the other, each looked at before.

use super::error::RuleError;
use super::growth::Growth;
use super::rules;
use crate::sys::panics;
use crate::text::vocabulary::{Load, Survey, VocabularyKind};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::fmt::Display;
use thiserror::Error;
use tokenizers::models::ModelWrapper;
use tokenizers::models::bpe::BPE;
use tokenizers::models::unigram::Unigram;
use tokenizers::models::wordlevel::WordLevel;
use tokenizers::models::wordpiece::WordPiece;
use tokenizers::normalizers::{Lowercase, Sequence};
use tokenizers::{
    AddedToken, DecoderWrapper, NormalizedString, Normalizer, NormalizerWrapper,
    PostProcessorWrapper, PreTokenizerWrapper, Tokenizer, TokenizerBuilder, TruncationParams,
};

/// Why a file becomes no tokenizer.
#[derive(Debug, Error)]
pub enum AssemblyError<E> {
    /// There is no room for it.
    #[error("{0}")]
    Room(E),
    /// It is none.
    #[error("{0}")]
    Unfit(String),
    /// No text is to be cut by it.
    #[error("{0}")]
    Rule(#[from] RuleError),
}

/// How a tokenizer is to be.
#[derive(Clone, Copy, Debug, Default)]
pub struct Manner {
    /// Whether its model writes texts.
    pub writes_texts: bool,
    /// Whether it makes texts lower case first, as sentence-transformers does: special tokens that a
    /// text has keep their case.
    pub lowercase: bool,
}

/// A tokenizer. Texts are decoded otherwise, and each is a request of its own: nothing has to be
/// padded to anything.
pub struct Assembled {
    pub tokenizer: Tokenizer,
    /// The tokens that were added to it.
    pub added: Vec<AddedToken>,
    /// How it would decode.
    pub decoder: Value,
    /// How much longer it may make a text.
    pub growth: Growth,
    /// What making it takes.
    pub survey: Survey,
}

/// Makes the tokenizer that a tokenizer.json says. `room` is asked for the bytes of the heap that
/// this takes in all, before it takes them, and again where they come to be more.
///
/// # Errors
/// What `room` says; a file that is no tokenizer, or whose rules no text is to be cut by.
pub fn assemble<E>(
    json: &[u8],
    manner: Manner,
    mut room: impl FnMut(u64) -> Result<(), E>,
) -> Result<Assembled, AssemblyError<E>> {
    let Manner { writes_texts, lowercase } = manner;
    let mut survey = Survey::of(json).map_err(unfit)?;
    if let Some((bytes, id)) = survey.shared {
        return Err(RuleError::Shared { bytes, id }.into());
    }
    let kind = survey.kind;
    let mut enlarge = |survey: &Survey, kind| {
        room(survey.loading_bytes(kind, writes_texts)).map_err(AssemblyError::Room)
    };
    enlarge(&survey, kind)?;
    let rules: Rules = serde_json::from_slice(json).map_err(unfit)?;
    survey.load.pattern_bytes = rules.check()?;
    enlarge(&survey, kind)?;
    let (made, decoder) = caught(|| rules.make(lowercase))?;
    let (factor, before) = made.growth.of_words();
    survey.load = Load { factor, before, ..survey.load };
    enlarge(&survey, kind)?;
    let direct = match kind {
        Some(VocabularyKind::Bpe) => parse::<BPE, E>(json),
        Some(VocabularyKind::Unigram) => parse::<Unigram, E>(json),
        Some(VocabularyKind::WordLevel) => parse::<WordLevel, E>(json),
        Some(VocabularyKind::WordPiece) => parse::<WordPiece, E>(json),
        None => parse::<ModelWrapper, E>(json),
    };
    let words = match direct {
        Ok(words) => words,
        // What is odd in a model is read too, but in several forms at once.
        Err(_) => {
            enlarge(&survey, None)?;
            parse::<ModelWrapper, E>(json)?
        }
    };
    let (tokenizer, added, growth) = caught(|| made.with(words))?;
    Ok(Assembled { tokenizer, added, decoder, growth, survey })
}

fn unfit<E>(error: impl Display) -> AssemblyError<E> {
    AssemblyError::Unfit(error.to_string())
}

/// Does work of the library's, which panics over odd files.
fn caught<T, E>(work: impl FnOnce() -> Result<T, AssemblyError<E>>) -> Result<T, AssemblyError<E>> {
    let done = panics::caught(work);
    done.unwrap_or_else(|panic| Err(unfit(format!("it cannot be a tokenizer: {panic}"))))
}

/// What a file says of texts, as it says it.
#[derive(Deserialize)]
struct Rules {
    #[serde(default)]
    normalizer: Value,
    #[serde(default)]
    pre_tokenizer: Value,
    #[serde(default)]
    post_processor: Value,
    #[serde(default)]
    decoder: Value,
}

impl Rules {
    /// Looks at what is about to be made. Returns what its patterns take.
    fn check(&self) -> Result<u64, RuleError> {
        let normalizer = rules::check_unmade("normalizer", &self.normalizer)?;
        let pre_tokenizer = rules::check_unmade("pre_tokenizer", &self.pre_tokenizer)?;
        rules::check_unmade("post_processor", &self.post_processor)?;
        Ok(normalizer + pre_tokenizer)
    }

    /// Makes the rules, and looks at what they do as the library understood them.
    fn make<E>(self, lowercase: bool) -> Result<(Made, Value), AssemblyError<E>> {
        let mut normalizer: Option<NormalizerWrapper> = read(self.normalizer)?;
        if lowercase {
            let mut steps = vec![NormalizerWrapper::Lowercase(Lowercase)];
            steps.extend(normalizer);
            normalizer = Some(NormalizerWrapper::Sequence(Sequence::new(steps)));
        }
        let pre_tokenizer = read(self.pre_tokenizer)?;
        let post_processor: Option<PostProcessorWrapper> = read(self.post_processor)?;
        let growth = Growth::of(normalizer.as_ref(), pre_tokenizer.as_ref())?;
        rules::check_frame(&rules::as_tree(&post_processor)?)?;
        Ok((Made { normalizer, pre_tokenizer, post_processor, growth }, self.decoder))
    }
}

/// A part of the file, where it has one.
fn read<T: DeserializeOwned, E>(part: Value) -> Result<Option<T>, AssemblyError<E>> {
    serde_json::from_value(part).map_err(unfit)
}

/// Rules that were looked at.
struct Made {
    normalizer: Option<NormalizerWrapper>,
    pre_tokenizer: Option<PreTokenizerWrapper>,
    post_processor: Option<PostProcessorWrapper>,
    growth: Growth,
}

impl Made {
    /// A tokenizer of these rules and words.
    fn with<E>(
        self,
        words: Words,
    ) -> Result<(Tokenizer, Vec<AddedToken>, Growth), AssemblyError<E>> {
        let Words { mut model, added, truncation } = words;
        rules::check_model(&model)?;
        // Words that were seen would be kept, of each model in each thread, beside the ledger.
        model.resize_cache(0);
        let growth = self.growth.in_tokens_of(&model);
        let shortest = shortest(&added, self.normalizer.as_ref()).map_err(unfit)?;
        let growth = growth.between(shortest);
        let built = TokenizerBuilder::new()
            .with_model(model)
            .with_normalizer(self.normalizer)
            .with_pre_tokenizer(self.pre_tokenizer)
            .with_post_processor(self.post_processor)
            .with_decoder(None::<DecoderWrapper>)
            .with_truncation(truncation)
            .build();
        let mut tokenizer = built.map_err(unfit)?;
        tokenizer.add_tokens(added.iter().cloned()).map_err(unfit)?;
        Ok((Tokenizer::from(tokenizer), added, growth))
    }
}

/// Characters of the shortest added token, as it is found in a text.
fn shortest(
    added: &[AddedToken],
    normalizer: Option<&NormalizerWrapper>,
) -> tokenizers::Result<Option<u64>> {
    let length = |token: &AddedToken| -> tokenizers::Result<u64> {
        let mut found = NormalizedString::from(&*token.content);
        if let Some(normalizer) = normalizer.filter(|_| token.normalized) {
            normalizer.normalize(&mut found)?;
        }
        Ok(found.get().chars().count() as u64)
    };
    added.iter().map(length).try_fold(None, |least: Option<u64>, length| {
        let length = length?;
        Ok(Some(least.map_or(length, |least| least.min(length))))
    })
}

/// A model and the tokens that are added to it.
struct Words {
    model: ModelWrapper,
    added: Vec<AddedToken>,
    truncation: Option<TruncationParams>,
}

#[derive(Deserialize)]
struct Parts<M> {
    version: Option<String>,
    truncation: Option<TruncationParams>,
    #[serde(default)]
    added_tokens: Vec<Added>,
    model: M,
}

#[derive(Deserialize)]
struct Added {
    #[serde(flatten)]
    token: AddedToken,
}

/// Reads a model of the type `M`. Read as what it is, a model takes a third of what it takes where
/// that has to be found out.
fn parse<M, E>(json: &[u8]) -> Result<Words, AssemblyError<E>>
where
    M: DeserializeOwned + Into<ModelWrapper>,
{
    caught(|| {
        let parts: Parts<M> = serde_json::from_slice(json).map_err(unfit)?;
        if parts.version.as_deref().is_some_and(|version| version != "1.0") {
            let version = parts.version.unwrap_or_default();
            return Err(unfit(format!("unknown version {version:?}")));
        }
        let added = parts.added_tokens.into_iter().map(|added| added.token).collect();
        Ok(Words { model: parts.model.into(), added, truncation: parts.truncation })
    })
}
