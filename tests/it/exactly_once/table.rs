//! The table of a case: filling it, meddling with it while it is walked, and counting.

use std::collections::{HashMap, HashSet};

use proptest::prelude::*;
use proptest::sample::Index;
use tokio::task::JoinHandle;
use tokio_postgres::Client;
use tokio_postgres::error::SqlState;

use super::case::{Case, IndexShape, Operation};
use crate::support::daemon::Run;

/// Rows that the traffic inserts are numbered from here on.
const FIRST_INSERTED: i32 = 1_000_000;

/// A row as it was before the walk.
pub(super) struct Before {
    matches: bool,
    in_bounds: bool,
}

/// What the traffic did to rows that were there before.
#[derive(Default)]
pub(super) struct Meddled {
    deleted: HashSet<i32>,
    tagged: HashSet<i32>,
    inserted: i32,
}

/// The table of a case, under the name of its job.
pub(super) struct Table<'a> {
    pub(super) case: &'a Case,
    pub(super) name: String,
}

impl Table<'_> {
    fn sql(&self) -> String {
        if self.case.odd_names {
            format!("\"odd \"\"Sche.ma\".\"Ta'ble {}\"", self.name)
        } else {
            format!("public.\"{}\"", self.name)
        }
    }

    /// The name of the column that the job sets, bare and as SQL.
    fn filled(&self) -> (&'static str, &'static str) {
        if self.case.odd_names { ("Fil\"led ö", "\"Fil\"\"led ö\"") } else { ("filled", "filled") }
    }

    fn key_columns(&self) -> Vec<String> {
        (1..=self.case.key.len())
            .map(
                |number| {
                    if self.case.odd_names { format!("\"Key \"\" {number}\"") } else { format!("k{number}") }
                },
            )
            .collect()
    }

    /// Each column of the key as the index has it.
    fn indexed_columns(&self) -> Vec<String> {
        let IndexShape::Unique { collation: Some(collation), .. } = &self.case.index else {
            return self.key_columns();
        };
        self.key_columns()
            .into_iter()
            .zip(&self.case.key)
            .map(|(column, key_type)| match key_type.collations {
                [] => column,
                some => format!("{column} COLLATE {}", collation.get(some)),
            })
            .collect()
    }

    /// Creates and fills the table; tells of each row by its number.
    pub(super) async fn set_up(&self, client: &Client) -> HashMap<i32, Before> {
        let (table, filled) = (self.sql(), self.filled().1);
        let columns = self.key_columns();
        let declared: Vec<String> = columns
            .iter()
            .zip(&self.case.key)
            .map(|(column, key_type)| format!("{column} {} NOT NULL", key_type.declaration))
            .collect();
        // The index on the number is not unique: the walk shall not take it for the key.
        let sql = format!(
            "CREATE TABLE {table} ({declared}, number integer NOT NULL, tag integer NOT NULL,
                                   payload integer NOT NULL DEFAULT 0, {filled} integer);
             CREATE INDEX ON {table} (number);
             {index};
             CREATE TRIGGER count BEFORE UPDATE OF {filled} ON {table}
                 FOR EACH ROW EXECUTE FUNCTION public.count_change()",
            declared = declared.join(", "),
            index = self.index_sql(),
        );
        client.batch_execute(&sql).await.unwrap_or_else(|error| panic!("{sql}: {error:?}"));
        for (number, row) in (1..).zip(&self.case.rows) {
            self.insert(client, number, self.case.filter.tag(number), row).await.unwrap();
        }
        let in_bounds = self.bounds_sql();
        client
            .query(&format!("SELECT number, tag, {in_bounds} FROM {table}"), &[])
            .await
            .unwrap_or_else(|error| panic!("{in_bounds}: {error:?}"))
            .iter()
            .map(|row| {
                (row.get(0), Before { matches: self.case.filter.matches(row.get(1)), in_bounds: row.get(2) })
            })
            .collect()
    }

    fn index_sql(&self) -> String {
        let table = self.sql();
        match &self.case.index {
            IndexShape::PrimaryKey => {
                format!("ALTER TABLE {table} ADD PRIMARY KEY ({})", self.key_columns().join(", "))
            }
            IndexShape::Unique { descending, nulls_first, include, .. } => {
                let columns: Vec<String> = self
                    .indexed_columns()
                    .iter()
                    .zip(nulls_first)
                    .map(|(column, first)| {
                        let direction = if *descending { "DESC" } else { "ASC" };
                        format!("{column} {direction} NULLS {}", if *first { "FIRST" } else { "LAST" })
                    })
                    .collect();
                let include = if *include { " INCLUDE (tag, payload)" } else { "" };
                format!("CREATE UNIQUE INDEX ON {table} ({}){include}", columns.join(", "))
            }
        }
    }

    /// A row whose key is there already is left out.
    async fn insert(
        &self,
        client: &Client,
        number: i32,
        tag: i32,
        key: &[String],
    ) -> Result<u64, tokio_postgres::Error> {
        let sql = format!(
            "INSERT INTO {} ({}, number, tag) OVERRIDING SYSTEM VALUE VALUES ({}, {number}, {tag}) ON CONFLICT DO NOTHING",
            self.sql(),
            self.key_columns().join(", "),
            self.values_sql(key).join(", "),
        );
        client.execute(&sql, &[]).await
    }

    fn values_sql(&self, key: &[String]) -> Vec<String> {
        key.iter()
            .zip(&self.case.key)
            .map(|(value, key_type)| format!("'{}'::{}", value.replace('\'', "''"), key_type.cast))
            .collect()
    }

    /// The bounds of the walk: the first values of some rows' keys.
    fn bound(&self, bound: Option<&(Index, usize)>) -> Vec<String> {
        match bound {
            Some((row, width)) if !self.case.rows.is_empty() => row.get(&self.case.rows)[..*width].to_vec(),
            _ => Vec::new(),
        }
    }

    /// Whether a row lies within the bounds, said column by column.
    fn bounds_sql(&self) -> String {
        let columns = self.indexed_columns();
        let side = |bound: Option<&(Index, usize)>, operator: &str| {
            let values = self.values_sql(&self.bound(bound));
            // Read from the last column to the first: beyond the value, or at it and the rest holds.
            (0..values.len()).rev().fold("true".to_owned(), |rest, at| {
                let (column, value) = (&columns[at], &values[at]);
                format!("({column} {operator} {value} OR ({column} = {value} AND {rest}))")
            })
        };
        format!("{} AND {}", side(self.case.from.as_ref(), ">"), side(self.case.to.as_ref(), "<"))
    }

    pub(super) fn job_text(&self) -> String {
        let (bare, filled) = self.filled();
        let mut job = serde_json::json!({
            "name": self.name,
            "table": self.sql(),
            "update": { "set": { bare: format!("coalesce({filled}, 0) + 1") } },
            "walk": {
                "order": if self.case.descending { "descending" } else { "ascending" },
                "from": self.bound(self.case.from.as_ref()),
                "to": self.bound(self.case.to.as_ref()),
            },
            "batch": {
                "initial_rows": self.case.batch_rows,
                "min_rows": self.case.batch_rows,
                "max_rows": self.case.batch_rows,
            },
        });
        if let Some(filter) = self.case.filter.sql() {
            job["update"]["where"] = filter.into();
        }
        toml::to_string(&job).unwrap()
    }

    /// Does the operations again and again from the walk's start to its end.
    pub(super) async fn meddle(&self, client: &Client, walk: &JoinHandle<Run>) -> Meddled {
        let mut meddled = Meddled::default();
        // Without the state's tables there is no job yet.
        let started =
            format!("SELECT FROM backfilld.job WHERE name = '{}' AND state <> 'pending'", self.name);
        while !walk.is_finished() && client.query_opt(&started, &[]).await.ok().flatten().is_none() {}
        for operation in self.case.traffic.iter().cycle() {
            if walk.is_finished() {
                break;
            }
            match self.operate(client, operation, &mut meddled).await {
                Ok(()) => {}
                // What a walk may do to others, who try again: so does this at its next turn.
                Err(error)
                    if matches!(
                        error.code(),
                        Some(&SqlState::T_R_DEADLOCK_DETECTED | &SqlState::T_R_SERIALIZATION_FAILURE)
                    ) => {}
                Err(error) => panic!("{operation:?}: {error:?}"),
            }
        }
        meddled
    }

    async fn operate(
        &self,
        client: &Client,
        operation: &Operation,
        meddled: &mut Meddled,
    ) -> Result<(), tokio_postgres::Error> {
        let table = self.sql();
        // Rows that were left out for their key have a number too, which does no harm.
        let number = |index: &Index| i32::try_from(index.index(self.case.rows.len().max(1))).unwrap() + 1;
        match operation {
            Operation::Insert(key) => {
                let new = FIRST_INSERTED + meddled.inserted;
                meddled.inserted += 1;
                self.insert(client, new, self.case.filter.tag(new), key).await?;
            }
            Operation::Touch(row) => {
                let sql = format!("UPDATE {table} SET payload = payload + 1 WHERE number = {}", number(row));
                client.execute(&sql, &[]).await?;
            }
            Operation::Tag(row, tag) => {
                meddled.tagged.insert(number(row));
                let sql = format!("UPDATE {table} SET tag = {tag} WHERE number = {}", number(row));
                client.execute(&sql, &[]).await?;
            }
            Operation::Delete(row) => {
                meddled.deleted.insert(number(row));
                client.execute(&format!("DELETE FROM {table} WHERE number = {}", number(row)), &[]).await?;
            }
            Operation::TouchMany(rows) => {
                // One transaction; each row's lock is held until its end.
                let touch =
                    |row| format!("UPDATE {table} SET payload = payload + 1 WHERE number = {};", number(row));
                client.batch_execute(&rows.iter().map(touch).collect::<Vec<_>>().concat()).await?;
            }
        }
        Ok(())
    }

    /// Compares what was changed with what should have been, and with what the status says of it.
    pub(super) async fn count(
        &self,
        client: &Client,
        before: &HashMap<i32, Before>,
        meddled: &Meddled,
    ) -> Result<(), TestCaseError> {
        let sql = "SELECT number, count(*) FROM public.changes WHERE table_name ~ $1 GROUP BY number";
        let logged = client.query(sql, &[&format!("\\m{}$", self.name)]).await.unwrap();
        let times: HashMap<i32, i64> = logged.iter().map(|row| (row.get(0), row.get(1))).collect();
        let sql = format!("SELECT number, tag, coalesce({}, 0)::bigint FROM {}", self.filled().1, self.sql());
        for row in client.query(&sql, &[]).await.unwrap() {
            let (number, tag, filled): (i32, i32, i64) = (row.get(0), row.get(1), row.get(2));
            let changed = times.get(&number).copied().unwrap_or(0);
            prop_assert_eq!(filled, changed, "row {}: a change was counted that is not there", number);
            match before.get(&number) {
                _ if meddled.tagged.contains(&number) => {
                    prop_assert!(changed <= 1, "row {}, tagged meanwhile: {} times", number, changed);
                }
                None => {
                    let most = i64::from(self.case.filter.matches(tag));
                    prop_assert!(changed <= most, "row {}, inserted meanwhile: {} times", number, changed);
                }
                Some(was) => {
                    let wanted = i64::from(was.matches && was.in_bounds);
                    prop_assert_eq!(changed, wanted, "row {}, there all the time", number);
                }
            }
        }
        for (number, changed) in &times {
            prop_assert!(*changed <= 1, "row {}, deleted meanwhile: {} times", number, changed);
        }
        self.compare_status(client, before, meddled, times.values().sum()).await
    }

    async fn compare_status(
        &self,
        client: &Client,
        before: &HashMap<i32, Before>,
        meddled: &Meddled,
        changes: i64,
    ) -> Result<(), TestCaseError> {
        let told = client
            .query_one(
                "SELECT state, rows_changed, rows_quarantined, slices_done = slices_total, progress, rows_scanned
                 FROM backfilld.status WHERE name = $1",
                &[&self.name],
            )
            .await
            .unwrap();
        prop_assert_eq!(told.get::<_, &str>(0), "complete");
        prop_assert_eq!(told.get::<_, i64>(1), changes, "rows_changed");
        prop_assert_eq!(told.get::<_, i64>(2), 0, "rows_quarantined");
        prop_assert!(told.get::<_, bool>(3), "slices_done");
        prop_assert!(told.get::<_, f64>(4) >= 1.0, "progress");
        let most = before.values().filter(|row| row.in_bounds).count();
        let least =
            before.iter().filter(|(number, row)| row.in_bounds && !meddled.deleted.contains(*number)).count();
        let most = most + usize::try_from(meddled.inserted).unwrap();
        let scanned = usize::try_from(told.get::<_, i64>(5)).unwrap();
        prop_assert!(
            (least..=most).contains(&scanned),
            "rows_scanned {}, not {} to {}",
            scanned,
            least,
            most
        );
        Ok(())
    }
}
