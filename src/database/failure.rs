//! What an error of the database means for whoever was talking to it.

use std::error::Error as _;
use std::fmt::Write as _;

use tokio_postgres::Error;
use tokio_postgres::error::SqlState;

/// What to do about a failed statement. The one table that maps an SQLSTATE to a policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// The connection is gone or cannot be used (server restarting, failover, read-only primary):
    /// connect again with backoff, read the cursor, go on.
    Connection,
    /// Somebody else was in the way (lock timeout, deadlock, serialisation, statement timeout):
    /// try again with backoff and a smaller batch.
    Contention,
    /// The server is short of something (disk, memory, connections): try again with backoff.
    Resources,
    /// A row cannot be changed as asked (bad data, a violated constraint, a raising trigger).
    Data,
    /// The statement itself is wrong (a dropped column, a revoked right): trying again is useless.
    Statement,
}

impl Failure {
    /// Classifies `error` by its SQLSTATE; an error without one is a lost connection.
    #[must_use]
    pub fn of(error: &Error) -> Self {
        let Some(state) = error.code() else { return Self::Connection };
        match *state {
            SqlState::LOCK_NOT_AVAILABLE
            | SqlState::T_R_SERIALIZATION_FAILURE
            | SqlState::T_R_DEADLOCK_DETECTED
            | SqlState::QUERY_CANCELED => Self::Contention,
            SqlState::ADMIN_SHUTDOWN
            | SqlState::CRASH_SHUTDOWN
            | SqlState::CANNOT_CONNECT_NOW
            | SqlState::IDLE_SESSION_TIMEOUT
            | SqlState::IDLE_IN_TRANSACTION_SESSION_TIMEOUT
            | SqlState::READ_ONLY_SQL_TRANSACTION => Self::Connection,
            _ => match &state.code()[..2] {
                "08" => Self::Connection,
                "53" => Self::Resources,
                "22" | "23" | "44" => Self::Data,
                _ => Self::Statement,
            },
        }
    }

    /// Classifies the error of a statement that changes rows, where more may be the fault of one row:
    /// what PL/pgSQL raises (class P0), a subquery that finds two rows for it, an index entry that
    /// becomes too large, and every class that the server itself does not use, for a trigger has
    /// raised it (SQL leaves classes from 5 to 9 and from I to Z to the user).
    #[must_use]
    pub fn of_row(error: &Error) -> Self {
        let general = Self::of(error);
        let Some(state) = error.code() else { return general };
        let class = &state.code()[..2];
        let of_the_server = ["53", "54", "55", "57", "58", "72", "XX"].contains(&class);
        let users =
            class.starts_with(|first: char| ('5'..='9').contains(&first) || ('I'..='Z').contains(&first));
        let is_row = class == "P0"
            || class == "54"
            || *state == SqlState::CARDINALITY_VIOLATION
            || (users && !of_the_server);
        if general == Self::Statement && is_row { Self::Data } else { general }
    }

    /// The word under which a retry is counted and reported.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Connection => "connection",
            Self::Contention => "contention",
            Self::Resources => "resources",
            Self::Data => "data",
            Self::Statement => "statement",
        }
    }
}

/// Tells an error in full, the detail included: for where only those look who may see the row.
#[must_use]
pub fn describe_with_detail(error: &Error) -> String {
    let detail = error.as_db_error().and_then(|told| told.detail()).unwrap_or_default();
    let told = describe(error);
    if detail.is_empty() || told.contains(detail) { told } else { format!("{told}; detail: {detail}") }
}

/// Tells an error on one line: the server's message and hint with the SQLSTATE, or the chain of
/// causes when the server said nothing. The detail of an error about data is left out, since it
/// repeats the row.
#[must_use]
pub fn describe(error: &Error) -> String {
    if let Some(told) = error.as_db_error() {
        let mut text = told.message().to_owned();
        let is_about_data = ["22", "23", "44"].contains(&&told.code().code()[..2]);
        if let Some(detail) = told.detail().filter(|_| !is_about_data) {
            let _ = write!(text, "; detail: {detail}");
        }
        if let Some(hint) = told.hint() {
            let _ = write!(text, "; hint: {hint}");
        }
        let _ = write!(text, " (SQLSTATE {})", told.code().code());
        return text.replace('\n', " ");
    }
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let inner_text = inner.to_string();
        if !text.contains(&inner_text) {
            let _ = write!(text, ": {inner_text}");
        }
        cause = inner.source();
    }
    text.replace('\n', " ")
}
