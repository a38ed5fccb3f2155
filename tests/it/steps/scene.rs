//! A job whose changes are counted, behind a proxy, and what must be true of it in the end.

use std::time::Duration;

use tokio_postgres::Client;

use crate::support::daemon::{Daemon, backfilld};
use crate::support::database::Database;
use crate::support::server::shared;
use crate::support::wire::{Fate, Held, Moment, Statement, Wire};
use crate::support::{job_file, until};

pub(super) const PATIENCE: Duration = Duration::from_secs(40);

/// A table in a database of its own, and a proxy before the server.
pub(super) struct Scene {
    pub(super) database: Database,
    pub(super) client: Client,
    pub(super) wire: Wire,
    folder: tempfile::TempDir,
    /// How long the leases of daemons run that are started from now on.
    pub(super) lease: &'static str,
}

/// What is done to a daemon that is held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    /// It is killed, and another one goes on.
    Kill,
    /// Its end of the connection breaks; it lives.
    CutClient,
    /// The connection breaks at both ends; it lives.
    CutBoth,
}

/// One step of the daemon, one fault, and what becomes of what was held.
#[derive(Debug, Clone, Copy)]
pub(super) struct Case {
    pub(super) moment: Moment,
    pub(super) nth: usize,
    pub(super) statement: Statement,
    pub(super) fault: Fault,
    pub(super) fate: Fate,
}

/// Every fault at one step, with every outcome that differs. What has reached the server is carried out,
/// whether its answer comes back to a client that is gone or not.
pub(super) fn every_fault(moment: Moment, nth: usize, statement: Statement) -> Vec<Case> {
    let case = |fault, fate| Case { moment, nth, statement, fault, fate };
    let mut cases = vec![
        case(Fault::Kill, Fate::Passed),
        case(Fault::CutClient, Fate::Passed),
        case(Fault::CutBoth, Fate::Lost),
    ];
    if moment == Moment::Before {
        cases.extend([case(Fault::Kill, Fate::Lost), case(Fault::CutClient, Fate::Lost)]);
    }
    cases
}

impl Scene {
    /// A table `counted` of `rows` rows. A trigger counts the changes of each in the row itself, so that the count
    /// stands and falls with the change.
    pub(super) async fn with_rows(rows: u32) -> Self {
        let database = Database::create().await;
        let client = database.connect().await;
        assert_eq!(backfilld(database.url(), &["init"]).code, 0);
        client
            .batch_execute(&format!(
                "CREATE TABLE counted (id bigint PRIMARY KEY, done text, times int NOT NULL DEFAULT 0);
                 INSERT INTO counted SELECT n * 3 FROM generate_series(1, {rows}) n;
                 CREATE FUNCTION count_change() RETURNS trigger LANGUAGE plpgsql AS
                     $$ BEGIN NEW.times := OLD.times + 1; RETURN NEW; END $$;
                 CREATE TRIGGER count_change BEFORE UPDATE OF done ON counted
                     FOR EACH ROW EXECUTE FUNCTION count_change();
                 ANALYZE counted;"
            ))
            .await
            .unwrap();
        let wire = Wire::start(shared().port());
        Self { database, client, wire, folder: tempfile::tempdir().unwrap(), lease: "1s" }
    }

    /// Submits a job over the table. It has no `where`: a row that is met again is changed again. Nothing in it
    /// runs out while a test looks: who is in the way of a batch makes it wait.
    pub(super) fn submit(&self, set: &str, batch_rows: u32, limits: &str) {
        self.submit_update(&format!("set = {{ done = \"{set}\" }}"), batch_rows, limits);
    }

    /// Submits a job with this `update`.
    pub(super) fn submit_update(&self, update: &str, batch_rows: u32, limits: &str) {
        let text = format!(
            "name = 'counted'\ntable = 'counted'\n[update]\n{update}\n\
             [batch]\ninitial_rows = {batch_rows}\nmin_rows = {batch_rows}\nmax_rows = {batch_rows}\n\
             [limits]\nlock_timeout = '60s'\nstatement_timeout = '60s'\n{limits}\n"
        );
        let file = job_file(self.folder.path(), "counted.toml", &text);
        let run = backfilld(self.database.url(), &["submit", file.to_str().unwrap()]);
        assert_eq!((run.code, run.stderr.as_str()), (0, ""), "{run:?}");
    }

    /// Begins anew, with the job not yet started: one database for many cases.
    pub(super) async fn reset(&self) {
        self.client
            .batch_execute(
                "TRUNCATE backfilld.job, backfilld.slice, backfilld.quarantine, backfilld.event, backfilld.daemon,
                          backfilld.finish;
                 CREATE TABLE anew (LIKE counted INCLUDING ALL);
                 INSERT INTO anew SELECT id FROM counted;
                 DROP TABLE counted;
                 ALTER TABLE anew RENAME TO counted;
                 CREATE TRIGGER count_change BEFORE UPDATE OF done ON counted
                     FOR EACH ROW EXECUTE FUNCTION count_change();
                 ANALYZE counted;",
            )
            .await
            .unwrap();
    }

    /// A daemon behind the proxy.
    pub(super) fn wired(&self, name: &str, arguments: &[&str]) -> Daemon {
        self.start(&self.wire.url(self.database.name()), name, arguments)
    }

    /// A daemon that nothing happens to.
    pub(super) fn unharmed(&self, name: &str, arguments: &[&str]) -> Daemon {
        self.start(self.database.url(), name, arguments)
    }

    fn start(&self, url: &str, name: &str, arguments: &[&str]) -> Daemon {
        let environment = [
            ("BACKFILLD__DAEMON__LEASE", self.lease),
            ("BACKFILLD__DAEMON__NAME", name),
            ("BACKFILLD__LOG__LEVEL", "debug"),
            // A job whose limit is lifted goes faster once there are so many samples that they say something.
            ("BACKFILLD__THROTTLE__QUERY_LATENCY__INTERVAL", "10ms"),
        ];
        Daemon::start_with(url, arguments, &environment)
    }

    /// Runs the job with one fault in it, to its end. Returns what the daemon that met the fault has logged.
    pub(super) async fn survive(&self, case: Case) -> String {
        let daemon = self.wired("one", &["--until-idle"]);
        let held = self.hold(case, &daemon).await;
        self.go_on(daemon, held, case).await
    }

    /// Waits until a daemon is where the case wants it.
    pub(super) async fn hold(&self, case: Case, daemon: &Daemon) -> Held {
        self.wire
            .hold(case.moment, case.nth, case.statement)
            .reached(|| format!("{case:?}\n{}", daemon.log()))
            .await
    }

    /// Strikes a daemon that is held; then it ends the job, or another one does when it was killed.
    pub(super) async fn go_on(&self, mut daemon: Daemon, held: Held, case: Case) -> String {
        self.strike(&mut daemon, &held, case).await;
        let mut heir;
        let last = if case.fault == Fault::Kill {
            heir = self.unharmed("two", &["--until-idle"]);
            &mut heir
        } else {
            &mut daemon
        };
        assert_eq!(last.wait_exit(PATIENCE).code(), Some(0), "{case:?}\n{}", last.log());
        daemon.log()
    }

    /// Does to a daemon that is held what the case says. A client that is cut off tries again while the
    /// server still has its first try open: what is held goes on only when the two have met.
    pub(super) async fn strike(&self, daemon: &mut Daemon, held: &Held, case: Case) {
        match case.fault {
            Fault::Kill => daemon.kill(),
            Fault::CutBoth => held.cut_both(),
            Fault::CutClient => {
                // What is on its way may be carried out at any moment, and is in nobody's way then.
                let has_written = case.moment != Moment::Sent && self.number(BATCHES_OPEN).await > 0;
                let batches = self.number(BATCHES_DONE).await;
                held.cut_client();
                if has_written {
                    let condition =
                        format!("({BATCHES_DONE}) > {batches} OR ({WAITING}) > 0 OR ({RUNNING}) = 0");
                    self.until_true("the next try to wait for the first, or not to need it", &condition)
                        .await;
                }
            }
        }
        held.let_go(case.fate);
    }

    /// Waits until a statement that begins so waits for a lock.
    pub(super) async fn waits_for_a_lock(&self, sql: &str) {
        until(&format!("a lock to be waited for by {sql}"), PATIENCE, async || {
            self.client
                .query_opt(
                    "SELECT FROM pg_stat_activity WHERE datname = current_database()
                       AND wait_event_type = 'Lock' AND query LIKE $1 LIMIT 1",
                    &[&sql],
                )
                .await
                .unwrap()
        })
        .await;
    }

    pub(super) async fn number(&self, sql: &str) -> i64 {
        self.client.query_one(sql, &[]).await.unwrap().get(0)
    }

    pub(super) async fn until_true(&self, what: &str, condition: &str) {
        let sql = format!("SELECT ({condition})::int::bigint");
        until(what, PATIENCE, async || (self.number(&sql).await == 1).then_some(())).await;
    }

    /// How many events of a kind have a reason like this.
    pub(super) async fn told(&self, kind: &str, reason: &str) -> i64 {
        self.client
            .query_one(
                "SELECT count(*) FROM backfilld.event WHERE kind = $1 AND reason LIKE $2",
                &[&kind, &reason],
            )
            .await
            .unwrap()
            .get(0)
    }

    /// The job is complete: every row but the set-aside ones was changed exactly once, and the books agree.
    pub(super) async fn assert_exactly_once(&self, set_aside: i64, case: &str) {
        let rows = self.number("SELECT count(*) FROM counted").await;
        let row = self
            .client
            .query_one(
                "SELECT state, rows_scanned, rows_changed, rows_quarantined, workers FROM backfilld.status",
                &[],
            )
            .await
            .unwrap();
        let told = (row.get::<_, String>(0), row.get(1), row.get(2), row.get(3), row.get(4));
        assert_eq!(told, ("complete".to_owned(), rows, rows - set_aside, set_aside, 0_i64), "status, {case}");
        for (expected, sql, what) in [
            (rows - set_aside, "SELECT sum(times)::bigint FROM counted", "changes counted by the trigger"),
            (rows - set_aside, "SELECT count(*) FROM counted WHERE times = 1", "rows changed exactly once"),
            (set_aside, "SELECT count(*) FROM backfilld.quarantine", "rows in quarantine"),
            (
                0,
                "SELECT count(*) FROM backfilld.slice WHERE owner IS NOT NULL OR lease_until IS NOT NULL",
                "leases left",
            ),
            (
                0,
                "SELECT count(*) FROM backfilld.slice WHERE finished_at IS NULL OR cursor_key <> last_key",
                "slices not walked",
            ),
            (1, "SELECT count(*) FROM backfilld.event WHERE kind = 'started'", "starts told"),
            (1, "SELECT count(*) FROM backfilld.event WHERE kind = 'complete'", "ends told"),
            (0, GAPS, "slices that do not begin where another one ends"),
        ] {
            assert_eq!(self.number(sql).await, expected, "{what}, {case}");
        }
    }

    /// No rows were changed in a transaction that had not read the cursor before. Of those seen by the proxy.
    pub(super) fn assert_cursor_read_first(&self) {
        let mut read = std::collections::BTreeMap::new();
        for (connection, sql) in self.wire.asked() {
            if sql.starts_with("BEGIN") {
                read.insert(connection, false);
            } else if sql.contains(super::statements::POSITION.parts[0]) {
                read.insert(connection, true);
            } else if sql.starts_with("UPDATE ONLY") {
                assert_eq!(read.get(&connection), Some(&true), "rows changed without a look at the cursor");
            }
        }
    }
}

/// Transactions of a daemon that wait for it and have written something, once there are batches.
const BATCHES_OPEN: &str = "
    SELECT count(*) FROM pg_stat_activity, backfilld.job
    WHERE datname = current_database() AND application_name = 'backfilld' AND job.state = 'running'
      AND pg_stat_activity.state = 'idle in transaction' AND backend_xid IS NOT NULL";

const WAITING: &str =
    "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'";

/// Whoever ends a job waits for nobody: it passes over one that is locked, until the server ends that transaction.
const RUNNING: &str = "SELECT count(*) FROM backfilld.job WHERE state = 'running'";

pub(super) const BATCHES_DONE: &str = "SELECT coalesce(sum(batches), 0)::bigint FROM backfilld.slice";

/// Each slice begins at the end of one other, and the first and the last at the ends of the table.
const GAPS: &str = "
    WITH ordered AS (
        SELECT first_key[1]::bigint AS first, last_key[1]::bigint AS last,
               lag(last_key[1]::bigint) OVER (ORDER BY first_key[1]::bigint, number DESC) AS previous,
               lead(number) OVER (ORDER BY first_key[1]::bigint, number DESC) IS NULL AS is_last
        FROM backfilld.slice
    )
    SELECT count(*) FROM ordered
    WHERE first <> coalesce(previous, (SELECT min(id) FROM counted))
       OR last <= first OR (is_last AND last <> (SELECT max(id) FROM counted))";
