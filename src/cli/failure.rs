//! How a command fails: a message for a person and an exit code for a script.

use std::fmt::Display;
use std::io::{self, Write as _};
use std::process::ExitCode;

use super::journal;
use crate::job::PreflightError;
use crate::job::submission::SubmitError;
use crate::state::StateError;

/// The exit code of a job that did not complete.
pub(super) const NOT_COMPLETE: u8 = 3;

/// A failed command.
#[derive(Debug)]
pub(super) struct Failure {
    code: u8,
    message: String,
}

impl Failure {
    /// It failed at run time.
    pub(super) fn runtime(message: impl Display) -> Self {
        Self { code: 1, message: message.to_string() }
    }

    /// The command line, the configuration or a job file is wrong.
    pub(super) fn usage(message: impl Display) -> Self {
        Self { code: 2, message: message.to_string() }
    }

    /// The job did not complete.
    pub(super) fn not_complete(message: impl Display) -> Self {
        Self { code: NOT_COMPLETE, message: message.to_string() }
    }

    /// Says it on standard error.
    pub(super) fn report(&self) -> ExitCode {
        let priority = if journal::is_told() { journal::ERROR } else { "" };
        let mut errors = io::stderr().lock();
        for line in self.message.lines() {
            // Nobody may be listening any more; the exit code still tells.
            let _ = writeln!(errors, "{priority}backfilld: {line}");
        }
        ExitCode::from(self.code)
    }

    /// A job of `file` that cannot run, or could not be examined.
    pub(super) fn preflight(file: &std::path::Path, error: &PreflightError) -> Self {
        match error {
            PreflightError::Problems(problems) => {
                let lines: Vec<String> =
                    problems.iter().map(|problem| format!("{}: {problem}", file.display())).collect();
                Self::usage(lines.join("\n"))
            }
            PreflightError::Database(_) | PreflightError::PartGone(_) => {
                Self::runtime(format!("{}: {error}", file.display()))
            }
        }
    }

    /// A job of `file` that was not submitted.
    pub(super) fn submission(file: &std::path::Path, error: &SubmitError) -> Self {
        match error {
            SubmitError::Preflight(error) => Self::preflight(file, error),
            SubmitError::State(error) => Self::runtime(format!("{}: {error}", file.display())),
        }
    }
}

impl From<StateError> for Failure {
    fn from(error: StateError) -> Self {
        Self::runtime(error)
    }
}
