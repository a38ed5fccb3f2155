//! How fast the rows may go.
//!
//! Signals read how the database fares and write it on a board. Every tick the board is judged under
//! the rules of the configuration, the law decides a rate for each job, and the pacers carry it out:
//!
//! ```text
//! signals/* -> board -> judge (rules, staleness) -> law -> pacer
//! ```
//!
//! What decides is pure, with time as an argument: `board`, `judge`, `law`, `window`, `baseline`,
//! `schedule`. May use `database` and the heartbeat of `state`. Knows no job but by its name.

pub mod baseline;
pub mod beats;
pub mod board;
pub mod control;
pub mod job;
pub mod judge;
pub mod latency;
pub mod law;
pub mod pacer;
pub mod reading;
pub mod report;
pub mod rule;
pub mod schedule;
pub mod signals;
pub mod staleness;
pub mod watched;
pub mod window;

pub use control::Control;
pub use job::{JobThrottle, Retries};
