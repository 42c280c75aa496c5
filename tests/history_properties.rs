//! What must hold of any history of any source: a table is changed at random by what Connect and applications do, the
//! connector's messages of it are read in memory, and the result is compared with the table itself.

use std::collections::BTreeMap;

use afterimage::core::event::Op;
use afterimage::core::position::Counter;
use afterimage::core::value::Value;
use proptest::prelude::*;
use serde_json::{Value as Json, json};

#[path = "support/memory.rs"]
mod memory;
#[path = "golden/script.rs"]
mod script;
#[path = "golden/worker.rs"]
mod worker;

use memory::Change;
use script::{Script, TOPIC, UNTOUCHED};
use worker::{FRONT, Message, Plan, Restart, SMALL_FRONT, World, merged};

const PARTITIONS: i64 = 3;
const RECORDS: u8 = 5;

/// What somebody does to the table.
#[derive(Debug, Clone, Copy)]
enum Deed {
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
    /// A row gets another primary key.
    ChangeKey(u8),
    /// A snapshot shows a row.
    Read(u8),
    /// Time passes, seconds.
    Wait(u16),
}

fn deed() -> impl Strategy<Value = Deed> {
    let some = any::<u8>;
    prop_oneof![
        4 => (0..RECORDS, some()).prop_map(|(record, value)| Deed::Insert(record, value)),
        6 => (0..RECORDS, any::<bool>(), some()).prop_map(|(record, long, value)| Deed::Edit(record, long, value)),
        2 => (0..RECORDS).prop_map(Deed::Touch),
        2 => (0..RECORDS).prop_map(Deed::Same),
        3 => (0..RECORDS).prop_map(Deed::Delete),
        2 => some().prop_map(Deed::Local),
        1 => some().prop_map(Deed::EditLocal),
        2 => Just(Deed::Name),
        1 => Just(Deed::Reload),
        2 => some().prop_map(Deed::Truncate),
        1 => (0..RECORDS).prop_map(Deed::ChangeKey),
        1 => (0..RECORDS).prop_map(Deed::Read),
        1 => (0..2000u16).prop_map(Deed::Wait),
    ]
}

#[derive(Debug, Clone, PartialEq)]
struct Row {
    sfid: Option<String>,
    name: String,
    notes: String,
    stamp: Option<i64>,
}

/// What the stream has told of a record so far.
#[derive(Debug, Clone, Default)]
struct Told {
    versions: usize,
    notes: bool,
}

/// The table, and the history that its changes must leave.
struct Table {
    script: Script,
    rows: BTreeMap<i64, Row>,
    next_id: i64,
    named: u8,
    told: BTreeMap<String, Told>,
    /// Versions that a row without an id will have had.
    waiting: BTreeMap<i64, usize>,
}

fn sfid(record: u8) -> String {
    format!("00100000000000{record}AAA")
}

impl Table {
    /// Two records are there before anybody listens.
    fn new() -> Self {
        let script = Script::new();
        let row = |record| Row {
            sfid: Some(sfid(record)),
            name: "before".into(),
            notes: "long before".into(),
            stamp: Some(script.stamp(90_000)),
        };
        let rows = BTreeMap::from([(1, row(0)), (2, row(1))]);
        Table { rows, next_id: 3, named: RECORDS, told: BTreeMap::new(), waiting: BTreeMap::new(), script }
    }

    fn after_deeds(deeds: &[Deed]) -> Self {
        let mut table = Table::new();
        for deed in deeds {
            table.apply(*deed);
        }
        table
    }

    fn id_of(&self, record: u8) -> Option<i64> {
        let wanted = sfid(record);
        self.rows.iter().find(|(_, row)| row.sfid.as_deref() == Some(&wanted)).map(|(id, _)| *id)
    }

    fn partition(id: i64) -> i32 {
        (id * 7 % PARTITIONS) as i32
    }

    fn after(&self, id: i64, untouched: bool) -> Json {
        let row = &self.rows[&id];
        let notes = if untouched { UNTOUCHED } else { &row.notes };
        json!({"id": id, "sfid": row.sfid, "name": row.name, "notes__c": notes, "systemmodstamp": row.stamp})
    }

    fn send(&mut self, op: &str, id: i64, untouched: bool) {
        let after = self.after(id, untouched);
        self.script.event(Self::partition(id), op, id, Json::Null, after);
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
        self.script.delete(Self::partition(id), id);
        self.waiting.remove(&id);
        self.rows.remove(&id).expect("a row of the table")
    }

    fn add(&mut self, row: Row) -> i64 {
        let id = self.next_id;
        self.next_id += 1;
        self.rows.insert(id, row);
        id
    }

    fn apply(&mut self, deed: Deed) {
        let now = self.script.now + 1_000_000;
        match deed {
            Deed::Insert(record, value) => {
                if self.id_of(record).is_none() {
                    let row = Row {
                        sfid: Some(sfid(record)),
                        name: format!("n{value}"),
                        notes: format!("long {value}"),
                        stamp: Some(now),
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
                let row = Row { sfid: None, name: format!("n{value}"), notes: format!("long {value}"), stamp: None };
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
                let sfid = format!("0010000000000{:02}AAA", self.named + 5);
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
            Deed::Truncate(by) => {
                let mut rows: Vec<Row> = std::mem::take(&mut self.rows).into_values().collect();
                rows.retain(|row| row.sfid.is_some());
                self.waiting.clear();
                self.next_id = 1;
                if !rows.is_empty() {
                    let by = usize::from(by) % rows.len();
                    rows.rotate_left(by);
                }
                for row in rows {
                    let id = self.add(row);
                    self.show("c", id, false, false);
                }
            }
            Deed::ChangeKey(record) => {
                let Some(id) = self.id_of(record) else { return };
                let row = self.remove(id);
                let id = 1_000 + self.script.lsn as i64;
                self.rows.insert(id, row);
                let after = self.after(id, false);
                self.script.same_transaction(Self::partition(id), "c", id, Json::Null, after);
                self.tell(id, false, false);
            }
            Deed::Wait(seconds) => self.script.wait(i64::from(seconds)),
        }
    }

    fn messages(&self) -> Vec<Message> {
        merged(self.script.log().values())
    }

    /// The last images are the table's rows, and no record has a version too many or too few.
    fn compare(&self, world: &World) -> Result<(), TestCaseError> {
        for row in self.rows.values() {
            let Some(sfid) = &row.sfid else { continue };
            let Some(told) = self.told.get(sfid) else { continue };
            let (live, image) = world.sink.image("emea", "account", sfid).expect("a record that the stream showed");
            prop_assert!(live, "{} lives", sfid);
            prop_assert_eq!(image["name"].text(), Some(&*row.name), "{}", sfid);
            let notes = if told.notes { Value::Text(row.notes.as_str().into()) } else { Value::Unknown };
            prop_assert_eq!(&image["notes__c"], &notes, "{}", sfid);
        }
        for (sfid, told) in &self.told {
            let changes = world.sink.changes("emea", "account", sfid);
            prop_assert_eq!(changes.len(), told.versions, "{}: {:#?}", sfid, changes);
            let live = self.rows.values().any(|row| row.sfid.as_ref() == Some(sfid));
            let shown = world.sink.image("emea", "account", sfid).is_some_and(|(live, _)| live);
            prop_assert_eq!(live, shown, "{}", sfid);
        }
        let waiting: Vec<i64> = world.sink.pending.keys().filter_map(|(_, key)| key.parse().ok()).collect();
        for id in self.waiting.keys() {
            prop_assert!(waiting.contains(id), "row {} still waits", id);
        }
        Ok(())
    }
}

type Export = Vec<(String, String, String, Change)>;

fn read(script: &Script, messages: &[Message], plan: Plan) -> World {
    let mut world = script.world();
    world.read_in_order(TOPIC, messages, plan);
    world
}

/// Messages with some of them repeated: gives every message its new offset, and says what it was before.
fn renumbered(messages: Vec<Message>) -> (Vec<Message>, BTreeMap<(i32, i64), i64>) {
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

fn with_old_offsets(mut export: Export, origins: &BTreeMap<(i32, i64), i64>) -> Export {
    for (.., change) in &mut export {
        change.offset = origins[&(change.partition, change.offset)];
    }
    export
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_last_images_are_the_table_and_nothing_is_told_twice(deeds in prop::collection::vec(deed(), 1..60)) {
        let table = Table::after_deeds(&deeds);
        let world = read(&table.script, &table.messages(), Plan::WHOLE);
        prop_assert_eq!(world.count(Counter::Stale) + world.count(Counter::Dead), 0);
        table.compare(&world)?;
    }

    #[test]
    fn batches_and_restarts_leave_no_trace(
        deeds in prop::collection::vec(deed(), 1..60), batch in 1usize..9, chunk in 1usize..5,
        pipelined in any::<bool>(), way in 0..3u8, front in 0..3u8,
    ) {
        let table = Table::after_deeds(&deeds);
        let messages = table.messages();
        let whole = read(&table.script, &messages, Plan::WHOLE);
        let restart = [Restart::Never, Restart::Warm, Restart::Cold][usize::from(way)];
        let front = [0, SMALL_FRONT, FRONT][usize::from(front)];
        let sliced = read(&table.script, &messages, Plan { chunk, batch, pipelined, restart, front });
        prop_assert_eq!(whole.sink.export(), sliced.sink.export());
        prop_assert_eq!(&whole.sink.old_keys, &sliced.sink.old_keys);
        table.compare(&sliced)?;
    }

    /// What the front tells without decoding is what judging would have told, event by event.
    #[test]
    fn the_front_changes_no_outcome(deeds in prop::collection::vec(deed(), 1..60), chunk in 1usize..9) {
        let table = Table::after_deeds(&deeds);
        let messages = table.messages();
        let judged = read(&table.script, &messages, Plan { front: 0, chunk, ..Plan::WHOLE });
        for front in [SMALL_FRONT, FRONT] {
            let told = read(&table.script, &messages, Plan { front, chunk, ..Plan::WHOLE });
            prop_assert_eq!(judged.sink.export(), told.sink.export());
            let plain = |world: &World| -> Vec<_> {
                let reason = |counter: &Counter| matches!(counter, Counter::NoopStatus | Counter::NoopSystem);
                let name = |counter: &Counter| if reason(counter) { Counter::Noop } else { *counter };
                world.outcomes.iter().map(|(topic, p, offset, outcome)| (topic.clone(), *p, *offset, name(outcome))).collect()
            };
            prop_assert_eq!(plain(&judged), plain(&told));
        }
    }

    #[test]
    fn an_event_applied_twice_is_applied_once(deeds in prop::collection::vec(deed(), 1..60), batch in 1usize..9) {
        let table = Table::after_deeds(&deeds);
        let messages = table.messages();
        let once = read(&table.script, &messages, Plan::WHOLE);
        let (twice, origins) = renumbered(messages.iter().flat_map(|m| [m.clone(), m.clone()]).collect());
        let world = read(&table.script, &twice, Plan::slices(batch, Restart::Cold));
        prop_assert_eq!(once.sink.export(), with_old_offsets(world.sink.export(), &origins));
        prop_assert_eq!(once.count(Counter::RowsWritten), world.count(Counter::RowsWritten));
        prop_assert_eq!(world.count(Counter::Stale), 0);
    }

    #[test]
    fn a_range_delivered_again_adds_nothing(
        deeds in prop::collection::vec(deed(), 1..60), from in 0usize..80, length in 1usize..80, batch in 1usize..9,
    ) {
        let table = Table::after_deeds(&deeds);
        let messages = table.messages();
        let once = read(&table.script, &messages, Plan::WHOLE);
        let from = from.min(messages.len());
        let to = (from + length).min(messages.len());
        let again = [&messages[..to], &messages[from..]].concat();
        let (again, origins) = renumbered(again);
        let world = read(&table.script, &again, Plan::slices(batch, Restart::Cold));
        prop_assert_eq!(once.sink.export(), with_old_offsets(world.sink.export(), &origins));
        // A snapshot read says nothing of how far its partition is (protocol D10): the last one there may be taken for
        // late when it comes again. It is kept, and changes nothing.
        prop_assert!(world.sink.late.values().all(|late| late.event.op == Op::Read));
        table.compare(&world)?;
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn partitions_that_lag_cost_no_last_image_and_no_event(
        deeds in prop::collection::vec(deed(), 1..60), turns in prop::collection::vec(0..PARTITIONS, 1..40),
        batch in 1usize..9,
    ) {
        let table = Table::after_deeds(&deeds);
        let messages = lagging(&table.messages(), &turns);
        let world = read(&table.script, &messages, Plan::slices(batch, Restart::Cold));
        let merged = read(&table.script, &table.messages(), Plan::WHOLE);
        for (sfid, told) in &table.told {
            if told.versions == 0 || world.sink.late.values().any(|late| world.sink.records[&late.event.rid].sfid == *sfid) {
                continue;
            }
            let image = world.sink.image("emea", "account", sfid);
            prop_assert_eq!(image, merged.sink.image("emea", "account", sfid), "{}", sfid);
        }
    }
}

/// Partitions read in turns of a few messages, each in its own order.
fn lagging(messages: &[Message], turns: &[i64]) -> Vec<Message> {
    let mut left = messages.to_vec();
    let mut out = Vec::new();
    for turn in turns {
        for _ in 0..3 {
            if let Some(at) = left.iter().position(|message| i64::from(message.partition) == *turn) {
                out.push(left.remove(at));
            }
        }
    }
    out.extend(left);
    out
}
