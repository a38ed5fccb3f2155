//! The real `backfilld` program, run as a process: as a daemon to be watched, signalled and killed,
//! or as a command to be run to its end.
//!
//! The functions that wait block the calling thread, not only the task.

use std::io::{PipeReader, Read};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use super::guard::Guard;

/// The program under test, built by cargo.
const PROGRAM: &str = env!("CARGO_BIN_EXE_backfilld");

/// How long [`Daemon::stop`] waits for a graceful end.
const STOP_TIMEOUT: Duration = Duration::from_secs(30);

/// How many seconds [`backfilld`] lets a command run.
const COMMAND_TIMEOUT_SECONDS: u32 = 120;

/// An empty configuration file: the daemon must not read the machine's own.
const EMPTY_CONFIG: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/support/empty.toml");

/// A running `backfilld` process. It is killed when this value is dropped, and when the test process
/// dies.
pub(crate) struct Daemon {
    child: Child,
    /// Set once the process was waited for. From then on its id may be another process's.
    status: Option<ExitStatus>,
    output: Arc<Output>,
    guard: Guard,
}

/// What the process has written to standard output and standard error, in the order of writing.
#[derive(Default)]
struct Output {
    written: Mutex<Written>,
    changed: Condvar,
}

#[derive(Default)]
struct Written {
    bytes: Vec<u8>,
    /// Both streams are closed: the process has ended.
    ended: bool,
}

impl Daemon {
    /// Starts `backfilld run` on the database at `url`, with `arguments` after it. It does not wait
    /// for anything. Without a `--config` among the arguments the configuration is the default, and
    /// HTTP listens on any free port.
    pub(crate) fn start(url: &str, arguments: &[&str]) -> Self {
        Self::start_with(url, arguments, &[])
    }

    /// Like [`Daemon::start`], with environment variables such as
    /// `("BACKFILLD__LOG__LEVEL", "debug")`. An empty value takes a variable away that would be set
    /// otherwise.
    pub(crate) fn start_with(url: &str, arguments: &[&str], environment: &[(&str, &str)]) -> Self {
        Self::spawn(url, &[&["run"], arguments].concat(), environment)
    }

    /// Starts any command of `backfilld`, such as `["events", "--follow"]`, to be watched and ended
    /// like a daemon.
    pub(crate) fn spawn(url: &str, arguments: &[&str], environment: &[(&str, &str)]) -> Self {
        let (reader, writer) = std::io::pipe().expect("a pipe can be opened");
        let mut command = Command::new(PROGRAM);
        prepare(&mut command, url, arguments, environment);
        command.stdout(writer.try_clone().expect("a descriptor can be doubled")).stderr(writer);
        let child = command.spawn().expect("cargo has built the program");
        // The command holds this process's copies of the pipe's write end: while they are open the
        // reader would never see the end.
        drop(command);
        let guard = Guard::start(r#"kill -KILL "$1""#, &[child.id().to_string()]);
        let output = Arc::new(Output::default());
        thread::spawn({
            let output = Arc::clone(&output);
            move || output.collect(reader)
        });
        Self { child, status: None, output, guard }
    }

    /// The process id.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends `name`, such as `"TERM"`, `"HUP"`, `"USR1"`.
    pub(crate) fn signal(&self, name: &str) {
        assert!(self.status.is_none(), "SIG{name} cannot be sent: the process has ended\n{}", self.log());
        let sent = Command::new("kill")
            .args(["-s", name, &self.pid().to_string()])
            .stderr(Stdio::null())
            .status()
            .expect("every Unix has kill");
        // Until it is waited for, a process that has ended still has its id, and takes signals.
        assert!(sent.success(), "SIG{name} cannot be sent\n{}", self.log());
    }

    /// Kills the process with SIGKILL and waits until it is gone. Twice is safe.
    pub(crate) fn kill(&mut self) {
        // An error says that it has ended already.
        let _ = self.child.kill();
        self.status = self.child.wait().ok();
        self.guard.dismiss();
    }

    /// Asks the process to stop (SIGTERM) and waits up to 30 s until it has.
    pub(crate) fn stop(&mut self) -> ExitStatus {
        self.signal("TERM");
        self.wait_exit(STOP_TIMEOUT)
    }

    /// Waits for the process to end by itself.
    ///
    /// # Panics
    /// When it still runs after `timeout`; the message holds its log.
    pub(crate) fn wait_exit(&mut self, timeout: Duration) -> ExitStatus {
        let written = self.output.wait(timeout, |written| written.ended);
        assert!(written.ended, "backfilld still runs after {timeout:?}; its log:\n{}", written.text());
        drop(written);
        // With both streams closed it is about to end, if it has not.
        let status = self.child.wait().expect("the process is this one's child");
        self.status = Some(status);
        self.guard.dismiss();
        status
    }

    /// Whether the process has ended, or is about to.
    pub(crate) fn has_ended(&self) -> bool {
        self.output.lock().ended
    }

    /// Everything written to standard output and standard error so far.
    pub(crate) fn log(&self) -> String {
        self.output.lock().text()
    }

    /// Waits until the log holds `text`, also in what was written before the call, and returns the
    /// first complete line that has it.
    ///
    /// # Panics
    /// After `timeout`, or when the process ends without having written it; the message holds the log.
    pub(crate) fn wait_for_log(&self, text: &str, timeout: Duration) -> String {
        self.wait_for_log_after(0, text, timeout)
    }

    /// Like [`Daemon::wait_for_log`], but heeds only what stands after the first `offset` bytes of
    /// the log, a value that [`Daemon::log_len`] gave.
    pub(crate) fn wait_for_log_after(&self, offset: usize, text: &str, timeout: Duration) -> String {
        let written =
            self.output.wait(timeout, |written| written.ended || written.line_with(offset, text).is_some());
        written.line_with(offset, text).unwrap_or_else(|| {
            let end = if written.ended { "ended" } else { "went on for the whole time" };
            panic!("in {timeout:?} no log line had {text:?}; backfilld {end}, its log:\n{}", written.text())
        })
    }

    /// How many bytes the log has so far.
    pub(crate) fn log_len(&self) -> usize {
        self.output.lock().bytes.len()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.kill();
    }
}

impl Output {
    /// Reads `pipe` to its end.
    fn collect(&self, mut pipe: PipeReader) {
        let mut buffer = [0; 8192];
        loop {
            let count = pipe.read(&mut buffer).unwrap_or(0);
            let mut written = self.lock();
            written.bytes.extend_from_slice(&buffer[..count]);
            written.ended = count == 0;
            let ended = written.ended;
            drop(written);
            self.changed.notify_all();
            if ended {
                return;
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Written> {
        // A test that panicked while it held the lock had only read.
        self.written.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until `enough` holds or `timeout` has passed.
    fn wait(&self, timeout: Duration, enough: impl Fn(&Written) -> bool) -> MutexGuard<'_, Written> {
        self.changed
            .wait_timeout_while(self.lock(), timeout, |written| !enough(written))
            .unwrap_or_else(PoisonError::into_inner)
            .0
    }
}

impl Written {
    fn text(&self) -> String {
        String::from_utf8_lossy(&self.bytes).into_owned()
    }

    /// The first line after `offset` that holds `text` and is complete.
    fn line_with(&self, offset: usize, text: &str) -> Option<String> {
        let from = self.bytes.get(offset..).unwrap_or_default();
        String::from_utf8_lossy(from)
            .split_inclusive('\n')
            .find(|line| line.contains(text) && (line.ends_with('\n') || self.ended))
            .map(|line| line.trim_end().to_owned())
    }
}

/// How a command ended and what it said.
#[derive(Debug)]
pub(crate) struct Run {
    /// The exit code.
    pub(crate) code: i32,
    /// Standard output.
    pub(crate) stdout: String,
    /// Standard error.
    pub(crate) stderr: String,
}

/// Runs `backfilld` with `arguments`, such as `["status", "--json"]`, on the database at `url` (none
/// when empty) to its end.
///
/// # Panics
/// When it runs for more than 120 s, or ends by a signal.
pub(crate) fn backfilld(url: &str, arguments: &[&str]) -> Run {
    backfilld_with(url, arguments, &[])
}

/// Like [`backfilld`], with environment variables.
pub(crate) fn backfilld_with(url: &str, arguments: &[&str], environment: &[(&str, &str)]) -> Run {
    // timeout(1) also ends the command when this process is killed, if late.
    let mut command = Command::new("timeout");
    command.args(["--foreground", "--signal=KILL", &COMMAND_TIMEOUT_SECONDS.to_string(), PROGRAM]);
    prepare(&mut command, url, arguments, environment);
    let output = command.output().expect("every Linux has timeout");
    let (stdout, stderr) = (lossy(output.stdout), lossy(output.stderr));
    let code = output.status.code().unwrap_or_else(|| {
        let signal = output.status.signal();
        panic!("backfilld {arguments:?} ended by signal {signal:?} (9: it hung)\n{stdout}\n{stderr}")
    });
    Run { code, stdout, stderr }
}

/// Adds arguments and environment. The database and the configuration stand after the subcommand's
/// name, where every command takes them.
fn prepare(command: &mut Command, url: &str, arguments: &[&str], environment: &[(&str, &str)]) {
    // What the caller's shell has set would make a test's outcome depend on it.
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        if text.starts_with("BACKFILLD") || text.starts_with("PG") || text == "DATABASE_URL" {
            command.env_remove(&name);
        }
    }
    command.env("BACKFILLD__HTTP__LISTEN", "127.0.0.1:0");
    // The adaptive throttle has tests of its own. All others want their rows to go at once, also on a
    // machine that is busy with other tests.
    command.env("BACKFILLD__THROTTLE__TICK", "100ms");
    command.env("BACKFILLD__THROTTLE__START_ROWS_PER_SECOND", "1000000000");
    command.env("BACKFILLD__THROTTLE__QUERY_LATENCY__MAX_P99", "1h");
    for (name, value) in environment {
        // Empty: whatever stands above, it is not set.
        if value.is_empty() {
            command.env_remove(name)
        } else {
            command.env(name, value)
        };
    }
    command.stdin(Stdio::null());

    let Some((subcommand, rest)) = arguments.split_first() else { return };
    command.arg(subcommand);
    if !url.is_empty() {
        command.args(["--database-url", url]);
    }
    let bare = url.is_empty() || arguments.iter().any(|argument| argument.starts_with("--config"));
    if !bare {
        command.args(["--config", EMPTY_CONFIG]);
    }
    command.args(rest);
}

fn lossy(bytes: Vec<u8>) -> String {
    String::from_utf8(bytes).unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned())
}
