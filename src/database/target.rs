//! Which database, and connections to it.

use std::env;
use std::fmt;
use std::str::FromStr as _;
use std::time::Duration;

use deadpool_postgres::{
    Manager, ManagerConfig, Object, Pool, PoolError, QueueMode, RecyclingMethod, Runtime,
};
use futures_util::future::poll_fn;
use tokio::sync::mpsc;
use tokio_postgres::config::{Host, SslMode};
use tokio_postgres::{AsyncMessage, Client, Config, NoTls};

use super::failure::{Failure, describe};
use super::repeated::Pooler;

/// How long one attempt to connect may take before it counts as failed.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long sent data may stay unacknowledged: a host that vanished is noticed within this.
const TCP_USER_TIMEOUT: Duration = Duration::from_secs(20);

/// No statement on the state waits for a lock, runs, or leaves a transaction open for longer. And the
/// server notices a client's host that vanished, which would else be a live session for two hours.
const SESSION_OPTIONS: &str = "-c lock_timeout=10s -c statement_timeout=60s -c idle_in_transaction_session_timeout=60s \
     -c tcp_keepalives_idle=10 -c tcp_keepalives_interval=5 -c tcp_keepalives_count=3";

/// A database address that could not be understood.
#[derive(Debug, thiserror::Error)]
pub enum TargetError {
    /// The URL does not parse. The URL itself is left out: it may hold a password.
    #[error(
        "database.url is not a PostgreSQL URL ({0}): write postgres://USER@HOST:PORT/DATABASE or 'host=... dbname=...'"
    )]
    Url(String),
    /// A part of the URL has a character that ends it. What follows may be the rest of a password.
    #[error(
        "database.url has an @, / or ? where its user or password should be: percent-encode it there (%40, %2F, %3F)"
    )]
    NotEncoded,
    /// A libpq variable holds something else than it should.
    #[error("the environment variable {0} is not valid: {1}")]
    Variable(&'static str, String),
    /// TLS was asked for and is not there yet.
    #[error(
        "TLS (sslmode=require, verify-ca, verify-full) is not supported by this version (backfilld {version}): use sslmode=disable or prefer over a trusted network, or a local proxy that speaks TLS",
        version = env!("CARGO_PKG_VERSION")
    )]
    Tls,
    /// Nothing says which database to use.
    #[error(
        "no database is configured: give --database-url, or set database.url in the configuration file, DATABASE_URL, or the libpq variables (PGHOST, PGDATABASE, ...)"
    )]
    Missing,
}

/// A connection that could not be had.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The server was not reached or refused the connection.
    #[error("cannot connect to {target}: {reason}{advice}")]
    Refused {
        /// The database, without secrets.
        target: String,
        /// What the server or the network said.
        reason: String,
        /// What to do, with its leading separator.
        advice: &'static str,
        /// Whether trying again later may help.
        transient: bool,
    },
    /// Every connection of the pool was in use for too long.
    #[error("no free connection in the pool of {0}: raise database.pool_size")]
    PoolExhausted(String),
}

impl ConnectError {
    /// Whether the same attempt may succeed later without anybody changing anything.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Refused { transient, .. } => *transient,
            Self::PoolExhausted(_) => true,
        }
    }
}

/// Where the database is and how to log in. Its `Display` names host, port, database and user, and
/// never the password.
#[derive(Clone)]
pub struct Target {
    config: Config,
    pooler: Pooler,
}

impl Target {
    /// Reads a URL or a key=value string; without one, the variables of libpq.
    pub fn from_settings(url: Option<&str>) -> Result<Self, TargetError> {
        let mut config = match url {
            Some(url) => parse(url)?,
            None => Config::new(),
        };
        fill_from_libpq_variables(&mut config, url.is_none())?;
        if config.get_hosts().is_empty() && config.get_hostaddrs().is_empty() {
            return Err(TargetError::Missing);
        }
        if config.get_ssl_mode() == SslMode::Require {
            return Err(TargetError::Tls);
        }
        if config.get_application_name().is_none() {
            config.application_name("backfilld");
        }
        if config.get_connect_timeout().is_none() {
            config.connect_timeout(CONNECT_TIMEOUT);
        }
        if config.get_tcp_user_timeout().is_none() {
            config.tcp_user_timeout(TCP_USER_TIMEOUT);
        }
        // A host that vanishes while it owes us an answer is noticed within half a minute.
        config.keepalives_idle(Duration::from_secs(10));
        config.keepalives_interval(Duration::from_secs(5));
        config.keepalives_retries(3);
        Ok(Self { config, pooler: Pooler::None })
    }

    /// The same address, of a pooler or of the server itself.
    #[must_use]
    pub fn behind(self, pooler: Pooler) -> Self {
        Self { pooler, ..self }
    }

    /// What stands between here and the server.
    #[must_use]
    pub fn pooler(&self) -> Pooler {
        self.pooler
    }

    /// How a session begins.
    fn session(&self) -> Config {
        let mut config = self.config.clone();
        // A pooler passes no options on, and refuses a client that sends some.
        if self.pooler == Pooler::None {
            // Bounds for every statement that sets none of its own; the user's own options come last and win.
            let own = config.get_options().unwrap_or_default().to_owned();
            config.options(format!("{SESSION_OPTIONS} {own}").trim_end());
        }
        config
    }

    /// Opens one connection of its own, outside any pool.
    pub async fn connect(&self) -> Result<Client, ConnectError> {
        let (client, connection) =
            self.session().connect(NoTls).await.map_err(|error| self.refused(&error))?;
        // The task ends by itself when the client is dropped or the connection breaks; whoever
        // holds the client sees the error there.
        tokio::spawn(connection);
        Ok(client)
    }

    /// Opens a connection that listens on `channel`. Every notification is a message on the
    /// receiver; the receiver closes when the connection does.
    pub async fn listen(&self, channel: &str) -> Result<(Client, mpsc::Receiver<()>), ConnectError> {
        let (client, mut connection) =
            self.session().connect(NoTls).await.map_err(|error| self.refused(&error))?;
        // One waiting wake-up is as good as many.
        let (wake, woken) = mpsc::channel(1);
        tokio::spawn(async move {
            while let Some(Ok(message)) = poll_fn(|context| connection.poll_message(context)).await {
                if let AsyncMessage::Notification(_) = message {
                    let _ = wake.try_send(());
                }
            }
        });
        client
            .batch_execute(&format!("LISTEN {}", super::identifier(channel)))
            .await
            .map_err(|error| self.refused(&error))?;
        Ok((client, woken))
    }

    fn refused(&self, error: &tokio_postgres::Error) -> ConnectError {
        let code = error.code().map_or("", |state| state.code());
        let advice = match code {
            "28P01" | "28000" => ": check the user and the password, and pg_hba.conf on the server",
            "3D000" => ": create the database, or correct its name in database.url",
            "53300" => ": raise max_connections on the server, or lower database.pool_size",
            // What PgBouncer says of a session's options.
            "08P01" if describe(error).contains("startup parameter") => {
                ": if this is a pooler in transaction mode, set database.pooler = \"transaction\""
            }
            "" => ": check host and port, and that the server runs",
            _ => "",
        };
        // A missing password is found by the client and has no SQLSTATE.
        let missing_password = code.is_empty() && describe(error).contains("password");
        ConnectError::Refused {
            target: self.to_string(),
            reason: describe(error),
            advice: if missing_password { ": give a password in the URL or in PGPASSWORD" } else { advice },
            transient: !missing_password
                && matches!(Failure::of(error), Failure::Connection | Failure::Resources),
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hosts: Vec<String> = self
            .config
            .get_hosts()
            .iter()
            .enumerate()
            .map(|(index, host)| {
                let ports = self.config.get_ports();
                let port = ports.get(index).or(ports.first()).copied().unwrap_or(5432);
                match host {
                    Host::Tcp(name) => format!("{name}:{port}"),
                    Host::Unix(path) => format!("{}:{port}", path.display()),
                }
            })
            .collect();
        let user = self.config.get_user().unwrap_or("(system user)");
        let database = self.config.get_dbname().unwrap_or(user);
        write!(out, "database \"{database}\" on {} as \"{user}\"", hosts.join(","))
    }
}

impl fmt::Debug for Target {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "Target({self})")
    }
}

fn parse(url: &str) -> Result<Config, TargetError> {
    // Said before anything is parsed, so that no piece of a password is taken for a host, a
    // database or an option, and repeated in a message.
    if let Some((_, rest)) = url.split_once("://") {
        let before_at = rest.rsplit_once('@').map(|(before, _)| before);
        if before_at.is_some_and(|before| before.contains(['@', '/', '?', '#'])) {
            return Err(TargetError::NotEncoded);
        }
    }
    Config::from_str(url).map_err(|error| {
        let told = describe(&error);
        // The driver does not know verify-ca and verify-full, and so takes them for mistakes.
        if told.contains("sslmode") { TargetError::Tls } else { TargetError::Url(told) }
    })
}

/// Takes from the environment what the URL left open, as libpq does.
fn fill_from_libpq_variables(config: &mut Config, alone: bool) -> Result<(), TargetError> {
    let variable = |name: &str| env::var(name).ok().filter(|value| !value.is_empty());
    if config.get_hosts().is_empty() {
        match variable("PGHOST") {
            Some(host) => {
                config.host(host);
            }
            // Any one of the others says that libpq's defaults are meant.
            None if !alone || variable("PGDATABASE").is_some() || variable("PGUSER").is_some() => {
                config.host("localhost");
            }
            None => {}
        }
    }
    let mode = variable("PGSSLMODE");
    if mode.is_some_and(|mode| ["require", "verify-ca", "verify-full"].contains(&mode.as_str())) {
        return Err(TargetError::Tls);
    }
    if config.get_ports().is_empty()
        && let Some(port) = variable("PGPORT")
    {
        config.port(port.parse().map_err(|_| TargetError::Variable("PGPORT", port.clone()))?);
    }
    if config.get_user().is_none()
        && let Some(user) = variable("PGUSER").or_else(|| variable("USER"))
    {
        config.user(user);
    }
    if config.get_dbname().is_none()
        && let Some(name) = variable("PGDATABASE")
    {
        config.dbname(name);
    }
    if config.get_password().is_none()
        && let Some(password) = variable("PGPASSWORD")
    {
        config.password(password);
    }
    Ok(())
}

/// A pool of connections to one target.
#[derive(Clone)]
pub struct Database {
    target: Target,
    pool: Pool,
}

impl Database {
    /// Prepares a pool of at most `pool_size` connections. Nothing is connected yet.
    #[must_use]
    pub fn new(target: Target, pool_size: usize) -> Self {
        let manager = Manager::from_config(
            target.session(),
            NoTls,
            ManagerConfig { recycling_method: RecyclingMethod::Fast },
        );
        let pool = Pool::builder(manager)
            .max_size(pool_size)
            // The connection that was used last is the one whose server process is warm.
            .queue_mode(QueueMode::Lifo)
            .wait_timeout(Some(CONNECT_TIMEOUT))
            .create_timeout(Some(CONNECT_TIMEOUT))
            .recycle_timeout(Some(CONNECT_TIMEOUT))
            .runtime(Runtime::Tokio1)
            .build()
            .expect("a runtime is given, which is all that a pool with timeouts needs");
        Self { target, pool }
    }

    /// The address that the pool connects to.
    #[must_use]
    pub fn target(&self) -> &Target {
        &self.target
    }

    /// Drops the connections that are not in use, whatever state they are in.
    pub fn discard_idle(&self) {
        self.pool.retain(|_, _| false);
    }

    /// Takes a connection from the pool.
    ///
    /// Whoever is unsure of its state afterwards must drop it with [`Object::take`], not hand it back.
    pub async fn get(&self) -> Result<Object, ConnectError> {
        self.pool.get().await.map_err(|error| match error {
            PoolError::Backend(error) => self.target.refused(&error),
            PoolError::Timeout(deadpool_postgres::TimeoutType::Wait) => {
                ConnectError::PoolExhausted(self.target.to_string())
            }
            other => ConnectError::Refused {
                target: self.target.to_string(),
                reason: other.to_string(),
                advice: ": check host and port, and that the server runs",
                transient: true,
            },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_never_shows_its_password() {
        let target = Target::from_settings(Some("postgres://app:hunter2@db.internal:6432/shop")).unwrap();
        let shown = format!("{target} {target:?}");
        assert_eq!(target.to_string(), "database \"shop\" on db.internal:6432 as \"app\"");
        assert!(!shown.contains("hunter2"));
    }

    #[test]
    fn a_bad_url_is_refused_without_being_repeated() {
        let error = Target::from_settings(Some("mysql://app:hunter2@db/shop")).unwrap_err().to_string();
        assert!(error.contains("database.url"), "{error}");
        assert!(!error.contains("hunter2"), "{error}");
    }

    #[test]
    fn a_password_that_is_not_encoded_is_not_taken_apart() {
        for url in [
            "postgres://app:x@hunter2@h/d",
            "postgres://app:x/hunter2@h/d",
            "postgres://app:x?hunter2=1@h/d",
            "postgres://app:x@y?hunter2=z@h/d",
        ] {
            let error = Target::from_settings(Some(url)).unwrap_err();
            assert!(matches!(error, TargetError::NotEncoded), "{url}: {error}");
        }
        assert!(Target::from_settings(Some("postgres://app:x%40y@h/d")).is_ok());
    }

    #[test]
    fn tls_is_refused_by_name_rather_than_ignored() {
        for mode in ["require", "verify-ca", "verify-full"] {
            let error =
                Target::from_settings(Some(&format!("postgres://db/shop?sslmode={mode}"))).unwrap_err();
            assert!(matches!(error, TargetError::Tls), "{mode}: {error}");
        }
    }
}
