//! Small files of a version that is being built.

use super::error::ShardError;
use crate::store::manifest::{Checksum, FileEntry};
use std::fs;
use std::path::Path;
use xxhash_rust::xxh3::xxh3_64;

/// What the manifest says of a file with these bytes.
pub(super) fn entry(name: &str, bytes: &[u8]) -> FileEntry {
    let checksum = Checksum(xxh3_64(bytes));
    FileEntry { path: name.to_string(), bytes: bytes.len() as u64, checksum }
}

/// Writes a file into the folder of a version.
pub(super) fn write_file(folder: &Path, name: &str, bytes: &[u8]) -> Result<(), ShardError> {
    let path = folder.join(name);
    fs::write(&path, bytes).map_err(ShardError::io(format!("write {}", path.display())))
}
