//! What the law promises whatever is read.

use std::time::{Duration, Instant};

use backfilld::throttle::board::Board;
use backfilld::throttle::control::{Change, Control, Setup};
use backfilld::throttle::job::Terms;
use backfilld::throttle::latency::Latency;
use backfilld::throttle::law::{Bounds, Decision, Figures, Law, Load, Observation, Says, Zone};
use backfilld::throttle::reading::{Figure, Reading};
use backfilld::throttle::rule::{Limit, Max, Rule};
use jiff::Timestamp;
use proptest::collection::vec;
use proptest::prelude::*;

const TARGET: f64 = 1.0;
const MAX: f64 = 5.0;

/// One reading, before it has a time.
#[derive(Debug, Clone, Copy)]
enum Seen {
    Load { u: f64, sure: f64, critical: bool, fresh: bool },
    Lag(f64),
    Stop,
    Silence,
}

fn seen() -> impl Strategy<Value = Seen> {
    prop_oneof![
        8 => (0.0..3.0_f64, 0.0..=1.0_f64, prop::bool::weighted(0.05), prop::bool::weighted(0.9))
            .prop_map(|(u, sure, critical, fresh)| Seen::Load { u, sure, critical, fresh }),
        3 => (0.0..7.0_f64).prop_map(Seen::Lag),
        1 => Just(Seen::Stop),
        1 => Just(Seen::Silence),
    ]
}

fn observation(number: usize, seen: Seen, at: Instant) -> Observation {
    let (says, fresh, figure) = match seen {
        Seen::Load { u, sure, critical, fresh } => {
            let load = Load {
                utilisation: u,
                likely: u * sure.sqrt(),
                at_least: u * sure,
                usual: u * sure,
                latest: u * sure,
                critical,
            };
            (Says::Load(load), fresh, Some(Figure::Number(u)))
        }
        Seen::Lag(lag) => (Says::Lag { lag, target: TARGET, max: MAX }, true, Some(Figure::Seconds(lag))),
        Seen::Stop => (Says::Stop, true, None),
        Seen::Silence => (Says::Silence, false, None),
    };
    let signal = format!("signal_{number}");
    let reason = format!("{signal}: {seen:?}");
    Observation { signal, subject: String::new(), says, fresh, at, figure, limit: None, reason }
}

/// A tick: what is seen, and how much of the rate is really used.
type Tick = (Vec<Seen>, f64);

fn tick() -> impl Strategy<Value = Tick> {
    (vec(seen(), 0..4), 0.0..1.2_f64)
}

/// Mostly quiet, so that rates get somewhere.
fn ticks() -> impl Strategy<Value = Vec<Tick>> {
    let quiet = (vec((0.0..0.4_f64).prop_map(calm), 0..2), Just(1.0));
    vec(prop_oneof![3 => quiet, 1 => tick()], 1..150)
}

fn calm(u: f64) -> Seen {
    Seen::Load { u, sure: 1.0, critical: false, fresh: true }
}

fn bounds() -> impl Strategy<Value = Bounds> {
    let max = prop_oneof![Just(f64::INFINITY), 10.0..1e5_f64];
    (1.0..500.0_f64, 500.0..5000.0_f64, max).prop_map(|(min, start, max)| Bounds {
        start,
        min,
        max,
        max_reason: "limits.rows_per_second = 500".to_owned(),
    })
}

/// A law under a run of ticks.
struct Run {
    law: Law,
    bounds: Bounds,
    now: Instant,
    rate: f64,
}

impl Run {
    fn new(bounds: &Bounds) -> Self {
        let law = Law::new(Figures::default(), bounds);
        let rate = law.rows_per_second();
        Self { law, bounds: bounds.clone(), now: Instant::now(), rate }
    }

    /// The decision, what it was made of, and the rate before.
    fn tick(&mut self, (seen, used): &Tick) -> (Decision, Vec<Observation>, f64) {
        self.now += Duration::from_secs(1);
        let observations: Vec<Observation> =
            seen.iter().enumerate().map(|(number, seen)| observation(number, *seen, self.now)).collect();
        let before = self.rate;
        let decision = self.law.tick(self.now, before * used, &self.bounds, &observations);
        self.rate = self.law.rows_per_second();
        (decision, observations, before)
    }
}

/// What a good reading of it would be: one that asks for nothing.
fn harmless(seen: Seen) -> Seen {
    match seen {
        Seen::Load { .. } => calm(0.0),
        Seen::Lag(_) | Seen::Stop | Seen::Silence => Seen::Lag(0.0),
    }
}

proptest! {
    #[test]
    fn never_above_the_cap_and_never_below_the_floor(bounds in bounds(), ticks in ticks()) {
        let mut run = Run::new(&bounds);
        for tick in &ticks {
            let (decision, ..) = run.tick(tick);
            let rate = decision.rows_per_second;
            prop_assert!(rate.is_finite() && rate <= bounds.max, "{decision:?}");
            prop_assert!(decision.zone == Zone::Paused || rate >= bounds.min.min(bounds.max), "{decision:?}");
        }
    }

    #[test]
    fn paused_is_nothing_and_nothing_is_paused(bounds in bounds(), ticks in ticks()) {
        let mut run = Run::new(&bounds);
        for tick in &ticks {
            let (decision, observations, _) = run.tick(tick);
            prop_assert_eq!(decision.zone == Zone::Paused, decision.rows_per_second <= 0.0);
            let stopped = observations.iter().any(|seen| match seen.says {
                Says::Stop | Says::Load(Load { critical: true, .. }) => true,
                Says::Lag { lag, max, .. } => lag > max,
                _ => false,
            });
            prop_assert!(!stopped || decision.zone == Zone::Paused, "{decision:?}");
        }
    }

    #[test]
    fn no_growth_but_when_everything_is_known_and_well(bounds in bounds(), ticks in ticks()) {
        let mut run = Run::new(&bounds);
        for tick in &ticks {
            let (decision, observations, before) = run.tick(tick);
            if run.rate > before.max(bounds.min) {
                prop_assert!(observations.iter().all(|seen| seen.fresh), "blind: {decision:?}");
                let over = |seen: &Observation| match seen.says {
                    Says::Load(load) => load.likely >= Figures::default().hold_at,
                    Says::Lag { lag, target, .. } => lag > target,
                    _ => true,
                };
                prop_assert!(!observations.iter().any(over), "{decision:?} on {observations:?}");
                prop_assert!(tick.1 >= Figures::default().real_rate_share, "a rate that is not used grew");
                // However long ago a rate was too much, the way there is no leap.
                let most = before * Figures::default().start_growth;
                prop_assert!(run.rate <= most.max(bounds.min) * (1.0 + 1e-9), "{before} to {}", run.rate);
            }
        }
    }

    #[test]
    fn a_sure_breach_halves_within_two_ticks(bounds in bounds(), ticks in ticks()) {
        let mut run = Run::new(&bounds);
        for tick in &ticks {
            run.tick(tick);
        }
        let before = run.rate;
        let breach = (vec![Seen::Load { u: 1.0, sure: 1.0, critical: false, fresh: true }], 1.0);
        run.tick(&breach);
        let (decision, ..) = run.tick(&breach);
        let half = (before / 2.0).max(bounds.min).min(bounds.max);
        prop_assert!(decision.rows_per_second <= half * (1.0 + 1e-9), "{before}, then {decision:?}");
    }

    #[test]
    fn there_is_a_reason_and_it_names_the_signal(bounds in bounds(), ticks in ticks()) {
        let mut run = Run::new(&bounds);
        for tick in &ticks {
            let (decision, observations, _) = run.tick(tick);
            prop_assert!(!decision.reason.is_empty());
            match &decision.signal {
                Some(signal) if signal == "rows_per_second" => prop_assert_eq!(&decision.reason, &bounds.max_reason),
                Some(signal) => {
                    prop_assert!(decision.reason.contains(signal.as_str()), "{decision:?}");
                    prop_assert!(observations.iter().any(|seen| seen.signal == *signal));
                }
                None => prop_assert_eq!(decision.zone, Zone::Open),
            }
        }
    }

    #[test]
    fn lag_never_argues_for_more(bounds in bounds(), ticks in ticks(), lags in vec(0.0..7.0_f64, 150)) {
        // The same ticks, with and without a replica: with it the rate is at no time higher, as long as
        // nothing else has made a difference.
        let (mut with, mut without) = (Run::new(&bounds), Run::new(&bounds));
        for (tick, lag) in ticks.iter().zip(lags) {
            if tick.0.iter().any(|seen| matches!(seen, Seen::Lag(_) | Seen::Stop)) {
                continue;
            }
            let mut more = tick.clone();
            more.0.push(Seen::Lag(lag));
            let (paced, ..) = with.tick(&more);
            let (free, ..) = without.tick(tick);
            prop_assert!(paced.rows_per_second <= free.rows_per_second, "{paced:?} {free:?}");
            if (with.rate - without.rate).abs() > f64::EPSILON || paced.zone != free.zone {
                break;
            }
        }
    }

    #[test]
    fn one_more_rule_never_raises_the_rate(bounds in bounds(), ticks in ticks(), last in tick(), more in vec(seen(), 1..3)) {
        // Twice the same law in the same state, since all its readings were the same; the rules of a job,
        // which so far had nothing to say, come first to bear in the last tick.
        let (mut with, mut without) = (Run::new(&bounds), Run::new(&bounds));
        for (seen, used) in &ticks {
            let all: Vec<Seen> = seen.iter().copied().chain(more.iter().copied().map(harmless)).collect();
            with.tick(&(all.clone(), *used));
            without.tick(&(all, *used));
        }
        prop_assert!((with.rate - without.rate).abs() < f64::EPSILON);
        let without_rules = last.0.iter().copied().chain(more.iter().copied().map(harmless)).collect();
        let with_rules = last.0.iter().copied().chain(more.iter().copied()).collect();
        let (paced, ..) = with.tick(&(with_rules, last.1));
        let (free, ..) = without.tick(&(without_rules, last.1));
        prop_assert!(paced.rows_per_second <= free.rows_per_second, "{paced:?} {free:?}");
    }

    #[test]
    fn the_zone_is_told_at_once_when_it_matters_and_else_when_it_lasts(values in vec(0..4_usize, 1..150)) {
        // A zone for each value: open, hold, ease, cut; the critical one is told as paused.
        let mut told = Vec::new();
        let mut since_last = u32::MAX;
        let calm_ticks = Figures::default().calm_ticks;
        let zones = control(&values);
        for (zone, change, now_told) in zones {
            since_last = since_last.saturating_add(1);
            prop_assert_eq!(change.is_some(), told.last() != Some(&now_told));
            if let Some(change) = change {
                prop_assert_eq!(change.from, told.last().copied());
                let from_pause = change.from.is_none_or(|from| from == Zone::Paused);
                let at_once = from_pause || (now_told >= Zone::Cut && Some(now_told) > change.from);
                prop_assert!(at_once || since_last >= calm_ticks, "{:?} to {now_told:?} after {since_last}", change.from);
                prop_assert!(!at_once || now_told == zone);
                told.push(now_told);
                since_last = 0;
            }
            // What is as bad as a cut is never kept back.
            prop_assert!(zone < Zone::Cut || now_told >= zone);
        }
    }
}

/// One job under one signal that reads these in turn: for every tick the zone, the change told, the zone told.
fn control(values: &[usize]) -> Vec<(Zone, Option<Change>, Zone)> {
    let limit = Limit::Load { max: Max::Absolute(100.0), critical: Some(200.0) };
    let setup = Setup {
        figures: Figures::default(),
        rules: vec![Rule::new("sql.queue", limit)],
        start_rows_per_second: 2000.0,
        min_rows_per_second: 100.0,
        max_rows_per_second: f64::INFINITY,
        stale_after: Duration::from_secs(10),
        probe_interval: Duration::from_millis(50),
        baseline_every: Duration::from_secs(600),
    };
    let begin = Instant::now();
    let wall: Timestamp = "2026-03-02T00:00:00Z".parse().unwrap();
    let mut board = Board::new(Latency::new(Duration::from_secs(10), setup.probe_interval));
    board.expect("sql.queue", Duration::from_secs(1));
    let mut control = Control::new(setup);
    let _handle = control.register("job", Terms::default(), &mut board, begin, wall);
    let mut ticks = Vec::new();
    for (second, value) in (1..).zip(values) {
        let now = begin + Duration::from_secs(second);
        let value = [10.0, 85.0, 120.0, 250.0][*value];
        board.read("sql.queue", now, vec![Reading::new("", Figure::Number(value), now)]);
        let ticked = control.tick(&mut board, now, wall);
        let job = &ticked.jobs[0];
        ticks.push((job.decision.zone, job.change, job.told.zone));
    }
    ticks
}
