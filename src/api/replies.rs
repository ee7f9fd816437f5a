//! What completions and chat calls answer, whole and in pieces.

use super::writing::{Ending, Finish, Named, Piece, Told};
use crate::text::random;
use serde_json::{Map, Value, json};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

/// The logarithm that OpenAI tells of what is never drawn.
const NEVER: f64 = -9999.0;

/// Which call is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    Completion,
    Chat,
}

/// What all parts of an answer have in common.
#[derive(Clone, Debug)]
pub struct Answer {
    style: Style,
    id: String,
    created_s: u64,
    model: Arc<str>,
}

/// Tokens of prompts and texts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    prompt: usize,
    cached: usize,
    completion: usize,
}

impl Usage {
    /// Adds those of one text.
    pub fn add(&mut self, ending: &Ending) {
        self.prompt += ending.prompt_tokens;
        self.cached += ending.cached_tokens;
        self.completion += ending.completion_tokens;
    }

    fn json(&self) -> Value {
        json!({
            "prompt_tokens": self.prompt,
            "completion_tokens": self.completion,
            "total_tokens": self.prompt + self.completion,
            "prompt_tokens_details": { "cached_tokens": self.cached },
        })
    }
}

impl Answer {
    /// An answer of `model` that begins now.
    pub fn new(style: Style, model: &Arc<str>) -> Answer {
        let kind = match style {
            Style::Completion => "cmpl",
            Style::Chat => "chatcmpl",
        };
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Answer {
            style,
            id: format!("{kind}-{:016x}", random::any_seed()),
            created_s: since.as_secs(),
            model: Arc::clone(model),
        }
    }

    fn object(&self, kind: &str, choices: Vec<Value>) -> Map<String, Value> {
        let fields = [
            ("id", json!(self.id)),
            ("object", json!(kind)),
            ("created", json!(self.created_s)),
            ("model", json!(&*self.model)),
            ("choices", Value::Array(choices)),
        ];
        fields.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
    }

    /// One of the texts of a whole answer.
    pub fn choice(&self, index: usize, text: Piece, finish: Finish, tells: bool) -> Value {
        let logprobs = if tells { self.logprobs(&text.tokens, 0) } else { Value::Null };
        let finish = finish.name();
        match self.style {
            Style::Completion => json!({
                "index": index, "text": text.text, "logprobs": logprobs, "finish_reason": finish,
            }),
            Style::Chat => json!({
                "index": index,
                "message": { "role": "assistant", "content": text.text, "refusal": null },
                "logprobs": logprobs,
                "finish_reason": finish,
            }),
        }
    }

    /// A whole answer.
    pub fn whole(&self, choices: Vec<Value>, usage: &Usage) -> Value {
        let kind = match self.style {
            Style::Completion => "text_completion",
            Style::Chat => "chat.completion",
        };
        let mut object = self.object(kind, choices);
        object.insert("usage".to_owned(), usage.json());
        Value::Object(object)
    }

    fn chunk(&self, choices: Vec<Value>) -> Map<String, Value> {
        let kind = match self.style {
            Style::Completion => "text_completion",
            Style::Chat => "chat.completion.chunk",
        };
        self.object(kind, choices)
    }

    fn delta(&self, index: usize, delta: Value, logprobs: Value, finish: Option<Finish>) -> Value {
        let text = match self.style {
            Style::Completion => "text",
            Style::Chat => "delta",
        };
        let choice = json!({
            "index": index, text: delta, "logprobs": logprobs,
            "finish_reason": finish.map(Finish::name),
        });
        Value::Object(self.chunk(vec![choice]))
    }

    /// The event before a text, where there is one.
    pub fn begin(&self, index: usize) -> Option<Value> {
        let role = json!({ "role": "assistant", "content": "" });
        (self.style == Style::Chat).then(|| self.delta(index, role, Value::Null, None))
    }

    /// The event of a piece of a text, which begins at `offset` in it.
    pub fn piece(&self, index: usize, piece: Piece, offset: usize, tells: bool) -> Value {
        let logprobs = if tells { self.logprobs(&piece.tokens, offset) } else { Value::Null };
        let delta = match self.style {
            Style::Completion => Value::String(piece.text),
            Style::Chat => json!({ "content": piece.text }),
        };
        self.delta(index, delta, logprobs, None)
    }

    /// The event of a text's end.
    pub fn end(&self, index: usize, finish: Finish) -> Value {
        let delta = match self.style {
            Style::Completion => json!(""),
            Style::Chat => json!({}),
        };
        self.delta(index, delta, Value::Null, Some(finish))
    }

    /// The event that tells the usage.
    pub fn usage(&self, usage: &Usage) -> Value {
        let mut object = self.chunk(vec![]);
        object.insert("usage".to_owned(), usage.json());
        Value::Object(object)
    }

    /// How likely tokens were; the first of them begins at `offset` characters of the text.
    fn logprobs(&self, tokens: &[Told], offset: usize) -> Value {
        match self.style {
            Style::Chat => {
                let told = |Told { token, top }: &Told| {
                    let mut told = named(token);
                    told["top_logprobs"] = top.iter().map(named).collect();
                    told
                };
                json!({ "content": tokens.iter().map(told).collect::<Vec<_>>(), "refusal": null })
            }
            Style::Completion => {
                let mut at = offset;
                let offsets: Vec<usize> = tokens
                    .iter()
                    .map(|told| {
                        let here = at;
                        at += text(&told.token.bytes).chars().count();
                        here
                    })
                    .collect();
                let top = tokens.iter().map(|Told { token, top }| {
                    let all = top.iter().chain([token]);
                    let pairs = all.map(|named| (text(&named.bytes), number(named.logprob)));
                    Value::Object(pairs.collect())
                });
                json!({
                    "tokens": tokens.iter().map(|told| text(&told.token.bytes)).collect::<Vec<_>>(),
                    "token_logprobs":
                        tokens.iter().map(|told| number(told.token.logprob)).collect::<Vec<_>>(),
                    "top_logprobs": top.collect::<Vec<_>>(),
                    "text_offset": offsets,
                })
            }
        }
    }
}

fn named(token: &Named) -> Value {
    json!({ "token": text(&token.bytes), "logprob": number(token.logprob), "bytes": token.bytes })
}

fn number(logprob: f64) -> Value {
    json!(logprob.max(NEVER))
}

/// The text of a token; of one that is no text, its bytes, as OpenAI writes them.
fn text(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) => text.to_owned(),
        Err(_) => {
            let bytes: String = bytes.iter().map(|byte| format!("\\x{byte:02x}")).collect();
            format!("bytes:{bytes}")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_that_are_no_text_are_told_by_their_bytes() {
        assert_eq!(text(b"boat"), "boat");
        assert_eq!(text(&[0xf0, 0x9f]), "bytes:\\xf0\\x9f");
        assert_eq!(number(f64::NEG_INFINITY), json!(-9999.0));
        let token = |text: &str| Named { bytes: text.as_bytes().to_vec(), logprob: -0.5 };
        let told = |text: &str| Told { token: token(text), top: vec![token("x"), token(text)] };
        let answer = Answer::new(Style::Completion, &"m".into());
        let logprobs = answer.logprobs(&[told("a\u{e9}"), told("b")], 3);
        assert_eq!(logprobs["text_offset"], json!([3, 5]));
        assert_eq!(logprobs["top_logprobs"][1], json!({"x": -0.5, "b": -0.5}));
    }

    #[test]
    fn usage_is_the_sum_of_all_texts() {
        let (finish, cached_tokens) = (Finish::Stop, 2);
        let mut usage = Usage::default();
        for completion_tokens in [1, 4] {
            usage.add(&Ending { finish, prompt_tokens: 3, cached_tokens, completion_tokens });
        }
        let right = json!({"prompt_tokens": 6, "completion_tokens": 5, "total_tokens": 11,
            "prompt_tokens_details": {"cached_tokens": 4}});
        assert_eq!(usage.json(), right);
    }
}
