//! The law: from what the signals say to how many rows a second may go.
//!
//! A pure function over plain data, but for what it remembers of its own decisions. It knows no
//! clock, no database and no job, and never looks at the duration of batches: the sizer holds that
//! constant, so it says nothing of load.
//!
//! It is a zone law and no sawtooth. Every load gives its utilisation, reading ÷ limit, and the worst
//! one counts: much room, and the rate grows; near the limit it stays; at the limit it is halved.
//! Replication lag is a budget and no load: it may stop growth, lower the rate or pause it, and it
//! never argues for more, since no lag at all says nothing about how much the replica could take.

mod figures;

use std::collections::BTreeMap;
use std::time::Instant;

use super::reading::Figure;
pub use figures::Figures;

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

/// What one reading says.
#[derive(Debug, Clone, PartialEq)]
pub struct Observation {
    /// The signal: `replication_lag`.
    pub signal: String,
    /// Of what: `replica b`.
    pub subject: String,
    /// What it asks for.
    pub says: Says,
    /// Recent enough, and of enough samples, to allow growth.
    pub fresh: bool,
    /// When it was read.
    pub at: Instant,
    /// What was read; none of what is not known.
    pub figure: Option<Figure>,
    /// The limit that it is held against, in the figure's unit; none of a switch.
    pub limit: Option<f64>,
    /// For a person: `replication_lag 3.2s >= 2s (replica b)`.
    pub reason: String,
}

impl Observation {
    /// How much of its limit is used; none of what is not known.
    #[must_use]
    pub fn utilisation(&self) -> Option<f64> {
        match self.says {
            Says::Load { utilisation, .. } => Some(utilisation),
            Says::Lag { lag, max, .. } => Some(lag / max),
            Says::Stop | Says::Silence => None,
        }
    }

    /// The zone that this reading alone would lead to. A lag over its target holds; whether it rises
    /// is seen only from one reading to the next.
    #[must_use]
    pub fn zone(&self, figures: &Figures) -> Zone {
        match self.says {
            Says::Stop | Says::Load { critical: true, .. } => Zone::Paused,
            Says::Lag { lag, max, .. } if lag > max => Zone::Paused,
            Says::Load { utilisation, .. } if utilisation >= figures.cut_at => Zone::Cut,
            Says::Load { utilisation, .. } if utilisation >= figures.ease_at => Zone::Ease,
            Says::Load { utilisation, .. } if utilisation >= figures.hold_at => Zone::Hold,
            Says::Lag { lag, target, .. } if lag > target => Zone::Hold,
            Says::Silence => Zone::Hold,
            _ if !self.fresh => Zone::Hold,
            _ => Zone::Open,
        }
    }
}

/// What a reading asks for.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Says {
    /// A load.
    Load {
        /// Reading ÷ limit.
        utilisation: f64,
        /// It is beyond its critical limit.
        critical: bool,
    },
    /// A budget, all in seconds.
    Lag {
        /// How far behind.
        lag: f64,
        /// How far is well.
        target: f64,
        /// How far is too far.
        max: f64,
    },
    /// Nothing may run.
    Stop,
    /// Nothing is known, which forbids growth.
    Silence,
}

/// How the rate stands to what the signals allow, from the best to the worst.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Zone {
    /// There is room: the rate may grow.
    Open,
    /// There is room, and a cap forbids to use it.
    Capped,
    /// The rate stays.
    Hold,
    /// The rate yields.
    Ease,
    /// The rate is halved.
    Cut,
    /// Nothing runs.
    Paused,
}

impl Zone {
    /// Every zone.
    pub const ALL: [Self; 6] = [Self::Open, Self::Capped, Self::Hold, Self::Ease, Self::Cut, Self::Paused];

    /// The zone's name, as users see it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Capped => "capped",
            Self::Hold => "hold",
            Self::Ease => "ease",
            Self::Cut => "cut",
            Self::Paused => "paused",
        }
    }

    /// Whether the rate is held back.
    #[must_use]
    pub fn limits(self) -> bool {
        self > Self::Capped
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
#[derive(Debug, Clone, Copy)]
struct Pause {
    since: Instant,
    /// A load was critical: it must come below its limit first.
    by_load: bool,
    /// Replicas were too far behind: they must come back to the target first.
    by_lag: bool,
}

/// Signal, subject, and whether it is in bytes.
type LagKey = (String, String, bool);

/// The law for one job.
#[derive(Debug)]
pub struct Law {
    figures: Figures,
    rate: f64,
    pause: Option<Pause>,
    /// Ticks since the last cut and the last growth; large before the first.
    since_cut: u32,
    since_growth: u32,
    /// The lowest rate that load did not bear, and the lowest that replicas did not follow.
    bad_load: Option<f64>,
    bad_lag: Option<f64>,
    aged_at: Option<Instant>,
    /// For so many ticks the rate that load did not bear has looked easy.
    easy_ticks: u32,
    /// The lag last read of each replica, and when.
    lags: BTreeMap<LagKey, (Instant, f64)>,
}

impl Law {
    /// A law that begins at the start rate.
    #[must_use]
    pub fn new(figures: Figures, bounds: &Bounds) -> Self {
        Self {
            figures,
            rate: bounds.clamp(bounds.start),
            pause: None,
            since_cut: u32::MAX,
            since_growth: u32::MAX,
            bad_load: None,
            bad_lag: None,
            aged_at: None,
            easy_ticks: 0,
            lags: BTreeMap::new(),
        }
    }

    /// The rate, in rows a second, whether or not a pause withholds it.
    #[must_use]
    pub fn rows_per_second(&self) -> f64 {
        self.rate
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
        self.since_growth = self.since_growth.saturating_add(1);
        self.age_bad_rates(now);
        let slopes = self.lag_slopes(observations);
        if let Some(paused) = self.pause(now, observations) {
            return paused;
        }
        self.resume(now, bounds);

        let load = worst_load(observations);
        let lag = worst_lag(observations, &slopes);
        let silent = observations.iter().find(|seen| !seen.fresh);
        let before = self.rate;
        let mut forget = false;
        let (zone, cause) = match (load, lag) {
            (Some((u, seen)), _) if u >= self.figures.cut_at => {
                forget = self.cut(real_rows_per_second);
                (Zone::Cut, Some(seen))
            }
            (_, Some(Lag { seen, slope: Some(slope), .. })) if slope > 0.0 => {
                self.yield_to_lag(slope);
                (Zone::Ease, Some(seen))
            }
            (Some((u, seen)), _) if u >= self.figures.ease_at => {
                self.ease();
                (Zone::Ease, Some(seen))
            }
            (Some((u, seen)), _) if u >= self.figures.hold_at => (Zone::Hold, Some(seen)),
            (_, Some(lag)) => (Zone::Hold, Some(lag.seen)),
            _ if silent.is_some() => (Zone::Hold, silent),
            _ => {
                self.grow(load.map_or(0.0, |(u, _)| u), real_rows_per_second);
                (Zone::Open, None)
            }
        };
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
            forget: forget && self.rate < before,
        }
    }

    /// The pause that somebody asks for, or that is not over yet.
    fn pause(&mut self, now: Instant, observations: &[Observation]) -> Option<Decision> {
        let demands = |seen: &&Observation| match seen.says {
            Says::Stop => true,
            Says::Load { critical, .. } => critical,
            Says::Lag { lag, max, .. } => lag > max,
            Says::Silence => false,
        };
        let (by_load, by_lag) = self.pause.map_or((false, false), |pause| (pause.by_load, pause.by_lag));
        // Hysteresis: a pause ends later than it would begin.
        let prolongs = |seen: &&Observation| match seen.says {
            Says::Load { utilisation, .. } => by_load && (utilisation >= self.figures.cut_at || !seen.fresh),
            Says::Silence => by_load,
            Says::Lag { lag, target, .. } => by_lag && lag > target,
            Says::Stop => false,
        };
        let cause = observations.iter().find(demands).or_else(|| observations.iter().find(prolongs))?;
        let pause = self.pause.get_or_insert(Pause { since: now, by_load: false, by_lag: false });
        for seen in observations.iter().filter(demands) {
            pause.by_load |= matches!(seen.says, Says::Load { .. });
            pause.by_lag |= matches!(seen.says, Says::Lag { .. });
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
        if pause.by_lag {
            lower(&mut self.bad_lag, self.rate);
        }
        if pause.by_load {
            lower(&mut self.bad_load, self.rate);
        }
        let has_begun = self.since_growth < u32::MAX || self.since_cut < u32::MAX;
        self.rate = match (has_begun, long) {
            // Nothing was walked before the pause, so it was not too much.
            (false, _) => self.rate,
            (true, true) => bounds.start.min(self.rate),
            (true, false) => part,
        };
        // What was read in the pause is no ground to grow on.
        self.since_cut = 0;
    }

    /// Halves the rate, unless it was just done. The rate that is not used is no rate: what is
    /// really walked is what weighs on the server, so that is what is cut, down to half as much again.
    fn cut(&mut self, real_rows_per_second: f64) -> bool {
        if self.since_cut < self.figures.cooldown_ticks {
            return false;
        }
        let used = real_rows_per_second.clamp(self.rate * self.figures.cut_factor, self.rate);
        lower(&mut self.bad_load, used);
        self.rate = used * self.figures.cut_factor;
        self.since_cut = 0;
        true
    }

    fn ease(&mut self) {
        if self.since_cut >= self.figures.cooldown_ticks {
            self.rate *= self.figures.ease_factor;
            self.since_cut = 0;
        }
    }

    /// Yields in proportion to how fast the lag rises: at one second a second nothing is replayed at
    /// all. Once for each new reading, without a cool-down: every second counts twice later.
    fn yield_to_lag(&mut self, slope: f64) {
        lower(&mut self.bad_lag, self.rate);
        self.rate *= self.figures.lag_factor * (1.0 - slope).max(self.figures.lag_floor);
        self.since_cut = 0;
    }

    fn grow(&mut self, u: f64, real_rows_per_second: f64) {
        let figures = self.figures;
        // Load is about proportional to the rate. When that makes the rate that was once too much look
        // easy for a while, then the load that made it too much has gone. For a while, since just after a
        // cut a p99 of few samples looks easy by chance.
        let easy = self.bad_load.is_some_and(|bad| u * bad / self.rate < figures.hold_at);
        self.easy_ticks = if easy { self.easy_ticks + 1 } else { 0 };
        if self.easy_ticks >= figures.calm_ticks {
            self.bad_load = None;
        }
        if self.since_cut < figures.growth_cooldown_ticks
            || self.since_growth < figures.cooldown_ticks
            || real_rows_per_second < figures.real_rate_share * self.rate
        {
            return;
        }
        let bad = match (self.bad_load, self.bad_lag) {
            (Some(load), Some(lag)) => Some(load.min(lag)),
            (load, lag) => load.or(lag),
        };
        // The less room there is, the shorter the step: the limit is met at a walk and not at a run.
        let room = 1.0 - u / figures.hold_at;
        let step = 1.0 + (figures.start_growth - 1.0) * room.clamp(0.0, 1.0);
        self.rate = match bad {
            None => self.rate * step.max(figures.growth),
            Some(bad) => {
                (self.rate * figures.growth).max(f64::midpoint(self.rate, bad).min(self.rate * step))
            }
        };
        // A rate that was gone beyond is not what was too much.
        for bad in [&mut self.bad_load, &mut self.bad_lag].into_iter().flatten() {
            *bad = bad.max(self.rate);
        }
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

    /// For each observation the slope of its lag, in seconds a second, where it was read anew.
    fn lag_slopes(&mut self, observations: &[Observation]) -> Vec<Option<f64>> {
        let mut lags = BTreeMap::new();
        let slope = |seen: &Observation| {
            let Says::Lag { lag, .. } = seen.says else { return None };
            let in_bytes = matches!(seen.figure, Some(Figure::Bytes(_)));
            let key = (seen.signal.clone(), seen.subject.clone(), in_bytes);
            let (at, last) = self.lags.get(&key).copied().unwrap_or((seen.at, lag));
            lags.insert(key, (seen.at, lag));
            let elapsed = seen.at.saturating_duration_since(at).as_secs_f64();
            (elapsed > 0.0).then(|| (lag - last) / elapsed)
        };
        let slopes = observations.iter().map(slope).collect();
        // Whatever is not read any more is forgotten with this.
        self.lags = lags;
        slopes
    }
}

fn lower(bad: &mut Option<f64>, rate: f64) {
    *bad = Some(bad.map_or(rate, |bad| bad.min(rate)));
}

/// The worst of the loads that are known.
fn worst_load(observations: &[Observation]) -> Option<(f64, &Observation)> {
    observations
        .iter()
        .filter_map(|seen| match seen.says {
            Says::Load { utilisation, .. } => Some((utilisation, seen)),
            _ => None,
        })
        .max_by(|one, other| one.0.total_cmp(&other.0))
}

struct Lag<'a> {
    seen: &'a Observation,
    /// None when it was not read anew.
    slope: Option<f64>,
}

/// Of the lags beyond their target, one that rises where there is one, and the largest of those.
fn worst_lag<'a>(observations: &'a [Observation], slopes: &[Option<f64>]) -> Option<Lag<'a>> {
    let beyond = observations.iter().zip(slopes).filter_map(|(seen, slope)| match seen.says {
        Says::Lag { lag, target, .. } if lag > target => Some((lag / target, Lag { seen, slope: *slope })),
        _ => None,
    });
    let order = |(over, lag): &(f64, Lag)| (lag.slope.is_some_and(|slope| slope > 0.0), *over);
    beyond
        .max_by(|one, other| order(one).partial_cmp(&order(other)).expect("a lag is a number"))
        .map(|(_, lag)| lag)
}
