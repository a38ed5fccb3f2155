//! `[http]`

use std::net::SocketAddr;
use std::path::PathBuf;

use serde::Deserialize;

use crate::database::SecretFile;

/// `[http]`
#[derive(Debug, Clone, Deserialize)]
#[serde(default)]
pub struct HttpSettings {
    /// Address and port; port 0 for any free one.
    pub listen: SocketAddr,
    /// A file with the token without which nothing can be changed. Relative: in the folder of systemd's credentials,
    /// where there is one.
    pub token_file: Option<PathBuf>,
    /// Names of this daemon, beside its addresses and `localhost`.
    pub allowed_hosts: Vec<String>,
}

impl HttpSettings {
    /// The file with the token, if there is one.
    #[must_use]
    pub fn token_file(&self) -> Option<SecretFile> {
        let path = self.token_file.as_ref().filter(|path| !path.as_os_str().is_empty());
        path.map(|path| SecretFile::new("http.token_file", path))
    }
}

impl Default for HttpSettings {
    fn default() -> Self {
        Self { listen: SocketAddr::from(([127, 0, 0, 1], 9797)), token_file: None, allowed_hosts: Vec::new() }
    }
}
