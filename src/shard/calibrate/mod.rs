//! What weights are used for: inputs of the model, and the statistics of what its products multiply
//! them with.
//!
//! Inputs are a user's (`texts`, `arrays`, `npz`) or made up (`made_up`).

mod arrays;
mod made_up;
mod npz;
mod texts;

pub use made_up::Sketch;

use super::error::{ShardError, ensure, unfit};
use super::inputs::Inputs;
use super::source::TokenizerFile;
use crate::store::manifest::Manifest;
use std::ffi::OsStr;
use std::path::Path;

/// Most inputs that encoders are told of: more lower the error by next to nothing.
pub const MOST_INPUTS: usize = 64;

/// Most that are read to measure what is lost: half of them and more were not told to encoders.
pub const MOST_PROBED: usize = 2 * MOST_INPUTS;

/// At most `most` inputs of `file`, spread over it: texts, one a line (objects with `"text"` where it
/// ends in .jsonl), or arrays by the inputs' names (.npz; .npy where there is but one input).
///
/// # Errors
/// What does not fit the model, is empty or the same throughout, or holds what is no number; with
/// the place.
pub fn read(
    file: &Path,
    manifest: &Manifest,
    tokenizer: Option<&TokenizerFile>,
    most: usize,
) -> Result<Inputs, ShardError> {
    let end = file.extension().and_then(OsStr::to_str).unwrap_or_default();
    let (requests, kind) = match end.to_ascii_lowercase().as_str() {
        "npz" | "npy" => (arrays::read(file, manifest, most)?, "inputs"),
        end => {
            let form = if end == "jsonl" { texts::Form::Objects } else { texts::Form::Lines };
            (texts::read(file, form, manifest, tokenizer, most)?, "texts")
        }
    };
    let path = file.display();
    ensure!(!requests.is_empty(), "{path} has no {kind}\ngive {MOST_INPUTS} or so");
    let name = file.file_name().map(|name| name.to_string_lossy().into_owned());
    let source = format!("{}, {} {kind}", name.unwrap_or_default(), requests.len());
    let inputs = Inputs { source, is_made_up: false, requests };
    inputs.check(&manifest.inputs)?;
    ensure!(
        inputs.requests.iter().any(|request| *request != inputs.requests[0]),
        "{path}: all of its {kind} are the same\n\
         give {MOST_INPUTS} or so that differ, such as the model will be asked"
    );
    Ok(inputs)
}
