//! How a message reaches its receiver: through its absence, its refusals, a death of who sends it, and with its secrets kept.

use std::collections::BTreeSet;

use super::{PATH, PATIENCE, all_ended, is_in, items, job, looked, url};
use crate::metrics::{address, get, value};
use crate::support::daemon::{Daemon, backfilld, backfilld_with};
use crate::support::database::Database;
use crate::support::receiver::Receiver;
use crate::support::server::free_port;
use crate::support::{job_file, until};
use crate::tls::authority::Authority;

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
