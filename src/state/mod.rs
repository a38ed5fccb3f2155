//! The state in the database: its schema, the upgrades of that schema, and every statement on it.
//!
//! May use `database`. Knows nothing of how rows are walked or who walks them: a job's spec is JSON
//! here, a key is a list of texts.

pub mod approval;
pub mod daemon;
pub mod event;
pub mod finish;
pub mod heartbeat;
pub mod job;
pub mod notification;
pub mod pass;
pub mod quarantine;
pub mod slice;
pub mod split;
pub mod status;
pub mod submission;
pub mod sync_trigger;
mod upgrade;

pub use upgrade::{LATEST_VERSION, Upgraded, is_current, is_still_current, upgrade};

use crate::database::{describe, identifier};

/// A failed operation on the state schema.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// The schema is not there, or older than the program needs.
    #[error(
        "the state schema \"{schema}\" {found}, this program needs version {LATEST_VERSION}: run `backfilld init` with a role that may create it"
    )]
    Outdated {
        /// The schema's name.
        schema: String,
        /// What was found instead.
        found: String,
    },
    /// The schema was made by a later version of the program.
    #[error(
        "the state schema \"{schema}\" has version {found}, newer than the {LATEST_VERSION} that backfilld {program} knows: run the newer backfilld that made it"
    )]
    Newer {
        /// The schema's name.
        schema: String,
        /// The version found there.
        found: i32,
        /// This program's version.
        program: &'static str,
    },
    /// The schema could not be created or upgraded.
    #[error("cannot upgrade the state schema \"{schema}\": {reason}")]
    Upgrade {
        /// The schema's name.
        schema: String,
        /// What the server said.
        reason: String,
    },
    /// The role may not use the state schema.
    #[error(
        "{reason}: GRANT USAGE ON SCHEMA {schema} TO {role}; GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA {schema} TO {role}"
    )]
    Forbidden {
        /// What the server said.
        reason: String,
        /// The schema, as SQL.
        schema: String,
        /// The role, as SQL.
        role: String,
    },
    /// There is no such job.
    #[error("there is no job \"{name}\"{known}")]
    UnknownJob {
        /// The name asked for.
        name: String,
        /// The names that exist, ready to be appended.
        known: String,
    },
    /// The job's state does not allow what was asked.
    #[error("job \"{name}\" is {state}: it cannot be {wanted}")]
    WrongState {
        /// The job.
        name: String,
        /// Its state.
        state: String,
        /// The past participle of what was asked.
        wanted: &'static str,
    },
    /// Another spec is already known under the name.
    #[error(
        "job \"{name}\" is already known with another spec ({difference}): give it another name, or pass --replace"
    )]
    Different {
        /// The job.
        name: String,
        /// The keys that differ.
        difference: String,
    },
    /// Somebody else changed the job between two looks at it.
    #[error("job \"{name}\" was changed by somebody else just now: look at it, and try again")]
    ChangedMeanwhile {
        /// The job.
        name: String,
    },
    /// A row of the state schema that the program cannot have written.
    #[error("the state schema has a job that cannot be read: {0}: look at its spec in table job")]
    Malformed(String),
    /// Any other error of the database.
    #[error("the database refused an operation on the state schema: {}", describe(.0))]
    Database(#[from] tokio_postgres::Error),
}

/// Who asks for a change, for the audit log: `backfilld run host:4242`, `dana@laptop`.
#[derive(Debug, Clone)]
pub struct Actor(pub String);

/// The state schema's name, quoted once, and the statements on it.
#[derive(Debug, Clone)]
pub struct State {
    name: String,
    quoted: String,
}

impl State {
    /// The state kept in `schema`.
    #[must_use]
    pub fn new(schema: &str) -> Self {
        Self { name: schema.to_owned(), quoted: identifier(schema) }
    }

    /// The schema's name as it is; also the channel on which daemons are woken.
    #[must_use]
    pub fn schema(&self) -> &str {
        &self.name
    }

    /// Writes the schema's quoted name wherever `sql` says `{s}`.
    fn sql(&self, sql: &str) -> String {
        sql.replace("{s}", &self.quoted)
    }
}
