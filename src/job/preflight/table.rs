//! Finding a table by the name that a job gives it.

use postgres_types::Type;
use tokio_postgres::error::SqlState;
use tokio_postgres::{Error, GenericClient};

use super::{PreflightError, problem};
use crate::database::{Failure, describe};
use crate::job::known_keys::likeness;
use crate::walk::keyset::Table;

/// What a table is wanted for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    /// Its rows are read by key, and changed.
    Walked(Rule),
    /// Rows are written to it.
    Written,
}

/// The event of a rewrite rule that would make an operation do something else.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Rule {
    /// UPDATE.
    Update,
    /// DELETE.
    Delete,
    /// The rows are not changed, or nobody knows how.
    None,
}

impl Rule {
    /// As `pg_rewrite.ev_type` has it.
    pub(super) fn event(self) -> &'static str {
        match self {
            Self::Update => "2",
            Self::Delete => "4",
            Self::None => "",
        }
    }
}

/// A table that can be used for its purpose.
pub(super) struct Found {
    pub(super) table: Table,
    /// Its rows are in partitions.
    pub(super) is_partitioned: bool,
}

/// Finds a table that the key `key` names, and refuses what cannot be used for the purpose.
pub(super) async fn find(
    client: &impl GenericClient,
    key: &str,
    name: &str,
    state_schema: &str,
    purpose: Purpose,
) -> Result<Found, PreflightError> {
    let event = match purpose {
        Purpose::Walked(rule) => rule.event(),
        Purpose::Written => "3",
    };
    let found = client
        .query_typed_opt(
            "SELECT c.oid, n.nspname, c.relname, c.relkind::text, c.relpersistence::text,
                    row_security_active(c.oid),
                    EXISTS (SELECT FROM pg_inherits i WHERE i.inhparent = c.oid),
                    EXISTS (SELECT FROM pg_rewrite r WHERE r.ev_class = c.oid AND r.ev_type::text = $2)
             FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
             WHERE c.oid = to_regclass($1)",
            &[(&name, Type::TEXT), (&event, Type::TEXT)],
        )
        .await;
    let row = match found {
        Ok(row) => row,
        Err(error) if error.code() == Some(&SqlState::INSUFFICIENT_PRIVILEGE) => {
            let role: String = client.query_typed_one("SELECT quote_ident(current_user)", &[]).await?.get(0);
            let schema = name.rsplit_once('.').map_or("public", |(schema, _)| schema);
            return Err(problem(format!(
                "{key}: {name}: {}: GRANT USAGE ON SCHEMA {schema} TO {role}",
                describe(&error)
            )));
        }
        // Not a name at all, as it is written: it may be one that needs quotes.
        Err(error) if Failure::of(&error) == Failure::Statement => None,
        Err(error) => return Err(error.into()),
    };
    let Some(row) = row else { return Err(no_such_table(client, key, name).await?) };
    let table = Table { oid: row.get(0), schema: row.get(1), name: row.get(2) };
    let (kind, persistence): (String, String) = (row.get(3), row.get(4));
    let (row_security, has_children, has_rule): (bool, bool, bool) = (row.get(5), row.get(6), row.get(7));
    let is_partitioned = kind == "p";
    let found = |table| Ok(Found { table, is_partitioned });
    let obstacle = match kind.as_str() {
        "r" if persistence == "t" => "is a temporary table: other sessions cannot see its rows",
        "r" if table.schema == "pg_catalog" || table.schema == "information_schema" => "is a system table",
        "r" | "p" if table.schema == state_schema => "belongs to backfilld's own state",
        "r" | "p" if has_rule && purpose == Purpose::Written => {
            "has a rule that rewrites INSERT: drop it, or use a trigger"
        }
        "r" | "p" if purpose == Purpose::Written => return found(table),
        "r" if row_security => {
            "has row-level security that hides rows from this role: use a role with BYPASSRLS, or the table's owner without FORCE"
        }
        "r" if has_children => {
            "has tables that inherit from it: give a job for each of them and none for the parent"
        }
        "r" if has_rule && event == "4" => "has a rule that rewrites DELETE: drop it, or use a trigger",
        "r" if has_rule => "has a rule that rewrites UPDATE: drop it, or use a trigger",
        "p" if has_rule => "has a rule that rewrites what the job does: drop it, or use a trigger",
        "r" | "p" => return found(table),
        "v" => "is a view: name the table behind it",
        "m" => "is a materialised view: name the table behind it",
        "f" => "is a foreign table: run the job on the server that has the rows",
        "i" | "I" => "is an index: name its table",
        "S" => "is a sequence",
        _ => "is not a table",
    };
    Err(problem(format!("{key}: {table} {obstacle}")))
}

/// Tells what was probably meant: a table of that name elsewhere, or one of a similar name.
async fn no_such_table(client: &impl GenericClient, key: &str, name: &str) -> Result<PreflightError, Error> {
    let rows = client
        .query_typed(
            "SELECT n.nspname::text, c.relname::text, quote_ident(n.nspname) || '.' || quote_ident(c.relname)
             FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
             WHERE c.relkind IN ('r', 'p') AND n.nspname NOT LIKE 'pg\\_%' AND n.nspname <> 'information_schema'
             LIMIT 10000",
            &[],
        )
        .await?;
    let plain = name.replace('"', "");
    let (schema, table) = match plain.split_once('.') {
        Some((schema, table)) => (Some(schema), table),
        None => (None, plain.as_str()),
    };
    let near = rows
        .iter()
        .filter_map(|row| {
            let of_table = likeness(table, row.get(1));
            let of_schema = schema.map_or(1.0, |schema| likeness(schema, row.get(0)));
            (of_table >= 0.8).then_some((of_table + of_schema / 4.0, row))
        })
        .max_by(|one, other| one.0.total_cmp(&other.0));
    let database: String = client.query_typed_one("SELECT current_database()::text", &[]).await?.get(0);
    let advice = match near {
        Some((_, row)) => format!("did you mean {}?", row.get::<_, &str>(2)),
        None => "check the name, its schema, and the database in the URL".to_owned(),
    };
    Ok(problem(format!("{key}: there is no table {name} in database {database}: {advice}")))
}
