//! Telling the service manager how the daemon is: systemd, or whatever else has set `NOTIFY_SOCKET`. Without
//! it nothing is told.

use std::time::Duration;

use sd_notify::NotifyState;

/// The service manager ignores a message of more than 4096 bytes, and a sentence is shorter.
const LONGEST_STATUS: usize = 400;

/// What the service manager was told last, and what it is to be told.
pub(super) struct Systemd {
    /// It waits for signs of life, and restarts who gives none.
    is_watched: bool,
    /// What the daemon works on.
    progress: String,
    /// What keeps it from that.
    trouble: Option<String>,
    is_resting: bool,
    told: String,
    has_failed: bool,
}

impl Systemd {
    /// `longest_silence`: how long it may take from one [`Systemd::alive`] to the next.
    pub(super) fn new(longest_silence: Duration) -> Self {
        let watched = sd_notify::watchdog_enabled();
        if let Some(watchdog) = watched.filter(|watchdog| *watchdog <= longest_silence) {
            tracing::warn!(
                "WatchdogSec = {watchdog:?} is too short: waiting for a database that hangs takes up to \
                 {longest_silence:?}, and the daemon would be killed for that; set it to 3min"
            );
        }
        Self {
            is_watched: watched.is_some(),
            progress: "Looking for work".to_owned(),
            trouble: None,
            is_resting: false,
            told: String::new(),
            has_failed: false,
        }
    }

    /// The start, or a reload, is over.
    pub(super) fn ready(&mut self) {
        let status = self.news();
        self.tell(&[NotifyState::Ready], status);
    }

    /// Settings are being read again, until [`Systemd::ready`].
    pub(super) fn reloading(&mut self) {
        // `Type=notify-reload` wants to know when.
        let at = NotifyState::monotonic_usec_now().expect("Linux has a monotonic clock");
        self.tell(&[NotifyState::Reloading, at], None);
    }

    /// It ends, and that may take so long.
    pub(super) fn stopping(&mut self, within: Duration) {
        let extended = format!("EXTEND_TIMEOUT_USEC={}", within.as_micros());
        let status = "Stopping: what is in flight may end first".to_owned();
        self.tell(&[NotifyState::Stopping, NotifyState::Custom(&extended)], Some(status));
    }

    /// A sign of life, and what is new.
    pub(super) fn alive(&mut self) {
        let status = self.news();
        if self.is_watched {
            self.tell(&[NotifyState::Watchdog], status);
        } else if status.is_some() {
            self.tell(&[], status);
        }
    }

    /// What the daemon works on, in a sentence.
    pub(super) fn progress(&mut self, sentence: String) {
        self.progress = sentence;
    }

    /// What keeps the daemon from its work; none when that is over.
    pub(super) fn trouble(&mut self, sentence: Option<String>) {
        self.trouble = sentence;
    }

    /// Whether the daemon rests because somebody asked for it.
    pub(super) fn resting(&mut self, is_resting: bool) {
        self.is_resting = is_resting;
    }

    /// The sentence that says how things stand, if it is another one than that told last.
    fn news(&self) -> Option<String> {
        let sentence = match &self.trouble {
            Some(trouble) => trouble,
            None if self.is_resting => "Resting since SIGUSR1, until SIGUSR2",
            None => &self.progress,
        };
        let line = on_one_line(sentence);
        (line != self.told).then_some(line)
    }

    fn tell(&mut self, states: &[NotifyState], sentence: Option<String>) {
        let mut states = states.to_vec();
        if let Some(sentence) = &sentence {
            states.push(NotifyState::Status(sentence));
        }
        match sd_notify::notify(&states) {
            Ok(()) => {
                self.has_failed = false;
                if let Some(sentence) = sentence {
                    self.told = sentence;
                }
            }
            Err(error) if !self.has_failed => {
                self.has_failed = true;
                tracing::warn!(%error, "the service manager cannot be told how the daemon is, at NOTIFY_SOCKET");
            }
            Err(_) => {}
        }
    }
}

/// A line end in a status would begin another message: errors may hold one.
fn on_one_line(text: &str) -> String {
    let text = text.chars().map(|letter| if letter.is_control() { ' ' } else { letter });
    let cut: String = text.clone().take(LONGEST_STATUS).collect();
    if text.count() > LONGEST_STATUS { format!("{cut}...") } else { cut }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_is_one_line_and_short() {
        assert_eq!(on_one_line("a\nREADY=1\tb"), "a READY=1 b");
        let long = on_one_line(&"é".repeat(LONGEST_STATUS + 1));
        assert!(long.ends_with("é...") && long.len() < 1000, "{long}");
    }
}
