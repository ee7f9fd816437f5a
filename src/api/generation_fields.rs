//! The values of the fields of OpenAI's completions and chat calls, read one by one.

use super::embeddings_json::Input;
use super::error::ApiError;
use crate::text::stops::{MAX_STOP_BYTES, StopError};
use crate::text::{Value, ValueKind};
use crate::wire::json::{JsonError, Scanner};
use crate::wire::quote::quote;

/// Most prompts of a request.
pub const MAX_PROMPTS: usize = 128;

/// What a value of a tree takes beside its text.
pub(super) const NODE_BYTES: usize = 80;

/// An error on the way through the body.
pub(super) struct Refusal(pub ApiError);

impl From<JsonError> for Refusal {
    fn from(error: JsonError) -> Refusal {
        Refusal(ApiError::invalid(format!("the request body cannot be read: {error}")))
    }
}

pub(super) fn refuse<T>(param: &'static str, message: impl Into<String>) -> Result<T, Refusal> {
    Err(Refusal(ApiError::invalid(message).about(param)))
}

/// Asked, before memory is taken, with the bytes that one more thing takes.
pub(super) type Ask<'a> = dyn FnMut(usize) -> Result<(), Refusal> + 'a;

pub(super) fn told(error: &StopError) -> String {
    format!("stop {error}")
}

/// The variables of a template by name.
pub(super) fn variables(given: &Value) -> Result<Vec<(String, Value)>, Refusal> {
    const PARAM: &str = "chat_template_kwargs";
    /// Those that other fields set, or the model.
    const OWN: [&str; 3] = ["messages", "tools", "documents"];
    if given.kind() != ValueKind::Map {
        return wrong(PARAM, "object");
    }
    let keys = given.try_iter().into_iter().flatten();
    let pairs = keys.filter_map(|key| Some((key.as_str()?.to_owned(), given.get_item(&key).ok()?)));
    let pairs: Vec<(String, Value)> = pairs.collect();
    match pairs.iter().find(|(name, _)| OWN.contains(&name.as_str())) {
        Some((name, _)) => refuse(PARAM, format!("{PARAM} sets {name}, which is a field")),
        None => Ok(pairs),
    }
}

pub(super) fn wrong<T>(param: &'static str, expected: &str) -> Result<T, Refusal> {
    refuse(param, format!("{param} is no {expected}"))
}

pub(super) fn text(
    scanner: &mut Scanner,
    param: &'static str,
    ask: &mut Ask<'_>,
) -> Result<String, Refusal> {
    match scanner.peek() {
        Some(b'"') if param == "model" => Ok(scanner.string()?.into_owned()),
        Some(b'"') => Ok(scanner.long_string(ask)?.into_owned()),
        _ => wrong(param, "text"),
    }
}

pub(super) fn flag(scanner: &mut Scanner, param: &'static str) -> Result<bool, Refusal> {
    match scanner.peek() {
        Some(b't' | b'f') => Ok(scanner.literal()?.unwrap_or(false)),
        _ => wrong(param, "true or false"),
    }
}

pub(super) fn number(scanner: &mut Scanner, param: &'static str) -> Result<f64, Refusal> {
    match scanner.peek() {
        Some(b'-' | b'0'..=b'9') => {
            let number = scanner.number()?.parse::<f64>().ok().filter(|number| number.is_finite());
            number.map_or_else(|| wrong(param, "number that can be held"), Ok)
        }
        _ => wrong(param, "number"),
    }
}

pub(super) fn whole(scanner: &mut Scanner, param: &'static str) -> Result<i64, Refusal> {
    match scanner.peek() {
        Some(b'-' | b'0'..=b'9') => {
            let digits = scanner.number()?;
            let plain = digits.strip_suffix(".0").unwrap_or(digits);
            plain.parse().map_or_else(|_| wrong(param, "whole number that can be held"), Ok)
        }
        _ => wrong(param, "whole number"),
    }
}

pub(super) fn within(
    scanner: &mut Scanner,
    param: &'static str,
    most: i64,
) -> Result<i64, Refusal> {
    let count = whole(scanner, param)?;
    match (0..=most).contains(&count) {
        true => Ok(count),
        false => refuse(param, format!("{param} is {count}: it may be 0 to {most}")),
    }
}

pub(super) fn ids(scanner: &mut Scanner, ask: &mut Ask<'_>) -> Result<Vec<u32>, Refusal> {
    let mut ids = vec![];
    scanner.array(|scanner, _| -> Result<(), Refusal> {
        let id = match scanner.peek() {
            Some(b'-' | b'0'..=b'9') => scanner.number()?.parse().ok(),
            _ => return wrong("prompt", "text, no list of texts, and no list of tokens"),
        };
        let Some(id) = id else { return refuse("prompt", "prompt has a number that is no token") };
        ask(2 * size_of::<u32>())?;
        ids.push(id);
        Ok(())
    })?;
    Ok(ids)
}

pub(super) fn prompts(scanner: &mut Scanner, ask: &mut Ask<'_>) -> Result<Vec<Input>, Refusal> {
    const EXPECTED: &str = "text, no list of texts, and no list of tokens";
    match scanner.peek() {
        Some(b'"') => return Ok(vec![Input::Text(text(scanner, "prompt", ask)?)]),
        Some(b'[') => {}
        _ => return wrong("prompt", EXPECTED),
    }
    let mut ahead = scanner.clone();
    ahead.take(b'[');
    let kind = ahead.peek();
    if let Some(b'-' | b'0'..=b'9') = kind {
        return Ok(vec![Input::Tokens(ids(scanner, ask)?)]);
    }
    let mut prompts = vec![];
    scanner.array(|scanner, index| -> Result<(), Refusal> {
        if index == MAX_PROMPTS {
            return refuse("prompt", format!("more than {MAX_PROMPTS} prompts"));
        }
        ask(size_of::<Input>())?;
        prompts.push(match scanner.peek() {
            Some(b'"') if kind == Some(b'"') => Input::Text(text(scanner, "prompt", ask)?),
            Some(b'[') if kind == Some(b'[') => Input::Tokens(ids(scanner, ask)?),
            _ => return wrong("prompt", EXPECTED),
        });
        Ok(())
    })?;
    match prompts.is_empty() {
        true => refuse("prompt", "prompt is an empty list"),
        false => Ok(prompts),
    }
}

pub(super) fn stops(scanner: &mut Scanner, ask: &mut Ask<'_>) -> Result<Vec<String>, Refusal> {
    let one = |scanner: &mut Scanner, ask: &mut Ask<'_>| {
        let stop = text(scanner, "stop", ask)?;
        match stop.len() {
            // More are refused together; no longer one is held.
            length if length > MAX_STOP_BYTES => refuse("stop", told(&StopError::Long(length))),
            // What is found of them is a node for each byte.
            length => ask(length * NODE_BYTES).map(|()| stop),
        }
    };
    match scanner.peek() {
        Some(b'"') => Ok(vec![one(scanner, ask)?]),
        Some(b'[') => {
            let mut stops = vec![];
            scanner.array(|scanner, _| -> Result<(), Refusal> {
                stops.push(one(scanner, ask)?);
                Ok(())
            })?;
            Ok(stops)
        }
        _ => wrong("stop", "text and no list of texts"),
    }
}

pub(super) fn biases(
    scanner: &mut Scanner,
    ask: &mut Ask<'_>,
) -> Result<Vec<(String, f64)>, Refusal> {
    if scanner.peek() != Some(b'{') {
        return wrong("logit_bias", "object of tokens and numbers");
    }
    let mut biases = vec![];
    scanner.object(|scanner, key| -> Result<(), Refusal> {
        ask(key.len() + size_of::<(String, f64)>())?;
        biases.push((key.to_owned(), number(scanner, "logit_bias")?));
        Ok(())
    })?;
    Ok(biases)
}

pub(super) fn stream_options(scanner: &mut Scanner) -> Result<bool, Refusal> {
    if scanner.peek() != Some(b'{') {
        return wrong("stream_options", "object");
    }
    let mut includes_usage = false;
    scanner.object(|scanner, key| -> Result<(), Refusal> {
        match key {
            "include_usage" => includes_usage = flag(scanner, "stream_options")?,
            _ => drop(scanner.skip()?),
        }
        Ok(())
    })?;
    Ok(includes_usage)
}

/// Answers are plain texts: what asks for more is refused rather than answered with prose.
pub(super) fn response_format(scanner: &mut Scanner) -> Result<(), Refusal> {
    const PARAM: &str = "response_format";
    if scanner.peek() != Some(b'{') {
        return wrong(PARAM, "object");
    }
    let mut kind = None;
    scanner.object(|scanner, key| -> Result<(), Refusal> {
        match (key, scanner.peek()) {
            ("type", Some(b'"')) => kind = Some(scanner.string()?.into_owned()),
            _ => drop(scanner.skip()?),
        }
        Ok(())
    })?;
    match kind.as_deref() {
        Some("text") => Ok(()),
        Some(kind) => refuse(
            PARAM,
            format!("{PARAM} {} cannot be kept: answers are plain texts", quote(kind)),
        ),
        None => refuse(PARAM, format!("{PARAM} has no type")),
    }
}

pub(super) fn tool_choice(scanner: &mut Scanner) -> Result<(), Refusal> {
    const PARAM: &str = "tool_choice";
    let raw = scanner.skip()?;
    match raw {
        b"\"auto\"" | b"\"none\"" => Ok(()),
        _ => refuse(PARAM, format!("{PARAM} cannot be kept: a call is the model's own choice")),
    }
}

pub(super) fn modalities(scanner: &mut Scanner) -> Result<(), Refusal> {
    if scanner.peek() != Some(b'[') {
        return wrong("modalities", "list");
    }
    scanner.array(|scanner, _| -> Result<(), Refusal> {
        match scanner.skip()? {
            b"\"text\"" => Ok(()),
            _ => refuse("modalities", "modalities: answers are texts"),
        }
    })
}
