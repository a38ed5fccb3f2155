//! Who plays: the server and perhaps its standby, two daemons with their proxies, a table and a job.

use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Instant;

use tokio_postgres::{Client, NoTls, Row};

use super::place::{Doing, Place};
use super::plan::{Batches, Plan, Work};
use super::proxy::Weather;
use super::support::daemon::backfilld;
use super::support::job_file;
use super::support::server::{Server, block_on};

/// The servers, which outlive a round, and what belongs to the round.
pub(crate) struct Stage {
    primary: Server,
    standby: Option<Server>,
    has_promoted: bool,
    database: String,
    /// Where the primary is at this moment, for whoever goes there directly.
    pub(crate) primary_port: Arc<AtomicU16>,
    pub(crate) places: [Place; 2],
    folder: tempfile::TempDir,
}

impl Stage {
    pub(crate) fn new() -> Self {
        let primary = Server::start_with(&[
            ("fsync", "off"),
            ("full_page_writes", "off"),
            ("shared_buffers", "128MB"),
            // A server that stops waits so long for a client whose first words the network has lost.
            ("authentication_timeout", "2s"),
        ]);
        Self {
            primary_port: Arc::new(AtomicU16::new(primary.port())),
            primary,
            standby: None,
            has_promoted: false,
            database: String::new(),
            places: [Place::new(), Place::new()],
            folder: tempfile::tempdir().expect("the temporary folder can be written to"),
        }
    }

    /// Sets the table of a round, submits its job, and starts the daemons.
    pub(crate) fn set(&mut self, plan: &Plan, round: u64) -> Result<(), String> {
        let admin = self.primary.url("postgres");
        self.database = format!("chaos_{round}");
        execute(&admin, &format!("CREATE DATABASE {} TEMPLATE template0", self.database))
            .map_err(|error| format!("{error:?}"))?;
        self.command(&["init"])?;
        execute(&self.url(), &table_sql(plan)).map_err(|error| format!("{error:?}"))?;
        let file = job_file(self.folder.path(), "chaos.toml", &job_text(plan));
        self.command(&["submit", file.to_str().expect("a UTF-8 path")])?;
        // Made now, it has all this and only the walk to follow.
        self.standby = plan.has_replica.then(|| self.primary.start_replica());
        self.has_promoted = false;
        let standby_port = self.standby.as_ref().map(Server::port);
        let now = Instant::now();
        for (number, place) in self.places.iter_mut().enumerate() {
            place.to_primary.lead_to(self.primary.port());
            place.to_standby.lead_to(standby_port.unwrap_or(0));
            place.set_weather(Weather::default());
            let mut hosts = format!("127.0.0.1:{}", place.to_primary.port());
            if standby_port.is_some() {
                let _ = write!(hosts, ",127.0.0.1:{}", place.to_standby.port());
            }
            let url =
                format!("postgres://postgres@{hosts}/{}?target_session_attrs=read-write", self.database);
            place.open(format!("daemon-{number}"), url, now);
        }
        Ok(())
    }

    /// Clears the table away. The daemons have ended or are killed.
    pub(crate) fn clear(&mut self) {
        for place in &mut self.places {
            place.end();
            place.doing = Doing::Closed;
        }
        self.standby = None;
        // It only takes up room otherwise.
        let drop = format!("DROP DATABASE IF EXISTS {} WITH (FORCE)", self.database);
        let _ = execute(&self.primary.url("postgres"), &drop);
    }

    /// The primary, by the direct way.
    pub(crate) fn url(&self) -> String {
        self.primary.url(&self.database)
    }

    pub(crate) fn database(&self) -> &str {
        &self.database
    }

    pub(crate) fn primary(&self) -> &Server {
        &self.primary
    }

    /// The primary crashes for good, and the standby takes its place.
    pub(crate) fn promote(&mut self) {
        let standby = self.standby.take().expect("a plan promotes once, and only with a standby");
        self.primary.stop_immediate();
        standby.promote();
        self.primary_port.store(standby.port(), Ordering::SeqCst);
        self.primary = standby;
        self.has_promoted = true;
    }

    /// Whether the standby has taken the primary's place in this round.
    pub(crate) fn has_promoted(&self) -> bool {
        self.has_promoted
    }

    /// Asks the primary.
    pub(crate) fn ask(&self, sql: &str) -> Result<Vec<Row>, String> {
        query(&self.url(), sql).map_err(|error| format!("{error:?} from {sql}"))
    }

    /// Runs a command that must succeed.
    pub(crate) fn command(&self, arguments: &[&str]) -> Result<(), String> {
        let run = backfilld(&self.url(), arguments);
        if run.code == 0 { Ok(()) } else { Err(format!("backfilld {arguments:?}: {run:?}")) }
    }
}

fn table_sql(plan: &Plan) -> String {
    // Rows that a job which fills, deletes or moves has nothing to do with.
    let filled =
        if plan.work == Work::Count { "NULL::bigint" } else { "CASE WHEN id % 5 = 0 THEN id * 7 END" };
    // What a finish takes its time for, so that faults find it at work.
    let slow = if plan.work == (Work::Fill { enforced: true }) {
        "CREATE FUNCTION slow(id bigint) RETURNS boolean LANGUAGE plpgsql IMMUTABLE AS
             $$ BEGIN IF id % 3000 = 0 THEN PERFORM pg_sleep(0.05); END IF; RETURN true; END $$;
         ALTER TABLE walked ADD CONSTRAINT slow CHECK (slow(id)) NOT VALID;"
    } else {
        ""
    };
    format!(
        "CREATE TABLE walked (id bigint PRIMARY KEY, times int NOT NULL DEFAULT 0, seen int NOT NULL DEFAULT 0,
                              other int NOT NULL DEFAULT 0, filled bigint);
         -- The keys that the walk has to do with.
         CREATE TABLE original AS SELECT n::bigint * 3 + CASE WHEN n > {half} THEN 999999 ELSE 0 END AS id
                                  FROM generate_series(1, {rows}) n;
         ALTER TABLE original ADD PRIMARY KEY (id);
         INSERT INTO walked (id, filled) SELECT id, {filled} FROM original;
         -- Keys that old code has inserted, each once for all.
         CREATE TABLE old_code (id bigint PRIMARY KEY);
         CREATE TABLE archive (id bigint NOT NULL, filled bigint);
         -- One row a change and a deletion, each standing and falling with its transaction.
         CREATE TABLE changed (id bigint NOT NULL);
         CREATE TABLE deleted (id bigint NOT NULL);
         CREATE FUNCTION count_change() RETURNS trigger LANGUAGE plpgsql AS $$
         BEGIN
             NEW.seen := OLD.seen + 1;
             INSERT INTO public.changed VALUES (NEW.id);
             RETURN NEW;
         END $$;
         CREATE TRIGGER count_change BEFORE UPDATE OF times, filled ON walked
             FOR EACH ROW EXECUTE FUNCTION count_change();
         CREATE FUNCTION count_deletion() RETURNS trigger LANGUAGE plpgsql AS
             $$ BEGIN INSERT INTO public.changed VALUES (OLD.id); RETURN OLD; END $$;
         -- What the application deletes is none of it.
         CREATE TRIGGER count_deletion BEFORE DELETE ON walked FOR EACH ROW
             WHEN (current_setting('application_name') = 'backfilld') EXECUTE FUNCTION count_deletion();
         {slow}
         ANALYZE walked;",
        rows = plan.rows,
        half = plan.rows / 2,
    )
}

fn job_text(plan: &Plan) -> String {
    let Plan { order, synchronous_commit, .. } = plan;
    let lock_timeout_ms = plan.lock_timeout.as_millis();
    let (change, batch, limits) = match plan.batches {
        Batches::Small { rows_per_second } => (
            "times + 1",
            "initial_rows = 100\nmax_rows = 500".to_owned(),
            format!("rows_per_second = {rows_per_second}\nstatement_timeout = '2s'"),
        ),
        Batches::Slow { rows } => (
            "times + 1 + CASE WHEN id % 900 = 0 THEN length(pg_sleep(0.03)::text) ELSE 0 END",
            format!("initial_rows = {rows}\nmin_rows = {rows}\nmax_rows = {rows}"),
            "statement_timeout = '10s'".to_owned(),
        ),
    };
    let operation = match plan.work {
        Work::Count => format!("[update]\nset = {{ times = '{change}' }}"),
        Work::Fill { .. } => "[update]\nset = { filled = 'id * 7' }\nwhere = 'filled IS NULL'".to_owned(),
        Work::Delete => "[delete]\nwhere = 'filled IS NULL'".to_owned(),
        Work::Move => "[move]\ninto = 'public.archive'\ncolumns = { id = 'id', filled = 'id * 7' }\nwhere = 'filled IS NULL'".to_owned(),
    };
    let finish = match plan.work {
        Work::Fill { enforced: true } => "[finish]\nnot_null = ['filled']\nvalidate = ['slow']",
        _ => "",
    };
    format!(
        "name = 'chaos'\ntable = 'public.walked'\n{operation}\n\
         [walk]\nworkers = 2\norder = '{order}'\n\
         [batch]\nsynchronous_commit = '{synchronous_commit}'\n{batch}\n\
         [limits]\nlock_timeout = '{lock_timeout_ms}ms'\nmax_retries = 1000\n{limits}\n{finish}\n"
    )
}

/// Connects to `url` and asks there.
pub(crate) fn query(url: &str, sql: &str) -> Result<Vec<Row>, tokio_postgres::Error> {
    block_on(async || connect(url).await?.query(sql, &[]).await)
}

/// Connects to `url` and runs statements there.
pub(crate) fn execute(url: &str, sql: &str) -> Result<(), tokio_postgres::Error> {
    block_on(async || connect(url).await?.batch_execute(sql).await)
}

/// A connection that nobody has promised.
pub(crate) async fn connect(url: &str) -> Result<Client, tokio_postgres::Error> {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await?;
    tokio::spawn(connection);
    Ok(client)
}
