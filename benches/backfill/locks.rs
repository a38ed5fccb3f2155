//! For how long the whole change keeps everybody from the table: a new NOT NULL column from the first migration to the
//! last, by backfilld and as plain migrations, on a table that is in use.

mod holds;
mod traffic;

use std::fmt::Write as _;
use std::time::Instant;

use tokio_postgres::Client;
use tokio_postgres::error::SqlState;

use crate::backfill::Backfill;
use crate::figures::{Wanted, grouped, table, verdict};
use crate::machine;
use crate::size::Size;
use crate::support::database::Database;
use crate::support::server::Server;
use crate::users;
use holds::{Seen, Watch};
use traffic::{Release, Requests, Traffic};

/// Rows at full size.
const ROWS: u32 = 5_000_000;
const SETTINGS: [(&str, &str); 2] = [("shared_buffers", "1GB"), ("max_wal_size", "8GB")];
const JOB: &str = "email-normalized";
/// What each migration of the staged change begins with.
const CAREFULLY: &str = "SET lock_timeout = '500ms'; SET statement_timeout = '10s';";

/// One way of making the change.
struct Journey {
    name: &'static str,
    seconds: f64,
    migrated: Migrated,
    seen: Seen,
    requests: Requests,
}

impl Journey {
    fn longest_hold_milliseconds(&self) -> f64 {
        1e3 * self.seen.holds.iter().map(|hold| hold.at_most_seconds).fold(0.0, f64::max)
    }
}

/// How often a migration was broken off as part of a deadlock, and whether it went through in the end.
#[derive(Debug, Clone, Copy)]
struct Migrated {
    deadlocks: u32,
    went_through: bool,
}

/// Tries of a migration that ends in a deadlock.
const TRIES: u32 = 3;

/// Measures and publishes the report.
pub(crate) async fn run() {
    let size = Size::chosen(ROWS);
    let server = Server::start_with(&SETTINGS);
    let database = Database::create_on(&server).await;
    let client = database.connect().await;
    client.batch_execute("SET statement_timeout = '60min'").await.expect("a superuser can set this");
    eprintln!("locks: loading {} rows", grouped(size.rows.into()));
    users::load_template(&client, size.rows).await;
    // The column is what the change adds.
    client
        .batch_execute("ALTER TABLE users_template DROP COLUMN email_normalized")
        .await
        .expect("the template is ours");
    let mut journeys = Vec::new();
    for (name, way) in [
        ("backfilld, five stages", Way::Staged),
        ("one UPDATE, then SET NOT NULL, a transaction each", Way::UpdateThenEnforce),
        ("one UPDATE, then SET NOT NULL, in one transaction", Way::UpdateAndEnforce),
        ("the same with the new column added in it", Way::AllInOne),
    ] {
        eprintln!("locks: {name}");
        users::copy(&client).await;
        journeys.push(journey(&client, database.url(), size.rows, name, way).await);
        users::drop_copy(&client).await;
    }
    let machine = machine::description(&client, &SETTINGS).await;
    size.publish("locks.md", &report(size.rows, &machine, &journeys));
}

#[derive(Debug, Clone, Copy)]
enum Way {
    Staged,
    UpdateThenEnforce,
    UpdateAndEnforce,
    AllInOne,
}

async fn journey(client: &Client, url: &str, rows: u32, name: &'static str, way: Way) -> Journey {
    let traffic = Traffic::start(url, rows);
    if matches!(way, Way::UpdateThenEnforce | Way::UpdateAndEnforce) {
        // By a migration of its own, whose lock is the same as in the staged change.
        client.batch_execute("ALTER TABLE users ADD COLUMN email_normalized text").await.expect("it is new");
        traffic.deploy(Release::Both);
    }
    let watch = Watch::start(url, "users");
    let begun = Instant::now();
    let migrated = match way {
        Way::Staged => staged(client, url, &traffic).await,
        Way::UpdateThenEnforce => plain(client, &format!("{UPDATE}; COMMIT; BEGIN; {ENFORCE}")).await,
        Way::UpdateAndEnforce => plain(client, &format!("{UPDATE}; {ENFORCE}")).await,
        Way::AllInOne => {
            plain(client, &format!("ALTER TABLE users ADD COLUMN email_normalized text; {UPDATE}; {ENFORCE}"))
                .await
        }
    };
    let seconds = begun.elapsed().as_secs_f64();
    let (seen, requests) = (watch.stop(), traffic.stop());
    if migrated.went_through {
        verify(client, rows).await;
    }
    Journey { name, seconds, migrated, seen, requests }
}

async fn staged(client: &Client, url: &str, traffic: &Traffic) -> Migrated {
    let migrate = async |sql: &str| {
        client.batch_execute(&format!("{CAREFULLY} {sql}")).await.expect("nobody holds the table for long");
    };
    migrate("ALTER TABLE users ADD COLUMN email_normalized text").await;
    traffic.deploy(Release::Both);
    let backfill = Backfill::start(url, url, JOB, client).await;
    backfill.submit(&format!(
        "name = \"{JOB}\"\ntable = \"public.users\"\n\
         [update]\nset = {{ email_normalized = \"lower(email)\" }}\nwhere = \"email_normalized IS NULL\"\n\
         [finish]\nnot_null = [\"email_normalized\"]\nanalyze = true\n"
    ));
    backfill.wait(JOB);
    backfill.stop();
    migrate(&format!(
        "SELECT backfilld.require_complete('{JOB}'); ALTER TABLE users ALTER COLUMN email DROP NOT NULL"
    ))
    .await;
    traffic.deploy(Release::New);
    // What is under way of the release before reads the old column.
    tokio::time::sleep(std::time::Duration::from_secs(1)).await;
    migrate(&format!("SELECT backfilld.require_complete('{JOB}'); ALTER TABLE users DROP COLUMN email"))
        .await;
    client.batch_execute("RESET lock_timeout; SET statement_timeout = '60min'").await.expect("may be set");
    Migrated { deadlocks: 0, went_through: true }
}

const UPDATE: &str = "UPDATE users SET email_normalized = lower(email) WHERE email_normalized IS NULL";
const ENFORCE: &str = "ALTER TABLE users ALTER COLUMN email_normalized SET NOT NULL";

/// As a migration tool runs it, again where it was broken off.
async fn plain(client: &Client, migration: &str) -> Migrated {
    for deadlocks in 0..TRIES {
        let Err(error) = client.batch_execute(&format!("BEGIN; {migration}; COMMIT")).await else {
            return Migrated { deadlocks, went_through: true };
        };
        assert_eq!(error.code(), Some(&SqlState::T_R_DEADLOCK_DETECTED), "{error:?}");
        client.batch_execute("ROLLBACK").await.expect("the server answers");
    }
    Migrated { deadlocks: TRIES, went_through: false }
}

async fn verify(client: &Client, rows: u32) {
    let row = client
        .query_one(
            "SELECT count(*), count(email_normalized),
                    (SELECT attnotnull FROM pg_attribute
                     WHERE attrelid = 'users'::regclass AND attname = 'email_normalized'),
                    (SELECT count(*) FROM pg_constraint WHERE conrelid = 'users'::regclass AND contype = 'c')
             FROM users",
            &[],
        )
        .await
        .expect("the table can be read");
    let (present, filled, is_enforced, checks): (i64, i64, bool, i64) =
        (row.get(0), row.get(1), row.get(2), row.get(3));
    assert_eq!((present, filled), (rows.into(), rows.into()), "rows, and rows with the new value");
    assert!(is_enforced && checks == 0, "NOT NULL in place, and no CHECK left");
}

fn report(rows: u32, machine: &str, journeys: &[Journey]) -> String {
    let milliseconds = |seconds: f64| format!("{:.1}", 1e3 * seconds);
    let lines: Vec<Vec<String>> = journeys
        .iter()
        .map(|journey| {
            vec![
                journey.name.to_owned(),
                format!("{:.1}", journey.longest_hold_milliseconds()),
                grouped(journey.requests.count as f64),
                milliseconds(journey.requests.p99_seconds),
                milliseconds(journey.requests.longest_seconds),
                journey.requests.failed.to_string(),
                match journey.migrated {
                    Migrated { deadlocks, went_through: true } => deadlocks.to_string(),
                    Migrated { deadlocks, went_through: false } => format!("{deadlocks}, and given up"),
                },
                format!("{:.0}", journey.seconds),
            ]
        })
        .collect();
    let staged = &journeys[0];
    let holds: Vec<Vec<String>> = staged
        .seen
        .holds
        .iter()
        .map(|hold| vec![format!("`{}`", summary(&hold.statement)), milliseconds(hold.at_most_seconds)])
        .collect();
    let mut text = format!(
        "# Locks\n\n\
         What `make bench-locks` measured: a new column `email_normalized` of a table of {rows} users is added, filled, made NOT\n\
         NULL, and the old column dropped, while four sessions send 200 requests a second in all, half of them writes. By\n\
         backfilld with all defaults in five stages, and as plain migrations that end with NOT NULL in place. One run after the\n\
         other, each on a fresh copy of the table; the result was checked row by row.\n\n\
         {machine}\n\
         {table}\n\
         A lock's time is an upper bound: `pg_locks` was read about once a millisecond, and a lock counts from the look before\n\
         it was first seen to the look after it was last seen. One that no look saw is not listed; it was shorter than the\n\
         time between two looks, whose longest was {gaps} ms. A request's time begins when it is due, so that one that waits behind another has waited too. What failed was broken off\n\
         by the server as part of a deadlock: the UPDATE holds rows that requests wait for with their lock on the table,\n\
         and SET NOT NULL in the same transaction waits for theirs. It was tried {TRIES} times.\n\n\
         ## Each ACCESS EXCLUSIVE lock of the five stages\n\n\
         {holds}\n",
        rows = grouped(rows.into()),
        table = table(
            &[
                "",
                "longest ACCESS EXCLUSIVE, ms",
                "requests",
                "their p99, ms",
                "the longest, ms",
                "requests failed",
                "migrations failed",
                "seconds in all"
            ],
            &lines
        ),
        gaps = journeys
            .iter()
            .map(|journey| milliseconds(journey.seen.longest_gap_seconds))
            .collect::<Vec<_>>()
            .join(", "),
        holds = table(&["statement", "at most, ms"], &holds),
    );
    text.push_str(&verdict(
        "longest ACCESS EXCLUSIVE lock of the five stages",
        Wanted::Below(50.0),
        " ms",
        staged.longest_hold_milliseconds(),
    ));
    for plain in journeys[1..].iter().filter(|plain| plain.migrated.went_through) {
        let ratio = plain.longest_hold_milliseconds() / staged.longest_hold_milliseconds();
        writeln!(text, "- {}: {} times as long", plain.name, grouped(ratio))
            .expect("a String takes every write");
    }
    text
}

/// What a session ran, in one line.
fn summary(statement: &str) -> String {
    let alter = statement.match_indices("ALTER TABLE").map(|(at, _)| {
        let rest = &statement[at..];
        rest.split(';').next().unwrap_or(rest).split_whitespace().collect::<Vec<_>>().join(" ")
    });
    let altered: Vec<String> = alter.collect();
    if altered.is_empty() {
        statement.split_whitespace().collect::<Vec<_>>().join(" ")
    } else {
        altered.join("; ")
    }
}
