use std::sync::{Arc, Mutex};
use std::time::Duration;

use backfilld::database::{Pooler, Target};
use backfilld::state::State;
use backfilld::state::heartbeat::{Beat, Writer};
use backfilld::throttle::beats::Beats;
use backfilld::throttle::board::{Board, Slot};
use backfilld::throttle::latency::Measured;
use backfilld::throttle::signals::{HEARTBEAT_WRITE, QueryLatency, Running};
use backfilld::throttle::watched::{KeyRead, Watched};
use tokio::sync::watch;
use tokio_postgres::Client;

use super::{INTERVAL, PATIENCE, STALE_AFTER, create_state, named, new_board, target};
use crate::schema::create_role;
use crate::support::database::Database;
use crate::support::until;

const KEEP: Duration = Duration::from_secs(600);

/// The probes of a database, under way.
struct Probing {
    board: Arc<Mutex<Board>>,
    beats: Arc<Mutex<Beats>>,
    tables: watch::Sender<Vec<Watched>>,
    _running: Vec<Running>,
}

impl Probing {
    fn start(target: Target, probes: &[&str]) -> Self {
        Self::start_with(target, probes, STALE_AFTER)
    }

    fn start_with(target: Target, probes: &[&str], stale_after: Duration) -> Self {
        let (board, beats) = (new_board(), Arc::new(Mutex::new(Beats::default())));
        let tables = watch::Sender::new(Vec::new());
        let running = QueryLatency::new(
            target,
            State::new("backfilld"),
            "a daemon",
            INTERVAL,
            stale_after,
            KEEP,
            probes.iter().map(|probe| (*probe).to_owned()).collect(),
            &tables.subscribe(),
            beats.clone(),
            board.clone(),
        )
        .spawn();
        Self { board, beats, tables, _running: running }
    }

    fn measured(&self) -> Vec<Measured> {
        self.board.lock().unwrap().latency.measured(std::time::Instant::now())
    }

    async fn until<T>(&self, what: &str, mut look: impl FnMut(&Slot) -> Option<T>) -> T {
        until(what, PATIENCE, async || look(self.board.lock().unwrap().slot("query_latency")?)).await
    }

    async fn error(&self) -> String {
        self.until("an error", |slot| slot.error.clone()).await
    }

    async fn recovered(&self) {
        self.until("a good round", |slot| (slot.error.is_none() && slot.read_at.is_some()).then_some(()))
            .await;
    }

    /// Waits for a probe to have so many samples.
    async fn samples(&self, probe: &str, samples: u64) -> Measured {
        until(&format!("{samples} samples of {probe}"), PATIENCE, async || {
            let found = self.measured().into_iter().find(|measured| measured.reading.subject == probe)?;
            (found.samples >= samples).then_some(found)
        })
        .await
    }

    /// The probes that are known.
    fn probes(&self) -> Vec<(String, Option<u32>)> {
        self.measured()
            .into_iter()
            .map(|measured| (measured.reading.subject, measured.reading.table))
            .collect()
    }
}

async fn newest(client: &Client) -> Option<(i64, i64)> {
    let sql = "SELECT slot, beat FROM backfilld.heartbeat WHERE daemon = 'a daemon'";
    client.query_opt(sql, &[]).await.unwrap().map(|row| (row.get(0), row.get(1)))
}

#[tokio::test]
async fn every_kind_of_probe_is_measured_and_the_heartbeat_is_known() {
    let database = Database::create().await;
    create_state(database.url()).await;
    let client = database.connect().await;
    client
        .batch_execute(
            "CREATE DOMAIN code AS text;
             CREATE TABLE users (id bigint, code code, PRIMARY KEY (id, code));
             INSERT INTO users SELECT n, 'c' || n FROM generate_series(1, 100) n",
        )
        .await
        .unwrap();
    let oid: u32 = client.query_one("SELECT 'users'::regclass::oid", &[]).await.unwrap().get(0);
    let probing = Probing::start(
        target(database.url()),
        &["SELECT count(*)\n  FROM users WHERE code = 'c1'", "VALUES (1); VALUES (2)"],
    );
    probing.samples(HEARTBEAT_WRITE, 5).await;
    probing.recovered().await;
    let read = |key: i64| KeyRead {
        sql: "SELECT FROM users WHERE id = $1 AND code = $2".to_owned(),
        key: vec![key.to_string(), format!("c{key}")],
    };
    let table = Watched { oid, name: "public.users".to_owned(), reads: (1..=9).map(read).collect() };
    let bare = Watched { oid: 1, name: "not probed".to_owned(), reads: Vec::new() };
    probing.tables.send_replace(vec![table, bare]);
    let read = probing.samples("read of public.users", 20).await;
    assert_eq!(read.reading.table, Some(oid));
    let seconds = read.reading.figure.value().unwrap();
    assert!((1e-6..5.0).contains(&seconds), "{seconds}");
    assert_eq!(
        probing.probes(),
        [
            (HEARTBEAT_WRITE.to_owned(), None),
            ("probe 1: SELECT count(*) FROM users WHE...".to_owned(), None),
            ("probe 2: VALUES (1); VALUES (2)".to_owned(), None),
            ("read of public.users".to_owned(), Some(oid)),
        ]
    );

    probing.tables.send_replace(Vec::new());
    until("the table to be forgotten", PATIENCE, async || (probing.probes().len() == 3).then_some(())).await;

    // A beat that is committed is known of, and the newest is never far.
    let (slot, number) = newest(&client).await.expect("the heartbeat is written");
    until("a later beat to be known", PATIENCE, async || {
        let beats = probing.beats.lock().unwrap();
        let now = std::time::Instant::now();
        (beats.lag(Some(Beat { slot, number }), now) > Duration::ZERO).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_table_of_the_same_name_begins_anew() {
    let database = Database::create().await;
    create_state(database.url()).await;
    let client = database.connect().await;
    let probing = Probing::start(target(database.url()), &[]);
    let mut oids = Vec::new();
    for _ in 0..2 {
        client
            .batch_execute("DROP TABLE IF EXISTS users; CREATE TABLE users (id uuid PRIMARY KEY)")
            .await
            .unwrap();
        let oid: u32 = client.query_one("SELECT 'users'::regclass::oid", &[]).await.unwrap().get(0);
        let key = vec!["5d2b8f6e-6b3f-4a51-9d13-2f2b3c6a1a10".to_owned()];
        let read = KeyRead { sql: "SELECT FROM users WHERE id = $1".to_owned(), key };
        let table = Watched { oid, name: "public.users".to_owned(), reads: vec![read] };
        probing.tables.send_replace(vec![table]);
        until("the table to be probed", PATIENCE, async || {
            probing.probes().iter().any(|(_, table)| *table == Some(oid)).then_some(())
        })
        .await;
        probing.samples("read of public.users", 2).await;
        oids.push(oid);
    }
    assert_ne!(oids[0], oids[1]);
    probing.recovered().await;

    // Dropped while it is watched: the reason is told, and the others go on.
    client.batch_execute("DROP TABLE users").await.unwrap();
    let error = probing.error().await;
    assert!(error.starts_with("read of public.users: relation \"users\" does not exist"), "{error}");
    let beats = newest(&client).await;
    until("the heartbeat to go on", PATIENCE, async || (newest(&client).await > beats).then_some(())).await;
    probing.tables.send_replace(Vec::new());
    probing.recovered().await;
}

#[tokio::test]
async fn a_wrong_statement_of_the_user_is_named_and_keeps_no_other_from_being_sent() {
    let database = Database::create().await;
    create_state(database.url()).await;
    let client = database.connect().await;
    let probing = Probing::start(target(database.url()), &["SELECT * FROM orders", "SELECT 2"]);
    let error = probing.error().await;
    assert!(
        error.starts_with("probe 1: SELECT * FROM orders: relation \"orders\" does not exist"),
        "{error}"
    );
    probing.samples("probe 2: SELECT 2", 5).await;
    probing.samples(HEARTBEAT_WRITE, 5).await;
    client.batch_execute("CREATE TABLE orders (id int)").await.unwrap();
    probing.recovered().await;
    probing.samples("probe 1: SELECT * FROM orders", 2).await;
}

#[tokio::test]
async fn a_slow_statement_of_the_user_does_not_thin_out_the_others() {
    let database = Database::create().await;
    create_state(database.url()).await;
    let probing = Probing::start(target(database.url()), &["SELECT pg_sleep(0.5)"]);
    probing.samples("probe 1: SELECT pg_sleep(0.5)", 1).await;
    let measured = probing.measured();
    let samples = |name: &str| measured.iter().find(|one| one.reading.subject == name).unwrap().samples;
    // While that ran, the others had their rounds.
    assert!(samples(HEARTBEAT_WRITE) >= 3, "{measured:?}");
}

#[tokio::test]
async fn without_the_right_to_write_heartbeats_the_grant_is_told() {
    let database = Database::create().await;
    let (role, url) = create_role(&database).await;
    let probing = Probing::start(target(&url), &[]);
    let error = probing.error().await;
    assert!(error.contains("run `backfilld init`"), "{error}");
    create_state(database.url()).await;
    let error = probing.until("another error", |slot| slot.error.clone().filter(|now| *now != error)).await;
    let grant = format!(
        "GRANT USAGE ON SCHEMA \"backfilld\" TO {role}; GRANT SELECT, INSERT, UPDATE, DELETE ON \"backfilld\".heartbeat TO {role}"
    );
    assert!(error.starts_with("heartbeat write: permission denied") && error.ends_with(&grant), "{error}");
    assert!(probing.beats.lock().unwrap().last_at().is_none());
    database.connect().await.batch_execute(&grant).await.unwrap();
    probing.recovered().await;
}

#[tokio::test]
async fn a_lost_connection_is_made_again_and_a_new_slot_begun() {
    let database = Database::create().await;
    create_state(database.url()).await;
    let client = database.connect().await;
    let probing = Probing::start(target(&named(database.url(), "probing")), &[]);
    probing.samples(HEARTBEAT_WRITE, 5).await;
    let (slot, _) = newest(&client).await.unwrap();
    client
        .batch_execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'probing'",
        )
        .await
        .unwrap();
    until("a beat in a new slot", PATIENCE, async || {
        newest(&client).await.filter(|(now, number)| *now == slot + 1 && *number > 0)
    })
    .await;
    probing.recovered().await;
    // Somebody empties the table: the row comes back by itself.
    client.batch_execute("TRUNCATE backfilld.heartbeat").await.unwrap();
    until("the heartbeat to be back", PATIENCE, async || newest(&client).await).await;
}

#[tokio::test]
async fn a_database_that_hangs_has_a_latency() {
    let database = Database::create().await;
    create_state(database.url()).await;
    let client = database.connect().await;
    let probing = Probing::start_with(target(database.url()), &[], Duration::from_secs(2));
    probing.samples(HEARTBEAT_WRITE, 20).await;
    client.batch_execute("BEGIN; LOCK TABLE backfilld.heartbeat IN EXCLUSIVE MODE").await.unwrap();
    let p99 = || probing.measured()[0].reading.figure.value();
    // While it is not answered.
    until("the wait to be told", PATIENCE, async || p99().filter(|p99| *p99 > 0.5)).await;
    // Once it is given up, it has taken at least that.
    let error = probing.error().await;
    assert!(error.starts_with("heartbeat write: canceling statement due to statement timeout"), "{error}");
    assert!(p99().is_some_and(|p99| p99 > 1.0), "{:?}", probing.measured());
    client.batch_execute("COMMIT").await.unwrap();
    probing.recovered().await;
}

#[tokio::test]
async fn a_slot_ends_with_its_row_and_what_is_gone_is_removed() {
    let database = Database::create().await;
    let state = create_state(database.url()).await;
    let client = database.connect().await;
    client
        .batch_execute(
            "INSERT INTO backfilld.heartbeat (daemon, slot, beat, beat_at) VALUES
                 ('gone', 1, 1, clock_timestamp() - interval '25 hours'),
                 ('lives', 1, 1, clock_timestamp() - interval '23 hours'),
                 ('a daemon', 41, 7, clock_timestamp())",
        )
        .await
        .unwrap();
    let mut writer = Writer::begin(&client, Pooler::None, &state, "a daemon", 0).await.unwrap();
    assert_eq!(newest(&client).await, Some((42, 0)), "after the slots there are");
    let first = writer.write(&client).await.unwrap();
    let second = writer.write(&client).await.unwrap();
    assert_eq!((first.beat, second.beat), (Beat { slot: 42, number: 1 }, Beat { slot: 42, number: 2 }));
    assert!(first.wal < second.wal, "{first:?} {second:?}");
    writer.turn(&client).await.unwrap();
    assert_eq!(newest(&client).await, Some((43, 0)));
    let third = writer.write(&client).await.unwrap();
    assert!(third.beat > second.beat);
    let rows = client.query("SELECT daemon FROM backfilld.heartbeat ORDER BY daemon", &[]).await.unwrap();
    let daemons: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
    assert_eq!(daemons, ["a daemon", "lives"]);
    let other = Writer::begin(&client, Pooler::None, &state, "a daemon", 100).await.unwrap();
    assert_eq!(other.slot(), 101, "after the slot of the connection before");
}
