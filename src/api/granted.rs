//! Replies that are as long as what a store says: granted before they are written out, and until the
//! client has taken them.

use super::error::ApiError;
use super::pieces::Pieces;
use crate::engine::Engine;
use crate::stream::Category;
use axum::body::Body;
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use hyper::body::Bytes;
use serde::Serialize;
use std::io::{self, Write};
use std::iter;

/// The JSON of `value`, which borrows what it tells and so holds nothing itself.
///
/// # Errors
///
/// Those of the ledger.
pub fn json(engine: &Engine, value: &impl Serialize) -> Result<Response, ApiError> {
    let failed = |error: serde_json::Error| ApiError::internal(error.to_string());
    let mut length = ByteCount(0);
    serde_json::to_writer(&mut length, value).map_err(failed)?;
    let ByteCount(bytes) = length;
    let grant = engine.grant(Category::Request, bytes as u64, 0)?;
    let mut text = Vec::with_capacity(bytes);
    serde_json::to_writer(&mut text, value).map_err(failed)?;
    let body = Body::new(Pieces::new(iter::once(Bytes::from(text)), grant));
    let json = HeaderValue::from_static("application/json");
    let headers =
        [(header::CONTENT_TYPE, json), (header::CONTENT_LENGTH, HeaderValue::from(bytes))];
    Ok((headers, body).into_response())
}

/// Counts what is written to it.
struct ByteCount(usize);

impl Write for ByteCount {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0 += bytes.len();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
