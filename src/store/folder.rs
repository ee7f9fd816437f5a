use super::{
    StoreError,
    error::OPEN_STORE,
    generation::{Generation, MAX_GENERATION_BYTES},
    layer_file::{LayerFile, TensorEntry, open_file},
    manifest::{CURRENT_NAME, FileEntry, MANIFEST_NAME, Manifest, Weight, is_model_name, is_name},
    precision::Precision,
};
use crate::sys::file::{self, check_renounced, read_regular};
use nix::sys::statvfs::statvfs;
use std::{
    collections::HashMap,
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::Arc,
};
use xxhash_rust::xxh3::xxh3_64;

/// Limit of a manifest.
pub(super) const MAX_MANIFEST_BYTES: u64 = 64 << 20;

/// A folder of models: `<store>/<model>/<version>/manifest.json`.
#[derive(Clone, Debug)]
pub struct Store {
    path: PathBuf,
    /// Device and inode of the folder.
    identity: (u64, u64),
}

impl Store {
    /// Opens the store in `path`.
    ///
    /// # Errors
    /// The system's, where there is no such folder.
    pub fn open(path: &Path) -> Result<Store, StoreError> {
        fs::read_dir(path).map_err(|e| StoreError::io(OPEN_STORE, path, e))?;
        Ok(Store { path: path.to_owned(), identity: identity(path)? })
    }

    /// Whether the folder is still the one that was opened: where its disk was unmounted, what is
    /// written would fill the folder below, and what is removed would be another store's.
    ///
    /// # Errors
    /// [`StoreError::Replaced`], or the system's.
    pub fn confirm(&self) -> Result<(), StoreError> {
        match identity(&self.path)? == self.identity {
            true => Ok(()),
            false => Err(StoreError::Replaced { store: self.path.clone() }),
        }
    }

    /// Bytes of the manifest of a model's served version.
    ///
    /// # Errors
    /// As [`Store::serving`].
    pub fn manifest_bytes(&self, model: &str) -> Result<u64, StoreError> {
        let version = self.served(model)?.current;
        let path = self.path.join(model).join(&version).join(MANIFEST_NAME);
        Ok(fs::symlink_metadata(&path).map_err(|e| StoreError::io("look at", &path, e))?.len())
    }

    /// Bytes of the largest manifest among a model's versions.
    ///
    /// # Errors
    /// As [`Store::versions`].
    pub fn largest_manifest_bytes(&self, model: &str) -> Result<u64, StoreError> {
        let folder = self.model_path(model)?;
        let manifest = |version: &String| folder.join(version).join(MANIFEST_NAME);
        // What is not there any more is not parsed either.
        let bytes = |path: PathBuf| fs::symlink_metadata(path).map_or(0, |metadata| metadata.len());
        Ok(self.versions(model)?.iter().map(manifest).map(bytes).max().unwrap_or(0))
    }

    /// The store's folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Names of the models that have a served version, sorted.
    ///
    /// # Errors
    /// The system's.
    pub fn models(&self) -> Result<Vec<String>, StoreError> {
        let mut names = folders(&self.path)?;
        names.retain(|name| is_plain_file(&self.path.join(name).join(CURRENT_NAME)));
        Ok(names)
    }

    /// Names of a model's versions, sorted.
    ///
    /// # Errors
    /// A bad name, or no such model.
    pub fn versions(&self, model: &str) -> Result<Vec<String>, StoreError> {
        let folder = self.model_path(model)?;
        let mut names = folders(&folder)?;
        names.retain(|name| is_plain_file(&folder.join(name).join(MANIFEST_NAME)));
        Ok(names)
    }

    /// The served version of a model.
    ///
    /// # Errors
    /// A bad name, no such model, or a manifest that cannot be believed.
    pub fn current(&self, model: &str) -> Result<ModelDir, StoreError> {
        self.version(model, &self.served(model)?.current)
    }

    /// Which version of a model is served: the same value for as long as it is the same files.
    /// Two small reads; nothing is parsed.
    ///
    /// # Errors
    /// A bad name, or no such model.
    pub fn serving(&self, model: &str) -> Result<Serving, StoreError> {
        let version = self.served(model)?.current;
        let path = self.path.join(model).join(&version).join(MANIFEST_NAME);
        let metadata = fs::metadata(&path).map_err(|e| StoreError::io("look at", &path, e))?;
        let modified = (metadata.mtime(), metadata.mtime_nsec());
        let manifest_bytes = metadata.len();
        Ok(Serving { version, inode: metadata.ino(), modified, manifest_bytes })
    }

    /// A version of a model.
    ///
    /// # Errors
    /// As [`Store::current`].
    pub fn version(&self, model: &str, version: &str) -> Result<ModelDir, StoreError> {
        let path = self.model_path(model)?.join(checked(version)?);
        refuse_link(&path)?;
        if !is_plain_folder(&path) {
            let what = format!("version {version} of {model}");
            let (store, model) = (self.path.clone(), Some(model.to_owned()));
            return Err(StoreError::Missing { store, what, model });
        }
        let dir = ModelDir::open(&path)?;
        if dir.manifest.model != model || dir.manifest.version != version {
            let Manifest { model, version, .. } = &*dir.manifest;
            let (model, version) = (model.clone(), version.clone());
            return Err(StoreError::Renamed { path, model, version });
        }
        Ok(dir)
    }

    /// The folder of a model, in which its versions are, and what is known of them on this board.
    ///
    /// # Errors
    /// A bad name, or no such model.
    pub fn model_path(&self, model: &str) -> Result<PathBuf, StoreError> {
        let path = self.path.join(checked_model(model)?);
        refuse_link(&path)?;
        if !is_plain_folder(&path) {
            let what = format!("model {model}");
            return Err(StoreError::Missing { store: self.path.clone(), what, model: None });
        }
        Ok(path)
    }
}

fn identity(path: &Path) -> Result<(u64, u64), StoreError> {
    check_renounced();
    let metadata = fs::metadata(path).map_err(|e| StoreError::io("look at", path, e))?;
    Ok((metadata.dev(), metadata.ino()))
}

/// What tells a served version from another, or from one of the same name that replaced it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Serving {
    version: String,
    inode: u64,
    modified: (i64, i64),
    /// Length of its manifest's text.
    pub manifest_bytes: u64,
}

/// One version of one model, its manifest parsed and checked.
#[derive(Clone, Debug)]
pub struct ModelDir {
    /// The version's folder.
    pub path: PathBuf,
    /// What it says it holds.
    pub manifest: Arc<Manifest>,
}

impl ModelDir {
    /// Opens the version in the folder `path`, in a store or not.
    ///
    /// # Errors
    /// The system's, or a manifest that cannot be believed.
    pub fn open(path: &Path) -> Result<ModelDir, StoreError> {
        let file = path.join(MANIFEST_NAME);
        let bytes = read_whole(&file, MAX_MANIFEST_BYTES)?;
        let manifest = Manifest::parse(&bytes)
            .map_err(|source| StoreError::Manifest { path: file, source })?;
        Ok(ModelDir { path: path.to_owned(), manifest: Arc::new(manifest) })
    }

    /// Bytes of the files in its folder.
    ///
    /// # Errors
    /// The system's.
    pub fn bytes(&self) -> Result<u64, StoreError> {
        tree_bytes(&self.path)
    }

    /// Opens the layer file of layer `layer` in variant `variant`, checked against the manifest.
    ///
    /// # Errors
    /// As [`LayerFile::open`]; [`StoreError::Missing`] for a layer or variant that is not there.
    pub fn open_layer(&self, layer: usize, variant: &str) -> Result<LayerFile, StoreError> {
        let files = self.manifest.layers.get(layer).map(|layer| &layer.files);
        let entry = files.and_then(|files| files.get(variant)).ok_or_else(|| {
            let what = format!("layer {layer} in variant {variant}");
            let model = Some(self.manifest.model.clone());
            StoreError::Missing { store: self.path.clone(), what, model }
        })?;
        let file = LayerFile::open(&self.file_path(&entry.path)?, Some(entry))?;
        self.check_tensors(&file)?;
        Ok(file)
    }

    /// Compares the tensors of a layer file with the manifest's weights.
    fn check_tensors(&self, file: &LayerFile) -> Result<(), StoreError> {
        // A stranger's manifest and index may have a million entries each.
        let weights = self.manifest.weights.iter().map(|weight| (weight.name.as_str(), weight));
        let weights: HashMap<&str, &Weight> = weights.collect();
        for tensor in &file.index.tensors {
            let weight = weights.get(tensor.name.as_str()).copied();
            let is_same = |w: &Weight| w.dtype == tensor.dtype && w.shape == tensor.dims;
            if !weight.is_some_and(is_same) {
                let TensorEntry { name, dtype, dims, .. } = tensor;
                let what = match weight {
                    None => format!("tensor {name:?} is no weight of the manifest"),
                    Some(Weight { dtype: expected, shape, .. }) => format!(
                        "tensor {name:?} is {dtype} {dims:?}, the manifest says {expected} {shape:?}"
                    ),
                };
                return Err(StoreError::corrupt(&file.path, what));
            }
        }
        Ok(())
    }

    /// Checks that every file is there, as long as the manifest says, and every layer file's
    /// index; reads no block.
    ///
    /// # Errors
    /// The first file that is not.
    pub fn check_files(&self) -> Result<(), StoreError> {
        for entry in self.manifest.whole_files() {
            let path = self.file_path(&entry.path)?;
            check_length(&path, entry, open_file(&path)?.1)?;
        }
        for (index, layer) in self.manifest.layers.iter().enumerate() {
            for variant in layer.files.keys() {
                self.open_layer(index, variant)?;
            }
        }
        Ok(())
    }

    /// Reads a file of the manifest whole and checks length and checksum.
    ///
    /// # Errors
    /// The system's, or [`StoreError::Corrupt`].
    pub fn read_file(&self, entry: &FileEntry) -> Result<Vec<u8>, StoreError> {
        let path = self.file_path(&entry.path)?;
        let bytes = read_whole(&path, entry.bytes)?;
        check_file(&path, entry, bytes.len() as u64, xxh3_64(&bytes))?;
        Ok(bytes)
    }

    /// What the version says of its precisions; none where it says nothing.
    ///
    /// # Errors
    /// As [`ModelDir::read_file`], and a file that cannot be believed.
    pub fn precision(&self) -> Result<Option<Precision>, StoreError> {
        let Some(entry) = &self.manifest.precision else { return Ok(None) };
        let precision = Precision::parse(&self.read_file(entry)?, &self.manifest);
        let corrupt = |what| StoreError::corrupt(&self.path.join(&entry.path), what);
        precision.map(Some).map_err(corrupt)
    }

    /// What is to be known to have the model write texts; none where it writes none.
    ///
    /// # Errors
    /// As [`ModelDir::read_file`], and a file that cannot be believed.
    pub fn generation(&self) -> Result<Option<Generation>, StoreError> {
        let Some(entry) = &self.manifest.generation else { return Ok(None) };
        let corrupt = |what: String| StoreError::corrupt(&self.path.join(&entry.path), what);
        if entry.bytes > MAX_GENERATION_BYTES {
            return Err(corrupt(format!("has more than {MAX_GENERATION_BYTES} bytes")));
        }
        Generation::parse(&self.read_file(entry)?).map(Some).map_err(corrupt)
    }

    /// Most tokens of a text, as far as the files of the model's makers say: where it writes texts,
    /// those of its context, wherever the texts of embeddings are cut.
    ///
    /// # Errors
    /// As [`ModelDir::generation`].
    pub fn longest_text(&self) -> Result<Option<u64>, StoreError> {
        match self.generation()? {
            Some(generation) => Ok(generation.context),
            None => Ok(self.manifest.text.as_ref().and_then(|text| text.max_tokens)),
        }
    }

    /// Where a file of the manifest lies. The manifest's paths cannot climb out of the folder;
    /// neither may a link on the way.
    ///
    /// # Errors
    /// [`StoreError::Corrupt`] where a part of the path is a link.
    pub fn file_path(&self, relative: &str) -> Result<PathBuf, StoreError> {
        let mut path = self.path.clone();
        for part in relative.split('/') {
            path.push(part);
            if path.is_symlink() {
                return Err(StoreError::corrupt(&path, "is a link, which may lead anywhere"));
            }
        }
        Ok(path)
    }
}

/// Compares what a file is with what the manifest says.
pub(super) fn check_file(
    path: &Path,
    entry: &FileEntry,
    bytes: u64,
    checksum: u64,
) -> Result<(), StoreError> {
    check_length(path, entry, bytes)?;
    if checksum != entry.checksum.0 {
        let what =
            format!("has checksum {checksum:016x}, the manifest says {:016x}", entry.checksum.0);
        return Err(StoreError::corrupt(path, what));
    }
    Ok(())
}

fn check_length(path: &Path, entry: &FileEntry, bytes: u64) -> Result<(), StoreError> {
    if bytes == entry.bytes {
        return Ok(());
    }
    let what = format!("has {bytes} bytes, the manifest says {}", entry.bytes);
    Err(StoreError::corrupt(path, what))
}

/// Reads a file of at most `limit` bytes.
pub(super) fn read_whole(path: &Path, limit: u64) -> Result<Vec<u8>, StoreError> {
    read_regular(path, limit).map_err(|error| match error.raw_os_error() {
        Some(_) => StoreError::io("read", path, error),
        None => StoreError::corrupt(path, error.to_string()),
    })
}

/// Refuses what the store's disk cannot hold.
///
/// # Errors
/// [`StoreError::NoRoom`], or the system's.
pub fn check_room(store_dir: &Path, needed_bytes: u64) -> Result<(), StoreError> {
    let room = statvfs(store_dir).map_err(|e| StoreError::io("measure", store_dir, e.into()))?;
    // The types of both differ between systems.
    let free_bytes = (room.blocks_available() as u64).saturating_mul(room.fragment_size() as u64);
    if needed_bytes <= free_bytes {
        return Ok(());
    }
    Err(StoreError::NoRoom { store: store_dir.to_owned(), needed_bytes, free_bytes })
}

pub(super) fn checked_model(name: &str) -> Result<&str, StoreError> {
    if is_model_name(name) { Ok(name) } else { Err(StoreError::Name { name: name.to_owned() }) }
}

pub(super) fn checked(name: &str) -> Result<&str, StoreError> {
    if is_name(name) { Ok(name) } else { Err(StoreError::Name { name: name.to_owned() }) }
}

fn is_plain_file(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|metadata| metadata.is_file())
}

/// Refuses a model's or version's folder that is a link.
pub(super) fn refuse_link(path: &Path) -> Result<(), StoreError> {
    check_renounced();
    match path.is_symlink() {
        true => Err(StoreError::Link { path: path.to_owned() }),
        false => Ok(()),
    }
}

pub(super) fn is_plain_folder(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|metadata| metadata.is_dir())
}

/// Names of the folders in `path` that may be models or versions, sorted.
fn folders(path: &Path) -> Result<Vec<String>, StoreError> {
    check_renounced();
    let error = |e: io::Error| StoreError::io("list", path, e);
    let mut names = Vec::new();
    for entry in fs::read_dir(path).map_err(error)? {
        let entry = entry.map_err(error)?;
        let is_folder = entry.file_type().map_err(error)?.is_dir();
        let name = entry.file_name().into_string().ok();
        names.extend(name.filter(|name| is_folder && is_name(name)));
    }
    names.sort();
    Ok(names)
}

/// Bytes of the files below `folder`; links are not followed.
pub(super) fn tree_bytes(folder: &Path) -> Result<u64, StoreError> {
    fn sum(folder: &Path) -> io::Result<u64> {
        let mut bytes = 0;
        for entry in fs::read_dir(folder)? {
            let entry = entry?;
            bytes += match entry.file_type()?.is_dir() {
                true => sum(&entry.path())?,
                false => entry.metadata()?.len(),
            };
        }
        Ok(bytes)
    }
    sum(folder).map_err(|e| StoreError::io("measure", folder, e))
}

/// Waits until a file or folder is on the disk.
pub(super) fn sync(path: &Path) -> Result<(), StoreError> {
    file::sync(path).map_err(|e| StoreError::io("sync", path, e))
}
