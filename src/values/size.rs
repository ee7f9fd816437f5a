//! Sizes as users write them: `64MiB`, `64M`, `1.5 GiB`, `65536`. One parser for the config, the
//! environment, the command lines and queries.

use std::fmt;
use thiserror::Error;

/// Units, largest first. All are powers of 1024, as systemd's `MemoryMax=` and the kernel have them,
/// whichever of their three names is written: a size here is one of memory.
const UNITS: [(&str, u64); 5] =
    [("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10), ("B", 1)];

/// A text that is no size.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error(
    "{text:?} is not a size: write bytes, or a number and K, M or G, such as 64M, 64MB or 64MiB, \
     which are the same (powers of 1024)"
)]
pub struct SizeError {
    text: String,
}

/// Bytes that `text` stands for.
///
/// # Errors
///
/// [`SizeError`] for anything but a number, with a fraction if there is a unit, and one of the
/// units `B`, `K`, `KB`, `KiB` and so on to `T`, in any case; and for more than `u64` holds.
pub fn parse(text: &str) -> Result<u64, SizeError> {
    let refuse = || SizeError { text: text.to_owned() };
    let trimmed = text.trim();
    let digits = trimmed.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(trimmed.len());
    let (number, unit) = trimmed.split_at(digits);
    let unit = unit.trim_start();
    let scale = match unit {
        "" => 1,
        _ => UNITS.iter().find(|(name, _)| is_called(name, unit)).ok_or_else(refuse)?.1,
    };
    if let Ok(whole) = number.parse::<u64>() {
        return whole.checked_mul(scale).ok_or_else(refuse);
    }
    let (whole, fraction) = number.split_once('.').ok_or_else(refuse)?;
    if scale == 1 || fraction.is_empty() || fraction.len() > 9 {
        return Err(refuse());
    }
    let whole = whole.parse::<u64>().map_err(|_| refuse())?;
    let fraction_digits = fraction.parse::<u64>().map_err(|_| refuse())?;
    let denominator = 10u64.pow(u32::try_from(fraction.len()).map_err(|_| refuse())?);
    let part = u128::from(fraction_digits) * u128::from(scale) / u128::from(denominator);
    let part = u64::try_from(part).map_err(|_| refuse())?;
    whole.checked_mul(scale).and_then(|bytes| bytes.checked_add(part)).ok_or_else(refuse)
}

/// Whether `text` stands for the unit `name`: `MiB` is also called `MB` and `M`.
fn is_called(name: &str, text: &str) -> bool {
    let (first, rest) = name.split_at(1);
    let is = |called: &str| called.eq_ignore_ascii_case(text);
    is(name) || rest == "iB" && (is(first) || is(&format!("{first}B")))
}

/// Writes a size as people read it: `64 MiB`, `1.5 GiB`, `300 B`.
#[derive(Clone, Copy, Debug)]
pub struct Size(
    /// Bytes.
    pub u64,
);

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (unit, scale) = UNITS.iter().find(|(_, s)| self.0 >= *s).unwrap_or(&UNITS[4]);
        if self.0.is_multiple_of(*scale) {
            write!(f, "{} {unit}", self.0 / scale)
        } else {
            write!(f, "{:.1} {unit}", self.0 as f64 / *scale as f64)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_parse() {
        let check = |text: &str, bytes: Option<u64>| assert_eq!(parse(text).ok(), bytes, "{text}");
        check("0", Some(0));
        check("65536", Some(65536));
        check("64MiB", Some(64 << 20));
        check(" 64 mib ", Some(64 << 20));
        check("1.5GiB", Some(3 << 29));
        check("7B", Some(7));
        check("1KiB", Some(1024));
        for same in ["64M", "64m", "64MB", "64mb", "64 Mb", "65536K", "65536kB", "0.0625g"] {
            check(same, Some(64 << 20));
        }
        check("2T", Some(2 << 40));
        check("1.5 gb", Some(3 << 29));
        check("", None);
        check("MiB", None);
        check("M", None);
        check("64Mi", None);
        check("64Mbit", None);
        check("64BiB", None);
        check("64BB", None);
        check("64Ki B", None);
        check("-1", None);
        check("1.5", None);
        check("1.", None);
        check(".5MiB", None);
        check("1.2.3MiB", None);
        check("18446744073709551615", Some(u64::MAX));
        check("18446744073709551616", None);
        check("99999999999GiB", None);
    }

    #[test]
    fn sizes_read_well() {
        let check = |bytes: u64, text: &str| assert_eq!(Size(bytes).to_string(), text);
        check(0, "0 B");
        check(300, "300 B");
        check(64 << 20, "64 MiB");
        check(3 << 29, "1.5 GiB");
        check(1 << 40, "1 TiB");
    }
}
