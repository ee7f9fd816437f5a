//! Messages as clients send them become messages as templates expect them.

use super::tree;
use minijinja::Value;
use minijinja::value::ValueKind;
use thiserror::Error;

/// Longest role.
const MAX_ROLE_BYTES: usize = 32;

/// What is wrong with a message, and where.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{place} {what}")]
pub struct MessageError {
    /// As a path: `messages[2].content[0].text`.
    pub place: String,
    /// What it is and what was expected.
    pub what: String,
}

/// How values are given to templates that cannot do with what they usually get.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Form {
    /// Arguments of calls are text rather than objects.
    pub arguments_are_text: bool,
    /// A content that is null is an empty text.
    pub null_is_empty: bool,
}

impl Form {
    /// All of them, the usual first.
    pub const ALL: [Form; 4] = [
        Form { arguments_are_text: false, null_is_empty: false },
        Form { arguments_are_text: true, null_is_empty: false },
        Form { arguments_are_text: false, null_is_empty: true },
        Form { arguments_are_text: true, null_is_empty: true },
    ];
}

/// The messages as templates get them: text parts joined by newlines, fields that are null left out,
/// arguments of calls as objects.
///
/// # Errors
/// The first thing that is no message.
pub fn normalize(messages: &Value, form: Form) -> Result<Value, MessageError> {
    let place = "messages".to_owned();
    let list = list_of(messages, &place)?;
    if list.is_empty() {
        return refuse(place, "is empty: send at least one message");
    }
    let places = (0..).map(|index| format!("messages[{index}]"));
    let messages = list.iter().zip(places).map(|(message, place)| one(message, &place, form));
    messages.collect::<Result<Vec<_>, _>>().map(Value::from)
}

fn refuse<T>(place: String, what: impl Into<String>) -> Result<T, MessageError> {
    Err(MessageError { place, what: what.into() })
}

fn list_of(value: &Value, place: &str) -> Result<Vec<Value>, MessageError> {
    match value.kind() {
        ValueKind::Seq => Ok(value.try_iter().map(Iterator::collect).unwrap_or_default()),
        kind => refuse(place.to_owned(), format!("is a {kind}, not a list")),
    }
}

/// The fields of an object that are not null, in their order.
fn fields_of(value: &Value, place: &str) -> Result<Vec<(String, Value)>, MessageError> {
    if value.kind() != ValueKind::Map {
        return refuse(place.to_owned(), format!("is a {}, not an object", value.kind()));
    }
    let keys = value.try_iter().into_iter().flatten();
    let fields = keys.filter_map(|key| {
        let field = value.get_item(&key).ok()?;
        Some((key.as_str()?.to_owned(), field))
    });
    Ok(fields.filter(|(_, field)| !field.is_none()).collect())
}

fn text_of(value: &Value, place: &str) -> Result<String, MessageError> {
    match value.as_str() {
        Some(text) => Ok(text.to_owned()),
        None => refuse(place.to_owned(), format!("is a {}, not a text", value.kind())),
    }
}

fn one(message: &Value, place: &str, form: Form) -> Result<Value, MessageError> {
    let at = |field: &str| format!("{place}.{field}");
    let mut fields = fields_of(message, place)?;
    fields.retain(|(name, field)| name != "tool_calls" || field.len() != Some(0) || is_map(field));
    let (mut role, mut has_content, mut has_calls) = (String::new(), false, false);
    for (name, field) in &mut fields {
        match name.as_str() {
            "role" => {
                role = role_of(field, &at("role"))?;
                *field = Value::from(role.as_str());
            }
            "content" => {
                *field = Value::from(content_of(field, &at("content"))?);
                has_content = true;
            }
            "tool_calls" => {
                *field = calls_of(field, &at("tool_calls"), form)?;
                has_calls = true;
            }
            _ => {}
        }
    }
    if role.is_empty() {
        return refuse(at("role"), "is missing");
    }
    if !has_content {
        let refusal = fields.iter().find(|(name, _)| name == "refusal" && role == "assistant");
        let content = match refusal {
            // Where an answer has one, that is its text.
            Some((_, refusal)) => Value::from(text_of(refusal, &at("refusal"))?),
            None if role != "assistant" || !has_calls => {
                return refuse(at("content"), "is missing");
            }
            None if form.null_is_empty => Value::from(""),
            None => Value::from(()),
        };
        fields.push(("content".to_owned(), content));
    }
    Ok(Value::from_pairs(fields))
}

fn is_map(value: &Value) -> bool {
    value.kind() == ValueKind::Map
}

/// A role is written among control tokens, so it is a plain word.
fn role_of(value: &Value, place: &str) -> Result<String, MessageError> {
    let role = text_of(value, place)?;
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_-".contains(&byte);
    if role.is_empty() || role.len() > MAX_ROLE_BYTES || !role.bytes().all(is_plain) {
        let what = "is no role: use developer, system, user, assistant or tool";
        return refuse(place.to_owned(), what);
    }
    Ok(if role == "developer" { "system".to_owned() } else { role })
}

fn content_of(content: &Value, place: &str) -> Result<String, MessageError> {
    if content.kind() != ValueKind::Seq {
        return text_of(content, place);
    }
    let mut texts = vec![];
    for (index, part) in list_of(content, place)?.iter().enumerate() {
        let place = format!("{place}[{index}]");
        let fields = fields_of(part, &place)?;
        let field = |name: &str| fields.iter().find(|(field, _)| field == name).map(|(_, v)| v);
        let Some(kind) = field("type") else { return refuse(place, "has no type") };
        let kind = text_of(kind, &format!("{place}.type"))?;
        if !["text", "refusal"].contains(&kind.as_str()) {
            let kind: String = kind.chars().take(64).collect();
            return refuse(place, format!("is of type {kind:?}: the model reads text alone"));
        }
        let Some(text) = field(&kind) else { return refuse(place, format!("has no {kind}")) };
        texts.push(text_of(text, &format!("{place}.{kind}"))?);
    }
    Ok(texts.join("\n"))
}

fn calls_of(calls: &Value, place: &str, form: Form) -> Result<Value, MessageError> {
    let mut all = vec![];
    for (index, call) in list_of(calls, place)?.iter().enumerate() {
        let place = format!("{place}[{index}]");
        let mut fields = fields_of(call, &place)?;
        let function = fields.iter_mut().find(|(name, _)| name == "function");
        let Some((_, function)) = function else { return refuse(place, "has no function") };
        let place = format!("{place}.function");
        let mut parts = fields_of(function, &place)?;
        let Some((_, name)) = parts.iter().find(|(name, _)| name == "name") else {
            return refuse(place, "has no name");
        };
        text_of(name, &format!("{place}.name"))?;
        for (name, part) in &mut parts {
            if name == "arguments" {
                *part = arguments_of(part, &format!("{place}.arguments"), form)?;
            }
        }
        *function = Value::from_pairs(parts);
        all.push(Value::from_pairs(fields));
    }
    Ok(Value::from(all))
}

fn arguments_of(arguments: &Value, place: &str, form: Form) -> Result<Value, MessageError> {
    if is_map(arguments) {
        let text = || serde_json::to_string(arguments).unwrap_or_default();
        return Ok(if form.arguments_are_text { Value::from(text()) } else { arguments.clone() });
    }
    let text = text_of(arguments, place)?;
    if form.arguments_are_text {
        return Ok(arguments.clone());
    }
    if text.trim().is_empty() {
        return Ok(Value::from_pairs::<_, String, Value>([]));
    }
    let parsed = tree::read(text.as_bytes()).ok();
    Ok(parsed.filter(is_map).unwrap_or_else(|| arguments.clone()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_the_text_of_an_answer_that_has_no_other() {
        let content = |message: serde_json::Value| {
            let messages: Value = serde_json::from_value(serde_json::json!([message])).ok()?;
            let normal = normalize(&messages, Form::default()).ok()?;
            Some(normal.get_item_by_index(0).ok()?.get_attr("content").ok()?.to_string())
        };
        let message = |role: &str, content: Option<&str>| serde_json::json!({"role": role, "content": content, "refusal": "No."});
        assert_eq!(content(message("assistant", None)).as_deref(), Some("No."));
        assert_eq!(content(message("assistant", Some("Yes."))).as_deref(), Some("Yes."));
        assert_eq!(content(message("user", None)), None);
    }
}
