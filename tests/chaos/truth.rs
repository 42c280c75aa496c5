//! The history that must come of the events, by the rules as they are written for users; shares nothing with the product.
//!
//! The first sight of a record is its first version: a `create` if it is an insert, else a `baseline`. A difference in a
//! field is a version; a delete is one; an equal row inserted soon after, with a stamp of before, takes it back, any other
//! is an `undelete`. All the rest is nothing. A row without Salesforce id waits; its record is valid from then on.

use std::collections::{BTreeMap, HashMap, HashSet};

use serde_json::{Map, Value, json};

use super::source::{Event, Micros, Row, SECOND};

/// A delete followed by an equal insert within this time was a reload.
const GRACE: Micros = 15 * 60 * SECOND;

/// A record: index of the table, number.
pub type Record = (u8, u32);

/// A version as the history has to show it.
#[derive(Debug, Clone, PartialEq)]
pub struct Version {
    /// `baseline create update delete undelete`; a backfill counts as an update.
    pub op: &'static str,
    /// Valid from.
    pub at: Micros,
    /// Name → [old, new].
    pub changes: Map<String, Value>,
    /// The event it comes of.
    pub lsn: u64,
}

/// A record's history and its last image.
#[derive(Debug, Clone, Default)]
pub struct History {
    /// Its versions; their numbers are their places.
    pub versions: Vec<Version>,
    /// The last row.
    pub row: Option<Row>,
    /// Whether it is there.
    pub live: bool,
    /// Newest known stamp, and that before the delete.
    stamp: Option<Micros>,
}

impl History {
    /// All non-null fields of the last image.
    pub fn image(&self) -> Map<String, Value> {
        let fields = self.row.iter().flat_map(Row::fields);
        fields.filter(|(_, value)| !value.is_null()).map(|(name, value)| (name.to_string(), value)).collect()
    }

    fn write(&mut self, op: &'static str, at: Micros, event: &Event, changes: Map<String, Value>) {
        // Times of one record never fall.
        let at = self.versions.last().map_or(at, |before| before.at.max(at));
        self.versions.push(Version { op, at, changes, lsn: event.lsn });
        if event.op != 'd' {
            self.row = event.row;
            self.stamp = event.stamp.or(self.stamp);
        }
        self.live = event.op != 'd';
    }

    fn apply(&mut self, event: &Event, waiting_since: Option<Micros>) {
        let Some(row) = event.row else {
            if self.live {
                self.write("delete", event.at, event, Map::new());
            }
            return;
        };
        if self.versions.is_empty() {
            let op = if event.op == 'c' || waiting_since.is_some() { "create" } else { "baseline" };
            let changes = difference(None, &row);
            return self.write(op, waiting_since.unwrap_or(event.at), event, changes);
        }
        let changes = difference(self.row.as_ref(), &row);
        if self.live {
            if !changes.is_empty() {
                self.write("update", event.at, event, changes);
            }
            return;
        }
        let deleted = self.versions.last().map_or(0, |delete| delete.at);
        let older = event.stamp.is_some_and(|stamp| stamp < deleted - deleted.rem_euclid(SECOND));
        let reloaded = event.op == 'c' && (event.stamp == self.stamp || older) && event.at - deleted <= GRACE;
        if reloaded && changes.is_empty() {
            self.versions.pop();
            self.live = true;
        } else {
            self.write("undelete", event.at, event, changes);
        }
    }
}

fn difference(before: Option<&Row>, after: &Row) -> Map<String, Value> {
    let old = before.map(Row::fields);
    let mut changes = Map::new();
    for (n, (name, new)) in after.fields().into_iter().enumerate() {
        let old = old.as_ref().map_or(Value::Null, |fields| fields[n].1.clone());
        if old != new {
            changes.insert(name.to_string(), json!([old, new]));
        }
    }
    changes
}

/// Folds events in commit order, leaving some out.
pub fn fold(events: &[Event], without: &HashSet<u64>) -> BTreeMap<Record, History> {
    let mut records: BTreeMap<Record, History> = BTreeMap::new();
    let mut waiting: HashMap<(u8, i32), Micros> = HashMap::new();
    for event in events.iter().filter(|event| !without.contains(&event.lsn)) {
        let place = (event.table, event.id);
        if !event.named {
            waiting.insert(place, event.at);
            continue;
        }
        let since = waiting.remove(&place).filter(|_| event.op == 'u');
        let record = (event.table, event.record);
        // A delete of what was never seen tells nothing.
        if event.row.is_some() || records.contains_key(&record) {
            records.entry(record).or_default().apply(event, since);
        }
    }
    records
}
