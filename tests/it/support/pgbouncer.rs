//! A real PgBouncer in transaction mode, in front of a server that the tests have started.

use std::fmt::Write as _;
use std::fs;
use std::net::{Ipv4Addr, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use super::guard::Guard;
use super::server::{self, Server, free_port};
use super::until;

const START_TIMEOUT: Duration = Duration::from_secs(10);

/// A running PgBouncer. It is killed when this value is dropped, and when the test process dies.
pub(crate) struct PgBouncer {
    port: u16,
    child: Child,
    guard: Guard,
    _folder: tempfile::TempDir,
}

impl PgBouncer {
    /// Starts one that has at most `server_sessions` sessions of `server` for each database, to be given to
    /// whoever has a transaction.
    pub(crate) fn start(server: &Server, server_sessions: u32) -> Self {
        let folder = tempfile::tempdir().expect("the temporary folder can be written to");
        let port = free_port();
        let users = folder.path().join("users.txt");
        let mut ini = String::new();
        write!(
            ini,
            "[databases]\n* = host=127.0.0.1 port={}\n\
             [pgbouncer]\npool_mode = transaction\nlisten_addr = 127.0.0.1\nlisten_port = {port}\n\
             unix_socket_dir =\nauth_type = trust\nauth_file = {}\n\
             default_pool_size = {server_sessions}\nmax_client_conn = 200\n",
            server.port(),
            users.display(),
        )
        .expect("a String takes every write");
        let file = folder.path().join("pgbouncer.ini");
        fs::write(&file, ini).expect("the folder is new");
        fs::write(&users, "\"postgres\" \"\"\n").expect("the folder is new");
        server::give_to_server_account(folder.path());

        let mut command = server::as_server_account(&program());
        command.arg("--quiet").arg(&file).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let child = command.spawn().expect("PgBouncer is installed; scripts/install-tools does it");
        let guard = Guard::start(r#"kill -KILL "$1""#, &[child.id().to_string()]);
        server::block_on(async || {
            until("PgBouncer to listen", START_TIMEOUT, async || {
                TcpStream::connect((Ipv4Addr::LOCALHOST, port)).ok()
            })
            .await
        });
        Self { port, child, guard, _folder: folder }
    }

    /// The TCP port on 127.0.0.1 it listens on.
    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// The process id.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The URL of a database by way of the pooler.
    pub(crate) fn url(&self, database: &str) -> String {
        format!("postgres://postgres@127.0.0.1:{}/{database}", self.port)
    }
}

impl Drop for PgBouncer {
    fn drop(&mut self) {
        // An error says that it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
        self.guard.dismiss();
    }
}

/// The version, as the program tells it.
pub(crate) fn version() -> String {
    let output = Command::new(program()).arg("--version").output().expect("PgBouncer can be run");
    String::from_utf8_lossy(&output.stdout).lines().next().unwrap_or_default().to_owned()
}

/// Debian has it where only root looks.
fn program() -> PathBuf {
    let folders = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&folders)
        .chain([PathBuf::from("/usr/sbin")])
        .map(|folder| folder.join("pgbouncer"))
        .find(|path| path.exists())
        .expect("PgBouncer is installed; scripts/install-tools does it")
}
