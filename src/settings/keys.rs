//! The keys of the daemon's configuration.

use crate::job::known_keys::{Kind, KnownKeys, NotYet, Section};

pub(super) const KNOWN_KEYS: KnownKeys = KnownKeys {
    sections: &[
        Section { path: "database", keys: &[("url", Kind::Text), ("pool_size", Kind::Whole)] },
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
        Section { path: "http", keys: &[("listen", Kind::Address)] },
        Section {
            path: "log",
            keys: &[
                ("format", Kind::Choice(&["text", "json"])),
                ("level", Kind::Choice(&["error", "warn", "info", "debug", "trace"])),
            ],
        },
    ],
    not_yet: &[
        NotYet { path: "database.password", advice: "give the password in the URL or in PGPASSWORD" },
        NotYet { path: "database.password_file", advice: "give the password in the URL or in PGPASSWORD" },
        NotYet { path: "database.sslmode", advice: "connections are made without TLS" },
        NotYet { path: "database.ssl_root_cert", advice: "connections are made without TLS" },
        NotYet { path: "database.pooler", advice: "connect to the server itself" },
        NotYet { path: "throttle", advice: "set limits.rows_per_second in the job file" },
        NotYet { path: "notify", advice: "watch the metric backfilld_job_state, or run `backfilld wait`" },
        NotYet { path: "http.token_file", advice: "nothing can be changed over HTTP in this version" },
    ],
    free: &[],
};
