//! How many rows a benchmark runs with, and whether its report is kept.

use std::fs;
use std::path::{Path, PathBuf};

/// Where reports of full size are kept.
const RESULTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/results");
/// Where pictures are.
const PICTURES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/img");
const TRIAL_PICTURES: &str = env!("CARGO_TARGET_TMPDIR");

/// Fewer rows than this measure nothing but start-up.
const FEWEST_ROWS: u32 = 10_000;

/// The size of one run.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Size {
    /// Rows of the table.
    pub(crate) rows: u32,
    /// Why the report says nothing about the program, if it does not.
    reason_to_discard: Option<&'static str>,
}

impl Size {
    /// The size that `BENCH_ROWS` asks for, else `full`.
    pub(crate) fn chosen(full: u32) -> Self {
        let wanted = std::env::var("BENCH_ROWS").ok().map(|text| {
            let rows: u32 = text.replace('_', "").parse().expect("BENCH_ROWS is a whole number of rows");
            assert!(rows >= FEWEST_ROWS, "BENCH_ROWS is at least {FEWEST_ROWS}");
            rows
        });
        let reason_to_discard = if wanted.is_some() {
            Some("BENCH_ROWS is set: a trial, not a result")
        } else if cfg!(debug_assertions) {
            Some("built without optimisation: run it by cargo bench")
        } else {
            None
        };
        Self { rows: wanted.unwrap_or(full), reason_to_discard }
    }

    /// Where a picture called `name` goes: into the documentation, that of a trial beside what was built.
    pub(crate) fn picture(self, name: &str) -> PathBuf {
        let folder = if self.reason_to_discard.is_some() { TRIAL_PICTURES } else { PICTURES };
        fs::create_dir_all(folder).expect("the project's folder can be written to");
        Path::new(folder).join(name)
    }

    /// Prints the report, and keeps it as `name` unless it is of a trial.
    pub(crate) fn publish(self, name: &str, report: &str) {
        println!("{report}");
        if let Some(reason) = self.reason_to_discard {
            eprintln!("{name} is not written; {reason}");
            return;
        }
        fs::create_dir_all(RESULTS).expect("the project's folder can be written to");
        fs::write(Path::new(RESULTS).join(name), report).expect("the project's folder can be written to");
        eprintln!("written: benches/results/{name}");
    }
}
