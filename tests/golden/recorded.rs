//! The recorded streams: real Debezium, two versions, with and without schema blocks.

use std::collections::BTreeMap;
use std::path::PathBuf;

use afterimage::core::decode::IdentityRule;
use afterimage::core::value::Kind;
use base64::Engine;
use serde_json::Value as Json;

use crate::truth::{self, TYPES};
use crate::worker::{Log, Message, Topic, World};

/// One recording.
#[derive(Debug, Clone, Copy)]
pub struct Stream {
    pub prefix: &'static str,
    pub file: &'static str,
    /// It begins with a snapshot: what was there before is known.
    pub snapshot: bool,
}

pub const STREAMS: [Stream; 4] = [
    Stream { prefix: "calm_connector_27000", file: "dbz27.plain.jsonl", snapshot: false },
    Stream { prefix: "calm_connector_27001", file: "dbz27.schema.jsonl", snapshot: false },
    Stream { prefix: "calm_connector_37000", file: "dbz37.plain.jsonl", snapshot: false },
    Stream { prefix: "calm_connector_37001", file: "dbz37.schema.jsonl", snapshot: true },
];

pub const EDGES: [Stream; 2] = [
    Stream { prefix: "calm_connector_27000", file: "edge.dbz27.plain.jsonl", snapshot: false },
    Stream { prefix: "calm_connector_37000", file: "edge.dbz37.plain.jsonl", snapshot: false },
];

pub fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden/debezium")
}

impl Stream {
    /// Its messages on the topics of the two orgs.
    pub fn log(self) -> Log {
        let mut log = Log::new();
        for line in truth::lines(&folder().join(self.file)) {
            let topic = line["t"].as_str().expect("a topic").to_string();
            if !TABLES.iter().any(|(org, object)| topic == format!("{}.{org}.{object}", self.prefix)) {
                continue;
            }
            let number = |name: &str| line[name].as_i64().expect("a number");
            let partition = number("p") as i32;
            let message = Message {
                topic: topic.clone(),
                partition,
                offset: number("o"),
                timestamp_ms: number("ts"),
                key: bytes(&line["k"]),
                value: bytes(&line["v"]),
            };
            log.entry((topic, partition)).or_default().push(message);
        }
        for lane in log.values_mut() {
            lane.sort_by_key(|message| message.offset);
        }
        assert!(!log.is_empty(), "{} holds messages", self.file);
        log
    }

    /// A world with the topics of both orgs, types declared as a user without schema blocks declares them.
    pub fn world(self, identity: IdentityRule) -> World {
        World::new(TABLES.map(|(org, object)| {
            let mut topic = Topic::new(&format!("{}.{org}.{object}", self.prefix), org, object);
            let kind = |name| Kind::from_sql_name(name).expect("a type");
            topic.rules.types = TYPES.iter().map(|(column, name)| (column.to_string(), kind(name))).collect();
            topic.rules.identity = identity.clone();
            topic
        }))
    }
}

const TABLES: [(&str, &str); 6] = [
    ("emea", "account"),
    ("emea", "contact"),
    ("emea", "job__c"),
    ("apac", "account"),
    ("apac", "contact"),
    ("apac", "job__c"),
];

fn bytes(part: &Json) -> Option<Vec<u8>> {
    match part {
        Json::Null => None,
        Json::String(text) => Some(text.clone().into_bytes()),
        other => {
            let text = other["b64"].as_str().expect("base64");
            Some(base64::engine::general_purpose::STANDARD.decode(text).expect("base64"))
        }
    }
}

/// A message of the original log, or one put between.
#[derive(Debug, Clone)]
pub enum Piece {
    /// By its place in the lane.
    Copy(usize),
    /// Key and value.
    Extra(Option<Vec<u8>>, Option<Vec<u8>>),
}

/// For every new offset the original one; none for what was put between.
pub type Origins = BTreeMap<(String, i32), Vec<Option<i64>>>;

/// The log arranged anew, lane by lane.
pub fn arranged(log: &Log, mut arrange: impl FnMut(&[Message]) -> Vec<Piece>) -> (Log, Origins) {
    let (mut out, mut origins) = (Log::new(), Origins::new());
    for (lane, messages) in log {
        let pieces = arrange(messages);
        let place = |(offset, piece): (usize, &Piece)| {
            let mut message = match piece {
                Piece::Copy(at) => messages[*at].clone(),
                Piece::Extra(key, value) => Message { key: key.clone(), value: value.clone(), ..messages[0].clone() },
            };
            message.offset = offset as i64;
            message
        };
        out.insert(lane.clone(), pieces.iter().enumerate().map(place).collect());
        let origin = |piece: &Piece| match piece {
            Piece::Copy(at) => Some(messages[*at].offset),
            Piece::Extra(..) => None,
        };
        origins.insert(lane.clone(), pieces.iter().map(origin).collect());
    }
    (out, origins)
}
