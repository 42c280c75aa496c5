//! demo

pub mod child;
pub mod postgres;
pub mod scratch;
pub mod simulator;
