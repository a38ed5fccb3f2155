//! A run: the real throttle over a model of everything else, second by second of virtual time.

use std::time::{Duration, Instant};

use backfilld::throttle::board::Board;
use backfilld::throttle::control::{Control, Setup, Ticked};
use backfilld::throttle::job::{JobThrottle, Terms};
use backfilld::throttle::judge::QUERY_LATENCY;
use backfilld::throttle::latency::Latency;
use backfilld::throttle::law::{self, Zone};
use backfilld::throttle::reading::{Figure, Reading};
use backfilld::throttle::rule::{LagLimit, Limit, Max, Rule};
use jiff::Timestamp;

use super::aimd::Aimd;
use super::figures::{Figures, Second};
use super::replica::{Replica, State};
use super::scenario::{Event, Scenario};
use super::server::{Random, Server};
use super::signal::{MAX, Signal};

const PROBE_INTERVAL: Duration = Duration::from_millis(50);
/// Probes, and so steps of the model, in a tick.
const STEPS: u32 = 20;
const STEP_SECONDS: f64 = 0.05;
const STALE_AFTER: Duration = Duration::from_secs(10);
const START: f64 = 2000.0;
const MIN: f64 = 100.0;
const AUTO_MULTIPLE: f64 = 1.5;
const REPLICATION_LAG: &str = "replication_lag";
/// The lag is read a little before each tick, as a reading is never of the moment at which it is judged.
const LAG_READ_AT_STEP: u32 = 14;
const MAX_LAG: Duration = Duration::from_secs(5);
/// How fast the application's unrest comes and goes.
const UNREST_SECONDS: f64 = 30.0;

/// Who decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Decider {
    Law,
    Aimd,
}

enum Throttle {
    Law { control: Box<Control>, handles: Vec<JobThrottle>, decided: f64 },
    Aimd(Aimd, f64),
}

struct World<'a> {
    scenario: &'a Scenario,
    begin: Instant,
    server: Server,
    noise_p99: f64,
    foreground: f64,
    unrest: f64,
    replica: Option<Replica>,
    signals: Vec<Signal>,
    probes: Vec<String>,
    board: Board,
    rules: Vec<Rule>,
    throttle: Throttle,
    random: Random,
    seconds: Vec<Second>,
    /// The rate at the first breach after an event, if it has not fallen yet, and when that was.
    breach: Option<(f64, f64)>,
    watches_for_breach: bool,
    fall_ticks: Vec<f64>,
    recoveries: Vec<(f64, f64)>,
}

/// Runs a scenario under every seed.
pub(crate) fn run(scenario: &Scenario, decider: Decider) -> Figures {
    let runs: Vec<Figures> = (1..=scenario.seeds).map(|seed| run_once(scenario, decider, seed)).collect();
    Figures::of_all(&runs)
}

fn run_once(scenario: &Scenario, decider: Decider, seed: u64) -> Figures {
    let mut world = World::new(scenario, decider, seed);
    let mut events = scenario.event.iter().peekable();
    for second in 0..scenario.duration.as_secs() {
        while let Some(event) = events.next_if(|event| event.at.as_secs() <= second) {
            world.happens(event);
        }
        world.second(second);
    }
    let settling = scenario.settling.as_secs_f64();
    Figures::of(&world.seconds, settling, &world.recoveries, &world.fall_ticks)
}

impl<'a> World<'a> {
    fn new(scenario: &'a Scenario, decider: Decider, seed: u64) -> Self {
        let begin = Instant::now();
        let window = Duration::from_secs(10);
        let mut board = Board::new(Latency::new(window, PROBE_INTERVAL));
        board.expect(QUERY_LATENCY, PROBE_INTERVAL);
        let max = scenario
            .latency
            .max_p99_ms
            .map_or(Max::TimesBaseline(AUTO_MULTIPLE), |max| Max::Absolute(max / 1e3));
        let mut rules = vec![Rule::new(QUERY_LATENCY, Limit::Load { max, critical: None })];
        if scenario.replica.is_some() {
            board.expect(REPLICATION_LAG, Duration::from_secs(1));
            let limit =
                LagLimit { target: Duration::from_secs(1), max: MAX_LAG, max_bytes: None, min_replicas: 1 };
            rules.push(Rule::new(REPLICATION_LAG, Limit::Lag(limit)));
        }
        for (name, settings) in &scenario.signal {
            board.expect(name, Duration::from_secs_f64(settings.interval));
            let critical = settings.critical;
            rules.push(Rule::new(name, Limit::Load { max: Max::Absolute(MAX), critical }));
        }
        let probes: Vec<String> =
            (0..scenario.latency.probes).map(|number| format!("probe {number}")).collect();
        for probe in &probes {
            board.latency.expect(probe, None);
        }
        let replica = scenario.replica.map(Replica::new);
        let signals =
            scenario.signal.iter().map(|(name, settings)| Signal::new(name, settings.clone())).collect();
        let mut world = Self {
            scenario,
            begin,
            server: scenario.server,
            noise_p99: scenario.server.p99_of_noise(),
            foreground: scenario.foreground.load,
            unrest: 0.0,
            replica,
            signals,
            probes,
            board,
            throttle: Throttle::Aimd(Aimd::new(START, MIN), START),
            rules,
            random: Random::new(seed),
            seconds: Vec::new(),
            breach: None,
            watches_for_breach: false,
            fall_ticks: Vec::new(),
            recoveries: Vec::new(),
        };
        // Everything is read once before the first decision, as it soon is in a daemon.
        world.read_lag(0.0);
        world.read_signals(0.0);
        if decider == Decider::Law {
            let mut control = Control::new(world.setup());
            let board = &mut world.board;
            let handles = (0..scenario.jobs)
                .map(|job| control.register(&format!("job-{job}"), Terms::default(), board, begin, wall(0.0)))
                .collect();
            world.throttle = Throttle::Law { control: Box::new(control), handles, decided: 0.0 };
        }
        world
    }

    fn setup(&self) -> Setup {
        Setup {
            figures: law::Figures::default(),
            rules: self.rules.clone(),
            start_rows_per_second: START,
            min_rows_per_second: MIN,
            max_rows_per_second: f64::INFINITY,
            stale_after: STALE_AFTER,
            probe_interval: PROBE_INTERVAL,
            baseline_every: Duration::from_secs(600),
        }
    }

    fn happens(&mut self, event: &Event) {
        let at = event.at.as_secs_f64();
        if let Some(foreground) = event.foreground {
            self.watches_for_breach = foreground > self.foreground;
            self.foreground = foreground;
        }
        if let Some(replica) = &mut self.replica {
            replica.state = event.replica.unwrap_or(replica.state);
            let settings = replica.settings_mut();
            settings.capacity = event.replica_capacity.unwrap_or(settings.capacity);
        }
        for signal in &mut self.signals {
            signal.fails |= event.fails.contains(&signal.name);
            signal.fails &= !event.works.contains(&signal.name);
        }
        self.recoveries
            .extend(event.recovers_to_before.map(|before| (at, before.into_inner().as_secs_f64())));
    }

    /// One tick, and the second before it.
    fn second(&mut self, second: u64) {
        let start = second as f64;
        self.drift(start);
        let foreground = self.foreground_load(start);
        let allowed = self.allowed();
        let mut walked = 0.0;
        for step in 0..STEPS {
            let now = start + f64::from(step + 1) * STEP_SECONDS;
            let rows = self.walk(foreground);
            walked += rows;
            self.probe(now, self.server.utilisation(foreground, rows / STEP_SECONDS));
            if let Some(replica) = &mut self.replica {
                replica.step(now, STEP_SECONDS, rows);
            }
            if step == LAG_READ_AT_STEP {
                self.read_lag(now);
            }
        }
        self.read_signals(start + 1.0);
        let mut seen = self.truth(start + 1.0, foreground, walked);
        seen.allowed = allowed.iter().sum();
        self.decide(&mut seen, foreground);
        self.seconds.push(seen);
    }

    /// What really is, whatever the probes say.
    fn truth(&self, at: f64, foreground: f64, walked: f64) -> Second {
        let quiet = self.p99(foreground, 0.0);
        let p99 = self.p99(foreground, walked);
        let limit = self.limit_seconds(foreground);
        let floor = if self.scenario.latency.max_p99_ms.is_none() { quiet } else { 0.0 };
        let lag_seconds = self.replica.as_ref().map_or(0.0, |replica| replica.lag_seconds(at));
        let capacity = match &self.replica {
            Some(replica) => replica.capacity_rows_per_second(),
            None => f64::INFINITY,
        };
        Second {
            at,
            walked,
            ideal: self.ideal_rows_per_second(foreground, limit).min(capacity),
            true_utilisation: (p99 - floor) / (limit - floor),
            // What the application does to itself is not ours.
            p99_over_limit: p99 > limit && quiet < limit && walked > MIN,
            lag_seconds,
            lag_over_max: lag_seconds > MAX_LAG.as_secs_f64() && walked > 0.0,
            ..Second::default()
        }
    }

    fn p99(&self, foreground: f64, rows_per_second: f64) -> f64 {
        self.server.median(self.server.utilisation(foreground, rows_per_second)) * self.noise_p99
    }

    fn limit_seconds(&self, foreground: f64) -> f64 {
        match self.scenario.latency.max_p99_ms {
            Some(max) => max / 1e3,
            None => AUTO_MULTIPLE * self.p99(foreground, 0.0),
        }
    }

    /// The highest rate whose true p99 is within the limit.
    fn ideal_rows_per_second(&self, foreground: f64, limit: f64) -> f64 {
        let (mut low, mut high) = (0.0, 1e6);
        for _ in 0..20 {
            let middle = f64::midpoint(low, high);
            if self.p99(foreground, middle) <= limit { low = middle } else { high = middle }
        }
        low.min(self.server.walkable_rows_per_second(1e9, foreground) * self.scenario.jobs as f64)
    }

    fn drift(&mut self, now: f64) {
        let settings = self.scenario.foreground;
        self.server.latency_ms =
            self.scenario.server.latency_ms + settings.latency_ms_growth_per_hour * now / 3600.0;
        // An Ornstein-Uhlenbeck process.
        let pull = 1.0 / UNREST_SECONDS;
        self.unrest += -pull * self.unrest + settings.unrest * (2.0 * pull).sqrt() * self.random.normal();
    }

    fn foreground_load(&self, now: f64) -> f64 {
        let settings = self.scenario.foreground;
        let daily = settings.peak.map_or(0.0, |peak| {
            (peak - settings.load) * (0.5 - 0.5 * (std::f64::consts::TAU * now / 86_400.0).cos())
        });
        let hourly = if now % 3600.0 > 3480.0 { settings.hourly } else { 0.0 };
        (self.foreground + daily + hourly + self.unrest).clamp(0.01, 0.95)
    }

    /// The rate of each job.
    fn allowed(&self) -> Vec<f64> {
        match &self.throttle {
            Throttle::Law { handles, .. } => handles.iter().map(JobThrottle::rows_per_second).collect(),
            Throttle::Aimd(_, rate) => vec![*rate],
        }
    }

    /// Walks for one step; the rows of all jobs.
    fn walk(&mut self, foreground: f64) -> f64 {
        let step = |rate| self.server.walkable_rows_per_second(rate, foreground) * STEP_SECONDS;
        match &self.throttle {
            Throttle::Law { handles, .. } => {
                let mut rows = 0.0;
                for handle in handles {
                    let walked = (step(handle.rows_per_second()) + self.random.part()).floor();
                    if walked > 0.0 {
                        handle.begin_batch().walked(walked as u64);
                    }
                    rows += walked;
                }
                rows
            }
            Throttle::Aimd(_, rate) => step(*rate),
        }
    }

    fn probe(&mut self, now: f64, utilisation: f64) {
        let at = self.at(now);
        for probe in &self.probes {
            let latency = self.server.latency(utilisation, &mut self.random);
            let latency = Duration::from_secs_f64(latency);
            self.board.latency.began(probe, None, at.checked_sub(latency).unwrap_or(at));
            self.board.latency.answered(probe, at, latency);
        }
        self.board.read(QUERY_LATENCY, at, Vec::new());
    }

    fn read_lag(&mut self, now: f64) {
        let at = self.at(now);
        let Some(replica) = &self.replica else { return };
        let mut readings = Vec::new();
        if replica.state != State::Gone {
            let lag = Figure::Seconds(replica.read_lag_seconds(now));
            readings.push(Reading::new("replica b", lag, at));
            readings.push(Reading::new("replica b", Figure::Bytes(replica.lag_bytes()), at));
        }
        let streaming = if replica.state == State::Gone { 0.0 } else { 1.0 };
        readings.push(Reading::new("replicas", Figure::Count(streaming), at));
        self.board.read(REPLICATION_LAG, at, readings);
    }

    fn read_signals(&mut self, now: f64) {
        let at = self.at(now);
        for signal in &mut self.signals {
            if !signal.is_due(now) {
                continue;
            }
            if signal.fails {
                self.board.failed(&signal.name, "connection refused".to_owned());
            } else {
                let reading = Reading::new("", Figure::Number(signal.value(now)), at);
                self.board.read(&signal.name, at, vec![reading]);
            }
        }
    }

    fn decide(&mut self, seen: &mut Second, foreground: f64) {
        let now = self.at(seen.at);
        let limit = self.limit_seconds(foreground);
        match &mut self.throttle {
            Throttle::Law { control, decided, .. } => {
                self.board.latency.take_samples();
                let ticked = control.tick(&mut self.board, now, wall(seen.at));
                let before = *decided;
                *decided = ticked.jobs.iter().map(|job| job.decision.rows_per_second).sum();
                let decided = *decided;
                self.note(seen, &ticked, before, decided);
            }
            Throttle::Aimd(aimd, rate) => {
                // It is told the limit, and need not rest to learn it.
                self.rules[0].limit = Limit::Load { max: Max::Absolute(limit), critical: None };
                let before = *rate;
                *rate = aimd.tick(&mut self.board, &self.rules, now, STALE_AFTER);
                seen.paused = *rate <= 0.0;
                seen.lowered = *rate < before && *rate > 0.0;
            }
        }
    }

    fn note(&mut self, seen: &mut Second, ticked: &Ticked, before: f64, decided: f64) {
        let latency = |signal: &Option<String>| signal.as_deref() == Some(QUERY_LATENCY);
        // Latency has no critical limit here: what it pauses for is a rest.
        seen.resting =
            ticked.jobs.iter().any(|job| job.decision.zone == Zone::Paused && latency(&job.decision.signal));
        seen.paused = !seen.resting && ticked.jobs.iter().any(|job| job.decision.zone == Zone::Paused);
        seen.lowered = decided < before
            && ticked
                .jobs
                .iter()
                .any(|job| latency(&job.decision.signal) && job.decision.zone != Zone::Paused);
        seen.grew_blindly = decided > before
            && before > 0.0
            && ticked.observations.iter().any(|observation| !observation.fresh);
        seen.told = ticked.jobs.iter().filter(|job| job.change.is_some()).count() as u32;
        let breached = ticked.observations.iter().any(|observation| observation.utilisation() >= Some(1.0));
        if self.watches_for_breach && breached && !seen.resting {
            self.watches_for_breach = false;
            self.breach = Some((before, seen.at));
        }
        if let Some((rate, at)) = self.breach
            && decided < rate
        {
            self.fall_ticks.push(seen.at - at);
            self.breach = None;
        }
    }

    fn at(&self, seconds: f64) -> Instant {
        self.begin + Duration::from_secs_f64(seconds)
    }
}

fn wall(seconds: f64) -> Timestamp {
    let begin: Timestamp = "2026-03-02T00:00:00Z".parse().unwrap();
    begin + Duration::from_secs_f64(seconds)
}
