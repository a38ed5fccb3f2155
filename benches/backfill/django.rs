//! The loops of a Django project, run by real Django: `django/walk_users.py`.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::tool::{Scratch, Tool};

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/backfill/django/walk_users.py");
/// Where `scripts/install-tools` puts it.
const PYTHON: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/target/bench-tools/python/bin/python");

/// How the rows are changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Loop {
    /// `iterator()` and `bulk_update()`.
    Bulk,
    /// `filter(pk__gt, pk__lte).update()`.
    Range,
}

/// When a loop ran, and the CPU time of its process meanwhile.
#[derive(Debug, Clone, Copy, serde::Deserialize)]
struct Told {
    began: f64,
    ended: f64,
    cpu_seconds: f64,
}

/// What a loop took.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Walked {
    pub(crate) began: SystemTime,
    pub(crate) seconds: f64,
    pub(crate) cpu_seconds: f64,
}

/// Changes the first `rows` rows of `users`.
pub(crate) fn walk(url: &str, way: Loop, rows_per_batch: u32, rows: u32) -> Walked {
    let way = match way {
        Loop::Bulk => "bulk",
        Loop::Range => "range",
    };
    let folder = Scratch::new();
    let output = folder.path("output");
    let (rows_per_batch, rows) = (rows_per_batch.to_string(), rows.to_string());
    Tool::start(&python(), &[SCRIPT, url, way, &rows_per_batch, &rows], output.clone()).wait();
    let text = fs::read_to_string(output).expect("the file of its output is there");
    let told: Told =
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("walk_users.py said {error}: {text}"));
    Walked {
        began: UNIX_EPOCH + Duration::from_secs_f64(told.began),
        seconds: told.ended - told.began,
        cpu_seconds: told.cpu_seconds,
    }
}

/// The versions, for the report.
pub(crate) fn versions() -> String {
    let code = "import platform, django, psycopg; \
                print(f'Django {django.__version__}, psycopg {psycopg.__version__}, Python {platform.python_version()}')";
    let output = Command::new(python()).args(["-c", code]).output().expect("Python can be run");
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

fn python() -> std::path::PathBuf {
    let python = Path::new(PYTHON);
    assert!(python.exists(), "Django is not there; scripts/install-tools installs it");
    python.to_owned()
}
