//! A number that a query of the user's own gives: the length of a queue, the bloat of a table.

use std::time::{Duration, Instant};

use tokio_postgres::types::Type;

use super::Signal;
use super::session::{Session, Settings};
use crate::database::Target;
use crate::throttle::reading::{Figure, Reading};

/// What a signal reads it must not change.
const READ_ONLY: Settings = &[("default_transaction_read_only", "on")];

/// The signal `sql.NAME`.
#[derive(Debug)]
pub struct Sql {
    name: String,
    session: Session,
    query: String,
    interval: Duration,
}

impl Sql {
    /// What `query` gives in the database of `target`. `name` is that of the section, without `sql.`
    #[must_use]
    pub fn new(name: &str, target: Target, query: impl Into<String>, interval: Duration) -> Self {
        Self {
            name: format!("sql.{name}"),
            session: Session::with_settings(target, READ_ONLY),
            query: query
                .into()
                .trim()
                .trim_end_matches(|end: char| end == ';' || end.is_whitespace())
                .to_owned(),
            interval,
        }
    }

    async fn ask(&mut self, within: Duration) -> Result<Figure, String> {
        // As it is written first, so that what the server has to say about it is about nothing else.
        let columns = self.session.columns(&self.query, within).await?;
        let [column] = columns.as_slice() else {
            return Err(match columns.len() {
                0 => "the query returns nothing: write a SELECT of one number".to_owned(),
                columns => format!("the query returns {columns} columns: it must return one, a number"),
            });
        };
        if let Some(advice) = no_number(column) {
            return Err(format!("the query returns a {}: {advice}", column.name()));
        }
        // The server casts, whatever the type is, and no more than two rows ever come here. The query
        // may end in a comment, so what follows begins on a line of its own.
        let bounded = format!("SELECT value::float8 FROM ({}\n) AS query (value) LIMIT 2", self.query);
        let rows = self.session.query(&bounded, &[], within).await?;
        match rows.as_slice() {
            [] => Err(
                "the query returned no row: it must return one; an aggregate such as count(*) always does"
                    .to_owned(),
            ),
            [row] => Ok(match row.get(0) {
                None => Figure::Unknown("the query returned NULL".to_owned()),
                Some(value) if f64::is_finite(value) => Figure::Number(value),
                Some(value) => Figure::Unknown(format!("the query returned {value}")),
            }),
            _ => Err("the query returned more than one row: it must return one".to_owned()),
        }
    }
}

/// What to do about a type that is no number and cannot be cast to one.
fn no_number(kind: &Type) -> Option<&'static str> {
    match *kind {
        Type::INTERVAL => Some("write extract(epoch from ...) for its seconds"),
        Type::TIMESTAMPTZ | Type::TIMESTAMP | Type::DATE => {
            Some("write extract(epoch from clock_timestamp() - ...) for its age in seconds")
        }
        Type::BOOL => Some("write (...)::int for 0 or 1"),
        _ => None,
    }
}

impl Signal for Sql {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn interval(&self) -> Duration {
        self.interval
    }

    async fn read(&mut self, within: Duration) -> Result<Vec<Reading>, String> {
        let figure = self.ask(within).await?;
        Ok(vec![Reading::new("", figure, Instant::now())])
    }
}
