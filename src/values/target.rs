//! What answers are to be: how soon, and how close to those of the best variant.

use super::duration::{self, Time};
use crate::plan::Target;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use std::fmt;
use std::str::FromStr;

/// The longest time that answers may be asked to take: whoever waits for more has no need of less
/// precision.
const MAX_LATENCY_US: u64 = 3_600_000_000;

/// A time within which answers are to be there: more than none, an hour at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Latency {
    us: u64,
}

impl Latency {
    /// Microseconds.
    pub fn us(self) -> u64 {
        self.us
    }
}

impl FromStr for Latency {
    type Err = String;

    fn from_str(text: &str) -> Result<Latency, String> {
        let us = duration::parse(text).map_err(|error| error.to_string())?;
        match us {
            1..=MAX_LATENCY_US => Ok(Latency { us }),
            0 => Err("no answer takes no time: write such as 400ms, or 2s".to_owned()),
            _ => Err(format!("{} is more than an hour: write such as 400ms, or 2s", text.trim())),
        }
    }
}

impl fmt::Display for Latency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Time(self.us).fmt(f)
    }
}

impl Serialize for Latency {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Latency {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Latency, D::Error> {
        struct Visitor;
        impl de::Visitor<'_> for Visitor {
            type Value = Latency;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("a time, such as \"400ms\", or a number of seconds")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Latency, E> {
                text.parse().map_err(E::custom)
            }

            fn visit_i64<E: de::Error>(self, seconds: i64) -> Result<Latency, E> {
                seconds.to_string().parse().map_err(E::custom)
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

/// How close answers are to be to those of the best variant: the mean cosine of what an encoder says,
/// or one less the divergence of what a language model does. More than 0, and at most 1.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "f64", into = "f64")]
pub struct Accuracy(f64);

// It is never NaN.
impl Eq for Accuracy {}

impl From<Accuracy> for f64 {
    fn from(accuracy: Accuracy) -> f64 {
        accuracy.0
    }
}

impl TryFrom<f64> for Accuracy {
    type Error = String;

    fn try_from(value: f64) -> Result<Accuracy, String> {
        match value > 0.0 && value <= 1.0 {
            true => Ok(Accuracy(value)),
            false => {
                Err(format!("an accuracy of {value}: give more than 0 and at most 1, as 0.99"))
            }
        }
    }
}

impl FromStr for Accuracy {
    type Err = String;

    fn from_str(text: &str) -> Result<Accuracy, String> {
        let value = text.trim().parse::<f64>();
        Accuracy::try_from(value.map_err(|_| format!("{text:?} is no number: write such as 0.99"))?)
    }
}

/// Both in the planner's units.
pub fn target(latency: Option<Latency>, accuracy: Option<Accuracy>) -> Target {
    Target {
        latency_us: latency.map(|latency| latency.us() as f64),
        accuracy: accuracy.map(f64::from),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn latencies_are_more_than_nothing_and_less_than_a_year() {
        let check = |text: &str, us: u64| {
            let latency: Latency = text.parse().unwrap();
            assert_eq!(latency.us(), us, "{text}");
            assert_eq!(latency.to_string().parse(), Ok(latency));
        };
        check("400ms", 400_000);
        check("5", 5_000_000);
        check("3600s", MAX_LATENCY_US);
        let refused = |text: &str| text.parse::<Latency>().unwrap_err();
        assert!(refused("0").starts_with("no answer takes no time"));
        assert!(refused("0ms").starts_with("no answer takes no time"));
        assert!(refused("31536000s").starts_with("31536000s is more than an hour"));
        assert!(refused("NaN").contains("is not a time"));
    }

    #[test]
    fn accuracies_are_shares() {
        let check = |text: &str, value: f64| {
            assert_eq!(text.parse().map(<f64 as From<Accuracy>>::from), Ok(value));
        };
        check("0.99", 0.99);
        check("1", 1.0);
        for wrong in ["2", "0", "-0.5", "NaN", "inf", "1.0001"] {
            let said = wrong.parse::<Accuracy>().unwrap_err();
            assert!(said.contains("give more than 0 and at most 1"), "{said}");
        }
        assert!("high".parse::<Accuracy>().unwrap_err().contains("is no number"));
    }
}
