//! Which store is meant, and whether it can be used.

use anyhow::{Context, Result};
use clap::Args;
use hermes::store::{ModelDir, Store, check_writable};
use hermes::values::{DEFAULT_STORE, named_store};
use nix::unistd::geteuid;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// What can be done where a store is not ours.
const ADVICE: &str = "name one of yours by --store DIR or HERMES_STORE=DIR, or do it as the \
                      store's user: sudo -u hermes hermes-shard ...";

/// The option that names the store.
#[derive(Args)]
pub struct StoreOption {
    /// Folder of the store [default: $HERMES_STORE or /var/lib/hermes]
    #[arg(long, value_name = "DIR")]
    store: Option<PathBuf>,
}

impl StoreOption {
    /// The folder.
    pub fn path(&self) -> PathBuf {
        self.store.clone().or_else(named_store).unwrap_or_else(|| DEFAULT_STORE.into())
    }

    /// The folder, once it is known that it can be written.
    ///
    /// # Errors
    /// With what to do, where it cannot: before any work is done for it.
    pub fn writable(&self) -> Result<PathBuf> {
        let path = self.path();
        check_writable(&path)
            .map_err(|error| anyhow::anyhow!("{error}{}\n{ADVICE}", self.why()))?;
        if let Some(owner) = other_owner(&path) {
            hermes::tell!(
                "{} belongs to uid {owner}: what root writes there its daemon cannot remove; \
                 better do it as that user (sudo -u hermes hermes-shard ...)",
                path.display()
            );
        }
        Ok(path)
    }

    /// A version of a model there, the served one where none is named.
    ///
    /// # Errors
    /// With the store, where there is no such version.
    pub fn open(&self, model: &str, version: Option<&str>) -> Result<ModelDir> {
        let path = self.path();
        let store = Store::open(&path).map_err(|error| match self.why() {
            "" => anyhow::Error::from(error),
            why => anyhow::anyhow!("{error}{why}\n{}", error.advice().unwrap_or_default()),
        })?;
        let dir = match version {
            Some(version) => store.version(model, version),
            None => store.current(model),
        };
        dir.with_context(|| format!("model {model} in {}", path.display()))
    }

    /// Why it is this store, where the command line does not say.
    fn why(&self) -> &'static str {
        match (&self.store, named_store()) {
            (Some(_), _) => "",
            (None, Some(_)) => " (the store that HERMES_STORE names)",
            (None, None) => " (the store where none is named)",
        }
    }
}

/// Who owns a folder in which root is about to make files that are root's.
fn other_owner(path: &Path) -> Option<u32> {
    let owner = fs::metadata(path).ok()?.uid();
    (geteuid().is_root() && owner != 0).then_some(owner)
}
