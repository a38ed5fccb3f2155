//! The reference of the job file: what it shows can be run, and no key is missing in it.

use std::fs;

use super::support::daemon::backfilld;
use super::support::database::Database;
use super::support::job_file;

fn read(path: &str) -> String {
    fs::read_to_string(format!("{}/{path}", env!("CARGO_MANIFEST_DIR"))).unwrap()
}

/// The examples of the page, each with the line it begins on.
fn examples(page: &str) -> Vec<(usize, String)> {
    let mut examples = Vec::new();
    let mut open: Option<(usize, String)> = None;
    for (number, line) in (1..).zip(page.lines()) {
        match (&mut open, line) {
            (None, "```toml") => open = Some((number, String::new())),
            (Some(_), "```") => examples.extend(open.take()),
            (Some((_, text)), line) => text.extend([line, "\n"]),
            (None, _) => {}
        }
    }
    examples
}

/// An example with what it leaves out of a whole job.
fn whole(example: &str) -> String {
    let head = if example.contains("name  =") { "" } else { "name = 'example'\ntable = 'public.users'\n" };
    let operations = ["[update]", "[delete]", "[copy]", "[move]", "[statement]"];
    let has_operation = operations.iter().any(|section| example.contains(section));
    let operation = if has_operation {
        ""
    } else {
        "[update]\nset = { email_normalized = 'email' }\nwhere = 'email_normalized IS NULL'\n"
    };
    format!("{head}{example}{operation}")
}

#[tokio::test]
async fn every_example_is_a_job_that_can_run() {
    let database = Database::create().await;
    database
        .connect()
        .await
        .batch_execute(
            "CREATE TABLE orgs (id bigint PRIMARY KEY);
             CREATE TABLE users (id bigint PRIMARY KEY, email text NOT NULL, email_normalized text, plan text,
                                 org bigint, created_at timestamptz NOT NULL DEFAULT now());
             ALTER TABLE users ADD CONSTRAINT users_org_fk FOREIGN KEY (org) REFERENCES orgs NOT VALID;
             CREATE TABLE users_new (id bigint PRIMARY KEY, email text NOT NULL, plan text NOT NULL);
             CREATE TABLE users_archive (id bigint PRIMARY KEY, email text NOT NULL, archived_at timestamptz);
             CREATE TABLE orders (user_id bigint NOT NULL, amount numeric NOT NULL);
             CREATE TABLE totals (user_id bigint PRIMARY KEY, amount numeric NOT NULL);",
        )
        .await
        .unwrap();
    let folder = tempfile::tempdir().unwrap();
    let examples = examples(&read("docs/job-file.md"));
    assert!(examples.len() >= 13, "{} examples were found", examples.len());
    for (line, example) in examples {
        let file = job_file(folder.path(), "example.toml", &whole(&example));
        let run = backfilld(database.url(), &["check", file.to_str().unwrap()]);
        assert_eq!(run.code, 0, "docs/job-file.md:{line}\n{example}\n{}", run.stderr);
    }
}

/// By the list from which a job file is checked: the one thing that knows them all.
#[test]
fn every_key_has_its_place() {
    let (page, source) = (read("docs/job-file.md"), read("src/job/spec/keys.rs"));
    let mut section = String::new();
    let mut keys = Vec::new();
    let quoted = |text: &str| text.split('"').nth(1).map(ToOwned::to_owned);
    for line in source.lines().take_while(|line| !line.contains("not_yet:")) {
        for part in line.split_inclusive(['{', '(']) {
            if let Some((_, path)) = part.split_once("path: ") {
                section = quoted(path).unwrap();
            }
            if let Some(key) = part.strip_prefix('"').filter(|_| part.contains("\", Kind::")) {
                let key = key.split('"').next().unwrap();
                keys.push(if section.is_empty() { key.to_owned() } else { format!("{section}.{key}") });
            }
        }
    }
    assert!(keys.len() > 30 && keys.contains(&"walk.sweeps".to_owned()), "{keys:?}");
    keys.extend(["update.set", "copy.columns", "move.columns"].map(ToOwned::to_owned));
    // These have their keys in a list of their own.
    for signal in ["autovacuum", "wal_archive", "active_queries", "sql.NAME", "prometheus.NAME"] {
        keys.extend(["max", "critical"].map(|key| format!("throttle.{signal}.{key}")));
    }
    let missing: Vec<&String> = keys.iter().filter(|key| !page.contains(&format!("`{key}`"))).collect();
    assert!(missing.is_empty(), "docs/job-file.md has nothing on {missing:?}");
}
