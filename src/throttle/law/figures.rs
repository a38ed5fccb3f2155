//! The law's figures.

use std::time::Duration;

use serde::Deserialize;

/// The law's figures. `u` is a utilisation, 1 at the limit.
///
/// The defaults are those that did best in `tests/simulation`, where a p99 is as noisy as on real servers:
/// that of 200 samples strays by a quarter. With "auto" a quarter of the p99 is half of the room there is,
/// so one reading must neither cost much nor allow much.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
#[serde(default)]
pub struct Figures {
    /// From this `u` on, when it is sure, the rate is cut.
    pub cut_at: f64,
    /// What a cut leaves of the rate.
    pub cut_factor: f64,
    /// From this `u` on the rate is eased.
    pub ease_at: f64,
    /// What an easing leaves of the rate. Little is taken, and taken again as long as it is called for.
    pub ease_factor: f64,
    /// From this `u` on the rate does not grow.
    pub hold_at: f64,
    /// Growth a step as long as no rate near is known to be too much.
    pub start_growth: f64,
    /// Growth a step near the rate that was too much.
    pub growth: f64,
    /// Near is from this share of that rate on.
    pub near_share: f64,
    /// How many times as much each further step adds, as long as the settled `u` is below `calm_at`: the load
    /// that made the rate too much may have gone.
    pub growth_speedup: f64,
    /// See above.
    pub calm_at: f64,
    /// The settled `u` is the mean of about so many ticks.
    pub settle_ticks: u32,
    /// The rate grows only when at least this share of it is really used.
    pub real_rate_share: f64,
    /// Ticks from one cut to the next, from anything that lowers the rate to the next easing, and from one
    /// growth to the next.
    pub cooldown_ticks: u32,
    /// Ticks from anything that lowers the rate, or from a pause, to the next growth.
    pub growth_cooldown_ticks: u32,
    /// What a lower rate that was too much leaves at least of the one known before. A load that comes and
    /// goes is not to make the way back a long one.
    pub bad_rate_memory: f64,
    /// The share by which the rate that was too much rises, each time it has aged.
    pub bad_rate_aging: f64,
    /// How long it takes to age.
    #[serde(with = "humantime_serde")]
    pub bad_rate_age_every: Duration,
    /// What rising lag leaves of the rate that the replica follows.
    pub lag_factor: f64,
    /// The least that one reading of the slope of lag leaves of the rate.
    pub lag_floor: f64,
    /// Growth a step near the rate that the replicas did not follow.
    pub lag_growth: f64,
    /// What a pause leaves of the rate.
    pub resume_factor: f64,
    /// After a pause as long as this the rate begins anew.
    #[serde(with = "humantime_serde")]
    pub long_pause: Duration,
    /// A better zone is told only once it has lasted so many ticks.
    pub calm_ticks: u32,
}

impl Default for Figures {
    fn default() -> Self {
        Self {
            cut_at: 1.0,
            cut_factor: 0.5,
            ease_at: 0.8,
            ease_factor: 0.95,
            hold_at: 0.5,
            start_growth: 1.5,
            growth: 1.01,
            near_share: 0.8,
            growth_speedup: 2.0,
            calm_at: 0.3,
            settle_ticks: 10,
            real_rate_share: 0.9,
            cooldown_ticks: 2,
            growth_cooldown_ticks: 4,
            bad_rate_memory: 0.85,
            bad_rate_aging: 0.1,
            bad_rate_age_every: Duration::from_secs(180),
            lag_factor: 0.95,
            lag_floor: 0.5,
            lag_growth: 1.02,
            resume_factor: 0.5,
            long_pause: Duration::from_secs(60),
            calm_ticks: 10,
        }
    }
}

impl Figures {
    /// What a step near the rate that was too much multiplies it by, after so many calm ones. One breach says
    /// little of where the limit is, and a load that has gone leaves a limit that is none any more. So steps
    /// become larger while all is calm, and small again as soon as it is not.
    pub(super) fn careful_growth(&self, calm_steps: u32) -> f64 {
        let speedup = self.growth_speedup.powi(calm_steps.saturating_sub(1).min(64).cast_signed());
        (1.0 + (self.growth - 1.0) * speedup).min(self.start_growth)
    }
}
