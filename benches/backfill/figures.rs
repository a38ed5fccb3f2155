//! Numbers as a report prints them, and what is wanted of them.

use std::fmt::Write as _;

/// The smallest, the middle and the largest of a few figures.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Spread {
    pub(crate) min: f64,
    pub(crate) median: f64,
    pub(crate) max: f64,
}

impl Spread {
    /// Of `values`, of which there is at least one.
    pub(crate) fn of(values: impl IntoIterator<Item = f64>) -> Self {
        let mut sorted: Vec<f64> = values.into_iter().collect();
        sorted.sort_by(f64::total_cmp);
        let (Some(&min), Some(&max)) = (sorted.first(), sorted.last()) else {
            panic!("a spread of no figures");
        };
        let (low, high) = (sorted[(sorted.len() - 1) / 2], sorted[sorted.len() / 2]);
        Self { min, median: f64::midpoint(low, high), max }
    }
}

/// What a figure should be.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Wanted {
    AtLeast(f64),
    Below(f64),
}

/// A line that holds a figure against what is wanted of it.
pub(crate) fn verdict(what: &str, wanted: Wanted, unit: &str, seen: f64) -> String {
    let (bound, met) = match wanted {
        Wanted::AtLeast(least) => (format!("at least {least}{unit}"), seen >= least),
        Wanted::Below(limit) => (format!("under {limit}{unit}"), seen < limit),
    };
    format!("- {what}: wanted {bound}, seen {seen:.2}{unit}: **{}**\n", if met { "met" } else { "missed" })
}

/// A whole number in groups of three digits: `3,000,000`.
pub(crate) fn grouped(number: f64) -> String {
    let digits = format!("{number:.0}");
    let mut text = String::new();
    for (position, digit) in digits.chars().enumerate() {
        if position > 0 && (digits.len() - position) % 3 == 0 {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A Markdown table; the first column is text, the others are numbers.
pub(crate) fn table(heads: &[&str], rows: &[Vec<String>]) -> String {
    let mut text = format!("| {} |\n| --- |{}\n", heads.join(" | "), " ---: |".repeat(heads.len() - 1));
    for row in rows {
        assert_eq!(row.len(), heads.len(), "every row has a cell a column");
        writeln!(text, "| {} |", row.join(" | ")).expect("a String takes every write");
    }
    text
}
