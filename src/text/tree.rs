//! JSON as templates are given it: whole numbers stay whole, as in Python, whatever their size.
//!
//! The parser reads those beyond 64 bits as floats. They go through it as texts.

use minijinja::Value;
use minijinja::value::ValueKind;
use std::ops::Range;

/// Before a number that is given as a text; no JSON that has it is read so.
const MARK: &str = "\u{fdef}";

/// Fewest digits of a number that 64 bits may not hold.
const LONG_DIGITS: usize = 19;

/// The value of a JSON text.
///
/// # Errors
/// What is wrong with it, numbers that have no place among them.
pub fn read(json: &[u8]) -> Result<Value, String> {
    let long = long_numbers(json);
    let parsed = |json: &[u8]| serde_json::from_slice(json).map_err(|error| error.to_string());
    let has_mark = || {
        let text = String::from_utf8_lossy(json);
        text.contains(MARK) || text.to_ascii_lowercase().contains("\\ufdef")
    };
    if long.is_empty() || has_mark() {
        return parsed(json);
    }
    let mut marked = vec![];
    let mut done = 0;
    for Range { start, end } in long {
        marked.extend_from_slice(&json[done..start]);
        marked.extend(["\"", MARK].concat().bytes());
        marked.extend_from_slice(&json[start..end]);
        marked.push(b'"');
        done = end;
    }
    marked.extend_from_slice(&json[done..]);
    whole(parsed(&marked)?)
}

/// Where whole numbers are that 64 bits do not hold.
fn long_numbers(json: &[u8]) -> Vec<Range<usize>> {
    let mut found = vec![];
    let (mut at, mut is_text) = (0, false);
    while let Some(byte) = json.get(at) {
        match byte {
            b'"' => is_text = !is_text,
            // What is escaped ends no text.
            b'\\' => at += 1,
            b'-' | b'0'..=b'9' if !is_text => {
                let is_part = |byte: &&u8| byte.is_ascii_alphanumeric() || b"+-.".contains(byte);
                let end = at + json[at..].iter().take_while(is_part).count();
                let digits = &json[at + usize::from(*byte == b'-')..end];
                let is_whole = digits.len() >= LONG_DIGITS && digits[0] != b'0';
                let text = std::str::from_utf8(&json[at..end]).unwrap_or_default();
                let fits = text.parse::<i64>().is_ok() || text.parse::<u64>().is_ok();
                if is_whole && digits.iter().all(u8::is_ascii_digit) && !fits {
                    found.push(at..end);
                }
                at = end;
                continue;
            }
            _ => {}
        }
        at += 1;
    }
    found
}

/// The value with numbers where they were given as texts.
fn whole(value: Value) -> Result<Value, String> {
    match value.kind() {
        ValueKind::String => match value.as_str().and_then(|text| text.strip_prefix(MARK)) {
            Some(digits) => digits
                .parse::<i128>()
                .map(Value::from)
                .map_err(|_| "a whole number has more than 127 bits".to_owned()),
            None => Ok(value),
        },
        ValueKind::Seq => {
            let items = value.try_iter().into_iter().flatten();
            items.map(whole).collect::<Result<Vec<_>, _>>().map(Value::from)
        }
        ValueKind::Map => {
            let keys = value.try_iter().into_iter().flatten();
            let pairs = keys.map(|key| {
                let item = value.get_item(&key).map_err(|error| error.to_string())?;
                Ok((key, whole(item)?))
            });
            pairs.collect::<Result<Vec<_>, String>>().map(Value::from_pairs)
        }
        _ => Ok(value),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_numbers_stay_whole() {
        let check = |json: &str, right: &str| {
            assert_eq!(read(json.as_bytes()).map(|value| value.to_string()).as_deref(), Ok(right));
        };
        check("[18446744073709551617, 5]", "[18446744073709551617, 5]");
        check("{\"a\":[-9223372036854775809]}", "{'a': [-9223372036854775809]}");
        check(
            "[\"\\\"18446744073709551617\", 18446744073709551615]",
            "['\"18446744073709551617', 18446744073709551615]",
        );
        check("18446744073709551616.5", "18446744073709552000.0");
        assert!(read("1".repeat(50).as_bytes()).is_err());
        assert!(read(b"[18446744073709551617").is_err());
        assert!(read(b"18446744073709551617x").is_err());
    }
}
