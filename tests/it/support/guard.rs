//! A small shell process that outlives the test process and cleans up after it.
//!
//! `Drop` does not run when a test process is killed, and never runs for a `static`. The kernel,
//! however, closes a dead process's pipes in every case. So each thing that must not be left behind
//! has a guard: a shell that reads from a pipe whose other end only the test process holds. At the
//! pipe's end the guard does its work.

use std::io::Write;
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStdin, Command, Stdio};

/// Runs a piece of shell when it is dropped or when this process dies, unless dismissed.
///
/// Processes started later do not keep the pipe open: the standard library opens every descriptor
/// close-on-exec.
pub(crate) struct Guard {
    shell: Child,
    pipe: Option<ChildStdin>,
}

impl Guard {
    /// Starts a guard that will run `work`, a shell script whose `$1`, `$2`... are `arguments`.
    pub(crate) fn start(work: &str, arguments: &[String]) -> Self {
        // A line on the pipe dismisses the guard, the pipe's end puts it to work.
        let script = format!("trap '' HUP INT TERM\nread -r _ && exit 0\n{work}");
        let mut shell = Command::new("sh")
            .args(["-c", &script, "guard"])
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .current_dir("/")
            // Ctrl-C goes to the terminal's whole foreground group: the guard must survive it.
            .process_group(0)
            .spawn()
            .expect("every Unix has sh");
        let pipe = shell.stdin.take();
        Self { shell, pipe }
    }

    /// Lets the guard go without doing its work: what it guarded is gone already.
    pub(crate) fn dismiss(&mut self) {
        if let Some(mut pipe) = self.pipe.take() {
            // A guard that somebody killed has nothing to be dismissed from.
            let _ = pipe.write_all(b"\n");
        }
    }
}

impl Drop for Guard {
    /// Puts the guard to work unless it was dismissed, and waits until it has done it.
    fn drop(&mut self) {
        drop(self.pipe.take());
        let _ = self.shell.wait();
    }
}
