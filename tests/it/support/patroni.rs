//! A real Patroni cluster: two PostgreSQL servers, each led by a Patroni of its own, and one etcd that
//! they agree in, all on loopback. Who is the primary is theirs to decide; a test asks for a switchover,
//! or kills.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use tokio_postgres::{Client, NoTls};

use super::guard::Guard;
use super::server::{as_server_account, give_to_server_account, program};
use super::until;

/// How long two servers may take from nothing to streaming; `initdb` and a base backup are in it.
const START_TIMEOUT: Duration = Duration::from_secs(120);

/// How many seconds `patronictl` may take for a switchover: it returns when there is a new primary.
const SWITCHOVER_TIMEOUT_SECONDS: &str = "120";

/// Patroni's name of the cluster.
const SCOPE: &str = "cluster";

/// Ends what has left its process id in a folder below `$1`, first what would start servers again, then
/// the servers, by the command in `$2`... and a data folder. Then it removes `$1`, as often as it takes:
/// an `initdb` that was under way goes on creating files until it sees them vanish.
const CLEAN_UP: &str = r#"
dir=$1
shift
for file in "$dir"/*/pid; do
    kill -KILL "$(cat "$file")"
done
for data in "$dir"/*/data; do
    # A server that was frozen would not hear that it is to stop.
    kill -CONT "$(head -n 1 "$data/postmaster.pid")"
    "$@" "$data"
done
tries=0
while [ -e "$dir" ] && [ "$tries" -lt 100 ]; do
    rm -rf -- "$dir"
    tries=$((tries + 1))
done
"#;

/// The cluster. All of it ends with this value, or with the test process.
pub(crate) struct Cluster {
    folder: PathBuf,
    nodes: [Node; 2],
    /// Not waited for, and neither are those of the nodes: so no id in a `pid` file becomes a stranger's.
    _etcd: Child,
    /// Ends all processes and removes `folder` when it is dropped.
    _guard: Guard,
}

struct Node {
    name: &'static str,
    folder: PathBuf,
    port: u16,
    patroni: Child,
}

impl Cluster {
    /// Starts it, and returns when one server streams from the other. Patroni's times are the shortest that it
    /// allows: a primary that vanishes is replaced after 20 s.
    pub(crate) async fn start() -> Self {
        let folder = tempfile::Builder::new()
            .prefix("backfilld-patroni-")
            .tempdir()
            .expect("the temporary folder can be written to")
            .keep();
        give_to_server_account(&folder);
        let stop = pg_ctl_stop();
        let words = [folder.as_os_str(), stop.get_program()].into_iter().chain(stop.get_args());
        let words: Vec<String> =
            words.map(|word| word.to_str().expect("paths are UTF-8").to_owned()).collect();
        let guard = Guard::start(CLEAN_UP, &words);

        let [client, peer, rest1, rest2, port1, port2] = free_ports();
        let etcd = start_etcd(&folder, client, peer);
        let nodes = [("node1", rest1, port1), ("node2", rest2, port2)]
            .map(|(name, rest, port)| Node::start(&folder, name, rest, port, client));
        let cluster = Self { folder, nodes, _etcd: etcd, _guard: guard };
        until("a replica to stream from a primary", START_TIMEOUT, async || {
            let client = cluster.primary_now().await?.1;
            // The copy that a replica begins with streams too.
            let streams = "SELECT FROM pg_stat_replication \
                 WHERE state = 'streaming' AND application_name LIKE 'node%'";
            client.query_opt(streams, &[]).await.ok().flatten()
        })
        .await;
        cluster
    }

    /// The URL of the database `name` that has both servers in it.
    pub(crate) fn url(&self, name: &str) -> String {
        let [first, second] = &self.nodes;
        format!("postgres://postgres@127.0.0.1:{},127.0.0.1:{}/{name}", first.port, second.port)
    }

    /// The URL of the database `name` on one server.
    pub(crate) fn url_on(&self, node: usize, name: &str) -> String {
        format!("postgres://postgres@127.0.0.1:{}/{name}", self.nodes[node].port)
    }

    /// The server that takes writes. There must be one.
    pub(crate) async fn primary(&self) -> usize {
        self.primary_now().await.expect("one of the servers is the primary").0
    }

    /// Asks Patroni to make the other server the primary. The thread ends when Patroni has done it.
    pub(crate) fn switch_over(&self, from: usize) -> JoinHandle<()> {
        let [from, to] = [&self.nodes[from], &self.nodes[1 - from]];
        let mut command = Command::new("timeout");
        command
            .args(["--foreground", SWITCHOVER_TIMEOUT_SECONDS, "patronictl", "--config-file"])
            .arg(from.folder.join("patroni.yml"))
            .args(["switchover", SCOPE, "--force", "--leader", from.name, "--candidate", to.name])
            .env("HOME", &self.folder);
        thread::spawn(move || {
            let output = command.output().expect("every Linux has timeout");
            let said = String::from_utf8_lossy(&output.stdout);
            let complained = String::from_utf8_lossy(&output.stderr);
            assert!(said.contains("Successfully switched over"), "{said}{complained}");
        })
    }

    /// Kills a server and its Patroni with SIGKILL, which is how a process ends that took too much memory.
    pub(crate) fn kill(&mut self, node: usize) {
        let node = &mut self.nodes[node];
        // First the one that would start the other again.
        node.patroni.kill().expect("Patroni runs");
        signal("KILL", &[node.server_id()]);
        // The id may become another process's, and the guard reads this file.
        fs::remove_file(node.id_file()).expect("the server's folder can be written to");
    }

    /// Stops a server, its sessions and its Patroni with SIGSTOP: to all others it is as if the machine
    /// had gone. Connections stay open, new ones are taken by the kernel, and nobody answers.
    pub(crate) fn freeze(&self, node: usize) {
        let node = &self.nodes[node];
        let server = node.server_id();
        signal("STOP", &[node.patroni.id().to_string(), server.clone()]);
        // Nobody starts sessions any more.
        let file = format!("/proc/{server}/task/{server}/children");
        let sessions = fs::read_to_string(file).expect("Linux tells a process's children");
        signal("STOP", &sessions.split_whitespace().map(str::to_owned).collect::<Vec<_>>());
    }

    /// The server that takes writes just now, and a connection to it.
    async fn primary_now(&self) -> Option<(usize, Client)> {
        for node in 0..self.nodes.len() {
            if let Some(client) = writable(&self.url_on(node, "postgres")).await {
                return Some((node, client));
            }
        }
        None
    }
}

impl Drop for Cluster {
    /// Nobody could read the logs later.
    fn drop(&mut self) {
        if !thread::panicking() {
            return;
        }
        for name in ["etcd", "node1", "node2"] {
            let log = fs::read(self.folder.join(name).join("log")).unwrap_or_default();
            eprintln!("--- the log of {name}:\n{}", String::from_utf8_lossy(&log));
        }
    }
}

impl Node {
    fn start(cluster: &Path, name: &'static str, rest: u16, port: u16, etcd: u16) -> Self {
        let folder = new_folder(cluster, name);
        let settings = folder.join("patroni.yml");
        fs::write(&settings, configuration(&folder, name, rest, port, etcd)).expect("the folder is new");
        let patroni = start(&folder, "patroni", &[settings.as_os_str()]);
        Self { name, folder, port, patroni }
    }

    /// The file in which the server says who it is.
    fn id_file(&self) -> PathBuf {
        self.folder.join("data/postmaster.pid")
    }

    /// The server's process id.
    fn server_id(&self) -> String {
        let text = fs::read_to_string(self.id_file()).expect("a running server has this file");
        text.lines().next().expect("its first line is the process id").to_owned()
    }
}

fn signal(name: &str, ids: &[String]) {
    let sent = Command::new("kill").args(["-s", name]).args(ids).status().expect("every Unix has kill");
    assert!(sent.success(), "SIG{name} cannot be sent to {ids:?}");
}

/// A connection to the server at `url`, unless it cannot be reached or takes no writes.
pub(crate) async fn writable(url: &str) -> Option<Client> {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await.ok()?;
    tokio::spawn(connection);
    let writes = client.query_one("SELECT NOT pg_is_in_recovery()", &[]).await.ok()?.get(0);
    Some(client).filter(|_| writes)
}

fn start_etcd(cluster: &Path, client: u16, peer: u16) -> Child {
    let folder = new_folder(cluster, "etcd");
    let (client, peer) = (format!("http://127.0.0.1:{client}"), format!("http://127.0.0.1:{peer}"));
    let own = format!("default={peer}");
    let store = folder.join("store");
    let arguments = [
        ("--listen-client-urls", OsStr::new(&client)),
        ("--advertise-client-urls", OsStr::new(&client)),
        ("--listen-peer-urls", OsStr::new(&peer)),
        ("--initial-advertise-peer-urls", OsStr::new(&peer)),
        ("--initial-cluster", OsStr::new(&own)),
        ("--data-dir", store.as_os_str()),
    ];
    let arguments: Vec<&OsStr> =
        arguments.iter().flat_map(|(name, value)| [OsStr::new(*name), value]).collect();
    start(&folder, "etcd", &arguments)
}

/// What a Patroni reads. Below `bootstrap` stands what holds for the whole cluster.
fn configuration(folder: &Path, name: &str, rest: u16, port: u16, etcd: u16) -> String {
    let programs = program("postgres");
    let programs = programs.parent().expect("a program is in a folder");
    let (folder, programs) = (folder.display(), programs.display());
    format!(
        "scope: {SCOPE}
name: {name}
restapi: {{listen: '127.0.0.1:{rest}', connect_address: '127.0.0.1:{rest}'}}
etcd3: {{hosts: '127.0.0.1:{etcd}'}}
bootstrap:
  dcs: {{ttl: 20, loop_wait: 1, retry_timeout: 3, postgresql: {{use_pg_rewind: true}}}}
  initdb: [encoding: UTF8, locale: C.UTF-8, auth: trust]
postgresql:
  listen: '127.0.0.1:{port}'
  connect_address: '127.0.0.1:{port}'
  data_dir: '{folder}/data'
  bin_dir: '{programs}'
  pgpass: '{folder}/pgpass'
  authentication: {{superuser: {{username: postgres}}, replication: {{username: postgres}}}}
  parameters: {{unix_socket_directories: ''}}
"
    )
}

/// Starts a program that writes its log, and before anything else its process id, to files in `folder`.
fn start(folder: &Path, program: &str, arguments: &[&OsStr]) -> Child {
    let log = File::create(folder.join("log")).expect("the folder is new");
    let mut command = as_server_account(Path::new("sh"));
    command
        .args(["-c", r#"echo $$ >"$1" && shift && exec "$@""#, "start"])
        .arg(folder.join("pid"))
        .arg(program)
        .args(arguments)
        .env("HOME", folder)
        .stdin(Stdio::null())
        .stdout(log.try_clone().expect("a descriptor can be doubled"))
        .stderr(log);
    command.spawn().expect("every Unix has sh")
}

fn pg_ctl_stop() -> Command {
    let mut command = as_server_account(&program("pg_ctl"));
    command.args(["stop", "-m", "immediate", "-D"]);
    command
}

fn new_folder(cluster: &Path, name: &str) -> PathBuf {
    let folder = cluster.join(name);
    fs::create_dir(&folder).expect("the cluster's folder is new");
    give_to_server_account(&folder);
    folder
}

/// TCP ports that nothing listens on right now, no two of them the same.
fn free_ports<const COUNT: usize>() -> [u16; COUNT] {
    let free =
        |_| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("the loopback interface has a free port");
    let listeners: [TcpListener; COUNT] = std::array::from_fn(free);
    listeners.map(|listener| listener.local_addr().expect("it is bound").port())
}
