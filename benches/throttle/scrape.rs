//! HTTP as far as it is needed here, and the metrics of a daemon.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

/// How long an answer may take.
const TIMEOUT: Duration = Duration::from_secs(5);

/// The body of the answer to a GET; none when nobody answers with 200.
pub(crate) fn get(address: &str, path: &str) -> Option<String> {
    let mut stream = TcpStream::connect(address).ok()?;
    stream.set_read_timeout(Some(TIMEOUT)).ok()?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n").ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    head.lines().next()?.contains(" 200 ").then(|| body.to_owned())
}

/// Metrics in Prometheus's text format.
#[derive(Debug, Default)]
pub(crate) struct Metrics(String);

impl Metrics {
    /// Those of the daemon that listens on `address`; none at all when it does not answer.
    pub(crate) fn of(address: &str) -> Self {
        Self(get(address, "/metrics").unwrap_or_default())
    }

    /// Labels and value of every series called `name`; NaN is no value.
    fn series<'a>(&'a self, name: &'a str) -> impl Iterator<Item = (&'a str, f64)> {
        self.0.lines().filter_map(move |line| {
            let (labels, value) = line.strip_prefix(name)?.rsplit_once(' ')?;
            // Else it is another metric, of a longer name.
            (labels.is_empty() || labels.starts_with('{')).then_some(())?;
            Some((labels, value.parse().ok().filter(|value: &f64| !value.is_nan())?))
        })
    }

    /// The value of the first series called `name` with this label (`("job", "users")`).
    pub(crate) fn with(&self, name: &str, label: (&str, &str)) -> Option<f64> {
        let wanted = format!("{}=\"{}\"", label.0, label.1);
        self.series(name).find(|(labels, _)| labels.contains(&wanted)).map(|(_, value)| value)
    }

    /// The value of the first series called `name`.
    pub(crate) fn value(&self, name: &str) -> Option<f64> {
        self.series(name).next().map(|(_, value)| value)
    }

    /// The largest of all series called `name`.
    pub(crate) fn largest(&self, name: &str) -> Option<f64> {
        self.series(name).map(|(_, value)| value).max_by(f64::total_cmp)
    }

    /// The text of the label `label` of the first series called `name` whose value is 1.
    pub(crate) fn current(&self, name: &str, label: &str) -> Option<String> {
        let (labels, _) = self.series(name).find(|(_, value)| *value > 0.5)?;
        let (_, rest) = labels.split_once(&format!("{label}=\""))?;
        Some(rest.split_once('"')?.0.to_owned())
    }
}
