//! backfilld walks large tables of a live PostgreSQL in keyset batches, to fill or rewrite their
//! rows, and keeps its place in the same transaction as the data.
//!
//! The rooms, from the lowest to the highest; none imports one that stands above it:
//!
//! | room | does |
//! | --- | --- |
//! | [`database`] | connections, quoting, what an error means |
//! | [`web`] | one request over HTTP or HTTPS |
//! | [`state`] | the state schema and every statement on it |
//! | [`throttle`] | how fast: signals, the law, the pacer, schedules |
//! | [`walk`] | the key, the SQL, the batch transaction, the batch sizer |
//! | [`finish`] | constraints enforced without a long lock, the trigger that keeps new rows in step |
//! | [`job`] | the job file: its spec, validation, preflight |
//! | [`settings`] | the daemon's configuration |
//! | [`http`] | the API, the console, metrics and health |
//! | [`daemon`] | supervisor, workers, leases, signals |
//! | [`cli`] | one file a command |

#![forbid(unsafe_code)]

pub mod cli;
pub mod daemon;
pub mod database;
pub mod finish;
pub mod http;
pub mod job;
pub mod settings;
pub mod state;
pub mod throttle;
pub mod walk;
pub mod web;
