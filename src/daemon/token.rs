//! The token by which clients over TCP show that they may connect, and the file that holds it.

use std::fmt;
use std::fs::OpenOptions;
use std::hint::black_box;
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use thiserror::Error;

/// Shortest token: 16 characters of those that `openssl rand -hex` makes are 64 bits.
const MIN_CHARS: usize = 16;

/// Longest one: a request's head has to have room for it.
const MAX_CHARS: usize = 1024;

/// Rights of a file by which others than its owner and group may read it, or others than its owner
/// change it.
const TOO_MANY: u32 = 0o027;

/// A file that holds no token to go by.
#[derive(Debug, Error)]
pub enum TokenError {
    /// The system refused.
    #[error("{0}: cannot read the token: {1}")]
    Read(PathBuf, io::Error),
    /// Too many may read or change it.
    #[error(
        "{path}: others may read or change the token (mode {mode:04o}); let its owner and the \
         daemon's group alone read it: chmod 640 {path}"
    )]
    Exposed {
        /// The file.
        path: PathBuf,
        /// Its rights.
        mode: u32,
    },
    /// What it holds.
    #[error(
        "{0}: is no token: it must be one line of {MIN_CHARS} to {MAX_CHARS} letters, digits and \
         any of -._~+/=, such as openssl rand -hex 32 prints"
    )]
    Malformed(PathBuf),
}

/// A token, which is never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(Arc<[u8]>);

impl Token {
    /// Reads the first line of a file, which may be a link to one.
    ///
    /// # Errors
    ///
    /// [`TokenError`]: also for a file that others may read.
    pub fn read(path: &Path) -> Result<Token, TokenError> {
        let failed = |error| TokenError::Read(path.to_owned(), error);
        // A pipe would be waited for.
        let mut options = OpenOptions::new();
        let file = options.read(true).custom_flags(libc::O_NONBLOCK).open(path).map_err(failed)?;
        let metadata = file.metadata().map_err(failed)?;
        if !metadata.is_file() {
            return Err(failed(io::Error::other("it is no regular file")));
        }
        let mode = metadata.mode() & 0o7777;
        if mode & TOO_MANY != 0 {
            return Err(TokenError::Exposed { path: path.to_owned(), mode });
        }
        let mut text = Vec::new();
        file.take(MAX_CHARS as u64 + 3).read_to_end(&mut text).map_err(failed)?;
        Token::parse(&text).ok_or_else(|| TokenError::Malformed(path.to_owned()))
    }

    /// A token as RFC 6750 has it, with the end of its line.
    fn parse(text: &[u8]) -> Option<Token> {
        let text = text.strip_suffix(b"\n").unwrap_or(text);
        let text = text.strip_suffix(b"\r").unwrap_or(text);
        let is_good = |byte: &u8| byte.is_ascii_alphanumeric() || b"-._~+/=".contains(byte);
        let is_token = (MIN_CHARS..=MAX_CHARS).contains(&text.len()) && text.iter().all(is_good);
        is_token.then(|| Token(text.into()))
    }

    /// Whether `given` is the token. How long that takes does not tell how much of it is right.
    pub fn is(&self, given: &[u8]) -> bool {
        let differing = |sum: u8, (ours, theirs): (&u8, &u8)| black_box(sum | (ours ^ theirs));
        let sum = self.0.iter().zip(given).fold(0, differing);
        given.len() == self.0.len() && sum == 0
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{self, Permissions};
    use std::os::unix::fs::{PermissionsExt, symlink};

    const TEXT: &str = "0123456789abcdef-._~+/==";

    #[test]
    fn a_token_is_itself_alone() {
        let token = Token::parse(TEXT.as_bytes()).unwrap();
        assert!(token.is(TEXT.as_bytes()));
        for given in ["", "0", &TEXT[1..], &format!("{TEXT}="), &TEXT.replace('f', "g")] {
            assert!(!token.is(given.as_bytes()), "{given}");
        }
        assert_eq!(format!("{token:?}"), "Token(..)");
        for text in
            ["", "\n", "short", "0123456789abcde\n", "0123456789 abcdef", "0123456789abcdef\n\n"]
        {
            assert_eq!(Token::parse(text.as_bytes()), None, "{text:?}");
        }
        assert!(Token::parse(&[b'x'; MAX_CHARS + 1]).is_none());
    }

    #[test]
    fn a_file_that_others_may_read_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("token");
        fs::write(&path, format!("{TEXT}\r\n")).unwrap();
        for (mode, is_good) in [
            (0o600, true),
            (0o640, true),
            (0o400, true),
            (0o440, true),
            (0o644, false),
            (0o604, false),
            (0o602, false),
            (0o601, false),
            (0o660, false),
            (0o620, false),
        ] {
            fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
            match Token::read(&path) {
                Ok(token) => assert!(is_good && token.is(TEXT.as_bytes()), "{mode:o}"),
                Err(error) => {
                    let expected = format!("(mode {mode:04o}); let its owner");
                    assert!(!is_good && error.to_string().contains(&expected), "{error}");
                }
            }
        }
        fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
        symlink(&path, folder.path().join("link")).unwrap();
        assert!(Token::read(&folder.path().join("link")).is_ok());
        fs::write(&path, "x".repeat(5000)).unwrap();
        assert!(matches!(Token::read(&path), Err(TokenError::Malformed(_))));
        for none in [folder.path(), Path::new("/none"), Path::new("/dev/null")] {
            assert!(matches!(Token::read(none), Err(TokenError::Read(..))), "{none:?}");
        }
    }
}
