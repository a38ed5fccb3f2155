//! A signal's own connection to a database.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::time::Duration;

use futures_util::future;
use postgres_types::{ToSql, Type};
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, Error, Row};

use crate::database::{ConnectError, Pooler, Repeated, Target, describe};

/// In place of a role's name that the server does not tell.
pub(super) const UNKNOWN_ROLE: &str = "the daemon's role";

/// Settings of the server that a session or a transaction begins with: names and values.
pub(super) type Settings = &'static [(&'static str, &'static str)];

/// A connection that is made when it is first needed, and made again after it broke.
#[derive(Debug)]
pub(super) struct Session {
    target: Target,
    settings: Settings,
    open: Option<Open>,
}

/// Statements are prepared once a connection, where there is no pooler. It is the signal's own, so they stay.
struct Open {
    client: Client,
    statements: HashMap<String, Repeated>,
    /// The types of the columns of those that were asked for them.
    columns: HashMap<String, Vec<Type>>,
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
        Self::with_settings(target, &[])
    }

    pub(super) fn with_settings(target: Target, settings: Settings) -> Self {
        Self { target, settings, open: None }
    }

    /// Runs one statement and returns its rows. The server is told to end it after `within`.
    ///
    /// Whoever drops this half-way drops the connection: an answer that comes later must not be
    /// taken for that of the next statement, nor waited for.
    pub(super) async fn query(
        &mut self,
        sql: &str,
        parameters: &[(&(dyn ToSql + Sync), Type)],
        within: Duration,
    ) -> Result<Vec<Row>, SessionError> {
        let mut open = self.take(within).await?;
        let answer = self.ask(&mut open, sql, parameters, within).await;
        if answer.is_err() {
            // A plan may be what is wrong: of a table or a type that has changed since.
            open.statements.clear();
            open.columns.clear();
        }
        self.open = Some(open);
        Ok(answer?)
    }

    async fn ask(
        &self,
        open: &mut Open,
        sql: &str,
        parameters: &[(&(dyn ToSql + Sync), Type)],
        within: Duration,
    ) -> Result<Vec<Row>, Error> {
        let pooler = self.target.pooler();
        let Open { client, statements, .. } = open;
        if !statements.contains_key(sql) {
            let types: Vec<Type> = parameters.iter().map(|(_, kind)| kind.clone()).collect();
            let statement = Repeated::on(client, pooler, sql.to_owned(), &types).await?;
            statements.insert(sql.to_owned(), statement);
        }
        let values: Vec<&(dyn ToSql + Sync)> = parameters.iter().map(|(value, _)| *value).collect();
        let asked = statements[sql].query(client, &values);
        match pooler {
            Pooler::None => asked.await,
            Pooler::Transaction => in_transaction(client, &local(self.settings, within), asked).await,
        }
    }

    /// The types of the columns that `sql` would give.
    pub(super) async fn columns(&mut self, sql: &str, within: Duration) -> Result<Vec<Type>, SessionError> {
        let mut open = self.take(within).await?;
        if let Some(known) = open.columns.get(sql).cloned() {
            self.open = Some(open);
            return Ok(known);
        }
        let is_pooled = self.target.pooler() == Pooler::Transaction;
        if is_pooled {
            open.client.batch_execute(&format!("BEGIN; {}", local(self.settings, within))).await?;
        }
        let columns = open.client.prepare(sql).await.map(|statement| {
            let kinds = statement.columns().iter().map(|column| column.type_().clone());
            kinds.collect::<Vec<Type>>()
        });
        if is_pooled {
            // The statement was closed when it was dropped, in the server session that had it. The driver's
            // own, with which it looks up types that it does not know, stay: none may be left behind there,
            // nor counted on later.
            let unknown = |kinds: &Vec<Type>| kinds.iter().any(|kind| Type::from_oid(kind.oid()).is_none());
            if columns.as_ref().is_ok_and(unknown) {
                open.client.batch_execute("DEALLOCATE ALL; COMMIT").await?;
                return Ok(columns?);
            }
            open.client.batch_execute("ROLLBACK").await?;
        }
        if let Ok(columns) = &columns {
            open.columns.insert(sql.to_owned(), columns.clone());
        }
        self.open = Some(open);
        Ok(columns?)
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
        begin_session(&client, self.target.pooler(), self.settings, within).await?;
        Ok(Open { client, statements: HashMap::new(), columns: HashMap::new() })
    }
}

impl std::fmt::Debug for Open {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Open").field("statements", &self.statements.len()).finish_non_exhaustive()
    }
}

/// Sets what holds for the whole session, where there is one.
pub(super) async fn begin_session(
    client: &Client,
    pooler: Pooler,
    settings: Settings,
    within: Duration,
) -> Result<(), Error> {
    match pooler {
        Pooler::None => client.batch_execute(&statements("SET", settings, within)).await,
        Pooler::Transaction => Ok(()),
    }
}

/// The same for one transaction.
pub(super) fn local(settings: Settings, within: Duration) -> String {
    statements("SET LOCAL", settings, within)
}

/// Runs `work`, a single statement, in a transaction of its own that begins with `settings`. All is sent
/// together, so that it takes one round trip.
pub(super) async fn in_transaction<T>(
    client: &Client,
    settings: &str,
    work: impl Future<Output = Result<T, Error>>,
) -> Result<T, Error> {
    let opening = format!("BEGIN; {settings}");
    let (begun, answer, ended) =
        future::join3(client.batch_execute(&opening), work, client.batch_execute("COMMIT")).await;
    begun?;
    let answer = answer?;
    ended?;
    Ok(answer)
}

/// Ends statements on the server after `within`, or rather a bit before: what the server says about
/// it is worth more than silence.
fn statements(set: &str, settings: Settings, within: Duration) -> String {
    let milliseconds = (within.mul_f64(0.9).as_millis()).clamp(1, 2_147_483_647);
    let mut sql = format!("{set} statement_timeout = {milliseconds};");
    for (name, value) in settings {
        // What a session's transactions begin with is of no use to one that has begun.
        let name = if set == "SET LOCAL" { name.strip_prefix("default_").unwrap_or(name) } else { name };
        write!(sql, " {set} {name} = {value};").expect("a String takes every write");
    }
    sql
}
