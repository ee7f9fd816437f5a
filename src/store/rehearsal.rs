//! What is known of importing a version's graph: a file beside it, written once that was tried.

use super::{
    ModelDir, StoreError,
    folder::read_whole,
    manifest::{Checksum, REHEARSAL_NAME},
};
use crate::sys::file;
use std::{fs, io, path::Path};

/// Limit of the file: a reason is some lines.
const MAX_BYTES: u64 = 16 << 10;

/// What becomes the file by a rename.
const NEXT_NAME: &str = ".rehearsal-next";

/// How importing a graph went, when it was tried by a process that nobody depends on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Rehearsal {
    /// Well.
    Done {
        /// What it took of the heap at its peak.
        peak_bytes: u64,
    },
    /// The graph is not to be imported by a process that others depend on.
    Refused {
        /// Why.
        why: String,
    },
}

impl Rehearsal {
    /// What is known of the version in a folder: nothing where its graph, of that checksum, was not
    /// tried, or was another one then.
    pub fn read(version_path: &Path, graph: Checksum) -> Option<Rehearsal> {
        let bytes = read_whole(&version_path.join(REHEARSAL_NAME), MAX_BYTES).ok()?;
        let text = String::from_utf8(bytes).ok()?;
        let (of, outcome) = text.split_once('\n')?;
        if of != head(graph) {
            return None;
        }
        let (word, rest) = outcome.split_once(' ')?;
        match word {
            "done" => Some(Rehearsal::Done { peak_bytes: rest.trim_end().parse().ok()? }),
            "refused" => Some(Rehearsal::Refused { why: rest.trim_end().to_owned() }),
            _ => None,
        }
    }

    /// Keeps it beside the graph of that checksum in the version's folder, in one step.
    ///
    /// # Errors
    /// The system's: the folder may not be ours.
    pub fn write(&self, version_path: &Path, graph: Checksum) -> Result<(), StoreError> {
        let outcome = match self {
            Rehearsal::Done { peak_bytes } => format!("done {peak_bytes}"),
            Rehearsal::Refused { why } => format!("refused {why}"),
        };
        let (path, next) = (version_path.join(REHEARSAL_NAME), version_path.join(NEXT_NAME));
        let text = format!("{}\n{outcome}\n", head(graph));
        file::replace(&path, &next, text.as_bytes()).map_err(|e| StoreError::io("write", &path, e))
    }

    /// Forgets what is known of the version in `dir`: it is tried anew.
    ///
    /// # Errors
    /// The system's.
    pub fn forget(dir: &ModelDir) -> Result<(), StoreError> {
        let path = dir.path.join(REHEARSAL_NAME);
        match fs::remove_file(&path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                Err(StoreError::io("remove", &path, e))
            }
            _ => Ok(()),
        }
    }
}

/// Another version of Hermes may take what this one does not.
fn head(graph: Checksum) -> String {
    format!("graph {:016x} by {}", graph.0, env!("CARGO_PKG_VERSION"))
}
