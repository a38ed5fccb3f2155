//! The log: who is meant in every line, as text and as JSON, and nothing said again and again.

use std::collections::BTreeMap;

use serde_json::Value;

use super::support::daemon::backfilld_with;
use super::support::database::Database;
use super::support::job_file;

/// What is said of the daemon, or of all jobs.
const OF_THE_DAEMON: [&str; 5] = [
    "state schema upgraded",
    "started",
    "stopping",
    "stopped, every slice handed back",
    "no job is left to run",
];
/// What is said of a job and of none of its slices.
const OF_A_WHOLE_JOB: [&str; 7] =
    ["job submitted", "job started", "job finishing", "finishing", "analyze", "job complete", "throttle "];

/// 4,000 rows in batches of 20. Every 20th statement fails once, and 30 rows cannot be changed at all.
async fn table(database: &Database) {
    database
        .connect()
        .await
        .batch_execute(
            "CREATE TABLE items (id bigint PRIMARY KEY, done bool);
             INSERT INTO items SELECT n, NULL FROM generate_series(1, 4000) n;
             ANALYZE items;
             CREATE SEQUENCE tries;
             CREATE FUNCTION is_busy() RETURNS trigger LANGUAGE plpgsql AS
             $$BEGIN
                 IF nextval('tries') % 20 = 0 THEN RAISE EXCEPTION 'busy' USING ERRCODE = '55P03'; END IF;
                 RETURN NULL;
             END$$;
             CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS
             $$BEGIN RAISE EXCEPTION 'no' USING ERRCODE = '22023'; END$$;
             CREATE TRIGGER busy BEFORE UPDATE ON items EXECUTE FUNCTION is_busy();
             CREATE TRIGGER refuse BEFORE UPDATE ON items FOR EACH ROW WHEN (NEW.id % 130 = 0) EXECUTE FUNCTION refuse();",
        )
        .await
        .unwrap();
}

const JOB: &str = "name = 'good'\ntable = 'items'\n[update]\nset = { done = 'true' }\n[walk]\nworkers = 2\n\
    [batch]\ninitial_rows = 20\nmin_rows = 20\nmax_rows = 20\n[finish]\nanalyze = true\n";
/// It fails at its first row.
const BAD: &str = "name = 'bad'\ntable = 'items'\n[update]\nset = { done = 'false' }\n[walk]\nfrom = ['130']\n\
    to = ['130']\n[limits]\nmax_quarantined_rows = 0\n";

/// Runs jobs to their end and returns the log.
async fn log_of(jobs: &[&str], code: i32, level: &str, format: &str) -> (Database, String) {
    let database = Database::create().await;
    table(&database).await;
    let folder = tempfile::tempdir().unwrap();
    let files: Vec<String> = (0..)
        .zip(jobs)
        .map(|(number, text)| job_file(folder.path(), &format!("{number}.toml"), text).display().to_string())
        .collect();
    let arguments: Vec<&str> =
        ["run", "--until-idle"].into_iter().chain(files.iter().flat_map(|file| ["--job", file])).collect();
    let environment = [
        ("BACKFILLD__DAEMON__NAME", "one \"two\""),
        ("BACKFILLD__LOG__LEVEL", level),
        ("BACKFILLD__LOG__FORMAT", format),
    ];
    let run = backfilld_with(database.url(), &arguments, &environment);
    assert_eq!(run.code, code, "{}", run.stderr);
    (database, run.stderr)
}

/// A line of the log, whatever its form.
struct Line {
    text: String,
    message: String,
    daemon: Option<String>,
    job: Option<String>,
    slice: Option<i64>,
}

fn of_json(line: &str) -> Line {
    let value: Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
    let text = |key: &str| value[key].as_str().map(ToOwned::to_owned);
    let names = line.matches("\"daemon\":").count();
    assert_eq!(names, 1, "{line}");
    Line {
        text: line.to_owned(),
        message: text("message").unwrap(),
        daemon: text("daemon"),
        job: text("job"),
        slice: value["slice"].as_i64(),
    }
}

fn of_text(line: &str) -> Line {
    let field = |key: &str| {
        let (_, rest) = line.split_once(&format!(" {key}="))?;
        Some(rest.split(' ').next().unwrap_or_default().to_owned())
    };
    assert_eq!(line.matches(" daemon=").count(), 1, "{line}");
    // Time and level stand before it.
    let (_, message) = line.split_once("Z ").unwrap();
    let message = message.trim_start().split_once(' ').unwrap().1;
    Line {
        text: line.to_owned(),
        message: message.to_owned(),
        daemon: line.contains("daemon=one ").then(|| "one \"two\"".to_owned()),
        job: field("job"),
        slice: field("slice").map(|slice| slice.parse().unwrap()),
    }
}

fn says_who_is_meant(line: &Line, jobs: &[&str]) {
    let Line { text, message, daemon, job, slice } = line;
    assert_eq!(daemon.as_deref(), Some("one \"two\""), "{text}");
    let is_one_of = |known: &[&str]| known.iter().any(|known| message.starts_with(known));
    if is_one_of(&OF_THE_DAEMON) {
        assert!(job.is_none() && slice.is_none(), "{text}");
        return;
    }
    assert!(job.as_deref().is_some_and(|job| jobs.contains(&job)), "no job: {text}");
    // The slice with which a job failed is a part of that line.
    assert_eq!(slice.is_none(), is_one_of(&OF_A_WHOLE_JOB), "{text}");
}

#[tokio::test]
async fn every_line_says_who_is_meant() {
    for (format, read) in [("json", of_json as fn(&str) -> Line), ("text", of_text)] {
        let (_, log) = log_of(&[JOB, BAD], 3, "debug", format).await;
        let lines: Vec<Line> = log.lines().map(read).collect();
        for line in &lines {
            says_who_is_meant(line, &["good", "bad"]);
        }
        // What the above is to be true of was there.
        for message in [
            "slice claimed",
            "batch failed, trying again",
            "row set aside",
            "going on",
            "job complete",
            "job failed",
        ] {
            assert!(lines.iter().any(|line| line.message.starts_with(message)), "{message}: {log}");
        }
    }
}

#[tokio::test]
async fn nothing_is_said_with_every_batch() {
    let (database, log) = log_of(&[JOB], 0, "info", "json").await;
    let client = database.connect().await;
    let row = client
        .query_one(
            "SELECT sum(batches)::bigint, sum(rows_quarantined)::bigint, (SELECT last_value / 20 FROM tries)
             FROM backfilld.slice",
            &[],
        )
        .await
        .unwrap();
    let (batches, aside, failed): (i64, i64, i64) = (row.get(0), row.get(1), row.get(2));
    assert!(batches >= 200 && aside == 30 && failed >= 10, "{batches} {aside} {failed}");
    let mut said: BTreeMap<String, u32> = BTreeMap::new();
    for line in log.lines() {
        *said.entry(of_json(line).message).or_default() += 1;
    }
    // One for each of two workers, and again should they take some minutes. What differs in a figure is another one here.
    assert!(said.values().all(|times| *times <= 6) && said.len() <= 30, "{said:#?}");
    for message in ["batch failed, trying again", "going on", "row set aside in quarantine", "job complete"] {
        assert!(said.contains_key(message), "{message}: {said:#?}");
    }
}
