//! A pool of connections.

use std::future::pending;

use deadpool::Runtime;
use deadpool::managed::{self, Metrics, PoolError, QueueMode, RecycleError, RecycleResult, TimeoutType};
use deadpool_postgres::ClientWrapper;

use tokio::sync::oneshot;

use super::connect::{CONNECT_TIMEOUT, ConnectError};
use super::sessions;
use super::target::Target;

/// A connection of the pool. It goes back when it is dropped.
pub type Object = managed::Object<Connector>;

/// Makes the pool's connections.
#[derive(Debug)]
pub struct Connector(Target);

impl managed::Manager for Connector {
    type Type = ClientWrapper;
    type Error = ConnectError;

    async fn create(&self) -> Result<ClientWrapper, ConnectError> {
        loop {
            let (held, let_go) = oneshot::channel::<()>();
            let given_up = async {
                // An error: that says it.
                let _ = let_go.await;
                sessions::last_answer_waited_for().await;
            };
            let changed_at = self.0.changed_at();
            let client = self.0.open(|connection| connection, given_up).await?;
            // Made anew where the settings have changed meanwhile: when it was begun is not known later on.
            if self.0.changed_at() != changed_at {
                continue;
            }
            // The wrapper aborts its task where it is dropped, which for the driver would be in the middle of an answer.
            let holding = tokio::spawn(async move {
                let _held = held;
                pending::<()>().await;
            });
            return Ok(ClientWrapper::new(client, holding));
        }
    }

    async fn recycle(&self, client: &mut ClientWrapper, metrics: &Metrics) -> RecycleResult<ConnectError> {
        if client.is_closed() {
            return Err(RecycleError::message("it is closed"));
        }
        // One that was in use when the settings changed is as much of the old ones as those that were not.
        if self.0.changed_at().is_some_and(|at| metrics.created < at) {
            return Err(RecycleError::message("it was made with settings that are no more"));
        }
        Ok(())
    }
}

/// A pool of connections to one target.
#[derive(Clone)]
pub struct Database {
    target: Target,
    pool: managed::Pool<Connector>,
}

impl Database {
    /// Prepares a pool of at most `pool_size` connections. Nothing is connected yet.
    #[must_use]
    pub fn new(target: Target, pool_size: usize) -> Self {
        let pool = managed::Pool::builder(Connector(target.clone()))
            .max_size(pool_size)
            // The connection that was used last is the one whose server process is warm.
            .queue_mode(QueueMode::Lifo)
            .wait_timeout(Some(CONNECT_TIMEOUT))
            // Connecting has bounds of its own, one for each server of the address.
            .create_timeout(None)
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

    /// Ends the connections: those that are in use when they are given back. None can be taken any more.
    pub fn close(&self) {
        self.pool.close();
    }

    /// Takes a connection from the pool.
    ///
    /// Whoever is unsure of its state afterwards must drop it with [`Object::take`], not hand it back.
    pub async fn get(&self) -> Result<Object, ConnectError> {
        self.pool.get().await.map_err(|error| match error {
            PoolError::Backend(error) => error,
            PoolError::Timeout(TimeoutType::Wait) => ConnectError::PoolExhausted(self.target.to_string()),
            other => ConnectError::Refused {
                target: self.target.to_string(),
                reason: other.to_string(),
                advice: ": check host and port, and that the server runs".to_owned(),
                may_pass: true,
            },
        })
    }
}
