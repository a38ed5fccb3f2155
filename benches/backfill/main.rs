//! The benchmarks, run on throwaway PostgreSQL servers with the real program.
//!
//! `make bench` runs `speed`, `make bench-growth` runs `growth`. Both print a Markdown report and,
//! at their full size, keep it under `benches/results/`.
//!
//! | module | does |
//! | --- | --- |
//! | `size` | how many rows, and whether the result is worth keeping |
//! | `backfill` | the daemon at work: start it, hand it a job, wait for the end |
//! | `process` | CPU time and memory of processes, from `/proc` |
//! | `statements` | what the daemon's statements touched, from `pg_stat_statements` |
//! | `speed`, `contestant`, `users` | the race, who runs it, and the table that it is run on |
//! | `growth` | the first batches of a long walk beside its last |
//! | `machine`, `figures` | what a report says of the machine, and how it prints numbers |

#![forbid(unsafe_code)]
#![allow(clippy::print_stdout, reason = "the report is this program's output")]

use std::process::ExitCode;

#[path = "../../tests/it/support/mod.rs"]
mod support;

mod backfill;
mod contestant;
mod figures;
mod growth;
mod machine;
mod process;
mod size;
mod speed;
mod statements;
mod users;

const USAGE: &str = "\
usage: cargo bench --bench backfill -- speed | speed-defaults | growth

  speed    rows a second beside one UPDATE and a server-side procedure, about 5 minutes
  speed-defaults
           the same on a server with its default settings
  growth   whether a batch costs the same at both ends of a long walk, about 5 minutes

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
