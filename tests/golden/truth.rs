//! What must come out of the recorded streams, and the comparison.
//!
//! The truth was written down beside the source, by the one who changed it, without a look at Kafka. Where more than one
//! history is right (the table in `tests/README.md`), the comparison knows each of them by name and nothing else.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use afterimage::core::format::VersionOp;
use afterimage::core::value::Value;
use afterimage::core::value::calendar::timestamp_text;
use serde_json::Value as Json;

use crate::memory::{Change, MemorySink};

/// Columns that exist from some moment on.
const LATE: [&str; 2] = ["tier__c", "segment__c"];
/// Columns that are dropped at some moment; the image keeps what was last observed.
const DROPPED: [&str; 2] = ["legacy_code__c", "birthdate"];

/// The declared types of the recorded tables, as a user without schema blocks writes them.
pub const TYPES: [(&str, &str); 17] = [
    ("annualrevenue", "float8"),
    ("billinglatitude", "float8"),
    ("billinglongitude", "float8"),
    ("score__c", "float8"),
    ("amount__c", "float8"),
    ("numberofemployees", "int4"),
    ("visits__c", "int4"),
    ("count__c", "int4"),
    ("isdeleted", "bool"),
    ("active__c", "bool"),
    ("donotcall", "bool"),
    ("done__c", "bool"),
    ("renewal__c", "date"),
    ("birthdate", "date"),
    ("due__c", "date"),
    ("last_call__c", "timestamp"),
    ("started__c", "timestamp"),
];

fn declared(column: &str) -> &'static str {
    if column == "createddate" {
        return "timestamp";
    }
    TYPES.iter().find(|(name, _)| *name == column).map_or("text", |(_, kind)| kind)
}

/// The truth about one record.
pub struct Truth {
    pub org: String,
    pub object: String,
    pub sfid: String,
    /// Wanted where a snapshot showed what was there before.
    entries: Vec<Json>,
    /// Wanted from the change stream alone.
    stream: Vec<Json>,
    last: Json,
}

pub fn lines(path: &Path) -> Vec<Json> {
    let text = std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    text.lines().map(|line| serde_json::from_str(line).expect("a line of JSON")).collect()
}

pub fn load(folder: &Path) -> Vec<Truth> {
    let one = |line: Json| {
        let text = |name: &str| line[name].as_str().expect("a text").to_string();
        let entries = line["entries"].as_array().expect("a list").clone();
        let stream = line["stream"].as_array().expect("a list").iter();
        let stream = stream.map(|e| e.as_u64().map_or_else(|| e.clone(), |at| entries[at as usize].clone()));
        Truth {
            org: text("org"),
            object: text("object"),
            sfid: text("sfid"),
            stream: stream.collect(),
            last: line["final"].clone(),
            entries,
        }
    };
    lines(&folder.join("truth.jsonl")).into_iter().map(one).collect()
}

fn business(column: &str) -> bool {
    let system = ["id", "sfid", "_hc_lastop", "_hc_err", "systemmodstamp", "lastmodifieddate", "lastmodifiedbyid"];
    !system.contains(&column)
}

/// `2026-01-01T10:00:00.500000` as PostgreSQL prints it.
fn timestamp(text: &str) -> String {
    let text = text.replacen('T', " ", 1);
    match text.split_once('.') {
        Some((whole, fraction)) => match fraction.trim_end_matches('0') {
            "" => whole.to_string(),
            fraction => format!("{whole}.{fraction}"),
        },
        None => text,
    }
}

/// Whether a stored value is the true one: numbers by value, null where never observed.
fn same(column: &str, want: Option<&Json>, got: Option<&Value>, snapshot: bool) -> bool {
    let want = want.unwrap_or(&Json::Null);
    if want.get("$unknown").is_some() {
        return matches!(got, None | Some(Value::Unknown));
    }
    let Some(Value::Text(got)) = got else {
        return want.is_null() && got != Some(&Value::Unknown);
    };
    match (declared(column), want) {
        (_, Json::Null) => false,
        ("bool", want) => want.as_bool() == Some(&**got == "t") && (&**got == "t" || &**got == "f"),
        ("float8" | "int4", want) => {
            let number = |text: &str| text.parse::<f64>().ok();
            let want = want.as_f64().or_else(|| number(want.as_str()?));
            let got = number(got);
            want.is_some() && (want == got || want.is_some_and(f64::is_nan) && got.is_some_and(f64::is_nan))
        }
        ("timestamp", want) => want.as_str().map(timestamp).as_deref() == Some(got),
        ("date", want) => {
            let want = want.as_str().unwrap_or_default();
            want == &**got || snapshot && in_the_gap(want, got)
        }
        (_, want) => want.as_str() == Some(got),
    }
}

/// Debezium's snapshot, not its stream, reads the ten days that the calendar left out in 1582 as ten days later.
fn in_the_gap(want: &str, got: &str) -> bool {
    let day = |text: &str| text.strip_prefix("1582-10-")?.parse::<u32>().ok();
    matches!((day(want), day(got)), (Some(want @ 5..=14), Some(got)) if got == want + 10)
}

/// All that differs between the sink and the truth, in words; empty = right.
pub fn differences(truth: &[Truth], sink: &MemorySink, snapshot: bool) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut known = BTreeSet::new();
    for record in truth {
        let who = (record.org.clone(), record.object.clone(), record.sfid.clone());
        let changes = sink.changes(&who.0, &who.1, &who.2);
        let wanted = if snapshot { &record.entries } else { &record.stream };
        let mut tell = |what: String| wrong.push(format!("{}.{} {}: {what}", who.0, who.1, who.2));
        history(wanted, &record.entries, &changes, snapshot, &mut tell);
        if !wanted.is_empty() {
            last_image(record, wanted, sink, snapshot, &mut tell);
        }
        known.insert(who);
    }
    for (org, object, sfid, change) in sink.export() {
        if !known.contains(&(org.clone(), object.clone(), sfid.clone())) {
            wrong.push(format!("{org}.{object} {sfid}: unknown to the truth: {change:?}"));
        }
    }
    wrong
}

fn history(wanted: &[Json], entries: &[Json], changes: &[Change], snapshot: bool, tell: &mut impl FnMut(String)) {
    let mut changes = changes.iter().peekable();
    let mut image: BTreeMap<&str, &Value> = BTreeMap::new();
    for want in wanted {
        // A row that a TRUNCATE took and that did not come back: the stream says nothing of it.
        let swept = want["visible"] == "t_or_sweep" && want["kind"] == "delete";
        if swept && changes.peek().is_none_or(|change| change.op != VersionOp::Delete) {
            continue;
        }
        let Some(change) = changes.next() else {
            tell(format!("missing: {}", brief(want)));
            continue;
        };
        let mut change = change;
        // A reload by DELETE that changed something: what was deleted came back otherwise.
        if want["alt"] == "delete+undelete"
            && change.op == VersionOp::Delete
            && changes.peek().is_some_and(|next| next.op == VersionOp::Undelete)
        {
            change = changes.next().unwrap_or(change);
        }
        for (name, (_, new)) in &change.fields {
            image.insert(name, new);
        }
        for what in entry(want, entries, change, &image, snapshot) {
            tell(format!("{} {what}; got {change:?}", brief(want)));
        }
    }
    for change in changes {
        tell(format!("extra: {change:?}"));
    }
}

fn brief(want: &Json) -> String {
    format!("[{} {} at {}]", want["tag"], want["kind"], want["commit"])
}

fn entry(
    want: &Json,
    entries: &[Json],
    change: &Change,
    image: &BTreeMap<&str, &Value>,
    snapshot: bool,
) -> Vec<String> {
    let mut wrong = Vec::new();
    let kind = want["kind"].as_str().unwrap_or_default();
    let op = change.op.as_str();
    let others = want["alt_kinds"].as_array();
    let appears = change.fields.iter().all(|(name, (old, _))| {
        LATE.contains(&name.as_str()) && matches!(old, None | Some(Value::Null | Value::Unknown))
    });
    let same_kind = op == kind
        || others.is_some_and(|kinds| kinds.iter().any(|other| other == op))
        || want["alt"] == "delete+undelete" && op == "undelete"
        || appears && ["update", "backfill"].contains(&op) && ["update", "backfill"].contains(&kind);
    if !same_kind {
        wrong.push(format!("is a {op}"));
    }
    let shown = timestamp_text(change.at, false);
    let right_at = |at: &Json| at.as_str().map(timestamp).as_deref() == Some(&shown);
    let pre = want["preexisting"] == true;
    if !pre && !right_at(&want["commit"]) && !right_at(&want["valid_from"]["commit"]) {
        wrong.push(format!("is at {shown}"));
    }
    let stamp = change.stamp.map(|stamp| timestamp_text(stamp, false));
    let local = change.local && stamp.is_none();
    if kind != "delete" && !local && stamp != want["systemmodstamp"].as_str().map(timestamp) {
        wrong.push(format!("has the stamp {stamp:?}"));
    }
    let no_fields = serde_json::Map::new();
    if let Some(whole) = want["image"].as_object() {
        for name in whole.keys().map(String::as_str).chain(image.keys().copied()).filter(|name| business(name)) {
            let absent = !whole.contains_key(name) && DROPPED.contains(&name);
            if !absent && !same(name, whole.get(name), image.get(name).copied(), snapshot) {
                wrong.push(format!("{name}: image has {:?}, want {:?}", image.get(name), whole.get(name)));
            }
        }
    }
    if want["image"].is_object() && kind != "undelete" {
        return wrong;
    }
    let fields = want["fields"].as_object().unwrap_or(&no_fields);
    let names: BTreeSet<&str> = fields.keys().map(String::as_str).chain(change.fields.keys().map(|k| &**k)).collect();
    for name in names.into_iter().filter(|name| business(name)) {
        match (fields.get(name), change.fields.get(name)) {
            (Some(want), Some((old, new))) => {
                if !same(name, Some(&want["new"]), Some(new), snapshot) {
                    wrong.push(format!("{name}: new is {new:?}"));
                }
                let unknown = kind == "backfill" && want["old"].is_null() && *old == Some(Value::Unknown);
                if !same(name, want.get("old"), old.as_ref(), snapshot) && !unknown {
                    wrong.push(format!("{name}: old is {old:?}"));
                }
            }
            // A text that was unknown and came to light without a change.
            (None, Some((Some(Value::Unknown), new))) if true_at(entries, want, name, new) => {}
            (want, got) => wrong.push(format!("{name}: want {want:?}, got {got:?}")),
        }
    }
    wrong
}

/// Whether the source's row had this value when `want` was committed.
fn true_at(entries: &[Json], want: &Json, name: &str, value: &Value) -> bool {
    let mut now = Json::Null;
    for entry in entries.iter().take_while(|entry| entry["commit"].as_str() <= want["commit"].as_str()) {
        for found in [entry["image"].get(name), entry["fields"][name].get("new")].into_iter().flatten() {
            now = found.clone();
        }
    }
    same(name, Some(&now), Some(value), false)
}

fn last_image(record: &Truth, wanted: &[Json], sink: &MemorySink, snapshot: bool, tell: &mut impl FnMut(String)) {
    let Some((live, image)) = sink.image(&record.org, &record.object, &record.sfid) else {
        tell("not in the sink".into());
        return;
    };
    let swept = wanted.last().is_some_and(|want| want["visible"] == "t_or_sweep");
    if live == record.last.is_null() && !swept {
        tell(format!("live: {live}"));
    }
    let Some(last) = record.last.as_object() else { return };
    for name in last.keys().chain(image.keys()).filter(|name| business(name)) {
        let (want, got) = (last.get(name), image.get(name));
        let dropped = want.is_none() && DROPPED.contains(&name.as_str());
        let unknown = got == Some(&Value::Unknown)
            && wanted.iter().any(|want| want["image"][name].get("$unknown").is_some())
            && wanted.iter().all(|want| want["fields"].get(name).is_none());
        if !dropped && !unknown && !same(name, want, got, snapshot) {
            tell(format!("{name}: the last image has {got:?}, want {want:?}"));
        }
    }
}
