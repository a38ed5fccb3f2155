//! The promises of backfilld, each tested from outside: the real program on real PostgreSQL servers.

#![allow(clippy::unwrap_used, reason = "a test that unwraps fails with the place and the error")]

mod support;

mod bad_input;
mod commands;
mod dashboards;
mod docs;
mod exactly_once;
mod failover;
mod farewells;
mod finish;
mod holds;
mod http;
mod in_step;
mod kills;
mod life;
mod logs;
mod metrics;
mod notify;
mod operations;
mod partitions;
mod patroni;
mod plans;
mod pooler;
mod quarantine;
mod rights;
mod rooms;
mod schema;
mod secrets;
mod signals;
mod sql_interface;
mod steps;
mod sweeps;
mod systemd;
mod throttle;
mod tls;
mod trial;
mod tutorial;
mod verify;
mod workers;
