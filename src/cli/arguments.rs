//! The command line as it is written.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use clap_complete::Shell;

/// Backfills large tables of a live PostgreSQL, batch by batch, with its place kept beside the data.
#[derive(Debug, Parser)]
#[command(name = "backfilld", version, max_term_width = 100, after_help = EXIT_CODES)]
pub(super) struct Arguments {
    /// The configuration file [default: /etc/backfilld/backfilld.toml, where it exists]
    #[arg(long, global = true, value_name = "FILE")]
    pub(super) config: Option<PathBuf>,
    /// The database; a password is better given in the configuration or the environment
    #[arg(long, global = true, value_name = "URL")]
    pub(super) database_url: Option<String>,
    #[command(subcommand)]
    pub(super) command: Command,
}

const EXIT_CODES: &str = "Exit codes: 0 done, 1 failed at run time, 2 usage, configuration or job file wrong, 3 the job did not complete";

/// What to do.
#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Run the daemon
    Run(Run),
    /// Create or upgrade the state schema; safe to repeat, and from two hosts at once
    Init,
    /// Say what a job would do, and whether it can; changes nothing
    Check(Check),
    /// Run real batches of a job and roll each back: rows, time, WAL, locks, and rows before and after
    Try(Try),
    /// Register jobs; the same spec again is a no-op
    Submit(Submit),
    /// Show how the jobs stand
    Status(Status),
    /// Pause a job; returns when no batch of it is in flight
    Pause(Pause),
    /// Let a paused job go on
    Resume(Name),
    /// End a job for good; what it has changed stays changed
    Cancel(Name),
    /// Let a failed or cancelled job go on from its cursor
    Retry(Name),
    /// Let a job go on that waits for it before its start or its finish: `hold_before`
    Approve(Name),
    /// Change workers, rate, batch sizes or limits of a job while it runs
    Tune(Tune),
    /// Block until a job ends: 0 complete, 3 failed, cancelled or timed out
    Wait(Wait),
    /// Count the rows that still match a job's where, walking by key: 0 none is left, 3 some are
    Verify(Name),
    /// Show the rows that could not be changed, or try them again
    Quarantine(Quarantine),
    /// Show who changed what, and why
    Events(Events),
    /// Show what the throttle sees: each signal's reading, limit, utilisation, age and verdict
    Throttle(Throttle),
    /// Ask the daemon that listens on `http.listen` whether it lives: 0 it does, 1 it does not
    Health(Health),
    /// Print a completion script for a shell
    Completions(Completions),
    /// Write the manual pages, one a command
    #[command(hide = true)]
    Man(Man),
}

#[derive(Debug, Args)]
pub(super) struct Run {
    /// Leave with 0 once no job is left to run, with 3 when any job ended failed
    #[arg(long)]
    pub(super) until_idle: bool,
    /// Submit this job first; may be given several times
    #[arg(long = "job", value_name = "FILE")]
    pub(super) jobs: Vec<PathBuf>,
}

#[derive(Debug, Args)]
pub(super) struct Check {
    /// Job files
    #[arg(required = true, value_name = "FILE")]
    pub(super) files: Vec<PathBuf>,
}

#[derive(Debug, Args)]
pub(super) struct Try {
    /// A job file
    #[arg(value_name = "FILE")]
    pub(super) file: PathBuf,
    /// How many batches
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub(super) batches: u32,
}

#[derive(Debug, Args)]
pub(super) struct Submit {
    /// Job files
    #[arg(required = true, value_name = "FILE")]
    pub(super) files: Vec<PathBuf>,
    /// Replace a job of the same name: a change of [batch], [limits], [throttle], [schedule] or walk.workers keeps its place, any other begins again
    #[arg(long)]
    pub(super) replace: bool,
}

#[derive(Debug, Args)]
pub(super) struct Status {
    /// One job only
    #[arg(value_name = "NAME")]
    pub(super) name: Option<String>,
    /// As JSON: a list of objects
    #[arg(long, conflicts_with = "watch")]
    pub(super) json: bool,
    /// Draw it anew every second, with progress bars
    #[arg(long)]
    pub(super) watch: bool,
}

#[derive(Debug, Args)]
pub(super) struct Pause {
    /// The job
    #[arg(value_name = "NAME")]
    pub(super) name: String,
    /// Return at once, a batch may still be in flight
    #[arg(long)]
    pub(super) no_wait: bool,
    /// Resume by itself after this time, such as 30m
    #[arg(long = "for", value_name = "DURATION", value_parser = duration)]
    pub(super) resume_after: Option<Duration>,
}

#[derive(Debug, Args)]
pub(super) struct Name {
    /// The job
    #[arg(value_name = "NAME")]
    pub(super) name: String,
}

#[derive(Debug, Args)]
pub(super) struct Tune {
    /// The job
    #[arg(value_name = "NAME")]
    pub(super) name: String,
    /// Keys of the job file with new values, such as workers=4
    #[arg(required = true, value_name = "KEY=VALUE")]
    pub(super) changes: Vec<String>,
}

#[derive(Debug, Args)]
pub(super) struct Wait {
    /// The job
    #[arg(value_name = "NAME")]
    pub(super) name: String,
    /// Give up after this time, such as 1h [default: never]
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub(super) timeout: Option<Duration>,
}

#[derive(Debug, Args)]
pub(super) struct Quarantine {
    /// The job
    #[arg(value_name = "NAME")]
    pub(super) name: String,
    /// Try each again, as the job is now; what can be changed leaves the quarantine
    #[arg(long)]
    pub(super) retry: bool,
}

#[derive(Debug, Args)]
pub(super) struct Events {
    /// One job only
    #[arg(value_name = "NAME")]
    pub(super) name: Option<String>,
    /// Go on with what happens from now on
    #[arg(long)]
    pub(super) follow: bool,
    /// How many of the latest to show
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(i64).range(0..=1_000_000))]
    pub(super) limit: i64,
}

#[derive(Debug, Args)]
pub(super) struct Throttle {
    /// As JSON: an object for each daemon
    #[arg(long)]
    pub(super) json: bool,
}

#[derive(Debug, Args)]
pub(super) struct Health {
    /// Ask whether it reaches its database too
    #[arg(long)]
    pub(super) ready: bool,
}

#[derive(Debug, Args)]
pub(super) struct Completions {
    /// The shell
    #[arg(value_enum)]
    pub(super) shell: Shell,
}

#[derive(Debug, Args)]
pub(super) struct Man {
    /// The folder to write them to; made where it is missing
    #[arg(long, value_name = "DIR")]
    pub(super) out: PathBuf,
}

fn duration(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text)
        .map_err(|_| "not a duration with its unit, such as 30s, 30m or 1h".to_owned())
}
