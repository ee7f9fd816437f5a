use super::manifest::MAX_NAME_BYTES;
use std::{
    io,
    path::{Path, PathBuf},
};

/// Why bytes are not a layer file's header and index; offsets are from the start of the file.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FormatError {
    /// The first bytes are some other format's.
    #[error("magic at byte 0 is not that of a layer file")]
    Magic,
    /// A newer format, or damage.
    #[error("format version at byte 8 is {found}, this program reads {expected}")]
    Version {
        /// What the file says.
        found: u64,
        /// What this program reads.
        expected: u64,
    },
    /// The bytes end inside a field.
    #[error("{field} at byte {offset} needs {needed} bytes, {left} are left")]
    Truncated {
        /// What was being read.
        field: &'static str,
        /// Where it starts.
        offset: u64,
        /// Bytes it takes.
        needed: u64,
        /// Bytes there are.
        left: u64,
    },
    /// A field disagrees with another, or is out of its limits.
    #[error("{field} at byte {offset} {what}")]
    Field {
        /// What was read.
        field: &'static str,
        /// Where it starts.
        offset: u64,
        /// What is wrong with it.
        what: String,
    },
}

/// What is done with a store before anything else.
pub(super) const OPEN_STORE: &str = "open the store";

/// Why a file or folder of the store cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The system refused an operation.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was tried, as a verb.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A layer file's header or index is wrong.
    #[error("{}: {source}", path.display())]
    Format {
        /// The layer file.
        path: PathBuf,
        /// What is wrong with it.
        source: FormatError,
    },
    /// A file disagrees with the manifest or with its own index.
    #[error("{}: {what}", path.display())]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// What disagrees, with tensor, rows and offset where it is a block.
        what: String,
    },
    /// A version lies under another name than its manifest says.
    #[error("{} describes version {version} of {model}", path.display())]
    Renamed {
        /// The version's folder.
        path: PathBuf,
        /// The model that it is of.
        model: String,
        /// The version that it is.
        version: String,
    },
    /// A manifest cannot be believed.
    #[error("{}: {source}", path.display())]
    Manifest {
        /// The manifest.
        path: PathBuf,
        /// What is wrong with it.
        source: super::manifest::ManifestError,
    },
    /// A model or version name outside `[A-Za-z0-9._-]`, too long, starting with a dot, or one that
    /// the store's own files have.
    #[error("{name:?} is no name of a model or version")]
    Name {
        /// The name.
        name: String,
    },
    /// The store has no such model or version.
    #[error("{} has no {what}", store.display())]
    Missing {
        /// The store's folder.
        store: PathBuf,
        /// What was looked for.
        what: String,
        /// The model that is there, where only a part of it is missing.
        model: Option<String>,
    },
    /// A model or version is a link, which the store does not follow.
    #[error("{} is a link, and a store follows none: it may lead anywhere", path.display())]
    Link {
        /// The link.
        path: PathBuf,
    },
    /// A version of this name is there already.
    #[error("{} exists already", path.display())]
    Exists {
        /// The version's folder.
        path: PathBuf,
    },
    /// An archive that is to be installed is not one of a version.
    #[error("the archive{} {what}, at byte {offset}", name_entry(.entry))]
    Archive {
        /// The entry, where it has a name.
        entry: String,
        /// Where it starts.
        offset: u64,
        /// What is wrong with it.
        what: String,
    },
    /// A folder that is to be installed is not one of a version.
    #[error("{} is no version: it has no manifest.json; {what}", path.display())]
    NoVersion {
        /// The folder.
        path: PathBuf,
        /// What it is, and what to do.
        what: String,
    },
    /// What was received is not what its manifest says.
    #[error("{file} {what}")]
    Received {
        /// The file, as a path in the version.
        file: String,
        /// What is wrong with it.
        what: String,
    },
    /// The disk is too full.
    #[error("{} has {free_bytes} bytes free, {needed_bytes} are needed", store.display())]
    NoRoom {
        /// The store's folder.
        store: PathBuf,
        /// What was asked for.
        needed_bytes: u64,
        /// What there is.
        free_bytes: u64,
    },
    /// The store's folder is not the one that was opened.
    #[error("{} is another folder than when it was opened", store.display())]
    Replaced {
        /// The store's folder.
        store: PathBuf,
    },
    /// A version is not the one that was looked at.
    #[error("{} was replaced or removed meanwhile", path.display())]
    Changed {
        /// The version's folder.
        path: PathBuf,
    },
    /// The served version cannot be removed.
    #[error("{} is the served version", path.display())]
    InUse {
        /// The version's folder.
        path: PathBuf,
    },
    /// No other version was served before.
    #[error("model {model} has no version to go back to")]
    NoPrevious {
        /// The model.
        model: String,
    },
    /// The caller of a writer broke its rules.
    #[error("{}: {what}", path.display())]
    Misuse {
        /// The file being written.
        path: PathBuf,
        /// Which rule.
        what: String,
    },
}

fn name_entry(entry: &str) -> String {
    if entry.is_empty() { String::new() } else { format!("'s entry {entry:?}") }
}

impl StoreError {
    /// What a user can do about it, for those who speak to one.
    pub fn advice(&self) -> Option<String> {
        let advice = match self {
            StoreError::Format { .. }
            | StoreError::Corrupt { .. }
            | StoreError::Manifest { .. } => {
                "build this version again with hermes-shard build --force"
            }
            StoreError::Renamed { model, version, .. } => {
                return Some(format!(
                    "a name is part of a version: rename the folder back to {model}/{version}, or \
                     build it anew with --name and --version"
                ));
            }
            StoreError::Name { .. } => {
                return Some(format!(
                    "use letters, digits, '.', '_' and '-', at most {MAX_NAME_BYTES} of them, not \
                     starting with a dot or dash; \"current\" and *.profile.json are taken, and \
                     for models \"stats\""
                ));
            }
            StoreError::Missing { model, .. } => {
                let model = model.as_deref();
                let list = model.map_or_else(|| "ls".to_owned(), |name| format!("versions {name}"));
                return Some(format!(
                    "list what it has with hermesctl {list}, or build it with hermes-shard build"
                ));
            }
            StoreError::Link { .. } => {
                "move the folder itself there, or give a store on the other disk"
            }
            StoreError::Exists { .. } => {
                "replace it with --force, serve it with hermesctl use, or build the new one with \
                 another --version"
            }
            StoreError::Archive { .. } => {
                "nothing was installed; give the folder of a version, or its files as a plain tar \
                 with manifest.json first"
            }
            StoreError::Received { .. } => {
                "nothing was installed; send it again, or check its source with hermes-shard verify"
            }
            StoreError::NoRoom { .. } => {
                "free some room (hermesctl gc removes old versions) or give another store"
            }
            StoreError::Replaced { .. } => "mount its disk again, or restart with another --store",
            StoreError::Changed { .. } => "nothing was changed; do it again",
            StoreError::InUse { path } => {
                let model = path.parent().and_then(Path::file_name).unwrap_or_default();
                let model = model.to_string_lossy();
                return Some(format!(
                    "serve another before by hermesctl use {model} VERSION, or remove all of the \
                     model by hermesctl rm {model}"
                ));
            }
            StoreError::NoPrevious { model } => {
                return Some(format!("name one: hermesctl use {model} VERSION"));
            }
            StoreError::Io { action: OPEN_STORE, source, .. }
                if source.kind() == io::ErrorKind::NotFound =>
            {
                "hermes-shard build makes a store; --store or HERMES_STORE names another"
            }
            StoreError::Io { .. } | StoreError::NoVersion { .. } | StoreError::Misuse { .. } => {
                return None;
            }
        };
        Some(advice.to_owned())
    }

    /// Wraps what the system said about `action` on `path`.
    pub(crate) fn io(action: &'static str, path: &Path, source: io::Error) -> StoreError {
        StoreError::Io { action, path: path.to_owned(), source }
    }

    pub(crate) fn corrupt(path: &Path, what: impl Into<String>) -> StoreError {
        StoreError::Corrupt { path: path.to_owned(), what: what.into() }
    }
}
