//! What the answer to a request is to be: the headers `x-hermes-latency` and `x-hermes-accuracy`.

use super::error::ApiError;
use crate::engine::Choice;
use crate::plan::Target;
use crate::values::{self, Accuracy, Latency};
use crate::wire::quote::quote_bytes;
use axum::http::{HeaderMap, HeaderName, HeaderValue};
use std::str::FromStr;

const LATENCY: HeaderName = HeaderName::from_static("x-hermes-latency");
const ACCURACY: HeaderName = HeaderName::from_static("x-hermes-accuracy");

/// Of a reply: which precisions it was computed with, so that it can be repeated.
const CHOICE: HeaderName = HeaderName::from_static("x-hermes-choice");

/// What a reply says of the precisions of its passes: one, unless they changed between them.
pub fn choice_header(choices: &[Choice]) -> [(HeaderName, HeaderValue); 1] {
    let named: Vec<String> = choices.iter().map(Choice::to_string).collect();
    let value = HeaderValue::from_str(&named.join(", ")).expect("digits and commas are a header");
    [(CHOICE, value)]
}

/// What a request's headers ask for; none where they say nothing.
///
/// # Errors
///
/// 400 for a header that is no such figure, or is there twice.
pub fn from_headers(headers: &HeaderMap) -> Result<Option<Target>, ApiError> {
    let latency = one::<Latency>(headers, &LATENCY)?;
    let target = values::target(latency, one::<Accuracy>(headers, &ACCURACY)?);
    Ok((target != Target::default()).then_some(target))
}

fn one<T: FromStr<Err = String>>(
    headers: &HeaderMap,
    name: &HeaderName,
) -> Result<Option<T>, ApiError> {
    let mut values = headers.get_all(name).iter();
    let Some(value) = values.next() else { return Ok(None) };
    let wrong = |why: String| ApiError::invalid(format!("header {name}: {why}")).closing();
    if values.next().is_some() {
        return Err(wrong("it is there twice".to_owned()));
    }
    let quoted = || format!("{} is no text", quote_bytes(value.as_bytes()));
    let text = value.to_str().map_err(|_| wrong(quoted()))?;
    text.parse().map(Some).map_err(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(given: &[(&HeaderName, &str)]) -> Result<Option<Target>, String> {
        let headers = given.iter().map(|(name, value)| ((*name).clone(), value.parse().unwrap()));
        from_headers(&headers.collect()).map_err(|error| error.message)
    }

    #[test]
    fn headers_say_how_soon_and_how_close() {
        assert_eq!(read(&[]), Ok(None));
        let target = Target { latency_us: Some(400_000.0), accuracy: Some(0.99) };
        assert_eq!(read(&[(&LATENCY, "400ms"), (&ACCURACY, "0.99")]), Ok(Some(target)));
        let latency = Target { accuracy: None, ..target };
        assert_eq!(read(&[(&LATENCY, "400ms")]), Ok(Some(latency)));
    }

    #[test]
    fn headers_that_ask_for_nothing_that_is_are_refused_by_name() {
        let check = |given: &[(&HeaderName, &str)], expected: &str| {
            let said = read(given).unwrap_err();
            assert!(said.starts_with(expected), "{said}");
        };
        check(&[(&LATENCY, "0")], "header x-hermes-latency: no answer takes no time");
        check(&[(&LATENCY, "31536000")], "header x-hermes-latency: 31536000 is more than an hour");
        check(&[(&LATENCY, "soon")], "header x-hermes-latency: \"soon\" is not a time");
        check(&[(&ACCURACY, "2")], "header x-hermes-accuracy: an accuracy of 2: give more than 0");
        check(&[(&ACCURACY, "NaN")], "header x-hermes-accuracy: an accuracy of NaN");
        check(&[(&LATENCY, "1s"), (&LATENCY, "2s")], "header x-hermes-latency: it is there twice");
    }
}
