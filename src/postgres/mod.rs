//! The sink: the only module that speaks to PostgreSQL. Postgres judges; nothing here leads it.
//!
//! [`client`] connects, [`migrate`] brings the schema up, [`registry`] names orgs, objects, sources and
//! fields, [`search`] keeps typed views and lookup fields, [`claim`] takes partitions over with a new epoch,
//! [`lookup`] reads records and keys through, [`restore`] reads them back by position, [`splice`] puts late events in their place, [`source`] looks at the captured
//! database, [`commit`] writes sealed batches and moves positions in one transaction, [`status`] tells where things stand,
//! [`vigil`] whether a server process that works for long is alive; [`operator`] and [`dead_letters`] are what a person does.

pub mod claim;
pub mod client;
pub mod commit;
pub mod dead_letters;
mod kept;
pub mod lookup;
pub mod migrate;
pub mod operator;
pub mod registry;
pub mod restore;
pub mod search;
mod settle;
pub mod source;
pub mod splice;
pub mod status;
pub mod vigil;
mod wire;

/// A connection to the sink, and what can go wrong on it: the driver's own types, under the sink's name.
pub use tokio_postgres::{Client, Error};
