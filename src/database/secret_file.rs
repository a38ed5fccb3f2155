//! A file with a secret in it, on one line: a password, a token.

use std::env;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use secrecy::SecretString;

/// A file with a secret that cannot be used. Nothing of what is in it is told.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{key} = {path}: {reason}", path = .path.display())]
pub struct SecretFileError {
    key: &'static str,
    path: PathBuf,
    reason: String,
}

/// Where a secret is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SecretFile {
    key: &'static str,
    path: PathBuf,
}

impl SecretFile {
    /// The file that the configuration's `key` names. A relative path is one in the folder of systemd's
    /// credentials, where there is such a folder.
    #[must_use]
    pub fn new(key: &'static str, path: &Path) -> Self {
        let folder = env::var_os("CREDENTIALS_DIRECTORY").filter(|folder| !folder.is_empty());
        Self { key, path: folder.map_or_else(|| path.to_owned(), |folder| Path::new(&folder).join(path)) }
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What is in it.
    pub fn read(&self) -> Result<SecretString, SecretFileError> {
        let wrong = |reason: String| SecretFileError { key: self.key, path: self.path.clone(), reason };
        let text = fs::read_to_string(&self.path).map_err(|error| match error.kind() {
            // What is in it must not be repeated.
            std::io::ErrorKind::InvalidData => wrong("is not UTF-8 text: write the secret alone".to_owned()),
            _ => wrong(format!("cannot be read: {error}")),
        })?;
        // As editors and `echo` end it; all else may be part of the secret.
        let secret = text.strip_suffix('\n').unwrap_or(&text);
        let secret = secret.strip_suffix('\r').unwrap_or(secret);
        if secret.is_empty() {
            return Err(wrong("is empty: write the secret into it, on one line".to_owned()));
        }
        if secret.contains('\n') {
            return Err(wrong("has more than one line: write the secret alone".to_owned()));
        }
        Ok(secret.into())
    }

    /// Whether everybody on the machine may use it.
    #[must_use]
    pub fn is_for_everybody(&self) -> bool {
        fs::metadata(&self.path).is_ok_and(|file| file.permissions().mode() & 0o007 != 0)
    }
}
