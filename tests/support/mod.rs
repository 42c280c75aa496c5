//! What the integration tests share: private servers that are gone with their test binary, and ways to wait for facts.
//!
//! Each test binary includes this module whole and uses its own part of it.
#![allow(dead_code)]

pub mod app;
pub mod audit;
pub mod certificates;
pub mod names;
pub mod pgbouncer;
pub mod postgres;
pub mod stream;
pub mod terminal;
pub mod wait;

#[cfg(feature = "java-tests")]
pub mod connect;
#[cfg(feature = "java-tests")]
pub mod java;
#[cfg(feature = "java-tests")]
pub mod kafka;
