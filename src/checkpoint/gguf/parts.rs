//! A model of several files, of which the first has the metadata: NAME-00001-of-00003.gguf.

use super::header::Header;
use crate::checkpoint::CheckpointError;
use std::path::{Path, PathBuf};

/// Limit of a model's files.
const MAX_PARTS: u64 = 1000;

/// The keys that tell of parts.
const COUNT: &str = "split.count";
const NUMBER: &str = "split.no";
const TENSORS: &str = "split.tensors.count";

/// Whether a file of this name is a whole model or the first part of one.
pub fn is_first_part(name: &str) -> bool {
    let stem = name.strip_suffix(".gguf");
    stem.is_some_and(|stem| split(stem).is_none_or(|(_, number, _)| number == 1))
}

/// Reads the file at `path` and the parts that follow it: the first one's keys, tensors of all.
///
/// # Errors
/// A part is missing, damaged, or of another model.
pub fn read(path: &Path) -> Result<Header, CheckpointError> {
    let mut whole = Header::read(path)?;
    let count = whole.keys.number(COUNT)?.unwrap_or(1);
    if count <= 1 {
        return Ok(whole);
    }
    let wrong = |what: String| CheckpointError::key(path, COUNT, what);
    if count > MAX_PARTS {
        return Err(wrong(format!("it is {count}, expected at most {MAX_PARTS} parts")));
    }
    let number = whole.keys.number(NUMBER)?.unwrap_or(0);
    let name = path.file_stem().and_then(|stem| stem.to_str()).and_then(split);
    let Some((name, _, _)) = name.filter(|(_, own, of)| (*own, *of) == (number + 1, count)) else {
        let what = format!(
            "is part {} of {count}, and its name should end in -{:05}-of-{count:05}.gguf",
            number + 1,
            number + 1
        );
        return Err(CheckpointError::file(path, what, "call the parts as they were called before"));
    };
    if number != 0 {
        let what = format!("is part {} of {count}", number + 1);
        let advice = format!("name the first one, {name}-00001-of-{count:05}.gguf");
        return Err(CheckpointError::file(path, what, advice));
    }
    let of = |number: u64| path.with_file_name(format!("{name}-{number:05}-of-{count:05}.gguf"));
    let parts: Vec<PathBuf> = (2..=count).map(of).collect();
    // The first read of a part that is missing would be after those of all before it.
    if let Some(missing) = parts.iter().find(|part| !part.exists()) {
        let what = format!("is not there, and the model is split into {count} parts");
        return Err(CheckpointError::file(missing, what, "fetch all parts into one folder"));
    }
    for (part, number) in parts.iter().zip(1..) {
        let header = Header::read(part)?;
        let own = (header.keys.number(NUMBER)?, header.keys.number(COUNT)?);
        if own != (Some(number), Some(count)) {
            let what = format!("is not part {} of {count} of this model", number + 1);
            return Err(CheckpointError::damaged(part, what));
        }
        for (name, tensor) in header.tensors {
            if whole.tensors.contains_key(&name) {
                return Err(CheckpointError::tensor(part, &name, "an earlier part has it too"));
            }
            whole.tensors.insert(name, tensor);
        }
    }
    let found = whole.tensors.len() as u64;
    match whole.keys.number(TENSORS)?.filter(|said| *said != found) {
        None => Ok(whole),
        Some(said) => {
            let what = format!("it is {said}, and the parts have {found} tensors");
            Err(CheckpointError::key(path, TENSORS, what))
        }
    }
}

/// The name, number and count of a part, by its file's name without the end.
fn split(stem: &str) -> Option<(&str, u64, u64)> {
    let (rest, count) = stem.rsplit_once("-of-")?;
    let (name, number) = rest.rsplit_once('-')?;
    let digits = |text: &str| match text.len() == 5 && text.bytes().all(|c| c.is_ascii_digit()) {
        true => text.parse().ok(),
        false => None,
    };
    Some((name, digits(number)?, digits(count)?))
}
