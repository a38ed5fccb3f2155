//! How large and how long the runs are, and whether their report is worth keeping.

use std::time::Duration;

/// Rows of a table at full size, where a run does not say otherwise.
const ROWS: u32 = 5_000_000;
/// Fewer rows than this are gone before anything is measured.
const FEWEST_ROWS: u32 = 10_000;
/// Rounds at full size.
const ROUNDS: usize = 5;

/// The size of a benchmark run: the full one, or that of a trial.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Size {
    /// Rows of a table.
    pub(crate) rows: u32,
    /// How often the contestants of `foreground` run.
    pub(crate) rounds: usize,
    /// How long a trial lasts, in percent of the full time.
    percent: u32,
    /// Why the report says nothing about the program, if it does not.
    pub(crate) reason_to_discard: Option<&'static str>,
}

impl Size {
    /// The full size, but for what `BENCH_ROWS`, `BENCH_ROUNDS` and `BENCH_PERCENT` ask for.
    pub(crate) fn chosen() -> Self {
        let [rows, rounds, percent] = ["BENCH_ROWS", "BENCH_ROUNDS", "BENCH_PERCENT"].map(asked_for);
        let reason_to_discard = if rows.or(rounds).or(percent).is_some() {
            Some("BENCH_... is set: a trial, not a result")
        } else if cfg!(debug_assertions) {
            Some("built without optimisation: run it by cargo bench")
        } else {
            None
        };
        let rows = rows.unwrap_or(ROWS);
        assert!(rows >= FEWEST_ROWS, "BENCH_ROWS is at least {FEWEST_ROWS}");
        Self {
            rows,
            rounds: rounds.map_or(ROUNDS, |rounds| rounds as usize),
            percent: percent.unwrap_or(100),
            reason_to_discard,
        }
    }

    /// What a span of `seconds` at full size is here.
    pub(crate) fn span(self, seconds: u32) -> Duration {
        Duration::from_secs(u64::from(seconds)) * self.percent / 100
    }
}

fn asked_for(variable: &str) -> Option<u32> {
    let text = std::env::var(variable).ok()?;
    let number = text.replace('_', "").parse().ok().filter(|number| *number > 0);
    Some(number.unwrap_or_else(|| panic!("{variable} is a whole number above 0, not {text:?}")))
}
