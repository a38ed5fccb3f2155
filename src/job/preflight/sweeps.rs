//! Whether a job can be swept: whether rows that appear behind the walk can be told from those that it has
//! changed.

use postgres_types::Type;
use tokio_postgres::{Client, Error};

use super::expressions::ask;
use crate::database::{describe, identifier};
use crate::job::spec::{Named, Spec};
use crate::walk::keyset::{Keyset, enclosed};
use crate::walk::operation::hidden;
use crate::walk::sweep::Sweeps;

/// How many sweeps there are when the job file does not say.
const DEFAULT: u32 = 3;

/// What was found.
#[derive(Debug, Clone)]
pub struct Swept {
    /// How the rows are looked at once more.
    pub sweeps: Sweeps,
    /// Why there is no sweep though none was refused.
    pub why_not: Option<String>,
}

/// Looks at the job. The inner error is a problem of `walk.sweeps`.
pub(super) async fn examine(
    client: &Client,
    keyset: &Keyset,
    spec: &Spec,
) -> Result<Result<Swept, String>, Error> {
    let wanted = spec.walk.sweeps();
    let swept = |most: u32, marking: Option<String>| {
        Ok(Ok(Swept { sweeps: Sweeps { most, marking }, why_not: None }))
    };
    let none = |why: &str, marking: Option<String>| {
        Ok(Ok(Swept { sweeps: Sweeps { most: 0, marking }, why_not: Some(why.to_owned()) }))
    };
    match spec.operation() {
        Named::Delete(_) | Named::Move(_) => swept(wanted.unwrap_or(DEFAULT), Some("true".to_owned())),
        Named::Copy(_) if spec.operation().skips() => swept(wanted.unwrap_or(DEFAULT), None),
        Named::Copy(_) | Named::Statement(_) => none("rows do not show that they were done", None),
        Named::Update(update) => {
            let Some(filter) = &update.filter else {
                return none("without update.where rows do not show that they were done", None);
            };
            let row = Row::of(client, keyset, &update.set).await?;
            let marking = row.marking(filter);
            let table = keyset.table.sql();
            let marks = format!("EXPLAIN SELECT FROM ONLY {table} WHERE {marking}");
            if let Err(error) = ask(client, &marks, &[]).await? {
                let told = describe(&error);
                return if wanted.unwrap_or(0) > 0 {
                    Ok(Err(format!(
                        "walk.sweeps: whether a changed row still matches cannot be told: {told}"
                    )))
                } else {
                    none(&format!("whether a changed row still matches cannot be told: {told}"), None)
                };
            }
            if let Some(wanted) = wanted {
                return swept(wanted, Some(marking));
            }
            let apart = format!("EXPLAIN {}", row.without_the_set(&table));
            match ask(client, &apart, &[]).await? {
                Ok(()) => swept(DEFAULT, Some(marking)),
                Err(_) => none(
                    "update.set reads columns that it sets, and a row might be changed twice; where that does no harm set walk.sweeps",
                    Some(marking),
                ),
            }
        }
    }
}

/// The columns of the table, by what an update does to them.
struct Row<'a> {
    table: String,
    kept: Vec<String>,
    /// Column, type and expression.
    set: Vec<(String, String, &'a str)>,
}

impl<'a> Row<'a> {
    async fn of(
        client: &Client,
        keyset: &Keyset,
        set: &'a std::collections::BTreeMap<String, String>,
    ) -> Result<Self, Error> {
        let rows = client
            .query_typed(
                "SELECT attname::text, format_type(atttypid, atttypmod) FROM pg_attribute
                 WHERE attrelid = $1 AND attnum > 0 AND NOT attisdropped ORDER BY attnum",
                &[(&keyset.table.oid, Type::OID)],
            )
            .await?;
        let mut row = Self { table: identifier(&keyset.table.name), kept: Vec::new(), set: Vec::new() };
        for found in &rows {
            let (column, type_name): (String, String) = (found.get(0), found.get(1));
            match set.get(&column) {
                Some(expression) => row.set.push((identifier(&column), type_name, expression)),
                None => row.kept.push(identifier(&column)),
            }
        }
        Ok(row)
    }

    fn values(&self) -> Vec<String> {
        self.set
            .iter()
            .map(|(column, type_name, expression)| {
                format!("{}::{type_name} AS {column}", enclosed(expression))
            })
            .collect()
    }

    /// The condition under which a row does not match `filter` any more once it is changed. Columns mean in it
    /// what they will be.
    fn marking(&self, filter: &str) -> String {
        let columns = [self.kept.clone(), self.values()].concat();
        format!("(SELECT NOT {} FROM (SELECT {}) AS {})", hidden(filter), columns.join(", "), self.table)
    }

    /// A statement that there is only when no expression reads a column that is set.
    fn without_the_set(&self, table: &str) -> String {
        format!(
            "SELECT {} FROM (SELECT {} FROM ONLY {table}) AS {}",
            self.values().join(", "),
            self.kept.join(", "),
            self.table
        )
    }
}
