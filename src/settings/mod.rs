//! The daemon's configuration: a TOML file, overlaid by the environment, overlaid by the command line.
//!
//! `config/backfilld.toml` in the project has every key with its default.

mod http;
mod keys;
mod notify;
pub mod throttle;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use config::{Config, Environment, File, FileFormat};
use secrecy::{ExposeSecret as _, SecretString};
use serde::Deserialize;

use crate::database::{Access, Pooler, SslMode, Target, TargetError};
use crate::job::known_keys::{self, Kind, Source};
pub use http::HttpSettings;
use keys::KNOWN_KEYS;
pub use notify::NotifySettings;
pub use throttle::ThrottleSettings;

/// Read when it exists and no other file is named.
pub const DEFAULT_PATH: &str = "/etc/backfilld/backfilld.toml";
const ENVIRONMENT_PREFIX: &str = "BACKFILLD";

/// A configuration that cannot be used. Every message names the source and the key.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// A file that was asked for cannot be read.
    #[error("{path}: cannot read the configuration: {error}", path = .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        error: std::io::Error,
    },
    /// The file is not TOML.
    #[error("{path}: {message}", path = .path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// What the parser says, with line and column.
        message: String,
    },
    /// Keys are unknown, not supported yet, or have values that make no sense.
    #[error("{}", .0.join("\n"))]
    Invalid(Vec<String>),
    /// A value has the wrong type.
    #[error("configuration: {0}")]
    Value(String),
    /// The database's address is missing or wrong.
    #[error("configuration: {0}")]
    Target(#[from] TargetError),
}

/// The whole configuration.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Settings {
    /// Which database, and how many connections to it.
    pub database: DatabaseSettings,
    /// Where the state is kept.
    pub state: StateSettings,
    /// Where job files are.
    pub jobs: JobsSettings,
    /// The daemon itself.
    pub daemon: DaemonSettings,
    /// How fast, and what decides it.
    pub throttle: ThrottleSettings,
    /// Metrics, health, the API, the console.
    pub http: HttpSettings,
    /// Where it is told what becomes of jobs.
    pub notify: NotifySettings,
    /// What is logged.
    pub log: LogSettings,
}

/// `[database]`
#[derive(Debug, Clone, Deserialize)]
#[serde(default)]
pub struct DatabaseSettings {
    /// The address, with what is needed to log in.
    pub url: Option<SecretString>,
    /// A file with the password. Relative: in the folder of systemd's credentials, where there is one.
    pub password_file: Option<PathBuf>,
    /// What is asked of a connection.
    pub sslmode: Option<SslMode>,
    /// A file with the certificates of trusted authorities.
    pub ssl_root_cert: Option<PathBuf>,
    /// Connections at most.
    pub pool_size: usize,
    /// What stands between the daemon and the server.
    pub pooler: Pooler,
}

impl Default for DatabaseSettings {
    fn default() -> Self {
        Self {
            url: None,
            password_file: None,
            sslmode: None,
            ssl_root_cert: None,
            pool_size: 16,
            pooler: Pooler::None,
        }
    }
}

impl DatabaseSettings {
    /// How to log in wherever a URL does not say.
    #[must_use]
    pub fn access(&self) -> Access {
        let named = |path: &Option<PathBuf>| path.clone().filter(|path| !path.as_os_str().is_empty());
        Access {
            password_file: named(&self.password_file),
            ssl_mode: self.sslmode,
            ssl_root_cert: named(&self.ssl_root_cert),
            pooler: self.pooler,
        }
    }
}

/// `[state]`
#[derive(Debug, Clone, Deserialize)]
#[serde(default)]
pub struct StateSettings {
    /// The schema.
    pub schema: String,
}

impl Default for StateSettings {
    fn default() -> Self {
        Self { schema: "backfilld".to_owned() }
    }
}

/// `[jobs]`
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct JobsSettings {
    /// A folder of job files, read at start and on SIGHUP.
    pub directory: Option<PathBuf>,
}

/// `[daemon]`
#[derive(Debug, Clone, Deserialize)]
#[serde(default)]
pub struct DaemonSettings {
    /// Who this is, in events and leases. Default: the host's name and the process id.
    pub name: Option<String>,
    /// Jobs that this daemon works on at once.
    pub max_running_jobs: usize,
    /// How long a stop waits for the batches in flight.
    #[serde(with = "humantime_serde")]
    pub shutdown_grace: Duration,
    /// How long a slice stays ours after we were last heard of.
    #[serde(with = "humantime_serde")]
    pub lease: Duration,
}

impl Default for DaemonSettings {
    fn default() -> Self {
        Self {
            name: None,
            max_running_jobs: 4,
            shutdown_grace: Duration::from_secs(30),
            lease: Duration::from_secs(30),
        }
    }
}

impl DaemonSettings {
    /// The daemon's name, whether given or not.
    #[must_use]
    pub fn name(&self) -> String {
        self.name.clone().unwrap_or_else(|| {
            format!("{}:{}", gethostname::gethostname().to_string_lossy(), std::process::id())
        })
    }
}

/// `[log]`
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct LogSettings {
    /// For people or for machines.
    pub format: LogFormat,
    /// From which level on.
    pub level: LogLevel,
}

/// How a log line is written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// The least important level that is logged.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogLevel {
    /// Failures that need somebody.
    Error,
    /// What went wrong and is being dealt with.
    Warn,
    /// Changes of state, and progress once a minute.
    #[default]
    Info,
    /// Each retry and claim.
    Debug,
    /// Everything.
    Trace,
}

impl LogLevel {
    /// The level's name.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warn => "warn",
            Self::Info => "info",
            Self::Debug => "debug",
            Self::Trace => "trace",
        }
    }
}

/// What the command line adds to file and environment.
#[derive(Debug, Clone, Default)]
pub struct Overrides {
    /// `--config`
    pub config: Option<PathBuf>,
    /// `--database-url`
    pub database_url: Option<String>,
}

impl Settings {
    /// Reads the configuration. `environment` is the process's, given by the caller.
    pub fn load(
        overrides: &Overrides,
        environment: &BTreeMap<String, String>,
    ) -> Result<Self, SettingsError> {
        let path = overrides.config.clone().or_else(|| {
            let default = PathBuf::from(DEFAULT_PATH);
            default.exists().then_some(default)
        });
        let mut builder = Config::builder();
        if let Some(path) = &path {
            let text = read_checked(path)?;
            builder = builder.add_source(File::from_str(&text, FileFormat::Toml));
        }
        let ours: BTreeMap<String, String> = environment
            .iter()
            .filter(|(name, _)| name.starts_with(&format!("{ENVIRONMENT_PREFIX}__")))
            .map(|(name, value)| (name.clone(), value.clone()))
            .collect();
        check_environment(&ours)?;
        builder = builder.add_source(
            Environment::with_prefix(ENVIRONMENT_PREFIX)
                .prefix_separator("__")
                .separator("__")
                .source(Some(ours.clone().into_iter().collect())),
        );
        // Over the texts that they are in the environment.
        for (name, text) in &ours {
            let keys = keys_of(name);
            let Some(list) = list(&keys, text) else { continue };
            builder = builder
                .set_override(keys.join("."), list)
                .map_err(|error| SettingsError::Value(error.to_string()))?;
        }
        if let Some(url) = overrides.database_url.as_ref().filter(|url| !url.trim().is_empty()) {
            builder = builder
                .set_override("database.url", url.as_str())
                .map_err(|error| SettingsError::Value(error.to_string()))?;
        }
        let source = path.map_or_else(|| "the environment".to_owned(), |path| path.display().to_string());
        let wrong_value = |error| SettingsError::Value(format!("{source}: {error}"));
        let given = builder.build().map_err(wrong_value)?;
        let mut settings: Self = given.clone().try_deserialize().map_err(wrong_value)?;
        settings.throttle.fit_defaults(|key| given.get::<config::Value>(key).is_ok());
        settings.database.url = settings.database.url.filter(|url| !url.expose_secret().trim().is_empty());
        if settings.database.url.is_none()
            && let Some(url) = environment.get("DATABASE_URL").filter(|url| !url.is_empty())
        {
            settings.database.url = Some(SecretString::from(url.clone()));
        }
        settings.validate(|key| {
            let name = variable(key);
            if ours.contains_key(&name) { name } else { source.clone() }
        })?;
        Ok(settings)
    }

    /// Where the database is. The files that are needed to log in are looked at.
    pub fn target(&self) -> Result<Target, SettingsError> {
        let url = self.database.url.as_ref().map(SecretString::expose_secret);
        let target = Target::from_settings(url, &self.database.access())?;
        target.check_files()?;
        Ok(target)
    }

    /// Checks what one key's value cannot tell. `source_of` names where a key was set.
    fn validate(&self, source_of: impl Fn(&str) -> String) -> Result<(), SettingsError> {
        let mut problems = Vec::new();
        // Every message begins with its key.
        let mut wrong = |condition: bool, message: &str| {
            if condition {
                let key = message.split(' ').next().unwrap_or_default();
                problems.push(format!("{}: {message}", source_of(key)));
            }
        };
        // The supervisor, a start (two), the renewal of leases and the workers each hold one at times.
        let (jobs, pool) = (self.daemon.max_running_jobs, self.database.pool_size);
        let too_few = pool < jobs.saturating_add(4);
        // Whichever of the two was set last is the one to blame.
        let pool_is_set = !source_of("database.pool_size").starts_with(ENVIRONMENT_PREFIX)
            && source_of("daemon.max_running_jobs").starts_with(ENVIRONMENT_PREFIX);
        wrong(
            too_few && pool_is_set,
            &format!(
                "daemon.max_running_jobs = {jobs} needs database.pool_size of {jobs} + 4 at least, and it is {pool}"
            ),
        );
        wrong(
            too_few && !pool_is_set,
            &format!(
                "database.pool_size = {pool} must be at least daemon.max_running_jobs + 4, and that is {jobs} + 4"
            ),
        );
        wrong(self.daemon.max_running_jobs == 0, "daemon.max_running_jobs must be 1 or more");
        wrong(
            self.daemon.lease < Duration::from_secs(1) || self.daemon.lease > Duration::from_secs(3600),
            "daemon.lease must be from 1s to 1h",
        );
        wrong(
            self.daemon.name.as_ref().is_some_and(|name| name.trim().is_empty() || name.len() > 200),
            "daemon.name must have 1 to 200 characters",
        );
        // PostgreSQL cuts longer names off, and keeps those beginning with pg_ for itself.
        let schema = &self.state.schema;
        wrong(
            schema.is_empty() || schema.len() > 63 || schema.starts_with("pg_"),
            "state.schema must have 1 to 63 characters and not begin with pg_",
        );
        for problem in self.notify.problems() {
            wrong(true, &problem);
        }
        problems.extend(self.throttle.problems(&self.database.access()).into_iter().map(|problem| {
            // Of two keys that contradict each other, the one that a variable set: it was set last.
            let keys = problem.split(' ').map(|word| word.trim_end_matches([':', ',']));
            let sources = keys.filter(|word| word.starts_with("throttle.")).map(&source_of);
            let first = sources.clone().next();
            let variable = sources.into_iter().find(|source| source.starts_with(ENVIRONMENT_PREFIX));
            format!("{}: {problem}", variable.or(first).unwrap_or_default())
        }));
        if problems.is_empty() { Ok(()) } else { Err(SettingsError::Invalid(problems)) }
    }
}

fn read_checked(path: &Path) -> Result<String, SettingsError> {
    let text = std::fs::read_to_string(path)
        .map_err(|error| SettingsError::Read { path: path.to_owned(), error })?;
    let table: toml::Table = toml::from_str(&text)
        .map_err(|error| SettingsError::Parse { path: path.to_owned(), message: without_secrets(&error) })?;
    let problems: Vec<String> = KNOWN_KEYS
        .check(&table, Source::File)
        .into_iter()
        .map(|problem| format!("{}: {problem}", path.display()))
        .collect();
    if problems.is_empty() { Ok(text) } else { Err(SettingsError::Invalid(problems)) }
}

/// A syntax error without the line it is in: the line may be the one with the password.
fn without_secrets(error: &toml::de::Error) -> String {
    let place = error.to_string().lines().next().unwrap_or_default().to_owned();
    format!("{place}: {}", error.message())
}

/// Every variable with our prefix must name a key and have a value that fits it.
fn check_environment(ours: &BTreeMap<String, String>) -> Result<(), SettingsError> {
    let mut problems = Vec::new();
    for (name, text) in ours {
        let mut value = toml::Value::String(text.clone());
        for key in keys_of(name).into_iter().rev() {
            value = toml::Value::Table(toml::Table::from_iter([(key, value)]));
        }
        let toml::Value::Table(table) = value else { continue };
        let found = KNOWN_KEYS.check(&table, Source::Environment);
        problems.extend(found.into_iter().map(|problem| format!("{name}: {problem}")));
    }
    if problems.is_empty() { Ok(()) } else { Err(SettingsError::Invalid(problems)) }
}

/// The keys that a variable names, from the section down.
fn keys_of(variable: &str) -> Vec<String> {
    variable.split("__").skip(1).map(str::to_ascii_lowercase).collect()
}

/// The list in a variable whose key takes one.
fn list(keys: &[String], text: &str) -> Option<Vec<String>> {
    let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
    let Kind::Texts = KNOWN_KEYS.kind_of(&keys)? else { return None };
    known_keys::texts(text)
}

/// The environment variable that sets a key.
fn variable(key: &str) -> String {
    format!("{ENVIRONMENT_PREFIX}__{}", key.replace('.', "__").to_ascii_uppercase())
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) fn load(text: &str, environment: &[(&str, &str)]) -> Result<Settings, String> {
        let file = tempfile::Builder::new().suffix(".toml").tempfile().unwrap();
        std::fs::write(file.path(), text).unwrap();
        let overrides = Overrides { config: Some(file.path().to_owned()), database_url: None };
        let environment =
            environment.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        Settings::load(&overrides, &environment)
            .map_err(|error| error.to_string().replace(&file.path().display().to_string(), "backfilld.toml"))
    }

    #[test]
    fn the_environment_overrides_the_file() {
        let settings = load(
            "[daemon]\nname = 'one'\nlease = '5s'\n[http]\nlisten = '127.0.0.1:1'\n",
            &[("BACKFILLD__DAEMON__NAME", "two"), ("BACKFILLD__DATABASE__POOL_SIZE", "20")],
        )
        .unwrap();
        assert_eq!(settings.daemon.name(), "two");
        assert_eq!(settings.daemon.lease, Duration::from_secs(5));
        assert_eq!(settings.database.pool_size, 20);
    }

    #[test]
    fn the_shipped_configuration_is_the_default() {
        let shipped = load(include_str!("../../config/backfilld.toml"), &[]).unwrap();
        assert_eq!(format!("{shipped:?}"), format!("{:?}", Settings::default()));
    }

    #[test]
    fn unknown_keys_are_refused_wherever_they_come_from() {
        assert_eq!(
            load("[deamon]\nname = 'x'\n", &[]).unwrap_err(),
            "backfilld.toml: unknown key deamon: did you mean daemon?"
        );
        assert_eq!(
            load("[http]\nlistne = 'x'\n", &[]).unwrap_err(),
            "backfilld.toml: unknown key http.listne: did you mean listen?"
        );
        assert_eq!(
            load("", &[("BACKFILLD__LOG__LEVLE", "debug")]).unwrap_err(),
            "BACKFILLD__LOG__LEVLE: unknown key log.levle: did you mean level?"
        );
    }

    #[test]
    fn a_wrong_value_is_told_with_its_key() {
        assert_eq!(
            load("[daemon]\nmax_running_jobs = 'many'\n", &[]).unwrap_err(),
            "backfilld.toml: daemon.max_running_jobs must be a whole number, 0 or more"
        );
        let told = load("", &[("BACKFILLD__DAEMON__LEASE", "soon")]).unwrap_err();
        assert!(told.starts_with("BACKFILLD__DAEMON__LEASE: daemon.lease must be a duration"), "{told}");
        let told = load("", &[("BACKFILLD__DAEMON__LEASE", "1ms")]).unwrap_err();
        assert!(told.starts_with("BACKFILLD__DAEMON__LEASE: daemon.lease must be from"), "{told}");
        assert_eq!(
            load("[log]\nformat = 'xml'\n", &[]).unwrap_err(),
            "backfilld.toml: log.format must be one of \"text\", \"json\""
        );
    }

    #[test]
    fn no_message_repeats_the_url() {
        let told = load("[database]\nurl = 'postgres://u:hunter2@h/d\n", &[]).unwrap_err();
        assert!(!told.contains("hunter2"), "{told}");
        let settings = load("[database]\nurl = 'postgres://u:hunter2@h/d'\n", &[]).unwrap();
        assert!(!format!("{settings:?}").contains("hunter2"));
    }
}
