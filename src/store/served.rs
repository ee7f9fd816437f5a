use super::{
    StoreError,
    folder::{read_whole, sync},
    manifest::{CURRENT_NAME, is_name},
};
use crate::sys::file;
use std::{
    fs::{self, File},
    io,
    os::unix::fs::MetadataExt,
    path::Path,
};

/// What becomes `current` by a rename. Only who holds the model's lock writes it.
const NEXT_NAME: &str = ".current-next";

/// Limit of the file `current`: two names and their line feeds fit several times.
const MAX_CURRENT_BYTES: u64 = 1024;

/// Which version of a model is served, and which one a rollback brings back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Served {
    /// The served version.
    pub current: String,
    /// The one served before.
    pub previous: Option<String>,
}

impl Served {
    /// Reads the file `current` of the model in `model_path`.
    ///
    /// # Errors
    /// The system's, or [`StoreError::Corrupt`] for anything but one or two names.
    pub(super) fn read(model_path: &Path) -> Result<Served, StoreError> {
        let path = model_path.join(CURRENT_NAME);
        let bytes = read_whole(&path, MAX_CURRENT_BYTES)?;
        let text = String::from_utf8_lossy(&bytes);
        let text = text.trim_end_matches('\n');
        let (current, previous) = match text.split_once('\n') {
            Some((current, previous)) => (current, Some(previous)),
            None => (text, None),
        };
        let mut names = [current].into_iter().chain(previous);
        if let Some(name) = names.find(|name| !is_name(name)) {
            return Err(StoreError::corrupt(&path, format!("{name:?} is no version name")));
        }
        Ok(Served { current: current.to_owned(), previous: previous.map(str::to_owned) })
    }

    /// Replaces the file `current` in one step. The caller holds the model's lock.
    pub(super) fn write(&self, model_path: &Path) -> Result<(), StoreError> {
        let path = model_path.join(CURRENT_NAME);
        let next = model_path.join(NEXT_NAME);
        let names = [Some(&self.current), self.previous.as_ref()];
        let text: String = names.into_iter().flatten().map(|name| format!("{name}\n")).collect();
        file::replace(&path, &next, text.as_bytes())
            .map_err(|e| StoreError::io("replace", &path, e))?;
        sync(model_path)
    }
}

/// Has `version` served from now on; the one served so far becomes the previous one. The caller
/// holds the model's lock.
pub(super) fn serve(model_path: &Path, version: &str) -> Result<(), StoreError> {
    // A file that cannot be read is replaced: there is nothing to go back to.
    let previous = Served::read(model_path).ok().and_then(|old| match old.current == version {
        true => old.previous,
        false => Some(old.current),
    });
    Served { current: version.to_owned(), previous }.write(model_path)
}

/// Removes what a process left that died while it replaced `current`. The caller holds the lock.
pub(super) fn remove_unfinished(model_path: &Path) -> Result<(), StoreError> {
    let next = model_path.join(NEXT_NAME);
    match fs::remove_file(&next) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(StoreError::io("remove", &next, e)),
        _ => Ok(()),
    }
}

/// Waits until nobody else changes which versions a model has, or which is served; lasts until
/// the file is dropped or the process dies (flock(2), on the folder itself).
///
/// # Errors
/// The system's; [`io::ErrorKind::NotFound`] where the model was removed meanwhile.
pub(super) fn lock_model(model_path: &Path) -> Result<File, StoreError> {
    let lock = || loop {
        let folder = File::open(model_path)?;
        folder.lock()?;
        // Who held it before may have taken the folder away.
        let (locked, there) = (folder.metadata()?, fs::metadata(model_path)?);
        if (locked.dev(), locked.ino()) == (there.dev(), there.ino()) {
            return Ok(folder);
        }
    };
    lock().map_err(|e| StoreError::io("lock", model_path, e))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whoever waited for the lock of a model that was removed got that of a folder out of sight, and
    /// wrote into the model that had come in its place without one.
    #[test]
    fn the_lock_is_that_of_the_folder_that_is_there() {
        let store = tempfile::tempdir().unwrap();
        let (model, gone) = (store.path().join("model"), store.path().join("gone"));
        fs::create_dir(&model).unwrap();
        let held = lock_model(&model).unwrap();
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| {
                loop {
                    // Between the two there is none.
                    if let Ok(lock) = lock_model(&model) {
                        return lock.metadata().unwrap().ino();
                    }
                }
            });
            fs::rename(&model, &gone).unwrap();
            fs::create_dir(&model).unwrap();
            drop(held);
            assert_eq!(waiting.join().unwrap(), fs::metadata(&model).unwrap().ino());
        });
        fs::remove_dir(&model).unwrap();
        let error = lock_model(&model).unwrap_err().to_string();
        assert!(error.contains("No such file"), "{error}");
    }
}
