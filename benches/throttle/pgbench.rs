//! The foreground: pgbench at a fixed rate, and what each of its transactions took.

use std::fs;
use std::time::{Duration, SystemTime};

use crate::audit::since_1970;
use crate::support::server;
use crate::tool::{Scratch, Tool, utf8};

/// What pgbench is asked to do.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Load {
    pub(crate) clients: u32,
    /// None: as many as the clients can.
    pub(crate) transactions_per_second: Option<u32>,
}

/// A running pgbench.
pub(crate) struct Foreground {
    tool: Tool,
    folder: Scratch,
}

/// One transaction of pgbench.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Transaction {
    /// Seconds since 1970.
    ended: f64,
    /// From when it was due, by the rate, to its end.
    seconds: f64,
}

/// All transactions of a run.
pub(crate) struct Transactions(Vec<Transaction>);

/// Makes pgbench's tables.
pub(crate) fn initialise(url: &str, scale: u32) {
    let folder = Scratch::new();
    let program = server::program("pgbench");
    Tool::start(
        &program,
        &["--initialize", "--quiet", "--scale", &scale.to_string(), url],
        folder.path("log"),
    )
    .wait();
}

impl Foreground {
    /// Starts pgbench on the database at `url`, to end by itself after `length`.
    pub(crate) fn start(url: &str, load: Load, length: Duration) -> Self {
        let folder = Scratch::new();
        let (clients, prefix) = (load.clients.to_string(), folder.path("transactions"));
        let seconds = length.as_secs_f64().ceil().to_string();
        let rate = load.transactions_per_second.map(|rate| rate.to_string());
        let mut arguments = vec!["--no-vacuum", "--protocol=prepared", "--jobs=2", "--log"];
        arguments.extend(["--client", &clients, "--time", &seconds, "--log-prefix", utf8(&prefix)]);
        if let Some(rate) = &rate {
            arguments.extend(["--rate", rate]);
        }
        arguments.push(url);
        let tool = Tool::start(&server::program("pgbench"), &arguments, folder.path("log"));
        Self { tool, folder }
    }

    /// Waits for its end.
    pub(crate) fn wait(self) -> Transactions {
        self.tool.wait();
        let files = fs::read_dir(self.folder.path("")).expect("the folder is there");
        let mut transactions = Vec::new();
        for file in files.filter_map(Result::ok) {
            // One file a thread.
            if file.file_name().to_string_lossy().starts_with("transactions") {
                let text = fs::read_to_string(file.path()).expect("pgbench has written it");
                transactions.extend(text.lines().filter_map(parse));
            }
        }
        Transactions(transactions)
    }
}

/// A line of the log: client, number, microseconds, script, end in seconds and microseconds, and how
/// late it began, which the third field includes.
fn parse(line: &str) -> Option<Transaction> {
    let fields: Vec<&str> = line.split(' ').collect();
    let number = |field: usize| fields.get(field)?.parse::<f64>().ok();
    Some(Transaction { ended: number(4)? + number(5)? / 1e6, seconds: number(2)? / 1e6 })
}

impl Transactions {
    /// The p99 of those that ended from `from` up to `to`, in seconds.
    pub(crate) fn p99_seconds(&self, from: SystemTime, to: SystemTime) -> f64 {
        let (from, to) = (since_1970(from), since_1970(to));
        let mut seconds: Vec<f64> = self
            .0
            .iter()
            .filter(|transaction| transaction.ended >= from && transaction.ended < to)
            .map(|transaction| transaction.seconds)
            .collect();
        let count = seconds.len();
        assert!(
            count >= 100,
            "a p99 of {count} transactions is their maximum; a trial needs more rows or time"
        );
        seconds.sort_by(f64::total_cmp);
        seconds[(count * 99).div_ceil(100) - 1]
    }
}
