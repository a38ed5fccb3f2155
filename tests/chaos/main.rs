//! The chaos test: two daemons with two workers each walk one job while an application uses the table and
//! everything goes wrong that a production database does to its clients. Afterwards each row was changed
//! exactly once.
//!
//! A run is a series of rounds, each with a table and a job of its own, as long as its time lasts. The seed
//! decides which faults come, in which order, to whom, and with which delays; not, of course, what the
//! operating system makes of it. `CHAOS_SEED` gives the seed, `CHAOS_SECONDS` the time.
//!
//! | file | is |
//! | --- | --- |
//! | `plan.rs` | what a seed means |
//! | `stage.rs`, `place.rs` | servers, table, job; the daemons |
//! | `proxy.rs`, `link.rs` | the network between them |
//! | `writers.rs` | the application |
//! | `faults.rs`, `round.rs` | what is done, and when |
//! | `oracle.rs` | what must hold in the end |

#![allow(clippy::unwrap_used, reason = "a test that unwraps fails with the place and the error")]

#[path = "../it/support/mod.rs"]
mod support;

mod faults;
mod link;
mod oracle;
mod place;
mod plan;
mod proxy;
mod round;
mod stage;
mod writers;

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use plan::{Plan, seed_of_round};
use stage::Stage;

/// How long a run takes when nothing else is said.
const SECONDS: u64 = 120;
/// A round is not begun that would have less time.
const SHORTEST_ROUND: Duration = Duration::from_secs(30);
/// Seeds of rounds that failed once, one a line; `#` begins a comment.
const SEEDS: &str = include_str!("seeds");
/// A machine has not room for two runs at a time.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

#[test]
fn whatever_goes_wrong_each_row_is_changed_exactly_once() {
    let seed = number("CHAOS_SEED").unwrap_or_else(|| fastrand::u64(..));
    let time = Duration::from_secs(number("CHAOS_SECONDS").unwrap_or(SECONDS));
    eprintln!("chaos for {time:?} by seed {seed}");
    let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let begun = Instant::now();
    let mut stage = Stage::new();
    for round in 0.. {
        if round > 0 && begun.elapsed() + SHORTEST_ROUND > time {
            break;
        }
        play(&mut stage, seed_of_round(seed, round), round);
    }
}

#[test]
fn what_failed_once_does_not_fail_again() {
    let lines = SEEDS.lines().map(|line| line.split('#').next().unwrap_or_default().trim());
    let seeds: Vec<u64> = lines.filter(|line| !line.is_empty()).map(|line| line.parse().unwrap()).collect();
    if seeds.is_empty() {
        return;
    }
    let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let mut stage = Stage::new();
    for (round, seed) in (0..).zip(seeds) {
        play(&mut stage, seed, round);
    }
}

fn play(stage: &mut Stage, seed: u64, round: u64) {
    // For a panic, which does not say it.
    eprintln!("round {round}, seed {seed}");
    match round::play(stage, &Plan::of(seed), round) {
        Ok(summary) => eprintln!("round {round}: {summary}"),
        Err(report) => panic!(
            "round {round} failed; again:\n  CHAOS_SEED={seed} cargo test --test chaos whatever\n{report}"
        ),
    }
}

/// A whole number from the environment.
fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok().filter(|text| !text.is_empty())?;
    Some(text.parse().unwrap_or_else(|_| panic!("{variable} is not a whole number: {text}")))
}
