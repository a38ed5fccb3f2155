//! Notifications: each arrives, once, whoever dies, and nobody waits for them.

mod delivery;

use std::path::Path;
use std::time::Duration;

use serde_json::json;
use tokio_postgres::Client;

use super::metrics::{address, get, value};
use super::support::daemon::{Daemon, backfilld};
use super::support::database::Database;
use super::support::receiver::{Post, Receiver};
use super::support::{job_file, until};

const PATIENCE: Duration = Duration::from_secs(60);
/// The path is as secret as a password.
const PATH: &str = "services/T0/hunter2?key=hunter3";

fn url(port: u16) -> String {
    format!("http://127.0.0.1:{port}/{PATH}")
}

async fn items(client: &Client, rows: i64) {
    client
        .batch_execute(&format!(
            "CREATE TABLE items (id bigint PRIMARY KEY, tenth int);
             INSERT INTO items SELECT n, NULL FROM generate_series(1, {rows}) n; ANALYZE items"
        ))
        .await
        .unwrap();
}

/// A job over all items; `more` is what follows its operation.
fn job(folder: &Path, name: &str, set: &str, more: &str) -> String {
    let text = format!(
        "name = '{name}'\ntable = 'items'\n[update]\nset = {{ tenth = '{set}' }}\nwhere = 'true'\n{more}"
    );
    job_file(folder, &format!("{name}.toml"), &text).to_str().unwrap().to_owned()
}

/// Waits until somebody has looked for news twice, so that what had happened when this was called is written down.
async fn looked(client: &Client) {
    for _ in 0..2 {
        let now = client.query_one("SELECT clock_timestamp()::text", &[]).await.unwrap();
        let now: String = now.get(0);
        until("somebody to look for news", PATIENCE, async || {
            let sql = "SELECT FROM backfilld.notifier WHERE looked_at > $1::text::timestamptz";
            client.query_opt(sql, &[&now]).await.unwrap()
        })
        .await;
    }
}

/// Waits until nothing is left to be sent.
async fn all_ended(client: &Client) {
    looked(client).await;
    until("all to be sent", PATIENCE, async || {
        let sql = "SELECT count(*) FROM backfilld.notification WHERE ended_at IS NULL";
        (client.query_one(sql, &[]).await.unwrap().get::<_, i64>(0) == 0).then_some(())
    })
    .await;
}

async fn is_in(client: &Client, job: &str, state: &str) {
    until(&format!("{job} to be {state}"), PATIENCE, async || {
        let sql = "SELECT FROM backfilld.job WHERE name = $1 AND state = $2";
        client.query_opt(sql, &[&job, &state]).await.ok().flatten()
    })
    .await;
}

fn of<'a>(posts: &'a [Post], job: &str, kind: &str) -> Vec<&'a Post> {
    posts.iter().filter(|post| post.body["job"] == job && post.body["kind"] == kind).collect()
}

#[tokio::test]
async fn each_kind_arrives_once_with_what_happened() {
    let database = Database::create().await;
    let client = database.connect().await;
    items(&client, 100).await;
    let folder = tempfile::tempdir().unwrap();
    let receiver = Receiver::start();
    let files = [
        job(folder.path(), "aside", "10 / (id % 50)", ""),
        job(folder.path(), "fails", "10 / (id % 2)", "[limits]\nmax_quarantined_rows = 0\n"),
        job(folder.path(), "held", "1", ""),
    ];
    let held = std::fs::read_to_string(&files[2]).unwrap();
    // A key of the whole job stands before its sections.
    std::fs::write(&files[2], format!("hold_before = ['start']\n{held}")).unwrap();
    let arguments: Vec<&str> = files.iter().flat_map(|file| ["--job", file]).collect();
    let environment = [
        ("BACKFILLD__NOTIFY__URL", &*url(receiver.port())),
        ("BACKFILLD__NOTIFY__AFTER", "1s"),
        ("BACKFILLD__DAEMON__NAME", "one"),
    ];
    let daemon = Daemon::start_with(database.url(), &arguments, &environment);
    let address = address(&daemon);
    let posts = receiver.wait_for(4, PATIENCE);
    let pause = backfilld(database.url(), &["pause", "held"]);
    assert_eq!(pause.code, 0, "{pause:?}");
    all_ended(&client).await;
    assert_eq!(receiver.posts().len(), 4, "{:#?}", receiver.posts());

    let one = |job: &str, kind: &str| {
        let [one] = of(&posts, job, kind)[..] else { panic!("{job} {kind}: {posts:#?}") };
        one.clone()
    };
    let aside = one("aside", "quarantine");
    assert_eq!(aside.body["rows_quarantined"], 2, "{aside:?}");
    assert!(aside.text("reason").contains("`backfilld quarantine aside`"), "{aside:?}");
    let complete = one("aside", "complete");
    let begins = "Backfill \"aside\" on items is complete: 98 rows changed, 100 scanned, 2 quarantined";
    assert!(complete.text("text").starts_with(begins), "{complete:?}");
    let (place, _) = database.url().split_once('@').map(|(_, place)| place).unwrap().split_once('/').unwrap();
    for (key, expected) in [
        ("table", json!("items")),
        ("state", json!("complete")),
        ("progress", json!(1.0)),
        ("rows_changed", json!(98)),
        ("rows_scanned", json!(100)),
        ("rows_quarantined", json!(2)),
        ("daemon", json!("one")),
        ("actor", json!("daemon one")),
        ("database", json!(format!("{place}/{}", database.name()))),
    ] {
        assert_eq!(complete.body[key], expected, "{key}: {complete:?}");
    }
    let at: String = client
        .query_one(
            "SELECT to_json(at)#>>'{}' FROM backfilld.event WHERE job = 'aside' AND kind = 'complete'",
            &[],
        )
        .await
        .unwrap()
        .get(0);
    let instant = |text: &str| text.parse::<jiff::Timestamp>().unwrap();
    assert_eq!(instant(complete.text("at")), instant(&at));
    let failed = one("fails", "failed");
    let error: String = client
        .query_one("SELECT error FROM backfilld.status WHERE name = 'fails'", &[])
        .await
        .unwrap()
        .get(0);
    assert_eq!((failed.text("reason"), failed.text("state")), (error.as_str(), "failed"));
    let held = one("held", "paused");
    assert_eq!(held.text("state"), "pending");
    assert!(held.text("reason").contains("`backfilld approve held`"), "{held:?}");

    // Another pause is told again, and so is another failure.
    assert_eq!(backfilld(database.url(), &["retry", "fails"]).code, 0);
    receiver.wait_for(5, PATIENCE);
    all_ended(&client).await;
    let posts = receiver.posts();
    assert_eq!((posts.len(), of(&posts, "fails", "failed").len()), (5, 2), "{posts:#?}");
    let mut ids: Vec<&str> = posts.iter().map(|post| post.text("id")).collect();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), 5, "{posts:#?}");
    let metrics = get(&address, "/metrics").1;
    for (outcome, count) in [("sent", 5.0), ("failed", 0.0), ("given_up", 0.0)] {
        let series = format!("backfilld_notifications_total{{outcome=\"{outcome}\"}}");
        assert_eq!(value(&metrics, &series), Some(count), "{metrics}");
    }
}

#[tokio::test]
async fn a_pause_is_told_with_who_or_what_made_it() {
    let database = Database::create().await;
    let client = database.connect().await;
    items(&client, 100_000).await;
    let folder = tempfile::tempdir().unwrap();
    let receiver = Receiver::start();
    let flag = folder.path().join("stop");
    let file = job(folder.path(), "a", "1", "[limits]\nrows_per_second = 100\n");
    let environment = [
        ("BACKFILLD__NOTIFY__URL", &*url(receiver.port())),
        ("BACKFILLD__NOTIFY__AFTER", "1s"),
        ("BACKFILLD__THROTTLE__FLAG_FILE__PATH", flag.to_str().unwrap()),
    ];
    let _daemon = Daemon::start_with(database.url(), &["--job", &file], &environment);
    is_in(&client, "a", "running").await;
    assert_eq!(backfilld(database.url(), &["pause", "a"]).code, 0);
    let posts = receiver.wait_for(1, PATIENCE);
    let by_hand = &posts[0];
    assert_eq!((by_hand.text("kind"), by_hand.text("state")), ("paused", "paused"));
    assert!(by_hand.text("reason").starts_with("asked to pause by "), "{by_hand:?}");
    assert!(by_hand.text("text").contains("`backfilld resume a`"), "{by_hand:?}");
    let since: jiff::Timestamp = by_hand.text("since").parse().unwrap();
    assert!(since < by_hand.text("at").parse().unwrap(), "{by_hand:?}");

    assert_eq!(backfilld(database.url(), &["resume", "a"]).code, 0);
    until("it to be walked", PATIENCE, async || {
        let sql = "SELECT FROM backfilld.status WHERE name = 'a' AND workers > 0 AND throttle ->> 'zone' <> 'paused'";
        client.query_opt(sql, &[]).await.unwrap()
    })
    .await;
    looked(&client).await;
    std::fs::write(&flag, "").unwrap();
    let posts = receiver.wait_for(2, PATIENCE);
    assert_eq!((posts[1].text("kind"), posts[1].text("state")), ("paused", "running"));
    assert!(posts[1].text("reason").contains("flag_file"), "{:?}", posts[1]);
    all_ended(&client).await;
    assert_eq!(receiver.posts().len(), 2, "{:#?}", receiver.posts());
}

/// Ids are given before a commit: the lower one may be seen later.
#[tokio::test]
async fn an_end_that_is_committed_late_is_told_too() {
    let database = Database::create().await;
    let client = database.connect().await;
    let receiver = Receiver::start();
    let environment = [("BACKFILLD__NOTIFY__URL", &*url(receiver.port()))];
    let daemon = Daemon::start_with(database.url(), &[], &environment);
    daemon.wait_for_log("notifications are sent", PATIENCE);
    let event = |job: &str| {
        format!(
            "INSERT INTO backfilld.event (job, kind, actor, reason) VALUES ('{job}', 'complete', 'a test', 'done')"
        )
    };
    let late = database.connect().await;
    late.batch_execute(&format!("BEGIN; {}", event("late"))).await.unwrap();
    client.batch_execute(&event("early")).await.unwrap();
    assert_eq!(receiver.wait_for(1, PATIENCE)[0].text("job"), "early");
    all_ended(&client).await;
    late.batch_execute("COMMIT").await.unwrap();
    assert_eq!(receiver.wait_for(2, PATIENCE)[1].text("job"), "late");
}
