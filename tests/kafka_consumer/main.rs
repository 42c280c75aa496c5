//! The consumer against librdkafka's embedded broker: groups, rewinds, back-pressure, ends, faults, stopping.

mod asking;
mod group;
mod reading;
mod support;
#[path = "../support/wait.rs"]
#[allow(dead_code)]
mod wait;
