//! Jobs as people write them: the job file, what is valid in it, and whether the database can do
//! what it says.
//!
//! May use `database`, `state`, `walk`, and of `throttle` the rules and schedules. Knows no daemon:
//! [`preflight`] turns a spec into the [`crate::walk::Plan`] that a worker carries out.

pub mod bytes;
pub mod duration;
pub mod file;
pub mod known_keys;
pub mod limit;
pub mod preflight;
pub mod report;
pub mod spec;
pub mod submission;
pub mod tune;

pub use file::{Job, JobFileError};
pub use preflight::{Preflight, PreflightError};
pub use spec::Spec;
