//! The SQL of a keyset walk.
//!
//! Everything is a row comparison over the whole key, `(a, b) > ($1, $2)`, which is one index
//! condition; `a > $1 OR (a = $1 AND b > $2)` is not. Key values are parameters, so that the server
//! plans each batch with the real values (a custom plan) and nothing is ever quoted by hand.

use std::fmt;

use postgres_types::Type;
use serde::{Deserialize, Serialize};

use crate::database::identifier;

/// The direction of a walk, by the values of the key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Order {
    /// Lowest key first.
    #[default]
    Ascending,
    /// Highest key first.
    Descending,
}

impl Order {
    fn reversed(self) -> Self {
        match self {
            Self::Ascending => Self::Descending,
            Self::Descending => Self::Ascending,
        }
    }
}

/// A table, found in the catalog.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table {
    /// Its object identifier.
    pub oid: u32,
    /// Its schema.
    pub schema: String,
    /// Its name.
    pub name: String,
}

impl Table {
    /// Quoted, with its schema.
    #[must_use]
    pub fn sql(&self) -> String {
        format!("{}.{}", identifier(&self.schema), identifier(&self.name))
    }
}

impl fmt::Display for Table {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}.{}", self.schema, self.name)
    }
}

/// One column of the key.
#[derive(Debug, Clone)]
pub struct KeyColumn {
    /// Its name, unquoted.
    pub name: String,
    /// The type under which its values are sent; of a domain the type below it, since a domain may
    /// refuse a value that the table has (a constraint that is NOT VALID).
    pub parameter_type: Type,
    /// The type as SQL.
    pub type_name: String,
    /// The index's collation as SQL, where it is not the column's own.
    pub collation: Option<String>,
    /// The index's collation as SQL, where it is not the database's default.
    pub order_collation: Option<String>,
    /// The schema, as SQL, of the operators that the index sorts by, where it is not `pg_catalog`.
    pub operator_schema: Option<String>,
    /// Whether the index sorts it downwards.
    pub index_is_descending: bool,
    /// Whether the index puts NULLs first. There are none, but the planner wants to hear it.
    pub index_nulls_first: bool,
}

impl KeyColumn {
    pub(super) fn expression(&self) -> String {
        match &self.collation {
            None => identifier(&self.name),
            Some(collation) => format!("{} COLLATE {collation}", identifier(&self.name)),
        }
    }
}

/// Where a key range starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// With the key given: `>=` upwards.
    At,
    /// Behind the key given: `>` upwards.
    After,
}

/// How a statement on the table comes to the rows of a key range.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rows {
    /// A relation of the rows' keys that the table is joined with.
    pub from: Option<String>,
    /// The condition of the rows.
    pub condition: String,
}

/// A table and the key that a walk follows through it.
#[derive(Debug, Clone)]
pub struct Keyset {
    /// The table.
    pub table: Table,
    /// The index that gives the order.
    pub index: String,
    /// The columns of the key, in the index's order.
    pub columns: Vec<KeyColumn>,
    /// The direction of the walk.
    pub order: Order,
    /// Whether another index begins with the key's first column. The planner takes a row comparison
    /// for a condition on that column alone, and would rather read such an index: a whole tenant for
    /// every batch of a key `(tenant, id)`.
    pub has_rival_index: bool,
}

impl Keyset {
    /// A walk over `table` by the key of `index`.
    #[must_use]
    pub fn new(
        table: Table,
        index: String,
        columns: Vec<KeyColumn>,
        order: Order,
        has_rival_index: bool,
    ) -> Self {
        assert!(!columns.is_empty(), "an index has at least one column");
        Self { table, index, columns, order, has_rival_index }
    }

    /// The schemas, as SQL, whose operators the key is compared with besides the built-in ones. They
    /// must be on the search path: a row comparison finds its operators there only.
    fn operator_schemas(&self) -> Vec<&str> {
        let mut schemas: Vec<&str> =
            self.columns.iter().filter_map(|column| column.operator_schema.as_deref()).collect();
        schemas.sort_unstable();
        schemas.dedup();
        schemas
    }

    /// Puts those schemas on the transaction's search path: behind what is there, so that nothing else
    /// is found elsewhere than before.
    #[must_use]
    pub fn operator_schemas_sql(&self) -> String {
        let append = |schema: &&str| {
            let schema = crate::database::literal(&format!(", {schema}"));
            format!("SELECT set_config('search_path', current_setting('search_path') || {schema}, true);\n")
        };
        self.operator_schemas().iter().map(append).collect()
    }

    /// The names of the key's columns.
    #[must_use]
    pub fn column_names(&self) -> Vec<String> {
        self.columns.iter().map(|column| column.name.clone()).collect()
    }

    /// The types under which key values are sent, in order.
    #[must_use]
    pub fn parameter_types(&self) -> Vec<Type> {
        self.columns.iter().map(|column| column.parameter_type.clone()).collect()
    }

    /// The key's columns as SQL.
    #[must_use]
    pub fn column_list(&self) -> String {
        let columns: Vec<String> = self.columns.iter().map(|column| identifier(&column.name)).collect();
        columns.join(", ")
    }

    /// The key's values as an array of texts, for reading them.
    pub(super) fn key_as_text(&self) -> String {
        let values: Vec<String> =
            self.columns.iter().map(|column| format!("{}::text", identifier(&column.name))).collect();
        format!("ARRAY[{}]", values.join(", "))
    }

    pub(super) fn order_by(&self, order: Order) -> String {
        let terms: Vec<String> = self
            .columns
            .iter()
            .map(|column| {
                let descending = order == Order::Descending;
                let scanned_forwards = descending == column.index_is_descending;
                let nulls_first = column.index_nulls_first == scanned_forwards;
                // SQL's default is NULLS LAST upwards, NULLS FIRST downwards.
                let nulls = match (descending, nulls_first) {
                    (false, false) | (true, true) => "",
                    (false, true) => " NULLS FIRST",
                    (true, false) => " NULLS LAST",
                };
                format!("{}{}{nulls}", column.expression(), if descending { " DESC" } else { "" })
            })
            .collect();
        terms.join(", ")
    }

    /// Compares the columns of the key from `skip` to `width` with parameters, the first of which
    /// would be `$first` for the key's first column.
    fn comparison(&self, operator: &str, skip: usize, width: usize, first: usize) -> String {
        let columns = &self.columns[skip..width];
        let left: Vec<String> = columns.iter().map(KeyColumn::expression).collect();
        let right: Vec<String> = (first + skip..)
            .zip(columns)
            .map(|(number, column)| format!("${number}::{}", column.type_name))
            .collect();
        match (left.as_slice(), right.as_slice()) {
            ([left], [right]) => format!("{left} {operator} {right}"),
            _ => format!("({}) {operator} ({})", left.join(", "), right.join(", ")),
        }
    }

    /// The condition for keys from a start to an end, included, in the order of the walk. The start's
    /// values are the parameters from `$1` on, the end's follow.
    #[must_use]
    pub fn range(&self, start: Start) -> String {
        self.range_within(start, 0)
    }

    /// The same, where the first `shared` values of start and end are known to be equal.
    fn range_within(&self, start: Start, shared: usize) -> String {
        let width = self.columns.len();
        let (from, to) = match (self.order, start) {
            (Order::Ascending, Start::At) => (">=", "<="),
            (Order::Ascending, Start::After) => (">", "<="),
            (Order::Descending, Start::At) => ("<=", ">="),
            (Order::Descending, Start::After) => ("<", ">="),
        };
        let mut conditions: Vec<String> =
            (0..shared).map(|column| self.comparison("=", column, column + 1, 1)).collect();
        conditions.push(self.comparison(from, shared, width, 1));
        conditions.push(self.comparison(to, shared, width, width + 1));
        conditions.join(" AND ")
    }

    /// Finds the key at which the batch ends: the row `OFFSET` rows behind the first of the range. No
    /// row when the range holds fewer. The offset is the last parameter.
    ///
    /// The key is made into text outside the subquery: inside, it would be for every row passed over.
    #[must_use]
    pub fn bound_sql(&self, start: Start) -> String {
        format!(
            "SELECT {key}\nFROM (SELECT {columns}\n      FROM ONLY {table}\n      WHERE {range}\n      ORDER BY {order}\n      OFFSET ${offset}::bigint LIMIT 1) bound",
            key = self.key_as_text(),
            columns = self.column_list(),
            table = self.table.sql(),
            range = self.range(start),
            order = self.order_by(self.order),
            offset = 2 * self.columns.len() + 1,
        )
    }

    /// Counts the rows of a range that is known to be shorter than a batch. The limit is the last parameter.
    #[must_use]
    pub fn count_sql(&self, start: Start) -> String {
        format!(
            "SELECT count(*)\nFROM (SELECT FROM ONLY {table}\n      WHERE {range}\n      ORDER BY {order}\n      LIMIT ${limit}::bigint) rest",
            table = self.table.sql(),
            range = self.range(start),
            order = self.order_by(self.order),
            limit = 2 * self.columns.len() + 1,
        )
    }

    /// How many leading values of two keys are equal, the last one of a key left out. Equal as text is equal;
    /// equal values that are written differently only miss a short cut.
    fn shared(&self, start_key: &[String], end_key: &[String]) -> usize {
        let same = start_key.iter().zip(end_key).take_while(|(one, other)| one == other).count();
        same.min(self.columns.len() - 1)
    }

    /// How a statement that changes rows comes to those of a range, whose ends are given to choose its form.
    #[must_use]
    pub fn rows(&self, start: Start, start_key: &[String], end_key: &[String]) -> Rows {
        let shared = self.shared(start_key, end_key);
        if !self.has_rival_index || shared + 1 == self.columns.len() {
            return Rows { from: None, condition: self.range_within(start, shared) };
        }
        // The batch crosses from one leading value to the next. Its rows are found in the key's order
        // first, then each by its whole key. Not by its ctid: a row that somebody else has just updated
        // has another one, and would be skipped.
        let batch = identifier("backfilld batch");
        let (mut aliases, mut matches) = (Vec::new(), Vec::new());
        for (number, column) in (1..).zip(&self.columns) {
            let alias = identifier(&format!("backfilld key {number}"));
            let name = identifier(&column.name);
            let collate = column.collation.as_ref().map_or(String::new(), |name| format!(" COLLATE {name}"));
            matches.push(format!("{}.{name}{collate} = {batch}.{alias}", identifier(&self.table.name)));
            aliases.push(alias);
        }
        let keys = self.keys_sql(start, start_key, end_key).replace('\n', "\n      ");
        Rows {
            from: Some(format!("({keys}) AS {batch} ({})", aliases.join(", "))),
            condition: matches.join(" AND "),
        }
    }

    /// The keys of a range, in the order of the walk.
    #[must_use]
    pub fn keys_sql(&self, start: Start, start_key: &[String], end_key: &[String]) -> String {
        format!(
            "SELECT {columns}\nFROM ONLY {table}\nWHERE {range}\nORDER BY {order}",
            columns = self.column_list(),
            table = self.table.sql(),
            range = self.range_within(start, self.shared(start_key, end_key)),
            order = self.order_by(self.order),
        )
    }

    /// Whether one key comes behind another in ascending order, by the values that both have. The
    /// values of the first are the parameters from `$1` on, those of the second follow.
    #[must_use]
    pub fn is_behind_sql(&self, width: usize) -> String {
        let side = |first: usize| {
            let values: Vec<String> = (first..)
                .zip(&self.columns[..width])
                .map(|(number, column)| {
                    let collation = column.order_collation.as_ref();
                    let collate = collation.map_or(String::new(), |name| format!(" COLLATE {name}"));
                    format!("${number}::{}{collate}", column.type_name)
                })
                .collect();
            format!("({})", values.join(", "))
        };
        format!("SELECT {} > {}", side(1), side(width + 1))
    }

    /// Finds the first key of the walk, or the last, within bounds that may be prefixes of a key. The
    /// values of `from` are the parameters from `$1` on, those of `to` follow.
    #[must_use]
    pub fn end_sql(&self, end: End, from_width: usize, to_width: usize) -> String {
        let mut conditions = Vec::new();
        if from_width > 0 {
            conditions.push(self.comparison(">=", 0, from_width, 1));
        }
        if to_width > 0 {
            conditions.push(self.comparison("<=", 0, to_width, from_width + 1));
        }
        let filter = match conditions.as_slice() {
            [] => String::new(),
            some => format!("\nWHERE {}", some.join(" AND ")),
        };
        let order = match end {
            End::First => self.order,
            End::Last => self.order.reversed(),
        };
        format!(
            "SELECT {key}\nFROM ONLY {table}{filter}\nORDER BY {order}\nLIMIT 1",
            key = self.key_as_text(),
            table = self.table.sql(),
            order = self.order_by(order),
        )
    }

    /// Counts, in a sample of the table's pages, all rows, those of the range, and the pages that hold
    /// any. The percentage is the last parameter.
    #[must_use]
    pub fn sample_sql(&self, start: Start) -> String {
        format!(
            "SELECT count(*), count(*) FILTER (WHERE {range}),\n       count(DISTINCT (ctid::text::point)[0])\nFROM ONLY {table} TABLESAMPLE SYSTEM (${percent}::real)",
            table = self.table.sql(),
            range = self.range(start),
            percent = 2 * self.columns.len() + 1,
        )
    }
}

/// One of the two ends of a walk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// Where it begins.
    First,
    /// Where it comes to its end.
    Last,
}

/// An expression of a job file in parentheses, on lines of its own so that a comment at its end
/// cannot swallow what follows. DEFAULT is no expression and stands bare.
#[must_use]
pub fn enclosed(expression: &str) -> String {
    if expression.trim().eq_ignore_ascii_case("default") {
        "DEFAULT".to_owned()
    } else if expression.contains("--") || expression.contains('\n') {
        format!("(\n{expression}\n)")
    } else {
        format!("({expression})")
    }
}

#[cfg(test)]
mod tests;
