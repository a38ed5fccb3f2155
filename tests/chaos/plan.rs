//! What a seed means: the job of a round, who else is at the table, and which faults come when.

use std::time::Duration;

use fastrand::Rng;

use super::link::{AtCommit, Side};
use super::proxy::{Statement, Weather};

/// The lease that daemons take: short, so that many run out.
pub(crate) const LEASE: Duration = Duration::from_secs(2);
/// How long the walk takes at its limited rate when nothing goes wrong.
const WALK_SECONDS: u32 = 18;
/// The same of a walk that sweeps follow, each of which takes as long again.
const SWEPT_WALK_SECONDS: u32 = 8;
/// For how long there are faults.
const FAULTS_LAST: Duration = Duration::from_secs(25);

/// How the rows go, so that a walk takes a while.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Batches {
    /// Small ones at a limited rate.
    Small { rows_per_second: u32 },
    /// Large ones that take seconds: what a split leaves to the owner may end within the batch in flight.
    Slow { rows: u32 },
}

/// What the job does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Work {
    /// It counts up a column of every row. Nothing in it hides that a row was changed twice, and nothing is swept.
    Count,
    /// It fills a column where that is NULL, and sweeps. `enforced`: and sets it NOT NULL in the end.
    Fill { enforced: bool },
    /// It deletes the rows in which the column is NULL, and sweeps.
    Delete,
    /// It moves them to another table, and sweeps.
    Move,
}

/// One round, as its seed has it.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) seed: u64,
    pub(crate) work: Work,
    pub(crate) rows: u32,
    pub(crate) batches: Batches,
    pub(crate) order: &'static str,
    pub(crate) synchronous_commit: &'static str,
    pub(crate) lock_timeout: Duration,
    /// Whether faults come before the job has started.
    pub(crate) starts_in_chaos: bool,
    /// Whether rows are inserted and deleted meanwhile, or only changed and locked.
    pub(crate) rows_come_and_go: bool,
    /// Whether there is a replica, to be promoted.
    pub(crate) has_replica: bool,
    pub(crate) faults: Vec<Planned>,
}

/// A fault and how long after the one before it comes.
#[derive(Debug)]
pub(crate) struct Planned {
    pub(crate) after: Duration,
    pub(crate) fault: Fault,
}

/// Something that goes wrong. A daemon is 0 or 1.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Fault {
    /// SIGKILL; another one starts after the time, perhaps under another name.
    Kill { daemon: usize, away: Duration, renamed: bool },
    /// SIGTERM; another one starts once it has ended and the time has passed.
    Stop { daemon: usize, away: Duration },
    /// SIGSTOP, and SIGCONT after the time.
    Freeze { daemon: usize, time: Duration },
    /// `pg_terminate_backend` of one session of the daemons or of all.
    Terminate { all: bool },
    /// The server restarts, as after a crash or in order.
    Restart { crash: bool },
    /// The standby takes the primary's place.
    Promote,
    /// Connections are cut; what is half-open then ends after the time.
    Cut { daemon: usize, side: Side, time: Duration },
    /// The network is slow or loses all, for the time.
    Network { daemon: usize, weather: Weather, time: Duration },
    /// What becomes of the next COMMITs.
    Commit { daemon: usize, what: AtCommit, times: u32 },
    /// The next such statement arrives late.
    Late { daemon: usize, statement: Statement, time: Duration },
    /// The table is locked again and again.
    LockTable { times: u32, time: Duration },
    /// A tenth of the rows is locked.
    LockRows { tenth: u32, time: Duration },
    /// `tune workers=N`.
    Tune { workers: u32 },
    /// `pause`, waiting for batches in flight or not, and `resume` after the time.
    Pause { time: Duration, waits: bool },
}

impl Plan {
    pub(crate) fn of(seed: u64) -> Self {
        let mut rng = Rng::with_seed(seed);
        let (rows, batches) = if rng.u32(0..5) < 2 {
            (rng.u32(100_000..180_000), Batches::Slow { rows: rng.u32(6_000..15_000) })
        } else {
            let rows = rng.u32(60_000..110_000);
            (rows, Batches::Small { rows_per_second: rows / WALK_SECONDS })
        };
        let has_replica = rng.u32(0..4) == 0;
        let mut plan = Self {
            seed,
            work: Work::Count,
            rows,
            batches,
            order: if rng.bool() { "ascending" } else { "descending" },
            synchronous_commit: if rng.u32(0..4) == 0 { "on" } else { "off" },
            lock_timeout: milliseconds(&mut rng, 200, 2_000),
            starts_in_chaos: rng.u32(0..3) == 0,
            rows_come_and_go: rng.bool(),
            has_replica,
            faults: Vec::new(),
        };
        let promoted_after = milliseconds(&mut rng, 4_000, 16_000);
        let mut promoted = !has_replica;
        if let Batches::Slow { .. } = plan.batches {
            // Most splits are at the start. While one is under way, the owner comes to where it is to end.
            plan.faults.extend((0..8).map(|number| {
                let time = milliseconds(&mut rng, 1_000, 5_000);
                let fault = Fault::Late { daemon: number % 2, statement: Statement::Split, time };
                Planned { after: Duration::ZERO, fault }
            }));
        }
        let mut at = Duration::ZERO;
        while at < FAULTS_LAST {
            let after = milliseconds(&mut rng, 20, 1_000);
            at += after;
            let fault = if !promoted && at > promoted_after {
                promoted = true;
                Fault::Promote
            } else {
                fault(&mut rng)
            };
            plan.faults.push(Planned { after, fault });
        }
        plan.work = work(&mut rng);
        if plan.work != Work::Count {
            // An expression that takes its time is no immutable one, and would not be swept.
            plan.batches = Batches::Small { rows_per_second: rows / SWEPT_WALK_SECONDS };
            // Else there would be nothing to sweep.
            plan.rows_come_and_go = true;
        }
        plan
    }

    /// The round without its faults.
    pub(crate) fn summary(&self) -> String {
        format!("{:?}", Self { faults: Vec::new(), ..*self })
    }
}

/// The seed of the `number`th round of a run. The first one's is the run's, so that a round can be had again
/// by itself.
pub(crate) fn seed_of_round(seed: u64, number: u64) -> u64 {
    if number == 0 { seed } else { Rng::with_seed(seed ^ number.wrapping_mul(0x9e37_79b9_7f4a_7c15)).u64(..) }
}

fn fault(rng: &mut Rng) -> Fault {
    let daemon = rng.usize(0..2);
    let lease = u64::try_from(LEASE.as_millis()).expect("a lease is a few seconds");
    match rng.u32(0..100) {
        0..12 => Fault::Kill { daemon, away: milliseconds(rng, 0, 3_000), renamed: rng.u32(0..3) == 0 },
        12..16 => Fault::Stop { daemon, away: milliseconds(rng, 0, 2_000) },
        16..28 => Fault::Freeze { daemon, time: milliseconds(rng, lease / 4, lease * 2) },
        28..38 => Fault::Terminate { all: rng.u32(0..3) == 0 },
        38..42 => Fault::Restart { crash: rng.bool() },
        42..52 => {
            let side = [Side::Both, Side::Client, Side::Server][rng.usize(0..3)];
            Fault::Cut { daemon, side, time: milliseconds(rng, 0, 4_000) }
        }
        52..60 => Fault::Network { daemon, weather: weather(rng), time: milliseconds(rng, 300, lease * 2) },
        60..66 => {
            let statement = [Statement::Claim, Statement::Split][rng.usize(0..2)];
            Fault::Late { daemon, statement, time: milliseconds(rng, 100, 3_000) }
        }
        66..84 => Fault::Commit { daemon, what: at_commit(rng), times: rng.u32(1..4) },
        84..88 => Fault::LockTable { times: rng.u32(1..4), time: milliseconds(rng, 100, 1_000) },
        88..92 => Fault::LockRows { tenth: rng.u32(0..10), time: milliseconds(rng, 100, 1_500) },
        92..97 => Fault::Tune { workers: rng.u32(1..6) },
        _ => Fault::Pause { time: milliseconds(rng, 0, 1_500), waits: rng.bool() },
    }
}

fn work(rng: &mut Rng) -> Work {
    match rng.u32(0..8) {
        0..3 => Work::Count,
        3 => Work::Fill { enforced: false },
        4 | 5 => Work::Fill { enforced: true },
        6 => Work::Delete,
        _ => Work::Move,
    }
}

fn weather(rng: &mut Rng) -> Weather {
    match rng.u32(0..4) {
        0 => Weather { delay: milliseconds(rng, 5, 80), ..Weather::default() },
        1 => Weather { loses_up: true, ..Weather::default() },
        2 => Weather { loses_down: true, ..Weather::default() },
        _ => Weather { loses_up: true, loses_down: true, ..Weather::default() },
    }
}

fn at_commit(rng: &mut Rng) -> AtCommit {
    match rng.u32(0..7) {
        0 => AtCommit::Before,
        1 => AtCommit::After,
        2 => AtCommit::Unanswered(milliseconds(rng, 0, 3_000)),
        3 | 4 => AtCommit::Late(late(rng)),
        5 => AtCommit::LateAlone(late(rng)),
        _ => AtCommit::Swallowed(milliseconds(rng, 0, 3_000)),
    }
}

/// Mostly so little that the batch is being tried again; sometimes so much that the slice has another owner.
fn late(rng: &mut Rng) -> Duration {
    let most = if rng.u32(0..3) == 0 { 5_000 } else { 700 };
    milliseconds(rng, 50, most)
}

fn milliseconds(rng: &mut Rng, least: u64, most: u64) -> Duration {
    Duration::from_millis(rng.u64(least..=most))
}
