//! How long a client will wait: the header `timeout`, or Triton's request parameter of that name.

use super::error::ApiError;
use crate::values::duration;
use crate::wire::quote::quote_bytes;
use axum::http::{HeaderMap, StatusCode};
use std::future::Future;
use std::time::Duration;
use tokio::time::{Instant, timeout_at};

/// The header.
const HEADER: &str = "timeout";

/// A time by which a request must be answered, if any.
#[derive(Clone, Copy, Debug)]
pub struct Deadline {
    start: Instant,
    limit: Option<Duration>,
}

impl Deadline {
    /// The deadline that a request's headers set, counted from now.
    ///
    /// # Errors
    ///
    /// 400 for a header that is no time.
    pub fn from_headers(headers: &HeaderMap) -> Result<Deadline, ApiError> {
        let deadline = Deadline { start: Instant::now(), limit: None };
        let mut values = headers.get_all(HEADER).iter();
        let Some(value) = values.next() else {
            return Ok(deadline);
        };
        let timeout_us = value.to_str().ok().and_then(parse).filter(|_| values.next().is_none());
        let timeout_us = timeout_us.ok_or_else(|| {
            let value = quote_bytes(value.as_bytes());
            let message = format!(
                "header {HEADER} {value} is not a time: write a whole number and its unit, such as \
                 5s, 500ms or 250us"
            );
            ApiError::invalid(message).closing()
        })?;
        Ok(deadline.within(timeout_us))
    }

    /// The same, and not later than `timeout_us` from its start; 0 is for ever.
    pub fn within(self, timeout_us: u64) -> Deadline {
        if timeout_us == 0 {
            return self;
        }
        let timeout = Duration::from_micros(timeout_us);
        let limit = self.limit.map_or(timeout, |limit| limit.min(timeout));
        Deadline { limit: Some(limit), ..self }
    }

    /// When it is over, where that ever comes.
    pub fn end(self) -> Option<std::time::Instant> {
        self.start.checked_add(self.limit?).map(Instant::into_std)
    }

    /// What `work` answers; it is dropped, which cancels its passes, when the time is over.
    ///
    /// # Errors
    ///
    /// Those of `work`; 504 when the time is over.
    pub async fn bound<T>(
        self,
        work: impl Future<Output = Result<T, ApiError>>,
    ) -> Result<T, ApiError> {
        // A time beyond what the clock can say never comes.
        let end = self.limit.and_then(|limit| Some((limit, self.start.checked_add(limit)?)));
        let Some((limit, end)) = end else {
            return work.await;
        };
        timeout_at(end, work).await.unwrap_or_else(|_| {
            let message = format!(
                "the request was cancelled: no answer within its timeout of {} us",
                limit.as_micros()
            );
            Err(ApiError::new(StatusCode::GATEWAY_TIMEOUT, message))
        })
    }
}

/// Microseconds of the header. A bare number is refused but for 0, which is for ever: who writes 5
/// means seconds, and Triton's parameter of this name is in microseconds.
fn parse(text: &str) -> Option<u64> {
    let time_us = duration::parse(text).ok()?;
    let has_unit = text.trim_end().ends_with('s');
    (has_unit || time_us == 0).then_some(time_us)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_units() {
        let check = |text: &str, expected: Option<u64>| assert_eq!(parse(text), expected, "{text}");
        check("500ms", Some(500_000));
        check(" 2 s ", Some(2_000_000));
        check("7us", Some(7));
        check("0", Some(0));
        for wrong in
            ["", "ms", "-1", "5", "1500", "0 h", "1.5s", "1m", "1 h", "99999999999999999999s"]
        {
            check(wrong, None);
        }
    }

    #[test]
    fn the_earlier_of_two_counts() {
        let check = |header: &str, parameter: u64, expected: Option<u64>| {
            let headers = HeaderMap::from_iter([(
                axum::http::HeaderName::from_static(HEADER),
                header.parse().unwrap(),
            )]);
            let deadline = Deadline::from_headers(&headers).unwrap().within(parameter);
            assert_eq!(deadline.limit, expected.map(Duration::from_micros));
        };
        check("0", 0, None);
        check("5us", 0, Some(5));
        check("0", 5, Some(5));
        check("5us", 7, Some(5));
        check("7ms", 5, Some(5));
    }
}
