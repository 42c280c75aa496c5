//! One writer per record (protocol D9, D10): workers that race over the partitions of one topic while records move
//! between them, on the memory twin and on a real PostgreSQL.
//!
//! A random table ([`table`]) is changed, reloaded and re-keyed; its messages are read by several workers, each partition
//! at a speed of its own, with batches that are dropped, ranges that are delivered again, workers that start anew and take
//! partitions from one another. When all is read, the sink must hold what the table holds: that is asked of the table,
//! and of the stored rows, never of the judge.
//!
//! The same is run with one part of the protocol undone in what a worker sends to the sink ([`racer::Undone`]): then
//! something must be wrong, or the race would prove nothing.

#[path = "../support/memory.rs"]
mod memory;
#[path = "../golden/script.rs"]
mod script;
#[path = "../support/mod.rs"]
mod support;
#[path = "../golden/table.rs"]
mod table;
#[path = "../golden/worker.rs"]
mod worker;

mod course;
mod postgres;
mod racer;
mod twin;
