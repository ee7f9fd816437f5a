use super::{
    ModelDir, StoreError,
    folder::{checked, checked_model, is_plain_folder, refuse_link, sync, tree_bytes},
    served::{lock_model, serve},
};
use crate::sys::capabilities::{Capabilities, Feature};
use crate::sys::file::{self, open_regular};
use nix::errno::Errno;
use nix::unistd::{AccessFlags, access};
use std::{
    fs::{self, File, OpenOptions},
    io,
    path::{Path, PathBuf},
    process,
    sync::atomic::{AtomicU64, Ordering},
};

/// Start of the names of folders that are being built or removed; no model or version name starts
/// with a dot.
const STAGING_PREFIX: &str = ".staging-";

/// File in a staging folder that its builder holds locked for as long as it lives.
const LOCK_NAME: &str = ".lock";

/// Folder in a staging folder that becomes the version.
const CONTENT_NAME: &str = "version";

/// A folder of the store in which a version is built; removed on drop unless it was installed.
#[derive(Debug)]
pub struct Staging {
    root: PathBuf,
    content: PathBuf,
    _lock: File,
}

impl Staging {
    /// The folder to fill and to hand to [`install`].
    pub fn path(&self) -> &Path {
        &self.content
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        // A leftover is invisible to readers, and the next build removes it.
        let _ = remove(&self.root);
    }
}

/// Starts a build in the store, which is created where it is missing; what interrupted builds left
/// behind is removed.
///
/// # Errors
/// The system's.
pub fn staging(store_dir: &Path) -> Result<Staging, StoreError> {
    create(store_dir)?;
    clean(store_dir)?;
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let root = loop {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let root = store_dir.join(format!("{STAGING_PREFIX}{}-{number}", process::id()));
        match fs::create_dir(&root) {
            Ok(()) => break root,
            // In containers that share a store, builders have the same process id.
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
            Err(e) => return Err(StoreError::io("create", &root, e)),
        }
    };
    let content = root.join(CONTENT_NAME);
    let lock = lock_new(&root).map_err(|e| StoreError::io("lock", &root, e))?;
    fs::create_dir(&content).map_err(|e| StoreError::io("create", &content, e))?;
    Ok(Staging { root, content, _lock: lock })
}

/// Refuses a store that this process may not write, or not make where it is missing.
///
/// # Errors
/// The system's.
pub fn check_writable(store_dir: &Path) -> Result<(), StoreError> {
    let there = store_dir.ancestors().find(|folder| folder.exists());
    let there = there.filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let allowed = match there.is_dir() {
        true => access(there, AccessFlags::W_OK | AccessFlags::X_OK),
        false => Err(Errno::ENOTDIR),
    };
    allowed.map_err(|e| StoreError::io("write to", store_dir, e.into()))
}

/// Makes a folder, and those above it, where they are missing; no loss of power takes one away that
/// was made.
fn create(folder: &Path) -> Result<(), StoreError> {
    if folder.is_dir() {
        return Ok(());
    }
    let above = folder.parent().filter(|above| !above.as_os_str().is_empty());
    let above = above.unwrap_or(Path::new("."));
    create(above)?;
    match fs::create_dir(folder) {
        // Somebody else may have been first.
        Err(e) if !folder.is_dir() => Err(StoreError::io("create", folder, e)),
        _ => sync(above),
    }
}

/// Makes the lock file, which gets its name once it is locked: unlocked it would stand for a
/// builder that died.
fn lock_new(root: &Path) -> io::Result<File> {
    let unnamed = root.join(".lock-next");
    let file = OpenOptions::new().write(true).create_new(true).open(&unnamed)?;
    file.lock()?;
    fs::rename(&unnamed, root.join(LOCK_NAME))?;
    Ok(file)
}

/// Removes the staging folders whose builder is gone; says how many, and their bytes. What cannot
/// be removed is told and left: nobody's leftovers keep others from building.
pub(super) fn clean(store_dir: &Path) -> Result<(u64, u64), StoreError> {
    let (mut count, mut bytes) = (0, 0);
    let error = |e| StoreError::io("list", store_dir, e);
    for entry in fs::read_dir(store_dir).map_err(error)? {
        let path = entry.map_err(error)?.path();
        let name = path.file_name().and_then(|name| name.to_str());
        let is_staging = name.is_some_and(|name| name.starts_with(STAGING_PREFIX));
        if is_staging && is_plain_folder(&path) && is_abandoned(&path) {
            let remove = || remove(&path).map_err(|e| StoreError::io("remove", &path, e));
            match tree_bytes(&path).and_then(|bytes| remove().map(|()| bytes)) {
                Ok(freed) => (count, bytes) = (count + 1, bytes + freed),
                // Another process cleans too.
                Err(StoreError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {}
                Err(error) => log::warn!("what an interrupted build left stays: {error}"),
            }
        }
    }
    Ok((count, bytes))
}

/// Removes a staging folder, the lock file last: who dies on the way leaves one that the next
/// build knows for abandoned.
fn remove(root: &Path) -> io::Result<()> {
    let content = root.join(CONTENT_NAME);
    let removed = match fs::symlink_metadata(&content) {
        Ok(metadata) if !metadata.is_dir() => fs::remove_file(&content),
        Ok(_) => fs::remove_dir_all(&content),
        Err(error) => Err(error),
    };
    match removed {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => fs::remove_dir_all(root),
    }
}

/// Whether no living process holds the folder's lock. A folder without a lock file is one whose
/// builder died, or is just about to create it: it counts as abandoned once it is a minute old.
fn is_abandoned(staging: &Path) -> bool {
    const GRACE_S: u64 = 60;
    match open_regular(&staging.join(LOCK_NAME)) {
        Ok((lock, _)) => lock.try_lock().is_ok(),
        Err(_) => fs::metadata(staging)
            .and_then(|metadata| metadata.modified())
            .ok()
            .and_then(|modified| modified.elapsed().ok())
            .is_some_and(|age| age.as_secs() >= GRACE_S),
    }
}

/// Makes the version that was built in `staging_dir` (a folder of `store_dir`'s file system) the
/// served one of `model`: checks it, syncs it, renames it into place, then replaces `current`.
///
/// # Errors
/// [`StoreError::Exists`] where the version is there and `force` is not set; a manifest or layer
/// file that cannot be believed; the system's. Before the rename nothing has changed; afterwards
/// `staging_dir` is gone, and with `force` so is the old version.
pub fn install(
    store_dir: &Path,
    staging_dir: &Path,
    model: &str,
    version: &str,
    force: bool,
) -> Result<ModelDir, StoreError> {
    let model_path = store_dir.join(checked_model(model)?);
    let target = model_path.join(checked(version)?);
    refuse_link(&model_path)?;
    if !force && fs::symlink_metadata(&target).is_ok() {
        return Err(StoreError::Exists { path: target });
    }
    let built = ModelDir::open(staging_dir)?;
    if built.manifest.model != model || built.manifest.version != version {
        let what = format!("its manifest does not describe version {version} of {model}");
        return Err(StoreError::corrupt(staging_dir, what));
    }
    built.check_files()?;
    sync_tree(staging_dir)?;
    let lock = loop {
        create(&model_path)?;
        match lock_model(&model_path) {
            // The model was removed in between.
            Err(StoreError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {}
            locked => break locked?,
        }
    };
    if !force && fs::symlink_metadata(&target).is_ok() {
        return Err(StoreError::Exists { path: target });
    }
    place(store_dir, staging_dir, &target)?;
    sync(&model_path)?;
    serve(&model_path, version)?;
    drop(lock);
    if is_plain_folder(staging_dir) {
        let result = fs::remove_dir_all(staging_dir);
        result.map_err(|e| StoreError::io("remove the old version in", staging_dir, e))?;
    }
    Ok(ModelDir { path: target, manifest: built.manifest })
}

/// Renames the new version into place. An old one is exchanged with it in one step; on file systems
/// that cannot exchange, it is renamed aside before. Whatever else bears the name stays.
pub(super) fn place(store_dir: &Path, staging_dir: &Path, target: &Path) -> Result<(), StoreError> {
    let error = |e: io::Error| StoreError::io("install", target, e);
    if fs::symlink_metadata(target).is_err() {
        return fs::rename(staging_dir, target).map_err(error);
    }
    if !is_plain_folder(target) {
        let what = "something that is no version has this name: move it away";
        return Err(error(io::Error::new(io::ErrorKind::NotADirectory, what)));
    }
    if exchange(staging_dir, target).map_err(error)? {
        return Ok(());
    }
    let aside = staging(store_dir)?;
    let old = aside.path().join("old");
    fs::rename(target, &old).map_err(error)?;
    fs::rename(staging_dir, target).map_err(error).inspect_err(|_| {
        // Put the old version back; where that fails too, the first error is the one to report.
        let _ = fs::rename(&old, target);
    })
}

/// Exchanges two folders in one step; `false` where the file system cannot.
fn exchange(one: &Path, other: &Path) -> io::Result<bool> {
    if !Capabilities::get().has(Feature::Exchange) {
        return Ok(false);
    }
    match file::exchange(one, other) {
        Ok(()) => Ok(true),
        Err(error) if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::ENOSYS)) => {
            Ok(false)
        }
        Err(error) => Err(error),
    }
}

/// Syncs every file and folder below `folder`, and itself.
pub(super) fn sync_tree(folder: &Path) -> Result<(), StoreError> {
    let error = |e| StoreError::io("list", folder, e);
    for entry in fs::read_dir(folder).map_err(error)? {
        let entry = entry.map_err(error)?;
        let kind = entry.file_type().map_err(error)?;
        if kind.is_dir() {
            sync_tree(&entry.path())?;
        } else if kind.is_file() {
            sync(&entry.path())?;
        } else {
            return Err(StoreError::corrupt(&entry.path(), "is neither a file nor a folder"));
        }
    }
    sync(folder)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each build begins by removing what dead builders left. One that came between another's
    /// making of its lock file and locking it took that one for dead, and removed its folder.
    #[test]
    fn builders_at_the_same_time_leave_each_other_alone() {
        let store = tempfile::tempdir().unwrap();
        let build = || {
            for _ in 0..200 {
                let staging = staging(store.path()).unwrap();
                fs::write(staging.path().join("file"), "content").unwrap();
                assert_eq!(fs::read(staging.path().join("file")).unwrap(), b"content");
            }
        };
        std::thread::scope(|scope| (0..4).for_each(|_| drop(scope.spawn(build))));
        assert_eq!(fs::read_dir(store.path()).unwrap().count(), 0);
    }

    /// Two containers with one store: in both the builder is process 1.
    #[test]
    fn names_that_another_builder_took_are_passed_over() {
        let store = tempfile::tempdir().unwrap();
        for number in 0..2000 {
            let name = format!("{STAGING_PREFIX}{}-{number}", process::id());
            fs::create_dir(store.path().join(name)).unwrap();
        }
        assert!(staging(store.path()).unwrap().path().is_dir());
    }
}
