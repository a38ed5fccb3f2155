//! The keys of a job file.

use crate::job::known_keys::{FreeTable, Kind, KnownKeys, Section};
use crate::job::limit::AUTO;

const EXPRESSION: &str = "\"SQL expression\", a text in quotes";

const COUNT: &[(&str, Kind)] = &[("max", Kind::Whole), ("critical", Kind::Whole)];
const NUMBER: &[(&str, Kind)] = &[("max", Kind::Number), ("critical", Kind::Number)];

/// The keys of a job file.
pub const KNOWN_KEYS: KnownKeys = KnownKeys {
    sections: &[
        Section {
            path: "",
            keys: &[("name", Kind::Text), ("table", Kind::Text), ("hold_before", Kind::Texts)],
        },
        Section { path: "update", keys: &[("where", Kind::Text)] },
        Section { path: "delete", keys: &[("where", Kind::Text)] },
        Section {
            path: "copy",
            keys: &[
                ("into", Kind::Text),
                ("where", Kind::Text),
                ("on_conflict", Kind::Choice(&["skip", "update"])),
            ],
        },
        Section { path: "move", keys: &[("into", Kind::Text), ("where", Kind::Text)] },
        Section { path: "statement", keys: &[("sql", Kind::Text)] },
        Section {
            path: "walk",
            keys: &[
                ("key", Kind::Texts),
                ("order", Kind::Choice(&["ascending", "descending"])),
                ("from", Kind::Texts),
                ("to", Kind::Texts),
                ("workers", Kind::Whole),
                ("sweeps", Kind::Whole),
            ],
        },
        Section {
            path: "batch",
            keys: &[
                ("target_duration", Kind::Duration),
                ("initial_rows", Kind::Whole),
                ("min_rows", Kind::Whole),
                ("max_rows", Kind::Whole),
                ("synchronous_commit", Kind::Choice(&["off", "local", "remote_write", "on", "remote_apply"])),
            ],
        },
        Section {
            path: "limits",
            keys: &[
                ("rows_per_second", Kind::Number),
                ("lock_timeout", Kind::Duration),
                ("statement_timeout", Kind::Duration),
                ("max_retries", Kind::Whole),
                ("max_quarantined_rows", Kind::Whole),
            ],
        },
        Section { path: "throttle", keys: &[("max_rows_per_second", Kind::Number)] },
        Section {
            path: "throttle.query_latency",
            keys: &[("max_p99", Kind::DurationOr(AUTO)), ("critical", Kind::Duration)],
        },
        Section {
            path: "throttle.replication_lag",
            keys: &[
                ("target", Kind::Duration),
                ("max", Kind::Duration),
                ("max_bytes", Kind::Bytes),
                ("min_replicas", Kind::WholeUpTo(1000)),
            ],
        },
        Section { path: "throttle.slots", keys: &[("max", Kind::Bytes), ("critical", Kind::Bytes)] },
        Section { path: "throttle.autovacuum", keys: COUNT },
        Section { path: "throttle.wal_archive", keys: COUNT },
        Section { path: "throttle.active_queries", keys: COUNT },
        Section {
            path: "throttle.transaction_age",
            keys: &[("max", Kind::Duration), ("critical", Kind::Duration)],
        },
        Section { path: "throttle.sql.*", keys: NUMBER },
        Section { path: "throttle.prometheus.*", keys: NUMBER },
        Section { path: "schedule", keys: &[("windows", Kind::Texts), ("timezone", Kind::Text)] },
        Section {
            path: "finish",
            keys: &[("not_null", Kind::Texts), ("validate", Kind::Texts), ("analyze", Kind::Switch)],
        },
        Section { path: "sync", keys: &[("trigger", Kind::Switch)] },
    ],
    not_yet: &[],
    free: &[
        FreeTable { path: "update.set", expected: EXPRESSION },
        FreeTable { path: "copy.columns", expected: EXPRESSION },
        FreeTable { path: "move.columns", expected: EXPRESSION },
    ],
};
