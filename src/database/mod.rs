//! Talking to PostgreSQL: where it is, how to connect, how names and values are written into a
//! statement, and what an error means.
//!
//! The lowest room: it knows nothing of jobs, slices or daemons, and imports no other room.

mod address;
mod connect;
pub mod failure;
mod generation;
mod key_value;
mod parameters;
mod password;
mod pool;
mod repeated;
mod secret_file;
mod sessions;
mod target;
mod tls;

pub use address::{Access, TargetError};
pub use connect::ConnectError;
pub use failure::{Failure, describe, describe_with_detail};
pub use key_value::{KeyValue, key_parameters};
pub use pool::{Connector, Database, Object};
pub use repeated::{Pooler, Repeated};
pub use secret_file::{SecretFile, SecretFileError};
pub use sessions::sessions_ended;
pub use target::Target;
pub use tls::{RootsError, SslMode};

/// Writes a name as a quoted SQL identifier: `users` becomes `"users"`.
#[must_use]
pub fn identifier(name: &str) -> String {
    postgres_protocol::escape::escape_identifier(name)
}

/// Writes a text as a quoted SQL literal: `it's` becomes `'it''s'`.
#[must_use]
pub fn literal(text: &str) -> String {
    // The library puts a blank before a literal that needs the E'' form.
    postgres_protocol::escape::escape_literal(text).trim_start().to_owned()
}
