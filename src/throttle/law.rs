//! The law: from what the signals say to how many rows a second may go.
//!
//! A pure function over plain data, but for what it remembers of its own decisions. It knows no
//! clock, no database and no job, and never looks at the duration of batches: the sizer holds that
//! constant, so it says nothing of load.
//!
//! It is a zone law and no sawtooth. Every load gives its utilisation, reading ÷ limit, and the worst
//! one counts: much room, and the rate grows; near the limit it stays, then yields bit by bit; and when
//! it is surely beyond the limit it is halved. How sure that is depends on how many samples there are: a
//! p99 of a few seconds strays by a quarter, so halving at every breach would halve most often for nothing.
//!
//! The rate that was too much is remembered. Up to a part of it the way back is short, and beyond it is
//! felt for in small steps, which become larger the longer all stays calm.
//!
//! Replication lag is a budget and no load: it may stop growth, lower the rate or pause it, and it
//! never argues for more, since no lag at all says nothing about how much the replica could take.

mod figures;
mod lag;
mod observation;

use std::collections::BTreeSet;
use std::time::Instant;

pub use figures::Figures;
use lag::{Lag, Lags};
pub use observation::{Load, Observation, Says, Zone};

/// For so many ticks after a cut the rate is on its way back.
const RECOVERY_TICKS: u32 = 60;

/// Between which rates the law moves, in rows a second.
#[derive(Debug, Clone, PartialEq)]
pub struct Bounds {
    /// Where it begins.
    pub start: f64,
    /// What is never gone below but by a pause.
    pub min: f64,
    /// What is never exceeded; infinite for no cap. It wins over `min`.
    pub max: f64,
    /// Whose cap `max` is, for the reason: `limits.rows_per_second = 500`.
    pub max_reason: String,
}

impl Bounds {
    fn clamp(&self, rate: f64) -> f64 {
        rate.max(self.min).min(self.max)
    }
}

/// What is to be done until the next tick.
#[derive(Debug, Clone, PartialEq)]
pub struct Decision {
    /// How the rate stands.
    pub zone: Zone,
    /// The rate, in rows a second; 0 in a pause.
    pub rows_per_second: f64,
    /// The signal that decided; none when no signal holds anything back.
    pub signal: Option<String>,
    /// Why, for a person. Never empty.
    pub reason: String,
    /// The rate fell because of load: what was read at the old rate says nothing of the new one.
    pub forget: bool,
}

/// A pause, and what ends it.
#[derive(Debug, Clone)]
struct Pause {
    since: Instant,
    /// A load was critical: it must come below its limit first.
    by_load: bool,
    /// When replicas were last too far behind: they must come back to the target first.
    lagged_at: Option<Instant>,
    /// Signal and subject of each load and each lag that asked for it. Only these prolong it: what never
    /// asked for a pause must not keep one that another asked for.
    by: BTreeSet<(String, String)>,
}

/// The law for one job.
#[derive(Debug)]
pub struct Law {
    figures: Figures,
    rate: f64,
    pause: Option<Pause>,
    /// There was a tick that was no pause.
    has_begun: bool,
    /// Ticks since the last cut, since the rate was last lowered by anything or paused, and since it last
    /// grew; large before the first.
    since_cut: u32,
    since_setback: u32,
    since_growth: u32,
    /// The rate has been lowered and has not grown since: what lowers it now is still the same load.
    falling: bool,
    /// Steps of growth near a rate that was too much, since the last easing, while all was calm.
    calm_steps: u32,
    /// The mean of the worst utilisation over the last ticks.
    settled: f64,
    /// The rate that load did not bear, and the one that replicas did not follow.
    bad_load: Option<f64>,
    bad_lag: Option<f64>,
    aged_at: Option<Instant>,
    lags: Lags,
}

impl Law {
    /// A law that begins at the start rate.
    #[must_use]
    pub fn new(figures: Figures, bounds: &Bounds) -> Self {
        Self {
            figures,
            rate: bounds.clamp(bounds.start),
            pause: None,
            has_begun: false,
            since_cut: u32::MAX,
            since_setback: u32::MAX,
            since_growth: u32::MAX,
            falling: false,
            calm_steps: 0,
            settled: 0.0,
            bad_load: None,
            bad_lag: None,
            aged_at: None,
            lags: Lags::default(),
        }
    }

    /// The rate, in rows a second, whether or not a pause withholds it.
    #[must_use]
    pub fn rows_per_second(&self) -> f64 {
        self.rate
    }

    /// Whether the rate was cut lately: the load that it was cut for is there, or has just gone.
    #[must_use]
    pub fn recovers(&self) -> bool {
        self.since_cut < RECOVERY_TICKS
    }

    /// Goes on under other figures, from the rate that there is.
    pub fn set_figures(&mut self, figures: Figures) {
        self.figures = figures;
    }

    /// Decides for one tick. `real_rows_per_second` is what was really walked since the last one.
    pub fn tick(
        &mut self,
        now: Instant,
        real_rows_per_second: f64,
        bounds: &Bounds,
        observations: &[Observation],
    ) -> Decision {
        self.since_cut = self.since_cut.saturating_add(1);
        self.since_setback = self.since_setback.saturating_add(1);
        self.since_growth = self.since_growth.saturating_add(1);
        self.age_bad_rates(now);
        let used = real_rows_per_second.clamp(self.rate * self.figures.cut_factor, self.rate);
        self.lags.used(now, used);
        let lags = self.lags.beyond(observations);
        if let Some(paused) = self.pause(now, observations) {
            return paused;
        }
        self.resume(now, bounds);
        self.has_begun = true;

        let load = worst_load(observations, Load::worst);
        let surest = worst_load(observations, |load| load.at_least);
        let silent = observations.iter().find(|seen| !seen.fresh);
        self.settle(observations);
        let before = self.rate;
        let by_load = self.heed_load(surest, load, used);
        let by_silence = silent.map(|seen| (Zone::Hold, seen));
        // Each is heeded, lest one that asks for little keep another from being heard.
        let by_lags: Vec<_> = lags.iter().map(|lag| self.heed_lag(lag)).collect();
        let demands = by_load.into_iter().chain(by_lags).chain(by_silence);
        let worst = demands.reduce(|worst, other| if other.0 > worst.0 { other } else { worst });
        if worst.is_none() {
            let u = worst_load(observations, |load| load.worst().max(load.latest));
            self.grow(real_rows_per_second, u.map_or(0.0, |(u, _)| u), bounds.start);
        }
        let (zone, cause) = worst.map_or((Zone::Open, None), |(zone, seen)| (zone, Some(seen)));
        self.rate = bounds.clamp(self.rate);
        // At its cap the rate would not grow in any case, so that is what holds it.
        let capped = zone <= Zone::Hold && self.rate >= bounds.max;
        let (zone, cause) = if capped { (Zone::Capped, None) } else { (zone, cause) };
        let reason = match cause {
            Some(seen) => seen.reason.clone(),
            None if capped => bounds.max_reason.clone(),
            None => "every signal is well below its limit".to_owned(),
        };
        Decision {
            zone,
            rows_per_second: self.rate,
            signal: match cause {
                Some(seen) => Some(seen.signal.clone()),
                None => capped.then(|| "rows_per_second".to_owned()),
            },
            reason,
            forget: zone == Zone::Cut && self.rate < before,
        }
    }

    /// The pause that somebody asks for, or that is not over yet.
    fn pause(&mut self, now: Instant, observations: &[Observation]) -> Option<Decision> {
        let demands = |seen: &&Observation| match seen.says {
            Says::Stop => true,
            Says::Load(load) => load.critical,
            Says::Lag { lag, max, .. } => lag > max,
            Says::Silence => false,
        };
        let by = self.pause.as_ref().map(|pause| &pause.by);
        let has_asked = |seen: &Observation| by.is_some_and(|by| by.contains(&seen.asker()));
        // One that cannot be read any more may not tell its subject either.
        let signal_has_asked =
            |seen: &Observation| by.is_some_and(|by| by.iter().any(|(signal, _)| *signal == seen.signal));
        let lagged_at = self.pause.as_ref().and_then(|pause| pause.lagged_at);
        let lagged_long_ago =
            lagged_at.is_some_and(|at| now.saturating_duration_since(at) >= self.figures.long_pause);
        // Hysteresis: a pause ends later than it would begin.
        let prolongs = |seen: &&Observation| match seen.says {
            Says::Load(load) => (load.likely >= self.figures.cut_at || !seen.fresh) && has_asked(seen),
            Says::Silence if seen.subject.is_empty() => signal_has_asked(seen),
            Says::Silence => has_asked(seen),
            // One that nothing of ours has held back for so long is no nearer to its target without us: it
            // is never there, and would keep the pause for ever.
            Says::Lag { lag, target, .. } => lag > target && has_asked(seen) && !lagged_long_ago,
            Says::Stop => false,
        };
        let cause = observations.iter().find(demands).or_else(|| observations.iter().find(prolongs))?;
        let begun = Pause { since: now, by_load: false, lagged_at: None, by: BTreeSet::new() };
        let pause = self.pause.get_or_insert(begun);
        for seen in observations.iter().filter(demands) {
            let (load, lag) = (matches!(seen.says, Says::Load(_)), matches!(seen.says, Says::Lag { .. }));
            pause.by_load |= load;
            if lag {
                pause.lagged_at = Some(now);
            }
            if load || lag {
                pause.by.insert(seen.asker());
            }
        }
        Some(Decision {
            zone: Zone::Paused,
            rows_per_second: 0.0,
            signal: Some(cause.signal.clone()),
            reason: cause.reason.clone(),
            forget: false,
        })
    }

    /// Ends a pause: at a part of the rate before it, or, after a long one, where everything begins.
    fn resume(&mut self, now: Instant, bounds: &Bounds) {
        let Some(pause) = self.pause.take() else { return };
        let part = self.rate * self.figures.resume_factor;
        let long = now.saturating_duration_since(pause.since) >= self.figures.long_pause;
        if pause.lagged_at.is_some() {
            lower(&mut self.bad_lag, self.rate);
        }
        if pause.by_load {
            lower(&mut self.bad_load, self.rate);
        }
        self.rate = match (self.has_begun, long) {
            // Nothing was walked before the pause, so it was not too much.
            (false, _) => self.rate,
            (true, true) => bounds.start.min(self.rate),
            (true, false) => part,
        };
        // What was read in the pause is no ground to grow on.
        self.since_setback = 0;
    }

    /// What the worst load leads to, if to anything.
    fn heed_load<'a>(
        &mut self,
        surest: Option<(f64, &'a Observation)>,
        worst: Option<(f64, &'a Observation)>,
        used: f64,
    ) -> Option<(Zone, &'a Observation)> {
        let figures = self.figures;
        if let Some((_, seen)) = surest.filter(|(u, _)| *u >= figures.cut_at) {
            if self.since_cut >= figures.cooldown_ticks {
                self.since_cut = 0;
                self.lower_for_load(used, figures.cut_factor);
            }
            return Some((Zone::Cut, seen));
        }
        let (u, seen) = worst?;
        if u >= figures.ease_at {
            if self.since_setback >= figures.cooldown_ticks {
                self.lower_for_load(used, figures.ease_factor);
            }
            return Some((Zone::Ease, seen));
        }
        (u >= figures.hold_at).then_some((Zone::Hold, seen))
    }

    /// What a lag beyond its target leads to.
    fn heed_lag<'a>(&mut self, lag: &Lag<'a>) -> (Zone, &'a Observation) {
        let Some(rise) = lag.rise else { return (Zone::Hold, lag.seen) };
        self.yield_to_lag(lag.seen, rise);
        (Zone::Ease, lag.seen)
    }

    /// Leaves `factor` of the rate. The rate that is not used is no rate: what is really walked is what
    /// weighs on the server, so that is what is lowered.
    fn lower_for_load(&mut self, used: f64, factor: f64) {
        if !self.falling {
            let least = self.bad_load.map_or(0.0, |bad| bad * self.figures.bad_rate_memory);
            lower(&mut self.bad_load, used.max(least));
        }
        self.rate = used * factor;
        self.falling = true;
        self.calm_steps = 0;
        self.since_setback = 0;
    }

    /// Yields to what the replica follows. While its lag rises by a part of a second in each second, it
    /// replays the rest of what was written. What it replays now was written a lag ago: to ask for less
    /// because that was too much, when less is being written since, would be to ask twice.
    fn yield_to_lag(&mut self, seen: &Observation, rise: f64) {
        self.calm_steps = 0;
        let written = self.lags.written(seen).unwrap_or(self.rate);
        let followed = written * (1.0 - rise).max(self.figures.lag_floor);
        let allowed = followed * self.figures.lag_factor;
        if allowed < self.rate {
            lower(&mut self.bad_lag, followed);
            self.rate = allowed;
            self.since_setback = 0;
        }
    }

    /// Follows the mean of the worst usual utilisation.
    fn settle(&mut self, observations: &[Observation]) {
        match worst_load(observations, |load| load.usual) {
            // So far beyond the limit, further makes no difference.
            Some((u, seen)) if seen.fresh => {
                self.settled += (u.min(2.0) - self.settled) / f64::from(self.figures.settle_ticks.max(1));
            }
            Some(_) => {}
            None => self.settled = 0.0,
        }
    }

    /// `u`: the worst utilisation, that of the newest samples included.
    fn grow(&mut self, real_rows_per_second: f64, u: f64, start: f64) {
        let figures = self.figures;
        if self.since_setback < figures.growth_cooldown_ticks
            || self.since_growth < figures.cooldown_ticks
            || real_rows_per_second < figures.real_rate_share * self.rate
        {
            return;
        }
        // In large steps where there is much room, and only up to near the rate that was too much; from there
        // on in small ones.
        let rate = self.rate;
        let room = (1.0 - u / figures.hold_at).clamp(0.0, 1.0);
        let mut allowed = rate * (1.0 + (figures.start_growth - 1.0) * room);
        // Where everything begins is not what fills a room, however little of that there is.
        allowed = allowed.max(start.min(rate * figures.start_growth));
        if let Some(bad) = self.bad_load {
            let near = bad * figures.near_share;
            self.calm_steps =
                if rate < near || self.settled >= figures.calm_at { 0 } else { self.calm_steps + 1 };
            allowed =
                allowed.min(if rate < near { near } else { rate * figures.careful_growth(self.calm_steps) });
        }
        if let Some(bad) = self.bad_lag {
            let near = bad * figures.near_share;
            allowed = allowed.min(if rate < near { near } else { rate * figures.lag_growth });
        }
        self.rate = allowed;
        // A rate that was gone beyond is not what was too much.
        for bad in [&mut self.bad_load, &mut self.bad_lag].into_iter().flatten() {
            *bad = bad.max(self.rate);
        }
        self.falling = false;
        self.since_growth = 0;
    }

    fn age_bad_rates(&mut self, now: Instant) {
        let aged_at = *self.aged_at.get_or_insert(now);
        if now.saturating_duration_since(aged_at) >= self.figures.bad_rate_age_every {
            for bad in [&mut self.bad_load, &mut self.bad_lag].into_iter().flatten() {
                *bad *= 1.0 + self.figures.bad_rate_aging;
            }
            self.aged_at = Some(now);
        }
    }
}

fn lower(bad: &mut Option<f64>, rate: f64) {
    *bad = Some(bad.map_or(rate, |bad| bad.min(rate)));
}

/// The worst of the loads that are known, by what `of` takes of each.
fn worst_load(observations: &[Observation], of: impl Fn(&Load) -> f64) -> Option<(f64, &Observation)> {
    let loads = observations.iter().filter_map(|seen| match &seen.says {
        Says::Load(load) => Some((of(load), seen)),
        _ => None,
    });
    loads.max_by(|one, other| one.0.total_cmp(&other.0))
}
