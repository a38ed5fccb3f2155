//! How fast the rows may go.
//!
//! Knows no database and no job: a rate comes in, a wait goes out. The adaptive law and its signals
//! have their place here, beside the pacer that carries out whatever rate is decided.

pub mod pacer;

pub use pacer::Pacer;
