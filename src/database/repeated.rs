//! Statements that are sent again and again, with and without a pooler between.

use deadpool_postgres::ClientWrapper;
use postgres_types::{ToSql, Type};
use serde::Deserialize;
use tokio_postgres::{Client, Error, GenericClient, Row, Statement};

/// What stands between the daemon and the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Pooler {
    /// Nothing, or a pooler that keeps a server session for each client.
    #[default]
    None,
    /// A pooler that gives a server session for the time of a transaction: what is set, prepared or
    /// listened to in a session is gone, or somebody else's, with the next transaction.
    Transaction,
}

/// A statement that one connection runs many times: prepared once, to be parsed and planned only then. Behind
/// a pooler it is sent whole each time, without a name.
#[derive(Debug)]
pub struct Repeated {
    sql: String,
    types: Vec<Type>,
    prepared: Option<Statement>,
}

impl Repeated {
    /// Prepares `sql`, whose parameters have these types, on a connection of the caller's own.
    pub async fn on(client: &Client, pooler: Pooler, sql: String, types: &[Type]) -> Result<Self, Error> {
        let prepared = match pooler {
            Pooler::None => Some(client.prepare_typed(&sql, types).await?),
            Pooler::Transaction => None,
        };
        Ok(Self { sql, types: types.to_vec(), prepared })
    }

    /// The same on a connection of a pool, which keeps what was prepared on it.
    pub async fn in_pool(
        client: &ClientWrapper,
        pooler: Pooler,
        sql: String,
        types: &[Type],
    ) -> Result<Self, Error> {
        let prepared = match pooler {
            Pooler::None => Some(client.prepare_typed_cached(&sql, types).await?),
            Pooler::Transaction => None,
        };
        Ok(Self { sql, types: types.to_vec(), prepared })
    }

    /// Runs it and returns its rows.
    pub async fn query(
        &self,
        client: &impl GenericClient,
        values: &[&(dyn ToSql + Sync)],
    ) -> Result<Vec<Row>, Error> {
        assert_eq!(values.len(), self.types.len(), "a statement has as many values as parameters");
        if let Some(statement) = &self.prepared {
            return client.query(statement, values).await;
        }
        let typed: Vec<_> = values.iter().copied().zip(self.types.iter().cloned()).collect();
        client.query_typed(&self.sql, &typed).await
    }
}
