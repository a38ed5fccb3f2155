//! Whatever is wrong with a job file, the configuration or the database is told in one clear message
//! that names the file and the key, with the right exit code, and nothing is changed.

#![allow(clippy::unwrap_used, reason = "a test that unwraps fails with the place and the error")]

mod configuration;
mod connection;
mod expressions;
mod job_file;
mod rights;
mod tables;
mod throttle;

use std::fmt::Write as _;

use tokio_postgres::Client;

use crate::support;
use crate::support::daemon::{Run, backfilld_with};
use crate::support::database::Database;

/// A table that most cases are about.
const USERS: &str = "
    CREATE TABLE users (
        id bigint PRIMARY KEY,
        email text,
        normalized text,
        age integer,
        twice integer GENERATED ALWAYS AS (age * 2) STORED,
        number bigint GENERATED ALWAYS AS IDENTITY
    );
    INSERT INTO users (id, email, age) SELECT n, 'User' || n, n FROM generate_series(1, 20) n";

/// A job file that is wrong, and what must be told about it.
struct Case {
    text: String,
    /// How the message begins, after the file's name: the key, as far as there is one.
    key: String,
    /// What else the message must have.
    parts: Vec<String>,
}

impl Case {
    fn new(text: impl Into<String>, key: &str, parts: &[&str]) -> Self {
        let parts = parts.iter().map(|part| (*part).to_owned()).collect();
        Self { text: text.into(), key: key.to_owned(), parts }
    }

    /// A job that sets `column` of `users` to `expression`.
    fn set(column: &str, expression: &str, parts: &[&str]) -> Self {
        let text =
            format!("name = 'wrong'\ntable = 'users'\n[update]\nset = {{ {column} = '''{expression}''' }}\n");
        Self::new(text, &format!("update.set.{column}: "), parts)
    }

    /// A job on `users` with the condition `filter`.
    fn filter(filter: &str, parts: &[&str]) -> Self {
        let text = format!(
            "name = 'wrong'\ntable = 'users'\n[update]\nset = {{ normalized = 'lower(email)' }}\nwhere = '''{filter}'''\n"
        );
        Self::new(text, "update.where: ", parts)
    }

    /// A job that sets the column `x` of `table`, with `more` after it.
    fn table(table: &str, more: &str, key: &str, parts: &[&str]) -> Self {
        let text = format!("name = 'wrong'\ntable = '{table}'\n[update]\nset = {{ x = '1' }}\n{more}\n");
        Self::new(text, key, parts)
    }
}

/// Gives each case to `check`, `submit` and `run --job`, which must all refuse it with the same single
/// message and exit code 2, and leave the database as it was.
async fn refused(setup: &str, cases: &[Case]) {
    let database = Database::create().await;
    let client = database.connect().await;
    client.batch_execute(setup).await.expect("the setup is right");
    refused_in(&client, database.url(), cases).await;
}

/// Like [`refused`], in a database that is there, for whoever the URL names.
async fn refused_in(client: &Client, url: &str, cases: &[Case]) {
    let folder = tempfile::tempdir().unwrap();
    let mut failures = String::new();
    let mut judge = |case: &Case, command: &str, run: &Run, before: &str, after: &str, file: &str| {
        let told = run.stderr.replace(file, "job.toml");
        let lines: Vec<&str> = told.lines().collect();
        let start = format!("backfilld: job.toml: {}", case.key);
        let mut wrong = Vec::new();
        if run.code != 2 {
            wrong.push(format!("exit code {}", run.code));
        }
        if !run.stdout.is_empty() {
            wrong.push(format!("printed {:?}", run.stdout));
        }
        if lines.len() != 1 {
            wrong.push(format!("{} lines", lines.len()));
        }
        if !told.starts_with(&start) {
            wrong.push(format!("does not begin with {start:?}"));
        }
        wrong.extend(
            case.parts.iter().filter(|part| !told.contains(*part)).map(|part| format!("lacks {part:?}")),
        );
        if before != after {
            wrong.push(format!("changed the database: {before} -> {after}"));
        }
        if !wrong.is_empty() {
            let _ = writeln!(failures, "{command} of\n{}\n{}: {told}", case.text, wrong.join(", "));
        }
    };
    // Names of their own, so that a job that is submitted in error does not stand in another's way.
    let file_of = |number: usize, case: &Case| {
        let text = case.text.replace("name = 'wrong'", &format!("name = 'wrong-{number}'"));
        let path = support::job_file(folder.path(), "job.toml", &text);
        path.to_str().expect("temporary folders have plain names").to_owned()
    };
    // Before there is a state schema: `check` needs none, and creates none.
    for (number, case) in cases.iter().enumerate() {
        let (before, file) = (fingerprint(client).await, file_of(number, case));
        let run = backfilld_with(url, &["check", &file], &[]);
        judge(case, "check", &run, &before, &fingerprint(client).await, &file);
    }
    let admin = url.replacen(url.split_once("://").unwrap().1.split_once('@').unwrap().0, "postgres", 1);
    let init = backfilld_with(&admin, &["init"], &[]);
    assert_eq!(init.code, 0, "{init:?}");
    client
        .batch_execute(
            "GRANT USAGE ON SCHEMA backfilld TO public;
             GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA backfilld TO public",
        )
        .await
        .unwrap();
    for (number, case) in cases.iter().enumerate() {
        let file = file_of(number, case);
        for arguments in [&["submit", &file] as &[_], &["run", "--until-idle", "--job", &file]] {
            let before = fingerprint(client).await;
            let run = backfilld_with(url, arguments, &[]);
            judge(case, arguments[0], &run, &before, &fingerprint(client).await, &file);
        }
    }
    assert!(failures.is_empty(), "\n{failures}");
}

/// All that is in the database: every schema, and every row of every table with its version.
async fn fingerprint(client: &Client) -> String {
    let mut text = String::new();
    let schemas = "SELECT nspname::text FROM pg_namespace WHERE nspname !~ '^pg_' ORDER BY 1";
    for row in client.query(schemas, &[]).await.unwrap() {
        let _ = write!(text, "{} ", row.get::<_, &str>(0));
    }
    let tables = "SELECT c.oid::regclass::text FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
                  WHERE c.relkind = 'r' AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema' ORDER BY 1";
    for row in client.query(tables, &[]).await.unwrap() {
        let table: &str = row.get(0);
        let rows = client
            .query_one(
                &format!(
                    "SELECT count(*), coalesce(md5(string_agg(t.ctid || ' ' || t.xmin || ' ' || t::text, ',' ORDER BY t.ctid)), '')
                     FROM {table} t"
                ),
                &[],
            )
            .await
            .unwrap();
        let _ = write!(text, "{table}={}:{} ", rows.get::<_, i64>(0), rows.get::<_, &str>(1));
    }
    text
}

/// The one line of a command that failed, without the program's name. Nothing was printed.
fn message(run: &Run, code: i32) -> &str {
    assert_eq!((run.code, run.stdout.as_str()), (code, ""), "{run:?}");
    let lines: Vec<&str> = run.stderr.lines().collect();
    let [line] = lines.as_slice() else { panic!("one message is wanted: {}", run.stderr) };
    line.strip_prefix("backfilld: ").unwrap_or_else(|| panic!("{run:?}"))
}
