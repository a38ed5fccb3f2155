//! The figures of the law, each a key of `[throttle.law]`.

use std::time::Duration;

use serde::Deserialize;

/// The law's figures. `u` is a utilisation, 1 at the limit.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
#[serde(default)]
pub struct Figures {
    /// From this `u` on the rate is cut.
    pub cut_at: f64,
    /// What a cut leaves of the rate.
    pub cut_factor: f64,
    /// From this `u` on the rate is eased.
    pub ease_at: f64,
    /// What an easing leaves of the rate.
    pub ease_factor: f64,
    /// From this `u` on the rate does not grow.
    pub hold_at: f64,
    /// The largest growth a step, where there is all the room; the less room, the smaller the step.
    pub start_growth: f64,
    /// Growth a step at and beyond the rate that was too much.
    pub growth: f64,
    /// The rate grows only when at least this share of it is really used.
    pub real_rate_share: f64,
    /// Ticks from one cut to the next, and from one growth to the next.
    pub cooldown_ticks: u32,
    /// Ticks from a cut to the next growth.
    pub growth_cooldown_ticks: u32,
    /// The share by which the rate that was too much rises, each time it has aged.
    pub bad_rate_aging: f64,
    /// How long it takes to age.
    #[serde(with = "humantime_serde")]
    pub bad_rate_age_every: Duration,
    /// What rising lag leaves of the rate, before its slope is counted.
    pub lag_factor: f64,
    /// The least that the slope of lag leaves of the rate.
    pub lag_floor: f64,
    /// What a pause leaves of the rate.
    pub resume_factor: f64,
    /// After a pause as long as this the rate begins anew.
    #[serde(with = "humantime_serde")]
    pub long_pause: Duration,
    /// A better zone is told only once it has lasted so many ticks; and for so long must a rate that was
    /// too much look easy to be forgotten.
    pub calm_ticks: u32,
}

impl Default for Figures {
    fn default() -> Self {
        Self {
            cut_at: 1.0,
            cut_factor: 0.5,
            ease_at: 0.9,
            ease_factor: 0.9,
            hold_at: 0.7,
            start_growth: 1.5,
            growth: 1.05,
            real_rate_share: 0.9,
            cooldown_ticks: 2,
            growth_cooldown_ticks: 4,
            bad_rate_aging: 0.1,
            bad_rate_age_every: Duration::from_secs(180),
            lag_factor: 0.95,
            lag_floor: 0.5,
            resume_factor: 0.5,
            long_pause: Duration::from_secs(60),
            calm_ticks: 10,
        }
    }
}
