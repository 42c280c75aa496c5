//! The sink's schema on a real PostgreSQL: what Rust writes, SQL reads.
//! One binary, so that one private cluster serves all of it.

mod advance;
mod cluster;
mod fold;
mod migrate;
mod months;
mod story;
