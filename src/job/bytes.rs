//! Sizes, as people write them: a number of bytes, or `512MB`, `10GB`, in powers of 1024 as PostgreSQL
//! counts them.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// The units, each 1024 times the one before it.
const UNITS: [&str; 6] = ["B", "kB", "MB", "GB", "TB", "PB"];
/// What `pg_size_bytes` can tell too.
const MOST: f64 = 9.2e18;

/// A size in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Bytes(pub u64);

/// What is said of a text that is no size.
#[derive(Debug, thiserror::Error)]
#[error("not a size such as \"512MB\" or \"10GB\"")]
pub struct NoSize;

impl FromStr for Bytes {
    type Err = NoSize;

    /// Reads what `pg_size_bytes` reads: any case, spaces before the unit, and fractions.
    fn from_str(text: &str) -> Result<Self, NoSize> {
        let text = text.trim();
        let end = text.find(|letter: char| !letter.is_ascii_digit() && letter != '.').unwrap_or(text.len());
        let (number, unit) = (&text[..end], text[end..].trim_start());
        let power = if unit.is_empty() || unit.eq_ignore_ascii_case("bytes") {
            0
        } else {
            UNITS.iter().position(|known| known.eq_ignore_ascii_case(unit)).ok_or(NoSize)?
        };
        let unit_bytes: f64 = std::iter::repeat_n(1024.0, power).product();
        let bytes = number.parse::<f64>().map_err(|_| NoSize)? * unit_bytes;
        if bytes <= MOST { Ok(Self(bytes.round() as u64)) } else { Err(NoSize) }
    }
}

impl fmt::Display for Bytes {
    /// In the largest unit that tells it to the byte.
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (mut size, mut unit) = (self.0, 0);
        while size != 0 && size.is_multiple_of(1024) && unit + 1 < UNITS.len() {
            size /= 1024;
            unit += 1;
        }
        write!(out, "{size}{}", UNITS[unit])
    }
}

impl Serialize for Bytes {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl serde::de::Visitor<'_> for Visitor {
            type Value = Bytes;

            fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
                out.write_str("a whole number of bytes, or a text with its unit, such as \"10GB\"")
            }

            fn visit_u64<E: serde::de::Error>(self, bytes: u64) -> Result<Bytes, E> {
                Ok(Bytes(bytes))
            }

            fn visit_i64<E: serde::de::Error>(self, bytes: i64) -> Result<Bytes, E> {
                u64::try_from(bytes)
                    .map(Bytes)
                    .map_err(|_| E::invalid_value(serde::de::Unexpected::Signed(bytes), &self))
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Bytes, E> {
                text.parse().map_err(|error: NoSize| E::custom(format!("{text:?} is {error}")))
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_postgresql_reads_them() {
        for (text, bytes) in [
            ("0", 0),
            ("1", 1),
            ("17 bytes", 17),
            ("512kB", 512 << 10),
            ("512 mb", 512 << 20),
            ("10GB", 10 << 30),
            ("1.5 GB", 3 << 29),
            (" 2TB ", 2 << 40),
            ("1PB", 1 << 50),
        ] {
            assert_eq!(text.parse::<Bytes>().unwrap(), Bytes(bytes), "{text}");
        }
        for text in ["", "GB", "-1", "1e3", "10 G", "10GiB", "1.2.3", "inf", "nan", "9999PB", "1 GB 2"] {
            assert!(text.parse::<Bytes>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_size_is_written_so_that_it_is_read_as_the_same() {
        for (bytes, text) in
            [(0, "0B"), (1000, "1000B"), (1024, "1kB"), (10 << 30, "10GB"), (1536 << 20, "1536MB")]
        {
            assert_eq!(Bytes(bytes).to_string(), text);
            assert_eq!(text.parse::<Bytes>().unwrap(), Bytes(bytes));
        }
    }
}
