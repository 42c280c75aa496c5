//! A naive reader of the messages, in commit order and by the JSON alone, must find what the simulator says of its
//! records: then the stream determines the truth, and a processor can be held to it.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use serde_json::{Map, Value as Json, json};

use super::tables::{TABLES, TableSpec};
use super::values::{ColumnType, Micros, SECOND, date_text, timestamp_text};
use super::*;

/// Columns that are no history.
const MACHINERY: [&str; 7] =
    ["id", "sfid", "_hc_lastop", "_hc_err", "systemmodstamp", "lastmodifieddate", "lastmodifiedbyid"];
const GRACE: Micros = 15 * 60 * SECOND;

#[derive(Default)]
struct Record {
    live: bool,
    versions: u32,
    /// Null is kept: the column was there.
    image: Map<String, Json>,
    stamp: Option<Micros>,
    deleted: Micros,
}

#[derive(Default)]
struct Reader {
    records: BTreeMap<(String, String), Record>,
    /// (topic, row id) → sfid
    owners: HashMap<(String, i64), String>,
    /// Rows that wait for their sfid.
    waiting: HashMap<(String, i64), Map<String, Json>>,
    seen: BTreeSet<(String, i64)>,
}

impl Reader {
    fn read(&mut self, message: &SimMessage) {
        let Some(value) = &message.value else { return };
        let json: Json = serde_json::from_slice(value).unwrap();
        let payload = json.get("payload").unwrap_or(&json);
        let topic = message.topic.to_string();
        let source = &payload["source"];
        // A re-delivered event has the LSN that it had before.
        if !self.seen.insert((topic.clone(), source["lsn"].as_i64().unwrap())) {
            return;
        }
        let commit = source["ts_us"].as_i64().unwrap();
        match payload["op"].as_str().unwrap() {
            "t" => {}
            "d" => self.delete((topic, payload["before"]["id"].as_i64().unwrap()), commit),
            op => self.upsert(topic, op == "c", payload["after"].as_object().unwrap(), commit),
        }
    }

    fn delete(&mut self, row: (String, i64), commit: Micros) {
        if self.waiting.remove(&row).is_some() {
            return;
        }
        let Some(sfid) = self.owners.remove(&row) else { return };
        let record = self.records.get_mut(&(row.0, sfid)).unwrap();
        assert!(record.live, "a deleted row is deleted again");
        (record.live, record.deleted) = (false, commit);
        record.versions += 1;
    }

    fn upsert(&mut self, topic: String, insert: bool, after: &Map<String, Json>, commit: Micros) {
        let row = (topic.clone(), after["id"].as_i64().unwrap());
        let waiting = self.waiting.remove(&row);
        let mut shown: Map<String, Json> = after.clone();
        shown.retain(|column, _| !MACHINERY.contains(&column.as_str()));
        if let Some(before) = waiting.filter(|_| !insert) {
            for (column, value) in &mut shown {
                if *value == envelope::PLACEHOLDER {
                    *value = before[column].clone();
                }
            }
        }
        let Some(sfid) = after["sfid"].as_str() else {
            self.waiting.insert(row, shown);
            return;
        };
        self.owners.insert(row, sfid.to_string());
        let stamp = after["systemmodstamp"].as_i64();
        let record = self.records.entry((topic, sfid.to_string())).or_default();
        if record.versions == 0 {
            let unknown = |value: Json| if value == envelope::PLACEHOLDER { json!({"$unknown": true}) } else { value };
            let image = shown.into_iter().map(|(column, value)| (column, unknown(value))).collect();
            *record = Record { live: true, versions: 1, image, stamp, deleted: 0 };
            return;
        }
        let (mut learned, mut changed) = (false, false);
        for (column, value) in shown {
            if value == envelope::PLACEHOLDER || (value.is_null() && !record.image.contains_key(&column)) {
                continue;
            }
            match record.image.insert(column, value.clone()) {
                Some(before) if before == value => {}
                Some(before) if before.is_object() => learned = true,
                _ => changed = true,
            }
        }
        if record.live {
            record.versions += u32::from(learned || changed);
        } else {
            let cut = record.deleted - record.deleted.rem_euclid(SECOND);
            let reloaded = stamp.is_none_or(|stamp| record.stamp == Some(stamp) || stamp < cut);
            if insert && !changed && reloaded && commit - record.deleted <= GRACE {
                record.versions = record.versions - 1 + u32::from(learned);
                record.live = true;
                return;
            }
            record.live = true;
            record.versions += 1;
            changed = true;
        }
        if learned || changed {
            record.stamp = stamp.or(record.stamp);
        }
    }
}

/// A raw image in the form of the history's images.
fn finished(spec: &TableSpec, image: &Map<String, Json>) -> Map<String, Json> {
    let convert = |(column, value): (&String, &Json)| {
        let kind = spec.columns[spec.named(column).unwrap()].kind;
        let value = match (kind, value.as_i64()) {
            (ColumnType::Date, Some(days)) => json!(date_text(days)),
            (ColumnType::Timestamp, Some(micros)) => json!(timestamp_text(micros)),
            _ => value.clone(),
        };
        (column.clone(), value)
    };
    image.iter().filter(|(_, value)| !value.is_null()).map(convert).collect()
}

#[test]
fn a_reader_of_the_messages_alone_finds_the_same_records() {
    for (seed, events) in [(1, 8_000), (2, 4_000), (3, 500)] {
        let mut simulator = Simulator::new(seed, SimOptions::new(events));
        let mut reader = Reader::default();
        simulator.by_ref().for_each(|message| reader.read(&message));
        let topics: HashMap<(String, &str), String> =
            simulator.topics().into_iter().map(|topic| ((topic.org, topic.object), topic.name.to_string())).collect();
        let mut compared = 0;
        for (org, object, sfid, wanted) in simulator.finals() {
            let topic = &topics[&(org.to_string(), object)];
            let record = &reader.records[&(topic.clone(), sfid.to_string())];
            let spec = TABLES.iter().find(|spec| spec.object == object).unwrap();
            assert_eq!(finished(spec, &record.image), wanted.image, "seed {seed}: {org}.{object} {sfid}");
            assert_eq!(
                if record.live { "live" } else { "deleted" },
                wanted.status,
                "seed {seed}: {org}.{object} {sfid}"
            );
            assert_eq!(record.versions, wanted.versions, "seed {seed}: {org}.{object} {sfid}");
            compared += 1;
        }
        assert_eq!(compared, reader.records.len());
        assert_eq!(compared, simulator.records());
    }
}
