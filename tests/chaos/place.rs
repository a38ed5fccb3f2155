//! A place where one daemon after another is at work, and how it fares.

use std::time::{Duration, Instant};

use super::plan::LEASE;
use super::proxy::{Proxy, Weather};
use super::support::daemon::Daemon;

/// How long a daemon may take from SIGTERM to its end: its grace, and its last words.
const STOP_TIMEOUT: Duration = Duration::from_secs(40);
/// How long before a daemon is started again that could not start.
const START_AGAIN_AFTER: Duration = Duration::from_millis(300);

/// A place for a daemon, with its own way to either server.
pub(crate) struct Place {
    pub(crate) name: String,
    pub(crate) daemon: Option<Daemon>,
    pub(crate) doing: Doing,
    pub(crate) to_primary: Proxy,
    pub(crate) to_standby: Proxy,
    /// The logs of the daemons that were here before.
    pub(crate) logs: Vec<String>,
    url: String,
}

/// What the daemon of a place is up to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Doing {
    /// Nobody is here until then.
    Away(Instant),
    Running,
    Frozen,
    /// Asked to stop at that time; another one is to come after so long.
    Stopping(Instant, Duration),
    /// Nobody comes any more.
    Closed,
}

impl Place {
    pub(crate) fn new() -> Self {
        Self {
            name: String::new(),
            daemon: None,
            doing: Doing::Closed,
            to_primary: Proxy::start(),
            to_standby: Proxy::start(),
            logs: Vec::new(),
            url: String::new(),
        }
    }

    /// Somebody of this name is to come, and to work on the database at `url`.
    pub(crate) fn open(&mut self, name: String, url: String, now: Instant) {
        (self.name, self.url) = (name, url);
        self.logs.clear();
        self.doing = Doing::Away(now);
    }

    pub(crate) fn proxies(&self) -> [&Proxy; 2] {
        [&self.to_primary, &self.to_standby]
    }

    /// The way by which the daemon goes at this time.
    pub(crate) fn current_proxy(&self, has_promoted: bool) -> &Proxy {
        if has_promoted { &self.to_standby } else { &self.to_primary }
    }

    pub(crate) fn set_weather(&self, weather: Weather) {
        self.proxies().iter().for_each(|proxy| proxy.set_weather(weather));
    }

    /// The daemon that is here and does what it is meant to.
    pub(crate) fn running(&self) -> Option<&Daemon> {
        self.daemon.as_ref().filter(|_| self.doing == Doing::Running)
    }

    /// The name of whoever comes next.
    pub(crate) fn rename(&mut self) {
        self.name.push('x');
    }

    /// Kills whoever is here, and keeps the log.
    pub(crate) fn end(&mut self) {
        if let Some(mut daemon) = self.daemon.take() {
            daemon.kill();
            self.logs.push(daemon.log());
        }
    }

    /// Starts who is to be started, and sees to whoever has ended.
    pub(crate) fn tend(&mut self, now: Instant) -> Result<(), String> {
        match self.doing {
            Doing::Away(until) if now >= until => {
                self.start();
                Ok(())
            }
            Doing::Running => self.tend_running(now),
            Doing::Stopping(since, away) => self.tend_stopping(now, since, away),
            Doing::Away(_) | Doing::Frozen | Doing::Closed => Ok(()),
        }
    }

    fn start(&mut self) {
        let lease = format!("{}ms", LEASE.as_millis());
        let environment = [
            ("BACKFILLD__DAEMON__NAME", self.name.as_str()),
            ("BACKFILLD__DAEMON__LEASE", &lease),
            ("BACKFILLD__DAEMON__SHUTDOWN_GRACE", "10s"),
            ("BACKFILLD__LOG__LEVEL", "debug"),
        ];
        self.daemon = Some(Daemon::start_with(&self.url, &[], &environment));
        self.doing = Doing::Running;
    }

    fn tend_running(&mut self, now: Instant) -> Result<(), String> {
        let ended = self.daemon.as_ref().is_some_and(Daemon::has_ended);
        if !ended {
            return Ok(());
        }
        self.end();
        let log = self.logs.last().expect("it was just put there");
        // Without a database it does not start; whoever started it does so again.
        if log.contains(" started daemon=") {
            return Err(format!("{} has ended by itself", self.name));
        }
        self.doing = Doing::Away(now + START_AGAIN_AFTER);
        Ok(())
    }

    fn tend_stopping(&mut self, now: Instant, since: Instant, away: Duration) -> Result<(), String> {
        let daemon = self.daemon.as_mut().expect("who stops is there");
        if !daemon.has_ended() {
            let late = now > since + STOP_TIMEOUT;
            return if late { Err(format!("{} does not stop", self.name)) } else { Ok(()) };
        }
        let status = daemon.wait_exit(STOP_TIMEOUT);
        // 1: a batch did not end within the grace; the network may be such. Or it was only starting.
        if !matches!(status.code(), Some(0 | 1)) && daemon.log().contains(" started daemon=") {
            return Err(format!("{} was asked to stop and ended with {status}", self.name));
        }
        self.end();
        self.doing = if away == Duration::MAX { Doing::Closed } else { Doing::Away(now + away) };
        Ok(())
    }
}
