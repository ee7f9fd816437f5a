//! What a refused call answers, before a protocol gives it its shape.

use crate::engine::{EngineError, ErrorKind};
use crate::store::StoreError;
use crate::stream::OverBudget;
use crate::wire::infer_tensor::RequestError;
use crate::wire::quote::one_line;
use axum::http::StatusCode;
use std::error::Error;
use std::{fmt, io};

/// A refusal: HTTP status and one line that says what to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApiError {
    /// The status of the response.
    pub status: StatusCode,
    /// What was wrong and what was expected.
    pub message: String,
    /// The field of the request it is about, where there is one.
    pub param: Option<&'static str>,
    /// Whether there are more tokens than the model can look at.
    pub exceeds_context: bool,
    /// Whether the rest of the request is not worth reading.
    pub close: bool,
    /// Where the budget is what is wrong.
    pub over_budget: Option<OverBudget>,
}

impl ApiError {
    /// A refusal that leaves the connection open.
    pub fn new(status: StatusCode, message: impl Into<String>) -> ApiError {
        let message = one_line(&message.into());
        ApiError {
            status,
            message,
            param: None,
            exceeds_context: false,
            close: false,
            over_budget: None,
        }
    }

    /// 400.
    pub fn invalid(message: impl Into<String>) -> ApiError {
        ApiError::new(StatusCode::BAD_REQUEST, message)
    }

    /// 404.
    pub fn not_found(message: impl Into<String>) -> ApiError {
        ApiError::new(StatusCode::NOT_FOUND, message)
    }

    /// 500.
    pub fn internal(message: impl Into<String>) -> ApiError {
        ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, message)
    }

    /// 503: the same request may succeed later.
    pub fn unavailable(message: impl Into<String>) -> ApiError {
        ApiError::new(StatusCode::SERVICE_UNAVAILABLE, message)
    }

    /// 400: more tokens than the model can look at.
    pub fn too_long(param: &'static str, tokens: &str, context: u64) -> ApiError {
        let message = format!(
            "{tokens} tokens; the model's context has {context}, the answer's among them\n\
             send less, or ask for fewer tokens"
        );
        ApiError { exceeds_context: true, ..ApiError::invalid(message).about(param) }
    }

    /// Names the field it is about.
    pub fn about(mut self, param: &'static str) -> ApiError {
        self.param = Some(param);
        self
    }

    /// Where the budget is too small, one is named in which all succeeds that comes after this.
    pub fn at_least(self, budget_bytes: impl FnOnce() -> u64) -> ApiError {
        match self.over_budget {
            Some(refused) => {
                let ApiError { param, close, .. } = self;
                ApiError { param, close, ..refused.at_least(budget_bytes()).into() }
            }
            None => self,
        }
    }

    /// Whether room is what is wanting, and others will give it back.
    pub fn may_pass(&self) -> bool {
        self.over_budget.is_some_and(|refused| refused.can_fit())
    }

    /// Closes the connection after the response.
    pub fn closing(mut self) -> ApiError {
        self.close = true;
        self
    }
}

impl fmt::Display for ApiError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.status.as_u16(), self.message)
    }
}

impl From<EngineError> for ApiError {
    fn from(error: EngineError) -> ApiError {
        if let Some(refused) = error.over_budget() {
            return refused.into();
        }
        let status = match error.kind() {
            ErrorKind::NotFound => StatusCode::NOT_FOUND,
            ErrorKind::Invalid => StatusCode::BAD_REQUEST,
            ErrorKind::Conflict => StatusCode::CONFLICT,
            ErrorKind::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            ErrorKind::Cancelled | ErrorKind::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
            ErrorKind::Internal => StatusCode::INTERNAL_SERVER_ERROR,
        };
        let mut message = advised(&error, error.advice());
        if is_for_want_of_files(&error) {
            message += "\nno more files can be opened: raise their limit (RLIMIT_NOFILE, \
                        LimitNOFILE= of the unit)";
        }
        ApiError::new(status, message)
    }
}

/// What happened, and what to do about it.
fn advised(error: &dyn Error, advice: Option<String>) -> String {
    match advice {
        Some(advice) => format!("{error}\n{advice}"),
        None => error.to_string(),
    }
}

/// Whether an error's cause is that as many files are open as may be.
pub fn is_for_want_of_files(error: &(dyn Error + 'static)) -> bool {
    let mut causes =
        std::iter::successors(Some(error), |error: &&(dyn Error + 'static)| (*error).source());
    causes.any(|cause| {
        let system = cause.downcast_ref::<io::Error>();
        system.and_then(io::Error::raw_os_error) == Some(libc::EMFILE)
    })
}

impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> ApiError {
        let status = match &error {
            StoreError::Archive { .. }
            | StoreError::Received { .. }
            | StoreError::Manifest { .. }
            | StoreError::Name { .. } => StatusCode::BAD_REQUEST,
            StoreError::Missing { .. } => StatusCode::NOT_FOUND,
            StoreError::Exists { .. }
            | StoreError::InUse { .. }
            | StoreError::NoPrevious { .. } => StatusCode::CONFLICT,
            StoreError::NoRoom { .. } => StatusCode::INSUFFICIENT_STORAGE,
            StoreError::Io { source, .. } if source.kind() == io::ErrorKind::StorageFull => {
                StatusCode::INSUFFICIENT_STORAGE
            }
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        };
        ApiError::new(status, advised(&error, error.advice()))
    }
}

impl From<OverBudget> for ApiError {
    fn from(error: OverBudget) -> ApiError {
        let refusal = match error.can_fit() {
            true => {
                ApiError::unavailable(format!("no room for this request now: {error}; try again"))
            }
            false => ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, error.to_string()),
        };
        ApiError { over_budget: Some(error), ..refusal }
    }
}

impl From<RequestError> for ApiError {
    fn from(error: RequestError) -> ApiError {
        match error {
            RequestError::OverBudget(error) => error.into(),
            error => ApiError::invalid(error.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn want_of_files_is_told_with_what_to_do() {
        let check = |number: i32, is_told: bool| {
            let source = io::Error::from_raw_os_error(number);
            let (action, path) = ("open", "layer".into());
            let error = EngineError::from(StoreError::Io { action, path, source });
            let message = ApiError::from(error).message;
            assert_eq!(message.contains("RLIMIT_NOFILE"), is_told, "{message}");
        };
        check(libc::EMFILE, true);
        check(libc::EIO, false);
    }
}
