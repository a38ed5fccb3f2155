//! A `PgBouncer` in transaction mode before the server.

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use crate::process;
use crate::support::server::{Server, free_port};
use crate::support::until;
use crate::tool::{Scratch, Tool, utf8};

const START_TIMEOUT: Duration = Duration::from_secs(30);

/// A running `PgBouncer`, with its default settings but for where it listens and how it pools. It is
/// killed when this value is dropped.
pub(crate) struct Pooler {
    port: u16,
    tool: Tool,
    _folder: Scratch,
}

impl Pooler {
    /// Starts one for all databases of `server`, and returns when it takes connections.
    pub(crate) async fn start(server: &Server) -> Self {
        let folder = Scratch::new();
        let port = free_port();
        let settings = folder.write(
            "pgbouncer.ini",
            &format!(
                "[databases]\n\
                 * = host=127.0.0.1 port={} user=postgres\n\
                 [pgbouncer]\n\
                 listen_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\n\
                 ; Nobody is asked for a password: the server does not either.\n\
                 auth_type = any\npool_mode = transaction\n",
                server.port()
            ),
        );
        // Whoever it runs as must be able to read its settings; there is no secret in them.
        let folder_of_settings = settings.parent().expect("a file is in a folder");
        fs::set_permissions(folder_of_settings, Permissions::from_mode(0o755))
            .expect("the folder is our own");
        let program = program();
        let root = fs::metadata("/proc/self").expect("Linux has /proc").uid() == 0;
        // It refuses to run as root.
        let tool = if root {
            let arguments = ["--reuid=postgres", "--regid=postgres", "--clear-groups"];
            let arguments = [&arguments[..], &[utf8(&program), utf8(&settings)]].concat();
            Tool::start(&find("setpriv"), &arguments, folder.path("log"))
        } else {
            Tool::start(&program, &[utf8(&settings)], folder.path("log"))
        };
        let pooler = Self { port, tool, _folder: folder };
        let url = pooler.url("postgres");
        until("PgBouncer to take connections", START_TIMEOUT, async || {
            tokio_postgres::connect(&url, tokio_postgres::NoTls).await.ok().map(|_| ())
        })
        .await;
        pooler
    }

    /// The connection URL of the database `dbname` through it.
    pub(crate) fn url(&self, dbname: &str) -> String {
        format!("postgres://postgres@127.0.0.1:{}/{dbname}", self.port)
    }

    /// What it has used so far.
    pub(crate) fn cpu_seconds(&self) -> f64 {
        process::cpu_seconds(self.tool.pid())
    }

    /// Its version, as it tells it.
    pub(crate) fn version() -> String {
        let output = Command::new(program()).arg("--version").output().expect("PgBouncer can be run");
        String::from_utf8_lossy(&output.stdout).lines().next().unwrap_or_default().to_owned()
    }
}

fn program() -> PathBuf {
    find("pgbouncer")
}

/// Where a program is. Debian keeps servers where only root's PATH has them.
fn find(name: &str) -> PathBuf {
    let folders = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&folders)
        .chain([PathBuf::from("/usr/sbin")])
        .map(|folder| folder.join(name))
        .find(|path| path.exists())
        .unwrap_or_else(|| panic!("{name} is not there; scripts/install-tools installs it"))
}
