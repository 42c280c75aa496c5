//! What history must come out: a fold of its own over the simulated changes, sharing nothing with the processor.
//!
//! It reads typed rows, not messages, and knows the rules only in words: the first sight of a record is its first
//! version; a difference in a business column is a version; a delete is a version, and a re-insert of the same content
//! soon after takes it back; everything else is nothing.

use std::collections::{BTreeMap, HashMap};

use super::tables::TableSpec;
use super::values::{Micros, SECOND, Value};

/// A delete followed by an equal re-insert within this time was a reload.
const GRACE: Micros = 15 * 60 * SECOND;

/// One column of an image, or of what an event shows.
#[derive(Debug, Clone, PartialEq)]
pub enum Cell {
    /// No event has had the column, or had more than null in it.
    Absent,
    /// A text that the stream has never shown.
    Unknown,
    /// A known value.
    Known(Value),
}

/// A row event as the stream shows it.
#[derive(Debug)]
pub struct Shown<'a> {
    /// Index of the table.
    pub table: usize,
    /// Row id.
    pub id: i32,
    /// Salesforce id, if the row has one.
    pub sfid: Option<&'a str>,
    /// Whether it is an insert.
    pub insert: bool,
    /// Commit time.
    pub commit: Micros,
    /// `systemmodstamp`
    pub stamp: Option<Micros>,
    /// Whether an application wrote it (`_hc_lastop` is PENDING).
    pub local: bool,
    /// One cell per column of the table; a placeholder is [`Cell::Unknown`], an unmapped or non-business column is
    /// [`Cell::Absent`].
    pub cells: Vec<Cell>,
}

/// What an event does to the history.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// First sight: version 0.
    First,
    /// So many further versions.
    Versions(u32),
    /// Nothing.
    Nothing,
    /// A row without Salesforce id: nothing yet.
    Pending,
    /// Takes back the delete before it.
    Cancels,
    /// A delete of a record never seen.
    UnknownDelete,
}

/// Everything the fold knows of a record.
#[derive(Debug, Clone)]
struct Record {
    live: bool,
    versions: u32,
    image: Vec<Cell>,
    stamp: Option<Micros>,
    deleted_at: Micros,
}

/// A record's expected end state, in the words of the public views.
#[derive(Debug, Clone, PartialEq)]
pub struct FinalRecord {
    /// `live`, or `deleted` with the last image.
    pub status: &'static str,
    /// How many versions its history has, the first sight included.
    pub versions: u32,
    /// All known non-null business columns; an unknown one as `{"$unknown": true}`.
    pub image: serde_json::Map<String, serde_json::Value>,
}

/// The fold.
#[derive(Debug, Default)]
pub struct Truth {
    records: BTreeMap<(usize, String), Record>,
    pending: HashMap<(usize, i32), Vec<Cell>>,
    first_seen: HashMap<(usize, usize), Micros>,
}

impl Truth {
    /// Folds in an insert or update.
    pub fn upsert(&mut self, shown: Shown<'_>) -> Effect {
        for (index, cell) in shown.cells.iter().enumerate() {
            if *cell != Cell::Absent {
                self.first_seen.entry((shown.table, index)).or_insert(shown.commit);
            }
        }
        let waiting = self.pending.remove(&(shown.table, shown.id));
        let Some(sfid) = shown.sfid else {
            let cells = if shown.insert { shown.cells } else { complete(shown.cells, waiting) };
            self.pending.insert((shown.table, shown.id), cells);
            return Effect::Pending;
        };
        let key = (shown.table, sfid.to_string());
        match self.records.get_mut(&key) {
            None => {
                // A row that waited for its id has shown its long texts only while it waited.
                let cells = if shown.insert { shown.cells } else { complete(shown.cells, waiting) };
                let record = Record { live: true, versions: 1, image: cells, stamp: shown.stamp, deleted_at: 0 };
                self.records.insert(key, record);
                Effect::First
            }
            Some(record) if record.live => {
                let late_backfill = |index: usize| {
                    let first = self.first_seen.get(&(shown.table, index)).copied().unwrap_or(shown.commit);
                    !shown.local && shown.stamp.is_some_and(|stamp| stamp <= first)
                };
                let differences = record.absorb(&shown.cells, late_backfill);
                let rows = u32::from(differences.backfill) + u32::from(differences.edit || differences.learned);
                record.versions += rows;
                if rows > 0 {
                    record.stamp = shown.stamp.or(record.stamp);
                    Effect::Versions(rows)
                } else {
                    Effect::Nothing
                }
            }
            Some(record) => record.come_back(&shown),
        }
    }

    /// Folds in a delete of the row `id`, which the table knows to be this record.
    pub fn delete(&mut self, table: usize, id: i32, sfid: Option<&str>, commit: Micros) -> Effect {
        if self.pending.remove(&(table, id)).is_some() {
            return Effect::Pending;
        }
        match sfid.and_then(|sfid| self.records.get_mut(&(table, sfid.to_string()))) {
            Some(record) if record.live => {
                record.live = false;
                record.versions += 1;
                record.deleted_at = commit;
                Effect::Versions(1)
            }
            _ => Effect::UnknownDelete,
        }
    }

    /// How many records the stream has shown.
    pub fn records(&self) -> usize {
        self.records.len()
    }

    /// The expected end state of every record that the stream has shown, by (index of the table, sfid).
    pub fn finals<'a>(
        &'a self,
        spec: impl Fn(usize) -> &'static TableSpec + 'a,
    ) -> impl Iterator<Item = (usize, &'a str, FinalRecord)> + 'a {
        self.records.iter().map(move |((table, sfid), record)| {
            let mut image = serde_json::Map::new();
            for (column, cell) in spec(*table).columns.iter().zip(&record.image) {
                match cell {
                    Cell::Known(value) if !value.is_null() => _ = image.insert(column.name.into(), value.image_json()),
                    Cell::Unknown => _ = image.insert(column.name.into(), serde_json::json!({"$unknown": true})),
                    Cell::Known(_) | Cell::Absent => {}
                }
            }
            let status = if record.live { "live" } else { "deleted" };
            (*table, sfid.as_str(), FinalRecord { status, versions: record.versions, image })
        })
    }
}

/// What an event changes in an image.
#[derive(Debug, Default, Clone, Copy)]
struct Differences {
    edit: bool,
    backfill: bool,
    learned: bool,
}

impl Record {
    fn absorb(&mut self, cells: &[Cell], is_backfill: impl Fn(usize) -> bool) -> Differences {
        let mut found = Differences::default();
        for (index, (known, shown)) in self.image.iter_mut().zip(cells).enumerate() {
            let Cell::Known(value) = shown else { continue };
            match known {
                Cell::Known(present) if present == value => continue,
                Cell::Known(_) => found.edit = true,
                Cell::Unknown => found.learned = true,
                // Null in a column that has never been more than null is no news.
                Cell::Absent if value.is_null() => continue,
                Cell::Absent if is_backfill(index) => found.backfill = true,
                Cell::Absent => found.edit = true,
            }
            *known = shown.clone();
        }
        found
    }

    fn come_back(&mut self, shown: &Shown<'_>) -> Effect {
        let equal = self.image.iter().zip(&shown.cells).all(|(known, shown)| match (known, shown) {
            (Cell::Known(known), Cell::Known(shown)) => known == shown,
            (Cell::Absent, Cell::Known(shown)) => shown.is_null(),
            _ => true,
        });
        let whole_second = self.deleted_at - self.deleted_at.rem_euclid(SECOND);
        let same_stamp = shown.stamp.is_none_or(|stamp| self.stamp == Some(stamp) || stamp < whole_second);
        self.live = true;
        if shown.insert && equal && same_stamp && shown.commit - self.deleted_at <= GRACE {
            self.versions -= 1;
            let learned = self.absorb(&shown.cells, |_| true).learned;
            self.versions += u32::from(learned);
            return Effect::Cancels;
        }
        self.versions += 1;
        self.absorb(&shown.cells, |_| false);
        self.stamp = shown.stamp.or(self.stamp);
        Effect::Versions(1)
    }
}

/// Puts what a waiting row had shown where the event shows only the placeholder.
fn complete(cells: Vec<Cell>, waiting: Option<Vec<Cell>>) -> Vec<Cell> {
    let Some(waiting) = waiting else { return cells };
    cells
        .into_iter()
        .zip(waiting)
        .map(|(cell, before)| match cell {
            Cell::Unknown => before,
            known => known,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(value: &str) -> Cell {
        Cell::Known(Value::Text(value.into()))
    }

    fn shown(insert: bool, commit: Micros, stamp: Micros, cells: Vec<Cell>) -> Shown<'static> {
        Shown { table: 0, id: 1, sfid: Some("s"), insert, commit, stamp: Some(stamp), local: false, cells }
    }

    fn versions(truth: &Truth) -> u32 {
        truth.records[&(0, "s".to_string())].versions
    }

    #[test]
    fn only_differences_are_versions() {
        let mut truth = Truth::default();
        assert_eq!(truth.upsert(shown(false, 10, 5, vec![text("a"), Cell::Unknown])), Effect::First);
        assert_eq!(truth.upsert(shown(false, 20, 15, vec![text("a"), Cell::Unknown])), Effect::Nothing);
        assert_eq!(truth.upsert(shown(false, 30, 25, vec![text("b"), Cell::Unknown])), Effect::Versions(1));
        assert_eq!(truth.upsert(shown(false, 40, 35, vec![text("b"), text("long")])), Effect::Versions(1));
        assert_eq!(truth.upsert(shown(false, 50, 45, vec![Cell::Absent, Cell::Unknown])), Effect::Nothing);
        assert_eq!(versions(&truth), 3);
    }

    #[test]
    fn an_equal_row_that_comes_back_soon_takes_the_delete_back() {
        let mut truth = Truth::default();
        truth.upsert(shown(true, 10, 5, vec![text("a")]));
        assert_eq!(truth.delete(0, 1, Some("s"), 100 * SECOND), Effect::Versions(1));
        assert_eq!(truth.upsert(shown(true, 101 * SECOND, 50 * SECOND, vec![text("a")])), Effect::Cancels);
        assert_eq!(versions(&truth), 1);
        truth.delete(0, 1, Some("s"), 200 * SECOND);
        let stamped_later = shown(true, 230 * SECOND, 210 * SECOND, vec![text("a")]);
        assert_eq!(truth.upsert(stamped_later), Effect::Versions(1), "an undelete raises the stamp");
        truth.delete(0, 1, Some("s"), 300 * SECOND);
        let too_late = shown(true, 300 * SECOND + GRACE + 1, 210 * SECOND, vec![text("a")]);
        assert_eq!(truth.upsert(too_late), Effect::Versions(1));
        assert_eq!(versions(&truth), 5);
    }

    #[test]
    fn a_new_column_is_filled_once() {
        let mut truth = Truth::default();
        truth.upsert(shown(true, 10, 5, vec![text("a"), Cell::Absent]));
        assert_eq!(truth.upsert(shown(false, 20, 5, vec![text("a"), Cell::Known(Value::Null)])), Effect::Nothing);
        assert_eq!(truth.upsert(shown(false, 30, 5, vec![text("a"), text("gold")])), Effect::Versions(1));
        assert_eq!(truth.upsert(shown(false, 40, 5, vec![text("a"), text("gold")])), Effect::Nothing);
    }

    #[test]
    fn a_row_that_waited_for_its_id_keeps_the_text_it_showed_then() {
        let mut truth = Truth::default();
        let waiting = Shown { sfid: None, ..shown(true, 10, 5, vec![text("long")]) };
        assert_eq!(truth.upsert(waiting), Effect::Pending);
        assert_eq!(truth.upsert(shown(false, 20, 5, vec![Cell::Unknown])), Effect::First);
        assert_eq!(truth.records[&(0, "s".to_string())].image, [text("long")]);
        let waiting = Shown { sfid: None, ..shown(true, 30, 5, vec![text("never synced")]) };
        truth.upsert(waiting);
        assert_eq!(truth.delete(0, 1, None, 40), Effect::Pending);
        assert_eq!(truth.records(), 1);
    }
}
