//! That a model could not be measured, beside where its profile would be: so that it is not tried
//! anew at each idle moment and after each start.

use super::board::Board;
use super::profile::{FORMAT, ProfileError, Subject, check_subject, read_known, remove, replace};
use super::stale::{Stale, staleness};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// Limit of the file.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// Why a version and variant of a model could not be measured on a board.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Unmeasured {
    pub format: u32,
    /// Version of Hermes that tried.
    pub hermes: String,
    pub model: String,
    pub version: String,
    pub variant: String,
    pub board: Board,
    pub why: String,
}

impl Unmeasured {
    /// That measuring `subject` failed.
    pub fn new(subject: Subject, hermes: &str, board: Board, why: String) -> Unmeasured {
        let (format, hermes) = (FORMAT, hermes.to_owned());
        let [model, version, variant] =
            [subject.model, subject.version, subject.variant].map(str::to_owned);
        Unmeasured { format, hermes, model, version, variant, board, why }
    }

    fn path(folder: &Path, subject: Subject) -> PathBuf {
        let Subject { model, version, variant } = subject;
        folder.join(format!("{model}.{version}.{variant}.unmeasured.json"))
    }

    fn subject(&self) -> Subject<'_> {
        Subject { model: &self.model, version: &self.version, variant: &self.variant }
    }

    /// What is known of `subject` in `folder`; None where nothing is.
    ///
    /// # Errors
    /// The system's; a file that cannot be believed.
    pub fn read(folder: &Path, subject: Subject) -> Result<Option<Unmeasured>, ProfileError> {
        let path = Unmeasured::path(folder, subject);
        let found = read_known::<Unmeasured>(&path, MAX_FILE_BYTES)?;
        let Some(found) = found else { return Ok(None) };
        check_subject(&path, found.subject(), subject)?;
        Ok(Some(found))
    }

    /// Writes it into `folder`, whole or not at all.
    ///
    /// # Errors
    /// The system's.
    pub fn write(&self, folder: &Path) -> Result<(), ProfileError> {
        replace(&Unmeasured::path(folder, self.subject()), self)
    }

    /// Removes what `folder` has of `subject`: it was measured after all.
    ///
    /// # Errors
    /// The system's.
    pub fn remove(folder: &Path, subject: Subject) -> Result<(), ProfileError> {
        remove(Unmeasured::path(folder, subject))
    }

    /// What has changed since, so that it may go better now; as [`super::Profile::staleness`].
    pub fn staleness(&self, board: &Board, hermes: &str) -> Option<Stale> {
        staleness((&self.board, board), (&self.hermes, hermes))
    }
}

#[cfg(test)]
mod tests {
    use super::super::fixture;
    use super::*;

    #[test]
    fn what_could_not_be_measured_is_known_until_the_board_changes() {
        let folder = tempfile::tempdir().unwrap();
        let subject = Subject { model: "gpt", version: "1", variant: "q8" };
        assert_eq!(Unmeasured::read(folder.path(), subject).unwrap(), None);
        let board = fixture::profile().board;
        let why = "it panics".to_owned();
        let known = Unmeasured::new(subject, "0.1.0", board.clone(), why);
        known.write(folder.path()).unwrap();
        assert_eq!(Unmeasured::read(folder.path(), subject).unwrap().as_ref(), Some(&known));
        assert_eq!(known.staleness(&board, "0.1.0"), None);
        assert!(known.staleness(&board, "0.2.0").is_some());
        let other = Board { kernel: "7.0".into(), ..board };
        assert!(known.staleness(&other, "0.1.0").is_some());
        let variant = Subject { variant: "f32", ..subject };
        assert_eq!(Unmeasured::read(folder.path(), variant).unwrap(), None);
        Unmeasured::remove(folder.path(), subject).unwrap();
        Unmeasured::remove(folder.path(), subject).unwrap();
        assert_eq!(Unmeasured::read(folder.path(), subject).unwrap(), None);
    }
}
