//! The promises of backfilld, each tested from outside: the real program on real PostgreSQL servers.

#![allow(clippy::unwrap_used, reason = "a test that unwraps fails with the place and the error")]

mod support;

mod bad_input;
mod commands;
mod exactly_once;
mod failover;
mod finish;
mod holds;
mod in_step;
mod kills;
mod life;
mod metrics;
mod patroni;
mod plans;
mod pooler;
mod quarantine;
mod rights;
mod rooms;
mod schema;
mod secrets;
mod signals;
mod steps;
mod throttle;
mod tls;
mod workers;
