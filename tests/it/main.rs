//! The promises of backfilld, each tested from outside: the real program on real PostgreSQL servers.

mod support;

mod bad_input;
mod commands;
mod exactly_once;
mod kills;
mod life;
mod metrics;
mod plans;
mod quarantine;
mod rooms;
mod schema;
