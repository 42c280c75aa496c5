//! A topic as a connector would fill it, and the history that must come of it.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use afterimage::kafka::{EmbeddedBroker, KafkaSettings, Producer};
use serde_json::{Value, json};

use super::audit::{Ends, Entry};

/// Part of every value of every record here: no log may hold it.
pub const VALUE: &str = "Qz7-Confidential";

/// A topic as a connector would fill it, and the history that must come of it.
pub struct Stream {
    /// Its name.
    pub topic: String,
    producer: Producer,
    /// End of each partition.
    pub next: Vec<i64>,
    start: i64,
    lsn: u64,
    /// Where the log of the present source database began to count.
    log: u64,
    /// Milliseconds of source time between two events of [`rounds`](Stream::rounds).
    pub apart: u64,
    rows: BTreeMap<String, (u32, Value)>,
    /// The table's `id` of each record.
    ids: BTreeMap<u32, u32>,
    /// The stamp of each record's row.
    stamps: BTreeMap<u32, i64>,
    wanted: BTreeMap<String, Vec<Entry>>,
    /// What a partition's messages wait for, if it lags.
    held: BTreeMap<i32, Vec<Waiting>>,
}

/// A message that is not sent yet: key and value.
pub type Waiting = (Option<Vec<u8>>, Option<Vec<u8>>);

impl Stream {
    /// A new topic of the embedded broker.
    pub fn new(broker: &EmbeddedBroker, topic: &str, partitions: i32) -> Stream {
        broker.create_topic(topic, partitions).unwrap();
        Stream::on(&broker.servers(), topic, partitions)
    }

    /// A topic of any broker that is there, and empty.
    pub fn on(servers: &str, topic: &str, partitions: i32) -> Stream {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_micros() as i64;
        Stream {
            topic: topic.into(),
            producer: producer(servers),
            next: vec![0; partitions as usize],
            start: now - 30 * 86_400_000_000,
            lsn: 1_000,
            log: 0,
            apart: 10,
            rows: BTreeMap::new(),
            ids: BTreeMap::new(),
            stamps: BTreeMap::new(),
            wanted: BTreeMap::new(),
            held: BTreeMap::new(),
        }
    }

    /// So many days of source time pass.
    pub fn days_pass(&mut self, days: u64) {
        self.lsn += days * 86_400_000;
    }

    /// The stream has begun so many days earlier.
    pub fn began_earlier(mut self, days: i64) -> Stream {
        self.start -= days * 86_400_000_000;
        self
    }

    /// From here on this partition lags: what is written to it does not arrive before [`release`](Stream::release).
    pub fn hold(&mut self, partition: i32) {
        self.held.entry(partition).or_default();
    }

    /// The ends of what has arrived.
    pub fn arrived(&self) -> Ends {
        let mut ends = self.ends();
        for (partition, waiting) in &self.held {
            if let Some(end) = ends.get_mut(&(self.topic.clone(), *partition)) {
                *end -= waiting.len() as i64;
            }
        }
        ends
    }

    /// All partitions catch up.
    pub fn release(&mut self) {
        for (partition, waiting) in std::mem::take(&mut self.held) {
            for (key, value) in waiting {
                self.producer.send(&self.topic, Some(partition), key.as_deref(), value.as_deref(), None).unwrap();
            }
        }
        self.flush();
    }

    /// What waits, by partition and in order, for whoever sends it otherwise. Nothing lags any more.
    pub fn take_held(&mut self) -> BTreeMap<i32, Vec<Waiting>> {
        std::mem::take(&mut self.held)
    }

    /// The topic has so many partitions from now on.
    pub fn grow(&mut self, servers: &str, partitions: usize) {
        // A client of before would know of them only later.
        self.producer = producer(servers);
        self.next.resize(partitions, 0);
    }

    /// Writes any message; gives its offset.
    pub fn send(&mut self, partition: i32, key: Option<&[u8]>, value: Option<&[u8]>) -> i64 {
        if let Some(waiting) = self.held.get_mut(&partition) {
            waiting.push((key.map(Into::into), value.map(Into::into)));
        } else {
            self.producer.send(&self.topic, Some(partition), key, value, None).unwrap();
        }
        let next = &mut self.next[partition as usize];
        *next += 1;
        *next - 1
    }

    fn event(&mut self, op: &str, key: &Value, after: Value) -> (i32, i64) {
        self.lsn += 10;
        let ts = self.start + self.lsn as i64 * 1_000;
        let lsn = self.lsn - self.log;
        let before = if op == "d" { key.clone() } else { Value::Null };
        let value = json!({
            "before": before, "after": after,
            "source": {"version": "2.7.4.Final", "connector": "postgresql", "name": "calm", "ts_ms": ts / 1_000,
                "ts_us": ts, "snapshot": "false", "db": "d", "sequence": null, "schema": "emea", "table": "t",
                "txId": lsn, "lsn": lsn, "xmin": null},
            "transaction": null, "op": op, "ts_ms": ts / 1_000,
        });
        let key = key.to_string();
        let partition = (xxhash_rust::xxh3::xxh3_64(key.as_bytes()) % self.next.len() as u64) as i32;
        let offset = self.send(partition, Some(key.as_bytes()), Some(value.to_string().as_bytes()));
        (partition, offset)
    }

    /// An insert or update of a whole row, `identity` being what must name its record. `visible` are its fields.
    pub fn upsert(&mut self, key: &Value, identity: &str, hidden: &Value, visible: Value) {
        let known = self.rows.get(identity).cloned();
        let mut after = visible.clone();
        for (name, value) in hidden.as_object().unwrap() {
            after[name] = value.clone();
        }
        let (partition, offset) = self.event(if known.is_some() { "u" } else { "c" }, key, after);
        let old = known.as_ref().map(|(_, row)| row);
        let changes: serde_json::Map<String, Value> = visible
            .as_object()
            .unwrap()
            .iter()
            .filter(|(name, value)| old.map_or(!value.is_null(), |old| old[*name] != **value))
            .map(|(name, value)| (name.clone(), json!([old.map_or(Value::Null, |old| old[name].clone()), value])))
            .collect();
        let seq = known.as_ref().map_or(0, |(seq, _)| seq + 1);
        if changes.is_empty() {
            return;
        }
        let op = if seq == 0 { "create" } else { "update" };
        self.rows.insert(identity.into(), (seq, visible));
        self.want(identity, seq, op, changes.into(), partition, offset);
    }

    /// A delete, with its tombstone.
    pub fn delete(&mut self, key: &Value, identity: &str) {
        let (partition, offset) = self.event("d", key, Value::Null);
        self.send(partition, Some(key.to_string().as_bytes()), None);
        let (seq, _) = self.rows.remove(identity).unwrap();
        self.want(identity, seq + 1, "delete", json!({}), partition, offset);
    }

    fn want(&mut self, identity: &str, seq: u32, op: &str, changes: Value, partition: i32, offset: i64) {
        let entry = (identity.to_string(), seq as i32, op.to_string(), changes, partition, offset);
        self.wanted.entry(identity.into()).or_default().push(entry);
    }

    /// Rounds of creates, edits, repeats and touches of some Connect records.
    pub fn rounds(&mut self, records: u32, rounds: std::ops::Range<u32>) {
        for round in rounds {
            for n in 1..=records {
                let sfid = sfid(n);
                self.lsn += self.apart - 10;
                // Each third write repeats the one before; each fifth only moves the stamp.
                let step = round - round % 3 / 2 - u32::from(round % 5 == 4);
                let visible = json!({"name": format!("{VALUE} {n}"), "visits__c": step / 2, "active__c": step % 4 == 0,
                    "notes__c": format!("{VALUE} {step} of {n}"), "empty__c": null});
                let id = *self.ids.entry(n).or_insert(n);
                let hidden = json!({"id": id, "sfid": sfid, "_hc_lastop": "SYNCED", "_hc_err": null,
                    "systemmodstamp": 1_700_000_000_000_000_i64 + i64::from(round) * 1_000_000});
                self.stamps.insert(n, 1_700_000_000_000_000 + i64::from(round) * 1_000_000);
                self.upsert(&json!({"id": id}), &sfid, &hidden, visible);
            }
            self.flush();
        }
    }

    /// The source database is replaced by a copy of it: time goes on, its log counts from the beginning.
    pub fn replace_source(&mut self) {
        // Longer than any two clocks differ.
        self.lsn += 120_000;
        self.log = self.lsn;
    }

    /// A table reload: every row is deleted, then comes back as it was under a new id, most on another partition. No
    /// version is wanted of it.
    pub fn reload(&mut self) {
        let records: Vec<(u32, u32)> = self.ids.iter().map(|(n, id)| (*n, *id)).collect();
        for (_, id) in &records {
            let key = json!({ "id": id });
            let (partition, _) = self.event("d", &key, Value::Null);
            self.send(partition, Some(key.to_string().as_bytes()), None);
        }
        // Connect takes some seconds for it.
        self.lsn += 5_000;
        let above = self.ids.values().max().copied().unwrap_or(0) + 1;
        for (nth, (n, _)) in records.iter().enumerate() {
            let id = above + nth as u32;
            self.ids.insert(*n, id);
            let mut after = self.rows[&sfid(*n)].1.clone();
            let stamp = self.stamps[n];
            let hidden =
                json!({"id": id, "sfid": sfid(*n), "_hc_lastop": "SYNCED", "_hc_err": null, "systemmodstamp": stamp});
            after.as_object_mut().unwrap().extend(hidden.as_object().unwrap().clone());
            self.event("c", &json!({ "id": id }), after);
        }
        self.flush();
    }

    /// The visible fields of every record as they must be now, by identity.
    pub fn images(&self) -> BTreeMap<String, Value> {
        self.rows.iter().map(|(identity, (_, row))| (identity.clone(), row.clone())).collect()
    }

    /// Waits until the broker has all of it.
    pub fn flush(&self) {
        self.producer.flush(Duration::from_secs(60)).unwrap();
    }

    /// Its ends.
    pub fn ends(&self) -> Ends {
        let end = |(partition, next): (usize, &i64)| ((self.topic.clone(), partition as i32), *next);
        self.next.iter().enumerate().map(end).collect()
    }

    /// The history that must come of it, by record and number.
    pub fn wanted(&self) -> Vec<Entry> {
        self.wanted.values().flatten().cloned().collect()
    }
}

/// One that sends what no dead letter keeps whole, too.
fn producer(servers: &str) -> Producer {
    let mut settings = KafkaSettings::new(servers, "");
    settings.extra.insert("message.max.bytes".into(), "4000000".into());
    Producer::connect(&settings).unwrap()
}

/// The id of a record by number.
pub fn sfid(n: u32) -> String {
    format!("001{n:012}AAA")
}
