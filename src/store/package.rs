//! What a user hands over to be installed, as the stream that [`super::Archive`] reads.

use super::{
    ModelDir, StoreError,
    layer_file::open_file,
    manifest::MANIFEST_NAME,
    served::Served,
    tar::{RECORD_BYTES, file_head, padding},
};
use std::{
    collections::VecDeque,
    fs::{self, File},
    io::{self, Cursor, Read},
    path::{Path, PathBuf},
};

/// A version's folder, packed while it is read, or a tar as it is.
#[derive(Debug)]
pub struct Package {
    parts: VecDeque<Part>,
    length: Option<u64>,
}

/// A stretch of the stream.
#[derive(Debug)]
enum Part {
    Bytes(Cursor<Vec<u8>>),
    /// A file that is opened when its turn comes, and how long it is.
    File(PathBuf, u64),
    Open(io::Take<File>),
}

impl Package {
    /// Opens a folder with a manifest, or a tar.
    ///
    /// # Errors
    /// The system's; for a folder, a manifest or a file's length that cannot be believed.
    pub fn open(path: &Path) -> Result<Package, StoreError> {
        if path.is_dir() {
            if !path.join(MANIFEST_NAME).exists() {
                return Err(StoreError::NoVersion { path: path.to_owned(), what: content(path) });
            }
            return Package::of_folder(&ModelDir::open(path)?);
        }
        let error = |e| StoreError::io("open", path, e);
        let file = File::open(path).map_err(error)?;
        let metadata = file.metadata().map_err(error)?;
        let length = metadata.is_file().then_some(metadata.len());
        Ok(Package { parts: [Part::Open(file.take(u64::MAX))].into(), length })
    }

    fn of_folder(dir: &ModelDir) -> Result<Package, StoreError> {
        let manifest = &dir.manifest;
        let manifest_path = dir.path.join(MANIFEST_NAME);
        let mut files = vec![(MANIFEST_NAME, open_file(&manifest_path)?.1)];
        files.extend(manifest.whole_files().map(|file| (file.path.as_str(), file.bytes)));
        let layers = manifest.layers.iter().flat_map(|layer| layer.files.values());
        files.extend(layers.map(|file| (file.path.as_str(), file.bytes)));
        let (mut parts, mut total) = (VecDeque::new(), 0);
        let mut push = |part, bytes| {
            total += bytes;
            parts.push_back(part);
        };
        for (name, bytes) in files {
            let path = dir.file_path(name)?;
            let found = open_file(&path)?.1;
            if found != bytes {
                let what = format!("has {found} bytes, the manifest says {bytes}");
                return Err(StoreError::corrupt(&path, what));
            }
            let head = file_head(name, bytes);
            let head_bytes = head.len() as u64;
            push(Part::Bytes(Cursor::new(head)), head_bytes);
            push(Part::File(path, bytes), bytes);
            let zeros = vec![0; padding(bytes)];
            let zero_bytes = zeros.len() as u64;
            push(Part::Bytes(Cursor::new(zeros)), zero_bytes);
        }
        let end_bytes = 2 * RECORD_BYTES;
        push(Part::Bytes(Cursor::new(vec![0; end_bytes])), end_bytes as u64);
        Ok(Package { parts, length: Some(total) })
    }

    /// Bytes of the whole stream, where they are known: not for a pipe.
    pub fn length(&self) -> Option<u64> {
        self.length
    }
}

impl Read for Package {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        while let Some(part) = self.parts.front_mut() {
            let count = match part {
                Part::Bytes(bytes) => bytes.read(buffer)?,
                Part::Open(file) => file.read(buffer)?,
                Part::File(path, bytes) => {
                    let (file, found) = open_file(path).map_err(io::Error::other)?;
                    if found != *bytes {
                        return Err(io::Error::other(format!("{} has changed", path.display())));
                    }
                    *part = Part::Open(file.take(*bytes));
                    continue;
                }
            };
            if count > 0 {
                return Ok(count);
            }
            self.parts.pop_front();
        }
        Ok(0)
    }
}
/// What a folder without a manifest is, and what to give in its place.
fn content(path: &Path) -> String {
    let is_onnx = |folder: &Path| {
        let mut entries = fs::read_dir(folder).into_iter().flatten().flatten();
        entries.any(|entry| entry.path().extension().is_some_and(|end| end == "onnx"))
    };
    match Served::read(path) {
        Ok(served) => format!(
            "it is a model's, which has versions: give {}",
            path.join(served.current).display()
        ),
        Err(_) if is_onnx(path) || is_onnx(&path.join("onnx")) => {
            "it has an ONNX model: cut it into a version with hermes-shard build".to_owned()
        }
        Err(_) => "give the folder of one, as hermes-shard build makes it in a store".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The folder of a model was told to lack a manifest.json that it never has.
    #[test]
    fn folders_that_are_no_versions_are_told_what_they_are() {
        let folder = tempfile::tempdir().unwrap();
        let check = |expected: &str| {
            let said = Package::open(folder.path()).unwrap_err().to_string();
            assert!(
                said.contains("it has no manifest.json; ") && said.contains(expected),
                "{said}"
            );
        };
        check("as hermes-shard build makes it");
        fs::write(folder.path().join("model.onnx"), b"").unwrap();
        check("cut it into a version with hermes-shard build");
        fs::write(folder.path().join("current"), "2\n").unwrap();
        check(&format!("it is a model's, which has versions: give {}/2", folder.path().display()));
    }
}
