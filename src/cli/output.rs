//! Writing to standard output, into pipes that may be closed.

use std::io::{self, ErrorKind, Write as _};

use super::failure::Failure;

/// Writes `text`. A reader that has gone away (`| head`) is no failure; the command ends.
pub(super) fn print(text: &str) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => std::process::exit(0),
        other => other.map_err(|error| Failure::runtime(format!("cannot write to standard output: {error}"))),
    }
}

/// Writes one line.
pub(super) fn line(text: impl std::fmt::Display) -> Result<(), Failure> {
    print(&format!("{text}\n"))
}

/// A count with separators, for reading: 1234567 as `1,234,567`.
pub(super) fn count(number: i64) -> String {
    let digits = number.unsigned_abs().to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    if number < 0 { format!("-{text}") } else { text }
}

/// A key in parentheses, on one line whatever is in it.
pub(super) fn key(values: &[String]) -> String {
    format!("({})", shown(&values.join(", ")))
}

/// On one line, whatever is in it.
pub(super) fn shown(text: &str) -> String {
    text.chars()
        .flat_map(|one| if one.is_control() { one.escape_default().collect() } else { vec![one] })
        .collect()
}

/// Cut off, never rounded up: 100 % is said of a complete job only.
pub(super) fn percent(progress: f64) -> String {
    format!("{:.1} %", (progress * 1000.0).floor() / 10.0)
}

/// A number of seconds, for reading: `2m 5s`. The fraction is dropped.
pub(super) fn seconds(seconds: f64) -> String {
    // `as` saturates.
    humantime::format_duration(std::time::Duration::from_secs(seconds.max(0.0) as u64)).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_have_separators() {
        assert_eq!(count(0), "0");
        assert_eq!(count(999), "999");
        assert_eq!(count(1000), "1,000");
        assert_eq!(count(-1_234_567), "-1,234,567");
    }
}
