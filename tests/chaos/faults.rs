//! Carrying faults out, and putting right in time what lasts.

use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::place::Doing;
use super::plan::Fault;
use super::proxy::Weather;
use super::stage::{Stage, execute};
use super::support::daemon::{Daemon, backfilld};

/// How often a resume is tried: the commands go to the server directly, so once should do.
const RESUMES: u32 = 5;

/// The faults under way.
#[derive(Default)]
pub(crate) struct Faults {
    started: Option<Instant>,
    /// What was done, each with its time.
    pub(crate) told: Vec<String>,
    undo: Vec<(Instant, Undo)>,
    lockers: Vec<JoinHandle<()>>,
}

/// What puts a fault right.
#[derive(Debug, Clone, Copy)]
enum Undo {
    Continue(usize),
    Heal(usize),
    Resume,
}

impl Faults {
    pub(crate) fn begin(&mut self) {
        self.started = Some(Instant::now());
    }

    /// Carries one out, or says why it does not fit just now.
    pub(crate) fn carry_out(&mut self, stage: &mut Stage, fault: Fault) -> Result<(), String> {
        let now = Instant::now();
        let told = match fault {
            Fault::Kill { .. } | Fault::Stop { .. } | Fault::Freeze { .. } => self.signal(stage, fault, now),
            Fault::Cut { daemon, side, time } => {
                stage.places[daemon].proxies().iter().for_each(|proxy| proxy.cut(side));
                self.undo.push((now + time, Undo::Heal(daemon)));
                ""
            }
            Fault::Network { daemon, weather, time } => {
                stage.places[daemon].set_weather(weather);
                self.undo.push((now + time, Undo::Heal(daemon)));
                ""
            }
            Fault::Commit { daemon, what, times } => {
                for _ in 0..times {
                    stage.places[daemon].current_proxy(stage.has_promoted()).at_commit(what);
                }
                ""
            }
            Fault::Late { daemon, statement, time } => {
                stage.places[daemon].current_proxy(stage.has_promoted()).hold_back(statement, time);
                ""
            }
            Fault::Promote => {
                stage.promote();
                ""
            }
            Fault::Restart { crash } => {
                if crash {
                    stage.primary().restart_immediate();
                } else {
                    stage.primary().restart_fast();
                }
                ""
            }
            Fault::Terminate { all } => {
                let limit = if all { "" } else { "ORDER BY random() LIMIT 1" };
                execute(
                    &stage.url(),
                    &format!(
                        "SELECT pg_terminate_backend(pid)
                         FROM (SELECT pid FROM pg_stat_activity
                               WHERE application_name = 'backfilld' AND datname = current_database() {limit}) a"
                    ),
                )
                .map_err(|error| format!("{error:?}"))?;
                ""
            }
            Fault::LockTable { times, time } => {
                let lock = format!(
                    "BEGIN; LOCK TABLE walked; SELECT pg_sleep({}); COMMIT; SELECT pg_sleep(0.05);",
                    time.as_secs_f64()
                );
                self.lock(stage, lock.repeat(times as usize));
                ""
            }
            Fault::LockRows { tenth, time } => {
                self.lock(
                    stage,
                    format!(
                        "BEGIN; SELECT FROM walked
                         WHERE id BETWEEN (SELECT max(id) FROM original) * {tenth} / 10
                                      AND (SELECT max(id) FROM original) * ({tenth} + 1) / 10 FOR UPDATE;
                         SELECT pg_sleep({}); COMMIT",
                        time.as_secs_f64()
                    ),
                );
                ""
            }
            Fault::Tune { workers } => {
                let run = backfilld(&stage.url(), &["tune", "chaos", &format!("workers={workers}")]);
                // The job may have ended by now.
                if run.code == 0 { "" } else { "refused" }
            }
            Fault::Pause { time, waits } => {
                let options: &[&str] = if waits { &[] } else { &["--no-wait"] };
                let run = backfilld(&stage.url(), &[&["pause", "chaos"], options].concat());
                self.undo.push((Instant::now() + time, Undo::Resume));
                if run.code == 0 { "" } else { "refused" }
            }
        };
        let at = self.started.map_or(Duration::ZERO, |started| now - started);
        self.told.push(format!("{:7.3} s {fault:?} {told}", at.as_secs_f64()));
        Ok(())
    }

    fn signal(&mut self, stage: &mut Stage, fault: Fault, now: Instant) -> &'static str {
        let (Fault::Kill { daemon, .. } | Fault::Stop { daemon, .. } | Fault::Freeze { daemon, .. }) = fault
        else {
            unreachable!("no other fault is done to a process")
        };
        let place = &mut stage.places[daemon];
        // A frozen one can be killed too.
        let may_be = place.doing == Doing::Frozen && matches!(fault, Fault::Kill { .. });
        if place.running().is_none_or(Daemon::has_ended) && !may_be {
            return "skipped: it is not at work";
        }
        let send = |name| place.daemon.as_ref().expect("it is at work").signal(name);
        match fault {
            Fault::Kill { away, renamed, .. } => {
                place.end();
                if renamed {
                    place.rename();
                }
                place.doing = Doing::Away(now + away);
            }
            Fault::Stop { away, .. } => {
                send("TERM");
                place.doing = Doing::Stopping(now, away);
            }
            Fault::Freeze { time, .. } => {
                send("STOP");
                place.doing = Doing::Frozen;
                self.undo.push((now + time, Undo::Continue(daemon)));
            }
            _ => unreachable!("no other fault is done to a process"),
        }
        ""
    }

    /// When the next thing is to be put right.
    pub(crate) fn next_due(&self) -> Option<Instant> {
        self.undo.iter().map(|(at, _)| *at).min()
    }

    /// Puts right what is due.
    pub(crate) fn put_right(&mut self, stage: &mut Stage, now: Instant) -> Result<(), String> {
        let (due, rest) = self.undo.drain(..).partition(|(at, _)| *at <= now);
        self.undo = rest;
        let due: Vec<(Instant, Undo)> = due;
        due.into_iter().try_for_each(|(_, undo)| put_right(stage, undo))
    }

    /// Puts everything right.
    pub(crate) fn end(&mut self, stage: &mut Stage) -> Result<(), String> {
        for (_, undo) in self.undo.drain(..) {
            put_right(stage, undo)?;
        }
        for daemon in 0..stage.places.len() {
            stage.places[daemon].proxies().iter().for_each(|proxy| proxy.let_all_pass());
            put_right(stage, Undo::Heal(daemon))?;
        }
        for locker in self.lockers.drain(..) {
            // What it could not lock does no harm.
            let _ = locker.join();
        }
        Ok(())
    }

    fn lock(&mut self, stage: &Stage, sql: String) {
        let url = stage.url();
        self.lockers.push(std::thread::spawn(move || {
            // Whatever keeps it from locking is another fault.
            let _ = execute(&url, &format!("SET lock_timeout = '2s'; {sql}"));
        }));
    }
}

fn put_right(stage: &mut Stage, undo: Undo) -> Result<(), String> {
    match undo {
        Undo::Continue(daemon) => {
            let place = &mut stage.places[daemon];
            // It may have been killed meanwhile.
            if place.doing == Doing::Frozen {
                place.doing = Doing::Running;
                place.daemon.as_ref().expect("who is frozen is there").signal("CONT");
            }
        }
        Undo::Heal(daemon) => {
            stage.places[daemon].set_weather(Weather::default());
            stage.places[daemon].proxies().iter().for_each(|proxy| proxy.heal());
        }
        Undo::Resume => {
            let resumed = (0..RESUMES).any(|_| backfilld(&stage.url(), &["resume", "chaos"]).code == 0);
            let ended = "SELECT FROM backfilld.job WHERE state = 'complete'";
            if !resumed && stage.ask(ended)?.is_empty() {
                return Err("the job cannot be resumed".to_owned());
            }
        }
    }
    Ok(())
}
