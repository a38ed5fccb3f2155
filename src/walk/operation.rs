//! What a batch does to the rows of its key range, and the one statement that does it.
//!
//! A condition of the user's stands in a CASE, which keeps its meaning and hides it from index matching: a batch
//! must read its key range, never all the rows of the table that an index on the condition's columns would
//! offer.

use super::keyset::{Keyset, Rows, Start, Table, enclosed};
use crate::database::identifier;

/// What a batch does to the rows of its range.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Operation {
    /// Rows get new values.
    Update {
        /// Columns and the SQL expressions of their new values.
        set: Vec<(String, String)>,
        /// Which rows; all without one.
        filter: Option<String>,
    },
    /// Rows go.
    Delete {
        /// Which.
        filter: String,
    },
    /// Rows are written to another table too.
    Copy {
        /// Where to, and with what in it.
        into: Destination,
        /// Which rows; all without one.
        filter: Option<String>,
        /// What becomes of a row that the other table has already; an error without one.
        on_conflict: Option<OnConflict>,
    },
    /// Rows go to another table.
    Move {
        /// Where to, and with what in it.
        into: Destination,
        /// Which.
        filter: String,
    },
    /// Whatever a statement does that reads the keys of the rows from the relation `batch`.
    Statement {
        /// The statement.
        sql: String,
    },
}

/// The table that rows are written to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Destination {
    /// The table.
    pub table: Table,
    /// Its columns, and the SQL expressions over the row's columns that they get.
    pub columns: Vec<(String, String)>,
    /// One of them is GENERATED ALWAYS AS IDENTITY, and gets the value given all the same.
    pub overrides_identity: bool,
}

/// What becomes of a row that is there already.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OnConflict {
    /// It stays as it is.
    Skip,
    /// It gets the new values.
    Update {
        /// The columns of the unique index by which it is found.
        key: Vec<String>,
    },
}

/// What the relation of a batch's keys is called in `statement.sql`.
pub const BATCH: &str = "batch";

impl Operation {
    /// Which rows are meant; none where all are, or a statement says for itself.
    #[must_use]
    pub fn filter(&self) -> Option<&str> {
        match self {
            Self::Update { filter, .. } | Self::Copy { filter, .. } => filter.as_deref(),
            Self::Delete { filter } | Self::Move { filter, .. } => Some(filter),
            Self::Statement { .. } => None,
        }
    }

    /// The statement for a key range, whose ends are given to choose its form. It tells the number of rows by its
    /// command tag, but for [`Operation::Move`]: that gives two numbers, the rows taken out and the rows put in.
    #[must_use]
    pub fn sql(&self, keyset: &Keyset, start: Start, start_key: &[String], end_key: &[String]) -> String {
        self.sql_where(keyset, start, start_key, end_key, None)
    }

    /// The same for the rows that fulfil `condition`, and not the operation's own.
    #[must_use]
    pub fn sql_where(
        &self,
        keyset: &Keyset,
        start: Start,
        start_key: &[String],
        end_key: &[String],
        condition: Option<&str>,
    ) -> String {
        let rows = keyset.rows(start, start_key, end_key);
        let and = condition.map(str::to_owned).or_else(|| self.filter().map(hidden));
        let and = and.map_or(String::new(), |condition| format!("\n  AND {condition}"));
        let table = keyset.table.sql();
        match self {
            Self::Update { set, filter } => {
                let set: Vec<String> = set
                    .iter()
                    .map(|(column, expression)| format!("{} = {}", identifier(column), enclosed(expression)))
                    .collect();
                let update = format!(
                    "UPDATE ONLY {table}\nSET {}{}\nWHERE {}{and}",
                    set.join(",\n    "),
                    joined("FROM", &rows),
                    rows.condition,
                );
                match (condition, filter) {
                    // Of a sweep: how many rows match as before, though they should not any more.
                    (Some(_), Some(filter)) => {
                        let changed = identifier("backfilld changed");
                        let still = identifier("backfilld still");
                        format!(
                            "WITH {changed} AS (\n{update}\nRETURNING {} AS {still}\n)\nSELECT count(*), count(*) FILTER (WHERE {still}) FROM {changed}",
                            hidden(filter)
                        )
                    }
                    _ => update,
                }
            }
            Self::Delete { .. } => delete(keyset, &rows, &and),
            Self::Copy { into, on_conflict, .. } => {
                let batch = rows.from.as_ref().map_or(String::new(), |from| format!(", {from}"));
                let conflict = on_conflict.as_ref().map_or(String::new(), |conflict| conflict.sql(into));
                // The row is read again once whoever is changing it has committed. Else the values of before would
                // go over those that the application has just written to both tables.
                let lock = match on_conflict {
                    Some(OnConflict::Update { .. }) => {
                        format!("\nFOR SHARE OF {}", identifier(&keyset.table.name))
                    }
                    _ => String::new(),
                };
                format!(
                    "INSERT INTO {} ({}){}\nSELECT {}\nFROM ONLY {table}{batch}\nWHERE {}{and}{lock}{conflict}",
                    into.table.sql(),
                    into.column_list(),
                    into.overriding(),
                    into.expressions(),
                    rows.condition,
                )
            }
            Self::Move { into, .. } => {
                // Under the table's own name where the expressions stand, so that they mean what they would there; not
                // as the name of the WITH, which a subquery on the table would take for it.
                let name = identifier(&keyset.table.name);
                let (gone, kept) = (identifier("backfilld gone"), identifier("backfilld kept"));
                format!(
                    "WITH {gone} AS (\n{}\nRETURNING {name}.*\n), {kept} AS (\nINSERT INTO {} ({}){}\nSELECT {}\nFROM {gone} AS {name}\nRETURNING 1\n)\nSELECT (SELECT count(*) FROM {gone}), (SELECT count(*) FROM {kept})",
                    delete(keyset, &rows, &and),
                    into.table.sql(),
                    into.column_list(),
                    into.overriding(),
                    into.expressions(),
                )
            }
            Self::Statement { sql } => with_batch(sql, &keyset.keys_sql(start, start_key, end_key), keyset),
        }
    }
}

fn delete(keyset: &Keyset, rows: &Rows, and: &str) -> String {
    format!("DELETE FROM ONLY {}{}\nWHERE {}{and}", keyset.table.sql(), joined("USING", rows), rows.condition)
}

fn joined(word: &str, rows: &Rows) -> String {
    rows.from.as_ref().map_or(String::new(), |from| format!("\n{word} {from}"))
}

/// A condition that no index is matched with.
#[must_use]
pub fn hidden(filter: &str) -> String {
    format!("CASE WHEN {} THEN true ELSE false END", enclosed(filter))
}

impl Destination {
    fn column_list(&self) -> String {
        let columns: Vec<String> = self.columns.iter().map(|(column, _)| identifier(column)).collect();
        columns.join(", ")
    }

    /// What stands between the columns of an INSERT and their values.
    #[must_use]
    pub fn overriding(&self) -> &'static str {
        if self.overrides_identity { " OVERRIDING SYSTEM VALUE" } else { "" }
    }

    fn expressions(&self) -> String {
        let expressions: Vec<String> =
            self.columns.iter().map(|(_, expression)| enclosed(expression)).collect();
        expressions.join(",\n       ")
    }
}

impl OnConflict {
    fn sql(&self, into: &Destination) -> String {
        let Self::Update { key } = self else { return "\nON CONFLICT DO NOTHING".to_owned() };
        let key_list: Vec<String> = key.iter().map(|column| identifier(column)).collect();
        let set: Vec<String> = into
            .columns
            .iter()
            .map(|(column, _)| column)
            .filter(|column| !key.contains(column))
            .map(|column| format!("{0} = excluded.{0}", identifier(column)))
            .collect();
        let action =
            if set.is_empty() { "NOTHING".to_owned() } else { format!("UPDATE SET {}", set.join(", ")) };
        format!("\nON CONFLICT ({}) DO {action}", key_list.join(", "))
    }
}

/// Puts the relation `batch` before a statement, into its WITH where it has one.
#[must_use]
pub fn with_batch(sql: &str, keys: &str, keyset: &Keyset) -> String {
    let batch = format!("{BATCH} ({}) AS MATERIALIZED (\n{keys}\n)", keyset.column_list());
    match after_word(sql, "WITH") {
        None => format!("WITH {batch}\n{sql}"),
        Some(rest) => match after_word(rest, "RECURSIVE") {
            None => format!("WITH {batch},{rest}"),
            Some(rest) => format!("WITH RECURSIVE {batch},{rest}"),
        },
    }
}

/// What follows the keyword that `sql` begins with, if it does; blanks and comments before it are passed over.
fn after_word<'a>(sql: &'a str, word: &str) -> Option<&'a str> {
    let sql = after_blanks(sql);
    let (first, rest) = (sql.get(..word.len())?, &sql[word.len()..]);
    let goes_on = rest.starts_with(|letter: char| letter.is_alphanumeric() || "_$".contains(letter));
    (first.eq_ignore_ascii_case(word) && !goes_on).then_some(rest)
}

fn after_blanks(mut sql: &str) -> &str {
    loop {
        sql = sql.trim_start();
        if let Some(comment) = sql.strip_prefix("--") {
            sql = comment.split_once('\n').map_or("", |(_, rest)| rest);
        } else if let Some(comment) = sql.strip_prefix("/*") {
            sql = after_comment(comment);
        } else {
            return sql;
        }
    }
}

/// What follows a comment whose beginning is gone. Comments of SQL stand within each other.
fn after_comment(mut rest: &str) -> &str {
    let mut depth = 1;
    while depth > 0 {
        let Some(at) = rest.find(['*', '/']) else { return "" };
        rest = &rest[at..];
        if let Some(inner) = rest.strip_prefix("/*") {
            (depth, rest) = (depth + 1, inner);
        } else if let Some(behind) = rest.strip_prefix("*/") {
            (depth, rest) = (depth - 1, behind);
        } else {
            rest = &rest[1..];
        }
    }
    rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_keyword_is_found_behind_blanks_and_comments() {
        for (sql, rest) in [
            ("WITH a AS (SELECT 1)", Some(" a AS (SELECT 1)")),
            ("  with\nx", Some("\nx")),
            ("-- with\n/* a /* b */ c */WITH(", Some("(")),
            ("WITHOUT", None),
            ("with_x", None),
            ("/* WITH", None),
            ("UPDATE", None),
            ("é", None),
            ("", None),
        ] {
            assert_eq!(after_word(sql, "WITH"), rest, "{sql}");
        }
    }
}
