//! The benchmarks, run on throwaway PostgreSQL servers with the real program.
//!
//! `make bench` runs `speed` and `workers`, `make bench-growth` runs `growth`, `make bench-scale` runs
//! `scale`, `make bench-locks` runs `locks`. Each prints a Markdown report and, at its full size, keeps it under `benches/results/`.
//!
//! | module | does |
//! | --- | --- |
//! | `size` | how many rows, and whether the result is worth keeping |
//! | `backfill` | the daemon at work: start it, hand it a job, wait for the end |
//! | `process` | CPU time and memory of processes, from `/proc` |
//! | `statements` | what the daemon's statements touched, from `pg_stat_statements` |
//! | `speed`, `contestant`, `users` | the race, who runs it, and the table that it is run on |
//! | `workers`, `rival` | several workers, a pooler, and what people use today, on the same table |
//! | `django`, `tool` | real Django, and how programs are run |
//! | `watch` | the machine's processors and the server's sessions during a run |
//! | `bars` | the plot of `workers` |
//! | `growth` | the first batches of a long walk beside its last |
//! | `scale`, `gauge`, `shards`, `outlook` | a walk of 50,000,000 rows, a hundred jobs at once, and what follows for more |
//! | `locks` | for how long the whole change keeps everybody from the table, beside plain migrations |
//! | `stretch` | some batches of a walk between two pauses: `growth` and `scale` |
//! | `machine`, `figures` | what a report says of the machine, and how it prints numbers |

#![forbid(unsafe_code)]
#![allow(clippy::print_stdout, reason = "the report is this program's output")]

use std::process::ExitCode;

#[path = "../../tests/it/support/mod.rs"]
mod support;

#[path = "../throttle/tool.rs"]
#[allow(dead_code, reason = "shared with the other benchmarks")]
mod tool;

mod backfill;
mod bars;
mod contestant;
mod django;
mod figures;
mod gauge;
mod growth;
mod locks;
mod machine;
mod outlook;
mod process;
mod rival;
mod scale;
mod shards;
mod size;
mod speed;
mod statements;
mod stretch;
mod users;
mod watch;
mod workers;

const USAGE: &str = "\
usage: cargo bench --bench backfill -- speed | speed-defaults | workers | growth | scale | locks

  speed    rows a second beside one UPDATE and a server-side procedure, about 5 minutes
  speed-defaults
           the same on a server with its default settings
  workers  two workers, two daemons, PgBouncer, and what people use today, about 20 minutes
  growth   whether a batch costs the same at both ends of a long walk, about 5 minutes
  scale    a walk of 50,000,000 rows with one worker, about 10 minutes
  locks    the longest ACCESS EXCLUSIVE lock of a whole change beside plain migrations, about 10 minutes

BENCH_ROWS=N runs with about N rows instead, to try it out: nothing is written then.
";

fn main() -> ExitCode {
    // cargo itself adds --bench, and --test when it wants to know only that this can be run.
    let names: Vec<String> =
        std::env::args().skip(1).filter(|argument| !argument.starts_with("--")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    match names.as_slice() {
        ["speed"] => in_runtime(speed::run(speed::ROOMY, "speed.md")),
        ["speed-defaults"] => in_runtime(speed::run(&[], "speed-defaults.md")),
        ["workers"] => in_runtime(workers::run()),
        ["scale"] => in_runtime(scale::run()),
        ["locks"] => in_runtime(locks::run()),
        ["growth"] => in_runtime(growth::run()),
        [] => print!("{USAGE}"),
        _ => {
            eprint!("{USAGE}");
            return ExitCode::from(2);
        }
    }
    ExitCode::SUCCESS
}

fn in_runtime(work: impl Future<Output = ()>) {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime can be built")
        .block_on(work);
}
