//! Where a password comes from. It is looked for at every new connection, so that one that was changed
//! holds from the next connection on.

use std::env;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use secrecy::SecretString;

use super::secret_file::{SecretFile, SecretFileError};

/// The sources of a password that are no variables. None of them is ever shown.
#[derive(Debug)]
pub(super) struct Passwords {
    /// The one in the URL.
    of_url: Option<SecretString>,
    /// `database.password_file`.
    file: Option<PathBuf>,
    /// `passfile` in the URL, which stands in for `PGPASSFILE`.
    passfile: Option<PathBuf>,
    /// A file that others may read is complained of once.
    told: AtomicBool,
}

/// Whom a password is for, as lines of a `.pgpass` name it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Login<'a> {
    pub(super) host: &'a str,
    pub(super) port: u16,
    pub(super) database: &'a str,
    pub(super) user: &'a str,
}

impl Passwords {
    pub(super) fn new(
        of_url: Option<SecretString>,
        file: Option<PathBuf>,
        passfile: Option<PathBuf>,
    ) -> Self {
        Self { of_url, file, passfile, told: AtomicBool::new(false) }
    }

    /// The password for `login`; none is right too where the server asks for none.
    pub(super) fn find(&self, login: Login<'_>) -> Result<Option<SecretString>, SecretFileError> {
        if let Some(password) = &self.of_url {
            return Ok(Some(password.clone()));
        }
        if let Some(file) = self.file() {
            return self.read(&file).map(Some);
        }
        if let Some(password) = variable("PGPASSWORD") {
            return Ok(Some(password.into()));
        }
        Ok(self.of_passfile(login))
    }

    /// Whether the password file, where there is one, can be used at this moment.
    pub(super) fn check(&self) -> Result<(), SecretFileError> {
        match self.file() {
            Some(file) if self.of_url.is_none() => self.read(&file).map(drop),
            _ => Ok(()),
        }
    }

    fn file(&self) -> Option<SecretFile> {
        Some(SecretFile::new("database.password_file", self.file.as_ref()?))
    }

    fn read(&self, file: &SecretFile) -> Result<SecretString, SecretFileError> {
        let password = file.read()?;
        // Groups are how a container's or a unit's secret is shared; the world is a mistake.
        if file.is_for_everybody() {
            self.tell_once(
                file.path(),
                "everybody on this machine may use this file: chmod o= would keep it from them",
            );
        }
        Ok(password)
    }

    /// The password in `PGPASSFILE` or `~/.pgpass`, by libpq's rules.
    fn of_passfile(&self, login: Login<'_>) -> Option<SecretString> {
        let path = self
            .passfile
            .clone()
            .or_else(|| variable("PGPASSFILE").map(PathBuf::from))
            .or_else(|| Some(env::home_dir()?.join(".pgpass")))?;
        let kind = fs::metadata(&path).ok()?;
        if !kind.is_file() {
            self.tell_once(&path, "the password file is ignored: it is not a plain file");
            return None;
        }
        if kind.permissions().mode() & 0o077 != 0 {
            self.tell_once(
                &path,
                "the password file is ignored, as libpq does it: group or others have access; chmod 0600",
            );
            return None;
        }
        let text = fs::read(&path).ok()?;
        matching(&String::from_utf8_lossy(&text), login).map(SecretString::from)
    }

    fn tell_once(&self, path: &Path, what: &str) {
        if !self.told.swap(true, Ordering::Relaxed) {
            tracing::warn!(path = %path.display(), "{what}");
        }
    }
}

fn variable(name: &str) -> Option<String> {
    env::var(name).ok().filter(|value| !value.is_empty())
}

/// The password of the first line `host:port:database:user:password` that fits.
fn matching(text: &str, login: Login<'_>) -> Option<String> {
    // A socket in the usual place is localhost to libpq; Debian's place is as usual as PostgreSQL's.
    let host = match login.host {
        "" | "/tmp" | "/var/run/postgresql" | "/run/postgresql" => "localhost",
        host => host,
    };
    let port = login.port.to_string();
    text.lines().filter(|line| !line.starts_with('#')).find_map(|line| {
        let mut rest = line;
        for wanted in [host, &port, login.database, login.user] {
            rest = after_match(rest, wanted)?;
        }
        Some(field(rest).0).filter(|password| !password.is_empty())
    })
}

/// What follows a field that is `*` or `wanted`.
fn after_match<'a>(line: &'a str, wanted: &str) -> Option<&'a str> {
    if let Some(rest) = line.strip_prefix("*:") {
        return Some(rest);
    }
    let (value, rest) = field(line);
    rest.filter(|_| value == wanted)
}

/// The first field, without the backslashes that hide a character in it, and what follows its colon.
fn field(line: &str) -> (String, Option<&str>) {
    let mut value = String::new();
    let mut characters = line.char_indices();
    while let Some((at, character)) = characters.next() {
        match character {
            ':' => return (value, Some(&line[at + 1..])),
            '\\' => value.push(characters.next().map_or('\\', |(_, hidden)| hidden)),
            _ => value.push(character),
        }
    }
    (value, None)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn find(text: &str, host: &str, database: &str, user: &str) -> Option<String> {
        matching(text, Login { host, port: 5432, database, user })
    }

    #[test]
    fn a_passfile_is_read_as_libpq_reads_it() {
        let text = "# db:5432:shop:app:comment\n\
                    db:5433:shop:app:other port\n\
                    db:5432:shop:app:first\n\
                    db:5432:shop:app:second\n\
                    *:*:*:admin:of admin\n\
                    we\\:ird:*:sh\\\\op:*:a\\:b\\\\c:rest\n\
                    localhost:5432:*:*:local\r\n\
                    short:5432:shop\n";
        assert_eq!(find(text, "db", "shop", "app").as_deref(), Some("first"));
        assert_eq!(find(text, "db", "other", "app"), None);
        assert_eq!(find(text, "elsewhere", "x", "admin").as_deref(), Some("of admin"));
        assert_eq!(find(text, "we:ird", "sh\\op", "app").as_deref(), Some("a:b\\c"));
        assert_eq!(find(text, "/var/run/postgresql", "x", "y").as_deref(), Some("local"));
        assert_eq!(find(text, "/elsewhere", "x", "y"), None);
        assert_eq!(find(text, "short", "shop", "app"), None);
        assert_eq!(find("*:*:*:*:\n", "db", "shop", "app"), None);
    }

    #[test]
    fn a_password_file_is_one_line() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("password");
        let passwords = Passwords::new(None, Some(path.clone()), None);
        let login = Login { host: "h", port: 1, database: "d", user: "u" };
        let told = |text: &[u8]| {
            fs::write(&path, text).unwrap();
            passwords.find(login).unwrap_err().to_string().replace(&path.display().to_string(), "FILE")
        };
        assert!(told(b"").starts_with("database.password_file = FILE: is empty"));
        assert!(told(b"\n").contains("is empty"));
        assert!(told(b"hunter2\nhunter3\n").contains("more than one line"));
        assert!(!told(b"hunter2\nhunter3\n").contains("hunter"));
        assert!(!told(b"hunter2\xff").contains("hunter"));
        fs::write(&path, " hunter2 \n").unwrap();
        let found = passwords.find(login).unwrap().unwrap();
        assert_eq!(secrecy::ExposeSecret::expose_secret(&found), " hunter2 ");
        fs::remove_file(&path).unwrap();
        assert!(passwords.check().unwrap_err().to_string().contains("cannot be read"));
    }
}
