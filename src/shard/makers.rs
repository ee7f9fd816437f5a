//! What a model's makers wrote beside it of how texts become vectors: the configs of
//! sentence-transformers and of transformers. Files that are broken are refused by name; where they
//! contradict each other, or ask for what is not computed here, nothing is made of them.

use super::configs::{self, Files, MODULES, Module, Sentence, SentenceTransformers, limit_of};
use super::error::{ShardError, ensure, unfit};
use crate::store::manifest::{MAX_PROMPTS, Pooling, Prompt, TextRules};
use crate::sys::panics;
use serde::Deserialize;
use serde_json::{Map, Value};
use tokenizers::Tokenizer;

/// Limit of a prompt; a manifest's strings have one.
const MAX_PROMPT_BYTES: usize = 1024;

/// Where the pooling is, unless [`MODULES`] says otherwise.
const POOLING_PATH: &str = "1_Pooling";

/// How lines begin that say which length vectors have.
pub const VECTORS: &str = "vectors of";

const TOKENIZER: &str = "tokenizer_config.json";
const MODEL: &str = "config.json";

/// What the files say.
#[derive(Debug, Default)]
pub struct Makers {
    /// How tokens are pooled, and the file that says so.
    pub pooling: Option<(Pooling, String)>,
    /// Values of the vectors that are pooled, and the file that says so.
    pub width: Option<(u64, String)>,
    /// Lengths, prompts and the like, with a line for each file.
    pub rules: TextRules,
    /// What makes the model something else than an embedder of texts, where something does.
    pub other_use: Option<String>,
    /// What belongs to the vector and cannot be computed here.
    pub missing: Option<String>,
}

impl Makers {
    /// Reads what is in `files`; `json` is the text of `tokenizer`.
    ///
    /// # Errors
    /// A file that is there and cannot be read, or says what no such file can.
    pub fn read(files: &Files, json: &[u8], tokenizer: &Tokenizer) -> Result<Makers, ShardError> {
        let mut makers = Makers::default();
        let modules = configs::modules(files)?;
        let network = files.at(configs::transformer_path(modules.as_deref()));
        let pooling = makers.read_modules(files, modules.as_deref())?;
        makers.read_pooling(files, pooling)?;
        makers.read_prompts(files)?;
        let of_tokenizer = configs::object(&network, TOKENIZER)?;
        makers.read_texts(&network, json, of_tokenizer.as_ref())?;
        makers.read_frame(of_tokenizer.as_ref(), tokenizer);
        makers.read_architecture(&network)?;
        Ok(makers)
    }

    fn say(&mut self, line: String) {
        self.rules.sources.push(line);
    }

    /// Notes what cannot be computed, once.
    fn miss(&mut self, what: String) {
        self.missing.get_or_insert(what);
    }

    /// The modules that follow each other, which must be those that are computed here. Returns that
    /// of the pooling, where one is named.
    fn read_modules<'a>(
        &mut self,
        files: &Files,
        modules: Option<&'a [Module]>,
    ) -> Result<Option<&'a Module>, ShardError> {
        let Some(modules) = modules else {
            self.say(format!("{VECTORS} length one: guessed, there is no {MODULES}"));
            return Ok(None);
        };
        let (mut pooling, mut normalizes) = (None, false);
        for (index, module) in modules.iter().enumerate() {
            let Module { class, path } = module;
            match module.kind() {
                Some("Transformer") if index == 0 => {}
                Some("Pooling") if index > 0 && pooling.is_none() => pooling = Some(module),
                Some("Normalize") if pooling.is_some() => {
                    let config = configs::object(files, &below(path, MODEL))?;
                    let input = config.as_ref().and_then(|config| config.get("module_input_name"));
                    match input.and_then(Value::as_str) {
                        None | Some("sentence_embedding") => normalizes = true,
                        Some(other) => self.miss(format!("{path} normalizes {other:?}")),
                    }
                }
                Some("Dropout") => {}
                Some("Transformer" | "Pooling" | "Normalize") => {
                    self.miss(format!("{MODULES} has {path:?}, a {class:?}, where none belongs"));
                }
                _ => self.miss(format!("{MODULES} names {path:?}, a {class:?}")),
            }
        }
        if pooling.is_none() {
            self.miss(format!("{MODULES} names no pooling"));
        }
        self.rules.keeps_length = !normalizes;
        self.say(match normalizes {
            true => format!("{VECTORS} length one: {MODULES}"),
            false => format!("{VECTORS} the length that they come to: {MODULES} has no Normalize"),
        });
        Ok(pooling)
    }

    /// How tokens are pooled; a module that is named has to be there.
    fn read_pooling(&mut self, files: &Files, named: Option<&Module>) -> Result<(), ShardError> {
        let path = named.map_or(POOLING_PATH, |module| &module.path);
        let name = below(path, MODEL);
        let Some(config) = configs::object(files, &name)? else {
            if named.is_some() {
                self.miss(format!("{MODULES} names {path:?}, and there is no {name}"));
            }
            return Ok(());
        };
        let flag = |key: &str| match config.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::Bool(value)) => Ok(Some(*value)),
            Some(other) => Err(unfit!("{name}: {key} is {other}, neither true nor false")),
        };
        let mut modes = match config.get("pooling_mode") {
            Some(Value::String(mode)) => vec![mode.to_lowercase()],
            Some(Value::Array(several)) => {
                let modes = several.iter().map(|mode| mode.as_str().map(str::to_lowercase));
                modes.collect::<Option<Vec<_>>>().unwrap_or_default()
            }
            _ => {
                let mut modes = vec![];
                for (key, mode) in
                    config.keys().filter_map(|key| Some((key, key.strip_prefix("pooling_mode_")?)))
                {
                    if flag(key)? == Some(true) {
                        modes.push(mode.to_owned());
                    }
                }
                modes
            }
        };
        for mode in &mut modes {
            let short = mode.strip_suffix("_tokens").or(mode.strip_suffix("_token"));
            *mode = short.unwrap_or(mode).to_owned();
        }
        if flag("include_prompt")? == Some(false) {
            self.rules.skips_prompt = true;
            self.say(format!("prompts are left out of the pooling: {name}"));
        }
        let width = ["embedding_dimension", "word_embedding_dimension"];
        let width = width.iter().find_map(|key| config.get(*key)?.as_u64());
        self.width = width.map(|width| (width, name.clone()));
        match &modes[..] {
            [mode] => {
                let pooling = Pooling::by_name(mode).filter(|pooling| *pooling != Pooling::None);
                let pooling =
                    pooling.ok_or_else(|| unfit!("{name}: pooling {mode:?} is unknown"))?;
                self.pooling = Some((pooling, name));
            }
            [] => return Err(unfit!("{name}: it names no pooling")),
            several => {
                let several = several.join(" and ");
                self.miss(format!("{name} joins the vectors of {several}"));
            }
        }
        Ok(())
    }

    fn read_prompts(&mut self, files: &Files) -> Result<(), ShardError> {
        const NAME: &str = "config_sentence_transformers.json";
        let config: Option<SentenceTransformers> = configs::read(files, NAME)?;
        let SentenceTransformers { prompts, default_prompt_name: default, model_type } =
            config.unwrap_or_default();
        for (name, text) in prompts.into_iter().flatten() {
            let text = text.unwrap_or_default();
            ensure!(
                text.len() <= MAX_PROMPT_BYTES,
                "{NAME}: prompt {name:?} has more than {MAX_PROMPT_BYTES} bytes"
            );
            self.rules.prompts.push(Prompt { name, text });
        }
        let count = self.rules.prompts.len();
        ensure!(count <= MAX_PROMPTS, "{NAME}: it has {count} prompts, more than {MAX_PROMPTS}");
        if let Some(name) = &default {
            let is_known = self.rules.prompt(name).is_some();
            ensure!(is_known, "{NAME}: there is no prompt {name:?}, which is the default");
        }
        if count > 0 {
            let default = default.as_ref();
            let default = default.map_or(String::new(), |name| format!(", {name:?} by default"));
            let names: Vec<&str> = self.rules.prompts.iter().map(|p| p.name.as_str()).collect();
            self.say(format!("prompts {}{default}: {NAME}", names.join(", ")));
        }
        self.rules.default_prompt = default;
        if let Some(kind) = model_type.filter(|kind| kind != "SentenceTransformer") {
            self.other_use = Some(format!("{NAME} says {kind}"));
        }
        Ok(())
    }

    /// The longest text and what becomes of longer ones, as sentence-transformers has it: its own
    /// word, else the tokenizer's within the positions that there are. What tokenizer.json says of
    /// that is what somebody last cut texts to, and counts where nobody else says anything.
    fn read_texts(
        &mut self,
        network: &Files,
        json: &[u8],
        of_tokenizer: Option<&Map<String, Value>>,
    ) -> Result<(), ShardError> {
        let (sentence, name) = read_sentence(network)?;
        if sentence.do_lower_case == Some(true) {
            self.rules.lowercase = true;
            self.say(format!("texts become lower case: {name}"));
        }
        if let Some(task) = sentence.transformer_task.filter(|task| task != "feature-extraction") {
            self.other_use = Some(format!("{name} says {task}"));
        }
        if sentence.modality_config.is_some_and(|known| known.contains_key("message")) {
            self.miss(format!("{name} makes messages of a chat of texts"));
        }
        let own: Own =
            serde_json::from_slice(json).map_err(|error| unfit!("tokenizer.json: {error}"))?;
        let own = own.truncation.unwrap_or_default();
        let positions = positions_of(configs::object(network, MODEL)?.as_ref());
        let number = |value: Option<&Value>| limit_of(value.and_then(Value::as_f64));
        let tokenizers = number(of_tokenizer.and_then(|config| config.get("model_max_length")));
        let by_positions = format!("max_position_embeddings of {MODEL}");
        let said = [
            (limit_of(sentence.max_seq_length), format!("max_seq_length of {name}")),
            (tokenizers, format!("model_max_length of {TOKENIZER}")),
            (positions, by_positions.clone()),
            (number(own.get("max_length")), "truncation of tokenizer.json".to_owned()),
        ];
        if let Some((limit, by)) = said.into_iter().find_map(|(limit, by)| Some((limit?, by))) {
            let (limit, by) = match positions {
                Some(positions) if positions < limit => (positions, by_positions),
                _ => (limit, by),
            };
            self.rules.max_tokens = Some(limit);
            self.rules.truncates = true;
            self.say(format!("texts are cut at {limit} tokens: {by}"));
        }
        let side = of_tokenizer.and_then(|config| config.get("truncation_side"));
        let (side, by) = match side.and_then(Value::as_str) {
            Some(side) => (Some(side), TOKENIZER),
            None => (own.get("direction").and_then(Value::as_str), "tokenizer.json"),
        };
        if self.rules.truncates && side.is_some_and(|side| side.eq_ignore_ascii_case("left")) {
            self.rules.cuts_start = true;
            self.say(format!("it is their beginning that is cut off: {by}"));
        }
        Ok(())
    }

    /// Special tokens that transformers puts round each text, and tokenizer.json does not: a model
    /// that answers with its last token's vector would be asked about another one.
    fn read_frame(&mut self, of_tokenizer: Option<&Map<String, Value>>, tokenizer: &Tokenizer) {
        let Some(config) = of_tokenizer else { return };
        // Where the library refuses or fails over it, nothing is known.
        let framed = panics::caught(|| tokenizer.encode("a", true)).ok().and_then(Result::ok);
        let ids = framed.as_ref().map_or(&[][..], |framed| framed.get_ids());
        let ends = [
            ("add_bos_token", "bos_token", ids.first()),
            ("add_eos_token", "eos_token", ids.last()),
        ];
        for (wish, which, there) in ends {
            let token = match config.get(which) {
                Some(Value::String(token)) => Some(token.as_str()),
                Some(other) => other.get("content").and_then(Value::as_str),
                None => None,
            };
            let id = token.and_then(|token| tokenizer.token_to_id(token));
            if config.get(wish) == Some(&Value::Bool(true)) && id.is_some() && id.as_ref() != there
            {
                let token = token.unwrap_or_default();
                self.miss(format!(
                    "{TOKENIZER} wants {token:?} beside each text ({wish}), which tokenizer.json \
                     does not put there"
                ));
            }
        }
    }

    /// A model with a head of its own is no embedder, whatever its outputs are called.
    fn read_architecture(&mut self, network: &Files) -> Result<(), ShardError> {
        const HEADS: [&str; 6] = [
            "ForSequenceClassification",
            "ForTokenClassification",
            "ForQuestionAnswering",
            "ForMultipleChoice",
            "ForNextSentencePrediction",
            "ForImageClassification",
        ];
        let Some(config) = configs::object(network, MODEL)? else { return Ok(()) };
        let named = config.get("architectures").and_then(Value::as_array);
        let named = named.into_iter().flatten().filter_map(Value::as_str);
        let head = named.into_iter().find(|name| HEADS.iter().any(|head| name.ends_with(head)));
        if let Some(head) = head {
            self.other_use = Some(format!("{MODEL} says {head}"));
        }
        Ok(())
    }
}

/// What of tokenizer.json is read here; the vocabulary is passed over.
#[derive(Deserialize)]
struct Own {
    truncation: Option<Map<String, Value>>,
}

/// How the network is fed, by the first of the names that sentence-transformers knows, and that name.
fn read_sentence(network: &Files) -> Result<(Sentence, String), ShardError> {
    const KINDS: [&str; 7] =
        ["bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet"];
    let names = KINDS.map(|kind| format!("sentence_{kind}_config.json"));
    for name in names {
        if let Some(sentence) = configs::read(network, &name)? {
            return Ok((sentence, name));
        }
    }
    Ok((Sentence::default(), String::new()))
}

/// Positions that the model tells apart, where they end.
fn positions_of(model: Option<&Map<String, Value>>) -> Option<u64> {
    // Their config calls it by another name.
    const OTHERS: [&str; 5] = ["gpt2", "gptj", "codegen", "ctrl", "openai-gpt"];
    // These count positions from behind that of the padding.
    const SHIFTED: [&str; 5] = ["roberta", "xlm-roberta", "camembert", "mpnet", "longformer"];
    let model = model?;
    let kind = model.get("model_type").and_then(Value::as_str).unwrap_or_default();
    let other = model.get("n_positions").filter(|_| OTHERS.contains(&kind));
    let all = limit_of(model.get("max_position_embeddings").or(other)?.as_f64())?;
    Some(if SHIFTED.contains(&kind) { all.saturating_sub(2) } else { all })
}

/// A file of a module's folder; one without a path has its files beside the list of modules.
fn below(path: &str, file: &str) -> String {
    if path.is_empty() { file.to_owned() } else { format!("{path}/{file}") }
}
