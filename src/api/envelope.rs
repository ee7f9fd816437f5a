//! How each protocol says what is wrong.

use super::error::ApiError;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

/// An error as the Open Inference Protocol has it.
pub struct OipError(
    /// What is refused.
    pub ApiError,
);

impl<E: Into<ApiError>> From<E> for OipError {
    fn from(error: E) -> OipError {
        OipError(error.into())
    }
}

impl IntoResponse for OipError {
    fn into_response(self) -> Response {
        let body = json!({ "error": self.0.message }).to_string().into_bytes();
        error_response(&self.0, body)
    }
}

/// An error as OpenAI's protocol has it.
pub struct OpenAiError(
    /// What is refused.
    pub ApiError,
);

impl<E: Into<ApiError>> From<E> for OpenAiError {
    fn from(error: E) -> OpenAiError {
        OpenAiError(error.into())
    }
}

impl OpenAiError {
    /// The body of the response.
    pub fn json(&self) -> Value {
        let error = &self.0;
        let kind = match error.status.is_client_error() {
            true => "invalid_request_error",
            false => "server_error",
        };
        let code = match (error.status, error.param) {
            _ if error.exceeds_context => Some("context_length_exceeded"),
            (StatusCode::NOT_FOUND, Some("model")) => Some("model_not_found"),
            (StatusCode::UNAUTHORIZED, _) => Some("invalid_api_key"),
            _ => None,
        };
        json!({ "error": {
            "message": error.message,
            "type": kind,
            "param": error.param,
            "code": code,
        }})
    }
}

impl IntoResponse for OpenAiError {
    fn into_response(self) -> Response {
        let body = self.json().to_string().into_bytes();
        error_response(&self.0, body)
    }
}

/// The response of an error, in the shape of the protocol that `path` is of.
pub fn refuse(path: &str, error: ApiError) -> Response {
    match path.starts_with("/v1") {
        true => OpenAiError(error).into_response(),
        false => OipError(error).into_response(),
    }
}

/// The response of an error whose protocol has made `body` of it.
fn error_response(error: &ApiError, body: Vec<u8>) -> Response {
    log::debug!("refused: {error}");
    let json = HeaderValue::from_static("application/json");
    let mut response = (error.status, [(header::CONTENT_TYPE, json)], body).into_response();
    let headers = response.headers_mut();
    if error.close {
        headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    if error.status == StatusCode::UNAUTHORIZED {
        let bearer = HeaderValue::from_static("Bearer realm=\"hermes\"");
        headers.insert(header::WWW_AUTHENTICATE, bearer);
    }
    if error.status == StatusCode::SERVICE_UNAVAILABLE {
        headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
    }
    response
}
