//! Connecting: one server after the other, each within a time of its own, by TLS as the address asks.

use std::fmt::Write as _;
use std::net::IpAddr;
use std::sync::atomic::Ordering;
use std::time::Duration;

use secrecy::{ExposeSecret as _, SecretString};
use tokio_postgres::config::{Host, LoadBalanceHosts, SslMode as DriverMode};
use tokio_postgres::tls::MakeTlsConnect;
use tokio_postgres::{Client, Config, Connection, Error, Socket};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::address::{Address, Place, TargetError};
use super::failure::{Failure, describe};
use super::generation::Generation;
use super::tls::{self, SslMode};

/// How long one attempt to connect may take before it counts as failed.
pub(super) const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// The same where other servers wait for their turn, unless the address says `connect_timeout`.
const CONNECT_TIMEOUT_OF_SEVERAL: Duration = Duration::from_secs(3);

const CHECK_HOST: &str = ": check host and port, and that the server runs";
const NAME_THE_PRIMARY: &str = ": it is a replica or set to be read-only (name the primary in the address)";
// What PgBouncer says of a session's options.
const SET_POOLER: &str = ": if this is a pooler in transaction mode, set database.pooler = \"transaction\"";

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
        advice: String,
        /// It may pass by itself: no server was reached, or one that is starting, stopping, full or read-only.
        may_pass: bool,
    },
    /// What is needed to log in cannot be had: a file is missing.
    #[error("cannot connect to {target}: {error}")]
    Access {
        /// The database, without secrets.
        target: String,
        /// What is missing.
        error: TargetError,
    },
    /// Every connection of the pool was in use for too long.
    #[error("no free connection in the pool of {0}: raise database.pool_size")]
    PoolExhausted(String),
}

impl ConnectError {
    /// Whether the same attempt may succeed later with nobody changing anything here.
    #[must_use]
    pub fn may_pass(&self) -> bool {
        match self {
            Self::Refused { may_pass, .. } => *may_pass,
            Self::Access { .. } => false,
            Self::PoolExhausted(_) => true,
        }
    }
}

/// What drives a connection when it is polled.
pub(super) type Driver = Connection<Socket, <MakeRustlsConnect as MakeTlsConnect<Socket>>::Stream>;

/// A connection as the driver makes it.
type Opened = (Client, Driver);

/// Why one server was not it.
struct Attempt {
    place: String,
    reason: String,
    advice: String,
    may_pass: bool,
}

/// Connects to the first server of `address` that takes us.
pub(super) async fn open(address: &Address) -> Result<Opened, ConnectError> {
    let no_access = |error: TargetError| ConnectError::Access { target: address.to_string(), error };
    let connector = address.connector().map_err(|error| no_access(error.into()))?;
    let mut places: Vec<(usize, &Place)> = address.places.iter().enumerate().collect();
    // Who was it the last time is likely to be it now, and the others may take seconds to say nothing.
    places.rotate_left(address.last_place.load(Ordering::Relaxed));
    let shuffled = address.options.get_load_balance_hosts() == LoadBalanceHosts::Random;
    if shuffled {
        fastrand::shuffle(&mut places);
    }
    let mut attempts = Vec::new();
    for (number, place) in places {
        let password = address.password(place).map_err(|error| no_access(error.into()))?;
        let mut addresses = match resolve(place, within(address, 1)).await {
            Ok(addresses) => addresses,
            Err(reason) => {
                attempts.push(Attempt::told(place, reason));
                continue;
            }
        };
        if shuffled {
            fastrand::shuffle(&mut addresses);
        }
        let within = within(address, addresses.len());
        for ip in addresses {
            let config = config(address, place, ip, password.as_ref(), within);
            match tokio::time::timeout(within, log_in(address, config, &connector)).await {
                Ok(Ok(opened)) => {
                    address.last_place.store(number, Ordering::Relaxed);
                    return Ok(opened);
                }
                Ok(Err(error)) => attempts.push(Attempt::failed(address, place, &error)),
                Err(_) => attempts.push(Attempt::told(place, format!("no answer within {within:?}"))),
            }
        }
    }
    Err(told(address, &attempts))
}

/// How long one server may take, of so many that a name stands for.
fn within(address: &Address, count: usize) -> Duration {
    let count = u32::try_from(count.max(1)).unwrap_or(u32::MAX);
    match address.options.get_connect_timeout() {
        Some(given) => *given,
        None if address.places.len() > 1 => CONNECT_TIMEOUT_OF_SEVERAL,
        None => (CONNECT_TIMEOUT / count).max(CONNECT_TIMEOUT_OF_SEVERAL),
    }
}

/// The addresses behind a host's name: each is tried within a time of its own. None: it needs no address.
async fn resolve(place: &Place, within: Duration) -> Result<Vec<Option<IpAddr>>, String> {
    let name = match &place.host {
        Host::Tcp(name) if place.address.is_none() => name,
        _ => return Ok(vec![place.address]),
    };
    let found = match tokio::time::timeout(within, tokio::net::lookup_host((name.as_str(), place.port))).await
    {
        Ok(found) => found.map_err(|error| format!("error connecting to server: {error}"))?,
        Err(_) => return Err(format!("the name was not resolved within {within:?}")),
    };
    let addresses: Vec<_> = found.map(|socket| Some(socket.ip())).collect();
    if addresses.is_empty() { Err("the name has no address".to_owned()) } else { Ok(addresses) }
}

/// The driver's configuration for one server.
fn config(
    address: &Address,
    place: &Place,
    ip: Option<IpAddr>,
    password: Option<&SecretString>,
    within: Duration,
) -> Config {
    let mut config = address.options.clone();
    config.port(place.port).connect_timeout(within);
    match &place.host {
        Host::Tcp(name) => config.host(name),
        Host::Unix(path) => config.host_path(path),
    };
    if let Some(ip) = ip {
        config.hostaddr(ip);
    }
    if let Some(password) = password {
        config.password(password.expose_secret());
    }
    config.ssl_mode(match (address.ssl_mode, &place.host) {
        // As libpq: who can listen on the socket is the file system's to say.
        (SslMode::Disable, _) => DriverMode::Disable,
        // With an address beside it the path is but a name.
        (_, Host::Unix(_)) if place.address.is_none() => DriverMode::Disable,
        (SslMode::Prefer, _) => DriverMode::Prefer,
        (SslMode::Require | SslMode::VerifyCa | SslMode::VerifyFull, _) => DriverMode::Require,
    });
    config
}

/// Connects to one server. Under `prefer` a server that does not let us in by TLS is asked without, as
/// libpq does it.
async fn log_in(
    address: &Address,
    mut config: Config,
    connector: &MakeRustlsConnect,
) -> Result<Opened, Error> {
    let error = match config.connect(connector.clone()).await {
        Ok(opened) => return Ok(opened),
        Err(error) => error,
    };
    let is_about_tls = tls::is_handshake(&error) || error.code().is_some_and(|state| state.code() == "28000");
    if address.ssl_mode != SslMode::Prefer || !is_about_tls || config.get_ssl_mode() == DriverMode::Disable {
        return Err(error);
    }
    config.ssl_mode(DriverMode::Disable);
    config.connect(connector.clone()).await
}

impl Attempt {
    fn told(place: &Place, reason: String) -> Self {
        Self { place: place.to_string(), reason, advice: CHECK_HOST.to_owned(), may_pass: true }
    }

    fn failed(address: &Address, place: &Place, error: &Error) -> Self {
        let advice = advice(address, error);
        let may_pass = may_pass(error, &advice);
        Self { place: place.to_string(), reason: describe(error), advice, may_pass }
    }
}

/// Whether an error is one of a server that is away, or not yet or no longer what it should be.
fn may_pass(error: &Error, advice: &str) -> bool {
    match error.code() {
        // A missing password and certificates have advice of their own.
        None => advice == CHECK_HOST || advice == NAME_THE_PRIMARY,
        Some(_) => {
            advice != SET_POOLER && matches!(Failure::of(error), Failure::Connection | Failure::Resources)
        }
    }
}

/// What to do about an error.
fn advice(address: &Address, error: &Error) -> String {
    if let Some(advice) = tls::advice(error, &address.roots) {
        return advice;
    }
    let code = error.code().map_or("", |state| state.code());
    let told = describe(error);
    let missing_password = code.is_empty() && told.contains("password");
    let advice = match code {
        // A missing password is found by the client and has no SQLSTATE.
        "" if missing_password => {
            ": give a password in database.password_file, PGPASSWORD, PGPASSFILE or the URL"
        }
        "" if told.contains("does not allow writes") => NAME_THE_PRIMARY,
        "28P01" | "28000" => ": check the user and the password, and pg_hba.conf on the server",
        "3D000" => ": create the database, or correct its name in database.url",
        "53300" => ": raise max_connections on the server, or lower database.pool_size",
        "08P01" if told.contains("startup parameter") => SET_POOLER,
        "" => CHECK_HOST,
        _ => "",
    };
    advice.to_owned()
}

/// One error out of those of all servers. What to do stands behind the first server that was reached: it is
/// about that one. Where none was, it is about all of them, and stands last.
fn told(address: &Address, attempts: &[Attempt]) -> ConnectError {
    let reached = attempts.iter().position(|attempt| attempt.advice != CHECK_HOST);
    let mut reason = String::new();
    for (index, attempt) in attempts.iter().enumerate() {
        let separator = if index == 0 { "" } else { "; " };
        let place = if attempts.len() == 1 { String::new() } else { format!("{}: ", attempt.place) };
        let advice = if reached == Some(index) { attempt.advice.as_str() } else { "" };
        let _ = write!(reason, "{separator}{place}{}{advice}", attempt.reason);
    }
    ConnectError::Refused {
        target: address.to_string(),
        reason,
        advice: if reached.is_some() { String::new() } else { CHECK_HOST.to_owned() },
        may_pass: attempts.iter().any(|attempt| attempt.may_pass),
    }
}

/// Which server a new connection is to, if it says so. As it is the connection's first answer, it is waited
/// for no longer than for the connection itself.
pub(super) async fn generation(
    address: &Address,
    client: &Client,
) -> Result<Option<Generation>, ConnectError> {
    let within = within(address, 1);
    match tokio::time::timeout(within, Generation::of(client)).await {
        Ok(Ok(met)) => Ok(met),
        Ok(Err(error)) if error.is_closed() => {
            Err(lost(address, "the server closed the connection".to_owned()))
        }
        Ok(Err(error)) => Err(refused(address, &error)),
        Err(_) => Err(lost(address, format!("logged in, and no answer within {within:?}"))),
    }
}

fn lost(address: &Address, reason: String) -> ConnectError {
    let advice = CHECK_HOST.to_owned();
    ConnectError::Refused { target: address.to_string(), reason, advice, may_pass: true }
}

/// The error of a statement that a new connection begins with.
pub(super) fn refused(address: &Address, error: &Error) -> ConnectError {
    let advice = advice(address, error);
    let may_pass = may_pass(error, &advice);
    ConnectError::Refused { target: address.to_string(), reason: describe(error), advice, may_pass }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::database::Access;
    use crate::database::address::Role;

    #[test]
    fn each_server_has_a_time_of_its_own() {
        let seconds = |url: &str, addresses: usize| {
            let address = Address::new(Some(url), &Access::default(), Role::Primary).unwrap();
            within(&address, addresses).as_secs()
        };
        assert_eq!(seconds("postgres://a/d", 1), 10);
        assert_eq!(seconds("postgres://a/d", 2), 5);
        assert_eq!(seconds("postgres://a/d", 9), 3);
        assert_eq!(seconds("postgres://a,b/d", 1), 3);
        assert_eq!(seconds("postgres://a,b/d?connect_timeout=7", 2), 7);
    }

    #[test]
    fn advice_stands_behind_the_server_that_it_is_about() {
        let address =
            Address::new(Some("postgres://me@one:1,two:2/shop"), &Access::default(), Role::Primary).unwrap();
        let attempt = |place: &str, advice: &str| Attempt {
            place: place.to_owned(),
            reason: format!("no {place}"),
            advice: advice.to_owned(),
            may_pass: false,
        };
        let text = |attempts: &[Attempt]| {
            told(&address, attempts).to_string().rsplit_once("as \"me\": ").unwrap().1.to_owned()
        };
        let (down, full) = (attempt("one", CHECK_HOST), attempt("two", ": make room"));
        assert_eq!(text(&[full, down]), "two: no two: make room; one: no one");
        let down = [attempt("one", CHECK_HOST), attempt("two", CHECK_HOST)];
        assert_eq!(text(&down), format!("one: no one; two: no two{CHECK_HOST}"));
        assert_eq!(text(&[attempt("one", ": make room")]), "no one: make room");
    }
}
