//! What completions and chat calls answer, whole and in pieces.

use super::writing::{Ending, Finish, Named, Piece, Told};
use crate::text::random;
use serde::Serialize;
use serde::ser::{SerializeMap, Serializer};
use serde_json::{Value, json};
use std::borrow::Cow;
use std::fmt;
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

    fn part<C>(&self, object: &'static str, choices: Vec<C>, usage: Option<Value>) -> Part<'_, C> {
        let (id, created, model) = (&*self.id, self.created_s, &*self.model);
        Part { id, object, created, model, choices, usage }
    }

    /// A whole answer, which tells likelihoods or does not.
    pub fn whole<'a>(
        &'a self,
        choices: &'a [Choice],
        usage: &Usage,
        tells: bool,
    ) -> impl Serialize + Send + Sync + use<'a> {
        let kind = match self.style {
            Style::Completion => "text_completion",
            Style::Chat => "chat.completion",
        };
        let style = self.style;
        let whole = |choice: &'a Choice| {
            let text = Text(&choice.pieces);
            let (message, text) = match style {
                Style::Completion => (None, Some(text)),
                Style::Chat => {
                    (Some(Message { role: "assistant", content: text, refusal: () }), None)
                }
            };
            let pieces = &choice.pieces;
            Whole {
                index: choice.index,
                text,
                message,
                logprobs: tells.then_some(Logprobs { style, pieces }),
                finish_reason: choice.finish.name(),
            }
        };
        self.part(kind, choices.iter().map(whole).collect(), Some(usage.json()))
    }

    fn chunk<C>(&self, choices: Vec<C>, usage: Option<Value>) -> Part<'_, C> {
        let kind = match self.style {
            Style::Completion => "text_completion",
            Style::Chat => "chat.completion.chunk",
        };
        self.part(kind, choices, usage)
    }

    fn delta<'a>(
        &'a self,
        index: usize,
        text: Delta<'a>,
        logprobs: Option<Logprobs<'a>>,
        finish: Option<Finish>,
    ) -> Part<'a, Change<'a>> {
        let (delta, text) = match self.style {
            Style::Completion => (None, Some(text.content.unwrap_or_default())),
            Style::Chat => (Some(text), None),
        };
        let finish_reason = finish.map(Finish::name);
        self.chunk(vec![Change { index, text, delta, logprobs, finish_reason }], None)
    }

    /// The event before a text, where there is one.
    pub fn begin(&self, index: usize) -> Option<impl Serialize + Send + Sync + '_> {
        let role = Delta { role: Some("assistant"), content: Some("") };
        (self.style == Style::Chat).then(|| self.delta(index, role, None, None))
    }

    /// The event of a piece of a text.
    pub fn piece<'a>(
        &'a self,
        index: usize,
        piece: &'a Piece,
        tells: bool,
    ) -> impl Serialize + Send + Sync + use<'a> {
        let pieces = std::slice::from_ref(piece);
        let logprobs = tells.then_some(Logprobs { style: self.style, pieces });
        let text = Delta { role: None, content: Some(&*piece.text) };
        self.delta(index, text, logprobs, None)
    }

    /// The event of a text's end.
    pub fn end(&self, index: usize, finish: Finish) -> impl Serialize + Send + Sync + '_ {
        self.delta(index, Delta::default(), None, Some(finish))
    }

    /// The event that tells the usage.
    pub fn usage(&self, usage: &Usage) -> impl Serialize + Send + Sync + use<'_> {
        self.chunk(Vec::<Value>::new(), Some(usage.json()))
    }
}

/// A text of a whole answer.
pub struct Choice {
    pub index: usize,
    pub pieces: Vec<Piece>,
    pub finish: Finish,
}

/// An answer or an event of one: written as it is, since a tree of JSON values would take many times
/// the bytes of what it tells.
#[derive(Serialize)]
struct Part<'a, C> {
    id: &'a str,
    object: &'static str,
    created: u64,
    model: &'a str,
    choices: Vec<C>,
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<Value>,
}

#[derive(Serialize)]
struct Whole<'a> {
    index: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    text: Option<Text<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<Message<'a>>,
    logprobs: Option<Logprobs<'a>>,
    finish_reason: &'static str,
}

#[derive(Serialize)]
struct Message<'a> {
    role: &'static str,
    content: Text<'a>,
    refusal: (),
}

#[derive(Serialize)]
struct Change<'a> {
    index: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    text: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    delta: Option<Delta<'a>>,
    logprobs: Option<Logprobs<'a>>,
    finish_reason: Option<&'static str>,
}

#[derive(Default, Serialize)]
struct Delta<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    role: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    content: Option<&'a str>,
}

/// The text of pieces.
struct Text<'a>(&'a [Piece]);

impl fmt::Display for Text<'_> {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        self.0.iter().try_for_each(|piece| f.write_str(&piece.text))
    }
}

impl Serialize for Text<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// How likely the tokens of pieces were.
struct Logprobs<'a> {
    style: Style,
    pieces: &'a [Piece],
}

impl<'a> Logprobs<'a> {
    fn tokens(&self) -> impl Iterator<Item = &'a Told> {
        self.pieces.iter().flat_map(|piece| &piece.tokens)
    }
}

impl Serialize for Logprobs<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        match self.style {
            Style::Chat => {
                map.serialize_entry("content", &List(|| self.tokens().map(ChatToken::of)))?;
                map.serialize_entry("refusal", &())?;
            }
            Style::Completion => {
                let tokens = || self.tokens().map(|told| text(&told.token.bytes));
                map.serialize_entry("tokens", &List(tokens))?;
                let logprobs = || self.tokens().map(|told| number(told.token.logprob));
                map.serialize_entry("token_logprobs", &List(logprobs))?;
                map.serialize_entry("top_logprobs", &List(|| self.tokens().map(Likeliest)))?;
                let offsets = || self.tokens().map(|told| told.offset);
                map.serialize_entry("text_offset", &List(offsets))?;
            }
        }
        map.end()
    }
}

/// A list that is made as it is written.
struct List<F>(F);

impl<I: Iterator<Item: Serialize>, F: Fn() -> I> Serialize for List<F> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.0())
    }
}

/// A token of a chat as OpenAI tells it.
#[derive(Serialize)]
struct ChatToken<'a> {
    token: Cow<'a, str>,
    logprob: f64,
    bytes: &'a [u8],
    #[serde(skip_serializing_if = "Option::is_none")]
    top_logprobs: Option<Vec<ChatToken<'a>>>,
}

impl<'a> ChatToken<'a> {
    fn of(told: &'a Told) -> ChatToken<'a> {
        let top = told.top.iter().map(ChatToken::named).collect();
        ChatToken { top_logprobs: Some(top), ..ChatToken::named(&told.token) }
    }

    fn named(token: &'a Named) -> ChatToken<'a> {
        let logprob = number(token.logprob);
        ChatToken { token: text(&token.bytes), logprob, bytes: &token.bytes, top_logprobs: None }
    }
}

/// The likeliest tokens of a completion by their texts, the one that was drawn among them.
struct Likeliest<'a>(&'a Told);

impl Serialize for Likeliest<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let all: Vec<&Named> = self.0.top.iter().chain([&self.0.token]).collect();
        // No name twice: the likeliest of those that read alike.
        let is_first = |at: &usize| all[..*at].iter().all(|before| before.bytes != all[*at].bytes);
        let firsts = (0..all.len()).filter(is_first).map(|at| all[at]);
        serializer.collect_map(firsts.map(|named| (text(&named.bytes), number(named.logprob))))
    }
}

fn number(logprob: f64) -> f64 {
    logprob.max(NEVER)
}

/// The text of a token; of one that is no text, its bytes, as OpenAI writes them.
fn text(bytes: &[u8]) -> Cow<'_, str> {
    match std::str::from_utf8(bytes) {
        Ok(text) => Cow::Borrowed(text),
        Err(_) => {
            let bytes: String = bytes.iter().map(|byte| format!("\\x{byte:02x}")).collect();
            Cow::Owned(format!("bytes:{bytes}"))
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
        assert_eq!(number(f64::NEG_INFINITY), -9999.0);
        let token = |text: &str| Named { bytes: text.as_bytes().to_vec(), logprob: -0.5 };
        let told = |text: &str, offset| Told {
            token: token(text),
            offset,
            top: vec![token("x"), token(text)],
        };
        let pieces = [vec![told("a\u{e9}", 3), told("b", 5)], vec![told("c", 6)]];
        let pieces = pieces.map(|tokens| Piece { tokens, ..Piece::default() });
        let logprobs = Logprobs { style: Style::Completion, pieces: &pieces };
        let logprobs = serde_json::to_value(logprobs).unwrap();
        assert_eq!(logprobs["text_offset"], json!([3, 5, 6]));
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
