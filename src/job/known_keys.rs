//! Which keys a TOML file may have and what their values are, so that a wrong one is told in words
//! that its writer knows: the key, what it must be, and the key that was probably meant.

use std::net::SocketAddr;

use super::bytes::Bytes;

/// What a value must be.
#[derive(Debug, Clone, Copy)]
pub enum Kind {
    /// A text.
    Text,
    /// A list of texts.
    Texts,
    /// Yes or no.
    Switch,
    /// A whole number from 0 on.
    Whole,
    /// A whole number from 0 to this.
    WholeUpTo(u32),
    /// A number.
    Number,
    /// A size: a whole number of bytes, or a text with a unit.
    Bytes,
    /// A duration with its unit.
    Duration,
    /// A duration with its unit, or this word.
    DurationOr(&'static str),
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
            Self::Switch => "true or false".to_owned(),
            Self::Whole => "a whole number, 0 or more".to_owned(),
            Self::WholeUpTo(most) => format!("a whole number from 0 to {most}"),
            Self::Number => "a number".to_owned(),
            Self::Bytes => {
                "a size: a whole number of bytes, or a text with its unit, such as \"512MB\" or \"10GB\""
                    .to_owned()
            }
            Self::Duration => "a duration with its unit, such as \"50ms\", \"30s\" or \"1h 30m\"".to_owned(),
            Self::DurationOr(word) => {
                format!("a duration with its unit, such as \"50ms\" or \"30s\", or \"{word}\"")
            }
            Self::Choice(words) => format!("one of \"{}\"", words.join("\", \"")),
            Self::Address => "an address and a port, such as \"127.0.0.1:9797\"".to_owned(),
        }
    }

    /// In a file a number is a number; in the environment everything is a text.
    fn accepts(self, value: &toml::Value, source: Source) -> bool {
        use toml::Value;
        let is_duration = |text: &str| humantime::parse_duration(text).is_ok();
        match (self, value) {
            (Self::Texts, Value::Array(values)) => values.iter().all(Value::is_str),
            (Self::Whole | Self::Bytes, Value::Integer(number)) => *number >= 0,
            (Self::WholeUpTo(most), Value::Integer(number)) => (0..=i64::from(most)).contains(number),
            (Self::Text, Value::String(_))
            | (Self::Number, Value::Integer(_) | Value::Float(_))
            | (Self::Switch, Value::Boolean(_)) => true,
            (Self::Bytes, Value::String(text)) => text.parse::<Bytes>().is_ok(),
            (Self::Duration, Value::String(text)) => is_duration(text),
            (Self::DurationOr(word), Value::String(text)) => text == word || is_duration(text),
            (Self::Choice(words), Value::String(text)) => words.contains(&text.as_str()),
            (Self::Address, Value::String(text)) => text.parse::<SocketAddr>().is_ok(),
            (_, Value::String(text)) if source == Source::Environment => self.accepts_text(text),
            _ => false,
        }
    }

    fn accepts_text(self, text: &str) -> bool {
        match self {
            Self::Texts => texts(text).is_some(),
            Self::Switch => text.parse::<bool>().is_ok(),
            Self::Whole => text.parse::<u64>().is_ok(),
            Self::WholeUpTo(most) => text.parse::<u32>().is_ok_and(|number| number <= most),
            Self::Number => text.parse::<f64>().is_ok(),
            _ => false,
        }
    }
}

/// A list of texts that is written in an environment variable as it is in a file: `["one", "two"]`.
/// Parted by commas it could not be: SQL has commas of its own.
#[must_use]
pub fn texts(text: &str) -> Option<Vec<String>> {
    text.trim().parse::<toml::Value>().ok()?.try_into().ok()
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
    /// The section's name; empty for the top of the file. At the end, `*` is a name of the user's own.
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
        self.check_table(&Place::default(), table, source, &mut problems);
        problems
    }

    /// What the value of a key must be; none of a key that is not known.
    #[must_use]
    pub fn kind_of(&self, keys: &[&str]) -> Option<Kind> {
        let (key, sections) = keys.split_last()?;
        let place = sections.iter().fold(Place::default(), |place, name| self.below(&place, name));
        self.kind(&place.known, key)
    }

    fn check_table(&self, place: &Place, table: &toml::Table, source: Source, problems: &mut Vec<String>) {
        for (key, value) in table {
            let below = self.below(place, key);
            let full = &below.written;
            let named = below.known.ends_with(".*");
            if let Some(not_yet) = self.not_yet.iter().find(|known| known.path == full) {
                let version = env!("CARGO_PKG_VERSION");
                problems
                    .push(format!("{full} is not supported by backfilld {version} yet: {}", not_yet.advice));
            } else if let Some(free) = self.free.iter().find(|free| free.path == full) {
                check_free_table(free, value, problems);
            } else if self.is_section(&below.known) {
                match value {
                    toml::Value::Table(_) if named && !is_own_name(key) => {
                        problems.push(format!("{full}: {OWN_NAME}"));
                    }
                    toml::Value::Table(inner) => self.check_table(&below, inner, source, problems),
                    _ if self.kind(&below.known, key).is_some() => problems.push(format!(
                        "{full}: a name of your own is missing, write [{}.NAME] and {key} below",
                        place.written
                    )),
                    _ => problems
                        .push(format!("{full} is a section, not a key: write [{full}] and its keys below")),
                }
            } else if let Some(kind) = self.kind(&place.known, key) {
                if !kind.accepts(value, source) {
                    problems.push(format!("{full} must be {}", kind.expected()));
                }
            } else {
                problems.push(self.unknown(place, key, full));
            }
        }
    }

    /// The place of `key` in the section at `place`.
    fn below(&self, place: &Place, key: &str) -> Place {
        let join = |path: &str, key: &str| {
            if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") }
        };
        let own = join(&place.known, "*");
        let is_own = self.sections.iter().any(|section| section.path == own);
        Place {
            written: join(&place.written, key),
            known: if is_own { own } else { join(&place.known, key) },
        }
    }

    fn is_section(&self, known: &str) -> bool {
        self.sections.iter().any(|section| {
            section.path == known
                || (section.path.starts_with(known) && section.path[known.len()..].starts_with('.'))
        })
    }

    fn kind(&self, known: &str, key: &str) -> Option<Kind> {
        let here = self.sections.iter().filter(|section| section.path == known);
        here.flat_map(|section| section.keys).find(|(name, _)| *name == key).map(|(_, kind)| *kind)
    }

    fn unknown(&self, place: &Place, key: &str, full: &str) -> String {
        let siblings = self.siblings(&place.known);
        // A key that is right but in the wrong section is the likelier mistake than a misspelling.
        if let Some(near) = nearest(key, &siblings) {
            format!("unknown key {full}: did you mean {near}?")
        } else if let Some(home) = self.home_of(key) {
            format!("unknown key {full}: {key} belongs into {home}")
        } else {
            let path = &place.written;
            let here = if path.is_empty() { "known here".to_owned() } else { format!("known in [{path}]") };
            format!("unknown key {full}: {here} are {}", siblings.join(", "))
        }
    }

    /// The keys and sections directly below `known`.
    fn siblings(&self, known: &str) -> Vec<&'static str> {
        let keys = self
            .sections
            .iter()
            .filter(|section| section.path == known)
            .flat_map(|section| section.keys.iter().map(|(name, _)| *name));
        let below = self
            .sections
            .iter()
            .map(|section| section.path)
            .chain(self.not_yet.iter().map(|later| later.path))
            .chain(self.free.iter().map(|free| free.path))
            .filter_map(|path| {
                if known.is_empty() { Some(path) } else { path.strip_prefix(known)?.strip_prefix('.') }
            })
            .filter_map(|rest| rest.split('.').next())
            .filter(|name| !name.is_empty());
        let mut siblings: Vec<&str> = keys.chain(below).collect();
        siblings.sort_unstable();
        siblings.dedup();
        siblings
    }

    /// The place where a key of this name is known, when there is only one.
    fn home_of(&self, key: &str) -> Option<String> {
        let keyed = self.sections.iter().filter(|section| section.keys.iter().any(|(name, _)| *name == key));
        let free = self.free.iter().filter_map(|free| free.path.strip_suffix(key)?.strip_suffix('.'));
        let mut homes = keyed.map(|section| section.path).chain(free);
        let (home, None) = (homes.next()?, homes.next()) else { return None };
        let home = home.replace('*', "NAME");
        Some(if home.is_empty() { "the top of the file".to_owned() } else { format!("[{home}]") })
    }
}

/// A section of a file: how it is written there, and how it is known, with `*` for a name of the
/// user's own.
#[derive(Debug, Default)]
struct Place {
    written: String,
    known: String,
}

/// What a section of the user's own name may be called.
pub const OWN_NAME: &str = "its name must be 1 to 63 of a-z, 0-9 and _, and begin with a letter or digit";

/// Whether a section may have this name.
#[must_use]
pub fn is_own_name(name: &str) -> bool {
    let plain = |letter: char| letter.is_ascii_lowercase() || letter.is_ascii_digit();
    name.len() <= 63 && name.starts_with(plain) && name.chars().all(|letter| plain(letter) || letter == '_')
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
