//! The commit: rows, locks, registry, `advance`, COMMIT. One page of code for one page of protocol (D1, D9).
//!
//! ```text
//! BEGIN, limits                      nothing outlives the transaction (D6)
//! COPY delta, keyframe, late, dead   appends: no lock is held yet (after the take-overs, if there are any)
//! SELECT … FOR NO KEY UPDATE         own positions and donors, sorted
//!   inval_seq moved?                 someone took records of ours: forget them; if this batch judged one, undo
//!   records taken over?              home, floor and newest version must still be as seen, and nothing spliced since;
//!                                    tell the donor
//! UPDATE, DELETE, upserts            sorted
//! SELECT advance(…)                  raises AI001 unless every position, epoch and range matches
//! COMMIT                             sent only after `advance` answered
//! ```

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::pin::pin;
use std::time::Duration;

use bytes::Bytes;
use futures::SinkExt;
use tokio_postgres::binary_copy::BinaryCopyInWriter;
use tokio_postgres::error::SqlState;
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{Client, Transaction};

use super::kept;
use super::settle::settle;
use super::wire::{Moment, passed_out};
use crate::core::batch::{HistoryRow, RegistryChange, SealedBatch};
use crate::core::position::{COUNTERS, PositionId};
use crate::core::record::key_hash;

/// A position as this worker holds it: checked by `advance` for every position that a commit touches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Held {
    /// Claim.
    pub epoch: i64,
    /// Next offset in Postgres.
    pub next: i64,
    /// Invalidations known.
    pub inval_seq: i64,
}

/// A record that another worker, or an operator, changed under its home: whatever a cache holds of it is void.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Invalidated {
    /// The home that must forget it.
    pub position_id: PositionId,
    /// Its object.
    pub object_id: i16,
    /// Its identity.
    pub identity: Box<str>,
}

/// What a commit tells besides "done".
#[derive(Debug, Default)]
pub struct Committed {
    /// The invalidation number now known, by position.
    pub inval_seq: HashMap<PositionId, i64>,
    /// Records to drop from the image store.
    pub invalidated: Vec<Invalidated>,
}

/// Nothing was written, or it is not known whether it was.
#[derive(Debug, thiserror::Error)]
pub enum CommitError {
    /// A newer claim holds these positions, or they moved on: the tasks close. Nothing was written.
    #[error("fenced: {detail}")]
    Fenced {
        /// The positions that did not match.
        positions: Vec<PositionId>,
        /// `advance`'s words: position, reason, what it found.
        detail: String,
    },
    /// Something the batch was judged against has changed: rewind and judge again. Nothing was written.
    #[error("{reason}")]
    Rewind {
        /// Why.
        reason: String,
        /// What is known now.
        known: Committed,
    },
    /// Deadlock, serialization failure, lock time-out: send the same batch again. Nothing was written.
    #[error("{}", super::client::describe(.0))]
    Again(tokio_postgres::Error),
    /// The connection broke: claim again to learn what happened (D4).
    #[error("outcome unknown: {}", super::client::describe(.0))]
    Unknown(tokio_postgres::Error),
    /// The server says nothing: likewise.
    #[error("outcome unknown: no answer within {} s", .0.as_secs())]
    Silent(Duration),
    /// Anything else. Nothing was written.
    #[error("{}", super::client::describe(.0))]
    Refused(tokio_postgres::Error),
}

#[cfg(feature = "failpoints")]
impl CommitError {
    /// A step that a test made fail.
    pub(super) fn made() -> Self {
        CommitError::Rewind { reason: "a failpoint".into(), known: Committed::default() }
    }
}

impl CommitError {
    /// Whether it is not known if the batch was written: only a claim can tell.
    pub fn leaves_open(&self) -> bool {
        matches!(self, CommitError::Unknown(_) | CommitError::Silent(_))
    }
}

impl From<tokio_postgres::Error> for CommitError {
    fn from(error: tokio_postgres::Error) -> Self {
        let Some(db) = error.as_db_error() else { return CommitError::Unknown(error) };
        let code = db.code().code();
        if code == "AI001" {
            let detail = db.detail().unwrap_or_default().to_string();
            let positions = detail.split(',').filter_map(|part| part.trim().split(':').next()?.parse().ok()).collect();
            return CommitError::Fenced { positions, detail };
        }
        let again =
            [SqlState::T_R_DEADLOCK_DETECTED, SqlState::T_R_SERIALIZATION_FAILURE, SqlState::LOCK_NOT_AVAILABLE];
        if again.contains(db.code()) {
            CommitError::Again(error)
        } else if code.starts_with("08") || code.starts_with("57P0") || error.is_closed() {
            CommitError::Unknown(error)
        } else {
            CommitError::Refused(error)
        }
    }
}

/// Writes sealed batches and moves their positions, all or nothing.
///
/// `held` is every position of this worker that the batches advance or take records from.
/// Batches that take records over must come alone.
///
/// # Errors
/// See [`CommitError`]; [`CommitError::leaves_open`] says which of them leave the outcome open.
pub async fn commit(
    client: &mut Client,
    batches: &[&SealedBatch],
    held: &BTreeMap<PositionId, Held>,
) -> Result<Committed, CommitError> {
    match write(client, batches, held).await {
        Err(CommitError::Refused(error)) if error.code() == Some(&SqlState::UNIQUE_VIOLATION) => {
            exists(client, batches, held, &error).await
        }
        result => result,
    }
}

/// An append that is there already: another position was the first to see a record, and what was judged without
/// knowing that is void; or these positions are not where this worker believes them to be. The transaction is undone.
async fn exists(
    client: &Client,
    batches: &[&SealedBatch],
    held: &BTreeMap<PositionId, Held>,
    error: &tokio_postgres::Error,
) -> Result<Committed, CommitError> {
    let advances = || batches.iter().flat_map(|batch| &batch.advances);
    let ids: Vec<i32> = advances().map(|advance| advance.position_id).collect();
    let epochs: Vec<i64> = advances().map(|advance| advance.epoch).collect();
    let froms: Vec<i64> = advances().map(|advance| advance.from).collect();
    let rows = client
        .query_typed(
            "SELECT w.position_id, p.inval_seq, p.epoch = w.epoch AND p.next = w.next \
             FROM unnest($1::int[], $2::bigint[], $3::bigint[]) AS w(position_id, epoch, next) \
             JOIN afterimage.position p ON p.position_id = w.position_id",
            &[(&ids, Type::INT4_ARRAY), (&epochs, Type::INT8_ARRAY), (&froms, Type::INT8_ARRAY)],
        )
        .await?;
    let (mut elsewhere, mut behind, mut known) = (Vec::new(), Vec::new(), Committed::default());
    for row in &rows {
        let (position_id, seq, as_held): (PositionId, i64, bool) = (row.try_get(0)?, row.try_get(1)?, row.try_get(2)?);
        if !as_held {
            elsewhere.push(position_id);
        } else if let Some(held) = held.get(&position_id) {
            behind.push((position_id, held.inval_seq));
            known.inval_seq.insert(position_id, seq);
        }
    }
    let reason = super::client::describe(error);
    if !elsewhere.is_empty() {
        return Err(CommitError::Fenced { positions: elsewhere, detail: format!("moved on: {reason}") });
    }
    // Most likely what was taken from these positions; to be judged again with that known.
    known.invalidated = invalidated_since(client, &behind).await?;
    Err(CommitError::Rewind { reason, known })
}

async fn write(
    client: &mut Client,
    batches: &[&SealedBatch],
    held: &BTreeMap<PositionId, Held>,
) -> Result<Committed, CommitError> {
    let transaction = client.transaction().await?;
    transaction
        .batch_execute(
            "SET LOCAL statement_timeout = '30s'; SET LOCAL lock_timeout = '10s'; \
             SET LOCAL idle_in_transaction_session_timeout = '10s'; SET LOCAL synchronous_commit = on",
        )
        .await?;
    failpoint!("commit.begun", CommitError::made());
    let takes_over = batches.iter().any(|batch| batch.takes_over());
    let mut known = Committed::default();
    if !takes_over {
        append(&transaction, batches).await?;
        failpoint!("commit.appended", CommitError::made());
    }
    let mut expected = lock(&transaction, batches, &donors(batches), held, &mut known).await?;
    failpoint!("commit.locked", CommitError::made());
    if takes_over {
        // The newest versions must be those that were read: compared before this batch adds its own.
        for batch in batches {
            take_over(&transaction, batch, &mut expected).await?;
        }
        failpoint!("commit.taken", CommitError::made());
        append(&transaction, batches).await?;
    }
    for batch in batches {
        settle(&transaction, batch).await?;
    }
    failpoint!("commit.settled", CommitError::made());
    advance(&transaction, batches, held, &expected).await?;
    failpoint!("commit.advanced", CommitError::made());
    transaction.commit().await?;
    // Here a failure is one of the answer: it is not known what became of the commit.
    failpoint!("commit.committed", CommitError::Unknown(tokio_postgres::Error::__private_api_timeout()));
    known.inval_seq.extend(expected.iter().filter(|(id, _)| held.contains_key(id)).map(|(id, seq)| (*id, *seq)));
    Ok(known)
}

async fn append(transaction: &Transaction<'_>, batches: &[&SealedBatch]) -> Result<(), CommitError> {
    history(transaction, "delta", batches.iter().flat_map(|batch| &batch.deltas)).await?;
    history(transaction, "keyframe", batches.iter().flat_map(|batch| &batch.keyframes)).await?;
    kept::append(transaction, batches).await?;
    if batches.iter().any(|batch| !batch.dead.is_empty()) {
        let sink = transaction
            .copy_in::<_, Bytes>(
                "COPY afterimage.dead_letter (position_id, \"offset\", reason, detail, object_id, sfid, key, value, sha256) \
                 FROM STDIN (FORMAT binary)",
            )
            .await?;
        let types = [
            Type::INT4,
            Type::INT8,
            Type::TEXT,
            Type::TEXT,
            Type::INT2,
            Type::TEXT,
            Type::BYTEA,
            Type::BYTEA,
            Type::BYTEA,
        ];
        let mut writer = pin!(BinaryCopyInWriter::new(sink, &types));
        for batch in batches {
            for dead in &batch.dead {
                let sha256 = dead.sha256.as_ref().map(|hash| hash.as_slice());
                let row: [&(dyn ToSql + Sync); 9] = [
                    &dead.position_id,
                    &dead.offset,
                    &dead.reason,
                    &dead.detail,
                    &batch.object_id,
                    &dead.sfid,
                    &dead.key,
                    &dead.value,
                    &sha256,
                ];
                writer.as_mut().write(&row).await?;
            }
        }
        writer.finish().await?;
    }
    Ok(())
}

pub(super) async fn history<'r>(
    transaction: &Transaction<'_>,
    table: &'static str,
    rows: impl Iterator<Item = &'r HistoryRow>,
) -> Result<(), CommitError> {
    let mut rows = rows.peekable();
    if rows.peek().is_none() {
        return Ok(());
    }
    // Encoded by hand: the rows are many and their four columns never change.
    let copy = format!("COPY afterimage.{table} (rid, kf, at, d) FROM STDIN (FORMAT binary)");
    let mut sink = pin!(transaction.copy_in::<_, Bytes>(copy.as_str()).await?);
    let mut buffer = Vec::with_capacity(1 << 16);
    buffer.extend_from_slice(b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0");
    for row in rows {
        buffer.extend_from_slice(&4i16.to_be_bytes());
        buffer.extend_from_slice(&4i32.to_be_bytes());
        buffer.extend_from_slice(&row.rid.to_be_bytes());
        buffer.extend_from_slice(&4i32.to_be_bytes());
        buffer.extend_from_slice(&row.kf.to_be_bytes());
        buffer.extend_from_slice(&8i32.to_be_bytes());
        buffer.extend_from_slice(&Moment(row.at).wire().to_be_bytes());
        buffer.extend_from_slice(&(row.d.len() as i32).to_be_bytes());
        buffer.extend_from_slice(&row.d);
        if buffer.len() >= 1 << 16 {
            sink.send(Bytes::from(std::mem::take(&mut buffer))).await?;
        }
    }
    buffer.extend_from_slice(&(-1i16).to_be_bytes());
    sink.send(Bytes::from(buffer)).await?;
    sink.finish().await?;
    Ok(())
}

/// Positions that these batches take records from.
fn donors(batches: &[&SealedBatch]) -> Vec<PositionId> {
    let changes = batches.iter().flat_map(|batch| &batch.registry);
    changes.filter_map(|change| change.taken_from.as_ref()?.home).collect()
}

/// Locks the batches' positions and their donors, and returns the invalidation number that `advance` has to find, by
/// position.
pub(super) async fn lock(
    transaction: &Transaction<'_>,
    batches: &[&SealedBatch],
    donors: &[PositionId],
    held: &BTreeMap<PositionId, Held>,
    known: &mut Committed,
) -> Result<BTreeMap<PositionId, i64>, CommitError> {
    let own = batches.iter().flat_map(|batch| &batch.advances).map(|advance| advance.position_id);
    let ids: Vec<PositionId> = own.chain(donors.iter().copied()).collect::<BTreeSet<_>>().into_iter().collect();
    let rows = transaction
        .query_typed(
            "SELECT position_id, inval_seq FROM afterimage.position WHERE position_id = ANY($1) \
             ORDER BY position_id FOR NO KEY UPDATE",
            &[(&ids, Type::INT4_ARRAY)],
        )
        .await?;
    let mut expected = BTreeMap::new();
    let mut behind = Vec::new();
    for row in &rows {
        let (position_id, seq): (PositionId, i64) = (row.try_get(0)?, row.try_get(1)?);
        expected.insert(position_id, seq);
        if let Some(held) = held.get(&position_id)
            && held.inval_seq != seq
        {
            behind.push((position_id, held.inval_seq));
        }
    }
    if !behind.is_empty() {
        known.invalidated = invalidated_since(transaction, &behind).await?;
        let gone = || known.invalidated.iter().map(|gone| key_hash(gone.object_id, &gone.identity));
        if batches.iter().any(|batch| batch.touched.any_of(gone())) {
            known
                .inval_seq
                .extend(expected.iter().filter(|(id, _)| held.contains_key(id)).map(|(id, seq)| (*id, *seq)));
            let reason = "a record of this batch was taken over by another position".to_string();
            return Err(CommitError::Rewind { reason, known: std::mem::take(known) });
        }
    }
    Ok(expected)
}

/// Records taken from these positions after the given invalidation numbers.
///
/// # Errors
/// When the query fails.
pub async fn invalidated_since<C: tokio_postgres::GenericClient>(
    client: &C,
    since: &[(PositionId, i64)],
) -> Result<Vec<Invalidated>, tokio_postgres::Error> {
    let (ids, seqs): (Vec<i32>, Vec<i64>) = since.iter().copied().unzip();
    let rows = client
        .query_typed(
            "SELECT i.position_id, r.object_id, r.sfid \
             FROM unnest($1::int[], $2::bigint[]) AS since(position_id, seq) \
             JOIN afterimage.invalidation i ON i.position_id = since.position_id AND i.seq > since.seq \
             JOIN afterimage.record r ON r.rid = i.rid",
            &[(&ids, Type::INT4_ARRAY), (&seqs, Type::INT8_ARRAY)],
        )
        .await?;
    rows.iter()
        .map(|row| {
            let identity: &str = row.try_get(2)?;
            Ok(Invalidated { position_id: row.try_get(0)?, object_id: row.try_get(1)?, identity: identity.into() })
        })
        .collect()
}

const TAKE: &str = "
UPDATE afterimage.record r SET home = t.home
FROM unnest($1::int[], $2::int[], $3::int[], $4::bigint[], $5::timestamptz[], $6::int[], $7::int[], $8::bigint[],
    $9::bigint[])
  AS t(rid, home, seen_home, floor_lsn, floor_ts, seq, position_id, \"offset\", inval_seq)
WHERE r.rid = t.rid AND r.home IS NOT DISTINCT FROM t.seen_home
  AND r.floor_lsn = t.floor_lsn AND r.floor_ts IS NOT DISTINCT FROM t.floor_ts
  AND EXISTS (SELECT 1 FROM afterimage.head_id(r.rid) h
              WHERE h.seq IS NOT DISTINCT FROM t.seq AND h.position_id IS NOT DISTINCT FROM t.position_id
                AND h.\"offset\" IS NOT DISTINCT FROM t.\"offset\")
  AND NOT EXISTS (SELECT 1 FROM afterimage.invalidation i
                  WHERE i.position_id = t.seen_home AND i.seq > t.inval_seq AND i.rid = t.rid)";

/// Takes records over: they must be as they were read, and their donors learn of it (D9).
async fn take_over(
    transaction: &Transaction<'_>,
    batch: &SealedBatch,
    expected: &mut BTreeMap<PositionId, i64>,
) -> Result<(), CommitError> {
    let taken: Vec<(&RegistryChange, _)> =
        batch.registry.iter().filter_map(|change| Some((change, change.taken_from.as_ref()?))).collect();
    if taken.is_empty() {
        return Ok(());
    }
    let rids: Vec<i32> = taken.iter().map(|(change, _)| change.rid).collect();
    transaction
        .query_typed(
            "SELECT 1 FROM afterimage.record WHERE rid = ANY($1) ORDER BY rid FOR NO KEY UPDATE",
            &[(&rids, Type::INT4_ARRAY)],
        )
        .await?;
    let homes: Vec<i32> = taken.iter().map(|(change, _)| change.home).collect();
    let seen_homes: Vec<Option<i32>> = taken.iter().map(|(_, seen)| seen.home).collect();
    let floor_lsns: Vec<i64> = taken.iter().map(|(_, seen)| seen.floor.lsn as i64).collect();
    let floor_tss: Vec<Option<Moment>> = taken.iter().map(|(_, seen)| seen.floor.ts.map(Moment)).collect();
    let seqs: Vec<Option<i32>> = taken.iter().map(|(_, seen)| seen.head.map(|head| head.0 as i32)).collect();
    let positions: Vec<Option<i32>> = taken.iter().map(|(_, seen)| seen.head.map(|head| head.1)).collect();
    let offsets: Vec<Option<i64>> = taken.iter().map(|(_, seen)| seen.head.map(|head| head.2)).collect();
    let inval_seqs: Vec<Option<i64>> = taken.iter().map(|(_, seen)| seen.inval_seq).collect();
    let done = transaction
        .execute_typed(
            TAKE,
            &[
                (&rids, Type::INT4_ARRAY),
                (&homes, Type::INT4_ARRAY),
                (&seen_homes, Type::INT4_ARRAY),
                (&floor_lsns, Type::INT8_ARRAY),
                (&floor_tss, Type::TIMESTAMPTZ_ARRAY),
                (&seqs, Type::INT4_ARRAY),
                (&positions, Type::INT4_ARRAY),
                (&offsets, Type::INT8_ARRAY),
                (&inval_seqs, Type::INT8_ARRAY),
            ],
        )
        .await?;
    if done != taken.len() as u64 {
        return Err(CommitError::Rewind {
            reason: format!("{} of {} records to take over changed meanwhile", taken.len() as u64 - done, taken.len()),
            known: Committed::default(),
        });
    }
    let void = taken.iter().filter_map(|(change, seen)| Some((seen.home?, change.rid, &*change.identity)));
    invalidate(transaction, batch.object_id, "m", void, expected).await
}

/// Tells positions which of their records are void in caches: position, record, identity. `expected` has the last number in
/// each position's log, and rises. `reason` is one letter, see `afterimage.invalidation`.
pub(super) async fn invalidate<'r>(
    transaction: &Transaction<'_>,
    object_id: i16,
    reason: &'static str,
    void: impl Iterator<Item = (PositionId, i32, &'r str)>,
    expected: &mut BTreeMap<PositionId, i64>,
) -> Result<(), CommitError> {
    let mut log: Vec<(PositionId, i64, i32, i64)> = Vec::new();
    for (position, rid, identity) in void {
        let seq = expected.entry(position).or_insert(0);
        *seq += 1;
        log.push((position, *seq, rid, key_hash(object_id, identity)));
    }
    if log.is_empty() {
        return Ok(());
    }
    let newest: BTreeMap<PositionId, i64> = log.iter().map(|(position, seq, _, _)| (*position, *seq)).collect();
    let (ids, seqs): (Vec<i32>, Vec<i64>) = newest.into_iter().unzip();
    transaction
        .execute_typed(
            "UPDATE afterimage.position p SET inval_seq = d.seq \
             FROM unnest($1::int[], $2::bigint[]) AS d(position_id, seq) WHERE p.position_id = d.position_id",
            &[(&ids, Type::INT4_ARRAY), (&seqs, Type::INT8_ARRAY)],
        )
        .await?;
    let positions: Vec<i32> = log.iter().map(|entry| entry.0).collect();
    let seqs: Vec<i64> = log.iter().map(|entry| entry.1).collect();
    let rids: Vec<i32> = log.iter().map(|entry| entry.2).collect();
    let hashes: Vec<i64> = log.iter().map(|entry| entry.3).collect();
    transaction
        .execute_typed(
            "INSERT INTO afterimage.invalidation (position_id, seq, rid, object_id, key_hash, reason) \
             SELECT i.position_id, i.seq, i.rid, $5, i.key_hash, $6::text::\"char\" \
             FROM unnest($1::int[], $2::bigint[], $3::int[], $4::bigint[]) AS i(position_id, seq, rid, key_hash)",
            &[
                (&positions, Type::INT4_ARRAY),
                (&seqs, Type::INT8_ARRAY),
                (&rids, Type::INT4_ARRAY),
                (&hashes, Type::INT8_ARRAY),
                (&object_id, Type::INT2),
                (&reason, Type::TEXT),
            ],
        )
        .await?;
    Ok(())
}

pub(super) async fn advance(
    transaction: &Transaction<'_>,
    batches: &[&SealedBatch],
    held: &BTreeMap<PositionId, Held>,
    expected: &BTreeMap<PositionId, i64>,
) -> Result<(), CommitError> {
    let mut ids = Vec::new();
    let (mut epochs, mut froms, mut tos, mut seqs) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let (mut last_offsets, mut last_tss, mut last_hashes) = (Vec::new(), Vec::new(), Vec::new());
    let (mut source_ats, mut source_lsns, mut passed_rows) = (Vec::new(), Vec::new(), Vec::new());
    let mut counters = Vec::new();
    for advance in batches.iter().flat_map(|batch| &batch.advances) {
        ids.push(advance.position_id);
        epochs.push(advance.epoch);
        froms.push(advance.from);
        tos.push(advance.to);
        seqs.push(expected.get(&advance.position_id).copied().unwrap_or(-1));
        last_offsets.push(advance.last.map(|last| last.0));
        last_tss.push(advance.last.and_then(|last| Some(Moment(last.1?.saturating_mul(1000)))));
        last_hashes.push(advance.last.map(|last| last.2));
        let passed = passed_out(advance.passage.passed());
        source_ats.push(passed.map(|(at, _)| at));
        source_lsns.push(passed.map(|(_, lsn)| lsn));
        passed_rows.push(passed.and_then(|_| advance.passage.rows()));
        counters.extend_from_slice(&advance.counters.0);
    }
    // A donor that is ours but does not advance here must still be ours.
    for (position_id, seq) in expected {
        if let Some(own) = held.get(position_id)
            && !ids.contains(position_id)
        {
            ids.push(*position_id);
            epochs.push(own.epoch);
            froms.push(own.next);
            tos.push(own.next);
            seqs.push(*seq);
            last_offsets.push(None);
            last_tss.push(None);
            last_hashes.push(None);
            source_ats.push(None);
            source_lsns.push(None);
            passed_rows.push(None);
            counters.extend_from_slice(&[0; COUNTERS]);
        }
    }
    transaction
        .query_typed(
            "SELECT afterimage.advance($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)",
            &[
                (&ids, Type::INT4_ARRAY),
                (&epochs, Type::INT8_ARRAY),
                (&froms, Type::INT8_ARRAY),
                (&tos, Type::INT8_ARRAY),
                (&seqs, Type::INT8_ARRAY),
                (&last_offsets, Type::INT8_ARRAY),
                (&last_tss, Type::TIMESTAMPTZ_ARRAY),
                (&last_hashes, Type::INT8_ARRAY),
                (&source_ats, Type::TIMESTAMPTZ_ARRAY),
                (&source_lsns, Type::INT8_ARRAY),
                (&passed_rows, Type::BYTEA_ARRAY),
                (&counters, Type::INT8_ARRAY),
            ],
        )
        .await?;
    Ok(())
}
