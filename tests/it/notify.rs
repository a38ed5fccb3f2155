//! Notifications: each arrives, once, whoever dies, and nobody waits for them.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use serde_json::json;
use tokio_postgres::Client;

use super::metrics::{address, get, value};
use super::support::daemon::{Daemon, backfilld, backfilld_with};
use super::support::database::Database;
use super::support::receiver::{Post, Receiver};
use super::support::server::free_port;
use super::support::{job_file, until};
use super::tls::authority::Authority;

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

#[tokio::test]
async fn no_batch_waits_for_a_receiver_that_hangs() {
    let database = Database::create().await;
    let client = database.connect().await;
    items(&client, 1_000).await;
    let folder = tempfile::tempdir().unwrap();
    let receiver = Receiver::start();
    receiver.answer(None);
    let first = job(folder.path(), "first", "1", "");
    let second = job(folder.path(), "second", "2", "[batch]\ninitial_rows = 50\nmax_rows = 50\n");
    // The least that a daemon can do with.
    let environment = [
        ("BACKFILLD__NOTIFY__URL", &*url(receiver.port())),
        ("BACKFILLD__DATABASE__POOL_SIZE", "5"),
        ("BACKFILLD__DAEMON__MAX_RUNNING_JOBS", "1"),
    ];
    let daemon = Daemon::start_with(database.url(), &["--job", &first], &environment);
    receiver.wait_for(1, PATIENCE);
    assert_eq!(backfilld(database.url(), &["submit", &second]).code, 0);
    is_in(&client, "second", "complete").await;
    let sql = "SELECT attempts, last_error FROM backfilld.notification WHERE job = 'first'";
    let row = client.query_one(sql, &[]).await.unwrap();
    let (attempts, last_error): (i32, Option<String>) = (row.get(0), row.get(1));
    assert_eq!((attempts, last_error), (1, None), "its answer is still waited for\n{}", daemon.log());
    receiver.answer(Some(200));
    let posts = receiver.wait_for(2, PATIENCE);
    assert_eq!((posts[0].text("job"), posts[1].text("job")), ("first", "second"));
}

#[tokio::test]
async fn a_receiver_that_was_away_gets_it_when_it_is_back() {
    let database = Database::create().await;
    let client = database.connect().await;
    items(&client, 100).await;
    let folder = tempfile::tempdir().unwrap();
    let port = free_port();
    let file = job(folder.path(), "a", "1", "");
    let environment = [("BACKFILLD__NOTIFY__URL", &*url(port))];
    let daemon = Daemon::start_with(database.url(), &["--job", &file], &environment);
    let line = daemon.wait_for_log("notification not delivered", PATIENCE);
    assert!(line.contains(&format!("http://127.0.0.1:{port}")) && line.contains("refused"), "{line}");
    // How long it waits is told, and no more once it is sent.
    let waits =
        || value(&get(&address(&daemon), "/metrics").1, "backfilld_notification_waiting_seconds").unwrap();
    until("it to be told that one waits", PATIENCE, async || (waits() > 0.0).then_some(())).await;
    let receiver = Receiver::start_on(port);
    receiver.answer(Some(503));
    receiver.wait_for(2, PATIENCE);
    receiver.answer(Some(200));
    all_ended(&client).await;
    let posts = receiver.posts();
    assert!(posts.len() >= 3 && posts.iter().all(|post| post.body == posts[0].body), "{posts:#?}");
    let row = client.query_one("SELECT outcome, attempts FROM backfilld.notification", &[]).await.unwrap();
    assert_eq!(row.get::<_, &str>(0), "sent");
    assert!(row.get::<_, i32>(1) >= 4, "{row:?}");
    until("none to wait", PATIENCE, async || (waits() == 0.0).then_some(())).await;
}

#[tokio::test]
async fn of_two_daemons_one_tells() {
    const JOBS: usize = 12;
    let database = Database::create().await;
    let client = database.connect().await;
    items(&client, 100).await;
    let folder = tempfile::tempdir().unwrap();
    let receiver = Receiver::start();
    receiver.answer(None);
    let environment = [("BACKFILLD__NOTIFY__URL", &*url(receiver.port()))];
    let daemons = [1, 2].map(|_| Daemon::start_with(database.url(), &[], &environment));
    for daemon in &daemons {
        daemon.wait_for_log("notifications are sent", PATIENCE);
    }
    let files: Vec<String> =
        (0..JOBS).map(|number| job(folder.path(), &format!("job-{number}"), "1", "")).collect();
    assert_eq!(backfilld(database.url(), &["submit", &files[0]]).code, 0);
    receiver.wait_for(1, PATIENCE);
    // One of them waits for the answer, and the other one, which has nothing else to do, leaves it alone.
    looked(&client).await;
    let sql = "SELECT attempts, last_error FROM backfilld.notification";
    let row = client.query_one(sql, &[]).await.unwrap();
    assert_eq!((row.get(0), row.get::<_, Option<&str>>(1)), (1, None), "{:#?}", receiver.posts());
    receiver.answer(Some(200));
    let submit: Vec<&str> = ["submit"].into_iter().chain(files.iter().map(String::as_str)).collect();
    assert_eq!(backfilld(database.url(), &submit).code, 0);
    until("all to be told", PATIENCE, async || {
        let told: BTreeSet<String> =
            receiver.posts().iter().map(|post| post.text("job").to_owned()).collect();
        (told.len() == JOBS).then_some(())
    })
    .await;
    all_ended(&client).await;
    let posts = receiver.posts();
    let different = |key: &str| posts.iter().map(|post| post.text(key)).collect::<BTreeSet<_>>().len();
    assert_eq!((different("job"), different("id")), (JOBS, JOBS), "{posts:#?}");
    let sql = "SELECT sum(attempts) FROM backfilld.notification";
    assert_eq!(
        client.query_one(sql, &[]).await.unwrap().get::<_, i64>(0),
        i64::try_from(posts.len()).unwrap(),
        "{posts:#?}"
    );
}

#[tokio::test]
async fn what_a_killed_daemon_was_sending_comes_again_under_the_same_id() {
    let database = Database::create().await;
    let client = database.connect().await;
    items(&client, 100).await;
    let folder = tempfile::tempdir().unwrap();
    let receiver = Receiver::start();
    receiver.answer(None);
    let file = job(folder.path(), "a", "1", "");
    let environment = [("BACKFILLD__NOTIFY__URL", &*url(receiver.port()))];
    let mut daemon = Daemon::start_with(database.url(), &["--job", &file], &environment);
    receiver.wait_for(1, PATIENCE);
    daemon.kill();
    receiver.answer(Some(200));
    let _next = Daemon::start_with(database.url(), &[], &environment);
    looked(&client).await;
    assert_eq!(receiver.posts().len(), 1, "it is still the killed one's: {:#?}", receiver.posts());
    // As if that time had passed.
    let passes = "UPDATE backfilld.notification SET due_at = clock_timestamp()";
    assert_eq!(client.execute(passes, &[]).await.unwrap(), 1);
    let posts = receiver.wait_for(2, PATIENCE);
    assert_eq!(posts[0].body, posts[1].body);
    all_ended(&client).await;
    assert_eq!(receiver.posts().len(), 2);
}

#[tokio::test]
async fn what_a_receiver_refuses_is_not_tried_again() {
    let database = Database::create().await;
    let client = database.connect().await;
    items(&client, 100).await;
    let folder = tempfile::tempdir().unwrap();
    let receiver = Receiver::start();
    receiver.answer(Some(400));
    let file = job(folder.path(), "a", "1", "");
    let environment = [("BACKFILLD__NOTIFY__URL", &*url(receiver.port()))];
    let daemon = Daemon::start_with(database.url(), &["--job", &file], &environment);
    let address = address(&daemon);
    let line = daemon.wait_for_log("notification failed", PATIENCE);
    assert!(
        line.contains("ERROR") && line.contains("HTTP 400") && line.contains("docs/operating.md"),
        "{line}"
    );
    all_ended(&client).await;
    assert_eq!(receiver.posts().len(), 1, "{:#?}", receiver.posts());
    let metrics = get(&address, "/metrics").1;
    assert_eq!(value(&metrics, "backfilld_notifications_total{outcome=\"failed\"}"), Some(1.0), "{metrics}");
    let event = "SELECT reason FROM backfilld.event WHERE job = 'a' AND kind = 'not notified'";
    let reason: String = client.query_one(event, &[]).await.unwrap().get(0);
    assert!(
        reason.starts_with(&format!("complete: http://127.0.0.1:{}: HTTP 400", receiver.port())),
        "{reason}"
    );

    // And what nobody takes for a day is given up.
    receiver.answer(Some(500));
    client
        .batch_execute(
            "INSERT INTO backfilld.notification (job, kind, content, made_at, last_error)
             VALUES ('a', 'failed', '{}', clock_timestamp() - interval '25 hours', 'HTTP 500')",
        )
        .await
        .unwrap();
    let line = daemon.wait_for_log("notification given up", PATIENCE);
    assert!(line.contains("ERROR") && line.contains("HTTP 500") && line.contains("notify.url"), "{line}");
    all_ended(&client).await;
    let metrics = get(&address, "/metrics").1;
    assert_eq!(
        value(&metrics, "backfilld_notifications_total{outcome=\"given_up\"}"),
        Some(1.0),
        "{metrics}"
    );
    assert_eq!(receiver.posts().len(), 1, "{:#?}", receiver.posts());
}

/// The receiver repeats the path in what it answers.
#[tokio::test]
async fn the_token_is_sent_and_neither_it_nor_the_path_is_told() {
    let database = Database::create().await;
    let client = database.connect().await;
    items(&client, 100).await;
    let folder = tempfile::tempdir().unwrap();
    let receiver = Receiver::start();
    let token = folder.path().join("token");
    std::fs::write(&token, "hunter4\n").unwrap();
    let config = folder.path().join("backfilld.toml");
    let configure = |more: &str| {
        let text =
            format!("[notify]\nurl = '{}'\ntoken_file = '{}'\n{more}", url(receiver.port()), token.display());
        std::fs::write(&config, text).unwrap();
    };
    configure("");
    let mut daemon = Daemon::start_with(
        database.url(),
        &["--config", config.to_str().unwrap()],
        &[("BACKFILLD__LOG__LEVEL", "trace")],
    );
    let address = address(&daemon);
    for (number, status) in [200, 500, 404, 301].into_iter().enumerate() {
        receiver.answer(Some(status));
        let before = receiver.posts().len();
        let file = job(folder.path(), &format!("job-{number}"), "1", "");
        assert_eq!(backfilld(database.url(), &["submit", &file]).code, 0);
        let posts = receiver.wait_for(before + 1, PATIENCE);
        let head = &posts[before].head;
        assert!(head.starts_with(&format!("POST /{PATH} HTTP/1.1\r\n")), "{head}");
        assert!(head.to_lowercase().contains("authorization: bearer hunter4\r\n"), "{head}");
        assert!(head.to_lowercase().contains("content-type: application/json\r\n"), "{head}");
    }
    receiver.answer(Some(200));
    // What looks like a mistake in the settings is tried again, but not soon.
    let put_off =
        "FROM backfilld.notification WHERE ended_at IS NULL AND due_at > clock_timestamp() + interval '60 s'";
    until("two to be put off", PATIENCE, async || {
        let count = client.query_one(&format!("SELECT count(*) {put_off}"), &[]).await.unwrap();
        (count.get::<_, i64>(0) == 2).then_some(())
    })
    .await;
    let soon = "UPDATE backfilld.notification SET due_at = clock_timestamp() WHERE ended_at IS NULL";
    client.execute(soon, &[]).await.unwrap();
    all_ended(&client).await;
    // It is read for each message.
    std::fs::write(&token, "hunter5\n").unwrap();
    let before = receiver.posts().len();
    let file = job(folder.path(), "last", "1", "");
    assert_eq!(backfilld(database.url(), &["submit", &file]).code, 0);
    let posts = receiver.wait_for(before + 1, PATIENCE);
    assert!(posts[before].head.contains("Bearer hunter5"), "{posts:#?}");
    all_ended(&client).await;
    configure("after = '0s'\n");
    daemon.signal("HUP");
    daemon.wait_for_log("not reloaded", PATIENCE);

    let mut told = get(&address, "/metrics").1;
    for command in [&["status", "--json"] as &[_], &["events"]] {
        told.push_str(&backfilld(database.url(), command).stdout);
    }
    let sql = "SELECT string_agg(n::text, ' ') FROM backfilld.notification n";
    told += client.query_one(sql, &[]).await.unwrap().get::<_, &str>(0);
    daemon.stop();
    told += &daemon.log();
    assert!(told.contains("http://127.0.0.1:") && told.contains("HTTP 404"), "{told}");
    assert!(!told.contains("hunter"), "{told}");
}

#[tokio::test]
async fn a_run_of_its_own_tells_before_it_leaves() {
    let database = Database::create().await;
    let client = database.connect().await;
    items(&client, 100).await;
    let folder = tempfile::tempdir().unwrap();
    let old = job(folder.path(), "old", "0", "");
    let quiet = backfilld(database.url(), &["run", "--until-idle", "--job", &old]);
    assert_eq!(quiet.code, 0, "{quiet:?}");

    // By TLS, which the receiver's authority must be trusted for.
    let authority = Authority::new("ours");
    let (certificate, key) = authority.server("localhost");
    let roots = job_file(folder.path(), "roots.pem", &authority.certificate());
    let receiver = Receiver::start_tls(&certificate, &key);
    let url = format!("https://localhost:{}/{PATH}", receiver.port());
    let new = job(folder.path(), "new", "1", "");
    let environment = [("BACKFILLD__NOTIFY__URL", &*url), ("SSL_CERT_FILE", roots.to_str().unwrap())];
    let run = backfilld_with(database.url(), &["run", "--until-idle", "--job", &new], &environment);
    assert_eq!(run.code, 0, "{run:?}");
    let posts = receiver.posts();
    let [post] = &posts[..] else { panic!("one, and none of what was before: {posts:#?}\n{run:?}") };
    assert_eq!((post.text("job"), post.text("kind")), ("new", "complete"));

    // One that is away for a moment is waited for.
    let (later, free) = (job(folder.path(), "soon", "2", ""), free_port());
    let away = format!("http://127.0.0.1:{free}/{PATH}");
    let mut daemon = Daemon::start_with(
        database.url(),
        &["--until-idle", "--job", &later],
        &[("BACKFILLD__NOTIFY__URL", &*away)],
    );
    daemon.wait_for_log("notification not delivered", PATIENCE);
    let back = Receiver::start_on(free);
    assert_eq!(daemon.wait_exit(PATIENCE).code(), Some(0), "{}", daemon.log());
    assert_eq!(back.posts().len(), 1, "{:#?}", back.posts());

    let other = job_file(folder.path(), "other.pem", &Authority::new("another").certificate());
    let environment = [("BACKFILLD__NOTIFY__URL", &*url), ("SSL_CERT_FILE", other.to_str().unwrap())];
    let newer = job(folder.path(), "newer", "2", "");
    let run = backfilld_with(database.url(), &["run", "--until-idle", "--job", &newer], &environment);
    assert_eq!(run.code, 0, "{run:?}");
    assert!(run.stderr.contains("UnknownIssuer") && run.stderr.contains("SSL_CERT_FILE"), "{run:?}");
    assert!(run.stderr.contains("not all notifications are sent"), "{run:?}");
    assert_eq!(receiver.posts().len(), 1, "{:#?}", receiver.posts());
}

#[tokio::test]
async fn sighup_sends_to_another_receiver() {
    let database = Database::create().await;
    let client = database.connect().await;
    items(&client, 100).await;
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("backfilld.toml");
    std::fs::write(&config, "").unwrap();
    let daemon = Daemon::start(database.url(), &["--config", config.to_str().unwrap()]);
    let receivers = [Receiver::start(), Receiver::start()];
    address(&daemon);
    for (name, receiver) in ["first", "second"].iter().zip(&receivers) {
        std::fs::write(&config, format!("[notify]\nurl = '{}'\n", url(receiver.port()))).unwrap();
        daemon.signal("HUP");
        daemon.wait_for_log(
            &format!("notifications are sent receiver=http://127.0.0.1:{}", receiver.port()),
            PATIENCE,
        );
        looked(&client).await;
        let file = job(folder.path(), name, "1", "");
        assert_eq!(backfilld(database.url(), &["submit", &file]).code, 0);
        assert_eq!(receiver.wait_for(1, PATIENCE)[0].text("job"), *name);
        all_ended(&client).await;
    }
    assert!(receivers.iter().all(|receiver| receiver.posts().len() == 1));
    std::fs::write(&config, "").unwrap();
    daemon.signal("HUP");
    daemon.wait_for_log("notifications are sent no more", PATIENCE);
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
