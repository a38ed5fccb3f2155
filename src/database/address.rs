//! The address of a database: what a URL or a key=value string says, filled up from the configuration
//! and the variables of libpq.

use std::env;
use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::str::FromStr as _;
use std::sync::OnceLock;
use std::sync::atomic::AtomicUsize;
use std::time::Duration;

use secrecy::SecretString;
use tokio_postgres::Config;
use tokio_postgres::config::{Host, LoadBalanceHosts, SslNegotiation, TargetSessionAttrs};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::failure::describe;
use super::parameters::{self, Taken};
use super::password::{Login, Passwords};
use super::repeated::Pooler;
use super::secret_file::SecretFileError;
use super::tls::{self, Roots, RootsError, SslMode};

/// How long sent data may stay unacknowledged: a host that vanished is noticed within this.
const TCP_USER_TIMEOUT: Duration = Duration::from_secs(20);

/// No statement on the state waits for a lock, runs, or leaves a transaction open for longer. And the
/// server notices a client's host that vanished, which would else be a live session for two hours. Without JIT, which
/// takes longer for the view `status` over a hundred jobs than the view does.
const SESSION_OPTIONS: &str = "-c jit=off -c lock_timeout=10s -c statement_timeout=60s -c idle_in_transaction_session_timeout=60s \
     -c tcp_keepalives_idle=10 -c tcp_keepalives_interval=5 -c tcp_keepalives_count=3";

/// Parameters that are read here and not by the driver.
const OWN_PARAMETERS: &[&str] = &["sslmode", "sslrootcert", "target_session_attrs", "passfile"];

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
    /// A parameter of the URL holds something else than it should.
    #[error("database.url has {name}={value}: it must be one of {choice}")]
    Parameter {
        /// The parameter.
        name: &'static str,
        /// What it holds.
        value: String,
        /// What it may hold.
        choice: String,
    },
    /// A libpq variable holds something else than it should.
    #[error("the environment variable {0} is not valid: {1}")]
    Variable(&'static str, String),
    /// The system's authorities sign for everybody: a certificate of theirs says nothing without its name.
    #[error("sslrootcert=system needs sslmode=verify-full, and it is {0}")]
    WeakMode(&'static str),
    /// TLS from the first byte on, where none is asked for.
    #[error("sslnegotiation=direct needs sslmode=require or more")]
    DirectNegotiation,
    /// A root certificate that nothing would be checked against.
    #[error(
        "database.ssl_root_cert is set and sslmode is not, so nothing would be checked: set database.sslmode = \"verify-full\""
    )]
    NoMode,
    /// Trusted certificates cannot be had.
    #[error(transparent)]
    Roots(#[from] RootsError),
    /// The password file cannot be used.
    #[error(transparent)]
    PasswordFile(#[from] SecretFileError),
    /// Nothing says which database to use.
    #[error(
        "no database is configured: give --database-url, or set database.url in the configuration file, DATABASE_URL, or the libpq variables (PGHOST, PGDATABASE, ...)"
    )]
    Missing,
}

/// How to log in wherever the URL does not say: the configuration's part.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Access {
    /// `database.password_file`
    pub password_file: Option<PathBuf>,
    /// `database.sslmode`
    pub ssl_mode: Option<SslMode>,
    /// `database.ssl_root_cert`
    pub ssl_root_cert: Option<PathBuf>,
    /// `database.pooler`
    pub pooler: Pooler,
}

/// What a server must be for an address of several hosts that does not say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    /// Writes go there.
    Primary,
    /// It is looked at, whatever it is.
    Any,
}

/// Where one server is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) host: Host,
    /// Connected to in place of what the host's name resolves to.
    pub(super) address: Option<IpAddr>,
    pub(super) port: u16,
}

/// A database's address, complete.
pub(super) struct Address {
    pub(super) places: Vec<Place>,
    /// All but places and password.
    pub(super) options: Config,
    pub(super) passwords: Passwords,
    pub(super) ssl_mode: SslMode,
    pub(super) roots: Roots,
    pub(super) pooler: Pooler,
    /// Which of the places was connected to last.
    pub(super) last_place: AtomicUsize,
    /// Made when it is first needed, since it reads files.
    tls: OnceLock<MakeRustlsConnect>,
}

impl Address {
    /// Reads a URL or a key=value string; without one, the variables of libpq.
    pub(super) fn new(url: Option<&str>, access: &Access, role: Role) -> Result<Self, TargetError> {
        let (mut config, taken) = match url {
            Some(url) => parse(url)?,
            None => (Config::new(), Taken::new()),
        };
        fill_from_libpq_variables(&mut config, url.is_none())?;
        let places = places(&config)?;
        let (ssl_mode, roots) = ssl(&taken, access)?;
        if config.get_ssl_negotiation() == SslNegotiation::Direct && ssl_mode < SslMode::Require {
            return Err(TargetError::DirectNegotiation);
        }
        // Servers that are only looked at are looked at themselves.
        let pooler = if role == Role::Primary { access.pooler } else { Pooler::None };
        let mut options = without_places(&config, pooler);
        match session_attributes(&taken)? {
            Some(wanted) => options.target_session_attrs(wanted),
            // Of several servers one is the primary.
            None if role == Role::Primary && places.len() > 1 => {
                options.target_session_attrs(TargetSessionAttrs::ReadWrite)
            }
            None => &mut options,
        };
        let of_url = config.get_password().map(|password| String::from_utf8_lossy(password).into_owned());
        let passfile = last(&taken, "passfile").map(PathBuf::from);
        let passwords =
            Passwords::new(of_url.map(SecretString::from), access.password_file.clone(), passfile);
        Ok(Self {
            places,
            options,
            passwords,
            ssl_mode,
            roots,
            pooler,
            last_place: AtomicUsize::new(0),
            tls: OnceLock::new(),
        })
    }

    /// What opens TLS over a connection to here.
    pub(super) fn connector(&self) -> Result<MakeRustlsConnect, RootsError> {
        if let Some(made) = self.tls.get() {
            return Ok(made.clone());
        }
        let made = tls::connector(self.ssl_mode, &self.roots)?;
        Ok(self.tls.get_or_init(|| made).clone())
    }

    /// The password for one of the servers.
    pub(super) fn password(&self, place: &Place) -> Result<Option<SecretString>, SecretFileError> {
        let address = place.address.map(|address| address.to_string());
        let host = match &place.host {
            Host::Tcp(name) => name.as_str(),
            Host::Unix(path) => path.to_str().unwrap_or_default(),
        };
        let host = if host.is_empty() { address.as_deref().unwrap_or_default() } else { host };
        let user = self.options.get_user().unwrap_or_default();
        self.passwords.find(Login { host, port: place.port, database: self.database(), user })
    }

    /// The database's name, which is the user's unless given.
    pub(super) fn database(&self) -> &str {
        self.options.get_dbname().or(self.options.get_user()).unwrap_or_default()
    }

    /// Servers and database, without whoever logs in.
    pub(super) fn place(&self) -> String {
        let places: Vec<String> = self.places.iter().map(ToString::to_string).collect();
        format!("{}/{}", places.join(","), self.database())
    }

    /// Whether this and `other` are the same database on the same servers, however one logs in.
    pub(super) fn is_same_place(&self, other: &Self) -> bool {
        self.places == other.places && self.database() == other.database()
    }
}

impl fmt::Display for Address {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let places: Vec<String> = self.places.iter().map(ToString::to_string).collect();
        let user = self.options.get_user().unwrap_or("(system user)");
        let database = self.options.get_dbname().unwrap_or(user);
        write!(out, "database \"{database}\" on {} as \"{user}\"", places.join(","))
    }
}

impl fmt::Display for Place {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.host {
            Host::Tcp(name) => write!(out, "{name}:{}", self.port),
            Host::Unix(path) => write!(out, "{}:{}", path.display(), self.port),
        }
    }
}

fn parse(url: &str) -> Result<(Config, Taken), TargetError> {
    // Said before anything is parsed, so that no piece of a password is taken for a host, a
    // database or an option, and repeated in a message.
    let is_url = url.starts_with("postgres://") || url.starts_with("postgresql://");
    let rest = url.split_once("://").map_or("", |(_, rest)| rest);
    if is_url {
        let before_at = rest.rsplit_once('@').map(|(before, _)| before);
        if before_at.is_some_and(|before| before.contains(['@', '/', '?', '#'])) {
            return Err(TargetError::NotEncoded);
        }
    }
    let (rest, taken) = parameters::take(url, OWN_PARAMETERS);
    let config = Config::from_str(&rest).map_err(|error| {
        // The driver names an option that it does not know: here it may be the end of a password with a blank in it.
        let told = if url.contains("://") { describe(&error) } else { "it cannot be read".to_owned() };
        TargetError::Url(told)
    })?;
    Ok((config, taken))
}

/// The last of the parameters of this name, as libpq has it.
fn last<'a>(taken: &'a Taken, name: &str) -> Option<&'a str> {
    let found = taken.iter().rev().find(|(taken, _)| taken == name)?;
    Some(found.1.as_str()).filter(|value| !value.is_empty())
}

/// The mode of TLS and who is trusted: the URL, else the configuration, else libpq's variables.
fn ssl(taken: &Taken, access: &Access) -> Result<(SslMode, Roots), TargetError> {
    let choice = || SslMode::NAMES.join(", ");
    let of_url = last(taken, "sslmode")
        .map(|value| {
            value.parse().map_err(|()| TargetError::Parameter {
                name: "sslmode",
                value: value.to_owned(),
                choice: choice(),
            })
        })
        .transpose()?;
    let of_variable = || {
        variable("PGSSLMODE")
            .map(|value| {
                let told = format!("{value}; it must be one of {}", choice());
                value.parse().map_err(|()| TargetError::Variable("PGSSLMODE", told))
            })
            .transpose()
    };
    let mode = match of_url.or(access.ssl_mode) {
        Some(mode) => Some(mode),
        None => of_variable()?,
    };
    let roots = if let Some(path) = last(taken, "sslrootcert") {
        Roots::given("sslrootcert in the URL", path.as_ref())
    } else if let Some(path) = &access.ssl_root_cert {
        if mode.is_none() && path.as_os_str() != "system" {
            return Err(TargetError::NoMode);
        }
        Roots::given("database.ssl_root_cert", path)
    } else if let Some(path) = variable("PGSSLROOTCERT") {
        Roots::given("PGSSLROOTCERT", path.as_ref())
    } else {
        Roots::Default
    };
    let mode = match (mode, &roots) {
        (Some(mode), Roots::System) if mode < SslMode::VerifyFull => {
            return Err(TargetError::WeakMode(mode.name()));
        }
        (None, Roots::System) => SslMode::VerifyFull,
        (mode, _) => mode.unwrap_or_default(),
    };
    Ok((mode, roots))
}

fn session_attributes(taken: &Taken) -> Result<Option<TargetSessionAttrs>, TargetError> {
    const NAME: &str = "target_session_attrs";
    Ok(Some(match last(taken, NAME) {
        None => return Ok(None),
        Some("any") => TargetSessionAttrs::Any,
        // A primary that takes no writes is of no use here.
        Some("read-write" | "primary") => TargetSessionAttrs::ReadWrite,
        Some("read-only" | "standby") => TargetSessionAttrs::ReadOnly,
        Some(value) => {
            return Err(TargetError::Parameter {
                name: NAME,
                value: value.to_owned(),
                choice: "any, read-write, read-only, primary, standby".to_owned(),
            });
        }
    }))
}

fn places(config: &Config) -> Result<Vec<Place>, TargetError> {
    let (hosts, addresses, ports) = (config.get_hosts(), config.get_hostaddrs(), config.get_ports());
    let count = hosts.len().max(addresses.len());
    if count == 0 {
        return Err(TargetError::Missing);
    }
    if !hosts.is_empty() && !addresses.is_empty() && hosts.len() != addresses.len() {
        return Err(TargetError::Url("there must be as many hosts as hostaddrs".to_owned()));
    }
    if ports.len() > 1 && ports.len() != count {
        return Err(TargetError::Url("there must be one port, or as many as hosts".to_owned()));
    }
    Ok((0..count)
        .map(|index| {
            let address = addresses.get(index).copied();
            let named = address.map(|address| Host::Tcp(address.to_string()));
            Place {
                host: hosts.get(index).cloned().or(named).expect("there are so many hosts or addresses"),
                address,
                port: ports.get(index).or(ports.first()).copied().unwrap_or(5432),
            }
        })
        .collect())
}

/// What holds for every server of the address. What the URL leaves open is set as a daemon needs it.
fn without_places(given: &Config, pooler: Pooler) -> Config {
    let mut config = Config::new();
    if let Some(user) = given.get_user() {
        config.user(user);
    }
    if let Some(name) = given.get_dbname() {
        config.dbname(name);
    }
    let own = given.get_options().unwrap_or_default();
    if pooler == Pooler::None {
        // Bounds for every statement that sets none of its own; the user's own options come last and win.
        config.options(format!("{SESSION_OPTIONS} {own}").trim_end());
    } else if !own.is_empty() {
        // A pooler passes no options on, and refuses a client that sends some, unless it is told to ignore them.
        config.options(own);
    }
    config.application_name(given.get_application_name().unwrap_or("backfilld"));
    config.ssl_negotiation(given.get_ssl_negotiation());
    config.channel_binding(given.get_channel_binding());
    if given.get_load_balance_hosts() == LoadBalanceHosts::Random {
        config.load_balance_hosts(LoadBalanceHosts::Random);
    }
    if let Some(timeout) = given.get_connect_timeout() {
        config.connect_timeout(*timeout);
    }
    config.tcp_user_timeout(given.get_tcp_user_timeout().copied().unwrap_or(TCP_USER_TIMEOUT));
    // A host that vanishes while it owes us an answer is noticed within half a minute.
    config.keepalives_idle(Duration::from_secs(10));
    config.keepalives_interval(Duration::from_secs(5));
    config.keepalives_retries(3);
    config
}

fn variable(name: &str) -> Option<String> {
    env::var(name).ok().filter(|value| !value.is_empty())
}

/// Takes from the environment what the URL left open, as libpq does.
fn fill_from_libpq_variables(config: &mut Config, alone: bool) -> Result<(), TargetError> {
    if config.get_hosts().is_empty() && config.get_hostaddrs().is_empty() {
        match variable("PGHOST") {
            Some(hosts) => {
                for host in hosts.split(',') {
                    config.host(host);
                }
            }
            // Any one of the others says that libpq's defaults are meant.
            None if !alone || variable("PGDATABASE").is_some() || variable("PGUSER").is_some() => {
                config.host("localhost");
            }
            None => {}
        }
    }
    if config.get_ports().is_empty()
        && let Some(ports) = variable("PGPORT")
    {
        for port in ports.split(',') {
            config.port(port.parse().map_err(|_| TargetError::Variable("PGPORT", ports.clone()))?);
        }
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
    Ok(())
}
