//! Key values travel as text, in both directions.
//!
//! The server's own input function reads the text as a value of the column's type, so every type
//! that PostgreSQL knows (or an extension adds) can be a key and the daemon needs to know none.

use bytes::BytesMut;
use postgres_types::{Format, IsNull, ToSql, Type, to_sql_checked};

/// One key value as text, sent in text format for whatever type the parameter has.
#[derive(Debug, Clone)]
pub struct KeyValue<'a>(pub &'a str);

impl ToSql for KeyValue<'_> {
    fn to_sql(
        &self,
        _: &Type,
        out: &mut BytesMut,
    ) -> Result<IsNull, Box<dyn std::error::Error + Sync + Send>> {
        out.extend_from_slice(self.0.as_bytes());
        Ok(IsNull::No)
    }

    fn accepts(_: &Type) -> bool {
        true
    }

    fn encode_format(&self, _: &Type) -> Format {
        Format::Text
    }

    to_sql_checked!();
}

/// Pairs key values with the types of the key's columns, in order, as the parameters of a typed query.
#[must_use]
pub fn key_parameters<'a>(values: &'a [String], types: &[Type]) -> Vec<(KeyValue<'a>, Type)> {
    assert!(values.len() <= types.len(), "a key has at most as many values as its key columns");
    values.iter().zip(types).map(|(value, kind)| (KeyValue(value), kind.clone())).collect()
}
