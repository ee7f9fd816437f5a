//! What templates use of Python and Jinja that minijinja has not, or has otherwise.
//!
//! Its contrib crate has most of Python's methods; those here are what it lacks and templates use.
//! What neither has fails: a method that is missing must never print nothing.

use super::dump;
use minijinja::value::{Kwargs, Tuple, ValueKind, from_args};
use minijinja::{Environment, Error, ErrorKind, State, Value};
use minijinja_contrib::pycompat;

/// Adds all of it; `mark` is what JSON is to leave as it is.
pub fn install(environment: &mut Environment, mark: Option<char>) {
    environment.set_unknown_method_callback(method);
    environment.set_formatter(|out, state, value| match dump::float_of(value) {
        Some(_) => Ok(out.write_str(&dump::number(value))?),
        None => minijinja::escape_formatter(out, state, value),
    });
    environment.add_filter("tojson", move |state: &State, value: &Value, options: Kwargs| {
        dump::to_json(state, value, options, mark)
    });
    environment.add_filter("default", default);
    environment.add_filter("d", default);
    environment.add_filter("escape", escape);
    environment.add_filter("e", escape);
    environment.add_test("sequence", |value: &Value| is_sequence(value));
    environment.add_test("iterable", |value: &Value| {
        value.is_undefined() || is_sequence(value) || value.kind() == ValueKind::Iterable
    });
}

/// What has a length and items in Python: texts and maps among them.
fn is_sequence(value: &Value) -> bool {
    value.is_undefined()
        || matches!(value.kind(), ValueKind::Seq | ValueKind::Map | ValueKind::String)
}

/// The filter `default`, whose second argument may be given by name.
fn default(
    value: &Value,
    other: Option<Value>,
    boolean: Option<Value>,
    options: Kwargs,
) -> Result<Value, Error> {
    let other = match options.get::<Option<Value>>("default_value")? {
        Some(named) => named,
        None => other.unwrap_or_else(|| Value::from("")),
    };
    let named = options.get::<Option<Value>>("boolean")?;
    options.assert_all_used()?;
    let is_lax = named.or(boolean).is_some_and(|boolean| boolean.is_true());
    let is_missing = value.is_undefined() || is_lax && !value.is_true();
    Ok(if is_missing { other } else { value.clone() })
}

/// The filter `escape`, which writes quotes by their numbers.
fn escape(value: &Value) -> String {
    let mut text = String::new();
    for c in value.to_string().chars() {
        match c {
            '&' => text.push_str("&amp;"),
            '<' => text.push_str("&lt;"),
            '>' => text.push_str("&gt;"),
            '"' => text.push_str("&#34;"),
            '\'' => text.push_str("&#39;"),
            c => text.push(c),
        }
    }
    text
}

fn method(
    state: &mut State,
    value: &Value,
    name: &str,
    arguments: &[Value],
) -> Result<Value, Error> {
    let own = match value.as_str() {
        Some(text) => of_text(text, name, arguments)?,
        None if value.kind() == ValueKind::Seq => of_list(value, name, arguments)?,
        None => None,
    };
    match own {
        Some(value) => Ok(value),
        None => pycompat::unknown_method_callback(state, value, name, arguments),
    }
}

fn of_text(text: &str, name: &str, arguments: &[Value]) -> Result<Option<Value>, Error> {
    Ok(Some(match name {
        "removeprefix" => {
            let (prefix,): (&str,) = from_args(arguments)?;
            Value::from(text.strip_prefix(prefix).unwrap_or(text))
        }
        "removesuffix" => {
            let (suffix,): (&str,) = from_args(arguments)?;
            Value::from(text.strip_suffix(suffix).unwrap_or(text))
        }
        "partition" | "rpartition" => {
            let (separator,): (&str,) = from_args(arguments)?;
            let is_last = name == "rpartition";
            let cut = match is_last {
                true => text.rsplit_once(separator),
                false => text.split_once(separator),
            };
            let parts = match cut {
                Some((before, behind)) => [before, separator, behind],
                None if is_last => ["", "", text],
                None => [text, "", ""],
            };
            Value::from(Tuple::from(parts.map(Value::from)))
        }
        "rsplit" => {
            let (separator, most): (Option<&str>, Option<i64>) = from_args(arguments)?;
            // All of them, or an unknown number of them, are those that split finds.
            let (Some(separator), Some(most)) = (separator, most.filter(|most| *most >= 0)) else {
                return Ok(None);
            };
            if separator.is_empty() {
                return Err(Error::new(ErrorKind::InvalidOperation, "empty separator"));
            }
            let most = usize::try_from(most).unwrap_or(usize::MAX).saturating_add(1);
            let mut parts: Vec<Value> = text.rsplitn(most, separator).map(Value::from).collect();
            parts.reverse();
            Value::from(parts)
        }
        "index" => {
            let (part,): (&str,) = from_args(arguments)?;
            let at = text.find(part).ok_or_else(|| {
                Error::new(ErrorKind::InvalidOperation, "index: the text has no such part")
            })?;
            Value::from(text[..at].chars().count())
        }
        _ => return Ok(None),
    }))
}

fn of_list(list: &Value, name: &str, arguments: &[Value]) -> Result<Option<Value>, Error> {
    if name != "index" {
        return Ok(None);
    }
    let (item,): (&Value,) = from_args(arguments)?;
    let at = list.try_iter()?.position(|other| other == *item);
    at.map(|at| Some(Value::from(at)))
        .ok_or_else(|| Error::new(ErrorKind::InvalidOperation, "index: the list has no such item"))
}
