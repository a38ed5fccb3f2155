//! The hours at which a job may run, by the clock of a time zone.
//!
//! A window opens on each day that it names and closes on that day or the next. Where a change of
//! daylight saving moves a clock, these rules hold:
//!
//! - A time that the clock leaps over is the first moment after the leap, for both ends of a window. A
//!   window that lies within the leap is left out on that day.
//! - A time that the clock shows twice begins a window when it is shown first and ends one when it is
//!   shown last. So a window is never shorter for the hour that comes twice.
//!
//! A day of 23 or 25 hours needs no rule: a window is two moments, never a moment and a length.

use jiff::civil::{Date, DateTime, Time, Weekday};
use jiff::tz::{AmbiguousOffset, TimeZone, TimeZoneDatabase};
use jiff::{RoundMode, SignedDuration, SignedDurationRound, Timestamp, ToSpan as _, Unit};

/// How far ahead an opening is looked for: a window of one weekday, twice leapt over.
const DAYS_AHEAD: usize = 21;
/// How far back a window may have opened that is still open, and a day for zones that leapt over one.
const DAYS_BACK: i64 = 2;

/// Whether a job may run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Opening {
    /// It may.
    Open,
    /// It may not.
    Closed {
        /// When it may again.
        opens_at: Timestamp,
        /// For a person: `outside the schedule (22:00-06:00 Europe/Berlin), opens at 22:00 in 3h 12m`.
        reason: String,
    },
}

/// Windows in which a job may run. Without any it always may.
#[derive(Debug, Clone, PartialEq)]
pub struct Schedule {
    windows: Vec<Window>,
    zone: TimeZone,
    /// As it is told to people.
    told: String,
}

#[derive(Debug, Clone, PartialEq)]
struct Window {
    /// The days on which it opens.
    days: Vec<Weekday>,
    opens: Time,
    closes: Time,
    /// It closes on the day after it opened.
    closes_next_day: bool,
}

impl Schedule {
    /// Reads windows such as `22:00-06:00`, `mon-fri 22:00-06:00` or `sat,sun 00:00-24:00`, and a name
    /// of the IANA time zone database. An error begins with the key at fault, `windows` or `timezone`.
    pub fn parse(windows: &[String], timezone: &str) -> Result<Self, String> {
        let zone = zone(timezone).ok_or_else(|| {
            format!("timezone {timezone:?} is not known: write a name such as \"UTC\" or \"Europe/Berlin\"")
        })?;
        let told = format!("{} {}", windows.join(", "), zone.iana_name().unwrap_or(timezone));
        let windows = windows
            .iter()
            .map(|text| window(text).map_err(|problem| format!("windows has {text:?}, {problem}")))
            .collect::<Result<_, String>>()?;
        Ok(Self { windows, zone, told })
    }

    /// Whether a job may run at `now`.
    #[must_use]
    pub fn at(&self, now: Timestamp) -> Opening {
        if self.windows.is_empty() {
            return Opening::Open;
        }
        let today = self.zone.to_datetime(now).date();
        let days = today.saturating_sub(DAYS_BACK.days()).series(1.day());
        let mut opens_at = Timestamp::MAX;
        for day in days.take(DAYS_AHEAD + DAYS_BACK as usize) {
            for window in self.windows.iter().filter(|window| window.days.contains(&day.weekday())) {
                // Beyond the calendar's end there is nothing to open.
                let Some((opens, closes)) = self.moments(window, day) else { continue };
                if opens <= now && now < closes {
                    return Opening::Open;
                }
                if now < opens && opens < closes {
                    opens_at = opens_at.min(opens);
                }
            }
        }
        Opening::Closed { opens_at, reason: self.closed(now, opens_at) }
    }

    /// When a window opens on `day`, and when it closes again.
    fn moments(&self, window: &Window, day: Date) -> Option<(Timestamp, Timestamp)> {
        let last_day = if window.closes_next_day { day.tomorrow().ok()? } else { day };
        let opens = self.zone.to_ambiguous_timestamp(day.to_datetime(window.opens));
        let closes = self.zone.to_ambiguous_timestamp(last_day.to_datetime(window.closes));
        let leapt_over = |at: AmbiguousOffset| matches!(at, AmbiguousOffset::Gap { .. });
        let opens = if leapt_over(opens.offset()) {
            self.after_leap(opens.earlier().ok()?, opens.datetime())?
        } else {
            opens.earlier().ok()?
        };
        let closes = if leapt_over(closes.offset()) {
            self.after_leap(closes.earlier().ok()?, closes.datetime())?
        } else {
            closes.later().ok()?
        };
        Some((opens, closes))
    }

    /// The first moment after the leap over `missing`, which comes after `before`.
    fn after_leap(&self, before: Timestamp, missing: DateTime) -> Option<Timestamp> {
        let changes = self.zone.following(before).map(|change| change.timestamp());
        changes.into_iter().find(|moment| self.zone.to_datetime(*moment) > missing)
    }

    fn closed(&self, now: Timestamp, opens_at: Timestamp) -> String {
        let left = now.duration_until(opens_at);
        let unit = if left < SignedDuration::from_mins(1) { Unit::Second } else { Unit::Minute };
        // Rounded up: nobody should come at the time told and find it closed.
        let rounded = left.round(SignedDurationRound::new().smallest(unit).mode(RoundMode::Ceil));
        let left = humantime::format_duration(rounded.unwrap_or(left).unsigned_abs());
        let opens = opens_at.to_zoned(self.zone.clone());
        // An hour says enough for the next day; beyond that the day must be told.
        let far = opens_at.duration_since(now) >= SignedDuration::from_hours(24);
        let opens = opens.strftime(if far { "on %a at %H:%M" } else { "at %H:%M" });
        format!("outside the schedule ({}), opens {opens} in {left}", self.told)
    }
}

/// Whether a time zone of this name is known.
#[must_use]
pub fn is_timezone(name: &str) -> bool {
    zone(name).is_some()
}

/// The names of all time zones that are known.
#[must_use]
pub fn timezones() -> Vec<String> {
    let bundled = TimeZoneDatabase::bundled();
    let mut names: Vec<String> =
        jiff::tz::db().available().chain(bundled.available()).map(|name| name.to_string()).collect();
    names.sort_unstable();
    names.dedup();
    names
}

/// The system's own data first, which its operator keeps up to date; else what this program carries,
/// for a system with none or with a part of it.
fn zone(name: &str) -> Option<TimeZone> {
    jiff::tz::db().get(name).or_else(|_| TimeZoneDatabase::bundled().get(name)).ok()
}

fn window(text: &str) -> Result<Window, String> {
    let shape = || {
        "which is no window: write \"22:00-06:00\", or with weekdays \"mon-fri 22:00-06:00\" or \"sat,sun 00:00-24:00\""
            .to_owned()
    };
    let (days_text, hours) = match text.trim().split_once(' ') {
        Some((days, hours)) => (Some(days), hours.trim()),
        None => (None, text.trim()),
    };
    let (opens_text, closes_text) = hours.split_once('-').ok_or_else(shape)?;
    let days = match days_text {
        Some(text) => weekdays(text).ok_or_else(shape)?,
        None => Weekday::Monday.cycle_forward().take(7).collect(),
    };
    let opens = time(opens_text).ok_or_else(shape)?;
    let to_the_end = closes_text == "24:00";
    let closes = if to_the_end { Time::midnight() } else { time(closes_text).ok_or_else(shape)? };
    if opens == closes && !to_the_end {
        return Err("which ends as it begins: write 00:00-24:00 for the whole day".to_owned());
    }
    Ok(Window { days, opens, closes, closes_next_day: closes <= opens })
}

/// `HH:MM`.
fn time(text: &str) -> Option<Time> {
    let digits = text.len() == 5 && text.bytes().all(|byte| byte.is_ascii_digit() || byte == b':');
    Time::strptime("%H:%M", text).ok().filter(|_| digits)
}

/// `mon`, `mon-fri`, `sat,sun`, `fri-mon,wed`.
fn weekdays(text: &str) -> Option<Vec<Weekday>> {
    let mut days = Vec::new();
    for part in text.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last) = (weekday(first)?, weekday(last)?);
        days.extend(first.cycle_forward().take(first.until(last) as usize + 1));
    }
    Some(days)
}

fn weekday(text: &str) -> Option<Weekday> {
    let name = |day: &Weekday| match day {
        Weekday::Monday => "mon",
        Weekday::Tuesday => "tue",
        Weekday::Wednesday => "wed",
        Weekday::Thursday => "thu",
        Weekday::Friday => "fri",
        Weekday::Saturday => "sat",
        Weekday::Sunday => "sun",
    };
    Weekday::Monday.cycle_forward().take(7).find(|day| text.eq_ignore_ascii_case(name(day)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn schedule(windows: &[&str], timezone: &str) -> Schedule {
        let windows: Vec<String> = windows.iter().map(|window| (*window).to_owned()).collect();
        Schedule::parse(&windows, timezone).unwrap()
    }

    fn refused(window: &str) -> String {
        Schedule::parse(&[window.to_owned()], "UTC").unwrap_err()
    }

    fn at(moment: &str) -> Timestamp {
        moment.parse().unwrap()
    }

    /// The moments of `hours` after `from` at which the schedule opens (+) and closes (-).
    fn changes(schedule: &Schedule, from: &str, hours: i64) -> Vec<String> {
        let from = at(from);
        let is_open = |now| schedule.at(now) == Opening::Open;
        let mut found = Vec::new();
        for minute in 1..=hours * 60 {
            let now = from + SignedDuration::from_mins(minute);
            let before = is_open(now - SignedDuration::from_mins(1));
            if is_open(now) != before {
                found.push(format!("{}{now}", if before { '-' } else { '+' }));
            }
        }
        found
    }

    #[test]
    fn a_window_may_cross_midnight() {
        let night = schedule(&["22:00-06:00"], "UTC");
        for (now, open) in [
            ("2026-03-10T21:59:59.999999999Z", false),
            ("2026-03-10T22:00:00Z", true),
            ("2026-03-11T00:00:00Z", true),
            ("2026-03-11T05:59:59.999999999Z", true),
            ("2026-03-11T06:00:00Z", false),
        ] {
            assert_eq!(night.at(at(now)) == Opening::Open, open, "{now}");
        }
    }

    #[test]
    fn a_day_ends_at_24_and_the_next_begins_without_a_break() {
        let day = schedule(&["00:00-24:00"], "America/New_York");
        assert_eq!(changes(&day, "2026-03-06T00:00:00Z", 72), Vec::<String>::new());
        assert_eq!(day.at(at("2026-03-06T00:00:00Z")), Opening::Open);
        let evening = schedule(&["20:00-24:00"], "UTC");
        assert_eq!(
            changes(&evening, "2026-03-06T12:00:00Z", 24),
            ["+2026-03-06T20:00:00Z", "-2026-03-07T00:00:00Z"]
        );
        // What ends at 00:00 ends at the same moment.
        assert_eq!(
            changes(&schedule(&["20:00-00:00"], "UTC"), "2026-03-06T12:00:00Z", 24),
            changes(&evening, "2026-03-06T12:00:00Z", 24)
        );
    }

    #[test]
    fn weekdays_are_those_on_which_a_window_opens() {
        // The 13th of March 2026 is a Friday.
        let working_nights = schedule(&["mon-fri 22:00-06:00"], "UTC");
        assert_eq!(
            changes(&working_nights, "2026-03-13T12:00:00Z", 72),
            ["+2026-03-13T22:00:00Z", "-2026-03-14T06:00:00Z"]
        );
        let with_weekends = schedule(&["mon-fri 22:00-06:00", "Sat,SUN 00:00-24:00"], "UTC");
        assert_eq!(
            changes(&with_weekends, "2026-03-13T12:00:00Z", 72),
            ["+2026-03-13T22:00:00Z", "-2026-03-16T00:00:00Z"]
        );
        let around = schedule(&["sun-mon 10:00-11:00"], "UTC");
        assert_eq!(changes(&around, "2026-03-14T00:00:00Z", 96).len(), 4, "two days");
    }

    #[test]
    fn no_windows_are_no_limit() {
        assert_eq!(schedule(&[], "Europe/Berlin").at(at("2026-03-10T21:00:00Z")), Opening::Open);
    }

    #[test]
    fn the_reason_tells_when_it_opens() {
        let night = schedule(&["22:00-06:00"], "europe/berlin");
        let Opening::Closed { opens_at, reason } = night.at(at("2026-01-10T17:48:00Z")) else {
            panic!("closed")
        };
        assert_eq!(opens_at, at("2026-01-10T21:00:00Z"));
        assert_eq!(reason, "outside the schedule (22:00-06:00 Europe/Berlin), opens at 22:00 in 3h 12m");
        let told = |windows: &[&str], now: &str| match schedule(windows, "UTC").at(at(now)) {
            Opening::Closed { reason, .. } => reason,
            Opening::Open => panic!("closed"),
        };
        assert_eq!(
            told(&["22:00-06:00", "sun 00:00-24:00"], "2026-03-10T21:59:15.2Z"),
            "outside the schedule (22:00-06:00, sun 00:00-24:00 UTC), opens at 22:00 in 45s"
        );
        // 3 minutes and a second are told as 4 minutes.
        assert!(told(&["22:00-06:00"], "2026-03-10T21:56:59Z").ends_with("opens at 22:00 in 4m"));
        assert!(
            told(&["sat 06:00-07:00"], "2026-03-10T03:00:00Z").ends_with("opens on Sat at 06:00 in 4days 3h")
        );
    }

    /// `Europe/Berlin`: 02:00 to 03:00 is leapt over on 2026-03-29 and comes twice on 2026-10-25.
    #[test]
    fn both_changes_in_berlin() {
        let spring = "2026-03-28T12:00:00Z";
        let autumn = "2026-10-24T12:00:00Z";
        let berlin = |window: &str, from: &str| changes(&schedule(&[window], "Europe/Berlin"), from, 24);
        // The whole night is an hour shorter, or longer.
        assert_eq!(berlin("22:00-06:00", spring), ["+2026-03-28T21:00:00Z", "-2026-03-29T04:00:00Z"]);
        assert_eq!(berlin("22:00-06:00", autumn), ["+2026-10-24T20:00:00Z", "-2026-10-25T05:00:00Z"]);
        // 02:30 is not there: 03:00 CEST takes its place, as a beginning and as an end.
        assert_eq!(berlin("02:30-06:00", spring), ["+2026-03-29T01:00:00Z", "-2026-03-29T04:00:00Z"]);
        assert_eq!(berlin("22:00-02:30", spring), ["+2026-03-28T21:00:00Z", "-2026-03-29T01:00:00Z"]);
        // 02:30 is there twice: the first one begins, the last one ends.
        assert_eq!(berlin("02:30-06:00", autumn), ["+2026-10-25T00:30:00Z", "-2026-10-25T05:00:00Z"]);
        assert_eq!(berlin("22:00-02:30", autumn), ["+2026-10-24T20:00:00Z", "-2026-10-25T01:30:00Z"]);
        assert_eq!(berlin("02:15-02:45", autumn), ["+2026-10-25T00:15:00Z", "-2026-10-25T01:45:00Z"]);
        // Nothing is left of a window within the leap, and the next day's is the next.
        assert_eq!(berlin("02:15-02:45", spring), Vec::<String>::new());
        let Opening::Closed { opens_at, .. } = schedule(&["02:15-02:45"], "Europe/Berlin").at(at(spring))
        else {
            panic!("closed")
        };
        assert_eq!(opens_at, at("2026-03-30T00:15:00Z"));
        // And of one that is for that weekday only, the one a week later.
        let Opening::Closed { opens_at, .. } = schedule(&["sun 02:15-02:45"], "Europe/Berlin").at(at(spring))
        else {
            panic!("closed")
        };
        assert_eq!(opens_at, at("2026-04-05T00:15:00Z"));
    }

    /// `America/New_York`: 02:00 to 03:00 is leapt over on 2026-03-08, 01:00 to 02:00 comes twice on
    /// 2026-11-01.
    #[test]
    fn both_changes_in_new_york() {
        let spring = "2026-03-07T18:00:00Z";
        let autumn = "2026-10-31T18:00:00Z";
        let york = |window: &str, from: &str| changes(&schedule(&[window], "America/New_York"), from, 24);
        assert_eq!(york("22:00-06:00", spring), ["+2026-03-08T03:00:00Z", "-2026-03-08T10:00:00Z"]);
        assert_eq!(york("22:00-06:00", autumn), ["+2026-11-01T02:00:00Z", "-2026-11-01T11:00:00Z"]);
        assert_eq!(york("02:30-06:00", spring), ["+2026-03-08T07:00:00Z", "-2026-03-08T10:00:00Z"]);
        assert_eq!(york("22:00-02:30", spring), ["+2026-03-08T03:00:00Z", "-2026-03-08T07:00:00Z"]);
        assert_eq!(york("01:30-06:00", autumn), ["+2026-11-01T05:30:00Z", "-2026-11-01T11:00:00Z"]);
        assert_eq!(york("22:00-01:30", autumn), ["+2026-11-01T02:00:00Z", "-2026-11-01T06:30:00Z"]);
    }

    /// `Australia/Lord_Howe` moves by half an hour: 02:00 to 02:30 is leapt over on 2026-10-04, 01:30 to
    /// 02:00 comes twice on 2026-04-05.
    #[test]
    fn both_changes_of_half_an_hour() {
        let spring = "2026-10-03T06:00:00Z";
        let autumn = "2026-04-04T06:00:00Z";
        let howe = |window: &str, from: &str| changes(&schedule(&[window], "Australia/Lord_Howe"), from, 24);
        // UTC+10:30 before, UTC+11 after.
        assert_eq!(howe("22:00-06:00", spring), ["+2026-10-03T11:30:00Z", "-2026-10-03T19:00:00Z"]);
        assert_eq!(howe("02:15-06:00", spring), ["+2026-10-03T15:30:00Z", "-2026-10-03T19:00:00Z"]);
        assert_eq!(howe("22:00-02:15", spring), ["+2026-10-03T11:30:00Z", "-2026-10-03T15:30:00Z"]);
        assert_eq!(howe("22:00-06:00", autumn), ["+2026-04-04T11:00:00Z", "-2026-04-04T19:30:00Z"]);
        assert_eq!(howe("01:45-06:00", autumn), ["+2026-04-04T14:45:00Z", "-2026-04-04T19:30:00Z"]);
        assert_eq!(howe("22:00-01:45", autumn), ["+2026-04-04T11:00:00Z", "-2026-04-04T15:15:00Z"]);
    }

    /// Samoa went without the 30th of December 2011; Cuba's clock goes back at 01:00 to 00:00.
    #[test]
    fn stranger_changes() {
        let apia = schedule(&["09:00-17:00"], "Pacific/Apia");
        assert_eq!(
            changes(&apia, "2011-12-29T12:00:00Z", 48),
            [
                "+2011-12-29T19:00:00Z",
                "-2011-12-30T03:00:00Z",
                "+2011-12-30T19:00:00Z",
                "-2011-12-31T03:00:00Z"
            ]
        );
        let apia = schedule(&["fri 00:00-24:00"], "Pacific/Apia");
        assert_eq!(changes(&apia, "2011-12-29T12:00:00Z", 48), Vec::<String>::new());
        let havana = schedule(&["00:00-24:00"], "America/Havana");
        assert_eq!(changes(&havana, "2026-10-31T12:00:00Z", 48), Vec::<String>::new());
    }

    #[test]
    fn what_is_no_window_is_refused() {
        for text in [
            "",
            "22:00",
            "22:00-",
            "22:00-25:00",
            "22:00-06:60",
            "24:00-06:00",
            "22-06",
            "9:00-10:00",
            "22:00:00-23:00:00",
            "22:00--6:00",
            "2200-0600",
            "monday 22:00-06:00",
            "mon- 22:00-06:00",
            "mon,,tue 22:00-06:00",
            "22:00-06:00 mon",
            "mon 22:00-06:00 x",
            "22:00-06:00,10:00-12:00",
        ] {
            assert!(
                refused(text).starts_with(&format!("windows has {text:?}, which is no window: write")),
                "{text}"
            );
        }
        assert!(refused("22:00-22:00").contains("ends as it begins: write 00:00-24:00"));
        let told = Schedule::parse(&[], "Mars/Olympus").unwrap_err();
        assert!(told.starts_with("timezone \"Mars/Olympus\" is not known: write"), "{told}");
        assert!(timezones().iter().any(|name| name == "Europe/Berlin"));
        assert!(is_timezone("Australia/Lord_Howe") && !is_timezone("Europe/Berln"));
    }

    /// A system without time zone data, as an empty container is one.
    #[test]
    fn the_program_carries_the_time_zones() {
        let bundled = TimeZoneDatabase::bundled();
        assert!(bundled.get("Europe/Berlin").is_ok() && bundled.get("Australia/Lord_Howe").is_ok());
    }

    prop_compose! {
        fn any_window()(days in 0..4_usize, opens in 0..1440_u32, length in 1..1440_u32) -> String {
            let days = ["", "mon-fri ", "sat,sun ", "wed "][days];
            let clock = |minute: u32| format!("{:02}:{:02}", minute / 60 % 24, minute % 60);
            format!("{days}{}-{}", clock(opens), clock(opens + length))
        }
    }

    proptest! {
        /// From 1970 to 2100, with half of the moments beside a change of some clock.
        #[test]
        fn a_closed_schedule_opens_when_it_says(
            windows in prop::collection::vec(any_window(), 1..4),
            zone in prop::sample::select(vec![
                "UTC", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "America/Havana",
                "Asia/Beirut", "Pacific/Apia", "Africa/Casablanca",
            ]),
            second in 0..4_102_444_800_i64,
            near_change in any::<bool>(),
            offset_minutes in -1500..1500_i64,
        ) {
            let schedule = Schedule::parse(&windows, zone).unwrap();
            let mut now = Timestamp::from_second(second).unwrap();
            if near_change && let Some(change) = schedule.zone.following(now).next() {
                now = change.timestamp() + SignedDuration::from_mins(offset_minutes);
            }
            if let Opening::Closed { opens_at, .. } = schedule.at(now) {
                prop_assert!(opens_at > now);
                prop_assert_eq!(schedule.at(opens_at), Opening::Open);
                let just_before = opens_at - SignedDuration::from_nanos(1);
                let still_closed = matches!(schedule.at(just_before), Opening::Closed { opens_at: told, .. } if told == opens_at);
                prop_assert!(still_closed);
                // Nor was it open anywhere between.
                let between = now + (opens_at.duration_since(now) / 2);
                let closed = matches!(schedule.at(between), Opening::Closed { .. });
                prop_assert!(closed);
            }
        }
    }
}
