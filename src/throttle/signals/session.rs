//! A signal's own connection to a database.

use std::collections::HashMap;
use std::time::Duration;

use postgres_types::ToSql;
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, Error, Row, Statement};

use crate::database::{ConnectError, Target, describe};

/// In place of a role's name that the server does not tell.
pub(super) const UNKNOWN_ROLE: &str = "the daemon's role";

/// A connection that is made when it is first needed, and made again after it broke.
#[derive(Debug)]
pub(super) struct Session {
    target: Target,
    /// Statements that every new connection begins with.
    settings: &'static str,
    open: Option<Open>,
}

/// Statements are prepared once a connection. It is the signal's own, so they stay; behind a pooler
/// that gives a session to each transaction anew, they would have to be sent unnamed.
struct Open {
    client: Client,
    prepared: HashMap<String, Statement>,
}

/// Why a database gave no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum SessionError {
    #[error(transparent)]
    Connect(#[from] ConnectError),
    #[error("{}", describe(.0))]
    Statement(#[from] Error),
}

impl SessionError {
    pub(super) fn code(&self) -> Option<&SqlState> {
        match self {
            Self::Connect(_) => None,
            Self::Statement(error) => error.code(),
        }
    }
}

impl From<SessionError> for String {
    fn from(error: SessionError) -> Self {
        error.to_string()
    }
}

impl Session {
    pub(super) fn new(target: Target) -> Self {
        Self::with_settings(target, "")
    }

    /// A session that begins with `settings`: statements that are each ended by a semicolon.
    pub(super) fn with_settings(target: Target, settings: &'static str) -> Self {
        Self { target, settings, open: None }
    }

    /// Runs one statement and returns its rows. The server is told to end it after `within`.
    ///
    /// Whoever drops this half-way drops the connection: an answer that comes later must not be
    /// taken for that of the next statement, nor waited for.
    pub(super) async fn query(
        &mut self,
        sql: &str,
        parameters: &[&(dyn ToSql + Sync)],
        within: Duration,
    ) -> Result<Vec<Row>, SessionError> {
        let mut open = self.take(within).await?;
        let answer = async {
            let statement = open.prepare(sql).await?;
            open.client.query(&statement, parameters).await
        }
        .await;
        if answer.is_err() {
            // A plan may be what is wrong: of a table or a type that has changed since.
            open.prepared.clear();
        }
        self.open = Some(open);
        Ok(answer?)
    }

    /// What `sql` would give: the columns of its rows.
    pub(super) async fn prepare(&mut self, sql: &str, within: Duration) -> Result<Statement, SessionError> {
        let mut open = self.take(within).await?;
        let prepared = open.prepare(sql).await;
        self.open = Some(open);
        Ok(prepared?)
    }

    /// The role of the session, as SQL, for a GRANT in a message.
    pub(super) async fn role(&mut self, within: Duration) -> String {
        match self.query("SELECT quote_ident(current_user)", &[], within).await.as_deref() {
            Ok([row]) => row.get(0),
            _ => UNKNOWN_ROLE.to_owned(),
        }
    }

    /// The connection that there is, or a new one.
    async fn take(&mut self, within: Duration) -> Result<Open, SessionError> {
        if let Some(open) = self.open.take().filter(|open| !open.client.is_closed()) {
            return Ok(open);
        }
        let client = self.target.connect().await?;
        client.batch_execute(&format!("{}{}", bound(within), self.settings)).await?;
        Ok(Open { client, prepared: HashMap::new() })
    }
}

impl Open {
    async fn prepare(&mut self, sql: &str) -> Result<Statement, Error> {
        if let Some(statement) = self.prepared.get(sql) {
            return Ok(statement.clone());
        }
        let statement = self.client.prepare(sql).await?;
        self.prepared.insert(sql.to_owned(), statement.clone());
        Ok(statement)
    }
}

impl std::fmt::Debug for Open {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Open").field("statements", &self.prepared.len()).finish_non_exhaustive()
    }
}

/// Ends statements on the server after `within`, or rather a bit before: what the server says about
/// it is worth more than silence.
pub(super) fn bound(within: Duration) -> String {
    let milliseconds = (within.mul_f64(0.9).as_millis()).clamp(1, 2_147_483_647);
    format!("SET statement_timeout = {milliseconds};")
}
