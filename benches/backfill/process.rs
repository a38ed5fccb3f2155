//! CPU time and memory of processes, from `/proc`.

use std::fs;

/// The unit of times in `/proc/PID/stat`: `USER_HZ`, which is 100 on every architecture that
/// PostgreSQL's packages are built for, whatever the kernel's own clock.
const TICKS_PER_SECOND: f64 = 100.0;

/// The fields of `/proc/PID/stat` that are used here, times in seconds.
struct Stat {
    parent: u32,
    /// Its own time, user and system, all threads.
    own: f64,
    /// That of its children that have ended and were waited for.
    ended_children: f64,
}

/// Seconds of CPU time that a process has used so far, in user and system mode.
///
/// # Panics
/// When there is no such process.
pub(crate) fn cpu_seconds(pid: u32) -> f64 {
    stat(pid).unwrap_or_else(|| panic!("process {pid} has ended")).own
}

/// The most memory that a process has had at once so far (`VmHWM`), in MiB.
///
/// # Panics
/// When there is no such process.
pub(crate) fn peak_mebibytes(pid: u32) -> f64 {
    memory_mebibytes(pid, "VmHWM:")
}

/// The memory that a process has now (`VmRSS`), in MiB.
///
/// # Panics
/// When there is no such process.
pub(crate) fn resident_mebibytes(pid: u32) -> f64 {
    memory_mebibytes(pid, "VmRSS:")
}

/// What a line of `/proc/PID/status` says.
fn memory_mebibytes(pid: u32, name: &str) -> f64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))
        .unwrap_or_else(|error| panic!("process {pid} has ended: {error}"));
    let kibibytes = status
        .lines()
        .find_map(|line| line.strip_prefix(name)?.trim().strip_suffix(" kB")?.parse::<u32>().ok())
        .expect("Linux tells a process's memory");
    f64::from(kibibytes) / 1024.0
}

/// The processor time of the whole machine up to a moment.
#[derive(Debug, Clone, Copy)]
pub(crate) struct MachineTime {
    busy: f64,
    all: f64,
}

impl MachineTime {
    /// Up to now.
    pub(crate) fn now() -> Self {
        let text = fs::read_to_string("/proc/stat").expect("Linux has /proc");
        let line = text.lines().next().expect("the first line is that of all processors");
        // user nice system idle iowait irq softirq steal; what follows is part of user and nice.
        let times: Vec<f64> =
            line.split_whitespace().skip(1).take(8).filter_map(|field| field.parse().ok()).collect();
        let all: f64 = times.iter().sum();
        Self { busy: all - times[3] - times[4], all }
    }

    /// The share of all processors' time since `earlier` that was busy, 0 to 1.
    pub(crate) fn busy_since(self, earlier: Self) -> f64 {
        (self.busy - earlier.busy) / (self.all - earlier.all).max(1.0)
    }
}

/// All processes of one PostgreSQL server.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ServerProcesses {
    postmaster: u32,
}

impl ServerProcesses {
    /// Of the server that the process `backend`, a session's, belongs to.
    pub(crate) fn of_backend(backend: u32) -> Self {
        let postmaster = stat(backend).expect("the session's process lives while the session does").parent;
        Self { postmaster }
    }

    /// Seconds of CPU time that the server has used so far: the postmaster, what it has started and
    /// what of that has ended.
    ///
    /// A process that ends while this looks may be missed; at both ends of a measured span none does
    /// that has done any work.
    pub(crate) fn cpu_seconds(self) -> f64 {
        let live: f64 = fs::read_dir("/proc")
            .expect("Linux has /proc")
            .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
            .filter_map(stat)
            .filter(|process| process.parent == self.postmaster)
            .map(|process| process.own + process.ended_children)
            .sum();
        let postmaster = stat(self.postmaster).expect("the server runs");
        live + postmaster.own + postmaster.ended_children
    }
}

/// None when there is no such process (any more).
fn stat(pid: u32) -> Option<Stat> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field, the program's name in parentheses, may hold anything; the third comes next.
    let fields: Vec<&str> = text.rsplit_once(')')?.1.split_whitespace().collect();
    let seconds = |field: usize| -> Option<f64> {
        Some(fields.get(field - 3)?.parse::<f64>().ok()? / TICKS_PER_SECOND)
    };
    Some(Stat {
        parent: fields.get(1)?.parse().ok()?,
        own: seconds(14)? + seconds(15)?,
        ended_children: seconds(16)? + seconds(17)?,
    })
}
