//! Files of a checkpoint. Where they are cached, each is a link to a blob.

use super::CheckpointError;
use crate::sys::file::open_regular;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::Path;

/// Opens a regular file by way of links, and says how long it is.
///
/// # Errors
/// The system's; [`io::ErrorKind::InvalidInput`] for what is no regular file.
pub fn open_linked(path: &Path) -> io::Result<(File, u64)> {
    open_regular(&fs::canonicalize(path)?)
}

/// The same, with the path in its error.
pub(super) fn open(path: &Path) -> Result<(File, u64), CheckpointError> {
    open_linked(path).map_err(CheckpointError::io(path))
}

/// Reads a file of at most `limit` bytes, where there is one.
pub(super) fn read(path: &Path, limit: u64) -> Result<Option<Vec<u8>>, CheckpointError> {
    let (file, bytes) = match open_linked(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound && !path.is_symlink() => {
            return Ok(None);
        }
        opened => opened.map_err(CheckpointError::io(path))?,
    };
    let mut content = Vec::new();
    file.take(limit + 1).read_to_end(&mut content).map_err(CheckpointError::io(path))?;
    let read = bytes.max(content.len() as u64);
    match read > limit {
        true => {
            let what = format!("has {read} bytes, expected at most {limit}");
            Err(CheckpointError::damaged(path, what))
        }
        false => Ok(Some(content)),
    }
}
