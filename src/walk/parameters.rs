//! The two ends of a key range as parameters of a statement.

use postgres_types::{ToSql, Type};

use super::keyset::Keyset;
use crate::database::{KeyValue, key_parameters};

/// A parameter of a statement whose types are sent with it.
pub(super) type Typed<'a> = (&'a (dyn ToSql + Sync), Type);

/// The values of a range's start from `$1` on, and behind them those of its end.
pub(super) struct Parameters<'a> {
    values: Vec<(KeyValue<'a>, Type)>,
}

impl<'a> Parameters<'a> {
    pub(super) fn new(keyset: &Keyset, start: &'a [String], end: &'a [String]) -> Self {
        let types = keyset.parameter_types();
        assert_eq!(start.len(), types.len(), "a slice's first key and cursor are whole keys");
        assert_eq!(end.len(), types.len(), "a slice's last key is a whole key");
        Self { values: [key_parameters(start, &types), key_parameters(end, &types)].concat() }
    }

    pub(super) fn all(&self) -> Vec<Typed<'_>> {
        self.values.iter().map(|(value, kind)| (value as &(dyn ToSql + Sync), kind.clone())).collect()
    }

    /// With `more` behind them.
    pub(super) fn with<'b>(&'b self, more: &[Typed<'b>]) -> Vec<Typed<'b>> {
        let mut all = self.all();
        all.extend_from_slice(more);
        all
    }
}
