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
        Named::Copy(_) if spec.operation().skips() => match wanted {
            Some(wanted) => swept(wanted, None),
            None => none(
                "a row that was taken out of the other table meanwhile would be copied again; where that does no harm set walk.sweeps",
                None,
            ),
        },
        Named::Copy(_) | Named::Statement(_) => none("rows do not show that they were done", None),
        Named::Update(update) => {
            let Some(filter) = &update.filter else {
                return none("without update.where rows do not show that they were done", None);
            };
            let row = Row::of(client, keyset, &update.set).await?;
            let marking = row.marking(filter);
            let table = keyset.table.sql();
            let marks = format!("EXPLAIN {}", row.changed(&table, filter));
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
            let of_row = keyset.table.name.as_str();
            let is_whole_row =
                |expression: &String| words_of(expression).iter().any(|(word, _)| *word == of_row);
            if update.set.values().any(is_whole_row) {
                return none(
                    "update.set names the table, perhaps for the whole row; leave the name out",
                    Some(marking),
                );
            }
            if let Some(function) = inconstant(client, &update.set, filter).await? {
                let why = format!(
                    "{function} may give another value each time, and a row might be changed twice; where that does no harm set walk.sweeps"
                );
                return none(&why, Some(marking));
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

/// What in the expressions may have another value when a row is looked at again: a function that is not known to
/// depend on its arguments alone, the time, other rows. Told by the words, and rather too often than too seldom.
async fn inconstant(
    client: &Client,
    set: &std::collections::BTreeMap<String, String>,
    filter: &str,
) -> Result<Option<String>, Error> {
    const WORDS: [&str; 13] = [
        "select",
        "age",
        "current_date",
        "current_time",
        "current_timestamp",
        "localtime",
        "localtimestamp",
        "current_user",
        "current_role",
        "session_user",
        "user",
        "current_catalog",
        "current_schema",
    ];
    // Of the same arguments, the same under the settings of a batch.
    const STEADY: [&str; 12] = [
        "concat",
        "concat_ws",
        "format",
        "to_char",
        "to_date",
        "to_timestamp",
        "to_number",
        "date_trunc",
        "date_part",
        "timezone",
        "to_json",
        "to_jsonb",
    ];
    let (mut words, mut calls) = (Vec::new(), Vec::new());
    for expression in set.values().map(String::as_str).chain([filter]) {
        for (word, is_call) in words_of(expression) {
            let word = word.to_ascii_lowercase();
            if is_call { calls.push(word) } else { words.push(word) }
        }
    }
    if let Some(word) = words.iter().chain(&calls).find(|word| WORDS.contains(&word.as_str())) {
        return Ok(Some(word.to_uppercase()));
    }
    let row = client
        .query_typed_opt(
            "SELECT min(proname::text) || '()' FROM pg_proc
             WHERE lower(proname) = ANY ($1) AND lower(proname) <> ALL ($2)
             GROUP BY lower(proname) HAVING bool_and(provolatile <> 'i') ORDER BY 1 LIMIT 1",
            &[(&calls, Type::TEXT_ARRAY), (&&STEADY[..], Type::TEXT_ARRAY)],
        )
        .await?;
    Ok(row.map(|row| row.get(0)))
}

/// The words of an expression, and whether each is followed by an opening parenthesis.
fn words_of(expression: &str) -> Vec<(&str, bool)> {
    let is_part = |letter: char| letter.is_alphanumeric() || letter == '_' || letter == '$';
    let mut words = Vec::new();
    let mut rest = expression;
    while let Some(begin) = rest.find(is_part) {
        let word = &rest[begin..];
        let end = word.find(|letter: char| !is_part(letter)).unwrap_or(word.len());
        let behind = word[end..].trim_start_matches(|letter: char| letter == '"' || letter.is_whitespace());
        words.push((&word[..end], behind.starts_with('(')));
        rest = &word[end..];
    }
    words
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
                // Not those that are generated: they change with the others.
                "SELECT attname::text, format_type(atttypid, atttypmod) FROM pg_attribute
                 WHERE attrelid = $1 AND attnum > 0 AND NOT attisdropped AND attgenerated = '' ORDER BY attnum",
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

    /// A statement that there is only when the condition reads nothing but columns as they will be: where `marking`
    /// stands, a column that it does not have would be that of the row as it was.
    fn changed(&self, table: &str, filter: &str) -> String {
        let columns = [self.kept.clone(), self.values()].concat();
        format!(
            "SELECT {} FROM (SELECT {} FROM ONLY {table}) AS {}",
            hidden(filter),
            columns.join(", "),
            self.table
        )
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

#[cfg(test)]
mod tests {
    use super::words_of;

    #[test]
    fn a_call_is_told_from_a_column() {
        let found = words_of("lower (email) || now() || \"Odd\"(x) || t.email");
        let calls: Vec<&str> = found.iter().filter(|(_, is_call)| *is_call).map(|(word, _)| *word).collect();
        assert_eq!(calls, ["lower", "now", "Odd"]);
        assert!(found.contains(&("email", false)) && found.contains(&("t", false)));
    }
}
