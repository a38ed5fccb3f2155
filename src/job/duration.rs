//! Durations in a spec, as people write them: `50ms`, `10s`, `1h 30m`.

use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A duration that is written with its unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Written(pub Duration);

impl Serialize for Written {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&humantime::format_duration(self.0))
    }
}

impl<'de> Deserialize<'de> for Written {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl serde::de::Visitor<'_> for Visitor {
            type Value = Written;

            fn expecting(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                out.write_str("a duration in quotes, with its unit, such as \"50ms\" or \"10s\"")
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Written, E> {
                humantime::parse_duration(text).map(Written).map_err(|error| {
                    E::custom(format!("{text:?} is not a duration such as \"50ms\" or \"10s\": {error}"))
                })
            }
        }
        deserializer.deserialize_str(Visitor)
    }
}
