//! Hand-made streams: a source database with a clock and a log, and the messages that a connector makes of it.
#![allow(dead_code)]

use std::collections::BTreeMap;

use afterimage::core::value::Value;
use serde_json::{Value as Json, json};

use crate::worker::{Log, Message, Plan, Restart, SMALL_FRONT, Topic, World, merged};

/// Two record ids.
pub const X: &str = "001000000000001AAA";
pub const Y: &str = "001000000000002AAA";
/// What a connector sends for a long text that an update did not touch.
pub const UNTOUCHED: &str = "__debezium_unavailable_value";
pub const TOPIC: &str = "demo.emea.account";
pub const SECOND: i64 = 1_000_000;

/// The source.
#[derive(Debug, Clone)]
pub struct Script {
    pub topic: String,
    /// Commit time of the next transaction, µs.
    pub now: i64,
    pub lsn: u64,
    pub messages: Vec<Message>,
}

impl Script {
    pub fn new() -> Self {
        Script::of(TOPIC)
    }

    pub fn of(topic: &str) -> Self {
        // 2026-10-01 10:00:00.25
        Script { topic: topic.into(), now: 1_790_848_800_250_000, lsn: 1_000, messages: Vec::new() }
    }

    /// Time passes.
    pub fn wait(&mut self, seconds: i64) {
        self.now += seconds * SECOND;
    }

    /// A stamp that many seconds before now, cut to the second.
    pub fn stamp(&self, seconds: i64) -> i64 {
        (self.now / SECOND - seconds) * SECOND
    }

    fn push(&mut self, partition: i32, key: Option<Json>, value: Option<Json>) {
        let offset = self.messages.iter().filter(|message| message.partition == partition).count() as i64;
        self.messages.push(Message {
            topic: self.topic.clone(),
            partition,
            offset,
            timestamp_ms: self.now / 1000 + 40,
            key: key.map(|key| key.to_string().into_bytes()),
            value: value.map(|value| value.to_string().into_bytes()),
        });
    }

    /// One row event; each is a transaction of its own, a second after the last.
    pub fn event(&mut self, partition: i32, op: &str, id: i64, before: Json, after: Json) {
        self.wait(1);
        self.lsn += 10;
        self.same_transaction(partition, op, id, before, after);
    }

    /// A row event with the time and LSN of the one before.
    pub fn same_transaction(&mut self, partition: i32, op: &str, id: i64, before: Json, after: Json) {
        let source = json!({
            "connector": "postgresql", "schema": "emea", "table": "account", "db": "d1", "ts_us": self.now,
            "ts_ms": self.now / 1000, "lsn": self.lsn, "txId": 7,
        });
        let value = json!({"before": before, "after": after, "source": source, "op": op, "ts_ms": self.now / 1000});
        self.push(partition, Some(json!({ "id": id })), Some(value));
    }

    pub fn insert(&mut self, partition: i32, id: i64, row: Json) {
        let row = with_id(id, row);
        self.event(partition, "c", id, Json::Null, row);
    }

    pub fn update(&mut self, partition: i32, id: i64, row: Json) {
        let row = with_id(id, row);
        self.event(partition, "u", id, Json::Null, row);
    }

    pub fn snapshot(&mut self, partition: i32, id: i64, row: Json) {
        let row = with_id(id, row);
        self.event(partition, "r", id, Json::Null, row);
    }

    /// A delete that shows its key alone, and its tombstone.
    pub fn delete(&mut self, partition: i32, id: i64) {
        let nothing = json!({"id": id, "sfid": null, "name": null});
        self.event(partition, "d", id, nothing, Json::Null);
        self.push(partition, Some(json!({ "id": id })), None);
    }

    /// Sends a message once more, at the end of its partition.
    pub fn again(&mut self, at: usize) {
        let mut message = self.messages[at].clone();
        message.offset = self.messages.iter().filter(|other| other.partition == message.partition).count() as i64;
        self.messages.push(message);
    }

    pub fn log(&self) -> Log {
        let mut log = Log::new();
        for message in &self.messages {
            log.entry((message.topic.clone(), message.partition)).or_default().push(message.clone());
        }
        log
    }

    /// A world that reads this script's topic.
    pub fn world(&self) -> World {
        let mut dots = self.topic.split('.').skip(1);
        World::new([Topic::new(&self.topic, dots.next().unwrap_or_default(), dots.next().unwrap_or_default())])
    }

    /// Reads the messages merged by source time, in every way, and shows each result.
    pub fn each_way(&self, look: impl FnMut(&World, &str)) {
        let log = self.log();
        self.in_order_each_way(&merged(log.values()), look);
    }

    /// Reads the messages as they were sent, whatever their times: partitions that lag.
    pub fn as_sent_each_way(&self, look: impl FnMut(&World, &str)) {
        self.in_order_each_way(&self.messages, look);
    }

    fn in_order_each_way(&self, messages: &[Message], mut look: impl FnMut(&World, &str)) {
        let mut first = None;
        for plan in every_way(messages.len()) {
            let mut world = self.world();
            world.read_in_order(&self.topic, messages, plan);
            let export = world.sink.export();
            let how = format!("{plan:?}");
            assert_eq!(first.get_or_insert_with(|| export.clone()), &export, "{how}");
            look(&world, &how);
        }
    }
}

fn with_id(id: i64, mut row: Json) -> Json {
    row["id"] = json!(id);
    row
}

/// Ways to cut that many messages into batches.
pub fn every_way(messages: usize) -> Vec<Plan> {
    let mut plans = vec![Plan::WHOLE, Plan { front: 0, ..Plan::WHOLE }, Plan { front: SMALL_FRONT, ..Plan::WHOLE }];
    for batch in 1..messages.min(6) {
        for restart in [Restart::Never, Restart::Warm, Restart::Cold] {
            plans.push(Plan::slices(batch, restart));
            plans.push(Plan { pipelined: true, chunk: 1, ..Plan::slices(batch, restart) });
        }
    }
    plans
}

/// A record's history in words: `update name=B phone=∅`, times and system columns left out.
pub fn story(world: &World, sfid: &str) -> Vec<String> {
    let topic = world.topics.values().next().expect("a topic");
    story_in(world, &topic.org, sfid)
}

pub fn story_in(world: &World, org: &str, sfid: &str) -> Vec<String> {
    story_of(world, org, "account", sfid)
}

pub fn story_of(world: &World, org: &str, object: &str, sfid: &str) -> Vec<String> {
    let changes = world.sink.changes(org, object, sfid);
    let words = |change: &crate::memory::Change| {
        let fields: BTreeMap<&str, &str> = (change.fields.iter())
            .map(|(name, (_, new))| {
                let shown = match new {
                    Value::Null => "∅",
                    Value::Unknown => "?",
                    Value::Text(text) => text,
                };
                (name.as_str(), shown)
            })
            .collect();
        fields.iter().fold(change.op.as_str().to_string(), |text, (name, value)| format!("{text} {name}={value}"))
    };
    changes.iter().map(words).collect()
}
