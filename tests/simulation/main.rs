//! The throttle's decisions in virtual time: what decides is pure, so a day passes in seconds.
//!
//! `Control` and its board are the real ones. The server, its replicas, the application and the worker
//! are models (`server`, `replica`, `signal`, `world`), driven by the scenario files in `scenarios/`: a
//! load, a time line, and the ranges that the figures must stay in. The law's own promises are tested
//! with arbitrary readings in `properties`.
//!
//! `cargo test --test simulation -- --nocapture the_figures` prints all figures, beside those of plain
//! additive increase and multiplicative decrease under the same conditions.

#![allow(clippy::unwrap_used, reason = "a test that unwraps fails with the place and the error")]
#![allow(clippy::print_stdout, reason = "the figures are for a person to read")]

mod aimd;
mod control;
mod figures;
mod properties;
mod replica;
mod scenario;
mod scenarios;
mod server;
mod signal;
mod world;
