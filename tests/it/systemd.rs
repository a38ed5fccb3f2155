//! Under systemd: what the daemon tells it, and whether the units are what it takes.

mod credentials;
mod log;
mod units;

use std::cell::RefCell;
use std::os::unix::net::UnixDatagram;
use std::time::{Duration, Instant};

use super::metrics::get;
use super::support::daemon::{Daemon, backfilld};
use super::support::database::Database;
use super::support::receiver::Receiver;
use super::support::server::{Server, free_port};
use super::support::{job_file, until};

const PATIENCE: Duration = Duration::from_secs(30);
/// As systemd gives it to a service with `WatchdogSec=3min`.
const WATCHDOG: (&str, &str) = ("WATCHDOG_USEC", "180000000");

/// What systemd is for a service: a socket that takes messages.
struct Manager {
    folder: tempfile::TempDir,
    socket: UnixDatagram,
    /// The messages so far.
    seen: RefCell<Vec<String>>,
}

impl Manager {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let socket = UnixDatagram::bind(folder.path().join("notify")).unwrap();
        Self { folder, socket, seen: RefCell::default() }
    }

    /// Starts a daemon as a service of this manager.
    fn start(&self, url: &str, arguments: &[&str], environment: &[(&str, &str)]) -> Daemon {
        let path = self.folder.path().join("notify");
        let environment = [&[("NOTIFY_SOCKET", path.to_str().unwrap())], environment].concat();
        Daemon::start_with(url, arguments, &environment)
    }

    /// Waits for the next message with a line that begins with `line`; returns that line.
    fn hears(&self, line: &str) -> String {
        let end = Instant::now() + PATIENCE;
        let mut buffer = [0; 4096];
        loop {
            let left = end.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
            self.socket.set_read_timeout(Some(left)).unwrap();
            let Ok(length) = self.socket.recv(&mut buffer) else {
                panic!("waited {PATIENCE:?} in vain for {line:?}; heard: {:#?}", self.seen.borrow());
            };
            let message = String::from_utf8(buffer[..length].to_vec()).unwrap();
            let found = message.lines().find(|told| told.starts_with(line)).map(ToOwned::to_owned);
            self.seen.borrow_mut().push(message);
            if let Some(found) = found {
                return found;
            }
        }
    }

    /// Whether a line that begins so was in any message up to now.
    fn has_heard(&self, line: &str) -> bool {
        self.seen.borrow().iter().any(|message| message.lines().any(|told| told.starts_with(line)))
    }

    /// Takes what was said up to now.
    fn drain(&self) {
        let mut buffer = [0; 4096];
        self.socket.set_nonblocking(true).unwrap();
        while let Ok(length) = self.socket.recv(&mut buffer) {
            self.seen.borrow_mut().push(String::from_utf8(buffer[..length].to_vec()).unwrap());
        }
        self.socket.set_nonblocking(false).unwrap();
    }

    /// Waits until the daemon has given some more signs of life.
    fn hears_signs_of_life(&self) {
        for _ in 0..3 {
            self.hears("WATCHDOG=1");
        }
    }
}

fn job(extra: &str) -> String {
    format!("name = 'a'\ntable = 'items'\n[update]\nset = {{ done = 'true' }}\n{extra}")
}

const SLOW: &str = "[batch]\nmax_rows = 20\n[limits]\nrows_per_second = 200\n";

async fn table(database: &Database) {
    assert_eq!(backfilld(database.url(), &["init"]).code, 0);
    database
        .connect()
        .await
        .batch_execute(
            "CREATE TABLE items (id bigint PRIMARY KEY, done bool);
             INSERT INTO items SELECT n, NULL FROM generate_series(1, 10000) n; ANALYZE items;",
        )
        .await
        .unwrap();
}

#[tokio::test]
async fn it_is_ready_once_it_has_reached_its_database() {
    let server = Server::start();
    let database = Database::create_on(&server).await;
    server.stop();
    let manager = Manager::new();
    let http = format!("127.0.0.1:{}", free_port());
    let mut daemon = manager.start(database.url(), &[], &[WATCHDOG, ("BACKFILLD__HTTP__LISTEN", &http)]);
    let status = manager.hears("STATUS=Waiting for the database");
    // It lives, and says over HTTP too what is in the way.
    assert_eq!(get(&http, "/healthz").0, "HTTP/1.1 200 OK");
    assert!(get(&http, "/metrics").1.contains("backfilld_database_up 0"));
    for path in ["/readyz", "/api/v1/throttle/check"] {
        let (answer, told) = get(&http, path);
        assert_eq!(answer, "HTTP/1.1 503 Service Unavailable", "{path}");
        assert!(told.contains("waiting for the database") && told.contains("Connection refused"), "{told}");
    }
    assert!(status.contains("Connection refused"), "{status}");
    daemon.wait_for_log("waiting for the database", PATIENCE);
    assert!(!manager.has_heard("READY=1"), "{:#?}", manager.seen.borrow());
    server.start_again();
    manager.hears("READY=1");
    // The schema was made on the way.
    database.connect().await.query("SELECT FROM backfilld.job", &[]).await.unwrap();
    manager.hears("STATUS=Idle: no job is left to run");
    assert_eq!(get(&http, "/readyz").1, "ready\n");
    assert!(get(&http, "/metrics").1.contains("backfilld_database_up 1"));
    daemon.signal("TERM");
    manager.hears("STOPPING=1");
    assert_eq!(daemon.wait_exit(PATIENCE).code(), Some(0), "{}", daemon.log());
}

/// It may wait half a minute for it at its end, which somebody who wants it gone need not sit out.
#[tokio::test]
async fn a_stop_ends_the_wait_for_a_receiver_that_hangs() {
    let database = Database::create().await;
    table(&database).await;
    let manager = Manager::new();
    let file = job_file(manager.folder.path(), "a.toml", &job(""));
    let receiver = Receiver::start();
    receiver.answer(None);
    let url = format!("http://127.0.0.1:{}", receiver.port());
    let arguments = ["--until-idle", "--job", file.to_str().unwrap()];
    let mut daemon = manager.start(database.url(), &arguments, &[("BACKFILLD__NOTIFY__URL", &url)]);
    receiver.wait_for(1, PATIENCE);
    manager.hears("STOPPING=1");
    assert!(!daemon.has_ended(), "{}", daemon.log());
    daemon.signal("TERM");
    assert_eq!(daemon.wait_exit(PATIENCE).code(), Some(0), "{}", daemon.log());
    assert!(daemon.log().contains("not all notifications are sent"), "{}", daemon.log());
    // Half a minute is three answers waited for in vain.
    let sql = "SELECT attempts < 3 AND ended_at IS NULL FROM backfilld.notification";
    let left_early: bool = database.connect().await.query_one(sql, &[]).await.unwrap().get(0);
    assert!(left_early, "{}", daemon.log());
}

#[tokio::test]
async fn what_does_not_pass_by_itself_is_not_waited_for() {
    let database = Database::create().await;
    let url = database.url().replace("postgres@", "stranger@");
    let manager = Manager::new();
    let mut daemon = manager.start(&url, &[], &[]);
    assert_eq!(daemon.wait_exit(PATIENCE).code(), Some(1));
    assert!(daemon.log().contains("role \"stranger\" does not exist"), "{}", daemon.log());
}

#[tokio::test]
async fn while_it_waits_it_heeds_signals() {
    let database = Database::create().await;
    let manager = Manager::new();
    let config = manager.folder.path().join("backfilld.toml");
    let nowhere = format!("postgres://postgres@127.0.0.1:{}/shop", free_port());
    std::fs::write(&config, format!("[database]\nurl = '{nowhere}'\n")).unwrap();
    let start = || manager.start("", &["--config", config.to_str().unwrap()], &[]);

    let mut daemon = start();
    manager.hears("STATUS=Waiting for the database");
    daemon.signal("TERM");
    assert_eq!(daemon.wait_exit(PATIENCE).code(), Some(0), "{}", daemon.log());

    let daemon = start();
    manager.hears("STATUS=Waiting for the database");
    std::fs::write(&config, "[database]\nulr = 'x'\n").unwrap();
    daemon.signal("HUP");
    daemon.wait_for_log("configuration not reloaded", PATIENCE);
    // Nothing can rest yet: it is kept for later.
    daemon.signal("USR1");
    std::fs::write(&config, format!("[database]\nurl = '{}'\n", database.url())).unwrap();
    daemon.signal("HUP");
    manager.hears("READY=1");
    manager.hears("STATUS=Resting");
}

#[tokio::test]
async fn it_tells_how_far_it_is_and_gives_signs_of_life_whatever_happens() {
    let server = Server::start();
    let database = Database::create_on(&server).await;
    table(&database).await;
    let manager = Manager::new();
    let daemon = manager.start(database.url(), &[], &[WATCHDOG]);
    manager.hears("STATUS=Idle");
    manager.hears_signs_of_life();

    let file = job_file(manager.folder.path(), "a.toml", &job(SLOW));
    assert_eq!(backfilld(database.url(), &["submit", file.to_str().unwrap()]).code, 0);
    let status = manager.hears("STATUS=Walking a ");
    assert!(status.contains(" %, ") && status.contains(" rows/s"), "{status}");
    let next = manager.hears("STATUS=Walking a ");
    assert_ne!(status, next, "it moves on");
    manager.hears_signs_of_life();

    server.stop();
    manager.hears("STATUS=Waiting for the database");
    manager.hears_signs_of_life();
    server.start_again();
    manager.hears("STATUS=Walking a ");

    daemon.signal("USR1");
    manager.hears("STATUS=Resting");
    manager.hears_signs_of_life();
    daemon.signal("USR2");
    manager.hears("STATUS=Walking a ");
}

/// A turn of the loop that waits for a lock is as good as one that hangs: whatever feeds the watchdog meanwhile is not
/// the loop.
#[tokio::test]
async fn a_loop_that_hangs_gives_no_sign_of_life() {
    let database = Database::create().await;
    let client = database.connect().await;
    let manager = Manager::new();
    let _daemon = manager.start(database.url(), &[], &[WATCHDOG]);
    manager.hears_signs_of_life();
    let blocker = database.connect().await;
    blocker.batch_execute("BEGIN; LOCK TABLE backfilld.job").await.unwrap();
    // The statement that a turn begins with, for as long as the loop gives three signs at other times.
    let waits = |seconds: i32| {
        let client = &client;
        let sql = format!(
            "SELECT pid, query_start::text FROM pg_stat_activity
             WHERE datname = current_database() AND wait_event_type = 'Lock' AND query LIKE 'WITH due AS%'
               AND clock_timestamp() - query_start >= make_interval(secs => {seconds})"
        );
        until("a turn to wait for the lock", PATIENCE, async move || {
            let row = client.query_opt(&sql, &[]).await.unwrap()?;
            Some((row.get::<_, i32>(0), row.get::<_, String>(1)))
        })
    };
    let begun = waits(0).await;
    manager.drain();
    manager.seen.take();
    assert_eq!(waits(3).await, begun, "the same turn");
    manager.drain();
    assert!(!manager.has_heard("WATCHDOG"), "{:#?}", manager.seen.borrow());
    blocker.batch_execute("ROLLBACK").await.unwrap();
    manager.hears_signs_of_life();
}

#[tokio::test]
async fn a_reload_is_told_from_beginning_to_end() {
    let database = Database::create().await;
    let manager = Manager::new();
    let config = manager.folder.path().join("backfilld.toml");
    std::fs::write(&config, "").unwrap();
    let mut daemon = manager.start(database.url(), &["--config", config.to_str().unwrap()], &[]);
    manager.hears("READY=1");
    // One that is refused has an end too.
    for text in ["[log]\nlevel = 'debug'\n", "[log]\nlevle = 'debug'\n"] {
        std::fs::write(&config, text).unwrap();
        manager.seen.take();
        daemon.signal("HUP");
        manager.hears("READY=1");
        let seen = manager.seen.take();
        let begun = seen.iter().position(|message| message.starts_with("RELOADING=1\nMONOTONIC_USEC="));
        assert!(begun.is_some_and(|begun| begun + 1 < seen.len()), "{seen:#?}");
        assert!(!seen[..seen.len() - 1].iter().any(|message| message.contains("READY=1")), "{seen:#?}");
    }
    daemon.wait_for_log("configuration not reloaded", PATIENCE);
    assert_eq!(daemon.stop().code(), Some(0));
}

#[tokio::test]
async fn a_stop_asks_for_as_much_time_as_the_batches_in_flight_may_take() {
    let database = Database::create().await;
    table(&database).await;
    let blocker = database.connect().await;
    blocker.batch_execute("BEGIN; SELECT FROM items FOR UPDATE").await.unwrap();
    let manager = Manager::new();
    let text = job("[limits]\nlock_timeout = '1h'\nstatement_timeout = '1h'\n");
    let file = job_file(manager.folder.path(), "a.toml", &text);
    let grace = ("BACKFILLD__DAEMON__SHUTDOWN_GRACE", "1000s");
    let mut daemon = manager.start(database.url(), &["--job", file.to_str().unwrap()], &[grace]);
    manager.hears("STATUS=Walking a");
    daemon.signal("TERM");
    // Beside the grace, what is said to the database at the end.
    assert_eq!(manager.hears("EXTEND_TIMEOUT_USEC"), "EXTEND_TIMEOUT_USEC=1025000000");
    assert!(manager.has_heard("STOPPING=1") && manager.has_heard("STATUS=Stopping"));
    blocker.batch_execute("ROLLBACK").await.unwrap();
    assert_eq!(daemon.wait_exit(PATIENCE).code(), Some(0), "{}", daemon.log());
}

#[tokio::test]
async fn the_end_of_all_jobs_is_a_stop_too() {
    let database = Database::create().await;
    let manager = Manager::new();
    let mut daemon = manager.start(database.url(), &["--until-idle"], &[]);
    assert_eq!(daemon.wait_exit(PATIENCE).code(), Some(0), "{}", daemon.log());
    manager.hears("STOPPING=1");
    assert!(manager.has_heard("READY=1"));
}

#[tokio::test]
async fn only_who_asks_for_signs_of_life_is_given_them_and_is_warned_of_too_short_a_time() {
    let database = Database::create().await;
    let manager = Manager::new();
    let mut unwatched = manager.start(database.url(), &[], &[]);
    manager.hears("STATUS=Idle");
    unwatched.signal("USR1");
    manager.hears("STATUS=Resting");
    assert!(!manager.has_heard("WATCHDOG"), "{:#?}", manager.seen.borrow());
    assert!(!unwatched.log().contains("WatchdogSec"), "{}", unwatched.log());
    assert_eq!(unwatched.stop().code(), Some(0));

    let hasty = manager.start(database.url(), &[], &[("WATCHDOG_USEC", "30000000")]);
    let line = hasty.wait_for_log("WatchdogSec", PATIENCE);
    assert!(line.contains("30s is too short") && line.contains("3min"), "{line}");
}

/// A socket that nobody listens at any more stops nothing, and is told of once.
#[tokio::test]
async fn a_manager_that_has_gone_away_does_no_harm() {
    let database = Database::create().await;
    let manager = Manager::new();
    std::fs::remove_file(manager.folder.path().join("notify")).unwrap();
    let mut daemon = manager.start(database.url(), &[], &[WATCHDOG]);
    daemon.wait_for_log("the service manager cannot be told", PATIENCE);
    daemon.signal("HUP");
    daemon.wait_for_log("configuration reloaded", PATIENCE);
    assert_eq!(daemon.stop().code(), Some(0));
    assert_eq!(daemon.log().matches("the service manager cannot be told").count(), 1, "{}", daemon.log());
}
