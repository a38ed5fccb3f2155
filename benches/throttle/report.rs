//! The report: one file, one section a run.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use crate::trial::Size;

const FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/results/throttle.md");

const HEAD: &str = "\
# Throttle

What `make bench-throttle` measured, on real servers on one machine. Each run can be started alone
(`cargo bench --bench throttle -- NAME`) and then replaces its own section.
";

/// The titles of all sections, in the order of the report.
pub(crate) const TITLES: [&str; 6] =
    ["Foreground latency", "Steps of load", "A slow replica", "A stopped replica", "Prometheus", "Overhead"];

/// Prints a run's section, and puts it into the report in the place of its last one, unless it is of
/// a trial.
pub(crate) fn publish(size: Size, title: &str, text: &str) {
    println!("## {title}\n\n{text}");
    if let Some(reason) = size.reason_to_discard {
        eprintln!("not kept; {reason}");
        return;
    }
    let old = fs::read_to_string(FILE).unwrap_or_default();
    let mut report = HEAD.to_owned();
    for known in TITLES {
        let section = if known == title { Some(text) } else { section(&old, known) };
        if let Some(section) = section {
            write!(report, "\n## {known}\n\n{}\n", section.trim()).expect("a String takes every write");
        }
    }
    fs::create_dir_all(Path::new(FILE).parent().expect("a file is in a folder"))
        .and_then(|()| fs::write(FILE, report))
        .expect("the project's folder can be written to");
    eprintln!("written: benches/results/throttle.md");
}

/// What stands below a title.
fn section<'a>(report: &'a str, title: &str) -> Option<&'a str> {
    report.split("\n## ").skip(1).find_map(|section| section.strip_prefix(title)?.strip_prefix('\n'))
}
