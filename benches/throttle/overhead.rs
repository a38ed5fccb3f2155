//! What the daemon costs an idle server.

use std::time::Duration;

use tokio_postgres::Client;

use crate::daemon::Backfill;
use crate::exporter::{Exporter, GAUGE};
use crate::figures::{Wanted, table, verdict};
use crate::process::{self, ServerProcesses};
use crate::stage::{self, Ground};
use crate::support::database::connect;
use crate::tool::{Scratch, utf8};
use crate::trial::Size;
use crate::{machine, report};

const MEASURED_SECONDS: u32 = 60;
/// Until a daemon has connected, and asked everything once.
const SETTLING_SECONDS: u32 = 15;
const ROWS: u32 = 100_000;

/// How a server is kept company.
struct Case {
    label: &'static str,
    /// None: no daemon.
    configuration: Option<String>,
    /// A job that the flag file holds.
    has_job: bool,
}

/// CPU time, in seconds.
#[derive(Debug, Clone, Copy)]
struct Spent {
    daemon: f64,
    primary: f64,
    replica: f64,
    measured: Duration,
}

/// Runs all cases and publishes the report.
pub(crate) async fn run() {
    let size = Size::chosen();
    let mut ground = Ground::build(&[ROWS]).await;
    let replica = ground.start_replica();
    let reader = connect(&replica).await;
    let exporter = Exporter::start();
    exporter.set(0.01);
    let scratch = Scratch::new();
    let flag = scratch.path("flag");
    let mut spent = Vec::new();
    let cases = cases(&replica, &exporter.address, utf8(&flag));
    for case in &cases {
        if case.has_job {
            scratch.write("flag", "");
        }
        let found = measure(size, case, &ground, &reader).await;
        eprintln!("overhead: {}: {found:?}", case.label);
        spent.push(found);
    }
    let machine = machine::description(&ground.client, &stage::SETTINGS).await;
    report::publish(size, report::TITLES[5], &text(size, &machine, &cases, &spent));
}

fn cases(replica: &str, exporter: &str, flag: &str) -> [Case; 4] {
    // Limits that nothing comes near; intervals at their defaults.
    let all = format!(
        "[throttle.replication_lag]\nreplicas = [\"{replica}\"]\nmin_replicas = 1\nmax_bytes = 1000000000\n\
         [throttle.slots]\nmax = 1000000000\n\
         [throttle.autovacuum]\nmax = 3\n\
         [throttle.wal_archive]\nmax = 100\n\
         [throttle.active_queries]\nmax = 100\n\
         [throttle.transaction_age]\nmax = \"1h\"\n\
         [throttle.flag_file]\npath = \"{flag}\"\n\
         [throttle.sql.users]\nquery = \"SELECT count(*) FROM users_1 WHERE id < 100\"\nmax = 1000\n\
         [throttle.prometheus.app]\nurl = \"http://{exporter}\"\nquery = \"{GAUGE}\"\nmax = 0.1\n"
    );
    let case = |label, configuration, has_job| Case { label, configuration, has_job };
    [
        case("no daemon", None, false),
        case("a daemon, all defaults, no job", Some(String::new()), false),
        case("every signal, no job", Some(all.clone()), false),
        case("every signal, a job that the flag file holds", Some(all), true),
    ]
}

async fn measure(size: Size, case: &Case, ground: &Ground, reader: &Client) -> Spent {
    let backfill = match &case.configuration {
        None => None,
        Some(configuration) => {
            Some(Backfill::start(ground.database.url(), configuration, &ground.client).await)
        }
    };
    if let Some(backfill) = backfill.as_ref().filter(|_| case.has_job) {
        backfill.submit("users", "users_1", "");
    }
    // Autovacuum and the statistics of what was done before have their time here too.
    tokio::time::sleep(size.span(SETTLING_SECONDS)).await;
    let servers = [processes(&ground.client).await, processes(reader).await];
    let now = || {
        let daemon = backfill.as_ref().map_or(0.0, |backfill| process::cpu_seconds(backfill.pid()));
        (daemon, servers.map(ServerProcesses::cpu_seconds))
    };
    let (daemon_before, before) = now();
    tokio::time::sleep(size.span(MEASURED_SECONDS)).await;
    let (daemon_after, after) = now();
    if let Some(backfill) = backfill {
        backfill.stop();
    }
    Spent {
        daemon: daemon_after - daemon_before,
        primary: after[0] - before[0],
        replica: after[1] - before[1],
        measured: size.span(MEASURED_SECONDS),
    }
}

/// Of the server that the session of `client` belongs to.
async fn processes(client: &Client) -> ServerProcesses {
    let row = client.query_one("SELECT pg_backend_pid()", &[]).await.expect("the server answers");
    ServerProcesses::of_backend(u32::try_from(row.get::<_, i32>(0)).expect("a process id is positive"))
}

impl Spent {
    /// Percent of one core.
    fn percent(&self, seconds: f64) -> f64 {
        100.0 * seconds / self.measured.as_secs_f64()
    }

    /// On all sides together, beyond what was spent without a daemon.
    fn overhead_percent(&self, idle: &Self) -> f64 {
        let total = |spent: &Self| spent.daemon + spent.primary + spent.replica;
        self.percent(total(self) - total(idle))
    }
}

fn text(size: Size, machine: &str, cases: &[Case], spent: &[Spent]) -> String {
    let idle = &spent[0];
    let lines: Vec<Vec<String>> = cases
        .iter()
        .zip(spent)
        .map(|(case, spent)| {
            let mut cells = vec![case.label.to_owned()];
            cells.extend(
                [spent.daemon, spent.primary, spent.replica]
                    .map(|seconds| format!("{:.2}", spent.percent(seconds))),
            );
            cells.push(format!("{:.2}", spent.overhead_percent(idle)));
            cells
        })
        .collect();
    let heads = ["", "daemon", "primary", "replica", "more than without a daemon"];
    let verdicts: Vec<String> = cases
        .iter()
        .zip(spent)
        .skip(1)
        .map(|(case, spent)| verdict(case.label, Wanted::Below(1.0), " %", spent.overhead_percent(idle)))
        .collect();
    format!(
        "CPU time in percent of one core, of the daemon and of all processes of an idle primary and its replica, over {seconds:.0} s each\n\
         (`/proc/PID/stat`, whose unit of 10 ms a process is {unit:.2} % here). Intervals are the defaults. Every signal: two or more\n\
         queries' latency, lag of a replica read there too, slots, autovacuum, WAL to be archived, others' queries and\n\
         transactions, a flag file, one SQL query, one PromQL query (answered by this program, not a Prometheus).\n\n\
         {machine}\n{table}\n{verdicts}",
        seconds = size.span(MEASURED_SECONDS).as_secs_f64(),
        unit = 1.0 / size.span(MEASURED_SECONDS).as_secs_f64(),
        table = table(&heads, &lines),
        verdicts = verdicts.concat(),
    )
}
