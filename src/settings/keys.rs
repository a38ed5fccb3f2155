//! The keys of the daemon's configuration.

use crate::job::known_keys::{KnownKeys, NotYet, Section};

pub(super) const KNOWN_KEYS: KnownKeys = KnownKeys {
    sections: &[
        Section { path: "database", keys: &["url", "pool_size"] },
        Section { path: "state", keys: &["schema"] },
        Section { path: "jobs", keys: &["directory"] },
        Section { path: "daemon", keys: &["name", "max_running_jobs", "shutdown_grace", "lease"] },
        Section { path: "http", keys: &["listen"] },
        Section { path: "log", keys: &["format", "level"] },
    ],
    not_yet: &[
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
