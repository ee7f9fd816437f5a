use crate::wire::quote::quote;
use std::io;
use std::path::{Path, PathBuf};

/// Why a checkpoint is not taken. What can be done about it stands on a second line.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// The system refused something.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A file is not what it is called, or lacks something.
    #[error("{}: {what}\n{advice}", path.display())]
    File {
        /// The file or folder.
        path: PathBuf,
        /// What is wrong with it, with the offset where there is one.
        what: String,
        /// What can be done.
        advice: String,
    },
    /// What a file says of a tensor cannot be.
    #[error("{}: tensor {}: {what}\n{advice}", path.display(), quote(tensor))]
    Tensor {
        /// The file.
        path: PathBuf,
        /// The tensor, as the file calls it.
        tensor: String,
        /// What is wrong with it.
        what: String,
        /// What can be done.
        advice: &'static str,
    },
    /// What a file says of the model cannot be, or is not computed here.
    #[error("{}: key {}: {what}\n{advice}", path.display(), quote(key))]
    Key {
        /// The file.
        path: PathBuf,
        /// The key of the file's metadata or config.
        key: String,
        /// What is wrong with it.
        what: String,
        /// What can be done.
        advice: &'static str,
    },
}

/// What helps where a file was cut short or damaged on its way.
const COPY_AGAIN: &str = "download it again, or copy it again if it was cut short";

/// What helps where the model is another than those that are computed here.
const TAKE_ANOTHER: &str = "take another file of the model, or export it to ONNX";

impl CheckpointError {
    /// What makes an error of what the system said about `path`.
    pub(super) fn io(path: &Path) -> impl FnOnce(io::Error) -> CheckpointError {
        move |source| CheckpointError::Io { path: path.to_owned(), source }
    }

    /// A file that is damaged, or none of its kind.
    pub(super) fn damaged(path: &Path, what: impl Into<String>) -> CheckpointError {
        CheckpointError::file(path, what, COPY_AGAIN)
    }

    /// A file that is not taken, and what to do.
    pub(super) fn file(
        path: &Path,
        what: impl Into<String>,
        advice: impl Into<String>,
    ) -> CheckpointError {
        CheckpointError::File { path: path.to_owned(), what: what.into(), advice: advice.into() }
    }

    /// A tensor that cannot be as the file says.
    pub(super) fn tensor(path: &Path, tensor: &str, what: impl Into<String>) -> CheckpointError {
        let (path, tensor) = (path.to_owned(), tensor.to_owned());
        CheckpointError::Tensor { path, tensor, what: what.into(), advice: COPY_AGAIN }
    }

    /// A tensor that is not computed with here.
    pub(super) fn strange(path: &Path, tensor: &str, what: impl Into<String>) -> CheckpointError {
        let (path, tensor) = (path.to_owned(), tensor.to_owned());
        CheckpointError::Tensor { path, tensor, what: what.into(), advice: TAKE_ANOTHER }
    }

    /// A key that is missing or cannot be as it is.
    pub(super) fn key(path: &Path, key: &str, what: impl Into<String>) -> CheckpointError {
        let (path, key) = (path.to_owned(), key.to_owned());
        CheckpointError::Key { path, key, what: what.into(), advice: COPY_AGAIN }
    }

    /// A key that asks for what is not computed here.
    pub(super) fn unknown(path: &Path, key: &str, what: impl Into<String>) -> CheckpointError {
        let (path, key) = (path.to_owned(), key.to_owned());
        CheckpointError::Key { path, key, what: what.into(), advice: TAKE_ANOTHER }
    }
}
