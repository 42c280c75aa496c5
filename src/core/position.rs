//! Progress: positions, ranges and the cumulative counters that must add up.

use xxhash_rust::xxh3::xxh3_64_with_seed;

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

impl Counter {
    /// An outcome as the view `outcomes` names it; the others are no outcomes.
    pub fn word(self) -> &'static str {
        match self {
            Counter::Delta => "delta",
            Counter::Baseline => "baseline",
            Counter::Noop | Counter::NoopStatus | Counter::NoopSystem => "noop",
            Counter::Duplicate => "duplicate",
            Counter::Stale => "stale",
            Counter::Tombstone => "tombstone",
            Counter::Ignored => "ignored",
            Counter::Pending => "pending",
            Counter::Dead => "dead_letter",
            Counter::DeleteUnknown => "delete_unknown",
            Counter::Forgotten => "forgotten",
            Counter::Hole => "hole",
            Counter::Gap => "gap",
            Counter::RowsWritten | Counter::RowsCancelled | Counter::RowsErased | Counter::RowsRetired => "rows",
        }
    }
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
    /// Whether an event at this place in the source's order was delivered before. What has no LSN (a snapshot
    /// read) comes before everything else of its time: delivered again, it is old and not late.
    pub fn covers(&self, ts: Option<i64>, lsn: u64) -> bool {
        ts.is_some_and(|ts| (ts, lsn) <= (self.ts, self.lsn))
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

/// At most so many rows of one record of the log are told apart: a page of a table holds fewer.
const ROWS: usize = 1_024;

/// One position's way through the source's order: which of its events were delivered before.
///
/// Rows of one record of the log (a COPY's, both halves of a key change) share time and LSN: that the first of them was
/// passed says nothing of the others. They are told from one that comes again by what each of them is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Passage {
    passed: Passed,
    /// What came at that place; `None` = not known, then all of it counts as delivered.
    rows: Option<Vec<u64>>,
}

impl Passage {
    /// From where this much was passed; `rows` as [`Passage::rows`] gave them then, if they were kept.
    pub fn from(passed: Passed, rows: Option<&[u8]>) -> Self {
        let known = rows.and_then(|rows| {
            let (place, rows) = rows.split_first_chunk::<16>()?;
            let (rows, []) = rows.as_chunks::<8>() else { return None };
            (*place == bytes(passed)).then(|| rows.iter().map(|row| u64::from_be_bytes(*row)).collect())
        });
        Passage { passed, rows: known.or((passed == Passed::default()).then(Vec::new)) }
    }

    /// What was passed.
    pub fn passed(&self) -> Passed {
        self.passed
    }

    /// What came at that place, to be kept with it: the place, which says what the rows belong to, then eight bytes a row.
    pub fn rows(&self) -> Option<Vec<u8>> {
        let rows = self.rows.as_ref()?.iter().flat_map(|row| row.to_be_bytes());
        Some(bytes(self.passed).into_iter().chain(rows).collect())
    }

    /// Takes note of an event; whether it was delivered before. `row` tells rows of one place apart, see [`row`].
    pub fn pass(&mut self, ts: Option<i64>, lsn: u64, row: u64) -> bool {
        let Some(ts) = ts else { return false };
        let place = Passed { ts, lsn };
        if lsn == 0 || place < self.passed {
            return self.passed.covers(Some(ts), lsn);
        }
        if place > self.passed {
            self.passed = place;
            let rows = self.rows.get_or_insert_default();
            rows.clear();
            rows.push(row);
            return false;
        }
        let Some(rows) = &mut self.rows else { return true };
        let before = rows.contains(&row);
        if !before && rows.len() < ROWS {
            rows.push(row);
        }
        before
    }
}

fn bytes(place: Passed) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&place.ts.to_be_bytes());
    bytes[8..].copy_from_slice(&place.lsn.to_be_bytes());
    bytes
}

/// Tells a message's row from others of the same place: its key, and whether it goes.
pub fn row(key: Option<&[u8]>, delete: bool) -> u64 {
    xxh3_64_with_seed(key.unwrap_or_default(), u64::from(delete))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_of_one_place_are_told_from_one_that_comes_again() {
        let mut passage = Passage::from(Passed { ts: 100, lsn: 10 }, None);
        assert!(passage.pass(Some(100), 10, 7), "what came there is not known");
        assert!(!passage.pass(Some(200), 20, 1), "a first delivery");
        assert!(!passage.pass(Some(200), 20, 2), "another row of the same record of the log");
        assert!(passage.pass(Some(200), 20, 1), "the first comes again at once");
        assert!(passage.pass(Some(150), 15, 1), "an older one comes again");
        assert!(passage.pass(Some(200), 20, 2), "and so on from there");
        assert!(!passage.pass(Some(200), 20, 3), "up to where it was before");
        assert!(!passage.pass(Some(300), 30, 1));
        assert!(passage.pass(Some(200), 20, 4), "whatever was not seen of a place that was left");
        assert!(!passage.pass(None, 5, 1), "without a time nothing is known");
    }

    #[test]
    fn a_restart_between_two_rows_of_one_place_forgets_neither() {
        let mut passage = Passage::default();
        assert!(!passage.pass(Some(200), 20, 1));
        let kept = passage.rows().unwrap();
        let mut anew = Passage::from(passage.passed(), Some(&kept));
        assert_eq!(anew, passage);
        assert!(anew.pass(Some(200), 20, 1));
        assert!(!anew.pass(Some(200), 20, 2));
        let mut elsewhere = Passage::from(Passed { ts: 200, lsn: 21 }, Some(&kept));
        assert!(elsewhere.pass(Some(200), 21, 2), "rows of another place say nothing");
        for damaged in [&kept[..10], &kept[..20], &[]] {
            assert!(Passage::from(passage.passed(), Some(damaged)).pass(Some(200), 20, 2));
        }
        assert_eq!(Passage::from(Passed::default(), None).rows(), Some(vec![0; 16]), "nothing is all that was passed");
    }

    #[test]
    fn rows_beyond_what_a_page_holds_are_first_deliveries() {
        let mut passage = Passage::default();
        for row in 0..ROWS as u64 + 5 {
            assert!(!passage.pass(Some(1), 1, row));
        }
        assert_eq!(passage.rows().unwrap().len(), 16 + 8 * ROWS);
        assert!(passage.pass(Some(1), 1, 5));
    }

    #[test]
    fn what_was_passed_is_known_by_time_and_lsn() {
        let mut passed = Passed::default();
        passed.raise(Some(5), 10);
        assert!(passed.covers(Some(5), 10) && passed.covers(Some(5), 9) && passed.covers(Some(4), 99));
        assert!(!passed.covers(Some(5), 11) && !passed.covers(Some(6), 1) && !passed.covers(None, 1));
    }

    #[test]
    fn a_snapshot_read_raises_nothing_but_is_old_behind_newer_events() {
        let mut passed = Passed::default();
        passed.raise(Some(5), 0);
        assert!(!passed.covers(Some(5), 0), "nothing passed yet");
        passed.raise(Some(6), 10);
        assert!(passed.covers(Some(5), 0) && !passed.covers(Some(7), 0));
    }
}
