//! Progress: positions, ranges and the cumulative counters that must add up.

/// `afterimage.position.position_id`: one partition of one topic in one life of that topic.
pub type PositionId = i32;

/// Cumulative counters of a position, in the order of the columns of `afterimage.position`.
/// The first fifteen are outcomes and sum to the offsets advanced (conservation law L1);
/// the last four are rows of history (L2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(usize)]
pub enum Counter {
    /// Wrote a create, update, backfill, delete or undelete.
    Delta = 0,
    /// Wrote the first image of a record that existed before.
    Baseline,
    /// Changed nothing at all.
    Noop,
    /// Changed only status columns (`_hc_*`).
    NoopStatus,
    /// Changed only system columns (`systemmodstamp`, …).
    NoopSystem,
    /// Judged before.
    Duplicate,
    /// Read after a newer event of its record; kept in `late_event`.
    Stale,
    /// Null value after a delete.
    Tombstone,
    /// Truncate, logical message, heartbeat, transaction mark.
    Ignored,
    /// A row that Salesforce has not given an id yet.
    Pending,
    /// Not decodable; kept in `dead_letter`.
    Dead,
    /// Deletes a row that was never seen.
    DeleteUnknown,
    /// Belongs to an erased record.
    Forgotten,
    /// Offsets without a message inside a contiguous fetch (control records, compaction).
    Hole,
    /// Offsets that were gone before they could be read.
    Gap,
    /// Delta rows and first keyframes written.
    RowsWritten,
    /// Rows taken back by a re-insert within the grace window.
    RowsCancelled,
    /// Rows erased on request.
    RowsErased,
    /// Rows dropped by retention.
    RowsRetired,
}

/// Number of counters of a position.
pub const COUNTERS: usize = 19;

/// Increments of one position's counters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counters(pub [i64; COUNTERS]);

impl Counters {
    /// Adds `n` to one counter.
    pub fn add(&mut self, counter: Counter, n: i64) {
        self.0[counter as usize] += n;
    }

    /// One counter's increment.
    pub fn get(&self, counter: Counter) -> i64 {
        self.0[counter as usize]
    }

    /// Sum of all outcomes: equals the offsets advanced (L1).
    pub fn events(&self) -> i64 {
        self.0[..=Counter::Gap as usize].iter().sum()
    }
}

/// What is known of the greatest (source time, LSN) that a position has passed.
///
/// First deliveries come in commit order, so an event at or below it was delivered before.
/// Snapshot reads and events without an LSN do not raise it (protocol D10, "passed before").
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Passed {
    /// Source commit time, µs.
    pub ts: i64,
    /// LSN.
    pub lsn: u64,
}

impl Passed {
    /// Whether an event at this place in the source's order was delivered before.
    pub fn covers(&self, ts: Option<i64>, lsn: u64) -> bool {
        match ts {
            Some(ts) if lsn != 0 => (ts, lsn) <= (self.ts, self.lsn),
            _ => false,
        }
    }

    /// Takes note of an event.
    pub fn raise(&mut self, ts: Option<i64>, lsn: u64) {
        if let Some(ts) = ts
            && lsn != 0
        {
            *self = (*self).max(Passed { ts, lsn });
        }
    }
}
