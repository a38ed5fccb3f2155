//! What the law is told, and what it says.

use std::time::Instant;

use super::Figures;
use crate::throttle::reading::Figure;

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
    /// Who it is that asks for a pause: signal and subject. Of `prometheus.NAME` only the largest series is
    /// read, each time another one perhaps.
    pub(super) fn asker(&self) -> (String, String) {
        let subject = if self.signal.starts_with("prometheus.") { "" } else { &self.subject };
        (self.signal.clone(), subject.to_owned())
    }

    /// How much of its limit is used; none of what is not known.
    #[must_use]
    pub fn utilisation(&self) -> Option<f64> {
        match self.says {
            Says::Load(load) => Some(load.utilisation),
            Says::Lag { lag, max, .. } => Some(lag / max),
            Says::Stop | Says::Silence => None,
        }
    }

    /// The zone that this reading alone would lead to. A lag over its target holds; whether it rises
    /// is seen only from one reading to the next.
    #[must_use]
    pub fn zone(&self, figures: &Figures) -> Zone {
        match self.says {
            Says::Stop | Says::Load(Load { critical: true, .. }) => Zone::Paused,
            Says::Lag { lag, max, .. } if lag > max => Zone::Paused,
            Says::Load(load) if load.at_least >= figures.cut_at => Zone::Cut,
            Says::Load(load) if load.worst() >= figures.ease_at => Zone::Ease,
            Says::Load(load) if load.worst() >= figures.hold_at => Zone::Hold,
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
    Load(Load),
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

/// How much of its limit a load uses: 1 at the limit.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Load {
    /// Reading ÷ limit.
    pub utilisation: f64,
    /// What that is likely to be at least, where the reading is an estimate: a p99 of a few samples may be
    /// far off. Else the same.
    pub likely: f64,
    /// What it surely is at least.
    pub at_least: f64,
    /// The same by what is usual rather than by the worst: of a latency its p95, held against that of quiet.
    /// Else the same.
    pub usual: f64,
    /// The same by the newest samples alone, which are few. It lets the rate grow less, and no more.
    pub latest: f64,
    /// It is beyond its critical limit.
    pub critical: bool,
}

impl Load {
    /// What the rate does not grow on and yields to: what is likely, or what is usual.
    #[must_use]
    pub fn worst(&self) -> f64 {
        self.likely.max(self.usual)
    }
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
