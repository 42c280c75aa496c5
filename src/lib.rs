//! afterimage: the stateful processor behind Heroku Connect's change topics.
//!
//! One direction, six verbs: `message → decode → identify → image lookup → delta → batch → commit`.
//! The modules below stand in that order of dependence: [`core`] is pure (no I/O, no clock, no async),
//! [`kafka`] and [`postgres`] each talk to one outside system, [`stream`] drives them, and
//! [`cli`] and [`demo`] talk to people.

#[macro_use]
pub mod failpoint;

pub mod cli;
pub mod config;
pub mod core;
pub mod demo;
pub mod kafka;
pub mod postgres;
pub mod stream;
pub mod telemetry;
