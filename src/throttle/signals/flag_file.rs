//! A file that stops everything while it is there: for scripts and people that know of a deployment,
//! a backup or an incident.

use std::io;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use tokio::task::{JoinHandle, spawn_blocking};

use super::Signal;
use crate::throttle::reading::{Figure, Reading};

/// The signal `flag_file`.
#[derive(Debug)]
pub struct FlagFile {
    path: PathBuf,
    interval: Duration,
    /// A look that is under way. On a file system that hangs, one thread waits for it and not one more
    /// with each reading.
    look: Option<JoinHandle<io::Result<bool>>>,
}

impl FlagFile {
    /// The file at `path`.
    #[must_use]
    pub fn new(path: impl Into<PathBuf>, interval: Duration) -> Self {
        Self { path: path.into(), interval, look: None }
    }
}

impl Signal for FlagFile {
    fn name(&self) -> String {
        "flag_file".to_owned()
    }

    fn interval(&self) -> Duration {
        self.interval
    }

    async fn read(&mut self, _: Duration) -> Result<Vec<Reading>, String> {
        let path = self.path.clone();
        let look = self.look.get_or_insert_with(|| spawn_blocking(move || path.try_exists()));
        let found = look.await;
        self.look = None;
        let subject = self.path.display().to_string();
        let exists = found
            .unwrap_or_else(|error| Err(error.into()))
            .map_err(|error| format!("cannot look for {subject}: {error}"))?;
        Ok(vec![Reading::new(subject, Figure::Stop(exists), Instant::now())])
    }
}
