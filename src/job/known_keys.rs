//! Which keys a TOML file may have, so that a wrong one is named with the one that was meant.

use std::fmt::Write as _;

/// A section of a file and its keys.
#[derive(Debug)]
pub struct Section {
    /// The section's name; empty for the top of the file. A last part `NAME` stands for any name.
    pub path: &'static str,
    /// Its keys, subsections left out.
    pub keys: &'static [&'static str],
}

/// A key that the contract knows and this version does not support yet.
#[derive(Debug)]
pub struct NotYet {
    /// The dotted key, or section.
    pub path: &'static str,
    /// What to do without it.
    pub advice: &'static str,
}

/// All that one kind of file may say.
#[derive(Debug)]
pub struct KnownKeys {
    /// What is supported.
    pub sections: &'static [Section],
    /// What will be.
    pub not_yet: &'static [NotYet],
    /// Tables whose keys are the user's own names.
    pub free: &'static [&'static str],
}

impl KnownKeys {
    /// One message for every key of `table` that is not known.
    #[must_use]
    pub fn check(&self, table: &toml::Table) -> Vec<String> {
        let mut problems = Vec::new();
        self.check_table("", table, &mut problems);
        problems
    }

    fn check_table(&self, path: &str, table: &toml::Table, problems: &mut Vec<String>) {
        for (key, value) in table {
            let full = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
            if let Some(not_yet) = self.not_yet.iter().find(|known| known.path == full) {
                let mut problem =
                    format!("{full} is not supported by backfilld {} yet", env!("CARGO_PKG_VERSION"));
                let _ = write!(problem, ": {}", not_yet.advice);
                problems.push(problem);
            } else if self.free.contains(&full.as_str()) {
                // The user's own names: the deserialiser checks the values.
            } else if let (true, toml::Value::Table(inner)) = (self.is_section(&full), value) {
                self.check_table(&full, inner, problems);
            } else if !self.is_section(&full) && !self.has_key(path, key) {
                problems.push(self.unknown(path, key, &full));
            }
        }
    }

    fn is_section(&self, full: &str) -> bool {
        self.sections.iter().any(|section| {
            section.path == full
                || (section.path.starts_with(full) && section.path[full.len()..].starts_with('.'))
        })
    }

    fn has_key(&self, path: &str, key: &str) -> bool {
        self.sections.iter().any(|section| section.path == path && section.keys.contains(&key))
    }

    fn unknown(&self, path: &str, key: &str, full: &str) -> String {
        let here = self.sections.iter().filter(|section| section.path == path);
        let subsections = self
            .sections
            .iter()
            .map(|section| section.path)
            .chain(self.not_yet.iter().map(|known| known.path))
            .chain(self.free.iter().copied())
            .filter_map(|known| known.strip_prefix(path))
            .map(|rest| rest.trim_start_matches('.'))
            .filter(|rest| !rest.is_empty() && !rest.contains('.'));
        let mut siblings: Vec<&str> =
            here.flat_map(|section| section.keys.iter().copied()).chain(subsections).collect();
        siblings.sort_unstable();
        siblings.dedup();
        let mut message = format!("unknown key {full}");
        // A key that is right but in the wrong section is the likelier mistake than a misspelling.
        let elsewhere = self.sections.iter().find(|section| section.keys.contains(&key));
        if let Some(near) = nearest(key, &siblings) {
            let _ = write!(message, ": did you mean {near}?");
        } else if let Some(section) = elsewhere {
            let place = if section.path.is_empty() {
                "the top of the file".to_owned()
            } else {
                format!("[{}]", section.path)
            };
            let _ = write!(message, ": {key} belongs into {place}");
        } else {
            let place = if path.is_empty() { "known here".to_owned() } else { format!("known in [{path}]") };
            let _ = write!(message, ": {place} are {}", siblings.join(", "));
        }
        message
    }
}

/// The candidate that `word` was probably meant to be.
#[must_use]
pub fn nearest<'a>(word: &str, candidates: &[&'a str]) -> Option<&'a str> {
    candidates
        .iter()
        .map(|candidate| (strsim::jaro_winkler(word, candidate), *candidate))
        .filter(|(likeness, _)| *likeness >= 0.8)
        .max_by(|one, other| one.0.total_cmp(&other.0))
        .map(|(_, candidate)| candidate)
}
