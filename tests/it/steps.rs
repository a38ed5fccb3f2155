//! A fault at every step: the daemon killed, its connection cut, or its process stopped past its lease,
//! each exactly before a statement, while it is on its way, or when it was carried out and its answer is lost.
//!
//! A proxy stands between daemon and server and holds the connection there. After every fault a daemon
//! finishes the job, and the same is asked: was each row changed exactly once, and do the books say so?

mod batch;
mod ends;
mod owner;
mod scene;
mod split;
mod statements;
mod sweeps;
