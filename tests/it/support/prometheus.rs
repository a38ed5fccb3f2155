//! A real Prometheus that scrapes what the tests have started.

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::Value;

use super::guard::Guard;
use super::server::{self, free_port};
use super::until;

const START_TIMEOUT: Duration = Duration::from_secs(30);
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// A running Prometheus. It is killed when this value is dropped, and when the test process dies.
pub(crate) struct Prometheus {
    address: String,
    folder: tempfile::TempDir,
    child: Child,
    guard: Guard,
}

impl Prometheus {
    /// Starts one with these files: name and text, the first being its configuration.
    pub(crate) fn start(files: &[(&str, &str)]) -> Self {
        let prometheus = Self::spawn(files, &[]);
        server::block_on(async || {
            until("Prometheus to be ready", START_TIMEOUT, async || {
                prometheus.get("/-/ready").filter(|(status, _)| *status == 200)
            })
            .await
        });
        prometheus
    }

    /// Starts one that is asked by TLS only, with a certificate and its key as PEM text, and scrapes nothing.
    pub(crate) fn start_tls(certificate: &str, key: &str) -> Self {
        let web = "tls_server_config: {cert_file: certificate.pem, key_file: key.pem}";
        let files =
            [("prometheus.yml", ""), ("web.yml", web), ("certificate.pem", certificate), ("key.pem", key)];
        let prometheus = Self::spawn(&files, &["--web.config.file=web.yml"]);
        server::block_on(async || {
            until("Prometheus to listen", START_TIMEOUT, async || {
                TcpStream::connect(&prometheus.address).ok()
            })
            .await
        });
        prometheus
    }

    fn spawn(files: &[(&str, &str)], more: &[&str]) -> Self {
        let folder = tempfile::tempdir().expect("the temporary folder can be written to");
        for (name, text) in files {
            fs::write(folder.path().join(name), text).expect("the folder is new");
        }
        let address = format!("127.0.0.1:{}", free_port());
        let log = File::create(folder.path().join("log")).expect("the folder is new");
        let child = Command::new(program())
            .current_dir(folder.path())
            .arg(format!("--config.file={}", files[0].0))
            .arg(format!("--web.listen-address={address}"))
            .args(["--storage.tsdb.path=data", "--log.level=warn"])
            .args(more)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("Prometheus can be run");
        let guard = Guard::start(r#"kill -KILL "$1""#, &[child.id().to_string()]);
        Self { address, folder, child, guard }
    }

    /// Where it listens.
    pub(crate) fn port(&self) -> u16 {
        self.address.rsplit_once(':').and_then(|(_, port)| port.parse().ok()).expect("it has a port")
    }

    /// The series that the instant query has now, or what is wrong with it.
    pub(crate) fn query(&self, promql: &str) -> Result<Vec<Value>, String> {
        let query = utf8_percent_encode(promql, NON_ALPHANUMERIC);
        let answer = self.api(&format!("query?query={query}"));
        match &answer["data"]["result"] {
            // A scalar is a time and a value.
            Value::Array(result) if answer["data"]["resultType"] == "vector" => Ok(result.clone()),
            Value::Array(_) => Ok(vec![serde_json::json!({"metric": {}, "value": answer["data"]["result"]})]),
            _ => Err(answer["error"].as_str().unwrap_or("no error told").to_owned()),
        }
    }

    /// An answer of `/api/v1/`.
    pub(crate) fn api(&self, path: &str) -> Value {
        let (_, body) = self.get(&format!("/api/v1/{path}")).unwrap_or_else(|| {
            let log = fs::read_to_string(self.folder.path().join("log")).unwrap_or_default();
            panic!("Prometheus does not answer; its log:\n{log}")
        });
        serde_json::from_str(&body).expect("the API answers in JSON")
    }

    /// Status and body; none while it does not answer.
    fn get(&self, path: &str) -> Option<(u16, String)> {
        let mut stream = TcpStream::connect(&self.address).ok()?;
        stream.set_read_timeout(Some(ANSWER_TIMEOUT)).ok()?;
        // By HTTP/1.0 an answer comes in one piece.
        write!(stream, "GET {path} HTTP/1.0\r\nHost: {}\r\n\r\n", self.address).ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        let (head, body) = answer.split_once("\r\n\r\n")?;
        Some((head.split(' ').nth(1)?.parse().ok()?, body.to_owned()))
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        // An error says that it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
        self.guard.dismiss();
    }
}

fn program() -> PathBuf {
    let folders = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&folders)
        .map(|folder| folder.join("prometheus"))
        .find(|path| path.exists())
        .expect("Prometheus is installed; scripts/install-tools does it")
}
