use super::{
    ModelDir, Store, StoreError,
    folder::{checked, sync, tree_bytes},
    install::{Staging, clean, staging},
    manifest::PLAN_SUFFIXES,
    served::{Served, lock_model, remove_unfinished, serve},
};
use std::{
    cmp::Reverse,
    collections::HashSet,
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

/// What a version is to its model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// It is served.
    Current,
    /// A rollback serves it.
    Previous,
    /// It only takes room.
    Spare,
}

impl Role {
    /// What a version is where these are served.
    pub fn of(version: &str, served: Option<&Served>) -> Role {
        match served {
            Some(served) if served.current == version => Role::Current,
            Some(served) if served.previous.as_deref() == Some(version) => Role::Previous,
            _ => Role::Spare,
        }
    }

    /// Its name in reports.
    pub fn name(self) -> &'static str {
        match self {
            Role::Current => "current",
            Role::Previous => "previous",
            Role::Spare => "spare",
        }
    }
}

/// A version of a model, as the store lists it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VersionInfo {
    /// Its name.
    pub version: String,
    /// What it is to the model.
    pub role: Role,
    /// Bytes of its files.
    pub bytes: u64,
    /// When it was built, in seconds since the epoch; `None` where its manifest cannot be believed.
    pub created_s: Option<u64>,
}

/// A version that was removed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Removed {
    /// Its model.
    pub model: String,
    /// Its name.
    pub version: String,
    /// Bytes that its files had.
    pub bytes: u64,
}

/// A model that was removed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RemovedModel {
    /// Its name.
    pub model: String,
    /// Names of the versions that it had.
    pub versions: Vec<String>,
    /// Bytes that its files had.
    pub bytes: u64,
}

/// What [`Store::collect`] removed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Collected {
    /// Versions that nobody serves.
    pub removed: Vec<Removed>,
    /// Folders that interrupted builds and installs left behind.
    pub abandoned: u64,
    /// Bytes in those.
    pub abandoned_bytes: u64,
}

impl Collected {
    /// Bytes of all that was removed.
    pub fn bytes(&self) -> u64 {
        self.abandoned_bytes + self.removed.iter().map(|removed| removed.bytes).sum::<u64>()
    }
}

impl Store {
    /// A model's versions, the newest first.
    ///
    /// # Errors
    /// A bad name, no such model, or the system's.
    pub fn list(&self, model: &str) -> Result<Vec<VersionInfo>, StoreError> {
        let folder = self.model_path(model)?;
        let served = Served::read(&folder).ok();
        let mut list = Vec::new();
        for version in self.versions(model)? {
            let bytes = tree_bytes(&folder.join(&version))?;
            let dir = self.version(model, &version).ok();
            let created_s = dir.map(|dir| dir.manifest.provenance.created_s);
            list.push(VersionInfo {
                role: Role::of(&version, served.as_ref()),
                version,
                bytes,
                created_s,
            });
        }
        // Versions built in the same second are told apart by name.
        list.sort_by_key(|info| Reverse((info.created_s, info.version.clone())));
        Ok(list)
    }

    /// Which version of a model is served, and which was before.
    ///
    /// # Errors
    /// A bad name, no such model, or one without a served version.
    pub fn served(&self, model: &str) -> Result<Served, StoreError> {
        Served::read(&self.model_path(model)?)
    }

    /// Has `version` served from now on, once its manifest, its files' lengths and their indexes
    /// have been checked. The one served so far is remembered for [`Store::roll_back`].
    ///
    /// # Errors
    /// No such version, or one that cannot be believed: nothing has changed then. The system's.
    pub fn use_version(&self, model: &str, version: &str) -> Result<ModelDir, StoreError> {
        self.confirm()?;
        let folder = self.model_path(model)?;
        let _lock = self.lock(model, &folder)?;
        self.serve_checked(&folder, model, version)
    }

    /// Has the version served that was served before; doing it again goes forward.
    ///
    /// # Errors
    /// [`StoreError::NoPrevious`], else as [`Store::use_version`].
    pub fn roll_back(&self, model: &str) -> Result<ModelDir, StoreError> {
        self.confirm()?;
        let folder = self.model_path(model)?;
        let _lock = self.lock(model, &folder)?;
        let version = Served::read(&folder)?.previous;
        let version = version.ok_or_else(|| StoreError::NoPrevious { model: model.to_owned() })?;
        self.serve_checked(&folder, model, &version)
    }

    /// Locks a model's folder; it is missing where it was removed meanwhile.
    fn lock(&self, model: &str, folder: &Path) -> Result<File, StoreError> {
        lock_model(folder).map_err(|error| match error {
            StoreError::Io { source, .. } if source.kind() == io::ErrorKind::NotFound => {
                let what = format!("model {model}");
                StoreError::Missing { store: self.path().to_owned(), what, model: None }
            }
            error => error,
        })
    }

    fn serve_checked(
        &self,
        folder: &Path,
        model: &str,
        version: &str,
    ) -> Result<ModelDir, StoreError> {
        let dir = self.version(model, version)?;
        dir.check_files()?;
        serve(folder, version)?;
        Ok(dir)
    }

    /// Removes a version that is not served. Who has its files open keeps them.
    ///
    /// # Errors
    /// [`StoreError::InUse`] for the served version; no such version; the system's.
    pub fn remove(&self, model: &str, version: &str) -> Result<Removed, StoreError> {
        self.confirm()?;
        let folder = self.model_path(model)?;
        let path = folder.join(checked(version)?);
        let bin = Bin::new(self.path())?;
        let lock = self.lock(model, &folder)?;
        let served = Served::read(&folder).ok();
        if served.as_ref().is_some_and(|served| served.current == version) {
            return Err(StoreError::InUse { path });
        }
        if !self.versions(model)?.iter().any(|known| known == version) {
            let what = format!("version {version} of {model}");
            let (store, model) = (self.path().to_owned(), Some(model.to_owned()));
            return Err(StoreError::Missing { store, what, model });
        }
        if let Some(served) = served.filter(|served| served.previous.as_deref() == Some(version)) {
            Served { previous: None, ..served }.write(&folder)?;
        }
        let bytes = bin.take(&path)?;
        forget_measures(&folder, model, version);
        drop(lock);
        bin.empty();
        Ok(Removed { model: model.to_owned(), version: version.to_owned(), bytes })
    }

    /// Removes a model with all its versions and what is known of them, out of sight in one step.
    /// Who has its files open keeps them.
    ///
    /// # Errors
    /// No such model, or a folder that is none; the system's.
    pub fn remove_model(&self, model: &str) -> Result<RemovedModel, StoreError> {
        self.confirm()?;
        let folder = self.model_path(model)?;
        let bin = Bin::new(self.path())?;
        let lock = self.lock(model, &folder)?;
        let versions = self.versions(model)?;
        if versions.is_empty() && Served::read(&folder).is_err() {
            let what = format!("model {model}");
            return Err(StoreError::Missing { store: self.path().to_owned(), what, model: None });
        }
        let bytes = bin.take(&folder)?;
        drop(lock);
        bin.empty();
        Ok(RemovedModel { model: model.to_owned(), versions, bytes })
    }

    /// Removes of every model the versions that are neither served nor were before, nor among its
    /// `keep` newest, and what interrupted builds left behind. A model whose served version
    /// is lost or cannot be believed is left alone: each of the others may be the only good copy.
    ///
    /// A model in which something cannot be read or removed is told and passed over.
    ///
    /// # Errors
    /// The system's, where the store itself cannot be read or written.
    pub fn collect(&self, keep: usize) -> Result<Collected, StoreError> {
        self.confirm()?;
        let (abandoned, abandoned_bytes) = clean(self.path())?;
        let mut collected = Collected { abandoned, abandoned_bytes, ..Collected::default() };
        let bin = Bin::new(self.path())?;
        for model in self.models()? {
            if let Err(error) = self.collect_model(&model, keep, &bin, &mut collected.removed) {
                log::warn!("old versions of model {model} stay: {error}");
            }
        }
        bin.empty();
        Ok(collected)
    }

    fn collect_model(
        &self,
        model: &str,
        keep: usize,
        bin: &Bin,
        removed: &mut Vec<Removed>,
    ) -> Result<(), StoreError> {
        let folder = self.model_path(model)?;
        let _lock = self.lock(model, &folder)?;
        if Served::read(&folder).and_then(|s| self.version(model, &s.current)).is_err() {
            log::warn!("model {model} has no good version in service: none is removed");
            return Ok(());
        }
        remove_unfinished(&folder)?;
        let versions = self.list(model)?;
        let newest: HashSet<_> = versions.iter().take(keep).map(|i| i.version.clone()).collect();
        let spare = versions.into_iter().filter(|info| info.role == Role::Spare);
        for info in spare.filter(|info| !newest.contains(&info.version)) {
            let bytes = bin.take(&folder.join(&info.version))?;
            forget_measures(&folder, model, &info.version);
            removed.push(Removed { model: model.to_owned(), version: info.version, bytes });
        }
        Ok(())
    }
}

/// Removes what was measured of a version that is gone. What cannot be removed harms nobody: it is
/// of a version that there is not.
fn forget_measures(model_path: &Path, model: &str, version: &str) {
    let is_its_own = |name: &str| {
        let rest = name.strip_prefix(&format!("{model}.{version}."));
        let variant = rest.and_then(|rest| PLAN_SUFFIXES.iter().find_map(|s| rest.strip_suffix(s)));
        // With a dot in it, it is of a version whose name goes on.
        variant.is_some_and(|variant| !variant.contains('.'))
    };
    for entry in fs::read_dir(model_path).into_iter().flatten().flatten() {
        if entry.file_name().to_str().is_some_and(is_its_own)
            && let Err(error) = fs::remove_file(entry.path())
        {
            log::warn!("{} stays: {error}", entry.path().display());
        }
    }
}

/// Folders on their way out: out of sight in one step each, then removed at leisure. What a crash
/// leaves of it is a staging folder that the next build or collection removes.
struct Bin(Staging);

impl Bin {
    fn new(store: &Path) -> Result<Bin, StoreError> {
        staging(store).map(Bin)
    }

    /// Takes a version's or model's folder out of the store; says how many bytes it had.
    fn take(&self, path: &Path) -> Result<u64, StoreError> {
        let bytes = tree_bytes(path)?;
        let mut number = 0;
        let place = loop {
            let place: PathBuf = self.0.path().join(number.to_string());
            if !place.exists() {
                break place;
            }
            number += 1;
        };
        let result = fs::rename(path, place);
        result.map_err(|e| StoreError::io("remove", path, e))?;
        sync(path.parent().unwrap_or(path))?;
        Ok(bytes)
    }

    /// Removes what is in it. What is out of the store is removed for whoever asked, whether its files
    /// are or not.
    fn empty(self) {
        let path = self.0.path();
        if let Err(error) = fs::remove_dir_all(path) {
            let path = path.display();
            log::warn!("{path} stays, of what was removed, until the next build or gc: {error}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A version that was gone was told not to be, where its files could not be removed.
    #[test]
    fn what_is_out_of_the_store_is_removed_whatever_becomes_of_its_files() {
        let store = tempfile::tempdir().unwrap();
        let folder = store.path().join("v");
        fs::create_dir(&folder).unwrap();
        fs::write(folder.join("f"), b"123").unwrap();
        let bin = Bin::new(store.path()).unwrap();
        assert_eq!(bin.take(&folder).unwrap(), 3);
        assert!(!folder.exists());
        // Somebody else has removed it, which fails as any other trouble does.
        fs::remove_dir_all(bin.0.path()).unwrap();
        bin.empty();
    }
}
