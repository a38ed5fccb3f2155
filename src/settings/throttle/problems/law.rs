//! What is wrong with the figures of the law.

use super::{DAY, Problems, SECOND};
use crate::throttle::law::Figures;

pub(super) fn check(law: &Figures, problems: &mut Problems) {
    let key = |name: &str| format!("throttle.law.{name}");
    for (name, value, above, most) in [
        ("cut_at", law.cut_at, 0.0, 2.0),
        ("ease_at", law.ease_at, 0.0, 2.0),
        ("hold_at", law.hold_at, 0.0, 2.0),
        ("start_growth", law.start_growth, 1.0, 10.0),
        ("growth", law.growth, 1.0, 10.0),
        ("near_share", law.near_share, 0.0, 1.0),
        ("calm_at", law.calm_at, 0.0, 2.0),
        ("bad_rate_memory", law.bad_rate_memory, 0.0, 1.0),
        ("lag_growth", law.lag_growth, 1.0, 10.0),
        ("real_rate_share", law.real_rate_share, 0.0, 1.0),
        ("lag_factor", law.lag_factor, 0.0, 1.0),
        ("lag_floor", law.lag_floor, 0.0, 1.0),
        ("resume_factor", law.resume_factor, 0.0, 1.0),
    ] {
        problems.number(&key(name), value, above, most);
    }
    for (name, value) in [("cut_factor", law.cut_factor), ("ease_factor", law.ease_factor)] {
        problems.wrong(!(value > 0.0 && value < 1.0), || {
            format!("{} must be more than 0 and less than 1", key(name))
        });
    }
    problems.wrong(!(1.0..=10.0).contains(&law.growth_speedup), || {
        format!("{} must be from 1 (always the same step) to 10", key("growth_speedup"))
    });
    problems.wrong(!(0.0..=1.0).contains(&law.bad_rate_aging), || {
        format!("{} must be from 0 (never) to 1", key("bad_rate_aging"))
    });
    problems.wrong(law.hold_at >= law.ease_at, || {
        format!("{} = {} must be less than {} = {}", key("hold_at"), law.hold_at, key("ease_at"), law.ease_at)
    });
    problems.wrong(law.ease_at > law.cut_at, || {
        format!("{} = {} must be {} = {} or less", key("ease_at"), law.ease_at, key("cut_at"), law.cut_at)
    });
    problems.wrong(law.cut_factor < 1.0 && law.cut_factor > law.ease_factor, || {
        format!(
            "{} = {} must be {} = {} or less: a cut takes more than easing",
            key("cut_factor"),
            law.cut_factor,
            key("ease_factor"),
            law.ease_factor
        )
    });
    problems.duration(&key("bad_rate_age_every"), law.bad_rate_age_every, SECOND..=DAY);
    problems.duration(&key("long_pause"), law.long_pause, SECOND..=DAY);
}

#[cfg(test)]
mod tests {
    use crate::settings::throttle::problems::tests::tells;

    #[test]
    fn figures_of_the_law_that_make_no_sense() {
        for (keys, beginning) in [
            ("cut_at = 2.5", "cut_at must be more than 0, and 2 at most"),
            ("cut_factor = 1", "cut_factor must be more than 0 and less than 1"),
            ("cut_factor = 0", "cut_factor must be more than 0 and less than 1"),
            ("ease_factor = 1", "ease_factor must be more than 0 and less than 1"),
            ("cut_factor = 0.96", "cut_factor = 0.96 must be throttle.law.ease_factor = 0.95 or less"),
            ("growth = 1", "growth must be more than 1, and 10 at most"),
            ("start_growth = 0.5", "start_growth must be more than 1"),
            ("hold_at = 0.9", "hold_at = 0.9 must be less than throttle.law.ease_at = 0.8"),
            ("near_share = 1.5", "near_share must be more than 0, and 1 at most"),
            ("calm_at = 3", "calm_at must be more than 0, and 2 at most"),
            ("growth_speedup = 0.5", "growth_speedup must be from 1 (always the same step) to 10"),
            ("bad_rate_memory = 0", "bad_rate_memory must be more than 0, and 1 at most"),
            ("lag_growth = 1", "lag_growth must be more than 1, and 10 at most"),
            ("ease_at = 1.1", "ease_at = 1.1 must be throttle.law.cut_at = 1 or less"),
            ("real_rate_share = 1.1", "real_rate_share must be"),
            ("bad_rate_aging = -0.1", "bad_rate_aging must be from 0 (never) to 1"),
            ("lag_factor = 0", "lag_factor must be"),
            ("lag_floor = 2", "lag_floor must be"),
            ("resume_factor = nan", "resume_factor must be"),
            ("cooldown_ticks = -1", "cooldown_ticks must be a whole number from 0 to 86400"),
            ("calm_ticks = 99999999999", "calm_ticks must be a whole number from 0 to 86400"),
        ] {
            tells(".law", keys, &format!(".law.{beginning}"));
        }
    }
}
