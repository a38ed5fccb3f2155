//! `[schedule]` of a job file: the hours at which the job may run.

use serde::{Deserialize, Serialize};

use crate::job::known_keys::nearest;
use crate::throttle::schedule::{self, is_timezone, timezones};

/// The hours at which a job may run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(from = "Written", into = "Written")]
pub struct Schedule {
    written: Written,
    /// Read once, so that nobody who asks has to deal with a problem.
    read: Result<Option<schedule::Schedule>, String>,
}

/// What the job file says.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Written {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    windows: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    timezone: Option<String>,
}

impl Default for Schedule {
    fn default() -> Self {
        Self { written: Written::default(), read: Ok(None) }
    }
}

impl From<Written> for Schedule {
    fn from(written: Written) -> Self {
        Self { read: written.read(), written }
    }
}

impl From<Schedule> for Written {
    fn from(schedule: Schedule) -> Self {
        schedule.written
    }
}

impl Schedule {
    /// When the job may run; none for always.
    #[must_use]
    pub fn schedule(&self) -> Option<schedule::Schedule> {
        self.read.clone().ok().flatten()
    }

    /// What is wrong with it, the key first.
    pub(super) fn problem(&self) -> Option<String> {
        self.read.clone().err()
    }
}

impl Written {
    fn read(&self) -> Result<Option<schedule::Schedule>, String> {
        let timezone = self.timezone.as_deref().unwrap_or("UTC");
        if !is_timezone(timezone) {
            let known = timezones();
            let known: Vec<&str> = known.iter().map(String::as_str).collect();
            if let Some(near) = nearest(timezone, &known) {
                return Err(format!("schedule.timezone {timezone:?} is not known: did you mean {near:?}?"));
            }
        }
        let read = schedule::Schedule::parse(&self.windows, timezone)
            .map_err(|problem| format!("schedule.{problem}"))?;
        Ok(Some(read).filter(|_| !self.windows.is_empty()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Schedule {
        toml::from_str(text).unwrap()
    }

    #[test]
    fn without_windows_there_is_no_schedule() {
        assert_eq!(read("").schedule(), None);
        assert_eq!(read("timezone = 'Europe/Berlin'").schedule(), None);
        let nights = read("windows = ['22:00-06:00']");
        assert_eq!(nights.schedule(), schedule::Schedule::parse(&["22:00-06:00".to_owned()], "UTC").ok());
    }

    #[test]
    fn what_cannot_be_read_is_told_with_its_key() {
        for (text, told) in [
            (
                "timezone = 'Europe/Berln'",
                "schedule.timezone \"Europe/Berln\" is not known: did you mean \"Europe/Berlin\"?",
            ),
            ("timezone = '1'", "schedule.timezone \"1\" is not known: write a name such as"),
            (
                "windows = ['22:00']",
                "schedule.windows has \"22:00\", which is no window: write \"22:00-06:00\"",
            ),
            ("windows = ['1:00-2:00']", "schedule.windows has \"1:00-2:00\", which is no window"),
            (
                "windows = ['22:00-22:00']",
                "schedule.windows has \"22:00-22:00\", which ends as it begins: write 00:00-24:00",
            ),
        ] {
            let problem = read(text).problem().unwrap();
            assert!(problem.starts_with(told), "{text}: {problem}");
        }
    }
}
