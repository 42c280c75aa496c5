//! postgres

pub mod migrate;
