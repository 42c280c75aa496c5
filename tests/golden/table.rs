//! A table that is changed at random by what Connect and applications do, the connector's messages of it, and what a
//! history of it must come to.
#![allow(dead_code)]

use std::collections::BTreeMap;

use serde_json::{Value as Json, json};

use crate::script::{Script, UNTOUCHED};
use crate::worker::{Message, merged};

/// What somebody does to the table.
#[derive(Debug, Clone, Copy)]
pub enum Deed {
    /// Connect writes a record that is new or came back.
    Insert(u8, u8),
    /// Connect edits a field; the long text is one of them.
    Edit(u8, bool, u8),
    /// Salesforce touched the record, nothing visible changed.
    Touch(u8),
    /// The same row again, in full.
    Same(u8),
    /// The record goes.
    Delete(u8),
    /// An application inserts a row that has no id yet.
    Local(u8),
    /// … edits it …
    EditLocal(u8),
    /// … and Salesforce names it.
    Name,
    /// The mapping is reloaded by DELETE.
    Reload,
    /// The mapping is reloaded by TRUNCATE … RESTART IDENTITY; the rows come back in another order.
    Truncate(u8),
    /// … or by TRUNCATE and one COPY, all of whose rows are one record of the log.
    Copy(u8),
    /// A row gets another primary key; its long text is shown or not.
    ChangeKey(u8, bool),
    /// A snapshot shows a row.
    Read(u8),
    /// Connect's mapping gains the field `extra__c`, or loses it: from here on events have it, or have it no more.
    Mapping,
    /// That field is edited, where there is one; some values are null.
    EditExtra(u8, u8),
    /// Time passes, seconds.
    Wait(u16),
}

#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    pub sfid: Option<String>,
    pub name: String,
    pub notes: String,
    pub stamp: Option<i64>,
    pub extra: Option<String>,
}

/// What the stream has told of a record so far.
#[derive(Debug, Clone, Default)]
pub struct Told {
    pub versions: usize,
    pub notes: bool,
}

/// The table, and the history that its changes must leave.
pub struct Table {
    pub script: Script,
    pub rows: BTreeMap<i64, Row>,
    next_id: i64,
    partitions: i64,
    named: u8,
    /// The mapping has `extra__c`.
    mapped: bool,
    pub told: BTreeMap<String, Told>,
    /// Versions that a row without an id will have had.
    pub waiting: BTreeMap<i64, usize>,
}

fn sfid(record: u8) -> String {
    format!("0010000000000{record:02}AAA")
}

impl Table {
    /// Two records are there before anybody listens. Deeds name `records` more at most.
    pub fn new(records: u8, partitions: i64) -> Self {
        let script = Script::new();
        let row = |record| Row {
            sfid: Some(sfid(record)),
            name: "before".into(),
            notes: "long before".into(),
            stamp: Some(script.stamp(90_000)),
            extra: None,
        };
        let rows = BTreeMap::from([(1, row(0)), (2, row(1))]);
        let (told, waiting) = (BTreeMap::new(), BTreeMap::new());
        Table { rows, next_id: 3, partitions, named: records, mapped: false, told, waiting, script }
    }

    pub fn after_deeds(records: u8, partitions: i64, deeds: &[Deed]) -> Self {
        let mut table = Table::new(records, partitions);
        for deed in deeds {
            table.apply(*deed);
        }
        table
    }

    fn id_of(&self, record: u8) -> Option<i64> {
        let wanted = sfid(record);
        self.rows.iter().find(|(_, row)| row.sfid.as_deref() == Some(&wanted)).map(|(id, _)| *id)
    }

    fn partition(&self, id: i64) -> i32 {
        (id * 7 % self.partitions) as i32
    }

    fn after(&self, id: i64, untouched: bool) -> Json {
        let row = &self.rows[&id];
        let notes = if untouched { UNTOUCHED } else { &row.notes };
        let mut after =
            json!({"id": id, "sfid": row.sfid, "name": row.name, "notes__c": notes, "systemmodstamp": row.stamp});
        if self.mapped {
            after["extra__c"] = json!(row.extra);
        }
        after
    }

    fn send(&mut self, op: &str, id: i64, untouched: bool) {
        let after = self.after(id, untouched);
        let partition = self.partition(id);
        self.script.event(partition, op, id, Json::Null, after);
    }

    /// The stream shows the row; it changed, or only the long text comes to light, or nothing.
    fn show(&mut self, op: &str, id: i64, untouched: bool, changed: bool) {
        self.send(op, id, untouched);
        self.tell(id, untouched, changed);
    }

    fn tell(&mut self, id: i64, untouched: bool, changed: bool) {
        let Some(sfid) = &self.rows[&id].sfid else { return };
        let told = self.told.entry(sfid.clone()).or_default();
        let learned = !untouched && !told.notes;
        told.versions += usize::from(told.versions == 0 || changed || learned);
        told.notes |= !untouched;
    }

    fn remove(&mut self, id: i64) -> Row {
        let partition = self.partition(id);
        self.script.delete(partition, id);
        self.waiting.remove(&id);
        self.rows.remove(&id).expect("a row of the table")
    }

    fn add(&mut self, row: Row) -> i64 {
        let id = self.next_id;
        self.next_id += 1;
        self.rows.insert(id, row);
        id
    }

    pub fn apply(&mut self, deed: Deed) {
        let now = self.script.now + 1_000_000;
        match deed {
            Deed::Insert(record, value) => {
                if self.id_of(record).is_none() {
                    let row = Row {
                        sfid: Some(sfid(record)),
                        name: format!("n{value}"),
                        notes: format!("long {value}"),
                        stamp: Some(now),
                        extra: None,
                    };
                    let id = self.add(row);
                    self.show("c", id, false, true);
                }
            }
            Deed::Edit(record, long, value) => {
                let Some(id) = self.id_of(record) else { return };
                let row = self.rows.get_mut(&id).expect("found above");
                let before = row.clone();
                match long {
                    true => row.notes = format!("long {}", value % 4),
                    false => row.name = format!("n{}", value % 4),
                }
                row.stamp = Some(now);
                let changed = (&before.name, &before.notes) != (&row.name, &row.notes);
                self.show("u", id, !long, changed);
            }
            Deed::Touch(record) => {
                let Some(id) = self.id_of(record) else { return };
                self.rows.get_mut(&id).expect("found above").stamp = Some(now);
                self.show("u", id, true, false);
            }
            Deed::Same(record) => {
                if let Some(id) = self.id_of(record) {
                    self.show("u", id, false, false);
                }
            }
            Deed::Read(record) => {
                if let Some(id) = self.id_of(record) {
                    self.show("r", id, false, false);
                }
            }
            Deed::Delete(record) => {
                let Some(id) = self.id_of(record) else { return };
                self.remove(id);
                if let Some(told) = self.told.get_mut(&sfid(record)) {
                    told.versions += 1;
                }
            }
            Deed::Local(value) => {
                let (name, notes) = (format!("n{value}"), format!("long {value}"));
                let row = Row { sfid: None, name, notes, stamp: None, extra: None };
                let id = self.add(row);
                self.waiting.insert(id, 1);
                self.send("c", id, false);
            }
            Deed::EditLocal(value) => {
                let Some((&id, versions)) = self.waiting.iter_mut().next() else { return };
                let row = self.rows.get_mut(&id).expect("a waiting row is a row");
                let name = format!("n{value}");
                *versions += usize::from(row.name != name);
                row.name = name;
                self.send("u", id, true);
            }
            Deed::Name => {
                let Some((id, versions)) = self.waiting.pop_first() else { return };
                if self.named > 90 {
                    return;
                }
                let sfid = sfid(self.named);
                self.named += 1;
                let row = self.rows.get_mut(&id).expect("a waiting row is a row");
                (row.sfid, row.stamp) = (Some(sfid.clone()), Some(now));
                self.told.insert(sfid, Told { versions, notes: true });
                self.send("u", id, true);
            }
            Deed::Reload => {
                let ids: Vec<i64> = self.rows.keys().copied().collect();
                let rows: Vec<Row> = ids.into_iter().map(|id| self.remove(id)).collect();
                for row in rows.into_iter().rev().filter(|row| row.sfid.is_some()) {
                    let id = self.add(row);
                    self.show("c", id, false, false);
                }
            }
            Deed::Truncate(by) | Deed::Copy(by) => {
                let mut rows: Vec<Row> = std::mem::take(&mut self.rows).into_values().collect();
                rows.retain(|row| row.sfid.is_some());
                self.waiting.clear();
                self.next_id = 1;
                if !rows.is_empty() {
                    let by = usize::from(by) % rows.len();
                    rows.rotate_left(by);
                }
                for (n, row) in rows.into_iter().enumerate() {
                    let id = self.add(row);
                    if n > 0 && matches!(deed, Deed::Copy(_)) {
                        let (partition, after) = (self.partition(id), self.after(id, false));
                        self.script.same_transaction(partition, "c", id, Json::Null, after);
                        self.tell(id, false, false);
                    } else {
                        self.show("c", id, false, false);
                    }
                }
            }
            Deed::ChangeKey(record, long) => {
                let Some(id) = self.id_of(record) else { return };
                let row = self.remove(id);
                let id = 1_000 + self.script.lsn as i64;
                self.rows.insert(id, row);
                let (partition, after) = (self.partition(id), self.after(id, !long));
                self.script.same_transaction(partition, "c", id, Json::Null, after);
                self.tell(id, !long, false);
            }
            Deed::Mapping => self.mapped = !self.mapped,
            Deed::EditExtra(record, value) => {
                let Some(id) = self.id_of(record).filter(|_| self.mapped) else { return };
                let row = self.rows.get_mut(&id).expect("found above");
                let before = row.extra.clone();
                (row.extra, row.stamp) = ((value % 3 > 0).then(|| format!("e{}", value % 3)), Some(now));
                let changed = before != row.extra;
                self.show("u", id, true, changed);
            }
            Deed::Wait(seconds) => self.script.wait(i64::from(seconds)),
        }
    }

    pub fn messages(&self) -> Vec<Message> {
        merged(self.script.log().values())
    }
}

/// Messages with some of them repeated: gives every message its new offset, and says what it was before.
pub fn renumbered(messages: Vec<Message>) -> (Vec<Message>, BTreeMap<(i32, i64), i64>) {
    let mut next: BTreeMap<i32, i64> = BTreeMap::new();
    let mut origins = BTreeMap::new();
    let numbered = messages.into_iter().map(|mut message| {
        let offset = next.entry(message.partition).or_default();
        origins.insert((message.partition, *offset), message.offset);
        message.offset = *offset;
        *offset += 1;
        message
    });
    (numbered.collect(), origins)
}
