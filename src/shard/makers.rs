//! What a model's makers wrote beside it of how texts become vectors: the configs of
//! sentence-transformers and of transformers.

use super::error::{ShardError, ensure, unfit};
use crate::store::manifest::{MAX_PROMPTS, Pooling, Prompt, TextRules};
use serde::Deserialize;
use serde_json::{Map, Value};
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::Path;

/// Limit of a config: those of real models have some KB.
const MAX_CONFIG_BYTES: u64 = 4 << 20;

/// Limit of a prompt; a manifest's strings have one.
const MAX_PROMPT_BYTES: usize = 1024;

/// A length from which on "the longest text" means that there is none: transformers writes 1e30.
const NO_LIMIT: f64 = 1e9;

/// What the files say.
#[derive(Debug, Default)]
pub struct Makers {
    /// How tokens are pooled, and the file that says so.
    pub pooling: Option<(Pooling, String)>,
    /// Lengths, prompts and the like, with a line for each file.
    pub rules: TextRules,
    /// What makes the model something else than an embedder of texts, where something does.
    pub other_use: Option<String>,
    /// What belongs to the vector and cannot be computed here.
    pub missing: Option<String>,
}

impl Makers {
    /// Reads what is in `folder`; `tokenizer` is the text of tokenizer.json.
    ///
    /// # Errors
    /// A file that is there and cannot be read, or says what no such file can.
    pub fn read(folder: &Path, tokenizer: &[u8]) -> Result<Makers, ShardError> {
        let mut makers = Makers::default();
        let pooling_folder = makers.read_modules(folder)?;
        makers.read_pooling(folder, &pooling_folder)?;
        makers.read_prompts(folder)?;
        makers.read_length(folder, tokenizer)?;
        makers.read_architecture(folder)?;
        Ok(makers)
    }

    fn say(&mut self, line: String) {
        self.rules.sources.push(line);
    }

    /// The modules that follow each other, which must be those that are computed here. Returns the
    /// folder of the pooling.
    fn read_modules(&mut self, folder: &Path) -> Result<String, ShardError> {
        const NAME: &str = "modules.json";
        let usual = "1_Pooling".to_string();
        let Some(modules) = read_json(folder, NAME)? else { return Ok(usual) };
        let modules = modules.as_array().ok_or_else(|| unfit!("{NAME}: it is no list"))?;
        let mut pooling = None;
        for module in modules {
            let text = |key: &str| module[key].as_str().unwrap_or_default();
            let (kind, path) = (text("type"), text("path"));
            match kind.rsplit('.').next().unwrap_or_default() {
                "Transformer" | "Normalize" => {}
                "Pooling" => pooling = Some(path.to_string()),
                _ => self.missing = Some(format!("{NAME} names {path:?}, a {kind:?}")),
            }
        }
        let has_normalize = modules
            .iter()
            .any(|module| module["type"].as_str().is_some_and(|kind| kind.ends_with(".Normalize")));
        if has_normalize {
            self.say(format!("vectors of length one: {NAME}"));
        }
        let path = pooling.unwrap_or(usual);
        let is_inner = path.split('/').all(|part| !matches!(part, "" | "." | ".."));
        ensure!(is_inner, "{NAME}: path {path:?} leaves the folder");
        Ok(path)
    }

    fn read_pooling(&mut self, folder: &Path, pooling_folder: &str) -> Result<(), ShardError> {
        let name = format!("{pooling_folder}/config.json");
        let Some(config) = read_object(folder, &name)? else { return Ok(()) };
        let mut modes: Vec<&str> = config
            .iter()
            .filter(|(_, value)| **value == Value::Bool(true))
            .filter_map(|(key, _)| key.strip_prefix("pooling_mode_"))
            .map(|mode| mode.strip_suffix("_tokens").unwrap_or(mode))
            .map(|mode| if mode == "cls_token" { "cls" } else { mode })
            .collect();
        match config.get("pooling_mode") {
            Some(Value::String(mode)) => modes = vec![mode],
            Some(Value::Array(several)) => {
                modes = several.iter().filter_map(Value::as_str).collect();
            }
            _ => {}
        }
        if config.get("include_prompt") == Some(&Value::Bool(false)) {
            self.rules.skips_prompt = true;
            self.say(format!("prompts are left out of the pooling: {name}"));
        }
        match modes[..] {
            [mode] => {
                let pooling = Pooling::by_name(mode).filter(|pooling| *pooling != Pooling::None);
                let pooling =
                    pooling.ok_or_else(|| unfit!("{name}: pooling {mode:?} is unknown"))?;
                self.pooling = Some((pooling, name));
            }
            [] => return Err(unfit!("{name}: it names no pooling")),
            _ => {
                let several = modes.join(" and ");
                self.missing = Some(format!("{name} joins the vectors of {several}"));
            }
        }
        Ok(())
    }

    fn read_prompts(&mut self, folder: &Path) -> Result<(), ShardError> {
        const NAME: &str = "config_sentence_transformers.json";
        let Some(config) = read_object(folder, NAME)? else { return Ok(()) };
        let prompts = config.get("prompts").and_then(Value::as_object);
        for (name, text) in prompts.into_iter().flatten() {
            let text = text.as_str().filter(|text| text.len() <= MAX_PROMPT_BYTES);
            let text = text.ok_or_else(|| {
                unfit!("{NAME}: prompt {name:?} is no text of at most {MAX_PROMPT_BYTES} bytes")
            })?;
            self.rules.prompts.push(Prompt { name: name.clone(), text: text.to_string() });
        }
        let count = self.rules.prompts.len();
        ensure!(count <= MAX_PROMPTS, "{NAME}: it has {count} prompts, more than {MAX_PROMPTS}");
        let default = config.get("default_prompt_name").and_then(Value::as_str);
        if let Some(name) = default {
            let is_known = self.rules.prompt(name).is_some();
            ensure!(is_known, "{NAME}: there is no prompt {name:?}, which is the default");
            self.rules.default_prompt = Some(name.to_string());
        }
        if !self.rules.prompts.is_empty() {
            let default = default.map_or(String::new(), |name| format!(", {name:?} by default"));
            self.say(format!("{count} prompts{default}: {NAME}"));
        }
        Ok(())
    }

    /// The longest text: of those who say it, the first in the order in which sentence-transformers
    /// asks them. Where only the positions end, a longer text is refused.
    fn read_length(&mut self, folder: &Path, tokenizer: &[u8]) -> Result<(), ShardError> {
        const SENTENCE: &str = "sentence_bert_config.json";
        const TOKENIZER: &str = "tokenizer_config.json";
        const MODEL: &str = "config.json";
        let sentence = read_object(folder, SENTENCE)?;
        let own: Own =
            serde_json::from_slice(tokenizer).map_err(|error| unfit!("tokenizer.json: {error}"))?;
        let own = own.truncation.as_ref().and_then(|truncation| truncation.get("max_length"));
        let for_tokenizer = read_object(folder, TOKENIZER)?;
        let model = read_object(folder, MODEL)?;
        let get = |object: &Option<Map<String, Value>>, key: &str| {
            object.as_ref().and_then(|object| limit_of(object.get(key)))
        };
        if sentence.as_ref().and_then(|s| s.get("do_lower_case")) == Some(&Value::Bool(true)) {
            self.rules.lowercase = true;
            self.say(format!("texts become lower case: {SENTENCE}"));
        }
        let positions = get(&model, "max_position_embeddings").map(|all| {
            // RoBERTa and its kin count positions from behind that of the padding.
            let kind = model.as_ref().and_then(|m| m.get("model_type")).and_then(Value::as_str);
            let is_shifted = kind.is_some_and(|kind| {
                ["roberta", "xlm-roberta", "camembert", "mpnet", "longformer"].contains(&kind)
            });
            if is_shifted { all.saturating_sub(2) } else { all }
        });
        let said = [
            (get(&sentence, "max_seq_length"), format!("max_seq_length of {SENTENCE}")),
            (limit_of(own), "truncation of tokenizer.json".into()),
            (get(&for_tokenizer, "model_max_length"), format!("model_max_length of {TOKENIZER}")),
        ];
        let said = said.into_iter().find_map(|(limit, by)| Some((limit?, by)));
        match (said, positions) {
            (Some((limit, by)), positions) => {
                let limit = positions.map_or(limit, |positions| positions.min(limit));
                self.rules.max_tokens = Some(limit);
                self.rules.truncates = true;
                self.say(format!("texts are cut at {limit} tokens: {by}"));
            }
            (None, Some(positions)) => {
                self.rules.max_tokens = Some(positions);
                let by = format!("max_position_embeddings of {MODEL}");
                self.say(format!("texts of more than {positions} tokens are refused: {by}"));
            }
            (None, None) => {}
        }
        Ok(())
    }

    /// A model with a head of its own is no embedder, whatever its outputs are called.
    fn read_architecture(&mut self, folder: &Path) -> Result<(), ShardError> {
        const NAME: &str = "config.json";
        const HEADS: [&str; 6] = [
            "ForSequenceClassification",
            "ForTokenClassification",
            "ForQuestionAnswering",
            "ForMultipleChoice",
            "ForNextSentencePrediction",
            "ForImageClassification",
        ];
        let Some(config) = read_object(folder, NAME)? else { return Ok(()) };
        let named = config.get("architectures").and_then(Value::as_array);
        let named = named.into_iter().flatten().filter_map(Value::as_str);
        let head = named.into_iter().find(|name| HEADS.iter().any(|head| name.ends_with(head)));
        self.other_use = head.map(|head| format!("{NAME} says {head}"));
        Ok(())
    }
}

/// What of tokenizer.json is read here; the vocabulary is passed over.
#[derive(Deserialize)]
struct Own {
    truncation: Option<Map<String, Value>>,
}

/// A length of texts, where it is one.
fn limit_of(value: Option<&Value>) -> Option<u64> {
    let number = value?.as_f64()?;
    ((1.0..NO_LIMIT).contains(&number)).then_some(number as u64)
}

fn read_object(folder: &Path, name: &str) -> Result<Option<Map<String, Value>>, ShardError> {
    match read_json(folder, name)? {
        None => Ok(None),
        Some(Value::Object(object)) => Ok(Some(object)),
        Some(_) => Err(unfit!("{name}: it is no JSON object")),
    }
}

/// Reads a config, where it is there.
fn read_json(folder: &Path, name: &str) -> Result<Option<Value>, ShardError> {
    let path = folder.join(name);
    let is_file = fs::metadata(&path).is_ok_and(|metadata| metadata.is_file());
    if !is_file {
        return Ok(None);
    }
    let read = || -> io::Result<Value> {
        let mut text = vec![];
        File::open(&path)?.take(MAX_CONFIG_BYTES + 1).read_to_end(&mut text)?;
        if text.len() as u64 > MAX_CONFIG_BYTES {
            let what = format!("it has more than {MAX_CONFIG_BYTES} bytes");
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, what));
        }
        Ok(serde_json::from_slice(&text)?)
    };
    read().map(Some).map_err(ShardError::io(format!("read {}", path.display())))
}
