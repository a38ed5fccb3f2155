//! What the daemon's statements touched, from `pg_stat_statements`.
//!
//! The daemon runs as a role of its own, so that its statements can be told from this program's.

use tokio_postgres::Client;

/// What the server must be started with.
pub(crate) const SETTINGS: [(&str, &str); 2] = [
    ("shared_preload_libraries", "pg_stat_statements"),
    // Planning reads buffers too: the ends of the index, where it finds dead entries.
    ("pg_stat_statements.track_planning", "on"),
];

/// A statement of the batch's transaction, or any other that the daemon sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Reads slice and job.
    Position,
    /// Finds the batch's last key.
    Bound,
    /// Changes the rows.
    Update,
    /// Moves the cursor.
    Advance,
    /// All else: BEGIN, SET LOCAL, the gate, COMMIT; heartbeats.
    Other,
}

impl Kind {
    pub(crate) const ALL: [Self; 5] = [Self::Position, Self::Bound, Self::Update, Self::Advance, Self::Other];

    pub(crate) fn label(self) -> &'static str {
        match self {
            Self::Position => "read the cursor",
            Self::Bound => "find the bound",
            Self::Update => "change the rows",
            Self::Advance => "move the cursor",
            Self::Other => "all else that the daemon sent",
        }
    }

    /// By what the text has that no other statement has. The benchmark checks the calls, so that a
    /// statement that was rewritten and falls through to `Other` does not go unnoticed.
    fn of(query: &str) -> Self {
        if query.contains("SET cursor_key") {
            Self::Advance
        } else if query.starts_with("SELECT") && query.contains("cursor_key") {
            Self::Position
        } else if query.starts_with("SELECT ARRAY[") && query.contains("OFFSET") {
            Self::Bound
        } else if query.starts_with("UPDATE ONLY ") {
            Self::Update
        } else {
            Self::Other
        }
    }
}

/// What statements did, all of them together.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Work {
    pub(crate) calls: f64,
    /// Buffers found in memory or read, each as often as a statement came to it.
    pub(crate) buffers_touched: f64,
    pub(crate) buffers_dirtied: f64,
    /// Planning and executing.
    pub(crate) milliseconds: f64,
}

impl Work {
    /// This, and that too.
    pub(crate) fn and(self, other: Self) -> Self {
        Self {
            calls: self.calls + other.calls,
            buffers_touched: self.buffers_touched + other.buffers_touched,
            buffers_dirtied: self.buffers_dirtied + other.buffers_dirtied,
            milliseconds: self.milliseconds + other.milliseconds,
        }
    }

    /// A part of it.
    pub(crate) fn divided_by(self, parts: f64) -> Self {
        Self {
            calls: self.calls / parts,
            buffers_touched: self.buffers_touched / parts,
            buffers_dirtied: self.buffers_dirtied / parts,
            milliseconds: self.milliseconds / parts,
        }
    }
}

/// The work of each kind of statement.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Ledger {
    by_kind: [Work; Kind::ALL.len()],
}

impl Ledger {
    /// Starts counting from nothing.
    pub(crate) async fn reset(client: &Client) {
        client.execute("SELECT pg_stat_statements_reset()", &[]).await.expect("a superuser can reset it");
    }

    /// What `role` did in this database since the last reset.
    pub(crate) async fn of_role(client: &Client, role: &str) -> Self {
        let rows = client
            .query(
                "SELECT ltrim(s.query, E' \\n'), s.calls::float8,
                        (s.shared_blks_hit + s.shared_blks_read)::float8, s.shared_blks_dirtied::float8,
                        s.total_plan_time + s.total_exec_time
                 FROM pg_stat_statements s
                 JOIN pg_roles r ON r.oid = s.userid
                 JOIN pg_database d ON d.oid = s.dbid
                 WHERE r.rolname = $1 AND d.datname = current_database()",
                &[&role],
            )
            .await
            .expect("a superuser can read all statements");
        let mut ledger = Self::default();
        for row in rows {
            let work = Work {
                calls: row.get(1),
                buffers_touched: row.get(2),
                buffers_dirtied: row.get(3),
                milliseconds: row.get(4),
            };
            let total = ledger.entry(Kind::of(row.get(0)));
            *total = total.and(work);
        }
        ledger
    }

    /// The work of one kind.
    pub(crate) fn of_kind(mut self, kind: Kind) -> Work {
        *self.entry(kind)
    }

    fn entry(&mut self, kind: Kind) -> &mut Work {
        let position = Kind::ALL.iter().position(|other| *other == kind);
        &mut self.by_kind[position.expect("ALL has every kind")]
    }
}
