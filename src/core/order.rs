//! Whether an event of a record comes in turn: a pure, total function of the event and the record's last place
//! in the source's order (protocol D10).

use super::event::{Lsn, Micros};

/// How far a regressed LSN's time must lie ahead before it means "the source database was replaced".
pub const REPLACED_AFTER: Micros = 60_000_000;

/// The event's side of the question.
#[derive(Debug, Clone, Copy)]
pub struct Place<'a> {
    /// LSN, 0 = none.
    pub lsn: Lsn,
    /// Source time.
    pub ts: Option<Micros>,
    /// A snapshot read: never ordered by LSN.
    pub read: bool,
    /// A delete.
    pub delete: bool,
    /// Row key.
    pub key: &'a str,
    /// This position passed the event before ([`super::position::Passed::covers`]).
    pub passed: bool,
}

/// The record's side: whichever of its newest version and its floor has the later source time.
#[derive(Debug, Clone, Copy)]
pub struct Last<'a> {
    /// LSN, 0 = unknown (a version written by a snapshot read inherits one from an older version).
    pub lsn: Lsn,
    /// Source time; `None` counts as minus infinity.
    pub ts: Option<Micros>,
    /// The version is a delete; a floor counts as not a delete.
    pub delete: bool,
    /// The key it was seen under.
    pub key: Option<&'a str>,
    /// The asking position is the record's home.
    pub home: bool,
    /// The event's key is the record's current key.
    pub key_current: bool,
}

/// What to do with the event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// In turn: judge its content.
    Judge,
    /// In turn although its LSN fell: the source database was replaced. What it leaves replaces *last*.
    JudgeReplaced,
    /// Judged before.
    Duplicate,
    /// Older than what is known, and not judged before.
    Stale,
}

/// D10's table, row by row.
pub fn verdict(event: Place<'_>, last: Last<'_>) -> Verdict {
    let judged_here = last.home && last.key_current;
    if event.read || event.lsn == 0 {
        return if event.ts >= last.ts {
            Verdict::Judge
        } else if judged_here || event.passed {
            Verdict::Duplicate
        } else {
            Verdict::Stale
        };
    }
    if last.lsn == 0 || event.lsn > last.lsn {
        return Verdict::Judge;
    }
    if event.lsn == last.lsn {
        let same = event.delete == last.delete && last.key == Some(event.key);
        return if same { Verdict::Duplicate } else { Verdict::Judge };
    }
    let replaced = match (event.ts, last.ts) {
        (Some(ts), Some(last)) => ts > last.saturating_add(REPLACED_AFTER),
        (Some(_), None) => true,
        (None, _) => false,
    };
    if replaced {
        Verdict::JudgeReplaced
    } else if judged_here || event.passed {
        Verdict::Duplicate
    } else {
        Verdict::Stale
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(lsn: Lsn, ts: Micros) -> Place<'static> {
        Place { lsn, ts: Some(ts), read: false, delete: false, key: "1", passed: false }
    }

    fn last(lsn: Lsn, ts: Micros) -> Last<'static> {
        Last { lsn, ts: Some(ts), delete: false, key: Some("1"), home: true, key_current: true }
    }

    #[test]
    fn a_higher_lsn_is_judged_whatever_its_time() {
        assert_eq!(verdict(event(11, 5), last(10, 9)), Verdict::Judge);
    }

    #[test]
    fn an_unknown_last_lsn_lets_everything_be_judged() {
        assert_eq!(verdict(event(1, 5), last(0, 9)), Verdict::Judge);
    }

    #[test]
    fn the_same_lsn_with_the_same_op_and_key_is_a_duplicate() {
        assert_eq!(verdict(event(10, 9), last(10, 9)), Verdict::Duplicate);
    }

    #[test]
    fn a_key_change_is_two_events_with_one_lsn_and_both_are_judged() {
        let delete = Place { delete: true, ..event(10, 9) };
        assert_eq!(verdict(delete, last(10, 9)), Verdict::Judge);
        let other_key = Place { key: "9001", ..event(10, 9) };
        assert_eq!(verdict(other_key, last(10, 9)), Verdict::Judge);
    }

    #[test]
    fn a_lower_lsn_at_home_under_the_current_key_was_judged_before() {
        assert_eq!(verdict(event(9, 8), last(10, 9)), Verdict::Duplicate);
    }

    #[test]
    fn a_lower_lsn_from_elsewhere_is_stale_unless_it_was_passed() {
        let elsewhere = Last { home: false, ..last(10, 9) };
        assert_eq!(verdict(event(9, 8), elsewhere), Verdict::Stale);
        let old_key = Last { key_current: false, ..last(10, 9) };
        assert_eq!(verdict(event(9, 8), old_key), Verdict::Stale);
        let passed = Place { passed: true, ..event(9, 8) };
        assert_eq!(verdict(passed, elsewhere), Verdict::Duplicate);
    }

    #[test]
    fn a_fallen_lsn_a_minute_later_means_another_database() {
        assert_eq!(verdict(event(9, 70_000_000), last(10, 9)), Verdict::JudgeReplaced);
        assert_eq!(verdict(event(9, 60_000_009), last(10, 9)), Verdict::Duplicate);
    }

    #[test]
    fn a_snapshot_read_is_ordered_by_time_alone() {
        let read = Place { read: true, lsn: 99, ..event(99, 8) };
        assert_eq!(verdict(read, last(10, 9)), Verdict::Duplicate);
        assert_eq!(verdict(Place { ts: Some(9), ..read }, last(10, 9)), Verdict::Judge);
        let elsewhere = Last { home: false, ..last(10, 9) };
        assert_eq!(verdict(read, elsewhere), Verdict::Stale);
        assert_eq!(verdict(Place { ts: None, ..read }, last(10, 9)), Verdict::Duplicate);
    }
}
