//! Job files that say nothing that can be understood. No database is asked about them.

use super::message;
use crate::support::daemon::backfilld;
use crate::support::job_file;

pub(super) const GOOD: &str = "name = 'fill'\ntable = 'users'\n[update]\nset = { x = '1' }\n";
/// Nothing listens there: whatever is told was found before anybody connected.
const NOWHERE: &str = "postgres://postgres@127.0.0.1:1/nowhere";

/// What `check` tells of a job file, with the file's name as `job.toml`.
fn told(text: &str) -> String {
    let folder = tempfile::tempdir().unwrap();
    let file = job_file(folder.path(), "job.toml", text);
    let file = file.to_str().unwrap();
    let runs = [&["check", file] as &[_], &["submit", file], &["run", "--until-idle", "--job", file]]
        .map(|arguments| backfilld(NOWHERE, arguments));
    for run in &runs {
        assert_eq!((run.code, run.stdout.as_str()), (2, ""), "{text}\n{run:?}");
        assert_eq!(run.stderr, runs[0].stderr);
    }
    runs[0].stderr.replace(file, "job.toml")
}

/// One message on one line: the file, then what the key is and what to do.
pub(super) fn tells(text: &str, beginning: &str, parts: &[&str]) {
    let told = told(text);
    assert_eq!(told.lines().count(), 1, "one mistake, one line:\n{text}\n{told}");
    assert!(told.starts_with(&format!("backfilld: job.toml: {beginning}")), "{beginning:?}:\n{text}\n{told}");
    for part in parts {
        assert!(told.contains(part), "{part:?}:\n{text}\n{told}");
    }
}

#[test]
fn what_is_not_toml_is_told_with_its_line() {
    for (text, line, parts) in [
        ("name = users\n", 1, &["name = users", "quoted"] as &[_]),
        ("name = 'fill'\ntable = 'users'\n[update\nset = { x = '1' }\n", 3, &["[update", "]"]),
        ("name = 'fill'\nname = 'full'\n", 2, &["duplicate key"]),
        ("name = 'fill'\n\ntable: users\n", 3, &["table: users"]),
        ("name = 'fill'\n[update]\nset = { x = '1'\n", 3, &[]),
    ] {
        let told = told(text);
        assert!(told.starts_with("backfilld: job.toml: "), "{told}");
        for part in [&[format!("line {line}").as_str()], parts].concat() {
            assert!(told.contains(part), "{part:?}: {told}");
        }
        // Each line says whose it is, so that the log of a deploy can be searched.
        assert!(told.lines().all(|line| line.starts_with("backfilld: ")), "{told}");
    }
}

#[test]
fn a_file_that_cannot_be_read() {
    for file in ["nothing.toml", "/"] {
        let run = backfilld(NOWHERE, &["check", file]);
        assert!(message(&run, 2).starts_with(&format!("{file}: cannot read the job file: ")), "{run:?}");
    }
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("latin1.toml");
    std::fs::write(&file, b"name = 'f\xfcll'").unwrap();
    let run = backfilld(NOWHERE, &["check", file.to_str().unwrap()]);
    assert!(message(&run, 2).contains("UTF-8"), "{run:?}");
}

#[test]
fn an_unknown_key_is_named_with_the_nearest_known_one() {
    for (text, beginning, advice) in [
        (format!("{GOOD}wehre = 'x = 1'\n"), "unknown key update.wehre", "did you mean where?"),
        (format!("tabel = 'x'\n{GOOD}"), "unknown key tabel", "did you mean table?"),
        (format!("{GOOD}[update.sets]\nx = '1'\n"), "unknown key update.sets", "did you mean set?"),
        (format!("{GOOD}[limit]\nmax_retries = 3\n"), "unknown key limit", "did you mean limits?"),
        (format!("{GOOD}[batch]\nmax_row = 3\n"), "unknown key batch.max_row", "did you mean max_rows?"),
        (format!("{GOOD}[walk]\norders = 'x'\n"), "unknown key walk.orders", "did you mean order?"),
        (format!("{GOOD}max_retries = 3\n"), "unknown key update.max_retries", "[limits]"),
        (format!("{GOOD}[frobnication]\nx = 3\n"), "unknown key frobnication", "batch, "),
        (format!("set = 5\n{GOOD}"), "unknown key set", "[update]"),
    ] {
        tells(&text, beginning, &[advice]);
    }
}

#[test]
fn a_misspelt_operation_is_one_mistake() {
    tells(
        "name = 'a'\ntable = 't'\n[udpate]\nset = { x = '1' }\n",
        "unknown key udpate",
        &["did you mean update?"],
    );
    tells(
        "name = 'a'\ntable = 't'\n[Update]\nset = { x = '1' }\n",
        "unknown key Update",
        &["did you mean update?"],
    );
}

#[test]
fn several_mistakes_are_told_at_once() {
    let told = told(&format!("{GOOD}wehre = 'x'\n[batch]\nmax_row = 3\n[limits]\nretries = 1\n"));
    assert_eq!(told.lines().count(), 3, "{told}");
    let told = told_of_values("[batch]\nmin_rows = 0\n[limits]\nlock_timeout = '0s'\n");
    assert_eq!(told.lines().count(), 2, "{told}");
}

fn told_of_values(more: &str) -> String {
    told(&format!("{GOOD}{more}"))
}

#[test]
fn a_value_of_the_wrong_type_is_told_with_its_key() {
    for (text, key, parts) in [
        (
            format!("{GOOD}[batch]\ntarget_duration = 50\n"),
            "target_duration",
            &["duration", "\"50ms\""] as &[_],
        ),
        (format!("{GOOD}[limits]\nlock_timeout = 'soon'\n"), "lock_timeout", &["duration", "\"30s\""]),
        (format!("{GOOD}[batch]\nmax_rows = 'many'\n"), "max_rows", &["whole number"]),
        (format!("{GOOD}[batch]\nmax_rows = -5\n"), "max_rows", &["0 or more"]),
        (format!("{GOOD}[batch]\nmax_rows = 1.5\n"), "max_rows", &["whole number"]),
        (format!("{GOOD}[limits]\nrows_per_second = 'fast'\n"), "rows_per_second", &["a number"]),
        (format!("{GOOD}[walk]\nfrom = [1000]\n"), "from", &["list of texts", "[\"1000\"]"]),
        (format!("{GOOD}[walk]\nkey = 'id'\n"), "key", &["list of texts"]),
        (format!("{GOOD}[walk]\norder = 'up'\n"), "order", &["ascending", "descending"]),
        (format!("{GOOD}[batch]\nsynchronous_commit = 'maybe'\n"), "synchronous_commit", &["remote_write"]),
        ("name = 5\ntable = 'users'\n[update]\nset = { x = '1' }\n".to_owned(), "name", &["text"]),
        ("name = 'a'\ntable = 'users'\n[update]\nset = { x = 1 }\n".to_owned(), "x", &["text"]),
        ("name = 'a'\ntable = 'users'\n[update]\nset = 'x = 1'\n".to_owned(), "set", &["table"]),
        ("name = 'a'\ntable = 'users'\nupdate = 'x'\n".to_owned(), "update", &[]),
        (format!("batch = 5\n{GOOD}"), "batch", &[]),
    ] {
        let told = told(&text);
        for part in [&[key, "job.toml: "], parts].concat() {
            assert!(told.contains(part), "{part:?}:\n{text}\n{told}");
        }
    }
}

/// What is expected must be said in the words of whoever writes a job file.
#[test]
fn no_message_speaks_rust() {
    let operation = "name = 'a'\ntable = 'users'\n";
    let mut found = Vec::new();
    for text in [
        format!("{GOOD}[walk]\nworkers = 'two'\n"),
        format!("{GOOD}[batch]\nmax_rows = -5\n"),
        format!("{GOOD}[limits]\nrows_per_second = 'fast'\n"),
        format!("{GOOD}[walk]\nkey = 'id'\n"),
        format!("{GOOD}[walk]\norder = 'up'\n"),
        format!("{operation}[update]\nset = 'x = 1'\n"),
        format!("{operation}[update]\nset = {{ x = 1 }}\n"),
        format!("{operation}update = 'x'\n"),
        format!("batch = 5\n{GOOD}"),
        format!("{operation}[update]\nwhere = 'true'\n"),
        "table = 'users'\n[update]\nset = { x = '1' }\n".to_owned(),
    ] {
        let told = told(&text);
        let rust = ["u32", "u64", "f64", "struct", "enum", "variant", "a map", "a sequence", "missing field"];
        for word in rust.into_iter().filter(|word| told.contains(word)) {
            found.push(format!("{word:?}: {told}"));
        }
    }
    assert!(found.is_empty(), "{}", found.join("\n"));
}

#[test]
fn what_must_be_there_is_asked_for() {
    tells("name = 'a'\ntable = 't'\n", "no operation", &["[update]", "set ="]);
    for (text, key) in [
        ("table = 't'\n[update]\nset = { x = '1' }\n", "name"),
        ("name = 'a'\n[update]\nset = { x = '1' }\n", "table"),
        ("name = 'a'\ntable = 't'\n[update]\nwhere = 'true'\n", "set"),
    ] {
        let told = told(text);
        assert!(told.contains("job.toml: ") && told.contains(key), "{text}\n{told}");
    }
    let told = told("");
    for key in ["name", "table", "[update]"] {
        assert!(told.contains(key), "an empty file lacks all three: {told}");
    }
}

#[test]
fn a_job_does_one_thing() {
    tells(&format!("{GOOD}[delete]\nwhere = 'true'\n"), "[update] and [delete]: a job does one thing", &[]);
}

#[test]
fn what_surrounds_the_walk_must_make_sense() {
    for (text, key) in [
        (format!("hold_before = ['end']\n{GOOD}"), "hold_before must be made of \"start\" and \"finish\""),
        (format!("hold_before = ['finish']\n{GOOD}"), "hold_before: there is no finish to hold"),
        (format!("{GOOD}[finish]\nnot_null = ['']\n"), "finish.not_null has an empty name"),
        (format!("{GOOD}[sync]\ntrigger = 'yes'\n"), "sync.trigger must be true or false"),
        (format!("{GOOD}[sync]\ntrigger = true\n"), "sync.trigger: only an [update] with a where"),
    ] {
        tells(&text, key, &[]);
    }
}

#[test]
fn values_that_make_no_sense_are_refused_with_their_key() {
    for (more, key) in [
        ("[batch]\nmin_rows = 0", "batch.min_rows"),
        ("[batch]\nmax_rows = 99999999", "batch.max_rows"),
        ("[batch]\nmin_rows = 9\nmax_rows = 5\ninitial_rows = 7", "batch.min_rows"),
        ("[batch]\ninitial_rows = 60000", "batch.initial_rows"),
        ("[batch]\ntarget_duration = '0s'", "batch.target_duration"),
        ("[batch]\ntarget_duration = '2h'", "batch.target_duration"),
        ("[limits]\nrows_per_second = -1", "limits.rows_per_second"),
        ("[limits]\nrows_per_second = nan", "limits.rows_per_second"),
        ("[limits]\nlock_timeout = '0s'", "limits.lock_timeout"),
        ("[limits]\nstatement_timeout = '20ms'", "limits.statement_timeout"),
        ("[walk]\nkey = []", "walk.key"),
        ("[walk]\nworkers = 0", "walk.workers"),
        ("[walk]\nworkers = 65", "walk.workers"),
    ] {
        let told = told_of_values(more);
        let first = told.lines().next().unwrap();
        assert!(first.starts_with(&format!("backfilld: job.toml: {key}")), "{more}: {told}");
    }
    for name in ["", "Upper", "-dash", "a b", "ä", &"x".repeat(64)] {
        tells(&GOOD.replace("'fill'", &format!("'{name}'")), "name must be 1 to 63 of a-z", &[]);
    }
    tells(&GOOD.replace("'users'", "' '"), "table is empty", &["schema.table"]);
    tells(&GOOD.replace("'1'", "' '"), "update.set.x is empty", &["NULL"]);
    tells(&GOOD.replace("{ x = '1' }", "{}"), "update.set is empty", &["set ="]);
    tells(&format!("{GOOD}where = ''\n"), "update.where is empty", &["leave it out"]);
}

/// A command refuses what it is given before it changes anything, also on a database without state.
#[tokio::test]
async fn run_with_a_job_that_cannot_run_creates_no_schema() {
    let database = crate::support::database::Database::create().await;
    let client = database.connect().await;
    let before = super::fingerprint(&client).await;
    let folder = tempfile::tempdir().unwrap();
    let file = job_file(folder.path(), "job.toml", GOOD);
    let run = backfilld(database.url(), &["run", "--until-idle", "--job", file.to_str().unwrap()]);
    assert_eq!(run.code, 2, "{run:?}");
    assert_eq!(super::fingerprint(&client).await, before, "{run:?}");
}

/// With two job files of which one cannot run, `run` and `submit` take neither.
#[tokio::test]
async fn a_job_that_can_run_is_not_submitted_beside_one_that_cannot() {
    let setup = "CREATE TABLE users (id int PRIMARY KEY, x int)";
    let database = crate::support::database::Database::create().await;
    let client = database.connect().await;
    client.batch_execute(setup).await.unwrap();
    assert_eq!(backfilld(database.url(), &["init"]).code, 0);
    let before = super::fingerprint(&client).await;
    let folder = tempfile::tempdir().unwrap();
    let good = job_file(folder.path(), "good.toml", GOOD);
    let bad = job_file(folder.path(), "bad.toml", &GOOD.replace("users", "usres").replace("fill", "bad"));
    let (good, bad) = (good.to_str().unwrap(), bad.to_str().unwrap());
    for arguments in [&["submit", good, bad] as &[_], &["run", "--until-idle", "--job", good, "--job", bad]] {
        let run = backfilld(database.url(), arguments);
        assert_eq!(run.code, 2, "{run:?}");
        assert!(run.stderr.contains("bad.toml: table: "), "{run:?}");
        assert_eq!(super::fingerprint(&client).await, before, "{arguments:?}: {run:?}");
    }
}
