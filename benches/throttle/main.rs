//! The benchmarks of the throttle, run on throwaway PostgreSQL servers with the real program.
//!
//! `make bench-throttle` runs all of them. Each prints its part of a Markdown report and, at full
//! size, puts it into `benches/results/throttle.md`.

#![forbid(unsafe_code)]
#![allow(clippy::print_stdout, reason = "the report is this program's output")]

use std::process::ExitCode;

#[path = "../../tests/it/support/mod.rs"]
mod support;

#[path = "../backfill/figures.rs"]
mod figures;
#[path = "../backfill/machine.rs"]
mod machine;
#[path = "../backfill/process.rs"]
#[allow(dead_code, reason = "shared with the other benchmarks")]
mod process;
#[path = "../backfill/users.rs"]
#[allow(dead_code, reason = "shared with the other benchmarks")]
mod users;

mod audit;
mod daemon;
mod exporter;
mod foreground;
mod heartbeat;
mod overhead;
mod pgbench;
mod plot;
mod prometheus;
mod report;
mod scrape;
mod slow_replica;
mod stage;
mod steps;
mod stopped_replica;
#[allow(dead_code, reason = "shared with the other benchmarks")]
mod tool;
mod trial;
mod watch;

const USAGE: &str = "\
usage: cargo bench --bench throttle -- all | NAME...

  foreground       p99 of an application beside a backfill, throttled and not; about 50 minutes
  steps            the load steps from light to heavy and back; 5 minutes, makes the plot too
  slow-replica     a replica that applies slowly; about 6 minutes
  stopped-replica  a replica that is stopped in the middle; 2 minutes
  prometheus       PromQL against a real Prometheus, stopped in the middle; 3 minutes
  overhead         what the daemon costs an idle server; 6 minutes

BENCH_ROWS=N (rows of a table), BENCH_ROUNDS=N (of foreground), BENCH_PERCENT=N (of the full time)
make a trial of it: nothing is written then.
";

/// All runs, in the order of the report.
const NAMES: [&str; 6] = ["foreground", "steps", "slow-replica", "stopped-replica", "prometheus", "overhead"];

fn main() -> ExitCode {
    // cargo itself adds --bench, and --test when it wants to know only that this can be run.
    let names: Vec<String> =
        std::env::args().skip(1).filter(|argument| !argument.starts_with("--")).collect();
    let mut names: Vec<&str> = names.iter().map(String::as_str).collect();
    if names == ["all"] {
        names = NAMES.to_vec();
    }
    if names.iter().any(|name| !NAMES.contains(name)) {
        eprint!("{USAGE}");
        return ExitCode::from(2);
    }
    if names.is_empty() {
        print!("{USAGE}");
    }
    for name in names {
        match name {
            "foreground" => in_runtime(foreground::run()),
            "steps" => in_runtime(steps::run()),
            "slow-replica" => in_runtime(slow_replica::run()),
            "stopped-replica" => in_runtime(stopped_replica::run()),
            "prometheus" => in_runtime(prometheus::run()),
            _ => in_runtime(overhead::run()),
        }
    }
    ExitCode::SUCCESS
}

/// Runs `work` to its end in a runtime of this thread's own.
pub(crate) fn in_runtime<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime can be built")
        .block_on(work)
}
