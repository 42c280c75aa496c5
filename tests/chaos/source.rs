//! The load: two Connect tables and what happens to their rows, by a seed, and a record of every event as it was done.
//!
//! Rows are touched, edited, created (with and without a Salesforce id at first), deleted and undeleted; single rows and
//! whole tables are reloaded under other ids, by DELETE and by TRUNCATE … RESTART IDENTITY, so that records move between
//! partitions all the time; and now and then the connector sends again what it has sent before.

use std::collections::VecDeque;

use rand::rngs::SmallRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use serde_json::{Value, json};

/// Microseconds since 1970-01-01 UTC.
pub type Micros = i64;

/// A second.
pub const SECOND: Micros = 1_000_000;

/// The tables.
pub const TABLES: [&str; 2] = ["account", "contact"];

/// Messages that a restarted connector sends again at most.
const REDELIVERED: usize = 300;
/// A stamp lies this far before its commit: Connect polls.
const BEHIND: Micros = 3 * SECOND;
/// A record deleted in Salesforce comes back after this at the earliest: its new stamp lies after the delete.
const IN_BIN: Micros = 8 * SECOND;

/// The visible part of a row, as small as it gets: all events are kept until the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Row {
    name: u32,
    phone: u32,
    score: i32,
    active: bool,
    notes: Option<u32>,
}

impl Row {
    /// Names and values, as the history has to show them.
    pub fn fields(&self) -> [(&'static str, Value); 5] {
        [
            ("name", json!(format!("Company {} & Søns", self.name))),
            ("phone", json!(format!("+49 {:08}", self.phone))),
            ("score__c", json!(self.score)),
            ("active__c", json!(self.active)),
            ("notes__c", self.notes.map_or(Value::Null, |n| json!(format!("note {n}: \"so so\",\n{n}")))),
        ]
    }
}

/// What was done to a row, in commit order.
#[derive(Debug, Clone, Copy)]
pub struct Event {
    /// Its place in the source's log, unique.
    pub lsn: u64,
    /// Commit.
    pub at: Micros,
    /// Index of the table.
    pub table: u8,
    /// Number of the record.
    pub record: u32,
    /// The row's id at the time.
    pub id: i32,
    /// `c`, `u` or `d`
    pub op: char,
    /// Whether Salesforce had given the row its id.
    pub named: bool,
    /// The row after it; none of a delete.
    pub row: Option<Row>,
    /// `systemmodstamp`
    pub stamp: Option<Micros>,
}

/// A message on its way into Kafka.
#[derive(Debug, Clone)]
pub struct Message {
    /// Index of the table, and so of the topic.
    pub table: usize,
    /// Partition.
    pub partition: i32,
    /// Key.
    pub key: String,
    /// Value; none of a tombstone.
    pub value: Option<String>,
}

/// A row of a table, or one that is on its way back into it.
#[derive(Debug, Clone)]
struct State {
    record: u32,
    id: i32,
    row: Row,
    stamp: Option<Micros>,
    status: &'static str,
    named: bool,
}

/// One step of a table's reload.
#[derive(Debug)]
enum Reload {
    Delete(State),
    /// For so long.
    Rest(Micros),
    Until(Micros),
    Insert(State),
}

#[derive(Debug, Default)]
struct Table {
    rows: Vec<State>,
    next_id: i32,
    next_record: u32,
    bin: VecDeque<(Micros, State)>,
    reload: VecDeque<Reload>,
    /// Rows that come back, or get their Salesforce id, at some moment.
    coming: VecDeque<(Micros, State)>,
}

/// See the module.
pub struct Source {
    rng: SmallRng,
    partitions: i32,
    tables: [Table; 2],
    now: Micros,
    lsn: u64,
    next_reload: Micros,
    next_redelivery: Micros,
    recent: VecDeque<Message>,
    out: Vec<Message>,
    /// Everything that was done.
    pub events: Vec<Event>,
    /// Messages that were sent again.
    pub redelivered: u64,
    /// Reloads of whole tables.
    pub reloads: u64,
}

/// The 18-character id of a record.
pub fn sfid(table: usize, record: u32) -> String {
    // The last three letters tell which of the others are capital ones: none.
    format!("{}{record:012}AAA", ["001", "003"][table])
}

/// Partition of a row: spread, and the same for the same id.
fn partition(id: i32, partitions: i32) -> i32 {
    let mixed = (i64::from(id) + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15_u64 as i64);
    ((mixed >> 40).rem_euclid(i64::from(partitions))) as i32
}

impl Source {
    /// Empty tables at a moment.
    pub fn new(seed: u64, partitions: i32, now: Micros) -> Source {
        Source {
            rng: SmallRng::seed_from_u64(seed ^ 0x50c),
            partitions,
            tables: Default::default(),
            now,
            lsn: 1_000_000,
            next_reload: now + 20 * SECOND,
            next_redelivery: now + 15 * SECOND,
            recent: VecDeque::new(),
            out: Vec::new(),
            events: Vec::new(),
            redelivered: 0,
            reloads: 0,
        }
    }

    /// The rows that are there when the connector starts: seen by an update each.
    pub fn populate(&mut self, records: u32, now: Micros) -> Vec<Message> {
        self.clock(now);
        for table in 0..TABLES.len() {
            for _ in 0..records {
                let state = self.new_row(table);
                self.emit(table, 'u', &state);
                self.tables[table].rows.push(state);
            }
        }
        std::mem::take(&mut self.out)
    }

    /// Lets one thing happen at this moment; the messages it makes.
    pub fn step(&mut self, now: Micros) -> Vec<Message> {
        self.clock(now);
        let table = self.rng.random_range(0..TABLES.len());
        if self.now >= self.next_redelivery {
            self.next_redelivery = self.now + self.rng.random_range(15..60) * SECOND;
            self.redeliver();
        } else if self.now >= self.next_reload {
            self.next_reload = self.now + self.rng.random_range(15..50) * SECOND;
            self.begin_reload(table);
        } else if self.tables[table].coming.front().is_some_and(|(due, _)| *due <= self.now) {
            self.come(table);
        } else if !(self.rng.random_ratio(3, 4) && self.reload_one(table)) {
            self.random_event(table);
        }
        std::mem::take(&mut self.out)
    }

    /// Brings every record to rest, and touches and edits each: who holds a wrong image of one shows it now.
    pub fn sweep(&mut self, now: Micros) -> Vec<Message> {
        self.clock(now);
        for table in 0..TABLES.len() {
            while self.reload_one_at_once(table) {}
            while !self.tables[table].coming.is_empty() {
                self.come(table);
            }
            for at in 0..self.tables[table].rows.len() {
                let mut state = self.tables[table].rows[at].clone();
                self.emit(table, 'u', &state);
                self.edit(&mut state);
                self.emit(table, 'u', &state);
                self.tables[table].rows[at] = state;
            }
        }
        std::mem::take(&mut self.out)
    }

    fn clock(&mut self, now: Micros) {
        self.now = self.now.max(now);
    }

    fn stamp(&self, before: Option<Micros>) -> Option<Micros> {
        let stamp = self.now - BEHIND;
        Some((stamp - stamp.rem_euclid(SECOND)).max(before.unwrap_or(0)))
    }

    fn new_row(&mut self, table: usize) -> State {
        let row = Row {
            name: self.rng.random_range(0..100_000),
            phone: self.rng.random_range(0..100_000_000),
            score: self.rng.random_range(-5..100),
            active: self.rng.random(),
            notes: Some(self.rng.random_range(0..1_000)),
        };
        let stamp = self.stamp(None);
        let id = self.take_id(table);
        let of = &mut self.tables[table];
        of.next_record += 1;
        State { record: of.next_record, id, row, stamp, status: "SYNCED", named: true }
    }

    fn take_id(&mut self, table: usize) -> i32 {
        self.tables[table].next_id += 1;
        self.tables[table].next_id
    }

    fn edit(&mut self, state: &mut State) {
        let row = &mut state.row;
        for _ in 0..self.rng.random_range(1..3) {
            match self.rng.random_range(0..6) {
                0 => row.name += 1,
                1 | 2 => row.phone = (row.phone + self.rng.random_range(1..1_000)) % 100_000_000,
                3 => row.score += self.rng.random_range(1..9),
                4 => row.notes = if row.notes.is_some() { None } else { Some(self.rng.random_range(0..1_000)) },
                // Back and forth: the value before the last one, which a lost event would hide.
                _ => row.score = -row.score - 1,
            }
        }
        state.stamp = self.stamp(state.stamp);
    }

    fn random_event(&mut self, table: usize) {
        let rows = self.tables[table].rows.len();
        let chance = self.rng.random_range(0..1_000);
        if rows < 20 || chance < 10 {
            return self.create(table);
        }
        if chance < 18 {
            return self.undelete(table);
        }
        let at = self.rng.random_range(0..rows);
        if chance < 28 && self.tables[table].reload.is_empty() {
            let state = self.tables[table].rows.swap_remove(at);
            self.emit_delete(table, &state);
            let now = self.now;
            return self.tables[table].bin.push_back((now, state));
        }
        if chance < 80 {
            // A reload of one row: it comes back under another id, most often on another partition.
            let state = self.tables[table].rows.swap_remove(at);
            self.emit_delete(table, &state);
            let due = self.now + self.rng.random_range(SECOND / 5..3 * SECOND);
            return self.later(table, due, state);
        }
        let mut state = self.tables[table].rows[at].clone();
        match chance {
            80..280 => {}
            280..480 => state.stamp = self.stamp(state.stamp),
            480..560 => state.status = if state.status == "SYNCED" { "UPDATED" } else { "SYNCED" },
            _ => self.edit(&mut state),
        }
        self.emit(table, 'u', &state);
        self.tables[table].rows[at] = state;
    }

    fn create(&mut self, table: usize) {
        let mut state = self.new_row(table);
        if self.rng.random() {
            self.emit(table, 'c', &state);
            return self.tables[table].rows.push(state);
        }
        // An application inserted it: Salesforce gives its id later.
        (state.named, state.stamp, state.status) = (false, None, "PENDING");
        self.emit(table, 'c', &state);
        let due = self.now + self.rng.random_range(SECOND..4 * SECOND);
        self.later(table, due, state);
    }

    fn later(&mut self, table: usize, due: Micros, state: State) {
        let coming = &mut self.tables[table].coming;
        let at = coming.partition_point(|(other, _)| *other <= due);
        coming.insert(at, (due, state));
    }

    /// A row comes back, or gets its Salesforce id.
    fn come(&mut self, table: usize) {
        let Some((_, mut state)) = self.tables[table].coming.pop_front() else { return };
        if state.named {
            state.id = self.take_id(table);
            if self.rng.random_ratio(1, 20) {
                self.edit(&mut state);
            }
            self.emit(table, 'c', &state);
        } else {
            (state.named, state.status) = (true, "SYNCED");
            state.stamp = self.stamp(None);
            self.emit(table, 'u', &state);
        }
        self.tables[table].rows.push(state);
    }

    fn undelete(&mut self, table: usize) {
        let due = self.now - IN_BIN;
        if self.tables[table].bin.front().is_none_or(|(deleted, _)| *deleted > due) {
            return;
        }
        let Some((_, mut state)) = self.tables[table].bin.pop_front() else { return };
        // Some never come back.
        if self.rng.random_ratio(1, 4) {
            return;
        }
        state.id = self.take_id(table);
        state.stamp = self.stamp(state.stamp);
        self.emit(table, 'c', &state);
        self.tables[table].rows.push(state);
    }

    fn begin_reload(&mut self, table: usize) {
        if !self.tables[table].reload.is_empty() {
            return;
        }
        self.reloads += 1;
        let truncated = self.rng.random_ratio(1, 4);
        let mut rows = std::mem::take(&mut self.tables[table].rows);
        let gap = self.rng.random_range(SECOND / 2..5 * SECOND);
        if truncated {
            // Ids begin at 1 again, on other records. What had no Salesforce id yet is gone for good.
            self.tables[table].next_id = 0;
            self.tables[table].coming.retain(|(_, state)| state.named);
        } else {
            self.tables[table].reload.extend(rows.iter().cloned().map(Reload::Delete));
        }
        rows.shuffle(&mut self.rng);
        let queue = &mut self.tables[table].reload;
        queue.push_back(Reload::Rest(gap));
        queue.extend(rows.into_iter().map(Reload::Insert));
    }

    /// The next step of a table's reload, if one is under way and not at rest.
    fn reload_one(&mut self, table: usize) -> bool {
        match self.tables[table].reload.front_mut() {
            Some(step @ Reload::Rest(_)) => {
                if let Reload::Rest(gap) = *step {
                    *step = Reload::Until(self.now + gap);
                }
                false
            }
            Some(Reload::Until(until)) if *until > self.now => false,
            _ => self.reload_one_at_once(table),
        }
    }

    fn reload_one_at_once(&mut self, table: usize) -> bool {
        match self.tables[table].reload.pop_front() {
            None => return false,
            Some(Reload::Rest(_) | Reload::Until(_)) => {}
            Some(Reload::Delete(state)) => self.emit_delete(table, &state),
            Some(Reload::Insert(mut state)) => {
                state.id = self.take_id(table);
                if self.rng.random_ratio(1, 50) {
                    self.edit(&mut state);
                }
                self.emit(table, 'c', &state);
                self.tables[table].rows.push(state);
            }
        }
        true
    }

    // ---- messages ---------------------------------------------------------------------------------------

    fn emit(&mut self, table: usize, op: char, state: &State) {
        let event = self.event(table, op, state);
        let mut after = json!({"id": state.id, "_hc_lastop": state.status, "_hc_err": null,
            "sfid": if state.named { json!(sfid(table, state.record)) } else { Value::Null },
            "systemmodstamp": state.stamp});
        for (name, value) in state.row.fields() {
            after[name] = value;
        }
        self.send(&event, Some(after));
        self.events.push(Event { row: Some(state.row), ..event });
    }

    fn emit_delete(&mut self, table: usize, state: &State) {
        let event = self.event(table, 'd', state);
        self.send(&event, None);
        self.events.push(event);
        let key = json!({"id": state.id}).to_string();
        let partition = partition(state.id, self.partitions);
        self.push(Message { table, partition, key, value: None });
    }

    fn event(&mut self, table: usize, op: char, state: &State) -> Event {
        self.now += 1;
        self.lsn += 56;
        Event {
            lsn: self.lsn,
            at: self.now,
            table: table as u8,
            record: state.record,
            id: state.id,
            op,
            named: state.named,
            row: None,
            stamp: state.stamp,
        }
    }

    fn send(&mut self, event: &Event, after: Option<Value>) {
        let table = usize::from(event.table);
        let key = json!({"id": event.id});
        let before = if event.op == 'd' { key.clone() } else { Value::Null };
        let value = json!({
            "before": before, "after": after,
            "source": {"version": "2.7.4.Final", "connector": "postgresql", "name": "chaos", "ts_ms": event.at / 1_000,
                "ts_us": event.at, "snapshot": "false", "db": "d", "sequence": null, "schema": "emea",
                "table": TABLES[table], "txId": event.lsn / 56, "lsn": event.lsn, "xmin": null},
            "transaction": null, "op": event.op.to_string(), "ts_ms": event.at / 1_000,
        });
        let partition = partition(event.id, self.partitions);
        self.push(Message { table, partition, key: key.to_string(), value: Some(value.to_string()) });
    }

    fn push(&mut self, message: Message) {
        if self.recent.len() == REDELIVERED {
            self.recent.pop_front();
        }
        self.recent.push_back(message.clone());
        self.out.push(message);
    }

    /// The connector was killed, and reads the source's log again from where it last said it was.
    fn redeliver(&mut self) {
        let from = self.rng.random_range(0..self.recent.len().max(1));
        let again: Vec<Message> = self.recent.iter().skip(from).cloned().collect();
        self.redelivered += again.len() as u64;
        self.out.extend(again);
    }
}
