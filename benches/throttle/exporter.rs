//! A tiny exporter: one gauge that the benchmark sets, and an answer for whoever asks it instead of a
//! Prometheus.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime};

use crate::audit::since_1970;

/// The gauge's name.
pub(crate) const GAUGE: &str = "app_latency_seconds";

/// How long a client may keep others waiting.
const PATIENCE: Duration = Duration::from_secs(2);

/// An application, as far as Prometheus knows.
pub(crate) struct Exporter {
    /// Host and port.
    pub(crate) address: String,
    gauge: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Exporter {
    /// Starts it; the gauge is 0.
    pub(crate) fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("the loopback interface has a free port");
        let address = listener.local_addr().expect("it was bound").to_string();
        let (gauge, stop) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let thread = std::thread::spawn({
            let (gauge, stop) = (Arc::clone(&gauge), Arc::clone(&stop));
            move || {
                for stream in listener.incoming().filter_map(Result::ok) {
                    if stop.load(Ordering::Relaxed) {
                        return;
                    }
                    // Who went away before the answer has no use for it.
                    let _ = answer(&stream, f64::from_bits(gauge.load(Ordering::Relaxed)));
                }
            }
        });
        Self { address, gauge, stop, thread: Some(thread) }
    }

    /// Sets the gauge.
    pub(crate) fn set(&self, value: f64) {
        self.gauge.store(value.to_bits(), Ordering::Relaxed);
    }
}

impl Drop for Exporter {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // Wakes it from waiting for a client.
        drop(TcpStream::connect(&self.address));
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn answer(stream: &TcpStream, value: f64) -> std::io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut reader = BufReader::new(stream);
    let mut request = String::new();
    reader.read_line(&mut request)?;
    // The rest of the head; a body, where there is one, says nothing that matters here.
    let mut line = String::new();
    let mut body_bytes = 0;
    while reader.read_line(&mut line)? > 2 {
        let lower = line.to_ascii_lowercase();
        if let Some(length) = lower.strip_prefix("content-length:") {
            body_bytes = length.trim().parse().unwrap_or(0);
        }
        line.clear();
    }
    std::io::copy(&mut std::io::Read::take(&mut reader, body_bytes), &mut std::io::sink())?;
    let (kind, body) = if request.contains("/api/v1/query") {
        let now = since_1970(SystemTime::now());
        let vector = format!(r#"{{"metric":{{}},"value":[{now:.3},"{value}"]}}"#);
        let data = format!(r#"{{"resultType":"vector","result":[{vector}]}}"#);
        ("application/json", format!(r#"{{"status":"success","data":{data}}}"#))
    } else {
        ("text/plain; version=0.0.4", format!("# TYPE {GAUGE} gauge\n{GAUGE} {value}\n"))
    };
    let mut stream = stream;
    write!(
        stream,
        "HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    )
}
