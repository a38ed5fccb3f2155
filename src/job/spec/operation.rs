//! What a job does to the rows: exactly one of five sections.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::Spec;

/// Columns and the SQL expressions that they get.
type Expressions = BTreeMap<String, String>;

/// `[update]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Update {
    /// Columns and SQL expressions.
    pub set: Expressions,
    /// Which rows: an SQL condition. All without one.
    #[serde(rename = "where", skip_serializing_if = "Option::is_none")]
    pub filter: Option<String>,
}

/// `[delete]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Delete {
    /// Which rows: an SQL condition.
    #[serde(rename = "where")]
    pub filter: String,
}

/// `[copy]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Copy {
    /// The table that the rows are written to.
    pub into: String,
    /// Its columns, and SQL expressions over the columns of the row.
    pub columns: Expressions,
    /// Which rows: an SQL condition. All without one.
    #[serde(rename = "where", skip_serializing_if = "Option::is_none")]
    pub filter: Option<String>,
    /// What becomes of a row that is there already. An error without it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub on_conflict: Option<OnConflict>,
}

/// What becomes of a row that is there already.
#[derive(Debug, Clone, std::marker::Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnConflict {
    /// It stays as it is.
    Skip,
    /// It gets the new values.
    Update,
}

/// `[move]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Move {
    /// The table that the rows go to.
    pub into: String,
    /// Its columns, and SQL expressions over the columns of the row.
    pub columns: Expressions,
    /// Which rows: an SQL condition.
    #[serde(rename = "where")]
    pub filter: String,
}

/// `[statement]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Statement {
    /// One data-changing statement that reads the keys of the rows from the relation `batch`.
    pub sql: String,
}

/// The one of the sections that a job has.
#[derive(Debug, Clone, std::marker::Copy)]
pub enum Named<'a> {
    /// `[update]`
    Update(&'a Update),
    /// `[delete]`
    Delete(&'a Delete),
    /// `[copy]`
    Copy(&'a Copy),
    /// `[move]`
    Move(&'a Move),
    /// `[statement]`
    Statement(&'a Statement),
}

impl<'a> Named<'a> {
    /// The section's name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Update(_) => "update",
            Self::Delete(_) => "delete",
            Self::Copy(_) => "copy",
            Self::Move(_) => "move",
            Self::Statement(_) => "statement",
        }
    }

    /// Which rows.
    #[must_use]
    pub fn filter(self) -> Option<&'a str> {
        match self {
            Self::Update(update) => update.filter.as_deref(),
            Self::Delete(delete) => Some(&delete.filter),
            Self::Copy(copy) => copy.filter.as_deref(),
            Self::Move(transfer) => Some(&transfer.filter),
            Self::Statement(_) => None,
        }
    }

    /// The columns that are written, the key that they stand under, and the expressions that they get.
    #[must_use]
    pub fn columns(self) -> Option<(&'static str, &'a Expressions)> {
        match self {
            Self::Update(update) => Some(("update.set", &update.set)),
            Self::Copy(copy) => Some(("copy.columns", &copy.columns)),
            Self::Move(transfer) => Some(("move.columns", &transfer.columns)),
            Self::Delete(_) | Self::Statement(_) => None,
        }
    }

    /// The table that rows are written to, where it is another one.
    #[must_use]
    pub fn into(self) -> Option<&'a str> {
        match self {
            Self::Copy(copy) => Some(&copy.into),
            Self::Move(transfer) => Some(&transfer.into),
            Self::Update(_) | Self::Delete(_) | Self::Statement(_) => None,
        }
    }

    /// Whether rows that are in the other table already are passed over.
    #[must_use]
    pub fn skips(self) -> bool {
        matches!(self, Self::Copy(copy) if copy.on_conflict == Some(OnConflict::Skip))
    }

    fn problems(self, wrong: &mut impl FnMut(bool, &str)) {
        let name = self.name();
        if let Some((key, columns)) = self.columns() {
            let short = key.rsplit('.').next().expect("split gives at least one part");
            wrong(
                columns.is_empty(),
                &format!("{key} is empty: write {short} = {{ column = \"SQL expression\" }}"),
            );
            for (column, expression) in columns {
                wrong(
                    expression.trim().is_empty(),
                    &format!("{key}.{column} is empty: write an SQL expression, or \"NULL\" for no value"),
                );
            }
        }
        let is_optional = matches!(self, Self::Update(_) | Self::Copy(_));
        let advice =
            if is_optional { "leave it out to take every row" } else { "\"true\" to take every row" };
        wrong(
            self.filter().is_some_and(|filter| filter.trim().is_empty()),
            &format!("{name}.where is empty: write an SQL condition, or {advice}"),
        );
        wrong(
            self.into().is_some_and(|into| into.trim().is_empty()),
            &format!("{name}.into is empty: write schema.table"),
        );
        if let Self::Statement(statement) = self {
            wrong(
                statement.sql.trim().is_empty(),
                "statement.sql is empty: write one statement that changes data and reads the relation batch",
            );
        }
    }
}

impl Spec {
    /// What the job does.
    ///
    /// # Panics
    /// If the spec was not found to be without problems.
    #[must_use]
    pub fn operation(&self) -> Named<'_> {
        self.operations().next().expect("a valid spec has one operation")
    }

    pub(super) fn operations(&self) -> impl Iterator<Item = Named<'_>> {
        let update = self.update.as_ref().map(Named::Update);
        let delete = self.delete.as_ref().map(Named::Delete);
        let copy = self.copy.as_ref().map(Named::Copy);
        let transfer = self.transfer.as_ref().map(Named::Move);
        let statement = self.statement.as_ref().map(Named::Statement);
        [update, delete, copy, transfer, statement].into_iter().flatten()
    }

    pub(super) fn operation_problems(&self, wrong: &mut impl FnMut(bool, &str)) {
        let names: Vec<&str> = self.operations().map(Named::name).collect();
        wrong(
            names.is_empty(),
            "no operation: add one of the sections [update], [delete], [copy], [move] and [statement]",
        );
        wrong(
            names.len() > 1,
            &format!(
                "[{}]: a job does one thing: give each of them a job file of its own",
                names.join("] and [")
            ),
        );
        for operation in self.operations() {
            operation.problems(wrong);
        }
    }
}
