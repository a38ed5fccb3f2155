//! The foreground load steps from light to heavy and back: how soon the rate follows.

use std::time::{Duration, Instant, SystemTime};

use crate::daemon::{self, Backfill};
use crate::figures::{Wanted, grouped, table, verdict};
use crate::pgbench::{Foreground, Load, Transactions};
use crate::stage::{self, Ground};
use crate::trial::Size;
use crate::watch::{Sample, Watch, rows_per_second};
use crate::{audit, machine, plot, report};

/// A fixed rate that leaves room.
const LIGHT: Load = Load { clients: 8, transactions_per_second: Some(300) };
/// As many as they can: both cores are busy, and every session waits for one.
const HEAVY: Load = Load { clients: 32, transactions_per_second: None };

/// A rest to measure what quiet is, the rate's growth, and a while at its height.
const BEFORE_SECONDS: u32 = 90;
const HEAVY_SECONDS: u32 = 40;
const AFTER_SECONDS: u32 = 90;

/// The daemon's tick, by default.
const TICK: Duration = Duration::from_secs(1);
/// What is compared before and after is the mean of so long.
const MEAN: Duration = Duration::from_secs(10);
const JOB: &str = "users";

/// When the load stepped.
pub(crate) struct Phases {
    pub(crate) begun: Instant,
    pub(crate) heavy: Instant,
    pub(crate) light_again: Instant,
    pub(crate) ended: Instant,
}

/// Runs it and publishes the report and the plot.
pub(crate) async fn run() {
    let size = Size::chosen();
    let rows = 4 * size.rows;
    eprintln!("steps: loading a table of {} rows", grouped(f64::from(rows)));
    let mut ground = Ground::build(&[rows]).await;
    let replica = ground.start_replica();
    let [before, heavy, after] =
        [BEFORE_SECONDS, HEAVY_SECONDS, AFTER_SECONDS].map(|seconds| size.span(seconds));

    let warm_up = Duration::from_secs(3);
    let slack = Duration::from_secs(10);
    let light_load =
        Foreground::start(ground.database.url(), LIGHT, warm_up + before + heavy + after + slack);
    tokio::time::sleep(warm_up).await;
    let configuration = format!("[throttle.replication_lag]\nreplicas = [\"{replica}\"]\n");
    let backfill = Backfill::start(ground.database.url(), &configuration, &ground.client).await;
    let watch = Watch::start(&backfill, ground.database.url(), JOB, "query_latency");
    let (begun, begun_at) = (Instant::now(), SystemTime::now());
    backfill.submit(JOB, "users_1", "");
    tokio::time::sleep(before).await;
    eprintln!("steps: the load becomes heavy");
    let heavy_at = Instant::now();
    // Ends by itself.
    let heavy_load = Foreground::start(ground.database.url(), HEAVY, heavy);
    tokio::time::sleep(heavy).await;
    heavy_load.wait();
    eprintln!("steps: the load is light again");
    let light_at = Instant::now();
    tokio::time::sleep(after).await;
    let phases = Phases { begun, heavy: heavy_at, light_again: light_at, ended: Instant::now() };

    let samples = watch.finish("steps");
    let rows_left = f64::from(rows) - daemon::rows_scanned(&ground.client).await;
    assert!(rows_left > 0.0, "the job ended before the run; a trial needs more rows or less time");
    let events = audit::events(&ground.client).await;
    backfill.stop();
    let transactions = light_load.wait();

    let drawing = plot::Drawing { phases: &phases, samples: &samples };
    plot::draw(size, &drawing);
    let machine = machine::description(&ground.client, &stage::SETTINGS).await;
    let story = Story::of(&samples, &phases);
    let at = |instant: Instant| begun_at + (instant - begun);
    let mut text = intro(size, &machine);
    text.push_str(&story.table(&transactions, &phases, at));
    text.push_str(&audit::told(&events, begun_at));
    text.push_str(&story.verdicts());
    report::publish(size, report::TITLES[1], &text);
}

/// What the samples show.
struct Story {
    allowed_before: f64,
    walked_before: f64,
    walked_heavy: f64,
    /// From the begin of the heavy load to the daemon's own reading over the limit.
    seconds_to_breach: Option<f64>,
    /// From that reading to the rate's fall.
    ticks_to_fall: Option<f64>,
    lowest_allowed: f64,
    /// From the end of the heavy load until the rate is at 80 %.
    seconds_to_recover: Option<f64>,
    seconds_to_walk_again: Option<f64>,
}

impl Story {
    fn of(samples: &[Sample], phases: &Phases) -> Self {
        let between = |from: Instant, to: Instant| {
            samples.iter().filter(move |sample| sample.at >= from && sample.at < to)
        };
        let allowed = |sample: &Sample| sample.rows_per_second_allowed.unwrap_or(f64::NAN);
        let calm = phases.heavy.checked_sub(MEAN).unwrap_or(phases.begun);
        let (count, sum) = between(calm, phases.heavy)
            .fold((0.0, 0.0), |(count, sum), sample| (count + 1.0, sum + allowed(sample)));
        let allowed_before = sum / count;
        let walked_before = rows_per_second(samples, calm, phases.heavy);

        let breach = between(phases.heavy, phases.light_again)
            .find(|sample| sample.utilisation.is_some_and(|utilisation| utilisation >= 1.0));
        // A rate yields by a tenth at least.
        let fall = breach.and_then(|breach| {
            let height =
                samples.iter().rev().find(|sample| sample.at < breach.at).map_or(allowed_before, allowed);
            between(breach.at, phases.ended).find(|sample| allowed(sample) < 0.95 * height)
        });
        let recovered =
            between(phases.light_again, phases.ended).find(|sample| allowed(sample) >= 0.8 * allowed_before);
        let walks_again = between(phases.light_again, phases.ended).find(|sample| {
            let from = sample.at.checked_sub(Duration::from_secs(3)).unwrap_or(sample.at);
            rows_per_second(samples, from, sample.at) >= 0.8 * walked_before
        });
        let since =
            |from: Instant, sample: Option<&Sample>| sample.map(|sample| (sample.at - from).as_secs_f64());
        Self {
            allowed_before,
            walked_before,
            walked_heavy: rows_per_second(samples, phases.heavy, phases.light_again),
            seconds_to_breach: since(phases.heavy, breach),
            ticks_to_fall: breach
                .and_then(|breach| since(breach.at, fall))
                .map(|seconds| seconds / TICK.as_secs_f64()),
            lowest_allowed: between(phases.heavy, phases.light_again)
                .map(allowed)
                .fold(f64::INFINITY, f64::min),
            seconds_to_recover: since(phases.light_again, recovered),
            seconds_to_walk_again: since(phases.light_again, walks_again),
        }
    }

    fn table(
        &self,
        transactions: &Transactions,
        phases: &Phases,
        at: impl Fn(Instant) -> SystemTime,
    ) -> String {
        let p99 =
            |from: Instant, to: Instant| format!("{:.1}", 1e3 * transactions.p99_seconds(at(from), at(to)));
        let calm = phases.heavy.checked_sub(MEAN).unwrap_or(phases.begun);
        let lines = [
            vec![
                "light, the last 10 s".to_owned(),
                grouped(self.allowed_before),
                grouped(self.walked_before),
                p99(calm, phases.heavy),
            ],
            vec![
                "heavy".to_owned(),
                format!("{} at the lowest", grouped(self.lowest_allowed)),
                grouped(self.walked_heavy),
                p99(phases.heavy, phases.light_again),
            ],
        ];
        let heads = ["load", "rate allowed, rows/s", "walked, rows/s", "p99 ms of the light load"];
        table(&heads, &lines)
    }

    fn verdicts(&self) -> String {
        let breach = self.seconds_to_breach.map_or_else(
            || "The daemon never read a p99 over its limit: the load was not heavy enough.".to_owned(),
            |seconds| {
                format!(
                    "The daemon's first reading over the limit came {seconds:.1} s after the load's step."
                )
            },
        );
        let walks = self.seconds_to_walk_again.map_or_else(
            || "Rows really walked were not back at 80 %.".to_owned(),
            |seconds| format!("Rows really walked (over 3 s) were back at 80 % after {seconds:.1} s."),
        );
        format!(
            "{breach} {walks}\n\n{}{}",
            verdict(
                "ticks from the first breach to the fall of the rate",
                Wanted::Below(2.0),
                "",
                self.ticks_to_fall.unwrap_or(f64::INFINITY),
            ),
            verdict(
                "from the end of the heavy load until the rate is at 80 % of what it was",
                Wanted::Below(60.0),
                " s",
                self.seconds_to_recover.unwrap_or(f64::INFINITY),
            ),
        )
    }
}

fn intro(size: Size, machine: &str) -> String {
    let [before, heavy, after] =
        [BEFORE_SECONDS, HEAVY_SECONDS, AFTER_SECONDS].map(|seconds| size.span(seconds).as_secs_f64());
    format!(
        "pgbench at {rate} transactions a second, and after {before:.0} s for {heavy:.0} s a second one beside it with {clients} clients\n\
         that do as many as they can; then {after:.0} s without it. One job, the throttle at its defaults, one replica that it\n\
         watches. The daemon was looked at every {every:.2} s. [The plot](../../docs/img/throttle.svg) is of this run.\n\n\
         {machine}\n",
        rate = LIGHT.transactions_per_second.unwrap_or_default(),
        clients = HEAVY.clients,
        every = Watch::EVERY.as_secs_f64(),
    )
}
