//! What a user hands over to be installed, as the stream that [`super::Archive`] reads.

use super::{
    ModelDir, StoreError,
    layer_file::open_file,
    manifest::MANIFEST_NAME,
    tar::{RECORD_BYTES, file_head, padding},
};
use std::{
    collections::VecDeque,
    fs::File,
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
