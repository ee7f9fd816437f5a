//! A version that is given what was found out about it later.

use super::{
    ModelDir, StoreError,
    folder::sync,
    install::{place, staging, sync_tree},
    manifest::{Checksum, FileEntry, MANIFEST_NAME, Manifest, REHEARSAL_NAME},
    precision::{PRECISION_NAME, Precision},
    served::lock_model,
};
use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
};
use xxhash_rust::xxh3::xxh3_64;

/// Puts `precision` in the place of what a version says of its precisions. The version is replaced
/// by another one in one step, which has the same files: whoever reads it reads the old or the new.
/// Which version is served stays as it is.
///
/// # Errors
/// [`StoreError::Corrupt`] for what does not suit the version; [`StoreError::Changed`] where that was
/// replaced or removed meanwhile; the system's. Nothing has changed then.
pub fn amend(
    store_dir: &Path,
    dir: &ModelDir,
    precision: &Precision,
) -> Result<ModelDir, StoreError> {
    let staging = staging(store_dir)?;
    let built = staging.path();
    let text = precision.to_json();
    let entry = FileEntry {
        path: PRECISION_NAME.to_owned(),
        bytes: text.len() as u64,
        checksum: Checksum(xxh3_64(&text)),
    };
    let manifest = Manifest { precision: Some(entry), ..Manifest::clone(&dir.manifest) };
    link_files(dir, built)?;
    write(&built.join(PRECISION_NAME), &text)?;
    write(&built.join(MANIFEST_NAME), &manifest.to_json())?;
    let checked = ModelDir::open(built)?;
    checked.check_files()?;
    checked.precision()?;
    sync_tree(built)?;
    let changed = || StoreError::Changed { path: dir.path.clone() };
    let model_path = dir.path.parent().ok_or_else(changed)?;
    let _lock = lock_model(model_path)?;
    let there = ModelDir::open(&dir.path).map_err(|_| changed())?;
    if there.manifest != dir.manifest {
        return Err(changed());
    }
    place(store_dir, built, &dir.path)?;
    sync(model_path)?;
    Ok(ModelDir { path: dir.path.clone(), manifest: Arc::new(manifest) })
}

/// Gives the files of a version, but for manifest and precisions, a second name in `folder`.
fn link_files(dir: &ModelDir, folder: &Path) -> Result<(), StoreError> {
    let Manifest { graph, tokenizer, generation, layers, .. } = &*dir.manifest;
    let layers = layers.iter().flat_map(|layer| layer.files.values()).map(|file| &file.path);
    let whole = [graph].into_iter().chain(tokenizer).chain(generation).map(|file| &file.path);
    for path in whole.chain(layers) {
        link(&dir.file_path(path)?, folder.join(path))?;
    }
    match link(&dir.path.join(REHEARSAL_NAME), folder.join(REHEARSAL_NAME)) {
        Err(StoreError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(()),
        linked => linked,
    }
}

/// A second name for a file; a copy where the file system gives none.
fn link(from: &Path, to: PathBuf) -> Result<(), StoreError> {
    if let Some(folder) = to.parent() {
        fs::create_dir_all(folder).map_err(|e| StoreError::io("create", folder, e))?;
    }
    fs::hard_link(from, &to)
        .or_else(|_| fs::copy(from, &to).map(|_| ()))
        .map_err(|e| StoreError::io("copy", from, e))
}

fn write(path: &Path, bytes: &[u8]) -> Result<(), StoreError> {
    fs::write(path, bytes).map_err(|e| StoreError::io("write", path, e))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Store;
    use crate::store::manifest::FORMAT;

    /// A store with model "m" in versions 1 and 2, of which 2 is served.
    fn store() -> tempfile::TempDir {
        let store = tempfile::tempdir().unwrap();
        for version in ["1", "2"] {
            let folder = store.path().join("m").join(version);
            fs::create_dir_all(&folder).unwrap();
            fs::write(folder.join("graph.onnx"), version).unwrap();
            fs::write(folder.join(REHEARSAL_NAME), "as it went").unwrap();
            let checksum = format!("{:016x}", xxh3_64(version.as_bytes()));
            let manifest = format!(
                r#"{{"format": {FORMAT}, "model": "m", "version": "{version}", "inputs": [],
                "outputs": [{{"name": "y", "dtype": "FP32", "shape": [4]}}],
                "graph": {{"path": "graph.onnx", "bytes": 1, "checksum": "{checksum}"}},
                "weights": [], "layers": [], "variants": ["f32", "a3"],
                "provenance": {{"source": "m.onnx", "source_bytes": 1, "producer": "", "tool": "",
                    "created_s": 0}}}}"#
            );
            fs::write(folder.join(MANIFEST_NAME), manifest).unwrap();
        }
        fs::write(store.path().join("m/current"), "2\n").unwrap();
        store
    }

    fn precision() -> Precision {
        Precision { format: 1, calibration: None, probe: None, tensors: vec![] }
    }

    #[test]
    fn a_version_is_replaced_by_itself_and_what_is_served_stays() {
        let place = store();
        let store = Store::open(place.path()).unwrap();
        for version in ["1", "2"] {
            let (before, serving) = (store.version("m", version).unwrap(), store.serving("m"));
            let amended = amend(place.path(), &before, &precision()).unwrap();
            let after = store.version("m", version).unwrap();
            assert_eq!(after.manifest, amended.manifest);
            assert_eq!(after.precision().unwrap(), Some(precision()));
            assert_eq!(after.read_file(&after.manifest.graph).unwrap(), version.as_bytes());
            assert_eq!(fs::read(after.path.join(REHEARSAL_NAME)).unwrap(), b"as it went");
            assert_eq!(store.current("m").unwrap().manifest.version, "2");
            // Who serves it reads it anew, and nobody who serves another.
            assert_eq!(store.serving("m").ok() == serving.ok(), version == "1");
            assert_eq!(before.precision().unwrap(), None);
            let again = amend(place.path(), &before, &precision()).unwrap_err();
            assert!(matches!(again, StoreError::Changed { .. }), "{again}");
        }
        assert_eq!(fs::read_dir(place.path()).unwrap().count(), 1, "nothing is left beside");
    }

    #[test]
    fn what_does_not_suit_the_version_changes_nothing() {
        let place = store();
        let dir = Store::open(place.path()).unwrap().current("m").unwrap();
        let wrong = Precision { format: 2, ..precision() };
        let error = amend(place.path(), &dir, &wrong).unwrap_err();
        assert!(error.to_string().contains("format is 2"), "{error}");
        fs::remove_file(dir.path.join("graph.onnx")).unwrap();
        amend(place.path(), &dir, &precision()).unwrap_err();
        let now = Store::open(place.path()).unwrap().current("m").unwrap();
        assert_eq!(now.manifest, dir.manifest);
        assert_eq!(fs::read_dir(place.path()).unwrap().count(), 1, "nothing is left beside");
    }
}
