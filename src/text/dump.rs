//! JSON and numbers as Python writes them, since templates are written for it.

use minijinja::value::{Kwargs, Tuple, ValueKind};
use minijinja::{Error, ErrorKind, State, Value};
use std::fmt::Write;

/// Deepest nesting that is written.
const MAX_DEPTH: usize = 128;

/// Fuel for a value that is written: what walking to it takes.
const VALUE_FUEL: u64 = 1;

/// How JSON is laid out.
struct Layout<'a> {
    /// Before each element, where there are lines.
    indent: Option<String>,
    between: &'a str,
    after_key: &'a str,
    is_ascii: bool,
    sorts_keys: bool,
    /// Written as it is, whatever else becomes ASCII: it is taken out again.
    mark: Option<char>,
}

/// The filter `tojson`: `json.dumps` with its arguments, and nothing escaped for HTML.
pub fn to_json(
    state: &State,
    value: &Value,
    options: Kwargs,
    mark: Option<char>,
) -> Result<String, Error> {
    let indent = match options.get::<Option<Value>>("indent")? {
        None => None,
        Some(value) if value.is_none() => None,
        Some(value) => match value.as_str() {
            Some(text) => Some(text.to_owned()),
            None => Some(" ".repeat(usize::try_from(value)?.min(64))),
        },
    };
    let separators = options.get::<Option<Value>>("separators")?.filter(|pair| !pair.is_none());
    let text_of = |at: usize| {
        let part = separators.as_ref().map(|pair| pair.get_item_by_index(at)).transpose()?;
        Ok::<_, Error>(part.and_then(|part| part.as_str().map(str::to_owned)))
    };
    let (between, after_key) = (text_of(0)?, text_of(1)?);
    let layout = Layout {
        between: between.as_deref().unwrap_or(if indent.is_some() { "," } else { ", " }),
        after_key: after_key.as_deref().unwrap_or(": "),
        indent,
        is_ascii: options.get::<Option<bool>>("ensure_ascii")?.unwrap_or(false),
        sorts_keys: options.get::<Option<bool>>("sort_keys")?.unwrap_or(false),
        mark,
    };
    options.assert_all_used()?;
    let mut text = String::new();
    write_value(state, &layout, value, 0, &mut text)?;
    Ok(text)
}

fn write_value(
    state: &State,
    layout: &Layout,
    value: &Value,
    depth: usize,
    text: &mut String,
) -> Result<(), Error> {
    state.consume_fuel(VALUE_FUEL)?;
    let refuse = |what: String| Err(Error::new(ErrorKind::InvalidOperation, what));
    if depth > MAX_DEPTH {
        return refuse("tojson: nested too deeply".to_owned());
    }
    match value.kind() {
        ValueKind::None => text.push_str("null"),
        ValueKind::Bool => text.push_str(if value.is_true() { "true" } else { "false" }),
        ValueKind::Number => text.push_str(&number(value)),
        ValueKind::String => {
            let string = value.as_str().unwrap_or_default();
            state.consume_fuel(string.len() as u64 / 64)?;
            write_string(layout, string, text);
        }
        ValueKind::Seq | ValueKind::Iterable => {
            let items: Vec<Value> = value.try_iter()?.collect();
            let write =
                |item: &Value, text: &mut String| write_value(state, layout, item, depth + 1, text);
            write_items(state, layout, ('[', ']'), &items, depth, text, write)?;
        }
        ValueKind::Map => {
            let mut items = vec![];
            for key in value.try_iter()? {
                items.push((key_of(&key)?, value.get_item(&key)?));
            }
            if layout.sorts_keys {
                items.sort_by(|(a, _), (b, _)| a.cmp(b));
            }
            let write = |(key, value): &(String, Value), text: &mut String| {
                let bytes = key.len() + layout.after_key.len();
                state.consume_fuel(bytes as u64 / 64)?;
                write_string(layout, key, text);
                text.push_str(layout.after_key);
                write_value(state, layout, value, depth + 1, text)
            };
            write_items(state, layout, ('{', '}'), &items, depth, text, write)?;
        }
        kind => return refuse(format!("tojson: a value of type {kind} is not JSON")),
    }
    Ok(())
}

fn write_items<T>(
    state: &State,
    layout: &Layout,
    (open, close): (char, char),
    items: &[T],
    depth: usize,
    text: &mut String,
    mut write: impl FnMut(&T, &mut String) -> Result<(), Error>,
) -> Result<(), Error> {
    let line = |depth: usize, text: &mut String| {
        if let Some(indent) = &layout.indent {
            state.consume_fuel((depth * indent.len()) as u64 / 64)?;
            text.push('\n');
            (0..depth).for_each(|_| text.push_str(indent));
        }
        Ok::<_, Error>(())
    };
    text.push(open);
    for (index, item) in items.iter().enumerate() {
        if index > 0 {
            state.consume_fuel(layout.between.len() as u64 / 64)?;
            text.push_str(layout.between);
        }
        line(depth + 1, text)?;
        write(item, text)?;
    }
    if !items.is_empty() {
        line(depth, text)?;
    }
    text.push(close);
    Ok(())
}

/// What a key is in JSON: text, or what Python makes text of.
fn key_of(key: &Value) -> Result<String, Error> {
    match key.kind() {
        ValueKind::String => Ok(key.as_str().unwrap_or_default().to_owned()),
        ValueKind::None => Ok("null".to_owned()),
        ValueKind::Bool => Ok(if key.is_true() { "true" } else { "false" }.to_owned()),
        ValueKind::Number => Ok(number(key)),
        kind => {
            let what = format!("tojson: a key of type {kind} is not JSON");
            Err(Error::new(ErrorKind::InvalidOperation, what))
        }
    }
}

fn write_string(layout: &Layout, string: &str, text: &mut String) {
    text.push('"');
    for c in string.chars() {
        match c {
            '"' => text.push_str("\\\""),
            '\\' => text.push_str("\\\\"),
            '\n' => text.push_str("\\n"),
            '\r' => text.push_str("\\r"),
            '\t' => text.push_str("\\t"),
            '\u{8}' => text.push_str("\\b"),
            '\u{c}' => text.push_str("\\f"),
            c if c < ' ' || layout.is_ascii && c > '~' && Some(c) != layout.mark => {
                for unit in c.encode_utf16(&mut [0; 2]) {
                    // Writing to a string does not fail.
                    let _ = write!(text, "\\u{unit:04x}");
                }
            }
            c => text.push(c),
        }
    }
    text.push('"');
}

/// Writes a value as `str` of Python does: texts as they are, lists and maps as they are written
/// in a program. Fuel pays for each value in it, and its bytes are paid for before they are there.
pub fn write_text(state: &State, value: &Value, text: &mut String) -> Result<(), Error> {
    match value.as_str() {
        Some(string) => text.push_str(string),
        None => write_literal(state, value, 0, text)?,
    }
    Ok(())
}

fn write_literal(
    state: &State,
    value: &Value,
    depth: usize,
    text: &mut String,
) -> Result<(), Error> {
    state.consume_fuel(VALUE_FUEL)?;
    if depth > MAX_DEPTH {
        return Err(Error::new(ErrorKind::InvalidOperation, "a text of what is nested too deeply"));
    }
    let is_plain = value.as_object().is_none_or(|object| {
        ["Vec<", "Tuple", "Map<", "Namespace"].iter().any(|name| object.type_name().contains(name))
    });
    let is_tuple = value.as_object().is_some_and(|object| object.is::<Tuple>());
    match value.kind() {
        ValueKind::Number => text.push_str(&number(value)),
        ValueKind::String => {
            let string = value.as_str().unwrap_or_default();
            state.consume_fuel(string.len() as u64 / 64)?;
            write_quoted(string, text);
        }
        ValueKind::Seq | ValueKind::Iterable if is_plain => {
            text.push(if is_tuple { '(' } else { '[' });
            for (index, item) in value.try_iter()?.enumerate() {
                text.push_str(if index > 0 { ", " } else { "" });
                write_literal(state, &item, depth + 1, text)?;
            }
            text.push_str(match (is_tuple, value.len()) {
                (true, Some(1)) => ",)",
                (true, _) => ")",
                _ => "]",
            });
        }
        ValueKind::Map if is_plain => {
            text.push('{');
            for (index, key) in value.try_iter()?.enumerate() {
                text.push_str(if index > 0 { ", " } else { "" });
                write_literal(state, &key, depth + 1, text)?;
                text.push_str(": ");
                write_literal(state, &value.get_item(&key)?, depth + 1, text)?;
            }
            text.push('}');
        }
        _ => {
            // Writing to a string does not fail.
            let _ = write!(text, "{value}");
        }
    }
    Ok(())
}

/// A text as Python writes it in a program.
fn write_quoted(string: &str, text: &mut String) {
    let quote = if string.contains('\'') && !string.contains('"') { '"' } else { '\'' };
    text.push(quote);
    for c in string.chars() {
        match c {
            '\\' => text.push_str("\\\\"),
            '\n' => text.push_str("\\n"),
            '\r' => text.push_str("\\r"),
            '\t' => text.push_str("\\t"),
            c if c == quote => text.extend(['\\', c]),
            c if c.is_control() => {
                // Writing to a string does not fail.
                let _ = write!(text, "\\x{:02x}", u32::from(c));
            }
            c => text.push(c),
        }
    }
    text.push(quote);
}

/// A number as Python writes it: 1.0 stays 1.0, 1e20 is 1e+20.
pub fn number(value: &Value) -> String {
    match float_of(value) {
        Some(float) => float_text(float),
        None => value.to_string(),
    }
}

/// The value, where it is a number that is no integer to Python, 1.0 among them.
pub fn float_of(value: &Value) -> Option<f64> {
    let is_float = value.kind() == ValueKind::Number && !value.is_integer();
    f64::try_from(value.clone()).ok().filter(|_| is_float)
}

fn float_text(float: f64) -> String {
    if float.is_nan() {
        return "NaN".to_owned();
    }
    if float.is_infinite() {
        return if float > 0.0 { "Infinity" } else { "-Infinity" }.to_owned();
    }
    let shortest = format!("{float:e}");
    let (digits, exponent) = shortest.split_once('e').unwrap_or((&shortest, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    match exponent {
        -4..16 => {
            let plain = format!("{float}");
            if plain.contains('.') { plain } else { plain + ".0" }
        }
        _ => format!("{digits}e{}{:02}", if exponent < 0 { '-' } else { '+' }, exponent.abs()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floats_are_written_as_python_writes_them() {
        let check = |float: f64, text: &str| assert_eq!(float_text(float), text);
        check(1.0, "1.0");
        check(-0.0, "-0.0");
        check(0.1 + 0.2, "0.30000000000000004");
        check(1e15, "1000000000000000.0");
        check(1e16, "1e+16");
        check(1.5e300, "1.5e+300");
        check(1e-4, "0.0001");
        check(1e-5, "1e-05");
        check(f64::NAN, "NaN");
        assert_eq!(number(&Value::from(7)), "7");
    }
}
