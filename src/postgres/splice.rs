//! Late events into their place: one transaction by the homes of their records, which advances nothing (protocol D20).
//!
//! The homes' position rows are locked first, as in every commit that touches records: whoever wants to take one of these
//! records over waits, and then finds another head, floor or invalidation number than it has read. `advance` at the end
//! raises unless the positions are still ours.

use std::collections::{BTreeMap, BTreeSet};

use tokio_postgres::types::Type;
use tokio_postgres::{Client, Transaction};

use super::commit::{CommitError, Committed, Held, Invalidated, advance, history, invalidate, lock};
use super::registry::ensure_months;
use super::settle;
use super::wire::Moment;
use crate::core::batch::{Advance, HistoryRow, KeptRow, SealedBatch};
use crate::core::event::{Micros, Op};
use crate::core::judge::ObjectFacts;
use crate::core::judge::splice::{Kept, KeptEvent, Splice, StoredVersion, splice};
use crate::core::position::{Counter, PositionId};
use crate::core::record::{CHAIN, Floor, Record};
use crate::core::unshown::Unshown;

/// Records of one transaction: the positions are locked meanwhile.
const MOST_RECORDS: i64 = 200;

/// What became of it.
#[derive(Debug, Default)]
pub struct Placed {
    /// As after a commit: what is known now, and what caches must forget.
    pub committed: Committed,
    /// Late events that history has a version of now.
    pub versions: u64,
    /// Late events that change nothing in their place.
    pub noops: u64,
    /// Late events that cannot be placed, and why the first of them can't.
    pub kept: u64,
    /// Why.
    pub reason: Option<String>,
    /// There is more to do.
    pub more: bool,
}

/// Whether the position `h` of the source row `s` has no worker: it is that of an earlier life of a topic, or of a retry of
/// dead letters. Whoever comes first looks after its records.
const ORPHANS: &str = "(NOT h.live OR s.kind = 'retry')";

/// Partitions that are homes of records with late events still to be placed, or may look after such records, since their
/// homes have no worker: source row and partition.
///
/// # Errors
/// When the query fails.
pub async fn waiting(client: &Client) -> Result<Vec<(i16, i32)>, tokio_postgres::Error> {
    let rows = client
        .query_typed(
            &format!(
                "SELECT DISTINCT p.source_id, p.partition FROM ( \
                   SELECT DISTINCT r.object_id, r.home FROM afterimage.late_event l \
                   JOIN afterimage.record r ON r.rid = l.rid WHERE l.settled_at IS NULL) w \
                 JOIN afterimage.position h ON h.position_id = w.home JOIN afterimage.source s ON s.source_id = h.source_id \
                 JOIN afterimage.source o ON o.object_id = w.object_id AND o.kind = 'kafka' \
                 JOIN afterimage.position p ON p.source_id = o.source_id AND p.live AND (p.position_id = w.home OR {ORPHANS})"
            ),
            &[],
        )
        .await?;
    rows.iter().map(|row| Ok((row.try_get(0)?, row.try_get(1)?))).collect()
}

/// Drops anchors that nothing can be late for any more: every partition of their topic has passed their source time, or
/// has committed nothing for a day. Returns how many; at most `most` at a time.
///
/// # Errors
/// When the statement fails.
pub async fn drop_anchors(client: &mut Client, most: i64) -> Result<u64, tokio_postgres::Error> {
    let transaction = client.transaction().await?;
    transaction.batch_execute("SET LOCAL statement_timeout = '5s'").await?;
    let gone = transaction
        .execute_typed(
            "WITH reached AS ( \
               SELECT p.source_id, min(CASE \
                   WHEN coalesce(p.committed_at, (SELECT min(c.at) FROM afterimage.claim c WHERE c.position_id = p.position_id)) \
                     < now() - interval '1 day' THEN 'infinity' \
                   ELSE coalesce(p.source_at, '-infinity') END) AS at \
               FROM afterimage.position p WHERE p.live GROUP BY p.source_id) \
             DELETE FROM afterimage.anchor WHERE (position_id, \"offset\", rid) IN ( \
               SELECT a.position_id, a.\"offset\", a.rid FROM afterimage.anchor a \
               JOIN afterimage.position p ON p.position_id = a.position_id \
               LEFT JOIN reached ON reached.source_id = p.source_id \
               WHERE a.recorded_at < now() - interval '10 minutes' AND a.at < coalesce(reached.at, 'infinity') \
                 AND NOT EXISTS (SELECT FROM afterimage.late_event l WHERE l.rid = a.rid AND l.settled_at IS NULL) \
               LIMIT $1)",
            &[(&most, Type::INT8)],
        )
        .await?;
    transaction.commit().await?;
    Ok(gone)
}

/// A row of the registry, and what was found of its record.
struct Found {
    record: Record,
    home: PositionId,
    sfid: Box<str>,
    versions: Vec<StoredVersion>,
    events: Vec<KeptEvent>,
}

/// Places late events of records whose home is one of `held`, all of which belong to one topic. At most so many records
/// at a time as one commit should touch; `Ok(None)` if there is nothing to place.
///
/// # Errors
/// As of a commit. [`CommitError::Unknown`] leaves the outcome open: claim again.
pub async fn place(
    client: &mut Client,
    object: &ObjectFacts,
    held: &BTreeMap<PositionId, Held>,
    now: Micros,
) -> Result<Option<Placed>, CommitError> {
    let homes: Vec<PositionId> = held.keys().copied().collect();
    let Some(adopter) = homes.first() else { return Ok(None) };
    let rows = client
        .query_typed(
            &format!(
                "SELECT DISTINCT r.rid, r.home FROM afterimage.late_event l JOIN afterimage.record r ON r.rid = l.rid \
                 JOIN afterimage.position h ON h.position_id = r.home JOIN afterimage.source s ON s.source_id = h.source_id \
                 WHERE l.settled_at IS NULL AND r.object_id = $3 AND (r.home = ANY($1) OR {ORPHANS}) \
                 ORDER BY r.rid LIMIT $2"
            ),
            &[(&homes, Type::INT4_ARRAY), (&(MOST_RECORDS + 1), Type::INT8), (&object.object_id, Type::INT2)],
        )
        .await?;
    if rows.is_empty() {
        return Ok(None);
    }
    let more = rows.len() as i64 > MOST_RECORDS;
    let mut rids: Vec<i32> = Vec::with_capacity(rows.len());
    let (mut positions, mut orphans) = (BTreeSet::new(), BTreeMap::new());
    for row in rows.iter().take(MOST_RECORDS as usize) {
        let (rid, home): (i32, PositionId) = (row.try_get(0)?, row.try_get(1)?);
        rids.push(rid);
        if held.contains_key(&home) {
            positions.insert(home);
        } else {
            positions.insert(*adopter);
            orphans.insert(rid, home);
        }
    }
    let months: Vec<Moment> = client
        .query_typed(
            "SELECT min(k.at) FROM ( \
               SELECT l.at FROM afterimage.late_event l WHERE l.rid = ANY($1) \
               UNION ALL SELECT a.at FROM afterimage.anchor a WHERE a.rid = ANY($1)) k \
             WHERE k.at IS NOT NULL GROUP BY date_trunc('month', k.at AT TIME ZONE 'UTC')",
            &[(&rids, Type::INT4_ARRAY)],
        )
        .await?
        .iter()
        .map(|row| row.try_get(0))
        .collect::<Result<_, _>>()?;
    ensure_months(client, &months.iter().map(|at| at.0).collect::<Vec<_>>()).await?;

    failpoint!("splice.found", CommitError::made());
    let transaction = client.transaction().await?;
    transaction
        .batch_execute(
            "SET LOCAL statement_timeout = '30s'; SET LOCAL lock_timeout = '5s'; \
             SET LOCAL idle_in_transaction_session_timeout = '10s'; SET LOCAL synchronous_commit = on",
        )
        .await?;
    let mut steps = SealedBatch {
        object_id: object.object_id,
        advances: positions
            .iter()
            .filter_map(|position| held.get(position).map(|held| Advance::standing(*position, held.epoch, held.next)))
            .collect(),
        ..SealedBatch::default()
    };
    let mut placed = Placed { more, ..Placed::default() };
    let donors: Vec<PositionId> = orphans.values().copied().collect();
    let mut expected = lock(&transaction, &[&steps], &donors, held, &mut placed.committed).await?;
    failpoint!("splice.locked", CommitError::made());
    adopt(&transaction, object.object_id, &orphans, *adopter, &mut expected).await?;
    failpoint!("splice.adopted", CommitError::made());
    let found = read(&transaction, &rids, &homes).await?;
    let mut void: Vec<(PositionId, i32, Box<str>)> = Vec::new();
    for (rid, one) in found {
        match splice(object, &one.sfid, &one.record, &one.versions, &one.events, now) {
            Ok(splice) => {
                let home = one.home;
                if splice.from.is_some() || splice.floor != one.record.floor {
                    void.push((home, rid, one.sfid));
                }
                if let Some(step) = steps.advances.iter_mut().find(|step| step.position_id == home) {
                    step.counters.add(Counter::RowsWritten, splice.written());
                    step.counters.add(Counter::RowsCancelled, splice.removed);
                }
                write(&transaction, object.object_id, rid, &splice).await?;
                failpoint!("splice.written", CommitError::made());
                for (.., version) in &splice.placed {
                    *if *version { &mut placed.versions } else { &mut placed.noops } += 1;
                }
            }
            Err(error) => {
                let events = one.events.iter().filter(|event| event.kept == Kept::Late);
                let left: Vec<_> = events.map(|event| (event.row.position_id, event.row.offset, "kept")).collect();
                placed.kept += left.len() as u64;
                placed.reason.get_or_insert_with(|| error.to_string());
                outcomes(&transaction, rid, &left).await?;
            }
        }
    }
    let object_id = object.object_id;
    let rewritten = void.iter().map(|(home, rid, identity)| (*home, *rid, &**identity));
    invalidate(&transaction, object_id, "s", rewritten, &mut expected).await?;
    failpoint!("splice.invalidated", CommitError::made());
    advance(&transaction, &[&steps], held, &expected).await?;
    failpoint!("splice.advanced", CommitError::made());
    transaction.commit().await?;
    failpoint!("splice.committed", CommitError::Unknown(tokio_postgres::Error::__private_api_timeout()));
    let gone = void.into_iter().map(|(position_id, _, identity)| Invalidated { position_id, object_id, identity });
    placed.committed.invalidated.extend(gone);
    placed.committed.inval_seq.extend(expected.into_iter().filter(|(position, _)| held.contains_key(position)));
    Ok(Some(placed))
}

/// Takes records over from these homes, which have no worker, unless somebody else has done so.
async fn adopt(
    transaction: &Transaction<'_>,
    object_id: i16,
    orphans: &BTreeMap<i32, PositionId>,
    adopter: PositionId,
    expected: &mut BTreeMap<PositionId, i64>,
) -> Result<(), CommitError> {
    if orphans.is_empty() {
        return Ok(());
    }
    let (rids, homes): (Vec<i32>, Vec<i32>) = orphans.iter().unzip();
    let rows = transaction
        .query_typed(
            "WITH found AS ( \
               SELECT r.rid, o.home FROM afterimage.record r \
               JOIN unnest($1::int[], $2::int[]) AS o(rid, home) ON o.rid = r.rid AND o.home = r.home \
               ORDER BY r.rid FOR NO KEY UPDATE OF r) \
             UPDATE afterimage.record r SET home = $3 FROM found WHERE r.rid = found.rid \
             RETURNING found.home, r.rid, r.sfid",
            &[(&rids, Type::INT4_ARRAY), (&homes, Type::INT4_ARRAY), (&adopter, Type::INT4)],
        )
        .await?;
    let mut void: Vec<(PositionId, i32, &str)> = Vec::with_capacity(rows.len());
    for row in &rows {
        void.push((row.try_get(0)?, row.try_get(1)?, row.try_get(2)?));
    }
    invalidate(transaction, object_id, "m", void.into_iter(), expected).await
}

async fn read(
    transaction: &Transaction<'_>,
    rids: &[i32],
    homes: &[PositionId],
) -> Result<BTreeMap<i32, Found>, CommitError> {
    let mut found: BTreeMap<i32, Found> = BTreeMap::new();
    let records = transaction
        .query_typed(
            "SELECT rid, home, sfid, floor_lsn, floor_ts, unshown FROM afterimage.record \
             WHERE rid = ANY($1) AND home = ANY($2) ORDER BY rid FOR NO KEY UPDATE",
            &[(&rids, Type::INT4_ARRAY), (&homes, Type::INT4_ARRAY)],
        )
        .await?;
    for row in &records {
        let (rid, home): (i32, PositionId) = (row.try_get(0)?, row.try_get(1)?);
        let sfid: &str = row.try_get(2)?;
        let ts: Option<Moment> = row.try_get(4)?;
        let mut record = Record::registered(rid, Some(home), None);
        record.floor = Floor { lsn: row.try_get::<_, i64>(3)? as u64, ts: ts.map(|at| at.0) };
        record.unshown = Unshown::from_bytes(row.try_get(5)?);
        found.insert(rid, Found { record, home, sfid: sfid.into(), versions: Vec::new(), events: Vec::new() });
    }
    let rids: Vec<i32> = found.keys().copied().collect();
    let versions = transaction
        .query_typed(
            "SELECT k.rid, k.kf, k.at, k.d, 0 AS n FROM afterimage.keyframe k WHERE k.rid = ANY($1) AND k.kf = 0 \
             UNION ALL \
             SELECT x.rid, x.kf, x.at, x.d, get_byte(x.d, 1) & 63 FROM afterimage.delta x WHERE x.rid = ANY($1) \
             ORDER BY 1, 2, 5",
            &[(&rids, Type::INT4_ARRAY)],
        )
        .await?;
    for row in &versions {
        let (rid, kf, n): (i32, i32, i32) = (row.try_get(0)?, row.try_get(1)?, row.try_get(4)?);
        let at: Moment = row.try_get(2)?;
        if let Some(one) = found.get_mut(&rid) {
            let row = HistoryRow { rid, kf, at: at.0, d: row.try_get(3)? };
            one.versions.push(StoredVersion { seq: kf as u32 * CHAIN + n as u32, row });
        }
    }
    let events = transaction
        .query_typed(
            "SELECT l.rid, l.op, l.position_id, l.\"offset\", l.lsn, l.at, l.recorded_at, l.d, \
               CASE WHEN l.settled_at IS NULL THEN 'l' ELSE 'p' END, coalesce(l.outcome, ''), false \
             FROM afterimage.late_event l WHERE l.rid = ANY($1) \
             UNION ALL \
             SELECT a.rid, a.op, a.position_id, a.\"offset\", a.lsn, a.at, a.recorded_at, a.d, 'a', '', a.moved \
             FROM afterimage.anchor a WHERE a.rid = ANY($1)",
            &[(&rids, Type::INT4_ARRAY)],
        )
        .await?;
    for row in &events {
        let outcome: &str = row.try_get(9)?;
        let (letter, at): (i8, Option<Moment>) = (row.try_get(1)?, row.try_get(5)?);
        let recorded: Moment = row.try_get(6)?;
        let Some(op) = Op::from_letter(letter as u8 as char).filter(|_| outcome != "kept") else { continue };
        let kept = match row.try_get(8)? {
            "l" => Kept::Late,
            "p" => Kept::Placed,
            _ => Kept::Anchor,
        };
        let rid: i32 = row.try_get(0)?;
        if let Some(one) = found.get_mut(&rid) {
            let row = KeptRow {
                position_id: row.try_get(2)?,
                offset: row.try_get(3)?,
                rid,
                op,
                row_key: "".into(),
                lsn: row.try_get::<_, Option<i64>>(4)?.unwrap_or(0) as u64,
                at: at.map_or(recorded.0, |at| at.0),
                d: row.try_get(7)?,
                recorded: recorded.0,
                moved: row.try_get(10)?,
            };
            one.events.push(KeptEvent { row, kept });
        }
    }
    Ok(found)
}

async fn write(transaction: &Transaction<'_>, object_id: i16, rid: i32, splice: &Splice) -> Result<(), CommitError> {
    if let (Some(from), Some(keyframe)) = (splice.from, splice.from_keyframe()) {
        let (kf, n) = ((from / CHAIN) as i32, (from % CHAIN) as i32);
        let gone = transaction
            .execute_typed(
                "DELETE FROM afterimage.delta \
                 WHERE rid = $1 AND kf >= $2 AND (kf > $2 OR get_byte(d, 1) & 63 >= $3)",
                &[(&rid, Type::INT4), (&kf, Type::INT4), (&n, Type::INT4)],
            )
            .await?;
        transaction
            .execute_typed(
                "DELETE FROM afterimage.keyframe WHERE rid = $1 AND kf >= $2",
                &[(&rid, Type::INT4), (&keyframe, Type::INT4)],
            )
            .await?;
        let first = i64::from(from == 0 && splice.removed > 0);
        if gone as i64 + first != splice.removed {
            let reason = format!("{gone} versions were to be replaced, not {}", splice.removed - first);
            return Err(CommitError::Rewind { reason, known: Committed::default() });
        }
        history(transaction, "delta", splice.deltas.iter()).await?;
        history(transaction, "keyframe", splice.keyframes.iter()).await?;
        let lookups = splice.lookups.clone();
        settle::lookups(transaction, &SealedBatch { object_id, lookups, ..SealedBatch::default() }).await?;
    }
    if let Some(anchor) = &splice.anchor {
        let op = anchor.op.letter() as u8 as i8;
        transaction
            .execute_typed(
                "INSERT INTO afterimage.anchor (position_id, \"offset\", rid, op, lsn, at, d, recorded_at) \
                 VALUES ($1, $2, $3, $4, $5, $6, $7, $8) ON CONFLICT DO NOTHING",
                &[
                    (&anchor.position_id, Type::INT4),
                    (&anchor.offset, Type::INT8),
                    (&rid, Type::INT4),
                    (&op, Type::CHAR),
                    (&(anchor.lsn as i64), Type::INT8),
                    (&Moment(anchor.at), Type::TIMESTAMPTZ),
                    (&anchor.d, Type::BYTEA),
                    (&Moment(anchor.recorded), Type::TIMESTAMPTZ),
                ],
            )
            .await?;
    }
    let (lsn, ts) = (splice.floor.lsn as i64, splice.floor.ts.map(Moment));
    transaction
        .execute_typed(
            "UPDATE afterimage.record SET floor_lsn = $2, floor_ts = $3, unshown = $4 \
             WHERE rid = $1 AND (floor_lsn, floor_ts, unshown) IS DISTINCT FROM ($2, $3, $4)",
            &[
                (&rid, Type::INT4),
                (&lsn, Type::INT8),
                (&ts, Type::TIMESTAMPTZ),
                (&splice.unshown.to_bytes(), Type::BYTEA),
            ],
        )
        .await?;
    let placed: Vec<_> = splice
        .placed
        .iter()
        .map(|(position, offset, version)| (*position, *offset, if *version { "version" } else { "no-op" }))
        .collect();
    outcomes(transaction, rid, &placed).await
}

/// What became of late events: also of one placed before, which another late one may have changed.
async fn outcomes(
    transaction: &Transaction<'_>,
    rid: i32,
    placed: &[(PositionId, i64, &'static str)],
) -> Result<(), CommitError> {
    let positions: Vec<i32> = placed.iter().map(|(position, ..)| *position).collect();
    let offsets: Vec<i64> = placed.iter().map(|(_, offset, _)| *offset).collect();
    let words: Vec<&str> = placed.iter().map(|(.., word)| *word).collect();
    transaction
        .execute_typed(
            "UPDATE afterimage.late_event l SET settled_at = coalesce(l.settled_at, clock_timestamp()), outcome = p.outcome \
             FROM unnest($2::int[], $3::bigint[], $4::text[]) AS p(position_id, \"offset\", outcome) \
             WHERE l.rid = $1 AND l.position_id = p.position_id AND l.\"offset\" = p.\"offset\" \
               AND (l.settled_at IS NULL OR l.outcome IS DISTINCT FROM p.outcome)",
            &[
                (&rid, Type::INT4),
                (&positions, Type::INT4_ARRAY),
                (&offsets, Type::INT8_ARRAY),
                (&words, Type::TEXT_ARRAY),
            ],
        )
        .await?;
    Ok(())
}
