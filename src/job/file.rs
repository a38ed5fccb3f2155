//! Reading a job file.

use std::path::{Path, PathBuf};

use serde_json::Value;

use super::known_keys::Source;
use super::spec::{KNOWN_KEYS, Spec};

/// A job file that cannot be used. Every message names the file.
#[derive(Debug, thiserror::Error)]
pub enum JobFileError {
    /// It cannot be read.
    #[error("{path}: cannot read the job file: {error}", path = .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        error: std::io::Error,
    },
    /// It is not TOML, or a value has the wrong type.
    #[error("{path}: {message}", path = .path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// What the parser says, with line and column.
        message: String,
    },
    /// It says something that is unknown, not supported or makes no sense.
    #[error("{}", lines(.path, .problems))]
    Invalid {
        /// The file.
        path: PathBuf,
        /// One message a mistake, each with its key.
        problems: Vec<String>,
    },
}

fn lines(path: &Path, problems: &[String]) -> String {
    let lines: Vec<String> =
        problems.iter().map(|problem| format!("{}: {problem}", path.display())).collect();
    lines.join("\n")
}

/// A job and the file it was read from.
#[derive(Debug, Clone)]
pub struct Job {
    /// Where it came from, for messages.
    pub path: PathBuf,
    /// What it says.
    pub spec: Spec,
}

impl Job {
    /// Reads and validates a job file. Asks nothing of any database.
    pub fn read(path: &Path) -> Result<Self, JobFileError> {
        let text = std::fs::read_to_string(path)
            .map_err(|error| JobFileError::Read { path: path.to_owned(), error })?;
        let parse = |error: toml::de::Error| JobFileError::Parse {
            path: path.to_owned(),
            message: error.to_string().trim_end().to_owned(),
        };
        let table: toml::Table = toml::from_str(&text).map_err(parse)?;
        let invalid = |problems| JobFileError::Invalid { path: path.to_owned(), problems };
        let problems = problems_of_keys(&table);
        if !problems.is_empty() {
            return Err(invalid(problems));
        }
        // From the text again, not from the table: its errors know line and column.
        let spec: Spec = toml::from_str(&text).map_err(parse)?;
        let problems = spec.problems();
        if !problems.is_empty() {
            return Err(invalid(problems));
        }
        Ok(Self { path: path.to_owned(), spec })
    }
}

/// The job files (`*.toml`) of a folder, in the order of their names.
pub fn job_files(directory: &Path) -> std::io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(directory)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "toml") {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

/// What is said that is not known, and what every job must say and is not said.
fn problems_of_keys(table: &toml::Table) -> Vec<String> {
    let mut problems = KNOWN_KEYS.check(table, Source::File);
    let misspelt = problems.iter().any(|problem| problem.starts_with("unknown key"));
    problems.extend(missing(table).into_iter().filter(|_| !misspelt));
    problems
}

/// What every job file must say.
fn missing(table: &toml::Table) -> Vec<String> {
    let mut missing = Vec::new();
    if !table.contains_key("name") {
        missing.push("name is missing: write name = \"users-email-normalized\"".to_owned());
    }
    if !table.contains_key("table") {
        missing.push("table is missing: write table = \"public.users\"".to_owned());
    }
    let operations = ["update", "delete", "copy", "move", "statement"];
    if !operations.iter().any(|key| table.contains_key(*key)) {
        missing.push(
            "no operation: add a section [update] with set = { column = \"SQL expression\" } and where, or one of [delete], [copy], [move] and [statement]"
                .to_owned(),
        );
    }
    let mut section_has_no = |section: &str, key: &str, example: &str| {
        let found = table.get(section).and_then(toml::Value::as_table);
        if found.is_some_and(|section| !section.contains_key(key)) {
            missing.push(format!("{section}.{key} is missing: write {key} = {example}"));
        }
    };
    let expressions = "{ column = \"SQL expression\" }";
    section_has_no("update", "set", expressions);
    for section in ["copy", "move"] {
        section_has_no(section, "into", "\"schema.table\"");
        section_has_no(section, "columns", expressions);
    }
    for section in ["delete", "move"] {
        section_has_no(section, "where", "\"SQL condition\", or \"true\" to take every row");
    }
    section_has_no("statement", "sql", "\"one statement that changes data and reads the relation batch\"");
    missing
}

impl Spec {
    /// The spec as it is kept in the database.
    #[must_use]
    pub fn to_json(&self) -> Value {
        serde_json::to_value(self).expect("a spec has text keys and finite numbers")
    }

    /// Reads a spec from the database, where any role that may submit can have written it. What is wrong is told
    /// as it is of a file.
    pub fn from_json(spec: &Value) -> Result<Self, Vec<String>> {
        if let Ok(table) = toml::Table::try_from(spec) {
            let problems = problems_of_keys(&table);
            if !problems.is_empty() {
                return Err(problems);
            }
        }
        let spec: Self = serde_json::from_value(spec.clone()).map_err(|error| vec![error.to_string()])?;
        match spec.problems() {
            problems if problems.is_empty() => Ok(spec),
            problems => Err(problems),
        }
    }

    /// A spec from the database as this program writes it, so that two that mean the same are the same; one that
    /// cannot be read stays as it is.
    #[must_use]
    pub fn as_written(spec: &Value) -> Value {
        Self::from_json(spec).map_or_else(|_| spec.clone(), |spec| spec.to_json())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problems_of(text: &str) -> String {
        let file = tempfile::Builder::new().suffix(".toml").tempfile().unwrap();
        std::fs::write(file.path(), text).unwrap();
        let error = Job::read(file.path()).map(|job| job.spec).expect_err("the file is wrong").to_string();
        error.replace(&file.path().display().to_string(), "job.toml")
    }

    const GOOD: &str = "name = 'a'\ntable = 't'\n[update]\nset = { x = '1' }\n";

    #[test]
    fn what_is_written_is_kept_and_nothing_added() {
        let file = tempfile::Builder::new().suffix(".toml").tempfile().unwrap();
        std::fs::write(file.path(), format!("{GOOD}where = 'x IS NULL'\n[batch]\ntarget_duration='20ms'\n"))
            .unwrap();
        let spec = Job::read(file.path()).unwrap().spec;
        assert_eq!(
            spec.to_json(),
            serde_json::json!({"name": "a", "table": "t", "update": {"set": {"x": "1"}, "where": "x IS NULL"},
                               "batch": {"target_duration": "20ms"}})
        );
        assert_eq!(Spec::from_json(&spec.to_json()), Ok(spec));
    }

    #[test]
    fn an_unknown_key_is_named_with_the_nearest() {
        assert_eq!(
            problems_of(&format!("{GOOD}wehre = 'x'\n")),
            "job.toml: unknown key update.wehre: did you mean where?"
        );
        assert_eq!(
            problems_of("name='a'\ntabel='t'\n[update]\nset={x='1'}"),
            "job.toml: unknown key tabel: did you mean table?"
        );
        assert_eq!(
            problems_of(&format!("{GOOD}max_retries = 3\n")),
            "job.toml: unknown key update.max_retries: max_retries belongs into [limits]"
        );
        assert_eq!(
            problems_of(&format!("{GOOD}[limit]\nmax_retries = 3\n")),
            "job.toml: unknown key limit: did you mean limits?"
        );
    }

    #[test]
    fn a_job_does_one_thing() {
        let told = problems_of("name='a'\ntable='t'");
        assert!(told.contains("no operation"), "{told}");
        let told = problems_of(&format!("{GOOD}[delete]\nwhere = 'true'\n"));
        assert!(told.contains("[update] and [delete]: a job does one thing"), "{told}");
        for (text, key) in [
            ("[delete]", "delete.where is missing"),
            ("[delete]\nwhere = ' '", "delete.where is empty"),
            ("[copy]\ncolumns = { a = 'a' }", "copy.into is missing"),
            ("[copy]\ninto = 'b'", "copy.columns is missing"),
            ("[copy]\ninto = 'b'\ncolumns = {}", "copy.columns is empty"),
            ("[copy]\ninto = 'b'\ncolumns = { a = 'a' }\non_conflict = 'ignore'", "copy.on_conflict must be"),
            ("[move]\ninto = 'b'\ncolumns = { a = 'a' }", "move.where is missing"),
            ("[statement]", "statement.sql is missing"),
            ("[statement]\nsql = ''", "statement.sql is empty"),
        ] {
            let told = problems_of(&format!("name='a'\ntable='t'\n{text}\n"));
            assert!(told.contains(key), "{text}: {told}");
        }
    }

    #[test]
    fn values_that_make_no_sense_are_refused_with_their_key() {
        for (text, key) in [
            ("[batch]\nmin_rows = 0", "batch.min_rows"),
            ("[walk]\nsweeps = 101", "walk.sweeps must be from 0 to 100"),
            ("[batch]\nmin_rows = 9\nmax_rows = 5", "batch.min_rows"),
            ("[batch]\ntarget_duration = '0s'", "batch.target_duration"),
            ("[limits]\nrows_per_second = -1", "limits.rows_per_second"),
            ("[limits]\nlock_timeout = '0s'", "limits.lock_timeout"),
            ("[walk]\nkey = []", "walk.key"),
        ] {
            let told = problems_of(&format!("{GOOD}{text}\n"));
            assert!(told.starts_with(&format!("job.toml: {key}")), "{text}: {told}");
        }
        let told = problems_of("name='Bad Name'\ntable='t'\n[update]\nset={x='1'}");
        assert!(told.contains("job.toml: name must"), "{told}");
    }

    #[test]
    fn a_wrong_type_is_told_in_words() {
        for (text, told) in [
            ("[batch]\ntarget_duration = 50", "batch.target_duration must be a duration with its unit"),
            ("[batch]\nmin_rows = -1", "batch.min_rows must be a whole number, 0 or more"),
            ("[walk]\nfrom = [1000]", "walk.from must be a list of texts"),
            ("[walk]\norder = 'up'", "walk.order must be one of \"ascending\", \"descending\""),
        ] {
            let problem = problems_of(&format!("{GOOD}{text}\n"));
            assert!(problem.contains(told), "{text}: {problem}");
        }
        let told = problems_of("name='a'\ntable='t'\nupdate = 5\n");
        assert!(told.contains("update is a section, not a key"), "{told}");
        let told = problems_of("name='a'\ntable='t'\n[update]\nset = { x = 1 }\n");
        assert!(told.contains("update.set.x must be"), "{told}");
    }

    #[test]
    fn defaults_do_not_contradict_what_was_given() {
        let bounds = |batch: &str| {
            let text = format!("name='a'\ntable='t'\nupdate={{set={{x='1'}}}}\nbatch={{{batch}}}");
            let spec: Spec = toml::from_str(&text).unwrap();
            assert_eq!(spec.problems(), Vec::<String>::new(), "{batch}");
            spec.batch.bounds()
        };
        assert_eq!(bounds("max_rows = 5").initial_rows, 5);
        assert_eq!(bounds("max_rows = 5").min_rows, 5);
        assert_eq!(bounds("min_rows = 60000").max_rows, 60_000);
    }
}
