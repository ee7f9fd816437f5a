//! The bodies of OpenAI's completions and chat calls, read. Whatever would change the answer and is
//! not done here is refused by its name.

use super::embeddings_json::Input;
use super::error::ApiError;
use super::generation_fields::{
    Ask, NODE_BYTES, Refusal, biases, flag, modalities, number, prompts, refuse, response_format,
    stops, stream_options, text, told, tool_choice, variables, whole, within,
};
use crate::store::SamplingDefaults;
use crate::text::chat::Chat;
use crate::text::sampler::Sampling;
use crate::text::stops::Stops;
use crate::text::{Value, ValueKind, tree};
use crate::wire::infer_tensor::Reserve;
use crate::wire::json::Scanner;

/// Most likeliest tokens that are told of each token: OpenAI's limits.
const MAX_LOGPROBS: i64 = 5;
const MAX_TOP_LOGPROBS: i64 = 20;

/// Fields that would change the answer and have no effect here, and what is to be done instead.
const UNHEEDED: [(&str, &str); 25] = [
    ("audio", "answers are texts"),
    ("bad_words", "logit_bias keeps tokens out"),
    ("chat_template", "the model's own template is taken"),
    ("function_call", "use tools"),
    ("functions", "use tools"),
    ("grammar", "answers are plain texts"),
    ("guided_choice", "answers are plain texts"),
    ("guided_grammar", "answers are plain texts"),
    ("guided_json", "answers are plain texts"),
    ("guided_regex", "answers are plain texts"),
    ("ignore_eos", "a text ends where the model ends it"),
    ("include_stop_str_in_output", "a stop string is no part of the text"),
    ("json_schema", "answers are plain texts"),
    ("length_penalty", "texts are drawn, not searched"),
    ("mirostat", "give top_p or min_p"),
    ("min_tokens", "a text ends where the model ends it"),
    ("prompt_logprobs", "only tokens of the answer have logprobs"),
    ("repeat_penalty", "give repetition_penalty"),
    ("skip_special_tokens", "special tokens are no part of the text"),
    ("stop_token_ids", "give stop strings"),
    ("structured_outputs", "answers are plain texts"),
    ("truncate_prompt_tokens", "shorten the prompt"),
    ("typical_p", "give top_p or min_p"),
    ("use_beam_search", "texts are drawn, not searched"),
    ("web_search_options", "the model knows what it knows"),
];

/// Values of such fields that leave the answer as it is.
const NEUTRAL: [(&str, f64); 3] = [("mirostat", 0.0), ("repeat_penalty", 1.0), ("typical_p", 1.0)];

/// Fields of chats, which completions have not, and what is to be done instead.
const OF_CHATS: [(&str, &str); 5] = [
    ("chat_template_kwargs", "a prompt is taken as it is"),
    ("documents", "a prompt is taken as it is"),
    ("messages", "use /v1/chat/completions"),
    ("tools", "use /v1/chat/completions"),
    ("top_logprobs", "logprobs says how many"),
];

/// Which call it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    Completion,
    Chat,
}

/// What is to be gone on with.
#[derive(Debug)]
pub enum Asked {
    /// Plain prompts, each for itself.
    Prompts(Vec<Input>),
    /// A chat, and how many bytes it came in.
    Chat(Box<Chat>, usize),
}

/// The body of a request.
#[derive(Debug)]
pub struct GenerationRequest {
    pub model: String,
    pub asked: Asked,
    /// Most tokens of the answer.
    pub max_tokens: Option<usize>,
    pub seed: Option<u64>,
    pub stops: Stops,
    /// Whether the answer comes as events, and whether the last tells the usage.
    pub streams: bool,
    pub includes_usage: bool,
    /// How many of the likeliest tokens are told beside each token.
    pub logprobs: Option<usize>,
    drawing: Drawing,
}

/// How tokens are to be drawn, as far as it is said.
#[derive(Debug, Default)]
struct Drawing {
    temperature: Option<f64>,
    top_k: Option<i64>,
    top_p: Option<f64>,
    min_p: Option<f64>,
    repetition_penalty: Option<f64>,
    frequency_penalty: Option<f64>,
    presence_penalty: Option<f64>,
    logit_bias: Vec<(String, f64)>,
}

impl GenerationRequest {
    /// Reads a request body; never panics, whatever `text` is. Says also how many bytes it holds.
    ///
    /// # Errors
    ///
    /// 400, naming the field and what was expected; what `reserve` makes of bytes that there are
    /// not.
    pub fn parse(
        call: Call,
        text: &[u8],
        reserve: &mut Reserve<'_>,
    ) -> Result<(GenerationRequest, u64), ApiError> {
        let mut total_bytes = 0;
        let mut ask = |bytes: usize| {
            total_bytes += bytes as u64;
            reserve(total_bytes).map_err(|error| Refusal(error.into()))
        };
        let mut fields = Fields::default();
        let mut scanner = Scanner::new(text);
        let read = scanner
            .object(|scanner, key| fields.read(call, scanner, key, &mut ask))
            .and_then(|()| scanner.end().map_err(Refusal::from))
            .and_then(|()| fields.finish(call));
        let request = read.map_err(|Refusal(error)| error)?;
        Ok((request, total_bytes))
    }

    /// How tokens are drawn for a model with these defaults and so many tokens.
    ///
    /// # Errors
    ///
    /// 400 for what is out of range.
    pub fn sampling(
        &self,
        defaults: &SamplingDefaults,
        vocabulary: usize,
    ) -> Result<Sampling, ApiError> {
        let own = Sampling::of(defaults);
        let Drawing { logit_bias, .. } = &self.drawing;
        let biases = logit_bias.iter().map(|(key, bias)| Sampling::bias(key, *bias, vocabulary));
        let biases = biases.collect::<Result<Vec<_>, _>>();
        let checked = biases.and_then(|logit_bias| {
            let sampling = Sampling {
                temperature: self.drawing.temperature.unwrap_or(own.temperature),
                top_k: self.drawing.top_k.unwrap_or(own.top_k),
                top_p: self.drawing.top_p.unwrap_or(own.top_p),
                min_p: self.drawing.min_p.unwrap_or(own.min_p),
                repetition_penalty: self
                    .drawing
                    .repetition_penalty
                    .unwrap_or(own.repetition_penalty),
                frequency_penalty: self.drawing.frequency_penalty.unwrap_or(0.0),
                presence_penalty: self.drawing.presence_penalty.unwrap_or(0.0),
                logit_bias,
            };
            sampling.check().map(|()| sampling)
        });
        checked.map_err(|error| ApiError::invalid(error.to_string()).about(error.param))
    }
}

/// What was read so far.
#[derive(Default)]
struct Fields {
    model: Option<String>,
    prompts: Option<Vec<Input>>,
    messages: Option<Value>,
    tools: Option<Value>,
    documents: Option<Value>,
    template: Vec<(String, Value)>,
    reasoning_effort: Option<String>,
    adds_prompt: Option<bool>,
    continues: Option<bool>,
    chat_bytes: usize,
    max_tokens: Option<i64>,
    max_completion_tokens: Option<i64>,
    seed: Option<u64>,
    stops: Vec<String>,
    streams: bool,
    stream_options: Option<bool>,
    /// Whether logprobs are wanted, and how many.
    logprobs: Option<i64>,
    top_logprobs: Option<i64>,
    n: Option<i64>,
    best_of: Option<i64>,
    drawing: Drawing,
}

/// The field that templates know as a variable of the same name.
const EFFORT: &str = "reasoning_effort";

fn is_neutral(key: &str, raw: &[u8]) -> bool {
    let neutral = NEUTRAL.iter().find(|(field, _)| *field == key).map(|(_, value)| *value);
    let number = std::str::from_utf8(raw).ok().and_then(|raw| raw.parse::<f64>().ok());
    neutral.is_some() && number == neutral
}

impl Fields {
    fn read(
        &mut self,
        call: Call,
        scanner: &mut Scanner,
        key: &str,
        ask: &mut Ask<'_>,
    ) -> Result<(), Refusal> {
        let drawing = &mut self.drawing;
        match key {
            "model" => self.model = Some(text(scanner, "model", ask)?),
            "prompt" if call == Call::Completion => self.prompts = Some(prompts(scanner, ask)?),
            "messages" if call == Call::Chat => {
                self.messages = Some(self.tree(scanner, "messages", ask)?);
            }
            "tools" if call == Call::Chat => {
                let tools = self.tree(scanner, "tools", ask)?;
                if tools.kind() != ValueKind::Seq {
                    return refuse("tools", "tools is no list");
                }
                self.tools = Some(tools).filter(|tools| tools.len() != Some(0));
            }
            "documents" if call == Call::Chat => {
                self.documents = Some(self.tree(scanner, "documents", ask)?);
            }
            "chat_template_kwargs" if call == Call::Chat => {
                let given = self.tree(scanner, "chat_template_kwargs", ask)?;
                self.template = variables(&given)?;
            }
            "reasoning_effort" if call == Call::Chat => {
                self.reasoning_effort = Some(text(scanner, EFFORT, ask)?);
            }
            "add_generation_prompt" => {
                self.adds_prompt = Some(flag(scanner, "add_generation_prompt")?)
            }
            "continue_final_message" => {
                self.continues = Some(flag(scanner, "continue_final_message")?);
            }
            "max_tokens" => self.max_tokens = Some(whole(scanner, "max_tokens")?),
            "max_completion_tokens" => {
                self.max_completion_tokens = Some(whole(scanner, "max_completion_tokens")?);
            }
            "temperature" => drawing.temperature = Some(number(scanner, "temperature")?),
            "top_p" => drawing.top_p = Some(number(scanner, "top_p")?),
            "min_p" => drawing.min_p = Some(number(scanner, "min_p")?),
            "top_k" => drawing.top_k = Some(whole(scanner, "top_k")?),
            "repetition_penalty" => {
                drawing.repetition_penalty = Some(number(scanner, "repetition_penalty")?);
            }
            "frequency_penalty" => {
                drawing.frequency_penalty = Some(number(scanner, "frequency_penalty")?);
            }
            "presence_penalty" => {
                drawing.presence_penalty = Some(number(scanner, "presence_penalty")?);
            }
            "logit_bias" => drawing.logit_bias = biases(scanner, ask)?,
            "seed" => self.seed = Some(whole(scanner, "seed")?.cast_unsigned()),
            "stop" => self.stops = stops(scanner, ask)?,
            "stream" => self.streams = flag(scanner, "stream")?,
            "stream_options" => self.stream_options = Some(stream_options(scanner)?),
            "logprobs" if call == Call::Chat => {
                self.logprobs = flag(scanner, "logprobs")?.then_some(0);
            }
            "logprobs" => self.logprobs = Some(within(scanner, "logprobs", MAX_LOGPROBS)?),
            "top_logprobs" if call == Call::Chat => {
                self.top_logprobs = Some(within(scanner, "top_logprobs", MAX_TOP_LOGPROBS)?);
            }
            "n" => self.n = Some(whole(scanner, "n")?),
            "best_of" => self.best_of = Some(whole(scanner, "best_of")?),
            "echo" => {
                if flag(scanner, "echo")? {
                    return refuse("echo", "echo is not done here: put the prompt before the text");
                }
            }
            "suffix" => {
                if !text(scanner, "suffix", ask)?.is_empty() {
                    return refuse("suffix", "suffix is not done here: texts go on at their end");
                }
            }
            "response_format" => response_format(scanner)?,
            "tool_choice" => tool_choice(scanner)?,
            "modalities" => modalities(scanner)?,
            _ => {
                let raw = scanner.skip()?;
                let of_chats: &[_] = if call == Call::Completion { &OF_CHATS } else { &[] };
                let mut unheeded = UNHEEDED.iter().chain(of_chats);
                let unheeded = unheeded.find(|(field, _)| *field == key && !is_neutral(key, raw));
                if let Some((field, instead)) = unheeded {
                    return refuse(field, format!("{field} is not done here: {instead}"));
                }
            }
        }
        Ok(())
    }

    /// A value of any kind.
    fn tree(
        &mut self,
        scanner: &mut Scanner,
        param: &'static str,
        ask: &mut Ask<'_>,
    ) -> Result<Value, Refusal> {
        let raw = scanner.skip()?;
        let nodes = raw.iter().filter(|byte| b",:[{".contains(byte)).count();
        ask(2 * raw.len() + NODE_BYTES * (nodes + 1))?;
        self.chat_bytes += raw.len();
        let tree = tree::read(raw);
        tree.or_else(|error| refuse(param, format!("{param} cannot be read: {error}")))
    }

    fn finish(mut self, call: Call) -> Result<GenerationRequest, Refusal> {
        let Some(model) = self.model else { return refuse("model", "the request names no model") };
        let n = self.n.unwrap_or(1);
        if n != 1 {
            return refuse("n", format!("n is {n}: one choice is made, ask again for another"));
        }
        let best_of = self.best_of.unwrap_or(1);
        if best_of != 1 {
            return refuse("best_of", format!("best_of is {best_of}: one choice is made"));
        }
        if self.stream_options.is_some() && !self.streams {
            return refuse("stream_options", "stream_options is for answers that are streamed");
        }
        let logprobs = match (self.logprobs, self.top_logprobs) {
            (None, Some(_)) => {
                return refuse("top_logprobs", "top_logprobs needs \"logprobs\": true");
            }
            (wanted, top) => wanted.map(|count| top.unwrap_or(count)),
        };
        let (param, most) = match (self.max_completion_tokens, self.max_tokens) {
            (Some(most), _) => ("max_completion_tokens", Some(most)),
            (None, most) => ("max_tokens", most),
        };
        let max_tokens = match most.map(usize::try_from) {
            Some(Err(_) | Ok(0)) => {
                return refuse(
                    param,
                    format!("{param} is {}: it may be 1 or more", most.unwrap_or(0)),
                );
            }
            Some(Ok(most)) => Some(most),
            None => None,
        };
        let stops = Stops::new(self.stops).or_else(|error| refuse("stop", told(&error)))?;
        let asked = match call {
            Call::Completion => match self.prompts {
                Some(prompts) => Asked::Prompts(prompts),
                None => return refuse("prompt", "the request has no prompt"),
            },
            Call::Chat => {
                let Some(messages) = self.messages else {
                    return refuse("messages", "the request has no messages");
                };
                let continues = self.continues.unwrap_or(false);
                // What is said by name of the template's own variables goes before.
                let has_effort = self.template.iter().any(|(name, _)| name == EFFORT);
                if let Some(effort) = self.reasoning_effort.filter(|_| !has_effort) {
                    self.template.push((EFFORT.to_owned(), Value::from(effort)));
                }
                let chat = Chat {
                    tools: self.tools,
                    documents: self.documents,
                    variables: self.template,
                    add_generation_prompt: self.adds_prompt.unwrap_or(!continues),
                    continue_final_message: continues,
                    ..Chat::new(messages)
                };
                Asked::Chat(Box::new(chat), self.chat_bytes)
            }
        };
        Ok(GenerationRequest {
            model,
            asked,
            max_tokens,
            seed: self.seed,
            stops,
            streams: self.streams,
            includes_usage: self.stream_options.unwrap_or(false),
            logprobs: logprobs.map(|count| usize::try_from(count).unwrap_or(0)),
            drawing: self.drawing,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parse(call: Call, body: &[u8]) -> Result<GenerationRequest, ApiError> {
        let (request, _) = GenerationRequest::parse(call, body, &mut |_| Ok(()))?;
        request.sampling(&SamplingDefaults::default(), 1000)?;
        if let Asked::Chat(chat, _) = &request.asked {
            let form = crate::text::messages::Form::default();
            let normal = crate::text::messages::normalize(&chat.messages, form);
            normal.map_err(|error| ApiError::invalid(error.to_string()))?;
        }
        Ok(request)
    }

    /// What a model, a tokenizer or a connection decides is tested where there is one.
    #[test]
    fn requests_are_read_as_openai_documents_them() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/text/requests.json");
        let file: serde_json::Value =
            serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        let mut count = 0;
        for case in file["cases"].as_array().unwrap() {
            let about = case["about"].as_str().unwrap();
            let call = match case["path"].as_str().unwrap() {
                "/v1/completions" => Call::Completion,
                "/v1/chat/completions" => Call::Chat,
                _ => continue,
            };
            let of_others =
                ["$EMB", "$RAISE", "$BARE", "a model that is", "an id outside", "plain text"];
            let told = format!("{about} {case}");
            let has_body = case.get("body").is_some() || case.get("raw").is_some();
            if !has_body || case["method"] == "GET" || of_others.iter().any(|of| told.contains(of))
            {
                continue;
            }
            let mut body = match case["raw"].as_str() {
                Some(raw) => raw.to_owned(),
                None => case["body"].to_string(),
            };
            if let Some(then) = case.get("then") {
                let times = usize::try_from(then["times"].as_u64().unwrap()).unwrap();
                body += &then["text"].as_str().unwrap().repeat(times);
            }
            let statuses: Vec<u64> = case["status"]
                .as_array()
                .unwrap()
                .iter()
                .filter_map(serde_json::Value::as_u64)
                .collect();
            match parse(call, body.as_bytes()) {
                Ok(_) => assert!(statuses.contains(&200), "{about}: {body}"),
                Err(error) => {
                    let status = u64::from(error.status.as_u16());
                    assert!(statuses.contains(&status), "{about}: {error}");
                    let params = match &case["param"] {
                        serde_json::Value::Array(several) => several.clone(),
                        serde_json::Value::Null => vec![],
                        one => vec![one.clone()],
                    };
                    let is_named = params.iter().any(|param| param.as_str() == error.param);
                    assert!(params.is_empty() || is_named, "{about}: {:?}: {error}", error.param);
                }
            }
            count += 1;
        }
        assert!(count > 80, "{count} cases");
    }

    #[test]
    fn what_would_change_the_answer_is_refused_by_its_name() {
        for (field, _) in UNHEEDED {
            let body = format!(r#"{{"model":"m","prompt":"x","{field}":[1]}}"#);
            let refused = parse(Call::Completion, body.as_bytes()).unwrap_err();
            assert_eq!(refused.param, Some(field));
            let body = format!(r#"{{"model":"m","prompt":"x","{field}":null,"user":"u"}}"#);
            assert!(parse(Call::Completion, body.as_bytes()).is_ok());
        }
        let check = |extra: &str, param: &str| {
            let body = format!(r#"{{"model":"m","prompt":"x",{extra}}}"#);
            let refused = parse(Call::Completion, body.as_bytes()).unwrap_err();
            assert_eq!(refused.param, Some(param), "{extra}: {refused}");
        };
        for (field, _) in OF_CHATS {
            check(&format!(r#""{field}":1"#), field);
        }
        check(r#""max_completion_tokens":0"#, "max_completion_tokens");
        check(r#""echo":true"#, "echo");
        check(r#""suffix":" end""#, "suffix");
        check(r#""n":2"#, "n");
        check(r#""best_of":3"#, "best_of");
        check(r#""max_tokens":0"#, "max_tokens");
        check(r#""temperature":1e999"#, "temperature");
        check(r#""response_format":{"type":"json_object"}"#, "response_format");
        check(r#""tool_choice":"required""#, "tool_choice");
    }

    #[test]
    fn templates_get_the_effort_and_variables_by_name_alone() {
        let parse = |extra: &str| {
            let body = format!(r#"{{"model":"m","messages":[],{extra}}}"#);
            GenerationRequest::parse(Call::Chat, body.as_bytes(), &mut |_| Ok(()))
        };
        let effort = |extra: &str| match parse(extra).unwrap().0.asked {
            Asked::Chat(chat, _) => chat.variables,
            Asked::Prompts(_) => vec![],
        };
        let right = |text: &str| vec![("reasoning_effort".to_owned(), Value::from(text))];
        assert_eq!(effort(r#""reasoning_effort":"low""#), right("low"));
        let both = r#""reasoning_effort":"low","chat_template_kwargs":{"reasoning_effort":"high"}"#;
        assert_eq!(effort(both), right("high"));
        for wrong in [r#""chat_template_kwargs":[]"#, r#""chat_template_kwargs":"x""#] {
            assert_eq!(parse(wrong).unwrap_err().param, Some("chat_template_kwargs"));
        }
        let neutral = r#""typical_p":1,"mirostat":0,"repeat_penalty":1.0"#;
        assert!(parse(neutral).is_ok() && parse(r#""typical_p":0.5"#).is_err());
    }

    #[test]
    fn prompts_are_texts_or_tokens() {
        let check = |prompt: &str, right: Option<Vec<Input>>| {
            let body = format!(r#"{{"model":"m","prompt":{prompt}}}"#);
            let read = parse(Call::Completion, body.as_bytes()).ok().map(|request| request.asked);
            match (read, right) {
                (Some(Asked::Prompts(read)), Some(right)) => assert_eq!(read, right, "{prompt}"),
                (read, right) => assert!(read.is_none() && right.is_none(), "{prompt}"),
            }
        };
        let text = |text: &str| Input::Text(text.to_owned());
        check(r#""a""#, Some(vec![text("a")]));
        check(r#"["a","b"]"#, Some(vec![text("a"), text("b")]));
        check("[1, 2]", Some(vec![Input::Tokens(vec![1, 2])]));
        check("[[1],[2, 3]]", Some(vec![Input::Tokens(vec![1]), Input::Tokens(vec![2, 3])]));
        for wrong in ["[]", "5", "[1,\"a\"]", "[[1],\"a\"]", "[-1]", "[1.5]", "{}", "true"] {
            check(wrong, None);
        }
    }

    proptest! {
        #[test]
        fn no_body_panics(body in "[\\[\\]{}:,\"a1\\\\ .-]{0,24}|\\{\"(prompt|messages|stop|logit_bias|tools)\":.{0,16}\\}") {
            for call in [Call::Completion, Call::Chat] {
                let _ = GenerationRequest::parse(call, body.as_bytes(), &mut |_| Ok(()));
            }
        }
    }
}
