//! What an expression of Prometheus gives: the application's real p99, the load of the machine, whatever is
//! collected anyway.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use hyper::StatusCode;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use secrecy::{ExposeSecret as _, SecretString};
use serde::Deserialize;

use super::{Signal, bounded};
use crate::throttle::reading::{Figure, Reading};
use crate::throttle::report::shorten;
use crate::web::Address;

/// The most of a text of others that goes into a message.
const TOLD_CHARACTERS: usize = 200;
/// The most of a series' labels that goes into a subject.
const LABEL_CHARACTERS: usize = 60;

/// The signal `prometheus.NAME`.
#[derive(Debug)]
pub struct Prometheus {
    name: String,
    url: SecretString,
    query: String,
    interval: Duration,
}

impl Prometheus {
    /// What `query` gives at the server at `url`. `name` is that of the section, without `prometheus.`
    #[must_use]
    pub fn new(name: &str, url: SecretString, query: impl Into<String>, interval: Duration) -> Self {
        Self { name: format!("prometheus.{name}"), url, query: query.into(), interval }
    }
}

impl Signal for Prometheus {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn interval(&self) -> Duration {
        self.interval
    }

    async fn read(&mut self, within: Duration) -> Result<Vec<Reading>, String> {
        let address = Address::parse(self.url.expose_secret())?;
        // An answer that comes after the next question is no use.
        let within = within.min(self.interval).mul_f64(0.9);
        let query = utf8_percent_encode(&self.query, NON_ALPHANUMERIC);
        // Whole units alone: a server before 3.0 knows no fraction of one.
        let milliseconds = within.as_millis();
        let path = format!("/api/v1/query?query={query}&timeout={milliseconds}ms");
        let answer = bounded(within, address.get(&path))
            .await
            .map_err(|error| format!("{}: {error}", address.host_and_port()))?;
        let (subject, figure) = read_answer(answer.status, &answer.body)
            .map_err(|error| format!("{}: {error}", address.host_and_port()))?;
        Ok(vec![Reading::new(subject, figure, Instant::now())])
    }
}

/// What the server says, in the form of Prometheus' HTTP API.
#[derive(Deserialize)]
struct Answer {
    status: String,
    #[serde(default)]
    error: String,
    data: Option<Data>,
}

#[derive(Deserialize)]
#[serde(tag = "resultType", content = "result", rename_all = "lowercase")]
enum Data {
    Vector(Vec<Series>),
    Scalar(Sample),
    Matrix(serde::de::IgnoredAny),
    String(serde::de::IgnoredAny),
}

#[derive(Deserialize)]
struct Series {
    metric: BTreeMap<String, String>,
    /// A native histogram has none.
    value: Option<Sample>,
}

/// A time, which is that of the question, and the value as text.
#[derive(Deserialize)]
struct Sample(serde::de::IgnoredAny, String);

impl Sample {
    fn value(&self) -> Result<f64, String> {
        // Prometheus writes +Inf, -Inf and NaN, which are read here like any number.
        self.1.parse().map_err(|_| format!("{:?} is no number", shorten(&self.1, TOLD_CHARACTERS)))
    }
}

/// The subject and the figure that an answer gives. Of several series the largest counts.
fn read_answer(status: StatusCode, body: &[u8]) -> Result<(String, Figure), String> {
    let answer: Answer = serde_json::from_slice(body).map_err(|error| {
        let text = String::from_utf8_lossy(body);
        let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
        format!("HTTP {status}, and no answer of Prometheus ({error}): {}", shorten(&text, TOLD_CHARACTERS))
    })?;
    if answer.status != "success" || !status.is_success() {
        return Err(format!("HTTP {status}: {}", shorten(&answer.error, TOLD_CHARACTERS)));
    }
    let advice = "write an expression that gives an instant vector or a scalar";
    let (subject, value) = match answer.data {
        None => return Err(format!("HTTP {status}, without data")),
        Some(Data::Matrix(_)) => return Err(format!("the query gives a range: {advice}")),
        Some(Data::String(_)) => return Err(format!("the query gives a text: {advice}")),
        Some(Data::Scalar(sample)) => (String::new(), sample.value()?),
        Some(Data::Vector(series)) => {
            let mut largest: Option<(String, f64)> = None;
            for one in &series {
                let sample =
                    one.value.as_ref().ok_or_else(|| format!("the query gives a histogram: {advice}"))?;
                let value = sample.value()?;
                // A series without traffic gives NaN (0/0), which says nothing about the others.
                if largest.as_ref().is_none_or(|(_, so_far)| value > *so_far || so_far.is_nan()) {
                    largest = Some((labels(&one.metric), value));
                }
            }
            match largest {
                Some(found) => found,
                None => return Ok((String::new(), Figure::Unknown("no series".to_owned()))),
            }
        }
    };
    let figure = if value.is_nan() {
        Figure::Unknown("NaN: the expression has no value now, such as 0/0".to_owned())
    } else if value.is_infinite() {
        Figure::Unknown(format!("{value}: the expression divides by zero"))
    } else {
        Figure::Number(value)
    };
    Ok((subject, figure))
}

/// The labels that tell one series from another: `instance=db1, job=app`.
fn labels(metric: &BTreeMap<String, String>) -> String {
    let told: Vec<String> = metric
        .iter()
        .filter(|(name, _)| *name != "__name__")
        .map(|(name, value)| format!("{name}={value}"))
        .collect();
    shorten(&told.join(", "), LABEL_CHARACTERS)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vector(series: &str) -> Result<(String, Figure), String> {
        let body = format!(
            r#"{{"status":"success","data":{{"resultType":"vector","result":[{series}]}},"warnings":["x"]}}"#
        );
        read_answer(StatusCode::OK, body.as_bytes())
    }

    fn series(instance: &str, value: &str) -> String {
        format!(r#"{{"metric":{{"__name__":"up","instance":"{instance}"}},"value":[1716.5,"{value}"]}}"#)
    }

    #[test]
    fn the_largest_of_a_vector_counts() {
        let several = [series("a", "0.5"), series("b", "2"), series("c", "NaN")].join(",");
        assert_eq!(vector(&several), Ok(("instance=b".to_owned(), Figure::Number(2.0))));
        let several = [series("c", "NaN"), series("a", "-3.5e-1")].join(",");
        assert_eq!(vector(&several), Ok(("instance=a".to_owned(), Figure::Number(-0.35))));
    }

    #[test]
    fn a_scalar_has_no_subject() {
        let body = br#"{"status":"success","data":{"resultType":"scalar","result":[1716.5,"1e3"]}}"#;
        assert_eq!(read_answer(StatusCode::OK, body), Ok((String::new(), Figure::Number(1000.0))));
    }

    #[test]
    fn no_value_is_unknown_and_never_zero() {
        for (given, told) in [
            (String::new(), "no series"),
            (series("a", "NaN"), "NaN: "),
            (series("a", "+Inf"), "inf: "),
            (series("a", "-Inf"), "-inf: "),
        ] {
            let Ok((_, Figure::Unknown(why))) = vector(&given) else {
                panic!("{given}: {:?}", vector(&given))
            };
            assert!(why.starts_with(told), "{why}");
        }
    }

    #[test]
    fn an_answer_that_is_none_says_what_came() {
        for (status, body, told) in [
            (200, "<html>Sign in\n please", "no answer of Prometheus"),
            (200, "<html>Sign in\n please", ": <html>Sign in please"),
            (
                400,
                r#"{"status":"error","errorType":"bad_data","error":"1:4: parse error"}"#,
                "HTTP 400 Bad Request: 1:4: parse error",
            ),
            (503, r#"{"status":"error","errorType":"timeout","error":"query timed out"}"#, "query timed out"),
            (200, r#"{"status":"success","data":{"resultType":"matrix","result":[]}}"#, "gives a range"),
            (200, r#"{"status":"success","data":{"resultType":"string","result":[1,"a"]}}"#, "gives a text"),
            (
                200,
                r#"{"status":"success","data":{"resultType":"scalar","result":[1,"many"]}}"#,
                "\"many\" is no number",
            ),
            (200, r#"{"status":"success"}"#, "without data"),
            (401, "", "HTTP 401 Unauthorized"),
        ] {
            let error = read_answer(StatusCode::from_u16(status).unwrap(), body.as_bytes()).unwrap_err();
            assert!(error.contains(told), "{error}");
        }
    }
}
