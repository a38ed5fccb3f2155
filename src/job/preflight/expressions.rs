//! Trying SQL that a user has written, without running it.
//!
//! Expressions are tried by EXPLAIN, which plans and does not execute, over the extended protocol,
//! which takes one statement only. Each is tried bare and in parentheses: bare, so that an
//! unbalanced parenthesis cannot change the meaning of the statement around it; in parentheses, so
//! that nothing but an expression passes.

use postgres_types::{ToSql, Type};
use serde_json::Value;
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, Error};

use super::BEGIN;
use crate::database::{Failure, describe};
use crate::walk::batch::key_text_settings_sql;

/// How a description of a syntax error ends.
const SYNTAX_ERROR: &str = "(SQLSTATE 42601)";

/// Asks in a transaction of its own that changes nothing. The inner error is the statement's fault.
pub(super) async fn ask(
    client: &Client,
    sql: &str,
    parameters: &[(&(dyn ToSql + Sync), Type)],
) -> Result<Result<(), Error>, Error> {
    client.batch_execute(&format!("{BEGIN} {}", key_text_settings_sql())).await?;
    let answer = client.query_typed(sql, parameters).await;
    client.batch_execute("ROLLBACK").await?;
    own_fault(answer.map(drop))
}

/// The plan of a statement. The inner error is the statement's fault.
pub(super) async fn explain(client: &Client, sql: &str) -> Result<Result<Value, Error>, Error> {
    client.batch_execute(BEGIN).await?;
    let answer = client.query_typed_one(&format!("EXPLAIN (FORMAT JSON) {sql}"), &[]).await;
    client.batch_execute("ROLLBACK").await?;
    own_fault(answer.map(|row| row.get(0)))
}

/// Whether a statement tells of a type that it is that of several values in parentheses.
async fn is_record(client: &Client, sql: &str) -> Result<bool, Error> {
    client.batch_execute(BEGIN).await?;
    let answer = client.query_typed_one(sql, &[]).await;
    client.batch_execute("ROLLBACK").await?;
    Ok(own_fault(answer)?.is_ok_and(|row| row.get::<_, u32>(0) == Type::RECORD.oid()))
}

/// Parses a statement in the same way. By a PREPARE of SQL and not by the driver's, which asks for types that it
/// does not know with statements of its own: behind a pooler those stay in a session that is not ours.
pub(super) async fn parse(client: &Client, sql: &str) -> Result<Result<(), String>, Error> {
    const NO_PARAMETERS: &str = "a parameter such as $1 has no meaning here: write the value itself";
    client.batch_execute(BEGIN).await?;
    let parsed = client.query_typed(&format!("PREPARE backfilld_parse AS {sql}"), &[]).await;
    let parameters: i32 = match &parsed {
        Ok(_) => {
            let sql = "SELECT cardinality(parameter_types) FROM pg_prepared_statements WHERE name = 'backfilld_parse'";
            let row = client.query_typed_one(sql, &[]).await?;
            client.batch_execute("DEALLOCATE backfilld_parse").await?;
            row.get(0)
        }
        Err(_) => 0,
    };
    client.batch_execute("ROLLBACK").await?;
    Ok(match own_fault(parsed)? {
        Ok(_) if parameters == 0 => Ok(()),
        Ok(_) => Err(NO_PARAMETERS.to_owned()),
        Err(error) if error.code() == Some(&SqlState::INDETERMINATE_DATATYPE) => {
            Err(NO_PARAMETERS.to_owned())
        }
        Err(error) => Err(describe(&error)),
    })
}

/// Tells errors that are the statement's own from those of the moment.
fn own_fault<T>(answer: Result<T, Error>) -> Result<Result<T, Error>, Error> {
    match answer {
        Err(error) if error.code().is_none() => Err(error),
        Err(error) if matches!(Failure::of(&error), Failure::Contention | Failure::Resources) => Err(error),
        other => Ok(other),
    }
}

/// Statements with an expression and nothing of the user's behind it.
pub(super) struct Alone {
    /// Takes it as a value of any type.
    pub(super) value: String,
    /// Gives the value's type, of no row at all.
    pub(super) kind: String,
}

/// An expression and the statements that it is tried in.
pub(super) struct Tried<'a> {
    pub(super) expression: &'a str,
    /// With the expression at its end, where a syntax error is told as its own.
    pub(super) bare: Option<String>,
    /// Where it must be a single value.
    pub(super) alone: Option<Alone>,
    /// As a batch has it.
    pub(super) whole: String,
}

/// Tries an expression in each of its statements.
pub(super) async fn try_expression(client: &Client, tried: &Tried<'_>) -> Result<Result<(), String>, Error> {
    let Tried { expression, bare, alone, whole } = tried;
    let told = |told: String| {
        if expression.contains(';') && told.contains(SYNTAX_ERROR) {
            "must be one expression, without a semicolon".to_owned()
        } else {
            told
        }
    };
    let bare = match bare {
        Some(bare) => parse(client, bare).await?,
        None => Ok(()),
    };
    let alone = match alone {
        Some(alone) => match parse(client, &alone.value).await? {
            Ok(()) if is_record(client, &alone.kind).await? => {
                return Ok(Err("has more than one value: give every column a line of its own".to_owned()));
            }
            parsed => parsed,
        },
        None => Ok(()),
    };
    match (bare, alone) {
        // What is wrong with it at the end of a statement does not speak of what we write behind it;
        // unless it was taken for more of the statement than it may be.
        (Err(bare), Err(_)) if bare.contains(SYNTAX_ERROR) => return Ok(Err(told(bare))),
        (_, Err(alone)) => return Ok(Err(told(alone))),
        (Err(bare), Ok(())) => return Ok(Err(told(bare))),
        (Ok(()), Ok(())) => {}
    }
    Ok(ask(client, whole, &[]).await?.map_err(|error| told(describe(&error))))
}
