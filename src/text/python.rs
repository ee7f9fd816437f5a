//! What templates use of Python and Jinja that minijinja has not, or has otherwise.
//!
//! Its contrib crate has most of Python's methods; those here are what it lacks and templates use.
//! What neither has fails: a method that is missing must never print nothing.

use super::dump;
use minijinja::value::{Kwargs, Rest, StringInput, Tuple, ValueKind, ValueOrKwargs, from_args};
use minijinja::{Environment, Error, ErrorKind, State, Value};
use minijinja_contrib::pycompat;

/// Adds all of it; `mark` is what JSON is to leave as it is.
pub fn install(environment: &mut Environment, mark: Option<char>) {
    environment.set_unknown_method_callback(method);
    environment.set_formatter(|out, state, value| {
        if value.as_object().is_none() && dump::float_of(value).is_none() {
            return minijinja::escape_formatter(out, state, value);
        }
        let text = string(state, value)?;
        minijinja::escape_formatter(out, state, &text)
    });
    environment.add_filter("string", string);
    environment.add_filter("join", join);
    environment.add_filter("tojson", move |state: &State, value: &Value, options: Kwargs| {
        dump::to_json(state, value, options, mark)
    });
    environment.add_filter("default", default);
    environment.add_filter("d", default);
    environment.add_filter("int", int);
    environment.add_filter("float", float);
    environment.add_filter("truncate", truncate);
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

/// The filter `string`.
fn string(state: &State, value: &Value) -> Result<Value, Error> {
    if value.as_str().is_some() {
        return Ok(value.clone());
    }
    let mut text = String::new();
    dump::write_text(state, value, &mut text)?;
    Ok(Value::from(text))
}

/// The filter `join`, for items that may be none of texts.
fn join(
    state: &mut State,
    value: &Value,
    between: Option<StringInput>,
    attribute: Option<Value>,
    options: Kwargs,
) -> Result<Value, Error> {
    let attribute = options.get::<Option<Value>>("attribute")?.or(attribute);
    let value = match attribute {
        Some(attribute) => {
            let named = Kwargs::from_iter([("attribute", attribute)]);
            state.apply_filter("map", &[value.clone(), named.into()])?
        }
        None => value.clone(),
    };
    let mut texts = vec![];
    if !value.is_undefined() && !value.is_none() {
        for item in value.try_iter()?.checked() {
            state.consume_fuel(1)?;
            texts.push(string(state, &item?)?);
        }
    }
    minijinja::filters::join(state, &Value::from(texts), between, None, options)
}

/// The filter `default`, whose arguments may be given by name. One that is none is given, too.
fn default(value: &Value, given: Rest<ValueOrKwargs>) -> Result<Value, Error> {
    let mut given: Vec<Value> = given.iter().map(|given| (**given).clone()).collect();
    let named = given.pop_if(|last| last.is_kwargs()).map(Kwargs::try_from).transpose()?;
    let argument = |at: usize, name: &str| match &named {
        Some(named) if named.has(name) => named.get::<Value>(name).map(Some),
        _ => Ok(given.get(at).cloned()),
    };
    let other = argument(0, "default_value")?.unwrap_or_else(|| Value::from(""));
    let is_lax = argument(1, "boolean")?.is_some_and(|boolean| boolean.is_true());
    if given.len() > 2 {
        return Err(Error::from(ErrorKind::TooManyArguments));
    }
    if let Some(named) = &named {
        named.assert_all_used()?;
    }
    let is_missing = value.is_undefined() || is_lax && !value.is_true();
    Ok(if is_missing { other } else { value.clone() })
}

/// The filter `int`: what is no number is the default.
fn int(
    value: &Value,
    default: Option<Value>,
    base: Option<u32>,
    options: Kwargs,
) -> Result<Value, Error> {
    let default = options.get::<Option<Value>>("default")?.or(default);
    let base = options.get::<Option<u32>>("base")?.or(base).unwrap_or(10);
    options.assert_all_used()?;
    let default = default.unwrap_or_else(|| Value::from(0));
    if !(2..=36).contains(&base) {
        return Ok(default);
    }
    let whole = |float: f64| {
        let fits = float.abs() < 1e38;
        if fits { Value::from(float as i128) } else { default.clone() }
    };
    if matches!(value.kind(), ValueKind::Number | ValueKind::Bool) {
        return Ok(match dump::float_of(value) {
            Some(float) => whole(float),
            None => Value::from(i128::try_from(value.clone())?),
        });
    }
    let Some(text) = value.as_str() else { return Ok(default) };
    let text = text.trim();
    let (sign, digits) = match text.strip_prefix('-') {
        Some(digits) => ("-", digits),
        None => ("", text.strip_prefix('+').unwrap_or(text)),
    };
    let prefix = match base {
        16 => "0x",
        8 => "0o",
        2 => "0b",
        _ => "",
    };
    let small = digits.to_ascii_lowercase();
    let digits = small.strip_prefix(prefix).unwrap_or(&small);
    let is_plain = digits.starts_with(|c: char| c.is_ascii_alphanumeric());
    let number = i128::from_str_radix(&format!("{sign}{digits}"), base).ok();
    Ok(match number.filter(|_| is_plain) {
        Some(number) => Value::from(number),
        None => text.parse::<f64>().map_or(default.clone(), whole),
    })
}

/// The filter `float`: what is no number is the default.
fn float(value: &Value, default: Option<Value>, options: Kwargs) -> Result<Value, Error> {
    let default = options.get::<Option<Value>>("default")?.or(default);
    options.assert_all_used()?;
    let number = match value.as_str() {
        Some(text) => text.trim().parse().ok(),
        None if value.is_none() || value.is_undefined() => None,
        None => f64::try_from(value.clone()).ok(),
    };
    Ok(number.map_or_else(|| default.unwrap_or_else(|| Value::from(0.0)), Value::from))
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
    if name == "copy" && arguments.is_empty() && value.as_object().is_some() {
        return Ok(value.clone());
    }
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

/// Widest that a text is made: a template could have memory for nothing.
pub const MAX_WIDTH: u64 = 4096;

/// Characters that a text lacks of a width.
fn missing(text: &str, width: u64) -> Result<usize, Error> {
    if width > MAX_WIDTH {
        let what = format!("a width of {width}: it may be {MAX_WIDTH}");
        return Err(Error::new(ErrorKind::InvalidOperation, what));
    }
    // It is small.
    Ok((width as usize).saturating_sub(text.chars().count()))
}

/// The characters from `start` to `end`, counted from the text's end where negative; none where the
/// start is behind that.
fn cut(text: &str, start: Option<i64>, end: Option<i64>) -> Option<&str> {
    let count = text.chars().count();
    let place = |at: i64| match usize::try_from(at) {
        Ok(at) => at,
        Err(_) => count.saturating_sub(usize::try_from(at.unsigned_abs()).unwrap_or(usize::MAX)),
    };
    let (start, end) = (start.map_or(0, place), end.map_or(count, place).min(count));
    let byte = |at: usize| text.char_indices().nth(at).map_or(text.len(), |(byte, _)| byte);
    (start <= end).then(|| &text[byte(start)..byte(end)])
}

/// The filter `truncate`: a text that is little longer is left as it is.
fn truncate(
    text: &str,
    length: Option<usize>,
    kills_words: Option<bool>,
    end: Option<&str>,
    options: Kwargs,
) -> Result<String, Error> {
    let length = options.get::<Option<usize>>("length")?.or(length).unwrap_or(255);
    let kills_words = options.get::<Option<bool>>("killwords")?.or(kills_words).unwrap_or(false);
    let end = options.get::<Option<&str>>("end")?.or(end).unwrap_or("...");
    let leeway = options.get::<Option<usize>>("leeway")?.unwrap_or(5);
    options.assert_all_used()?;
    let Some(kept) = length.checked_sub(end.chars().count()) else {
        let what = format!("truncate: {length} characters are fewer than {end:?} has");
        return Err(Error::new(ErrorKind::InvalidOperation, what));
    };
    if text.chars().count() <= length.saturating_add(leeway) {
        return Ok(text.to_owned());
    }
    let begin = cut(text, None, i64::try_from(kept).ok()).unwrap_or_default();
    let whole_words = begin.rsplit_once(' ').map_or(begin, |(before, _)| before);
    Ok(format!("{}{end}", if kills_words { begin } else { whole_words }))
}

fn of_text(text: &str, name: &str, arguments: &[Value]) -> Result<Option<Value>, Error> {
    Ok(Some(match name {
        "startswith" | "endswith" => {
            let (parts, start, end): (&Value, Option<i64>, Option<i64>) = from_args(arguments)?;
            let part_of = |part: &Value| {
                let told = || Error::new(ErrorKind::InvalidOperation, format!("{name}: no text"));
                part.as_str().map(str::to_owned).ok_or_else(told)
            };
            let parts = match parts.kind() {
                ValueKind::Seq => parts.try_iter()?.map(|part| part_of(&part)).collect(),
                _ => part_of(parts).map(|part| vec![part]),
            }?;
            let Some(text) = cut(text, start, end) else { return Ok(Some(Value::from(false))) };
            let is_so = |part: &String| match name {
                "startswith" => text.starts_with(part),
                _ => text.ends_with(part),
            };
            Value::from(parts.iter().any(is_so))
        }
        "zfill" => {
            let (width,): (u64,) = from_args(arguments)?;
            let (sign, digits) = text.split_at(usize::from(text.starts_with(['+', '-'])));
            let zeros = missing(text, width)?;
            Value::from(format!("{sign}{}{digits}", "0".repeat(zeros)))
        }
        "center" | "ljust" | "rjust" => {
            let (width, fill): (u64, Option<char>) = from_args(arguments)?;
            let pad = missing(text, width)?;
            let left = match name {
                "center" => pad / 2 + usize::from(pad % 2 == 1 && width % 2 == 1),
                "rjust" => pad,
                _ => 0,
            };
            let fill = |count| std::iter::repeat_n(fill.unwrap_or(' '), count);
            let padded = fill(left).chain(text.chars()).chain(fill(pad - left));
            Value::from(padded.collect::<String>())
        }
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
        "split" | "rsplit" => {
            let (separator, most, options): (Option<Value>, Option<i64>, Kwargs) =
                from_args(arguments)?;
            let separator = options.get::<Option<Value>>("sep")?.or(separator);
            let most = options.get::<Option<i64>>("maxsplit")?.or(most);
            options.assert_all_used()?;
            let most = most.filter(|most| *most >= 0);
            let separator = separator.filter(|separator| !separator.is_none());
            let is_last = name == "rsplit";
            let Some(separator) = separator else {
                return Ok(Some(words(text, most, is_last).into()));
            };
            let told = || Error::new(ErrorKind::InvalidOperation, format!("{name}: no text"));
            let separator = separator.as_str().ok_or_else(told)?;
            if separator.is_empty() {
                return Err(Error::new(ErrorKind::InvalidOperation, "empty separator"));
            }
            let most = most.and_then(|most| usize::try_from(most).ok());
            let most = most.unwrap_or(usize::MAX).saturating_add(1);
            if !is_last {
                return Ok(Some(text.splitn(most, separator).map(Value::from).collect()));
            }
            let mut parts: Vec<Value> = text.rsplitn(most, separator).map(Value::from).collect();
            parts.reverse();
            Value::from(parts)
        }
        "find" | "rfind" if arguments.len() > 1 => {
            let (part, start, end): (&str, Option<i64>, Option<i64>) = from_args(arguments)?;
            let found = cut(text, start, end).and_then(|within| {
                let at = if name == "find" { within.find(part) } else { within.rfind(part) }?;
                let before = within.as_ptr() as usize - text.as_ptr() as usize + at;
                Some(text[..before].chars().count())
            });
            found.map_or(Value::from(-1), Value::from)
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

/// The words of a text; the rest of it, where no more of them are to be cut off its beginning, or
/// its end.
fn words(text: &str, most: Option<i64>, is_last: bool) -> Vec<Value> {
    let mut left = most.and_then(|most| usize::try_from(most).ok()).unwrap_or(usize::MAX);
    let trimmed = |text| if is_last { str::trim_end(text) } else { str::trim_start(text) };
    let (mut words, mut rest) = (vec![], trimmed(text));
    while !rest.is_empty() {
        let place =
            if is_last { rest.rfind(char::is_whitespace) } else { rest.find(char::is_whitespace) };
        let Some(at) = place.filter(|_| left > 0) else { break };
        let (before, behind) = rest.split_at(at);
        let (word, others) = if is_last { (behind, before) } else { (before, behind) };
        words.push(Value::from(word.trim()));
        rest = trimmed(others);
        left -= 1;
    }
    if !rest.is_empty() {
        words.push(Value::from(rest));
    }
    if is_last {
        words.reverse();
    }
    words
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
