//! What the files beside a language model say of texts that it writes.

use super::{DEFAULT, template};
use crate::store::{GENERATION_FORMAT, Generation, SamplingDefaults};
use crate::wire::python_json;
use serde::de::{Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, de};
use serde_json::{Map, Value};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use thiserror::Error;

const CONFIG: &str = "config.json";
const GENERATION: &str = "generation_config.json";
const TOKENIZER: &str = "tokenizer.json";
const TOKENIZER_CONFIG: &str = "tokenizer_config.json";
const TEMPLATE: &str = "chat_template.jinja";
const OLD_TEMPLATE: &str = "chat_template.json";
const TEMPLATES: &str = "additional_chat_templates/";

/// Lengths above it are no limits: who writes them means that there is none.
const MAX_CONTEXT: u64 = 1 << 30;

/// The special tokens that templates know by these names.
const SPECIAL: [&str; 7] =
    ["bos_token", "eos_token", "pad_token", "unk_token", "sep_token", "cls_token", "mask_token"];

/// A file that is no JSON, or not the JSON that it should be.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{file}: {what}")]
pub struct SettingsError {
    pub file: &'static str,
    pub what: String,
}

/// Reads the files, by name; `additional_chat_templates/NAME.jinja` among them. What is there and of
/// no use is said in [`Generation::sources`]. `made_for` is how many tokens of context the network
/// was drawn for, where it was drawn by its config.
///
/// # Errors
/// A file that cannot be read as what it is.
pub fn read(
    files: &BTreeMap<String, Vec<u8>>,
    made_for: Option<u64>,
) -> Result<Generation, SettingsError> {
    let config = object(files, CONFIG)?;
    let generation = object(files, GENERATION)?;
    let tokenizer = object(files, TOKENIZER_CONFIG)?;
    let vocabulary = Vocabulary::read(files)?;
    let mut sources = vec![];
    let (special_tokens, eos_token) = special_tokens(&tokenizer);
    let end_tokens =
        end_tokens(&config, &generation, eos_token.as_deref(), &vocabulary, &mut sources);
    let context = context(&config, &tokenizer, made_for, &mut sources);
    let templates = templates(files, &tokenizer, &mut sources)?;
    let sampling = sampling(&generation, &mut sources);
    Ok(Generation {
        format: GENERATION_FORMAT,
        end_tokens,
        context,
        templates,
        special_tokens,
        sampling,
        sources,
    })
}

/// A file that is there as an object; an empty one where there is none.
fn object(
    files: &BTreeMap<String, Vec<u8>>,
    file: &'static str,
) -> Result<Map<String, Value>, SettingsError> {
    let Some(text) = files.get(file) else { return Ok(Map::new()) };
    python_json::read(text)
        .and_then(serde_json::from_value)
        .map_err(|error| SettingsError { file, what: format!("is no JSON object: {error}") })
}

/// The special tokens by name, and the one that ends texts.
fn special_tokens(config: &Map<String, Value>) -> (BTreeMap<String, String>, Option<String>) {
    let text = |value: &Value| {
        let text = value.as_str().or_else(|| value.get("content")?.as_str());
        text.map(str::to_owned)
    };
    let named = SPECIAL.iter().filter_map(|name| Some(((*name).to_owned(), config.get(*name)?)));
    let extra = config.get("extra_special_tokens").and_then(Value::as_object);
    let extra = extra.into_iter().flatten().map(|(name, value)| (name.clone(), value));
    let tokens: BTreeMap<String, String> =
        named.chain(extra).filter_map(|(name, value)| Some((name, text(value)?))).collect();
    let eos = tokens.get("eos_token").cloned();
    (tokens, eos)
}

/// All tokens that any file has end a text: one too many is told, one too few never ends.
fn end_tokens(
    config: &Map<String, Value>,
    generation: &Map<String, Value>,
    eos_token: Option<&str>,
    vocabulary: &Vocabulary,
    sources: &mut Vec<String>,
) -> Vec<u32> {
    const KEY: &str = "eos_token_id";
    let nested = config.get("text_config").and_then(|nested| nested.get(KEY));
    let places = [(GENERATION, generation.get(KEY)), (CONFIG, config.get(KEY)), (CONFIG, nested)];
    let limit = vocabulary.limit.or_else(|| {
        let size = config.get("vocab_size")?.as_u64()?;
        u32::try_from(size).ok()
    });
    let mut ends = BTreeSet::new();
    for (file, value) in places {
        let ids = match value {
            Some(Value::Array(ids)) => ids.iter().collect(),
            Some(id) => vec![id],
            None => vec![],
        };
        for id in ids.into_iter().filter(|id| !id.is_null() && id.as_i64() != Some(-1)) {
            let known = id.as_u64().and_then(|id| u32::try_from(id).ok());
            match known.filter(|id| limit.is_none_or(|limit| *id < limit)) {
                Some(id) => drop(ends.insert(id)),
                None => sources.push(format!("{file}: {KEY} {id} is no token and is left out")),
            }
        }
    }
    if let Some(text) = eos_token {
        match vocabulary.added.get(text) {
            Some(id) => drop(ends.insert(*id)),
            None if ends.is_empty() => {
                sources.push(format!("{TOKENIZER_CONFIG}: eos_token {text:?} is no added token"));
            }
            None => {}
        }
    }
    let ids: Vec<String> = ends.iter().map(u32::to_string).collect();
    sources.push(match ids.is_empty() {
        true => "no token ends a text: no file names one, max_tokens and the context do".to_owned(),
        false => format!("texts end with token {}", ids.join(" or ")),
    });
    ends.into_iter().collect()
}

fn context(
    config: &Map<String, Value>,
    tokenizer: &Map<String, Value>,
    made_for: Option<u64>,
    sources: &mut Vec<String>,
) -> Option<u64> {
    const KEYS: [&str; 5] =
        ["max_position_embeddings", "n_positions", "n_ctx", "seq_length", "max_sequence_length"];
    let nested = config.get("text_config").and_then(Value::as_object);
    let of = |map: &Map<String, Value>| {
        KEYS.iter().find_map(|key| Some((*key, map.get(*key)?.as_u64()?)))
    };
    let plausible = |length: &u64| (1..=MAX_CONTEXT).contains(length);
    let found = of(config).or_else(|| of(nested?)).filter(|(_, length)| plausible(length));
    // A key that the network does not go by is none of its.
    let found = found.filter(|(_, length)| made_for.is_none_or(|made_for| made_for == *length));
    if let Some((key, length)) = found {
        sources.push(format!("{length} tokens of context: {key} of {CONFIG}"));
        return Some(length);
    }
    if let Some(length) = made_for.filter(plausible) {
        sources.push(format!("{length} tokens of context: the architecture's default"));
        return Some(length);
    }
    let length = tokenizer.get("model_max_length").and_then(Value::as_u64).filter(plausible);
    sources.push(match length {
        Some(length) => {
            format!("{length} tokens of context: model_max_length of {TOKENIZER_CONFIG}")
        }
        None => "no file says how many tokens of context there are".to_owned(),
    });
    length
}

fn templates(
    files: &BTreeMap<String, Vec<u8>>,
    tokenizer: &Map<String, Value>,
    sources: &mut Vec<String>,
) -> Result<BTreeMap<String, String>, SettingsError> {
    let mut found: BTreeMap<String, (String, String)> = BTreeMap::new();
    let mut put = |name: &str, file: &str, source: String| {
        found.insert(name.to_owned(), (file.to_owned(), source));
    };
    // The later ones win.
    for (file, map) in
        [(OLD_TEMPLATE, &object(files, OLD_TEMPLATE)?), (TOKENIZER_CONFIG, tokenizer)]
    {
        match map.get("chat_template") {
            Some(Value::String(source)) => put(DEFAULT, file, source.clone()),
            Some(Value::Array(named)) => {
                for template in named {
                    let text = |key: &str| template.get(key).and_then(Value::as_str);
                    if let (Some(name), Some(source)) = (text("name"), text("template")) {
                        put(name, file, source.to_owned());
                    }
                }
            }
            _ => {}
        }
    }
    let text = |file: &'static str, bytes: &[u8]| {
        String::from_utf8(bytes.to_vec())
            .map_err(|_| SettingsError { file, what: "is no UTF-8".to_owned() })
    };
    if let Some(bytes) = files.get(TEMPLATE) {
        put(DEFAULT, TEMPLATE, text(TEMPLATE, bytes)?);
    }
    for (path, bytes) in files {
        let name = path.strip_prefix(TEMPLATES).and_then(|name| name.strip_suffix(".jinja"));
        if let Some(name) = name {
            put(name, path, text(TEMPLATES, bytes)?);
        }
    }
    let mut templates = BTreeMap::new();
    for (name, (file, source)) in found {
        let is_empty = source.trim().is_empty();
        match template::check(&source) {
            Ok(()) if !is_empty => {
                sources.push(format!("chat template {name:?}: {file}"));
                templates.insert(name, source);
            }
            Ok(()) => sources.push(format!("chat template {name:?} of {file} is empty: none")),
            Err(error) => sources.push(format!("no chat template {name:?} of {file}: {error}")),
        }
    }
    if templates.is_empty() {
        sources.push("no chat template: it completes texts and does not chat".to_owned());
    }
    Ok(templates)
}

/// The makers' defaults where they say that tokens are drawn.
fn sampling(generation: &Map<String, Value>, sources: &mut Vec<String>) -> SamplingDefaults {
    if generation.get("do_sample").and_then(Value::as_bool) != Some(true) {
        return SamplingDefaults::default();
    }
    let number = |key: &str| generation.get(key).and_then(Value::as_f64);
    let found = SamplingDefaults {
        temperature: number("temperature"),
        top_k: generation.get("top_k").and_then(Value::as_i64),
        top_p: number("top_p"),
        min_p: number("min_p"),
        repetition_penalty: number("repetition_penalty"),
    };
    match super::sampler::Sampling::of(&found).check() {
        Ok(()) if found == SamplingDefaults::default() => found,
        Ok(()) => {
            sources.push(format!("sampling where requests say nothing: {GENERATION}"));
            found
        }
        Err(error) => {
            sources.push(format!("{GENERATION}: {error}; OpenAI's defaults are taken"));
            SamplingDefaults::default()
        }
    }
}

/// What of a tokenizer.json decides which ids there are.
#[derive(Default)]
struct Vocabulary {
    /// Ids are below it.
    limit: Option<u32>,
    added: BTreeMap<String, u32>,
}

impl Vocabulary {
    fn read(files: &BTreeMap<String, Vec<u8>>) -> Result<Vocabulary, SettingsError> {
        #[derive(Deserialize)]
        struct File {
            #[serde(default)]
            added_tokens: Vec<Added>,
            model: Option<Model>,
        }
        #[derive(Deserialize)]
        struct Added {
            id: u32,
            content: String,
        }
        #[derive(Deserialize)]
        struct Model {
            vocab: Option<Limit>,
        }
        let Some(text) = files.get(TOKENIZER) else { return Ok(Vocabulary::default()) };
        let file: File = serde_json::from_slice(text)
            .map_err(|error| SettingsError { file: TOKENIZER, what: error.to_string() })?;
        let words = file.model.and_then(|model| model.vocab).map(|Limit(limit)| limit);
        let added = file.added_tokens.iter().map(|added| added.id.saturating_add(1)).max();
        let limit = words.max(words.and(added));
        let added = file.added_tokens.into_iter().map(|added| (added.content, added.id));
        Ok(Vocabulary { limit, added: added.collect() })
    }
}

/// One more than the largest id of a vocabulary, of which nothing else is held.
struct Limit(u32);

impl<'de> Deserialize<'de> for Limit {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Limit, D::Error> {
        struct Reader;
        impl<'de> Visitor<'de> for Reader {
            type Value = Limit;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("words")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut words: A) -> Result<Limit, A::Error> {
                let mut limit = 0;
                while let Some((_, id)) = words.next_entry::<IgnoredAny, u32>()? {
                    limit = limit.max(id.saturating_add(1));
                }
                Ok(Limit(limit))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut words: A) -> Result<Limit, A::Error> {
                let mut count = 0_u32;
                while words.next_element::<IgnoredAny>()?.is_some() {
                    count = count.checked_add(1).ok_or_else(|| de::Error::custom("too many"))?;
                }
                Ok(Limit(count))
            }
        }
        deserializer.deserialize_any(Reader)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A GPT-2 whose config says nothing of places has a table of 1024 all the same.
    #[test]
    fn the_context_is_what_the_network_was_drawn_for() {
        let check = |config: &str, made_for, right| {
            let tokenizer = br#"{"model_max_length": 128}"#.to_vec();
            let files = [(CONFIG, config.into()), (TOKENIZER_CONFIG, tokenizer)];
            let files = files.map(|(name, text)| (name.to_owned(), text)).into();
            assert_eq!(read(&files, made_for).unwrap().context, right, "{config} {made_for:?}");
        };
        check("{}", Some(1024), Some(1024));
        check(r#"{"n_ctx": 2048}"#, Some(1024), Some(1024));
        check(r#"{"n_positions": 64, "n_ctx": 2048}"#, Some(64), Some(64));
        check(r#"{"n_ctx": 2048, "other": Infinity}"#, None, Some(2048));
        check("{}", None, Some(128));
    }
}
