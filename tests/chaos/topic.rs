//! The whole topics, read back from Kafka: which source event stands at which offset, and what each record was last.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::message::{BorrowedMessage, Message};
use rdkafka::{Offset, TopicPartitionList};
use serde::Deserialize;
use serde_json::{Map, Value};

use super::feed::{Ends, topic};
use super::source::TABLES;
use super::support::wait::LONG;

/// Columns that are no fields of the history.
const HIDDEN: [&str; 5] = ["id", "sfid", "systemmodstamp", "_hc_lastop", "_hc_err"];

/// A place in Kafka: index of the table, partition, offset.
pub type Place = (usize, i32, i64);

/// The last that is known of a record.
#[derive(Debug, Clone, PartialEq)]
pub struct Last {
    /// Whether it is there.
    pub live: bool,
    /// Its non-null fields.
    pub image: Map<String, Value>,
}

/// What the topics hold.
#[derive(Debug, Default)]
pub struct Topics {
    /// Messages.
    pub messages: u64,
    /// Row events without those sent again.
    pub events: u64,
    /// The first delivery of each source event.
    pub first: HashMap<u64, Place>,
    /// Which source event stands where.
    pub lsn: HashMap<Place, u64>,
    /// The last of each record by (index of the table, identity).
    pub last: BTreeMap<(usize, String), Last>,
}

#[derive(Deserialize)]
struct Envelope {
    op: String,
    source: Position,
    after: Option<Map<String, Value>>,
}

#[derive(Deserialize)]
struct Position {
    lsn: u64,
}

#[derive(Deserialize)]
struct Key {
    id: i32,
}

/// One row event, in as few bytes as it takes.
struct Small {
    lsn: u64,
    table: usize,
    id: i32,
    /// Which record it names; none of a delete, and of a row without Salesforce id.
    record: Option<u32>,
    delete: bool,
}

/// Reads everything up to `ends`.
///
/// # Panics
/// When the broker does not deliver.
pub fn read(client: &ClientConfig, ends: &Ends) -> Topics {
    let mut topics = Topics::default();
    let mut names: HashMap<(usize, String), u32> = HashMap::new();
    let mut small: Vec<Small> = Vec::new();
    let mut images: HashMap<u32, (u64, Map<String, Value>)> = HashMap::new();
    each(client, ends, |table, message| {
        topics.messages += 1;
        let Some(payload) = message.payload() else { return };
        let envelope: Envelope = serde_json::from_slice(payload).expect("an envelope");
        let key: Key = serde_json::from_slice(message.key().expect("a key")).expect("a key");
        let (lsn, place) = (envelope.source.lsn, (table, message.partition(), message.offset()));
        topics.lsn.insert(place, lsn);
        // A partition is read in order, and an event stands always on the same.
        if topics.first.contains_key(&lsn) {
            return;
        }
        topics.first.insert(lsn, place);
        topics.events += 1;
        let sfid = envelope.after.as_ref().and_then(|after| after.get("sfid")?.as_str().map(str::to_owned));
        let record = sfid.map(|sfid| {
            let next = names.len() as u32;
            *names.entry((table, sfid)).or_insert(next)
        });
        if let (Some(record), Some(mut after)) = (record, envelope.after)
            && images.get(&record).is_none_or(|(known, _)| *known < lsn)
        {
            after.retain(|name, value| !HIDDEN.contains(&name.as_str()) && !value.is_null());
            images.insert(record, (lsn, after));
        }
        small.push(Small { lsn, table, id: key.id, record, delete: envelope.op == "d" });
    });
    // In commit order; a delete names only the id, whose row is the last that came under it.
    small.sort_by_key(|event| event.lsn);
    let mut owner: HashMap<(usize, i32), Option<u32>> = HashMap::new();
    let mut live: HashMap<u32, bool> = HashMap::new();
    for event in &small {
        if event.delete {
            if let Some(Some(record)) = owner.remove(&(event.table, event.id)) {
                live.insert(record, false);
            }
        } else {
            owner.insert((event.table, event.id), event.record);
            live.extend(event.record.map(|record| (record, true)));
        }
    }
    for ((table, sfid), record) in names {
        let image = images.remove(&record).map(|(_, image)| image).unwrap_or_default();
        topics.last.insert((table, sfid), Last { live: live[&record], image });
    }
    topics
}

/// Writes all messages into a file, one a line.
///
/// # Errors
/// When the file cannot be written.
pub fn dump(client: &ClientConfig, ends: &Ends, path: &Path) -> std::io::Result<()> {
    let mut out = BufWriter::new(File::create(path)?);
    let mut result = Ok(());
    each(client, ends, |table, message| {
        let text = |bytes: Option<&[u8]>| bytes.map_or("null".into(), |b| String::from_utf8_lossy(b).into_owned());
        let (key, value) = (text(message.key()), text(message.payload()));
        let topic = TABLES[table];
        let line = writeln!(out, "{topic}\t{}\t{}\t{key}\t{value}", message.partition(), message.offset());
        if result.is_ok() {
            result = line;
        }
    });
    result.and_then(|()| out.flush())
}

fn each(client: &ClientConfig, ends: &Ends, mut see: impl FnMut(usize, &BorrowedMessage<'_>)) {
    let mut config = client.clone();
    config.set("group.id", "chaos-reader").set("enable.auto.commit", "false").set("enable.partition.eof", "true");
    let consumer: BaseConsumer = config.create().expect("a consumer");
    for (table, _) in TABLES.iter().enumerate() {
        let mut open: Vec<i32> =
            ends.iter().filter(|((of, _), end)| *of == table && **end > 0).map(|(of, _)| of.1).collect();
        let mut list = TopicPartitionList::new();
        for partition in &open {
            list.add_partition_offset(&topic(table), *partition, Offset::Beginning).expect("a partition");
        }
        consumer.assign(&list).expect("an assignment");
        while !open.is_empty() {
            match consumer.poll(LONG) {
                None => panic!("no answer from {} in {LONG:?}", topic(table)),
                Some(Err(KafkaError::PartitionEOF(partition))) => open.retain(|one| *one != partition),
                Some(Err(error)) => panic!("{}: {error}", topic(table)),
                Some(Ok(message)) => see(table, &message),
            }
        }
    }
}
