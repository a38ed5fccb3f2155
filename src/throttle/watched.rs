//! The tables that jobs walk at this moment, as the signals need to know them.

/// A table that a job of this daemon walks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Watched {
    /// The table.
    pub oid: u32,
    /// Its name as people write it: `public.users`.
    pub name: String,
    /// Reads by key, spread over the table. None: the table is not probed.
    pub reads: Vec<KeyRead>,
}

impl Watched {
    /// The name of the probe that reads the table.
    #[must_use]
    pub fn probe_name(&self) -> String {
        format!("read of {}", self.name)
    }
}

/// A statement that reads one row by its key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyRead {
    /// The statement, with one parameter for each value of the key.
    pub sql: String,
    /// The key, as text.
    pub key: Vec<String>,
}
