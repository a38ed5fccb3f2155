//! Which keys a TOML file may have and what their values are, so that a wrong one is told in words
//! that its writer knows: the key, what it must be, and the key that was probably meant.

use std::net::SocketAddr;

/// What a value must be.
#[derive(Debug, Clone, Copy)]
pub enum Kind {
    /// A text.
    Text,
    /// A list of texts.
    Texts,
    /// A whole number from 0 on.
    Whole,
    /// A number.
    Number,
    /// A duration with its unit.
    Duration,
    /// One of a few words.
    Choice(&'static [&'static str]),
    /// An address and a port.
    Address,
}

impl Kind {
    fn expected(self) -> String {
        match self {
            Self::Text => "a text in quotes".to_owned(),
            Self::Texts => "a list of texts, such as [\"1000\"]".to_owned(),
            Self::Whole => "a whole number, 0 or more".to_owned(),
            Self::Number => "a number".to_owned(),
            Self::Duration => "a duration with its unit, such as \"50ms\", \"30s\" or \"1h 30m\"".to_owned(),
            Self::Choice(words) => format!("one of \"{}\"", words.join("\", \"")),
            Self::Address => "an address and a port, such as \"127.0.0.1:9797\"".to_owned(),
        }
    }

    /// In a file a number is a number; in the environment everything is a text.
    fn accepts(self, value: &toml::Value, source: Source) -> bool {
        use toml::Value;
        match (self, value) {
            (Self::Texts, Value::Array(values)) => values.iter().all(Value::is_str),
            (Self::Whole, Value::Integer(number)) => *number >= 0,
            (Self::Text, Value::String(_)) | (Self::Number, Value::Integer(_) | Value::Float(_)) => true,
            (Self::Whole, Value::String(text)) if source == Source::Environment => {
                text.parse::<u64>().is_ok()
            }
            (Self::Duration, Value::String(text)) => humantime::parse_duration(text).is_ok(),
            (Self::Choice(words), Value::String(text)) => words.contains(&text.as_str()),
            (Self::Address, Value::String(text)) => text.parse::<SocketAddr>().is_ok(),
            _ => false,
        }
    }
}

/// Where keys come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// A file.
    File,
    /// Environment variables.
    Environment,
}

/// A section of a file and its keys.
#[derive(Debug)]
pub struct Section {
    /// The section's name; empty for the top of the file.
    pub path: &'static str,
    /// Its keys, subsections left out.
    pub keys: &'static [(&'static str, Kind)],
}

/// A key that the contract knows and this version does not support yet.
#[derive(Debug)]
pub struct NotYet {
    /// The dotted key, or section.
    pub path: &'static str,
    /// What to do without it.
    pub advice: &'static str,
}

/// A table whose keys are the user's own names and whose values are texts.
#[derive(Debug)]
pub struct FreeTable {
    /// The dotted key.
    pub path: &'static str,
    /// What a value must be.
    pub expected: &'static str,
}

/// All that one kind of file may say.
#[derive(Debug)]
pub struct KnownKeys {
    /// What is supported.
    pub sections: &'static [Section],
    /// What will be.
    pub not_yet: &'static [NotYet],
    /// Tables of the user's own names.
    pub free: &'static [FreeTable],
}

impl KnownKeys {
    /// One message for every key of `table` that is not known, and every value that is not what its
    /// key must be. No message repeats a value: it may be a secret.
    #[must_use]
    pub fn check(&self, table: &toml::Table, source: Source) -> Vec<String> {
        let mut problems = Vec::new();
        self.check_table("", table, source, &mut problems);
        problems
    }

    fn check_table(&self, path: &str, table: &toml::Table, source: Source, problems: &mut Vec<String>) {
        for (key, value) in table {
            let full = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
            if let Some(not_yet) = self.not_yet.iter().find(|known| known.path == full) {
                let version = env!("CARGO_PKG_VERSION");
                problems
                    .push(format!("{full} is not supported by backfilld {version} yet: {}", not_yet.advice));
            } else if let Some(free) = self.free.iter().find(|free| free.path == full) {
                check_free_table(free, value, problems);
            } else if self.is_section(&full) {
                match value {
                    toml::Value::Table(inner) => self.check_table(&full, inner, source, problems),
                    _ => problems
                        .push(format!("{full} is a section, not a key: write [{full}] and its keys below")),
                }
            } else if let Some(kind) = self.kind(path, key) {
                if !kind.accepts(value, source) {
                    problems.push(format!("{full} must be {}", kind.expected()));
                }
            } else {
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

    fn kind(&self, path: &str, key: &str) -> Option<Kind> {
        let here = self.sections.iter().filter(|section| section.path == path);
        here.flat_map(|section| section.keys).find(|(name, _)| *name == key).map(|(_, kind)| *kind)
    }

    fn unknown(&self, path: &str, key: &str, full: &str) -> String {
        let siblings = self.siblings(path);
        // A key that is right but in the wrong section is the likelier mistake than a misspelling.
        if let Some(near) = nearest(key, &siblings) {
            format!("unknown key {full}: did you mean {near}?")
        } else if let Some(place) = self.home_of(key) {
            format!("unknown key {full}: {key} belongs into {place}")
        } else {
            let place = if path.is_empty() { "known here".to_owned() } else { format!("known in [{path}]") };
            format!("unknown key {full}: {place} are {}", siblings.join(", "))
        }
    }

    /// The keys and sections directly below `path`.
    fn siblings(&self, path: &str) -> Vec<&'static str> {
        let keys = self
            .sections
            .iter()
            .filter(|section| section.path == path)
            .flat_map(|section| section.keys.iter().map(|(name, _)| *name));
        let below = self
            .sections
            .iter()
            .map(|section| section.path)
            .chain(self.not_yet.iter().map(|known| known.path))
            .chain(self.free.iter().map(|free| free.path))
            .filter_map(|known| {
                if path.is_empty() { Some(known) } else { known.strip_prefix(path)?.strip_prefix('.') }
            })
            .filter(|rest| !rest.is_empty() && !rest.contains('.'));
        let mut siblings: Vec<&str> = keys.chain(below).collect();
        siblings.sort_unstable();
        siblings.dedup();
        siblings
    }

    /// The place where a key of this name is known.
    fn home_of(&self, key: &str) -> Option<String> {
        let keyed = self.sections.iter().find(|section| section.keys.iter().any(|(name, _)| *name == key));
        let path = keyed
            .map(|section| section.path)
            .or_else(|| self.free.iter().find_map(|free| free.path.strip_suffix(key)?.strip_suffix('.')))?;
        Some(if path.is_empty() { "the top of the file".to_owned() } else { format!("[{path}]") })
    }
}

fn check_free_table(free: &FreeTable, value: &toml::Value, problems: &mut Vec<String>) {
    let toml::Value::Table(entries) = value else {
        problems.push(format!("{} must be a table: write {{ column = {} }}", free.path, free.expected));
        return;
    };
    for (key, value) in entries {
        if !value.is_str() {
            problems.push(format!("{}.{key} must be {}", free.path, free.expected));
        }
    }
}

/// The candidate that `word` was probably meant to be.
#[must_use]
pub fn nearest<'a>(word: &str, candidates: &[&'a str]) -> Option<&'a str> {
    candidates
        .iter()
        .map(|candidate| (likeness(word, candidate), *candidate))
        .filter(|(likeness, _)| *likeness >= 0.8)
        .max_by(|one, other| one.0.total_cmp(&other.0))
        .map(|(_, candidate)| candidate)
}

/// How alike two words are, from 0 to 1, whatever their case.
#[must_use]
pub fn likeness(one: &str, other: &str) -> f64 {
    strsim::jaro_winkler(&one.to_lowercase(), &other.to_lowercase())
}
