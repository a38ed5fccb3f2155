//! Throwaway PostgreSQL servers: real ones, on a free loopback port, in a temporary folder.
//!
//! The functions here block the calling thread, for about a second where a server starts. The
//! daemon under test is a process of its own and does not mind.

use std::ffi::OsStr;
use std::fmt::Write as _;
use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::Duration;

use super::guard::Guard;

/// Seconds that `pg_ctl` waits for a server; crash recovery on a busy machine is the slowest part.
const PG_CTL_TIMEOUT_SECONDS: &str = "120";

/// How often a start is tried, each time on another port: between finding a free port and the
/// server's taking it, somebody else may have.
const START_ATTEMPTS: u32 = 5;

/// How long a new replica may take until it streams.
const STREAMING_TIMEOUT: Duration = Duration::from_secs(60);

/// How long a server may take to read its configuration again.
const RELOAD_TIMEOUT: Duration = Duration::from_secs(30);

/// What every server has, unless a test's settings say otherwise. There is no Unix socket: the path
/// of one in a deep temporary folder can be too long.
const DEFAULT_SETTINGS: [(&str, &str); 4] = [
    ("listen_addresses", "127.0.0.1"),
    ("unix_socket_directories", ""),
    ("max_connections", "200"),
    ("log_min_messages", "warning"),
];

/// Stops the server in `$1/data` by the command in `$2`... and removes the folder `$1`. Removing is
/// repeated since an `initdb` that was under way goes on creating files until it sees them vanish.
const CLEAN_UP: &str = r#"
dir=$1
shift
"$@"
tries=0
while [ -e "$dir" ] && [ "$tries" -lt 100 ]; do
    rm -rf -- "$dir"
    tries=$((tries + 1))
done
"#;

/// A PostgreSQL server that lives as long as this value, and never longer than the test process.
///
/// Its superuser is `postgres`, without a password, from this machine only. When the tests run as
/// root, which PostgreSQL refuses, the server runs as the system's user `postgres`.
pub(crate) struct Server {
    port: u16,
    folder: PathBuf,
    /// Stops the server and removes `folder` when it is dropped.
    guard: Guard,
}

/// One server for the whole test process, for tests that need a database but not a server of their
/// own. It does not sync to disk: no test may restart it.
pub(crate) fn shared() -> &'static Server {
    static SHARED: OnceLock<Server> = OnceLock::new();
    SHARED.get_or_init(|| {
        Server::start_with(&[("fsync", "off"), ("full_page_writes", "off"), ("shared_buffers", "256MB")])
    })
}

impl Server {
    /// Starts a primary with PostgreSQL's default settings, 200 connections.
    pub(crate) fn start() -> Self {
        Self::start_with(&[])
    }

    /// Starts a primary with `settings` in its `postgresql.conf`, such as
    /// `("shared_buffers", "256MB")`.
    pub(crate) fn start_with(settings: &[(&str, &str)]) -> Self {
        let mut server = Self::prepare();
        let data = server.data();
        run(
            "initdb",
            &[
                OsStr::new("--pgdata"),
                data.as_os_str(),
                OsStr::new("--username=postgres"),
                OsStr::new("--auth=trust"),
                OsStr::new("--encoding=UTF8"),
                // The same on every machine; tests of other collations name them.
                OsStr::new("--locale=C.UTF-8"),
                OsStr::new("--no-sync"),
            ],
        );
        for (name, value) in DEFAULT_SETTINGS.iter().chain(settings) {
            server.configure(name, value);
        }
        server.first_start();
        server
    }

    /// Starts a hot standby of this server and returns when it streams. It is stopped and removed
    /// with the value returned, which should be dropped before the primary.
    pub(crate) fn start_replica(&self) -> Self {
        let mut replica = Self::prepare();
        let data = replica.data();
        let port = self.port.to_string();
        run(
            "pg_basebackup",
            &[
                OsStr::new("--pgdata"),
                data.as_os_str(),
                OsStr::new("--host=127.0.0.1"),
                OsStr::new("--port"),
                OsStr::new(&port),
                OsStr::new("--username=postgres"),
                OsStr::new("--wal-method=stream"),
                OsStr::new("--checkpoint=fast"),
                OsStr::new("--no-sync"),
            ],
        );
        // Not by pg_basebackup's own option: it may be newer than the server, and write what that does not know.
        let primary = format!("host=127.0.0.1 port={port} user=postgres");
        replica.configure("primary_conninfo", &primary);
        std::fs::write(data.join("standby.signal"), "").expect("the folder was just made");
        replica.first_start();
        let url = replica.url("postgres");
        block_on(async || {
            let client = super::database::connect(&url).await;
            super::until("a new replica to stream", STREAMING_TIMEOUT, async || {
                client
                    .query_opt("SELECT FROM pg_stat_wal_receiver WHERE status = 'streaming'", &[])
                    .await
                    .expect("a superuser can read pg_stat_wal_receiver")
            })
            .await;
        });
        replica
    }

    /// The TCP port on 127.0.0.1.
    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// The connection URL of the database `dbname`, as the superuser.
    pub(crate) fn url(&self, dbname: &str) -> String {
        format!("postgres://postgres@127.0.0.1:{}/{dbname}", self.port)
    }

    /// Restarts the server as after a crash: every session is cut, what was not flushed is lost, and
    /// the server recovers from its WAL. Returns when it takes connections again.
    pub(crate) fn restart_immediate(&self) {
        self.pg_ctl("restart", &["-m", "immediate"]);
    }

    /// Restarts the server in order: every session is cut, nothing is lost.
    pub(crate) fn restart_fast(&self) {
        self.pg_ctl("restart", &["-m", "fast"]);
    }

    /// Stops the server, cutting every session (`pg_ctl stop -m fast`).
    pub(crate) fn stop(&self) {
        self.pg_ctl("stop", &["-m", "fast"]);
    }

    /// Stops the server as a crash does (`pg_ctl stop -m immediate`): nothing is flushed, and nobody told.
    pub(crate) fn stop_immediate(&self) {
        self.pg_ctl("stop", &["-m", "immediate"]);
    }

    /// Makes a primary of a replica, and returns when it takes writes.
    pub(crate) fn promote(&self) {
        self.pg_ctl("promote", &[]);
    }

    /// A folder that goes away with the server, for files that belong to it.
    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    /// Puts `text` before the rules of the server's `pg_hba.conf`. It takes effect when the server reads
    /// its configuration again.
    pub(crate) fn admit(&self, text: &str) {
        let path = self.data().join("pg_hba.conf");
        let rules = fs::read_to_string(&path).expect("initdb has written pg_hba.conf");
        fs::write(path, format!("{text}\n{rules}")).expect("the server's files can be written");
    }

    /// Has the server talk TLS by this certificate and key, both as PEM text, from its next connection on.
    pub(crate) fn serve_tls(&self, certificate: &str, key: &str) {
        for (name, text) in [("server.crt", certificate), ("server.key", key)] {
            let path = self.data().join(name);
            fs::write(&path, text).expect("the server's folder can be written to");
            fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("the file is ours");
            if let Some((uid, gid)) = server_account() {
                std::os::unix::fs::chown(&path, Some(uid), Some(gid)).expect("root may give a file away");
            }
        }
        self.configure("ssl", "on");
        self.reload();
    }

    /// Has the server read its configuration again, and returns when new connections follow it.
    pub(crate) fn reload(&self) {
        let (url, before) = (self.url("postgres"), self.log().matches("SIGHUP").count());
        block_on(async || {
            let client = super::database::connect(&url).await;
            client.execute("SELECT pg_reload_conf()", &[]).await.expect("a superuser can do this");
        });
        block_on(async || {
            super::until("the server to reload", RELOAD_TIMEOUT, async || {
                (self.log().matches("SIGHUP").count() > before).then_some(())
            })
            .await;
        });
    }

    /// Starts the server again after [`Server::stop`], on the same port.
    pub(crate) fn start_again(&self) {
        self.pg_ctl("start", &[]);
    }

    /// Sets `name` to `value` in the server's configuration file. It takes effect when the server
    /// starts, or reads its configuration again.
    pub(crate) fn configure(&self, name: &str, value: &str) {
        let mut line = String::new();
        writeln!(line, "{name} = '{}'", value.replace('\'', "''")).expect("a String takes every write");
        OpenOptions::new()
            .append(true)
            .open(self.data().join("postgresql.conf"))
            .and_then(|mut file| file.write_all(line.as_bytes()))
            .expect("the server's configuration file exists and can be written");
    }

    /// The server's own log up to now.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.log_file()).unwrap_or_default()
    }

    /// Makes the folder of a server and sets its guard, before anything runs in it.
    fn prepare() -> Self {
        let folder = tempfile::Builder::new()
            .prefix("backfilld-postgres-")
            .tempdir()
            .expect("the temporary folder can be written to")
            .keep();
        give_to_server_account(&folder);
        let data = folder.join("data");
        let stop = command(
            "pg_ctl",
            &[
                OsStr::new("stop"),
                OsStr::new("-m"),
                OsStr::new("immediate"),
                OsStr::new("-D"),
                data.as_os_str(),
            ],
        );
        let mut arguments = vec![utf8(folder.as_os_str())];
        arguments.push(utf8(stop.get_program()));
        arguments.extend(stop.get_args().map(utf8));
        let guard = Guard::start(CLEAN_UP, &arguments);
        Self { port: 0, folder, guard }
    }

    /// Starts a server that has no port yet.
    fn first_start(&mut self) {
        for attempt in 1.. {
            self.port = free_port();
            // The last mention of a setting counts, so a replica's port replaces its primary's.
            self.configure("port", &self.port.to_string());
            match self.try_pg_ctl("start", &[]) {
                Ok(()) => return,
                Err(reason) if attempt == START_ATTEMPTS => panic!("{reason}"),
                Err(_) => {}
            }
        }
    }

    fn data(&self) -> PathBuf {
        self.folder.join("data")
    }

    fn log_file(&self) -> PathBuf {
        self.folder.join("log")
    }

    fn pg_ctl(&self, action: &str, options: &[&str]) {
        if let Err(reason) = self.try_pg_ctl(action, options) {
            panic!("{reason}");
        }
    }

    fn try_pg_ctl(&self, action: &str, options: &[&str]) -> Result<(), String> {
        let (data, log) = (self.data(), self.log_file());
        let mut arguments = vec![OsStr::new(action), OsStr::new("-D"), data.as_os_str()];
        if action == "start" || action == "restart" {
            // Without a log file the server would hold pg_ctl's output open, and so this call.
            arguments.extend([OsStr::new("-l"), log.as_os_str()]);
        }
        arguments.extend(["-w", "-t", PG_CTL_TIMEOUT_SECONDS].map(OsStr::new));
        arguments.extend(options.iter().map(OsStr::new));
        try_run("pg_ctl", &arguments).map_err(|reason| format!("{reason}\nthe server's log:\n{}", self.log()))
    }
}

/// Runs `work` to its end in a runtime of its own, on a thread of its own: blocking code may be
/// called from inside a test's runtime, where a second one may not be started.
pub(crate) fn block_on<T: Send>(work: impl AsyncFnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .expect("a runtime can be built")
                .block_on(work())
        });
        match thread.join() {
            Ok(value) => value,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}

/// A TCP port that nothing listens on right now.
pub(crate) fn free_port() -> u16 {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
        .and_then(|listener| listener.local_addr())
        .expect("the loopback interface has a free port")
        .port()
}

/// Runs one of PostgreSQL's programs; it must succeed.
fn run(program: &str, arguments: &[&OsStr]) {
    if let Err(reason) = try_run(program, arguments) {
        panic!("{reason}");
    }
}

fn try_run(program: &str, arguments: &[&OsStr]) -> Result<(), String> {
    let output = command(program, arguments)
        .output()
        .map_err(|error| format!("{program} cannot be run ({error}); scripts/install-deps installs it"))?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!(
        "{program} failed, {}:\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    ))
}

/// One of PostgreSQL's programs with its arguments, to be run as the account that servers run as.
fn command(program: &str, arguments: &[&OsStr]) -> Command {
    let mut command = as_server_account(&programs().join(program));
    command.args(arguments);
    command
}

/// A program, to be run as the account that servers run as: they refuse to be run by root.
pub(crate) fn as_server_account(program: &Path) -> Command {
    let mut command = if let Some((uid, gid)) = server_account() {
        let mut command = Command::new("setpriv");
        command.args([format!("--reuid={uid}"), format!("--regid={gid}")]);
        command.arg("--clear-groups").arg(program);
        command
    } else {
        Command::new(program)
    };
    // The folder that the tests run in may be closed to that account.
    command.current_dir("/");
    command
}

/// Lets that account use `folder`.
pub(crate) fn give_to_server_account(folder: &Path) {
    if let Some((uid, gid)) = server_account() {
        std::os::unix::fs::chown(folder, Some(uid), Some(gid)).expect("root may give a folder away");
    }
}

/// Where a program of PostgreSQL's is, for one that is run as the account of the tests: `pgbench`.
pub(crate) fn program(name: &str) -> PathBuf {
    programs().join(name)
}

/// The folder of PostgreSQL's programs: what `TEST_POSTGRES_BINDIR` says, else `pg_config`, else Debian's newest.
fn programs() -> &'static Path {
    static PROGRAMS: OnceLock<PathBuf> = OnceLock::new();
    PROGRAMS.get_or_init(|| {
        if let Some(folder) = std::env::var_os("TEST_POSTGRES_BINDIR") {
            return PathBuf::from(folder);
        }
        let said = Command::new("pg_config").arg("--bindir").output().ok();
        let said = said.map(|output| PathBuf::from(String::from_utf8_lossy(&output.stdout).trim()));
        // pg_config comes with libpq too, where there may be no server beside it.
        said.into_iter()
            .chain(debian_programs())
            .find(|folder| folder.join("initdb").exists())
            .expect("PostgreSQL's server is installed; scripts/install-deps does it")
    })
}

/// Debian keeps each version's programs apart; newest first.
fn debian_programs() -> Vec<PathBuf> {
    let mut versions: Vec<u32> = fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .collect();
    versions.sort_unstable_by(|a, b| b.cmp(a));
    versions.iter().map(|version| PathBuf::from(format!("/usr/lib/postgresql/{version}/bin"))).collect()
}

/// User and group that servers run as when that is not who runs the tests.
fn server_account() -> Option<(u32, u32)> {
    static ACCOUNT: OnceLock<Option<(u32, u32)>> = OnceLock::new();
    *ACCOUNT.get_or_init(|| {
        let myself = fs::metadata("/proc/self").expect("Linux has /proc").uid();
        (myself == 0).then(|| (id_of_postgres("-u"), id_of_postgres("-g")))
    })
}

fn id_of_postgres(which: &str) -> u32 {
    let output = Command::new("id").args([which, "postgres"]).output().expect("every Unix has id");
    String::from_utf8_lossy(&output.stdout)
        .trim()
        .parse()
        .expect("PostgreSQL's package has made the user postgres; scripts/install-deps installs it")
}

fn utf8(text: &OsStr) -> String {
    text.to_str().expect("paths of temporary folders and programs are UTF-8").to_owned()
}
