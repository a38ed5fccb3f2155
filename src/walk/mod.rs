//! Walking a table: which key, which SQL, one transaction a batch, how many rows in it.
//!
//! May use `database` and `state`. Knows nothing of job files, daemons, throttles or HTTP: what to
//! change comes in as a [`Plan`], how many rows as a number, and what happened goes out.
//!
//! Read in this order: [`keyset`] (the SQL of a key range), [`operation`] (the SQL that changes its rows), [`batch`] (the transaction), [`sizer`] and
//! [`isolation`] (how many rows), [`key`] (which index), [`estimate`] (how many there are), [`cut`] (where
//! one worker's part ends and another's begins), [`sweep`] (rows that appeared behind the walk), [`again`] (rows that
//! were set aside), [`matching`] (how many rows are left), [`trial`] (batches that are rolled back).

pub mod again;
pub mod batch;
pub mod cut;
pub mod estimate;
pub mod isolation;
pub mod key;
pub mod keyset;
pub mod matching;
pub mod operation;
mod parameters;
pub mod read;
pub mod sizer;
pub mod sweep;
pub mod trial;

pub use batch::Plan;
pub use keyset::Keyset;
pub use operation::Operation;
