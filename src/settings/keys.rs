//! The keys of the daemon's configuration.

use crate::database::SslMode;
use crate::job::known_keys::{Kind, KnownKeys, NotYet, Section};
use crate::job::limit::AUTO;

/// The keys of a signal that counts something.
const COUNT: &[(&str, Kind)] =
    &[("max", Kind::Whole), ("critical", Kind::Whole), ("interval", Kind::Duration)];
/// Ticks at most: a day of them.
const TICKS: Kind = Kind::WholeUpTo(86_400);

pub(super) const KNOWN_KEYS: KnownKeys = KnownKeys {
    sections: &[
        Section {
            path: "database",
            keys: &[
                ("url", Kind::Text),
                ("password_file", Kind::Text),
                ("sslmode", Kind::Choice(SslMode::NAMES)),
                ("ssl_root_cert", Kind::Text),
                ("pool_size", Kind::Whole),
                ("pooler", Kind::Choice(&["none", "transaction"])),
            ],
        },
        Section { path: "state", keys: &[("schema", Kind::Text)] },
        Section { path: "jobs", keys: &[("directory", Kind::Text)] },
        Section {
            path: "daemon",
            keys: &[
                ("name", Kind::Text),
                ("max_running_jobs", Kind::Whole),
                ("shutdown_grace", Kind::Duration),
                ("lease", Kind::Duration),
            ],
        },
        Section {
            path: "http",
            keys: &[("listen", Kind::Address), ("token_file", Kind::Text), ("allowed_hosts", Kind::Texts)],
        },
        Section {
            path: "notify",
            keys: &[("url", Kind::Text), ("token_file", Kind::Text), ("after", Kind::Duration)],
        },
        Section {
            path: "log",
            keys: &[
                ("format", Kind::Choice(&["text", "json"])),
                ("level", Kind::Choice(&["error", "warn", "info", "debug", "trace"])),
            ],
        },
        Section {
            path: "throttle",
            keys: &[
                ("tick", Kind::Duration),
                ("window", Kind::Duration),
                ("max_rows_per_second", Kind::Number),
                ("min_rows_per_second", Kind::Number),
                ("start_rows_per_second", Kind::Number),
                ("stale_after", Kind::Duration),
            ],
        },
        Section {
            path: "throttle.law",
            keys: &[
                ("cut_at", Kind::Number),
                ("cut_factor", Kind::Number),
                ("ease_at", Kind::Number),
                ("ease_factor", Kind::Number),
                ("hold_at", Kind::Number),
                ("start_growth", Kind::Number),
                ("growth", Kind::Number),
                ("near_share", Kind::Number),
                ("growth_speedup", Kind::Number),
                ("calm_at", Kind::Number),
                ("settle_ticks", TICKS),
                ("real_rate_share", Kind::Number),
                ("cooldown_ticks", TICKS),
                ("growth_cooldown_ticks", TICKS),
                ("bad_rate_memory", Kind::Number),
                ("bad_rate_aging", Kind::Number),
                ("bad_rate_age_every", Kind::Duration),
                ("lag_factor", Kind::Number),
                ("lag_floor", Kind::Number),
                ("lag_growth", Kind::Number),
                ("resume_factor", Kind::Number),
                ("long_pause", Kind::Duration),
                ("calm_ticks", TICKS),
            ],
        },
        Section {
            path: "throttle.query_latency",
            keys: &[
                ("max_p99", Kind::DurationOr(AUTO)),
                ("critical", Kind::Duration),
                ("auto_multiple", Kind::Number),
                ("interval", Kind::Duration),
                ("probes", Kind::Texts),
                ("baseline_every", Kind::Duration),
            ],
        },
        Section {
            path: "throttle.replication_lag",
            keys: &[
                ("target", Kind::Duration),
                ("max", Kind::Duration),
                ("replicas", Kind::Texts),
                ("min_replicas", Kind::WholeUpTo(1000)),
                ("max_bytes", Kind::Bytes),
                ("interval", Kind::Duration),
            ],
        },
        Section {
            path: "throttle.slots",
            keys: &[("max", Kind::Bytes), ("critical", Kind::Bytes), ("interval", Kind::Duration)],
        },
        Section { path: "throttle.autovacuum", keys: COUNT },
        Section { path: "throttle.wal_archive", keys: COUNT },
        Section { path: "throttle.active_queries", keys: COUNT },
        Section {
            path: "throttle.transaction_age",
            keys: &[("max", Kind::Duration), ("critical", Kind::Duration), ("interval", Kind::Duration)],
        },
        Section { path: "throttle.flag_file", keys: &[("path", Kind::Text), ("interval", Kind::Duration)] },
        Section {
            path: "throttle.sql.*",
            keys: &[
                ("query", Kind::Text),
                ("max", Kind::Number),
                ("critical", Kind::Number),
                ("interval", Kind::Duration),
            ],
        },
        Section {
            path: "throttle.prometheus.*",
            keys: &[
                ("url", Kind::Text),
                ("query", Kind::Text),
                ("max", Kind::Number),
                ("critical", Kind::Number),
                ("interval", Kind::Duration),
            ],
        },
    ],
    not_yet: &[NotYet {
        path: "database.password",
        advice: "write it into a file and name that in database.password_file, or use PGPASSWORD",
    }],
    free: &[],
};
