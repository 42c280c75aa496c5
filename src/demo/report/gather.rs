//! The questions, in SQL.

use std::collections::{BTreeMap, HashMap};

use anyhow::{Context, Result};
use futures::SinkExt as _;

use super::{
    AccountStory, AccountVersion, Bytes, Conservation, DemoReport, Facts, FullCopies, Outcome, SetAside, TruthCheck,
};
use crate::demo::simulator::tables::{Role, TABLES, TableSpec};
use crate::demo::simulator::{FinalRecord, FullCopy, SimTotals, article};
use crate::demo::sink::Sink;

/// How many differences are told in words.
const TOLD: usize = 8;

/// Asks the sink everything the report tells. `listener` is an empty database, for measuring full copies.
///
/// # Errors
/// When a query fails.
pub async fn gather(facts: &Facts<'_>, sink: &Sink, url: &str, listener: &str) -> Result<DemoReport> {
    let options = facts.options;
    Ok(DemoReport {
        seed: options.seed,
        workers: options.workers,
        orgs: options.orgs.clone(),
        broker: options.broker(),
        capture: options.capture,
        debezium: options.debezium,
        connector_kills: facts.connector_kills,
        crash: facts.crash.clone(),
        processing_seconds: facts.processed.as_secs_f64(),
        total_seconds: facts.total.as_secs_f64(),
        account: account(facts, sink, url).await?,
        emitted: emitted(facts),
        versions: versions(sink).await?,
        outcomes: outcomes(sink).await?,
        set_aside: set_aside(sink).await?,
        bytes: bytes(facts, sink, listener).await?,
        conservation: conservation(facts, sink).await?,
        truth: truth(facts, sink).await?,
    })
}

/// What a real connector repeats is no part of the simulator's count.
fn emitted(facts: &Facts<'_>) -> SimTotals {
    let mut totals = facts.simulator.totals();
    totals.messages = facts.ends.values().map(|end| u64::try_from(*end).unwrap_or(0)).sum();
    totals.others = totals.messages.saturating_sub(totals.events);
    totals
}

async fn account(facts: &Facts<'_>, sink: &Sink, url: &str) -> Result<AccountStory> {
    let org = facts.options.orgs.first().context("the demo has no org")?;
    let query = "select seq::int8, op::text, at::text, changes::text from afterimage.changes \
                 where org = $1 and object = $2 and sfid = $3 order by seq";
    let rows = sink.client().query(query, &[org, &article::OBJECT, &article::SFID]).await?;
    let mut versions = Vec::with_capacity(rows.len());
    for row in rows {
        let changes: String = row.get(3);
        let changes = serde_json::from_str(&changes).context("afterimage.changes.changes is not an object")?;
        versions.push(AccountVersion { seq: row.get(0), op: row.get(1), at: row.get(2), changes });
    }
    // A session of its own: the search path is what makes the article's query run as it stands.
    let reader = Sink::connect(url).await?;
    reader.client().batch_execute(&format!("set search_path = {org}_history")).await?;
    let answer = reader.ask(article::QUERY).await?;

    let wanted: Vec<(&str, f64)> =
        article::changing_events().iter().filter_map(|number| article::VERSIONS.get(number - 1)).copied().collect();
    let score = answer.columns.iter().position(|column| column == "score__c");
    let scores: Vec<Option<f64>> =
        answer.rows.iter().map(|row| score.and_then(|at| row.get(at)?.as_deref()?.parse().ok())).collect();
    let right = versions.len() == wanted.len()
        && scores == wanted.iter().map(|(_, score)| Some(*score)).collect::<Vec<_>>()
        && versions.iter().skip(1).zip(wanted.windows(2)).all(|(version, pair)| is_edit(version, pair[0], pair[1]));
    let query = article::QUERY.to_string();
    Ok(AccountStory { events: facts.simulator.account_events(), versions, query, answer, right })
}

/// Whether a version holds exactly the fields that differ between two of the article's rows.
fn is_edit(version: &AccountVersion, before: (&str, f64), after: (&str, f64)) -> bool {
    let mut wanted = serde_json::Map::new();
    if before.0 != after.0 {
        wanted.insert("phone".into(), serde_json::json!([before.0, after.0]));
    }
    if before.1 != after.1 {
        wanted.insert("score__c".into(), serde_json::json!([before.1, after.1]));
    }
    same(&version.changes.clone().into(), &wanted.into())
}

async fn versions(sink: &Sink) -> Result<BTreeMap<String, i64>> {
    let query = "select op::text, count(*) from afterimage.changes group by 1";
    let rows = sink.client().query(query, &[]).await?;
    Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
}

async fn outcomes(sink: &Sink) -> Result<Vec<Outcome>> {
    let query = "select outcome::text, reason::text, sum(events)::int8 from afterimage.outcomes \
                 group by 1, 2 having sum(events) > 0 order by 3 desc, 1, 2";
    let rows = sink.client().query(query, &[]).await?;
    Ok(rows.iter().map(|row| Outcome { outcome: row.get(0), reason: row.get(1), events: row.get(2) }).collect())
}

async fn set_aside(sink: &Sink) -> Result<SetAside> {
    let query = "select (select count(*) from afterimage.dead_letters), (select count(*) from afterimage.gaps), \
                 (select count(*) from afterimage.late_events)";
    let row = sink.client().query_one(query, &[]).await?;
    Ok(SetAside { dead_letters: row.get(0), gaps: row.get(1), late_events: row.get(2) })
}

async fn bytes(facts: &Facts<'_>, sink: &Sink, listener: &str) -> Result<Bytes> {
    let query = "select coalesce((select sum(pg_total_relation_size(inhrelid)) from pg_inherits \
                                  where inhparent = 'afterimage.delta'::regclass), 0)::int8, \
                        pg_total_relation_size('afterimage.keyframe'), \
                        pg_total_relation_size('afterimage.record'), \
                        (select sum(pg_total_relation_size(oid)) from pg_class \
                         where relnamespace = 'afterimage'::regnamespace and relkind = 'r')::int8";
    let row = sink.client().query_one(query, &[]).await?;
    let listener = Sink::connect(listener).await?;
    let mut copies = Vec::new();
    for spec in &TABLES {
        let events = facts.simulator.copied_events().get(spec.object).copied().unwrap_or(0);
        let sample = facts.simulator.copies().get(spec.object).map_or(&[][..], Vec::as_slice);
        if !sample.is_empty() {
            copies.push(full_copies(&listener, spec, events, sample).await?);
        }
    }
    Ok(Bytes { delta: row.get(0), keyframe: row.get(1), record: row.get(2), schema: row.get(3), copies })
}

/// Stores a sample as the article's listener would have: the row's columns, a serial key, and the indexes that Connect
/// and the article's queries need.
async fn full_copies(listener: &Sink, spec: &TableSpec, events: u64, sample: &[FullCopy]) -> Result<FullCopies> {
    let table = spec.object;
    // The listener's own serial took the name `id`; the row's id came along under another.
    let name = |column: &str| if column == "id" { "row_id".to_string() } else { column.to_string() };
    let columns: Vec<String> =
        spec.columns.iter().map(|column| format!("{} {}", name(column.name), column.kind.sql())).collect();
    let mut ddl = format!("create table {table} (id serial primary key, {});", columns.join(", "));
    let lookup = spec
        .columns
        .iter()
        .filter(|column| matches!(column.role, Role::Sfid | Role::Stamp) || column.name == "external_id__c");
    for column in lookup {
        ddl.push_str(&format!("create index on {table} ({});", column.name));
    }
    listener.client().batch_execute(&ddl).await?;
    let names: Vec<String> = spec.columns.iter().map(|column| name(column.name)).collect();
    let copy = listener.client().copy_in(&format!("copy {table} ({}) from stdin", names.join(", "))).await?;
    let mut copy = std::pin::pin!(copy);
    let mut lines = String::new();
    for row in sample {
        lines.push_str(&row.columns.iter().map(|cell| copy_text(cell.as_deref())).collect::<Vec<_>>().join("\t"));
        lines.push('\n');
    }
    copy.send(bytes::Bytes::from(lines)).await?;
    copy.finish().await?;
    let size: i64 =
        listener.client().query_one(&format!("select pg_total_relation_size('{table}')"), &[]).await?.get(0);
    let bytes_per_row = size as f64 / sample.len() as f64;
    Ok(FullCopies { object: table.to_string(), events, sample: sample.len() as u64, bytes_per_row })
}

/// A cell in COPY's text format.
fn copy_text(cell: Option<&str>) -> String {
    match cell {
        None => r"\N".to_string(),
        Some(text) => text.replace('\\', r"\\").replace('\t', r"\t").replace('\n', r"\n").replace('\r', r"\r"),
    }
}

async fn conservation(facts: &Facts<'_>, sink: &Sink) -> Result<Conservation> {
    let query = "select p.topic::text, p.partition::int4, p.first_offset::int8, p.next_offset::int8, \
                        coalesce((select sum(o.events) from afterimage.outcomes o \
                                  where (o.topic, o.partition, o.incarnation) = (p.topic, p.partition, p.incarnation)), 0)::int8 \
                 from afterimage.positions p";
    let mut found: HashMap<(String, i32), (i64, i64, i64)> = HashMap::new();
    for row in sink.client().query(query, &[]).await? {
        found.insert((row.get(0), row.get(1)), (row.get(2), row.get(3), row.get(4)));
    }
    let mut conservation = Conservation {
        partitions: facts.ends.len(),
        messages: facts.ends.values().sum(),
        outcomes: 0,
        broken: Vec::new(),
    };
    for ((topic, partition), end) in facts.ends {
        let position = found.remove(&(topic.to_string(), *partition));
        let (first, next, outcomes) = position.unwrap_or_default();
        conservation.outcomes += outcomes;
        if next != *end || next - first != outcomes || first != 0 {
            conservation.broken.push(format!(
                "{topic}/{partition}: broker's end {end}, position {next} (from {first}), outcomes {outcomes}"
            ));
        }
    }
    // Partitions without messages have nothing to account for.
    for ((topic, partition), (first, next, outcomes)) in found {
        if next != first || outcomes != 0 {
            conservation.broken.push(format!("{topic}/{partition}: position {next}, but the broker has no message"));
        }
    }
    conservation.broken.sort();
    Ok(conservation)
}

async fn truth(facts: &Facts<'_>, sink: &Sink) -> Result<TruthCheck> {
    let query =
        "select org::text, object::text, sfid::text, status::text, seq::int8, image::text from afterimage.records";
    let mut stored = HashMap::new();
    for row in sink.client().query(query, &[]).await? {
        let image: Option<String> = row.get(5);
        let image: serde_json::Value = serde_json::from_str(image.as_deref().unwrap_or("null"))?;
        let key: (String, String, String) = (row.get(0), row.get(1), row.get(2));
        stored.insert(key, (row.get::<_, String>(3), row.get::<_, i64>(4), image));
    }
    let mut check = TruthCheck::default();
    for (org, object, sfid, wanted) in facts.simulator.finals() {
        check.records += 1;
        let key = (org.to_string(), object.to_string(), sfid.to_string());
        let record = stored.remove(&key);
        let name = format!("{org}.{object} {sfid}");
        match record {
            None => check.tell(format!("{name}: not stored")),
            Some((status, seq, image)) => check.compare(&name, &wanted, &status, seq, &image),
        }
    }
    for (org, object, sfid) in stored.keys() {
        check.records += 1;
        check.tell(format!("{org}.{object} {sfid}: stored, though the stream never showed it"));
    }
    Ok(check)
}

impl TruthCheck {
    /// Compares one record's end state.
    pub(super) fn compare(
        &mut self,
        name: &str,
        wanted: &FinalRecord,
        status: &str,
        seq: i64,
        image: &serde_json::Value,
    ) {
        let fields = field_differences(&wanted.image, image);
        if wanted.status != status {
            return self.tell(format!("{name}: {status}, wanted {}", wanted.status));
        }
        let same_versions = i64::from(wanted.versions) == seq + 1;
        if fields.is_empty() {
            self.right_images += 1;
        }
        if fields.is_empty() && same_versions {
            self.right_histories += 1;
        } else if !fields.is_empty() {
            self.tell(format!("{name}: other values in {}", fields.join(", ")));
        } else {
            self.tell(format!("{name}: {} versions, wanted {}", seq + 1, wanted.versions));
        }
    }

    fn tell(&mut self, difference: String) {
        if self.differences.len() < TOLD {
            self.differences.push(difference);
        }
    }
}

/// Names of the fields that differ. Names only: the demo's values are made up, but the habit is not.
fn field_differences(wanted: &serde_json::Map<String, serde_json::Value>, image: &serde_json::Value) -> Vec<String> {
    let empty = serde_json::Map::new();
    let image = image.as_object().unwrap_or(&empty);
    let mut names: Vec<String> = wanted
        .iter()
        .filter(|(name, value)| image.get(*name).is_none_or(|stored| !same(stored, value)))
        .map(|(name, _)| name.clone())
        .collect();
    // An empty field may stand in the image or not: the simulator keeps only what has a value.
    names.extend(
        image
            .iter()
            .filter(|(name, value)| !value.is_null() && !wanted.contains_key(*name))
            .map(|(name, _)| name.clone()),
    );
    names
}

/// Equality of JSON values, numbers by value: `15` is `15.0`.
pub(super) fn same(left: &serde_json::Value, right: &serde_json::Value) -> bool {
    use serde_json::Value::{Array, Number, Object};
    match (left, right) {
        (Number(left), Number(right)) => left.as_f64() == right.as_f64(),
        (Array(left), Array(right)) => {
            left.len() == right.len() && left.iter().zip(right).all(|(left, right)| same(left, right))
        }
        (Object(left), Object(right)) => {
            left.len() == right.len()
                && left.iter().all(|(name, left)| right.get(name).is_some_and(|right| same(left, right)))
        }
        _ => left == right,
    }
}
