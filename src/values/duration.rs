//! Times as users write them: `400ms`, `2s`, `250us`, and `5`, which are seconds. One parser for the
//! config, the command lines, queries and headers.

use std::fmt;
use thiserror::Error;

/// Units and their microseconds, the largest first.
const UNITS: [(&str, u64); 3] = [("s", 1_000_000), ("ms", 1_000), ("us", 1)];

/// A text that is no time.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{text:?} is not a time: write a whole number and its unit, such as 5s, 500ms or 250us")]
pub struct DurationError {
    text: String,
}

/// Microseconds that `text` stands for.
///
/// # Errors
///
/// [`DurationError`] for anything but a whole number, in seconds where no unit is written, and for
/// more than `u64` holds.
pub fn parse(text: &str) -> Result<u64, DurationError> {
    let trimmed = text.trim();
    let digits = trimmed.find(|c: char| !c.is_ascii_digit()).unwrap_or(trimmed.len());
    let (number, unit) = trimmed.split_at(digits);
    let scale = match unit.trim_start() {
        "" => Some(UNITS[0].1),
        unit => UNITS.iter().find(|(name, _)| *name == unit).map(|(_, scale)| *scale),
    };
    let time_us = number.parse::<u64>().ok().zip(scale).and_then(|(n, scale)| n.checked_mul(scale));
    time_us.ok_or_else(|| DurationError { text: text.to_owned() })
}

/// Writes a time as it is read, in the largest unit in which it is whole: `400ms`.
#[derive(Clone, Copy, Debug)]
pub struct Time(
    /// Microseconds.
    pub u64,
);

impl fmt::Display for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let whole = UNITS.iter().find(|(_, scale)| self.0.is_multiple_of(*scale));
        let (name, scale) = whole.unwrap_or(&UNITS[2]);
        write!(f, "{}{name}", self.0 / scale)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_parse() {
        let check = |text: &str, us: Option<u64>| assert_eq!(parse(text).ok(), us, "{text}");
        check("500ms", Some(500_000));
        check(" 2 s ", Some(2_000_000));
        check("7us", Some(7));
        check("5", Some(5_000_000));
        check("0", Some(0));
        for wrong in ["", "ms", "-1", "0 h", "1.5s", "1m", "5S", "NaN", "99999999999999999999s"] {
            check(wrong, None);
        }
        check("18446744073709551615s", None);
        let said = parse("a year").unwrap_err().to_string();
        assert!(said.starts_with("\"a year\" is not a time: "), "{said}");
    }

    #[test]
    fn times_are_written_as_they_are_read() {
        for (us, text) in [(400_000, "400ms"), (2_000_000, "2s"), (1_500_000, "1500ms"), (7, "7us")]
        {
            assert_eq!(Time(us).to_string(), text);
            assert_eq!(parse(text).unwrap(), us);
        }
    }
}
