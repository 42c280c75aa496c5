//! The sink's schema on a real PostgreSQL: what Rust writes, SQL reads.
//! One binary, so that one private cluster serves all of it.

mod advance;
mod casts;
mod catalogue;
mod cluster;
mod fold;
mod history;
mod lookups;
mod migrate;
mod months;
mod object_views;
mod plans;
mod story;
