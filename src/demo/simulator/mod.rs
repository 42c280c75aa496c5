//! Two (or more) Salesforce orgs behind Heroku Connect, played from a seed: no I/O, no wall clock.
//!
//! [`Simulator`] is an iterator of the messages that a Debezium connector would produce. Inside, each org has its own
//! Connect tables ([`model`]), things happen to their rows ([`traces`], [`upheavals`]: what Salesforce users,
//! applications and Connect itself do), every change is written as an envelope ([`envelope`]) and folded by an
//! independent rule book ([`truth`]), so that what the processor stored can be checked against it. The same can be done
//! to a real database ([`live`]).
//!
//! All orgs begin as copies of one another, as a sandbox does: the same Salesforce ids, other data.

pub mod article;
mod envelope;
pub mod live;
mod model;
mod partitioner;
mod release;
mod sfid;
pub mod tables;
mod traces;
mod truth;
mod upheavals;
pub mod values;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, VecDeque};
use std::sync::Arc;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

pub use envelope::SOURCE_DATABASE;
use envelope::{Draft, SourcePoint};
use live::{Live, Operation};
use model::{Row, Table};
pub use release::Debezium;
use tables::{Flavour, Role, TABLES, TableSpec};
use traces::{Scheduled, Step};
pub use truth::FinalRecord;
use truth::{Cell, Effect, Shown, Truth};
use upheavals::Upheaval;
use values::{DAY, Micros, SECOND, Value};

/// When the simulated time begins: 2020-09-07 06:00 UTC, some weeks before the article was written. Far enough in the
/// past that no simulated commit ever lies after the machine's own clock.
const BEGIN: Micros = 1_599_458_400 * SECOND;
/// How much simulated time a run spans.
const SPAN: Micros = 40 * DAY;
/// A full copy of this many rows per object is kept, to measure what the article's listener would have stored.
const SAMPLES_PER_OBJECT: usize = 1_500;
/// How many messages a restarted connector sends again at most.
const REDELIVERED: usize = 300;

/// What is simulated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SimOptions {
    /// Row events that the connectors emit, about (what has begun is finished).
    pub events: u64,
    /// Names of the orgs; the first holds the article's account.
    pub orgs: Vec<String>,
    /// Rows that exist in each org before its connector starts; by default the article's 17.7 events per record.
    pub records: Option<u32>,
    /// Partitions of each topic.
    pub partitions: i32,
    /// Whose envelopes are written.
    pub release: Debezium,
    /// Stands before the connectors' names, and so before all topics.
    pub prefix: String,
}

impl SimOptions {
    /// Two orgs, four partitions per topic.
    pub fn new(events: u64) -> Self {
        SimOptions {
            events,
            orgs: vec!["emea".into(), "apac".into()],
            records: None,
            partitions: 4,
            release: Debezium::default(),
            prefix: String::new(),
        }
    }
}

/// A message as the connector hands it to Kafka.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SimMessage {
    /// Topic.
    pub topic: Arc<str>,
    /// Partition, by Kafka's default partitioner.
    pub partition: i32,
    /// Key; null on a truncate.
    pub key: Option<Vec<u8>>,
    /// Value; null on a tombstone.
    pub value: Option<Vec<u8>>,
    /// Milliseconds since 1970-01-01 UTC, simulated.
    pub timestamp: i64,
    /// In the connector's order; release 2.7 sends none.
    pub headers: Vec<(&'static str, String)>,
}

/// A topic of the simulated connectors.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SimTopic {
    /// Topic name.
    pub name: Arc<str>,
    /// Org it belongs to.
    pub org: String,
    /// Object it belongs to.
    pub object: &'static str,
    /// Whether its messages carry a schema block; without one the configuration has to declare the types.
    pub with_schema: bool,
}

/// A full copy of a row after one event, as the article's listener stored it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FullCopy {
    /// One text per column of the object's table, `None` for null.
    pub columns: Vec<Option<String>>,
}

/// What was emitted, and what of it changes anything, by the simulator's own rules.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct SimTotals {
    /// All messages.
    pub messages: u64,
    /// Row events: inserts, updates, deletes; without re-deliveries.
    pub events: u64,
    /// Tombstones, truncates and re-delivered messages.
    pub others: u64,
    /// Row events that change nothing in the history.
    pub nothing: u64,
    /// Rows without Salesforce id.
    pub pending: u64,
}

/// The simulator. Exhaust it, then ask for [`Simulator::finals`].
#[derive(Debug)]
pub struct Simulator {
    options: SimOptions,
    rng: StdRng,
    tables: Vec<Table>,
    now: Micros,
    mean_gap: Micros,
    lsn: u64,
    last_commit: u64,
    tx: u64,
    next_uid: u64,
    next_serial: Vec<u64>,
    steps: BinaryHeap<Reverse<Scheduled>>,
    steps_made: u64,
    upheavals: VecDeque<(f64, Upheaval)>,
    account: Row,
    account_events: usize,
    out: VecDeque<SimMessage>,
    recent: VecDeque<(SimMessage, Option<Draft>)>,
    connector_starts: u64,
    truth: Truth,
    totals: SimTotals,
    events_by_object: BTreeMap<&'static str, u64>,
    copies: BTreeMap<&'static str, Vec<FullCopy>>,
    traces: BTreeMap<&'static str, u64>,
    /// From simulated moments to those in rows and commits.
    offset: Micros,
    live: Option<Live>,
}

impl Simulator {
    /// Sets the orgs up. The same seed and options give the same messages.
    pub fn new(seed: u64, options: SimOptions) -> Self {
        Simulator::build(seed, options, 0, None)
    }

    fn build(seed: u64, options: SimOptions, offset: Micros, live: Option<Live>) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let records = options.records.unwrap_or_else(|| {
            // The article: 8,857,770 events of 501,646 records.
            let all_orgs = (options.events as f64 / 17.7) as u32;
            (all_orgs / options.orgs.len().max(1) as u32).max(30)
        });
        let mut simulator = Simulator {
            rng: StdRng::seed_from_u64(rng.random()),
            tables: Vec::new(),
            now: BEGIN,
            // A trace makes about 1.5 events.
            mean_gap: (SPAN / (options.events as i64 * 2 / 3).max(1)).max(SECOND / 100),
            lsn: 26_821_992,
            last_commit: 26_821_992,
            tx: 700,
            next_uid: 1,
            next_serial: vec![u64::from(records); options.orgs.len() * TABLES.len()],
            steps: BinaryHeap::new(),
            steps_made: 0,
            upheavals: upheavals::plan(options.orgs.len()),
            account: Row {
                uid: 0,
                id: 0,
                sfid: Some(article::SFID.to_string()),
                cells: Vec::new(),
                last_op: "SYNCED",
                err: None,
                busy: true,
            },
            account_events: 0,
            out: VecDeque::new(),
            recent: VecDeque::new(),
            connector_starts: 1,
            truth: Truth::default(),
            totals: SimTotals::default(),
            events_by_object: BTreeMap::new(),
            copies: BTreeMap::new(),
            traces: BTreeMap::new(),
            offset,
            live,
            options,
        };
        simulator.populate(records);
        simulator
    }

    /// The topics, in order of org and object.
    pub fn topics(&self) -> Vec<SimTopic> {
        let topic = |table: &Table| SimTopic {
            name: table.topic.clone(),
            org: table.org.clone(),
            object: table.spec.object,
            with_schema: table.with_schema,
        };
        self.tables.iter().map(topic).collect()
    }

    /// The share of the wanted events that has been emitted, 0 to 1.
    pub fn progress(&self) -> f64 {
        self.totals.events as f64 / self.options.events.max(1) as f64
    }

    /// What was emitted so far.
    pub fn totals(&self) -> SimTotals {
        self.totals
    }

    /// Inserts and updates per object: what a listener that copies every event would have stored.
    pub fn copied_events(&self) -> &BTreeMap<&'static str, u64> {
        &self.events_by_object
    }

    /// Some of those full copies, evenly spread, by object.
    pub fn copies(&self) -> &BTreeMap<&'static str, Vec<FullCopy>> {
        &self.copies
    }

    /// How often each trace ran, by its letter.
    pub fn traces(&self) -> &BTreeMap<&'static str, u64> {
        &self.traces
    }

    /// How many events of the article's account were emitted: 21 at the end.
    pub fn account_events(&self) -> usize {
        self.account_events
    }

    /// How many records the stream has shown.
    pub fn records(&self) -> usize {
        self.truth.records()
    }

    /// The expected end state of every record that the stream has shown: org, object, sfid, state.
    pub fn finals(&self) -> impl Iterator<Item = (&str, &'static str, &str, FinalRecord)> {
        self.truth.finals(|table| self.tables[table].spec).map(|(table, sfid, record)| {
            let table = &self.tables[table];
            (table.org.as_str(), table.spec.object, sfid, record)
        })
    }

    fn populate(&mut self, records: u32) {
        let orgs = self.options.orgs.clone();
        for (number, org) in orgs.iter().enumerate() {
            let SimOptions { release, prefix, .. } = &self.options;
            let connector = format!("{prefix}calm_connector_{}", release.first_connector() + number);
            for spec in &TABLES {
                self.tables.push(Table::new(org, &connector, spec, number % 2 == 0, *release));
            }
        }
        for table in 0..self.tables.len() {
            let spec = self.tables[table].spec;
            for serial in 0..u64::from(records * spec.share / 100).max(8) {
                let age = self.rng.random_range(2 * DAY..600 * DAY);
                let mut row = self.new_row(table, Some(sfid::sfid(spec.key_prefix, serial)));
                self.salesforce_fills(table, &mut row, BEGIN - age);
                self.tables[table].rows.insert(row);
            }
        }
        self.account = self.article_account();
    }

    /// A row with values in all business columns and nothing that Salesforce sets.
    fn new_row(&mut self, table: usize, sfid: Option<String>) -> Row {
        let spec = self.tables[table].spec;
        let mut cells = Vec::with_capacity(spec.columns.len());
        for column in spec.columns {
            let value = match column.role {
                // Some records have a text that the database keeps out of line.
                Role::LongText if self.rng.random_ratio(1, 12) => values::long_prose(&mut self.rng),
                _ => values::make(column.flavour, &mut self.rng, self.now),
            };
            let is_mapped = self.tables[table].shown[cells.len()];
            cells.push(if is_mapped { value } else { Value::Null });
        }
        let uid = self.next_uid;
        self.next_uid += 1;
        let id = self.tables[table].take_id();
        Row { uid, id, sfid, cells, last_op: "SYNCED", err: None, busy: false }
    }

    /// What Salesforce adds to a row that it has created at this simulated moment.
    fn salesforce_fills(&mut self, table: usize, row: &mut Row, created: Micros) {
        self.sync_clock();
        let spec = self.tables[table].spec;
        row.set(spec, Role::Created, Value::Timestamp(whole_second(self.real(created))));
        row.set(spec, Role::IsDeleted, Value::Bool(false));
        self.stamp(table, row, created);
    }

    /// Salesforce's marks of a write at this simulated moment.
    fn stamp(&mut self, table: usize, row: &mut Row, moment: Micros) {
        self.sync_clock();
        let spec = self.tables[table].spec;
        let moment = whole_second(self.real(moment)).max(row.stamp(spec).unwrap_or(0));
        row.set(spec, Role::Stamp, Value::Timestamp(moment));
        row.set(spec, Role::Modified, Value::Timestamp(moment));
        if let Some(index) = spec.columns.iter().position(|column| column.role == Role::ModifiedBy) {
            row.cells[index] = values::make_other(Flavour::Reference("005"), &mut self.rng, moment, &Value::Null);
        }
        row.last_op = "SYNCED";
        row.err = None;
    }

    fn article_account(&mut self) -> Row {
        let table = 0;
        let spec: &TableSpec = self.tables[table].spec;
        let mut row = self.new_row(table, Some(article::SFID.to_string()));
        self.salesforce_fills(table, &mut row, BEGIN - 90 * DAY);
        for (name, text) in [("name", article::NAME), ("external_id__c", article::EXTERNAL_ID)] {
            if let Some(index) = spec.named(name) {
                row.cells[index] = Value::Text(text.to_string());
            }
        }
        row.busy = true;
        row
    }

    /// The next event of the article's account: its next row, or the same row read once more.
    fn article_event(&mut self) {
        let table = 0;
        let spec = self.tables[table].spec;
        let Some((phone, score)) = article::VERSIONS.get(self.account_events) else { return };
        let mut row = self.account.clone();
        let mut carried = Vec::new();
        for (name, value) in [("phone", Value::Text((*phone).to_string())), ("score__c", Value::Float(*score))] {
            if let Some(index) = spec.named(name) {
                row.cells[index] = value;
                carried.push(index);
            }
        }
        // Every third repeat is a plain re-read; the others were touched in Salesforce, so that only stamps differ.
        let is_change = self.account_events == 0 || row.cells != self.account.cells;
        if is_change || !self.account_events.is_multiple_of(3) {
            let moment = self.now - 30 * SECOND;
            self.stamp(table, &mut row, moment);
        }
        self.account_events += 1;
        self.account = row.clone();
        self.emit_upsert(table, 'u', &row, Some(&carried));
        // The connector has flushed its offsets here: the account's 21 events stay 21.
        self.recent.clear();
    }

    /// The log position and commit time of the next change.
    fn next_point(&mut self) -> SourcePoint {
        self.now += self.rng.random_range(200..2_000);
        self.lsn += self.rng.random_range(56..900) / 8 * 8;
        self.tx += 1;
        let point =
            SourcePoint { commit: self.commit_now(), lsn: self.lsn, last_commit: self.last_commit, tx: self.tx };
        self.last_commit = self.lsn + 48;
        self.lsn = self.last_commit;
        point
    }

    fn emit_upsert(&mut self, table: usize, op: char, row: &Row, carried: Option<&[usize]>) {
        let at = self.next_point();
        self.record_upsert(table, op, row, carried);
        self.emit_upsert_at(table, op, row, carried, at);
    }

    fn emit_upsert_at(&mut self, table: usize, op: char, row: &Row, carried: Option<&[usize]>, at: SourcePoint) {
        let draft = envelope::upsert(&self.tables[table], op, row, carried, at);
        let state = &self.tables[table];
        let spec = state.spec;
        let mut cells = Vec::with_capacity(spec.columns.len());
        for (index, column) in spec.columns.iter().enumerate() {
            cells.push(if !column.role.is_business() || !state.shown[index] {
                Cell::Absent
            } else if envelope::is_placeholder(&row.cells[index], carried, index) {
                Cell::Unknown
            } else {
                Cell::Known(row.cells[index].clone())
            });
        }
        let effect = self.truth.upsert(Shown {
            table,
            id: row.id,
            sfid: row.sfid.as_deref(),
            insert: op == 'c',
            commit: at.commit,
            stamp: row.stamp(spec),
            local: row.last_op == "PENDING",
            cells,
        });
        self.count(effect);
        let seen = self.events_by_object.entry(spec.object).or_default();
        *seen += 1;
        let stride = (self.options.events / 4_000).max(1);
        let copies = self.copies.entry(spec.object).or_default();
        if seen.is_multiple_of(stride) && copies.len() < SAMPLES_PER_OBJECT {
            copies.push(FullCopy { columns: row.full(spec).iter().map(Value::sql_text).collect() });
        }
        let key = envelope::key(&self.tables[table], row.id);
        self.send(table, Some(key), Some(draft), at.commit);
    }

    /// `d` and its tombstone.
    fn emit_delete(&mut self, table: usize, row: &Row) {
        let at = self.next_point();
        let id = row.id;
        self.record(|_| Operation::Delete { table, id });
        let effect = self.truth.delete(table, row.id, row.sfid.as_deref(), at.commit);
        self.count(effect);
        let draft = envelope::delete(&self.tables[table], row.id, at);
        let key = envelope::key(&self.tables[table], row.id);
        self.send(table, Some(key.clone()), Some(draft), at.commit);
        self.totals.others += 1;
        self.send(table, Some(key), None, at.commit);
    }

    fn count(&mut self, effect: Effect) {
        self.totals.events += 1;
        match effect {
            Effect::Nothing | Effect::Cancels | Effect::UnknownDelete => self.totals.nothing += 1,
            Effect::Pending => self.totals.pending += 1,
            Effect::First | Effect::Versions(_) => {}
        }
    }

    fn send(&mut self, table: usize, key: Option<Vec<u8>>, draft: Option<Draft>, commit: Micros) {
        let partition = match &key {
            Some(key) => partitioner::partition(key, self.options.partitions),
            None => self.rng.random_range(0..self.options.partitions.max(1)),
        };
        let processed = commit + envelope::PROCESSING + self.rng.random_range(0..SECOND / 10);
        let value = draft.as_ref().map(|draft| draft.finish(processed));
        let topic = self.tables[table].topic.clone();
        let headers = envelope::headers(&self.tables[table], self.connector_starts);
        let message = SimMessage { topic, partition, key, value, timestamp: processed / 1_000, headers };
        if self.recent.len() == REDELIVERED {
            self.recent.pop_front();
        }
        let (topic, key, headers) = (message.topic.clone(), message.key.clone(), message.headers.clone());
        let without_value = SimMessage { value: None, topic, key, headers, ..message };
        self.recent.push_back((without_value, draft));
        self.totals.messages += 1;
        self.out.push_back(message);
    }

    /// The connector was killed and reads the source's log again from its last flushed offset.
    fn redeliver(&mut self) {
        self.note("redelivery");
        self.connector_starts += 1;
        self.now += 20 * SECOND;
        if self.is_live() {
            // The real one repeats what it will.
            self.recent.clear();
            return self.record(|_| Operation::KillConnector);
        }
        for (mut message, draft) in std::mem::take(&mut self.recent) {
            self.now += 200;
            if let Some((_, run)) = message.headers.last_mut() {
                *run = envelope::run_id(self.connector_starts);
            }
            let value = draft.map(|draft| draft.finish(self.now));
            self.totals.messages += 1;
            self.totals.others += 1;
            self.out.push_back(SimMessage { value, timestamp: self.now / 1_000, ..message });
        }
    }

    fn note(&mut self, trace: &'static str) {
        *self.traces.entry(trace).or_default() += 1;
    }

    fn schedule(&mut self, delay: Micros, table: usize, step: Step) {
        self.steps_made += 1;
        let scheduled = Scheduled { at: self.now + delay, number: self.steps_made, table, step };
        self.steps.push(Reverse(scheduled));
    }

    /// Lets one thing happen. `false` when all is over.
    fn happen(&mut self) -> bool {
        let progress = self.progress();
        let due = progress >= (self.account_events as f64 + 0.5) / article::VERSIONS.len() as f64;
        if self.account_events < article::VERSIONS.len() && (due || progress >= 1.0) {
            self.article_event();
        } else if self.upheavals.front().is_some_and(|(at, _)| progress >= *at) {
            if let Some((_, upheaval)) = self.upheavals.pop_front() {
                self.upheave(upheaval);
            }
        } else if self.steps.peek().is_some_and(|Reverse(next)| next.at <= self.now || progress >= 1.0) {
            if let Some(Reverse(next)) = self.steps.pop() {
                self.now = self.now.max(next.at);
                self.step(next.table, next.step);
            }
        } else if progress < 1.0 {
            self.now += self.rng.random_range(1..2 * self.mean_gap);
            self.begin_trace();
        } else {
            return false;
        }
        true
    }
}

impl Iterator for Simulator {
    type Item = SimMessage;

    fn next(&mut self) -> Option<SimMessage> {
        while self.out.is_empty() && self.happen() {}
        self.out.pop_front()
    }
}

fn whole_second(moment: Micros) -> Micros {
    moment - moment.rem_euclid(SECOND)
}

#[cfg(test)]
mod reader_tests;
#[cfg(test)]
mod tests;
