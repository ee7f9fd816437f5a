//! Installing a version from a stream: a tar of its folder, believed in nothing.

use super::{
    ModelDir, Staging, StoreError,
    folder::{MAX_MANIFEST_BYTES, check_room},
    generation::GENERATION_NAME,
    install::{install, staging},
    layer_file::{LayerIndex, open_file},
    manifest::{MANIFEST_NAME, Manifest},
    precision::PRECISION_NAME,
    tar::{Entry, TarReader},
};
use crate::sys::map;
use std::{
    collections::BTreeMap,
    fs::{self, File, OpenOptions},
    io::{Read, Write},
    path::{Path, PathBuf},
    sync::Arc,
};

/// Names that a version's files have; layer files are below [`LAYERS_NAME`].
const GRAPH_NAME: &str = "graph.onnx";
const TOKENIZER_NAME: &str = "tokenizer.json";
const LAYERS_NAME: &str = "layers";

/// Bytes that are read and written at once.
pub const BUFFER_BYTES: usize = 64 << 10;

/// Bytes after which the kernel is told to write: the dirty pages of a fast sender would fill the
/// memory of a board with a slow disk.
const WRITE_BYTES: u64 = 4 << 20;

/// What a file takes on disk beyond its bytes, at most: a block of the file system.
const FILE_SLACK_BYTES: u64 = 64 << 10;

/// Entries of folders beyond one a file: tar writes each folder once.
const MAX_FOLDERS: usize = 16;

/// An archive whose first entry has been seen: it is a manifest, of a length that may be read.
#[derive(Debug)]
pub struct Archive<R> {
    tar: TarReader<R>,
    manifest_bytes: u64,
}

impl<R: Read> Archive<R> {
    /// Reads up to the manifest, which must be the first file, so that all that follows can be
    /// held against it.
    ///
    /// # Errors
    /// [`StoreError::Archive`], or [`StoreError::Io`] where the stream breaks off.
    pub fn open(input: R) -> Result<Archive<R>, StoreError> {
        let mut tar = TarReader::new(input);
        for _ in 0..MAX_FOLDERS {
            match tar.next_entry()? {
                Some(entry) if entry.is_folder => check_folder(&tar, &entry)?,
                Some(entry) if entry.name != MANIFEST_NAME => {
                    let what = format!("comes first, where {MANIFEST_NAME} must be");
                    return Err(tar.refuse(&entry, what));
                }
                Some(entry) if entry.bytes > MAX_MANIFEST_BYTES => {
                    let what = format!("has {} bytes, over {MAX_MANIFEST_BYTES}", entry.bytes);
                    return Err(tar.refuse(&entry, what));
                }
                Some(entry) => return Ok(Archive { tar, manifest_bytes: entry.bytes }),
                None => break,
            }
        }
        Err(tar.refuse_all(format!("has no {MANIFEST_NAME}")))
    }

    /// Bytes of the manifest, which will be read whole.
    pub fn manifest_bytes(&self) -> u64 {
        self.manifest_bytes
    }

    /// Writes the archive into a staging folder of the store in `store_dir`, which is created where
    /// it is missing. An entry that the manifest does not list, or of another length, is refused
    /// before it is read. `progress` hears how much there is and how it goes.
    ///
    /// # Errors
    /// [`StoreError::Archive`], [`StoreError::Manifest`], [`StoreError::Exists`] unless `force`,
    /// [`StoreError::NoRoom`], and the system's. Nothing is left behind.
    pub fn receive(
        mut self,
        store_dir: &Path,
        force: bool,
        mut progress: impl FnMut(Progress),
    ) -> Result<Received, StoreError> {
        let mut text = vec![0; usize::try_from(self.manifest_bytes).expect("checked in open")];
        let mut at = 0;
        while at < text.len() {
            at += self.tar.read(&mut text[at..])?;
        }
        let manifest = Manifest::parse(&text)
            .map_err(|source| StoreError::Manifest { path: MANIFEST_NAME.into(), source })?;
        let mut expected = expected_files(&manifest)?;
        let total_bytes =
            expected.values().fold(self.manifest_bytes, |sum, b| sum.saturating_add(*b));
        let target = store_dir.join(&manifest.model).join(&manifest.version);
        if !force && fs::symlink_metadata(&target).is_ok() {
            return Err(StoreError::Exists { path: target });
        }
        let staging = staging(store_dir)?;
        let slack = (expected.len() as u64 + 1).saturating_mul(FILE_SLACK_BYTES);
        check_room(store_dir, total_bytes.saturating_add(slack))?;
        progress(Progress::Expect(total_bytes));
        write_new(&staging.path().join(MANIFEST_NAME), |file| file.write_all(&text))?;
        drop(text);
        let layers = staging.path().join(LAYERS_NAME);
        fs::create_dir(&layers).map_err(|e| StoreError::io("create", &layers, e))?;
        progress(Progress::Wrote(self.manifest_bytes));
        let mut buffer = vec![0; BUFFER_BYTES];
        for _ in 0..=2 * expected.len() + MAX_FOLDERS {
            let Some(entry) = self.tar.next_entry()? else {
                return match expected.keys().next() {
                    Some(name) => Err(self.tar.refuse_all(format!("has no {name}"))),
                    None => Received::new(store_dir, staging, manifest, total_bytes),
                };
            };
            if entry.is_folder {
                check_folder(&self.tar, &entry)?;
                continue;
            }
            let bytes = expected.remove(&entry.name).ok_or_else(|| {
                let what = "is not in the manifest, or is there twice";
                self.tar.refuse(&entry, what.to_owned())
            })?;
            if entry.bytes != bytes {
                let what = format!("has {} bytes, the manifest says {bytes}", entry.bytes);
                return Err(self.tar.refuse(&entry, what));
            }
            self.write_entry(&staging.path().join(&entry.name), &mut buffer, &mut progress)?;
        }
        Err(self.tar.refuse_all("has more folders than files".to_owned()))
    }

    /// Writes the current entry to a new file. It is synced, so that it is verified from the disk.
    fn write_entry(
        &mut self,
        path: &Path,
        buffer: &mut [u8],
        progress: &mut impl FnMut(Progress),
    ) -> Result<(), StoreError> {
        let mut file = create(path)?;
        let (mut written, mut started) = (0, 0);
        loop {
            let count = self.tar.read(buffer)?;
            if count == 0 {
                break;
            }
            file.write_all(&buffer[..count]).map_err(|e| StoreError::io("write", path, e))?;
            written += count as u64;
            if written - started >= WRITE_BYTES {
                map::start_writeback(&file);
                started = written;
            }
            progress(Progress::Wrote(count as u64));
        }
        file.sync_all().map_err(|e| StoreError::io("sync", path, e))?;
        map::drop_cached(&file, 0..written);
        Ok(())
    }
}

/// What [`Archive::receive`] reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// So many bytes will be written.
    Expect(u64),
    /// So many more bytes are written.
    Wrote(u64),
}

/// A version that was received and is yet to be believed.
#[derive(Debug)]
pub struct Received {
    store_dir: PathBuf,
    staging: Staging,
    dir: ModelDir,
    bytes: u64,
}

impl Received {
    fn new(
        store_dir: &Path,
        staging: Staging,
        manifest: Manifest,
        bytes: u64,
    ) -> Result<Received, StoreError> {
        let dir = ModelDir { path: staging.path().to_owned(), manifest: Arc::new(manifest) };
        Ok(Received { store_dir: store_dir.to_owned(), staging, dir, bytes })
    }

    /// What it says it is.
    pub fn manifest(&self) -> &Manifest {
        &self.dir.manifest
    }

    /// Bytes of its files.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Bytes of the largest index of a layer file: verifying holds one index at a time.
    ///
    /// # Errors
    /// The system's, or [`StoreError::Received`] for a file that is no layer file.
    pub fn largest_index_bytes(&self) -> Result<u64, StoreError> {
        let mut largest = 0;
        for entry in self.manifest().layers.iter().flat_map(|layer| layer.files.values()) {
            let error = |what: String| StoreError::Received { file: entry.path.clone(), what };
            let path = self.dir.file_path(&entry.path)?;
            let mut prefix = [0; super::layer_file::HEADER_BYTES as usize];
            let (mut file, _) = open_file(&path)?;
            let read = file.read_exact(&mut prefix);
            read.map_err(|e| error(format!("cannot be read: {e}")))?;
            let bytes = LayerIndex::header_bytes(&prefix);
            largest = largest.max(bytes.map_err(|e| error(format!("is no layer file: {e}")))?);
        }
        Ok(largest)
    }

    /// Checks every index and every checksum. `progress` is called with the bytes read since the
    /// last call, of [`Received::bytes`] or so.
    ///
    /// # Errors
    /// [`StoreError::Received`] for the first that is wrong; the system's.
    pub fn verify(self, progress: impl FnMut(u64)) -> Result<Verified, StoreError> {
        self.dir.check_files().map_err(|error| match error {
            StoreError::Corrupt { path, what } => self.refuse(&path, what),
            StoreError::Format { path, source } => self.refuse(&path, source.to_string()),
            other => other,
        })?;
        match self.dir.first_problem(progress) {
            Some(problem) => Err(self.refuse(&problem.path, problem.what)),
            None => Ok(Verified(self)),
        }
    }

    fn refuse(&self, path: &Path, what: String) -> StoreError {
        let file = path.strip_prefix(self.staging.path()).unwrap_or(path);
        StoreError::Received { file: file.display().to_string(), what }
    }
}

/// A version that was received and is what its manifest says.
#[derive(Debug)]
pub struct Verified(Received);

impl Verified {
    /// The version, in the folder that is to become it.
    pub fn dir(&self) -> &ModelDir {
        &self.0.dir
    }

    /// Makes it the served version of its model, in one step.
    ///
    /// # Errors
    /// As [`install`]: nothing has changed then.
    pub fn install(self, force: bool) -> Result<ModelDir, StoreError> {
        let Received { store_dir, staging, dir, .. } = self.0;
        let Manifest { model, version, .. } = &*dir.manifest;
        install(&store_dir, staging.path(), model, version, force)
    }
}

/// Length of each file by name, without the manifest's own.
fn expected_files(manifest: &Manifest) -> Result<BTreeMap<String, u64>, StoreError> {
    let mut files = vec![("graph", &manifest.graph.path, manifest.graph.bytes, GRAPH_NAME)];
    let tokenizer = manifest.tokenizer.iter();
    files.extend(tokenizer.map(|file| ("tokenizer", &file.path, file.bytes, TOKENIZER_NAME)));
    let precision = manifest.precision.iter();
    files.extend(precision.map(|file| ("precision", &file.path, file.bytes, PRECISION_NAME)));
    let generation = manifest.generation.iter();
    files.extend(generation.map(|file| ("generation", &file.path, file.bytes, GENERATION_NAME)));
    for (what, path, _, name) in &files {
        if path != name {
            let what = format!("is {path:?} by the manifest's field {what}: expected {name:?}");
            return Err(StoreError::Received { file: MANIFEST_NAME.to_owned(), what });
        }
    }
    let mut expected: BTreeMap<String, u64> =
        files.into_iter().map(|(_, path, bytes, _)| (path.clone(), bytes)).collect();
    for entry in manifest.layers.iter().flat_map(|layer| layer.files.values()) {
        match entry.path.split_once('/') {
            Some((LAYERS_NAME, name)) if !name.contains('/') => {}
            _ => {
                let what = format!("names {:?}: expected a file in {LAYERS_NAME}", entry.path);
                return Err(StoreError::Received { file: MANIFEST_NAME.to_owned(), what });
            }
        }
        expected.insert(entry.path.clone(), entry.bytes);
    }
    Ok(expected)
}

/// Folders are made as they are needed; their entries say nothing.
fn check_folder<R: Read>(tar: &TarReader<R>, entry: &Entry) -> Result<(), StoreError> {
    match entry.name.trim_end_matches('/') {
        "" | "." | LAYERS_NAME => Ok(()),
        _ => Err(tar.refuse(entry, format!("is a folder, a version has only {LAYERS_NAME}"))),
    }
}

fn create(path: &Path) -> Result<File, StoreError> {
    let file = OpenOptions::new().write(true).create_new(true).open(path);
    file.map_err(|e| StoreError::io("create", path, e))
}

fn write_new(
    path: &Path,
    write: impl FnOnce(&mut File) -> std::io::Result<()>,
) -> Result<(), StoreError> {
    write(&mut create(path)?).map_err(|e| StoreError::io("write", path, e))
}
