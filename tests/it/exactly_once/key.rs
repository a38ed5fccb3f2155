//! Keys of every type: how a column of it is declared, and random values of it as text.

use proptest::prelude::*;
use proptest::sample::select;

/// A type that a key column can have.
#[derive(Clone, Copy)]
pub(super) struct KeyType {
    /// What stands after the column's name in CREATE TABLE.
    pub(super) declaration: &'static str,
    /// The type that a value is cast to.
    pub(super) cast: &'static str,
    /// Collations that an index on the column may have; empty for a type that has none.
    pub(super) collations: &'static [&'static str],
    values: fn() -> BoxedStrategy<String>,
}

/// A failing case is told by its types.
impl std::fmt::Debug for KeyType {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str(self.declaration)
    }
}

impl KeyType {
    const fn new(declaration: &'static str, values: fn() -> BoxedStrategy<String>) -> Self {
        Self { declaration, cast: declaration, collations: &[], values }
    }

    /// A type whose declaration says more than the type.
    const fn declared(
        declaration: &'static str,
        cast: &'static str,
        values: fn() -> BoxedStrategy<String>,
    ) -> Self {
        Self { declaration, cast, collations: &[], values }
    }

    const fn collatable(self) -> Self {
        Self { collations: COLLATIONS, ..self }
    }

    /// Random values, as PostgreSQL reads them under ISO dates.
    pub(super) fn values(self) -> BoxedStrategy<String> {
        (self.values)()
    }
}

/// Collations that order differently: by bytes, by PostgreSQL's own idea, by ICU.
const COLLATIONS: &[&str] = &["\"C\"", "\"en-x-icu\"", "\"sv-x-icu\""];

/// The enum and the domains that [`KEY_TYPES`] names.
pub(super) const TYPES_SQL: &str = r#"
    CREATE TYPE public."Mood ""x""" AS ENUM ('zebra', 'it''s', 'a,b', '', 'Apple', E'back\\slash');
    CREATE DOMAIN public.even AS bigint NOT NULL CHECK (VALUE % 2 = 0);
    CREATE DOMAIN public.label AS text COLLATE "C" CHECK (VALUE <> 'never');
"#;

pub(super) const KEY_TYPES: &[KeyType] = &[
    KeyType::new("bigint", bigints),
    KeyType::new("integer", integers),
    KeyType::new("smallint", || any::<i16>().prop_map(|n| n.to_string()).boxed()),
    KeyType::declared("bigint GENERATED ALWAYS AS IDENTITY", "bigint", bigints),
    KeyType::new("uuid", uuids),
    KeyType::new("text", texts).collatable(),
    KeyType::declared("text COLLATE \"C\"", "text", texts).collatable(),
    KeyType::declared("text COLLATE \"en-x-icu\"", "text", texts).collatable(),
    KeyType::new("varchar(7)", || short_texts(7)).collatable(),
    KeyType::new("char(5)", || short_texts(5)).collatable(),
    KeyType::new("name", || short_texts(9)),
    KeyType::new("\"char\"", || "[ -~]".prop_map(String::from).boxed()),
    KeyType::new("timestamptz", || timestamps("+05:45")),
    KeyType::new("timestamp", || timestamps("")),
    KeyType::new("date", dates),
    KeyType::new("time", || clock().boxed()),
    KeyType::new("numeric", numerics),
    KeyType::new("numeric(9,3)", || {
        (-999_999..999_999).prop_map(|n: i32| format!("{n}.{}", n.rem_euclid(7))).boxed()
    }),
    KeyType::new("money", || any::<i32>().prop_map(|n| format!("{n}.25")).boxed()),
    KeyType::new("bytea", byteas),
    KeyType::new("public.\"Mood \"\"x\"\"\"", || {
        select(vec!["zebra", "it's", "a,b", "", "Apple", "back\\slash"]).prop_map(String::from).boxed()
    }),
    KeyType::new("public.even", || any::<i32>().prop_map(|n| (i64::from(n) * 2).to_string()).boxed()),
    KeyType::new("public.label", texts).collatable(),
    KeyType::new("boolean", || any::<bool>().prop_map(|value| value.to_string()).boxed()),
    KeyType::new("float8", floats),
    KeyType::new("real", || any::<f32>().prop_map(float_text).boxed()),
    KeyType::new("inet", inets),
    KeyType::new("macaddr", || {
        any::<[u8; 6]>().prop_map(|bytes| bytes.map(|byte| format!("{byte:02x}")).join(":")).boxed()
    }),
    KeyType::new("interval", intervals),
    KeyType::new("bit varying", || "[01]{0,9}".boxed()),
    KeyType::new("bit(4)", || "[01]{4}".boxed()),
    KeyType::new("integer[]", || {
        let element =
            prop_oneof![4 => (-9..9).prop_map(|n: i32| n.to_string()), 1 => Just("NULL".to_owned())];
        prop::collection::vec(element, 0..4).prop_map(|list| format!("{{{}}}", list.join(","))).boxed()
    }),
    KeyType::new("timestamptz[]", || {
        prop::collection::vec(timestamps("Z"), 0..3)
            .prop_map(|list| {
                format!("{{{}}}", list.iter().map(|at| format!("\"{at}\"")).collect::<Vec<_>>().join(","))
            })
            .boxed()
    }),
    KeyType::new("jsonb", || {
        prop_oneof![
            (-99..99).prop_map(|n: i32| format!("{{\"a\": [{n}, null]}}")),
            texts().prop_map(|text| serde_json::json!({"b": text}).to_string()),
        ]
        .boxed()
    }),
    KeyType::new("daterange", || {
        (0..999, 1..99).prop_map(|(from, days)| format!("[{},{})", day(from), day(from + days))).boxed()
    }),
];

/// Dense runs, negative values, and gaps up to the type's ends.
fn bigints() -> BoxedStrategy<String> {
    prop_oneof![4 => -200..200_i64, 2 => any::<i64>(), 1 => select(vec![i64::MIN, i64::MAX, 1 << 53])]
        .prop_map(|n| n.to_string())
        .boxed()
}

fn integers() -> BoxedStrategy<String> {
    prop_oneof![3 => any::<i32>(), 2 => (-50..50).prop_map(|n| n * 40_000_000), 1 => -200..200]
        .prop_map(|n| n.to_string())
        .boxed()
}

fn uuids() -> BoxedStrategy<String> {
    any::<u128>().prop_map(|n| format!("{n:032x}")).boxed()
}

/// What quoting, escaping, trimming or sorting by bytes might trip over.
const PIECES: &[&str] = &[
    "a", "B", "b", "Z", "z", "é", "ß", "ä", "Ö", "\u{301}", "😀", "名", "'", "''", "\"", "\\", "\\'",
    "\\x41", " ", "  ", "\n", "\r", "\t", "{", "}", ",", "NULL", "$1", "%", "_", "-", "--", "/*", ";", "0",
    "10", "9",
];

fn texts() -> BoxedStrategy<String> {
    prop::collection::vec(select(PIECES), 0..6).prop_map(|pieces| pieces.concat()).boxed()
}

fn short_texts(letters: usize) -> BoxedStrategy<String> {
    texts().prop_map(move |text| text.chars().take(letters).collect()).boxed()
}

fn day(number: i32) -> String {
    let (year, month, day) = (1990 + number / 336, number / 28 % 12 + 1, number % 28 + 1);
    format!("{year:04}-{month:02}-{day:02}")
}

fn dates() -> BoxedStrategy<String> {
    let special = select(vec!["infinity", "-infinity", "0044-03-15 BC", "5874897-12-31"]);
    prop_oneof![9 => (0..13_000).prop_map(day), 1 => special.prop_map(String::from)].boxed()
}

fn clock() -> impl Strategy<Value = String> {
    (0..24, 0..60, 0..60, prop_oneof![Just(0), 0..3, 0..1_000_000])
        .prop_map(|(hour, minute, second, micros)| format!("{hour:02}:{minute:02}:{second:02}.{micros:06}"))
}

/// With microseconds, many on the same day.
fn timestamps(zone: &'static str) -> BoxedStrategy<String> {
    let special =
        select(vec!["infinity", "-infinity", "0044-03-15 12:00:00+00 BC", "294276-12-31 23:59:59.999999Z"]);
    let date = prop_oneof![Just("2024-10-27".to_owned()), (0..13_000).prop_map(day)];
    prop_oneof![
        12 => (date, clock()).prop_map(move |(date, time)| format!("{date} {time}{zone}")),
        1 => special.prop_map(String::from),
    ]
    .boxed()
}

fn numerics() -> BoxedStrategy<String> {
    let special = select(vec!["NaN", "Infinity", "-Infinity", "1e131", "-1e131", "1e-140", "0.0", "-0.000"]);
    prop_oneof![
        3 => (-20..20, 0..1000).prop_map(|(whole, part)| format!("{whole}.{part:03}")),
        2 => any::<i128>().prop_map(|n| format!("{n}{n:040}.5").replace("0-", "0").replace("5-", "5")).prop_filter(
            "one sign only", |text| !text[1..].contains('-')),
        1 => special.prop_map(String::from),
    ]
    .boxed()
}

fn byteas() -> BoxedStrategy<String> {
    prop::collection::vec(any::<u8>(), 0..5)
        .prop_map(|bytes| bytes.iter().fold("\\x".to_owned(), |text, byte| text + &format!("{byte:02x}")))
        .boxed()
}

fn float_text(value: impl Into<f64> + ToString + Copy) -> String {
    // Rust writes "inf", PostgreSQL reads it.
    if value.into().is_nan() { "NaN".to_owned() } else { value.to_string() }
}

fn floats() -> BoxedStrategy<String> {
    let special =
        select(vec!["-0", "0", "Infinity", "-Infinity", "NaN", "5e-324", "0.1", "0.30000000000000004"]);
    prop_oneof![6 => any::<f64>().prop_map(float_text), 1 => special.prop_map(String::from)].boxed()
}

fn inets() -> BoxedStrategy<String> {
    prop_oneof![
        (any::<[u8; 4]>(), 0..=32_u8)
            .prop_map(|(bytes, mask)| format!("{}/{mask}", bytes.map(|byte| byte.to_string()).join("."))),
        any::<u16>().prop_map(|n| format!("fe80::{n:x}")),
    ]
    .boxed()
}

fn intervals() -> BoxedStrategy<String> {
    (-30..30, -40..40, clock(), any::<bool>())
        .prop_map(|(months, days, time, back)| {
            format!("{months} months {days} days {}{time}", if back { "-" } else { "" })
        })
        .boxed()
}
