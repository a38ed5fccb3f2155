//! Which database, and connections to it.

use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Instant;

use futures_util::future::poll_fn;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_postgres::{AsyncMessage, CancelToken, Client, Error};

use super::address::{Access, Address, Role, TargetError};
use super::connect::{self, ConnectError, Driver};
use super::generation::Generation;
use super::repeated::Pooler;
use super::sessions;

/// Where the database is and how to log in. Its `Display` names host, port, database and user, and
/// never the password.
///
/// Its clones are one: when one of them is given other ways to log in, all have them.
///
/// A connection to a server that another has taken the place of ends as soon as a new connection meets the
/// other. The old server may never say so itself: it hangs, or lives on where nobody sees it any more.
#[derive(Clone)]
pub struct Target {
    current: Arc<RwLock<Current>>,
    /// A message ends the connections that are open outside any pool.
    hung_up: Arc<watch::Sender<()>>,
    /// The newest server that a connection was made to.
    newest: Arc<watch::Sender<Option<Generation>>>,
}

struct Current {
    address: Arc<Address>,
    /// When the address was last replaced.
    changed_at: Option<Instant>,
}

impl Target {
    /// Reads a URL or a key=value string; without one, the variables of libpq. Of several hosts it is
    /// the one that takes writes.
    pub fn from_settings(url: Option<&str>, access: &Access) -> Result<Self, TargetError> {
        Address::new(url, access, Role::Primary).map(Self::new)
    }

    /// A server beside the one that is written to, a replica perhaps.
    pub fn replica(url: &str, access: &Access) -> Result<Self, TargetError> {
        Address::new(Some(url), access, Role::Any).map(Self::new)
    }

    fn new(address: Address) -> Self {
        let current = Current { address: Arc::new(address), changed_at: None };
        Self { current: Arc::new(RwLock::new(current)), hung_up: Arc::default(), newest: Arc::default() }
    }

    /// What stands between here and the server.
    #[must_use]
    pub fn pooler(&self) -> Pooler {
        self.address().pooler
    }

    /// Servers and database, without whoever logs in: `db1:5432,db2:5432/shop`.
    #[must_use]
    pub fn place(&self) -> String {
        self.address().place()
    }

    /// Looks whether the files that connecting needs can be used.
    pub fn check_files(&self) -> Result<(), TargetError> {
        let address = self.address();
        address.passwords.check()?;
        address.connector()?;
        Ok(())
    }

    /// Logs in as `other` does from now on, if that is the same database on the same servers; false if
    /// it is not. Connections that are open stay so.
    #[must_use]
    pub fn log_in_as(&self, other: &Self) -> bool {
        let address = other.address();
        if !self.address().is_same_place(&address) {
            return false;
        }
        let mut current = self.current.write().unwrap_or_else(PoisonError::into_inner);
        *current = Current { address, changed_at: Some(Instant::now()) };
        true
    }

    /// Ends the connections that were made outside any pool: they are to another server than new ones
    /// would be, or were made in a way that holds no more. Whoever needs one connects again.
    pub fn hang_up(&self) {
        self.hung_up.send_replace(());
    }

    /// When [`Target::log_in_as`] was last called.
    pub(super) fn changed_at(&self) -> Option<Instant> {
        self.current.read().unwrap_or_else(PoisonError::into_inner).changed_at
    }

    fn address(&self) -> Arc<Address> {
        self.current.read().unwrap_or_else(PoisonError::into_inner).address.clone()
    }

    /// Opens a connection, and ends the others if it is to a newer server. It is driven by `driving` until `cut` comes back
    /// or it is to an older server itself.
    pub(super) async fn open<D: Future<Output: Send> + Send + 'static>(
        &self,
        driving: impl FnOnce(Driver) -> D + Send + 'static,
        cut: impl Future<Output = ()> + Send + 'static,
    ) -> Result<Client, ConnectError> {
        let target = self.clone();
        // Large, and everybody who connects would be as large.
        sessions::to_the_end(Box::pin(async move { target.open_here(driving, cut).await })).await
    }

    async fn open_here<D: Future<Output: Send> + Send + 'static>(
        &self,
        driving: impl FnOnce(Driver) -> D + Send + 'static,
        cut: impl Future<Output = ()> + Send + 'static,
    ) -> Result<Client, ConnectError> {
        let mut newest = self.newest.subscribe();
        let known = *newest.borrow_and_update();
        let address = self.address();
        let (client, connection) = connect::open(&address).await?;
        let (tell, told) = oneshot::channel();
        let replaced = async move {
            match told.await {
                Ok(met) => {
                    if newest.wait_for(|newest| *newest > known.max(met)).await.is_err() {
                        std::future::pending::<()>().await;
                    }
                }
                // Whoever wanted it has given it up by now.
                Err(_) => sessions::last_answer_waited_for().await,
            }
        };
        sessions::drive(driving(connection), sessions::either(cut, replaced));
        let met = if address.pooler == Pooler::None {
            connect::generation(&address, &client).await?
        } else {
            // The next transaction may be on another server than this question.
            None
        };
        let has_replaced = self.newest.send_if_modified(|newest| {
            let is_newer = met > *newest;
            // The first one has taken nobody's place.
            let has_replaced = is_newer && newest.is_some();
            *newest = met.max(*newest);
            has_replaced
        });
        if has_replaced {
            tracing::info!(target = %self, "another server has taken the place of the last one: connections to that one end");
        }
        // An error: it has ended already, as whoever uses it will see.
        let _ = tell.send(met);
        Ok(client)
    }

    /// Opens one connection of its own, outside any pool. It ends by itself when the client is dropped.
    pub async fn connect(&self) -> Result<Client, ConnectError> {
        self.open(|connection| connection, hung_up(self.hung_up.subscribe())).await
    }

    /// Opens a connection that listens on `channel`. Every notification is a message on the
    /// receiver; the receiver closes when the connection does.
    pub async fn listen(&self, channel: &str) -> Result<(Client, mpsc::Receiver<()>), ConnectError> {
        // One waiting wake-up is as good as many.
        let (wake, woken) = mpsc::channel(1);
        let listening = |mut connection: Driver| async move {
            while let Some(Ok(message)) = poll_fn(|context| connection.poll_message(context)).await {
                if let AsyncMessage::Notification(_) = message {
                    let _ = wake.try_send(());
                }
            }
        };
        let client = self.open(listening, hung_up(self.hung_up.subscribe())).await?;
        client
            .batch_execute(&format!("LISTEN {}", super::identifier(channel)))
            .await
            .map_err(|error| connect::refused(&self.address(), &error))?;
        Ok((client, woken))
    }

    /// Asks the server to end what the connection of `token` is doing, by TLS if that connection was.
    pub async fn cancel(&self, token: &CancelToken) -> Result<(), Error> {
        match self.address().connector() {
            Ok(connector) => token.cancel_query(connector).await,
            // Certificates that were there for the connection are there no more; the server's own timeouts
            // end the statement.
            Err(_) => Ok(()),
        }
    }
}

/// Comes back when [`Target::hang_up`] was called. A target that is gone hangs up no more.
async fn hung_up(mut told: watch::Receiver<()>) {
    if told.changed().await.is_err() {
        std::future::pending::<()>().await;
    }
}

impl fmt::Display for Target {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.address().fmt(out)
    }
}

impl fmt::Debug for Target {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "Target({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(url: &str) -> Result<Target, TargetError> {
        Target::from_settings(Some(url), &Access::default())
    }

    #[test]
    fn a_target_never_shows_its_password() {
        let target = target("postgres://app:hunter2@db.internal:6432/shop").unwrap();
        let shown = format!("{target} {target:?} {:?}", target.address().passwords);
        assert_eq!(target.to_string(), "database \"shop\" on db.internal:6432 as \"app\"");
        assert_eq!(target.place(), "db.internal:6432/shop");
        assert!(!shown.contains("hunter2"), "{shown}");
    }

    #[test]
    fn a_bad_url_is_refused_without_being_repeated() {
        let error = target("mysql://app:hunter2@db/shop").unwrap_err().to_string();
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
            let error = target(url).unwrap_err();
            assert!(matches!(error, TargetError::NotEncoded), "{url}: {error}");
        }
        assert!(target("postgres://app:x%40y@h/d").is_ok());
    }

    #[test]
    fn less_than_was_asked_for_is_refused() {
        let direct = target("postgres://h/d?sslnegotiation=direct").unwrap_err();
        assert!(matches!(direct, TargetError::DirectNegotiation), "{direct}");
        assert!(target("postgres://h/d?sslnegotiation=direct&sslmode=require").is_ok());
        // A name that is a path is no reason to go without TLS to an address.
        let beside = target("host=/run/postgresql hostaddr=127.0.0.1 sslmode=require dbname=d").unwrap();
        assert!(beside.address().places.iter().all(|place| place.address.is_some()));
        // Not even a piece of a password that was taken apart at a blank.
        let error = target("password=hun ter2=x host=h").unwrap_err().to_string();
        assert!(!error.contains("ter2"), "{error}");
    }

    #[test]
    fn other_ways_to_log_in_hold_for_every_clone_and_another_place_does_not() {
        let first = target("postgres://app:old@h1:1,h2:2/shop").unwrap();
        let clone = first.clone();
        assert!(first.log_in_as(&target("host=h1,h2 port=1,2 dbname=shop user=other").unwrap()));
        assert_eq!(clone.to_string(), "database \"shop\" on h1:1,h2:2 as \"other\"");
        for elsewhere in ["postgres://h1:1,h2:3/shop", "postgres://h1:1/shop", "postgres://h1:1,h2:2/x"] {
            assert!(!first.log_in_as(&target(elsewhere).unwrap()), "{elsewhere}");
        }
    }
}
