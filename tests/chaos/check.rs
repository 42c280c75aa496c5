//! Decides whether the history is right: plain SQL against the public views and the tables below them, the topics read
//! back, and the events as the load's own book has them. Nothing of the product takes part.

use std::collections::{BTreeMap, HashMap, HashSet};

use serde_json::{Map, Value};
use tokio_postgres::{Client, Row};

use super::feed::{Ends, topic};
use super::source::{Event, TABLES, sfid};
use super::topic::{Last, Place, Topics};
use super::truth::{History, Record, fold};

/// How many findings of each kind are told in words.
const TOLD: usize = 12;

/// What was found.
#[derive(Debug, Default)]
pub struct Verdict {
    /// Versions in the history.
    pub versions: u64,
    /// Records.
    pub records: u64,
    /// Versions that ought to be there.
    pub lost: u64,
    /// Versions of an event that has made none, or has made one already.
    pub doubled: u64,
    /// Versions of the right event with wrong content, number or time; last images that are not the source's.
    pub wrong: u64,
    /// Broken laws: conservation, numbering, chains.
    pub broken: u64,
    /// Late events, all and unsettled ones.
    pub late: (u64, u64),
    /// Versions that the source has made and the history lacks, because of late events.
    pub missing: u64,
    /// Records that a late event belongs to.
    pub touched_by_late: u64,
    /// Everything that is wrong, in words.
    pub findings: Vec<String>,
}

impl Verdict {
    fn tell(&mut self, kind: &str, finding: impl FnOnce() -> String) {
        let counter = match kind {
            "lost" => &mut self.lost,
            "doubled" => &mut self.doubled,
            "wrong" => &mut self.wrong,
            _ => &mut self.broken,
        };
        *counter += 1;
        if *counter <= TOLD as u64 {
            self.findings.push(format!("{kind}: {}", finding()));
        }
    }

    /// Whether the history is right: nothing is found wrong, and what came late is in its place.
    pub fn is_right(&self) -> bool {
        self.findings.is_empty() && self.late.1 + self.missing == 0
    }
}

/// One version as the view shows it.
struct Shown {
    record: Record,
    seq: i32,
    op: String,
    at: i64,
    changes: Map<String, Value>,
    place: Place,
}

/// Checks a sink.
///
/// # Errors
/// When a question cannot be asked.
pub async fn check(
    sink: &Client,
    topics: &Topics,
    events: &[Event],
    ends: &Ends,
) -> Result<Verdict, tokio_postgres::Error> {
    let mut verdict = Verdict::default();
    sink.batch_execute("SET work_mem = '128MB'").await?;
    sink.batch_execute(SHOWN).await?;
    the_load_itself(&mut verdict, topics, events, ends);
    laws(&mut verdict, sink, ends).await?;

    let late = late_events(&mut verdict, sink, topics).await?;
    let whole = fold(events, &HashSet::new());
    let wanted = fold(events, &late);
    let shown = versions(sink).await?;
    verdict.versions = shown.len() as u64;
    verdict.records = whole.len() as u64;
    let late_records: HashSet<Record> =
        events.iter().filter(|event| late.contains(&event.lsn)).map(|event| (event.table, event.record)).collect();
    verdict.touched_by_late = late_records.len() as u64;
    for record in &late_records {
        let count = |of: &BTreeMap<Record, History>| of.get(record).map_or(0, |history| history.versions.len());
        verdict.missing += count(&whole).saturating_sub(count(&wanted)) as u64;
    }
    histories(&mut verdict, &wanted, shown, topics, &late_records);
    images(&mut verdict, sink, topics, &whole).await?;
    Ok(verdict)
}

/// Kafka holds what the load has done: otherwise nothing below means anything.
fn the_load_itself(verdict: &mut Verdict, topics: &Topics, events: &[Event], ends: &Ends) {
    let written: i64 = ends.values().sum();
    if i64::try_from(topics.messages) != Ok(written) {
        verdict.tell("broken", || format!("Kafka holds {} messages, {written} were written", topics.messages));
    }
    let missing = events.iter().filter(|event| !topics.first.contains_key(&event.lsn)).count();
    if missing > 0 || topics.events != events.len() as u64 {
        verdict.tell("broken", || format!("Kafka lacks {missing} of {} events of the load", events.len()));
    }
}

async fn laws(verdict: &mut Verdict, sink: &Client, ends: &Ends) -> Result<(), tokio_postgres::Error> {
    let query = "
        SELECT s.topic, p.partition, p.first_next, p.next,
          (SELECT sum(o.events)::bigint FROM afterimage.outcomes o
           WHERE (o.topic, o.partition, o.incarnation) = (s.topic, p.partition, p.incarnation)),
          c_delta + c_baseline + c_noop + c_noop_status + c_noop_system + c_duplicate + c_stale + c_tombstone + c_ignored
          + c_pending + c_dead + c_delete_unknown + c_forgotten + c_hole + c_gap
        FROM afterimage.position p JOIN afterimage.source s ON s.source_id = p.source_id";
    let mut found: HashMap<(String, i32), (i64, i64, i64, i64)> = HashMap::new();
    for row in sink.query(query, &[]).await? {
        let place: (String, i32) = (row.get(0), row.get(1));
        let name = format!("{place:?}");
        let outcomes: Option<i64> = row.get(4);
        if found.insert(place, (row.get(2), row.get(3), outcomes.unwrap_or(0), row.get(5))).is_some() {
            verdict.tell("broken", || format!("two positions of one partition: {name}"));
        }
    }
    for ((table, partition), end) in ends {
        let place = (topic(*table), *partition);
        match found.remove(&place) {
            Some((0, next, outcomes, counters)) if next == *end && outcomes == next && counters == next => {}
            other => verdict.tell("broken", || {
                format!("L1 of {place:?}: end {end}, but (first, next, outcomes, counters) = {other:?}")
            }),
        }
    }
    for (place, found) in found.into_iter().filter(|(_, found)| found.1 != 0) {
        verdict.tell("broken", || format!("a position of what nobody wrote: {place:?} {found:?}"));
    }
    let row = sink
        .query_one(
            "SELECT (SELECT count(*) FROM afterimage.delta) + (SELECT count(*) FROM afterimage.keyframe WHERE kf = 0),
               (SELECT sum(rows_written - rows_cancelled - rows_erased - rows_retired)::bigint FROM afterimage.position),
               (SELECT count(*) FROM shown),
               (SELECT count(*) FROM afterimage.late_events),
               (SELECT sum(c_stale)::bigint FROM afterimage.position)",
            &[],
        )
        .await?;
    let (rows, counted, changes): (i64, Option<i64>, i64) = (row.get(0), row.get(1), row.get(2));
    if (Some(rows), rows) != (counted, changes) {
        verdict.tell("broken", || format!("L2: {rows} rows, {counted:?} counted, {changes} shown"));
    }
    let (late, stale): (i64, Option<i64>) = (row.get(3), row.get(4));
    if Some(late) != stale {
        verdict.tell("broken", || format!("{late} late events are kept, {stale:?} are counted"));
    }
    for (law, query) in LAWS {
        for row in sink.query(&format!("SELECT to_jsonb(found)::text FROM ({query}) found"), &[]).await? {
            verdict.tell("broken", || format!("{law}: {}", row.get::<_, String>(0)));
        }
    }
    Ok(())
}

/// The history as the public view shows it, read once, and its fields one by one.
const SHOWN: &str = "
    DROP TABLE IF EXISTS pg_temp.shown, pg_temp.shown_field;
    CREATE TEMP TABLE shown AS
      SELECT object, sfid, seq, op, at, changes, topic, partition, \"offset\" FROM afterimage.changes;
    CREATE TEMP TABLE shown_field AS
      SELECT object, sfid, seq, f.key AS field, f.value -> 0 AS old, f.value -> 1 AS new
      FROM shown, jsonb_each(changes) f;
    CREATE INDEX ON shown_field (object, sfid, field, seq);
    ANALYZE shown; ANALYZE shown_field";

/// What no row may be found for.
const LAWS: &[(&str, &str)] = &[
    (
        "version numbers with holes",
        "SELECT object, sfid, count(*), min(seq), max(seq) FROM shown GROUP BY 1, 2
         HAVING count(*) <> max(seq) + 1 OR min(seq) <> 0 OR count(DISTINCT seq) <> count(*)",
    ),
    (
        "times that fall",
        "SELECT object, sfid, seq FROM (SELECT object, sfid, seq, at,
           lag(at) OVER (PARTITION BY object, sfid ORDER BY seq) AS before FROM shown) c WHERE at < before",
    ),
    (
        "an old value that is not the new one before",
        "SELECT object, sfid, seq, field FROM (SELECT object, sfid, seq, field, old,
           lag(new) OVER (PARTITION BY object, sfid, field ORDER BY seq) AS before FROM shown_field) c
         WHERE old IS DISTINCT FROM before AND NOT (old = 'null'::jsonb AND before IS NULL)",
    ),
    (
        "a version without a difference",
        "SELECT object, sfid, seq, field FROM shown_field WHERE old IS NOT DISTINCT FROM new
         UNION ALL SELECT object, sfid, seq, op FROM shown
           WHERE changes = '{}' AND op NOT IN ('delete', 'undelete')",
    ),
    (
        "one message, several versions",
        "SELECT topic, partition, \"offset\", array_agg(object || ' ' || sfid || ' ' || seq || ' ' || op)
         FROM shown GROUP BY 1, 2, 3
         HAVING count(*) > 1 AND array_agg(op ORDER BY seq) <> '{backfill,update}'",
    ),
    (
        "an image that is not the fold of its versions",
        "SELECT r.object, r.sfid, r.seq FROM afterimage.records r
         LEFT JOIN LATERAL (
           SELECT jsonb_strip_nulls(jsonb_object_agg(field, new)) AS image FROM (
             SELECT DISTINCT ON (field) field, new FROM shown_field f
             WHERE (f.object, f.sfid) = (r.object, r.sfid) ORDER BY field, seq DESC) l) f ON true
         WHERE jsonb_strip_nulls(r.image) IS DISTINCT FROM f.image",
    ),
    (
        "a delta without a chain, a chain without a record, a record without a home",
        "SELECT 'delta' AS what, d.rid, d.kf FROM afterimage.delta d
           WHERE NOT EXISTS (SELECT FROM afterimage.keyframe k WHERE (k.rid, k.kf) = (d.rid, d.kf))
         UNION ALL SELECT 'keyframe', k.rid, k.kf FROM afterimage.keyframe k
           WHERE NOT EXISTS (SELECT FROM afterimage.record r WHERE r.rid = k.rid)
         UNION ALL SELECT 'home', r.rid, r.home FROM afterimage.record r
           WHERE NOT EXISTS (SELECT FROM afterimage.position p WHERE p.position_id = r.home)",
    ),
    (
        "two records under one key",
        "SELECT object_id, row_key, count(*) FROM afterimage.record
         WHERE row_key IS NOT NULL GROUP BY 1, 2 HAVING count(*) > 1",
    ),
    ("a gap", "SELECT * FROM afterimage.gap"),
    ("a dead letter", "SELECT position_id, \"offset\", reason FROM afterimage.dead_letter"),
];

/// The source events that are kept aside and in no place of the history.
async fn late_events(
    verdict: &mut Verdict,
    sink: &Client,
    topics: &Topics,
) -> Result<HashSet<u64>, tokio_postgres::Error> {
    let query = "SELECT topic, partition, \"offset\", settled_at IS NOT NULL FROM afterimage.late_events";
    let mut late = HashSet::new();
    for row in sink.query(query, &[]).await? {
        let place = place(&row, 0);
        let settled: bool = row.get(3);
        verdict.late.0 += 1;
        verdict.late.1 += u64::from(!settled);
        match topics.lsn.get(&place) {
            None => verdict.tell("wrong", || format!("a late event where no event stands: {place:?}")),
            // Settled ones stand in their place, and so have to be in the history.
            Some(lsn) if !settled && !late.insert(*lsn) => {
                verdict.tell("doubled", || format!("one event is kept twice as late: {place:?}"));
            }
            Some(_) => {}
        }
    }
    Ok(late)
}

fn place(row: &Row, from: usize) -> Place {
    let name: String = row.get(from);
    let table = (0..TABLES.len()).find(|table| topic(*table) == name).unwrap_or(usize::MAX);
    (table, row.get(from + 1), row.get(from + 2))
}

async fn versions(sink: &Client) -> Result<Vec<Shown>, tokio_postgres::Error> {
    let query = "SELECT topic, partition, \"offset\", object, sfid, seq, op,
                   (extract(epoch FROM at) * 1000000)::bigint, changes FROM shown";
    let mut shown = Vec::new();
    for row in sink.query(query, &[]).await? {
        let (object, sfid): (String, String) = (row.get(3), row.get(4));
        let changes: Value = row.get(8);
        let op: String = row.get(6);
        shown.push(Shown {
            record: record(&object, &sfid),
            seq: row.get(5),
            // Which of both it is depends on when the field was first read, anywhere.
            op: if op == "backfill" { "update".into() } else { op },
            at: row.get(7),
            changes: changes.as_object().cloned().unwrap_or_default(),
            place: place(&row, 0),
        });
    }
    Ok(shown)
}

fn record(object: &str, sfid: &str) -> Record {
    let table = TABLES.iter().position(|table| *table == object).unwrap_or(usize::from(u8::MAX));
    let number = sfid.get(3..15).and_then(|digits| digits.parse().ok()).unwrap_or(0);
    (table as u8, number)
}

fn histories(
    verdict: &mut Verdict,
    wanted: &BTreeMap<Record, History>,
    shown: Vec<Shown>,
    topics: &Topics,
    late: &HashSet<Record>,
) {
    let mut found: HashMap<Record, Vec<Shown>> = HashMap::new();
    for version in shown {
        found.entry(version.record).or_default().push(version);
    }
    for (record, history) in wanted {
        let mut versions: HashMap<u64, Shown> = HashMap::new();
        let name = || {
            let sfid = sfid(usize::from(record.0), record.1);
            format!("{} {sfid}{}", TABLES[usize::from(record.0)], if late.contains(record) { " (late)" } else { "" })
        };
        for one in found.remove(record).unwrap_or_default() {
            let lsn = topics.lsn.get(&one.place).copied().unwrap_or(0);
            let (seq, place, op) = (one.seq, one.place, one.op.clone());
            if let Some(other) = versions.insert(lsn, one) {
                verdict.tell("doubled", || format!("{}: versions {} and {seq} of {place:?}", name(), other.seq));
            } else if topics.first.get(&lsn) != Some(&place) {
                verdict.tell("wrong", || format!("{}: version {seq}, {op}, says {place:?}", name()));
            }
        }
        for (seq, version) in history.versions.iter().enumerate() {
            let Some(one) = versions.remove(&version.lsn) else {
                verdict.tell("lost", || {
                    let place = topics.first.get(&version.lsn);
                    format!("{}: version {seq}, {} of {place:?}: {:?}", name(), version.op, version.changes)
                });
                continue;
            };
            let as_found = (one.seq as usize, one.op.as_str(), one.at, &one.changes);
            let as_wanted = (seq, version.op, version.at, &version.changes);
            if as_found != as_wanted {
                verdict.tell("wrong", || {
                    format!("{} at {:?}: found {as_found:?}, wanted {as_wanted:?}", name(), one.place)
                });
            }
        }
        for one in versions.into_values() {
            verdict.tell("doubled", || {
                format!("{}: version {}, {} of {:?}: {:?}", name(), one.seq, one.op, one.place, one.changes)
            });
        }
    }
    for (record, versions) in found {
        verdict.tell("doubled", || format!("{record:?}: {} versions of what nobody named", versions.len()));
    }
}

/// The last image of each record is the source's: as the load's book has it, and as Kafka has it.
async fn images(
    verdict: &mut Verdict,
    sink: &Client,
    topics: &Topics,
    whole: &BTreeMap<Record, History>,
) -> Result<(), tokio_postgres::Error> {
    let query = "SELECT object, sfid, status, image FROM afterimage.records";
    let mut found: HashMap<Record, Last> = HashMap::new();
    for row in sink.query(query, &[]).await? {
        let (object, sfid, status): (String, String, String) = (row.get(0), row.get(1), row.get(2));
        let image: Option<Value> = row.get(3);
        let mut image = image.as_ref().and_then(Value::as_object).cloned().unwrap_or_default();
        // A field that was emptied may stand in it or not.
        image.retain(|_, value| !value.is_null());
        found.insert(record(&object, &sfid), Last { live: status == "live", image });
    }
    for ((table, sfid), in_kafka) in &topics.last {
        let of = record(TABLES[*table], sfid);
        let name = || format!("{} {sfid}", TABLES[*table]);
        let book = whole.get(&of).map(|history| Last { live: history.live, image: history.image() });
        if book.as_ref() != Some(in_kafka) {
            verdict.tell("broken", || format!("{}: the load's book has {book:?}, Kafka {in_kafka:?}", name()));
        }
        match found.remove(&of) {
            Some(last) if last == *in_kafka => {}
            last => verdict.tell("wrong", || format!("last image of {}: {last:?}, wanted {in_kafka:?}", name())),
        }
    }
    for (record, last) in found {
        verdict.tell("wrong", || format!("a record that nobody named: {record:?} {last:?}"));
    }
    Ok(())
}
