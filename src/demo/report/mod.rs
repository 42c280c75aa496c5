//! The demo's closing story: what the simulated orgs did, what the time machine kept of it, and whether that is right.
//!
//! [`gather`] asks through the public views only; [`DemoReport`] prints itself for people (`Display`) and for scripts
//! (`Serialize`).

mod gather;
mod story;
mod table;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;

pub use gather::gather;
pub use story::questions;
pub use table::{folded, size, thousands};

use super::crash::Crash;
use super::options::{BrokerChoice, CaptureChoice, DemoOptions};
use super::simulator::{Debezium, SimTotals, Simulator};
use super::sink::Answer;

/// The database in which the article's way of keeping history is tried, to measure what it costs.
pub const LISTENER_DATABASE: &str = "listener";
/// What the article's listener paid for a version: 4,274 MB for 8,857,770 rows, indexes included.
pub const ARTICLE_BYTES_PER_VERSION: f64 = 506.0;

/// What the demo knows beside what the sink says.
#[derive(Debug)]
pub struct Facts<'a> {
    /// What was asked for.
    pub options: &'a DemoOptions,
    /// The exhausted simulator.
    pub simulator: &'a Simulator,
    /// The broker's end of every partition that got a message.
    pub ends: &'a BTreeMap<(Arc<str>, i32), i64>,
    /// The worker that was killed, and how its partitions went on.
    pub crash: Option<Crash>,
    /// How often the connectors were killed.
    pub connector_kills: u32,
    /// From the first message to the last commit.
    pub processed: Duration,
    /// From the start of the demo to here.
    pub total: Duration,
}

/// The result of a demo.
#[derive(Debug, Clone, Serialize)]
pub struct DemoReport {
    /// Seed of the simulation.
    pub seed: u64,
    /// Worker processes.
    pub workers: u8,
    /// The orgs' names.
    pub orgs: Vec<String>,
    /// The broker between simulator (or connector) and workers.
    pub broker: BrokerChoice,
    /// Where the messages came from.
    pub capture: CaptureChoice,
    /// Debezium's release, real or simulated.
    pub debezium: Debezium,
    /// How often the connectors were killed, each time repeating what they had sent last.
    pub connector_kills: u32,
    /// The worker that was killed on the way.
    pub crash: Option<Crash>,
    /// Seconds from the first message to the last commit.
    pub processing_seconds: f64,
    /// Seconds in all, until this report.
    pub total_seconds: f64,
    /// The article's account.
    pub account: AccountStory,
    /// What was emitted.
    pub emitted: SimTotals,
    /// What is stored, by op.
    pub versions: BTreeMap<String, i64>,
    /// What became of every message.
    pub outcomes: Vec<Outcome>,
    /// Side tables that ought to be short.
    pub set_aside: SetAside,
    /// What it costs, against full copies.
    pub bytes: Bytes,
    /// Every offset accounted for.
    pub conservation: Conservation,
    /// The stored images against the simulator's.
    pub truth: TruthCheck,
}

/// The article's account.
#[derive(Debug, Clone, Serialize)]
pub struct AccountStory {
    /// Events of it that were emitted: 21.
    pub events: usize,
    /// Its versions, oldest first.
    pub versions: Vec<AccountVersion>,
    /// The article's query.
    pub query: String,
    /// And its answer under the org's search path.
    pub answer: Answer,
    /// Whether versions and answer are the six that the article's rows hold.
    pub right: bool,
}

/// A version of the article's account.
#[derive(Debug, Clone, Serialize)]
pub struct AccountVersion {
    /// Its number, from 0.
    pub seq: i64,
    /// What it is.
    pub op: String,
    /// Since when it is valid.
    pub at: String,
    /// `{"field": [old, new]}`
    pub changes: serde_json::Map<String, serde_json::Value>,
}

/// An outcome and how often it happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Outcome {
    /// The outcome.
    pub outcome: String,
    /// Its reason, where it has several.
    pub reason: Option<String>,
    /// Messages.
    pub events: i64,
}

/// Rows beside the history.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct SetAside {
    /// Messages that could not be decoded.
    pub dead_letters: i64,
    /// Ranges that were missing.
    pub gaps: i64,
    /// Events read after a newer one of their record.
    pub late_events: i64,
}

/// Sizes, indexes and TOAST included.
#[derive(Debug, Clone, Serialize)]
pub struct Bytes {
    /// All months of deltas.
    pub delta: i64,
    /// First versions and every 64th image.
    pub keyframe: i64,
    /// The record registry.
    pub record: i64,
    /// Every table of the schema `afterimage`, those above included.
    pub schema: i64,
    /// The article's way, measured per object on a sample.
    pub copies: Vec<FullCopies>,
}

/// What full copies of one object's rows cost.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct FullCopies {
    /// The object.
    pub object: String,
    /// Inserts and updates: each would be a row.
    pub events: u64,
    /// Rows of the measured sample.
    pub sample: u64,
    /// Bytes per row in it, indexes included.
    pub bytes_per_row: f64,
}

impl Bytes {
    /// What the history needs: deltas, keyframes and the registry.
    pub fn history(&self) -> i64 {
        self.delta + self.keyframe + self.record
    }

    /// What full copies of all events would need, by the measured samples.
    pub fn full_copies(&self) -> f64 {
        self.copies.iter().map(|copies| copies.events as f64 * copies.bytes_per_row).sum()
    }

    /// Inserts and updates in all.
    pub fn copied_events(&self) -> u64 {
        self.copies.iter().map(|copies| copies.events).sum()
    }
}

/// The conservation law: every offset of every partition has one outcome.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Conservation {
    /// Partitions with messages.
    pub partitions: usize,
    /// Messages in the broker.
    pub messages: i64,
    /// Outcomes counted.
    pub outcomes: i64,
    /// Partitions where position, outcomes and the broker's end disagree.
    pub broken: Vec<String>,
}

/// Every record's last image, status and number of versions, against the simulator's.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct TruthCheck {
    /// Records that the stream has shown.
    pub records: usize,
    /// Of these, with the right status and image.
    pub right_images: usize,
    /// Of these, with the right number of versions as well.
    pub right_histories: usize,
    /// Some of the differences, in words.
    pub differences: Vec<String>,
}

impl TruthCheck {
    /// Whether the stored records are what they ought to be.
    pub fn ok(&self) -> bool {
        self.right_histories == self.records
    }
}

impl DemoReport {
    /// Whether every check succeeded.
    pub fn ok(&self) -> bool {
        self.account.right
            && self.conservation.broken.is_empty()
            && self.truth.ok()
            && self.crash.as_ref().is_some_and(|crash| crash.claimed_after.is_some())
            && self.set_aside.dead_letters == 0
            && self.set_aside.gaps == 0
    }
}

#[cfg(test)]
mod gather_tests;
#[cfg(test)]
mod tests;
