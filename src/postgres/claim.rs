//! Taking partitions over: a claim raises the epoch, so that whoever held them before can write nothing more.
//!
//! A claim waits for the old owner's transaction (its row lock), therefore it also *knows* how that ended:
//! claiming again is how an unknown outcome is settled (protocol D4, D8). It never waits without bound:
//! after two seconds the blocking sessions of afterimage are ended by another connection (D5).
//!
//! What must not be read as things are is not claimed: a partition that is halted until a person says otherwise, and one whose
//! log is not the one that was read before (D8, [`crate::core::lineage`]).

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio_postgres::error::SqlState;
use tokio_postgres::types::Type;
use tokio_postgres::{Client, Transaction};
use uuid::Uuid;

use super::client::{ConnectError, SinkSettings, describe};
use super::wire::{Moment, passed_in, passed_out};
use crate::core::lineage::{Fingerprint, Pin, WrongLog, lineage};
use crate::core::position::{Passage, PositionId};

/// A partition to claim, with what the broker says of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// Its topic's source row.
    pub source_id: i16,
    /// Topic, for messages.
    pub topic: Arc<str>,
    /// Partition.
    pub partition: i32,
    /// Earliest offset that the broker still has.
    pub earliest: i64,
    /// Its end (high watermark).
    pub end: i64,
    /// The message that it has where [`remembered`] says that the last one was read.
    pub found: Option<Fingerprint>,
}

/// A claim as it stands in `afterimage.claim`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClaimRow {
    /// Epoch.
    pub epoch: i64,
    /// Token.
    pub token: Uuid,
    /// Next offset at the time.
    pub from_next: i64,
}

/// A partition that is ours now.
#[derive(Debug, Clone)]
pub struct Claim {
    /// Position.
    pub position_id: PositionId,
    /// Topic's source row.
    pub source_id: i16,
    /// Partition.
    pub partition: i32,
    /// Our epoch.
    pub epoch: i64,
    /// Our token.
    pub token: Uuid,
    /// Next offset to read.
    pub next: i64,
    /// Invalidations so far.
    pub inval_seq: i64,
    /// Oldest invalidation number that the log still has, if it has any.
    pub oldest_inval_seq: Option<i64>,
    /// What was passed below `next`.
    pub passage: Passage,
    /// By which its log is known; `None` = no worker has looked at it yet.
    pub pin: Option<Pin>,
    /// All claims of this position, newest (ours) first.
    pub claims: Vec<ClaimRow>,
    /// Offsets that were gone before they could be read, recorded with this claim.
    pub gap: Option<(i64, i64)>,
}

#[cfg(test)]
impl Claim {
    /// The first one of a partition of which nothing was read.
    pub(crate) fn first(position_id: PositionId, partition: i32) -> Self {
        Claim {
            position_id,
            source_id: 1,
            partition,
            epoch: 1,
            token: Uuid::nil(),
            next: 0,
            inval_seq: 0,
            oldest_inval_seq: None,
            passage: Passage::default(),
            pin: None,
            claims: Vec::new(),
            gap: None,
        }
    }
}

/// Who holds a position by now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holder {
    /// Position.
    pub position_id: PositionId,
    /// Under this epoch.
    pub epoch: i64,
    /// Worker of the newest claim; `None` = nobody, a person or a worker has only fenced it off.
    pub worker: Option<String>,
    /// That is the asking worker itself, which is only to read its lookup fields anew.
    pub only_again: bool,
}

/// Who holds these positions.
///
/// # Errors
/// When the query fails.
pub async fn holders(
    client: &Client,
    worker: &str,
    positions: &[PositionId],
) -> Result<Vec<Holder>, tokio_postgres::Error> {
    // The reason is that which `afterimage.fence` gives to its claims.
    let rows = client
        .query_typed(
            "SELECT p.position_id, p.epoch, c.worker, c.worker IS NOT DISTINCT FROM $2 AND c.reason IS NOT DISTINCT FROM 'lookup fields changed' \
             FROM afterimage.position p LEFT JOIN afterimage.claim c USING (position_id, epoch) \
             WHERE p.position_id = ANY($1)",
            &[(&positions, Type::INT4_ARRAY), (&worker, Type::TEXT)],
        )
        .await?;
    rows.iter()
        .map(|row| {
            Ok(Holder {
                position_id: row.try_get(0)?,
                epoch: row.try_get(1)?,
                worker: row.try_get(2)?,
                only_again: row.try_get(3)?,
            })
        })
        .collect()
}

/// A claim that was not made.
#[derive(Debug, thiserror::Error)]
pub enum ClaimError {
    /// No connection.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The statement failed.
    #[error("claim failed: {}", describe(.0))]
    Query(#[from] tokio_postgres::Error),
}

/// A partition that cannot be claimed as things are; the others of the same call are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Halted {
    /// Topic's source row.
    pub source_id: i16,
    /// Partition.
    pub partition: i32,
    /// What is wrong and what to do.
    pub reason: String,
}

/// The offset of the last message that was read of each of these (source, partition): where the broker's log is to be
/// looked at before it is claimed. Partitions of which nothing was read are missing, and those that stay halted.
///
/// # Errors
/// When the query fails.
pub async fn remembered(
    client: &Client,
    places: &[(i16, i32)],
) -> Result<BTreeMap<(i16, i32), i64>, tokio_postgres::Error> {
    let (sources, partitions): (Vec<i16>, Vec<i32>) = places.iter().copied().unzip();
    let rows = client
        .query_typed(
            "SELECT p.source_id, p.partition, p.last_offset FROM afterimage.position p \
             JOIN unnest($1::smallint[], $2::int[]) AS w(source_id, partition) \
               ON w.source_id = p.source_id AND w.partition = p.partition \
             WHERE p.live AND NOT p.halt_stays AND p.last_offset IS NOT NULL AND p.last_hash IS NOT NULL",
            &[(&sources, Type::INT2_ARRAY), (&partitions, Type::INT4_ARRAY)],
        )
        .await?;
    rows.iter().map(|row| Ok(((row.try_get(0)?, row.try_get(1)?), row.try_get(2)?))).collect()
}

/// Which of these (position, epoch, offset of the last message committed under it) the sink no longer has: it was restored
/// from an older state. A position under a greater epoch is another worker's, whose claim has settled it.
///
/// # Errors
/// When the query fails.
pub async fn lost(
    client: &Client,
    committed: &[(PositionId, i64, i64)],
) -> Result<Vec<PositionId>, tokio_postgres::Error> {
    let ids: Vec<PositionId> = committed.iter().map(|one| one.0).collect();
    let epochs: Vec<i64> = committed.iter().map(|one| one.1).collect();
    let offsets: Vec<i64> = committed.iter().map(|one| one.2).collect();
    let rows = client
        .query_typed(
            "SELECT c.id FROM unnest($1::int[], $2::bigint[], $3::bigint[]) AS c(id, epoch, last) \
             LEFT JOIN afterimage.position p ON p.position_id = c.id \
             WHERE p.position_id IS NULL OR p.epoch < c.epoch OR (p.epoch = c.epoch AND p.next <= c.last)",
            &[(&ids, Type::INT4_ARRAY), (&epochs, Type::INT8_ARRAY), (&offsets, Type::INT8_ARRAY)],
        )
        .await?;
    rows.iter().map(|row| row.try_get(0)).collect()
}

/// Keeps with positions, each held under its epoch, by which their logs are known: whoever claims them next looks at that.
/// One that is being written is left for the next time.
///
/// # Errors
/// When the statement fails.
pub async fn keep_pins(client: &Client, pins: &[(PositionId, i64, Pin)]) -> Result<(), tokio_postgres::Error> {
    let ids: Vec<PositionId> = pins.iter().map(|(id, ..)| *id).collect();
    let epochs: Vec<i64> = pins.iter().map(|(_, epoch, _)| *epoch).collect();
    let offsets: Vec<i64> = pins.iter().map(|(.., pin)| pin.message.offset).collect();
    let ats: Vec<Option<Moment>> =
        pins.iter().map(|(.., pin)| Some(Moment(pin.message.timestamp_ms?.saturating_mul(1000)))).collect();
    let hashes: Vec<i64> = pins.iter().map(|(.., pin)| pin.message.hash).collect();
    let (source_ats, source_lsns): (Vec<Option<Moment>>, Vec<Option<i64>>) =
        pins.iter().map(|(.., pin)| passed_out(pin.passed).unzip()).unzip();
    client
        .execute_typed(
            "WITH wanted AS ( \
               SELECT k.* FROM afterimage.position p \
               JOIN unnest($1::int[], $2::bigint[], $3::bigint[], $4::timestamptz[], $5::bigint[], $6::timestamptz[], $7::bigint[]) \
                 AS k(position_id, epoch, at_offset, ts, hash, source_at, source_lsn) \
                 ON k.position_id = p.position_id AND k.epoch = p.epoch \
               WHERE (p.pin_offset, p.pin_hash) IS DISTINCT FROM (k.at_offset, k.hash) \
               ORDER BY p.position_id FOR NO KEY UPDATE OF p SKIP LOCKED) \
             UPDATE afterimage.position p SET pin_offset = w.at_offset, pin_ts = w.ts, pin_hash = w.hash, \
               pin_source_at = w.source_at, pin_source_lsn = w.source_lsn \
             FROM wanted w WHERE w.position_id = p.position_id",
            &[
                (&ids, Type::INT4_ARRAY),
                (&epochs, Type::INT8_ARRAY),
                (&offsets, Type::INT8_ARRAY),
                (&ats, Type::TIMESTAMPTZ_ARRAY),
                (&hashes, Type::INT8_ARRAY),
                (&source_ats, Type::TIMESTAMPTZ_ARRAY),
                (&source_lsns, Type::INT8_ARRAY),
            ],
        )
        .await?;
    Ok(())
}

/// Who claims.
#[derive(Debug, Clone)]
pub struct Claimant {
    /// Worker's name.
    pub worker: String,
    /// Hash of the effective configuration.
    pub config_hash: Vec<u8>,
}

/// Claims partitions, all in one transaction, on a connection of its own.
///
/// # Errors
/// When the sink cannot be reached or the claim fails for another reason than waiting.
pub async fn claim(
    sink: &SinkSettings,
    claimant: &Claimant,
    wanted: &[Wanted],
) -> Result<(Vec<Claim>, Vec<Halted>), ClaimError> {
    let mut client = sink.connect().await?;
    loop {
        match try_claim(&mut client, claimant, wanted).await {
            Err(ClaimError::Query(error)) if error.code() == Some(&SqlState::LOCK_NOT_AVAILABLE) => {
                free(sink, wanted).await?;
            }
            other => return other,
        }
    }
}

/// Ends the sessions of afterimage that hold locks on these positions: a frozen worker's, most likely.
async fn free(sink: &SinkSettings, wanted: &[Wanted]) -> Result<(), ClaimError> {
    let mut waiting = sink.connect().await?;
    let other = sink.connect().await?;
    let transaction = waiting.transaction().await?;
    transaction.batch_execute("SET LOCAL lock_timeout = '2s'").await?;
    // In the transaction that waits: behind a pooler the next one may be another server process.
    let pid: i32 = transaction.query_typed("SELECT pg_backend_pid()", &[]).await?[0].try_get(0)?;
    let blocked = lock(&transaction, wanted);
    let end = async {
        // The lock request has to be waiting before its blockers can be named.
        for _ in 0..20 {
            let ended = other
                .query_typed(
                    "SELECT pg_terminate_backend(b) FROM unnest(pg_blocking_pids($1)) b \
                     JOIN pg_stat_activity a ON a.pid = b \
                     WHERE a.application_name LIKE 'afterimage%' AND a.usename = current_user",
                    &[(&pid, Type::INT4)],
                )
                .await?;
            if !ended.is_empty() {
                tracing::warn!(sessions = ended.len(), "ended sessions that held positions to be claimed");
                return Ok::<(), tokio_postgres::Error>(());
            }
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
        Ok(())
    };
    let (locked, ended) = tokio::join!(blocked, end);
    ended?;
    match locked {
        Err(error) if error.code() != Some(&SqlState::LOCK_NOT_AVAILABLE) => Err(error.into()),
        _ => Ok(()),
    }
}

async fn lock(
    transaction: &Transaction<'_>,
    wanted: &[Wanted],
) -> Result<Vec<tokio_postgres::Row>, tokio_postgres::Error> {
    let sources: Vec<i16> = wanted.iter().map(|one| one.source_id).collect();
    let partitions: Vec<i32> = wanted.iter().map(|one| one.partition).collect();
    transaction
        .query_typed(
            "SELECT p.position_id, p.source_id, p.partition, p.next, p.last_offset, p.last_ts, p.last_hash, p.halt, \
               p.halt_stays FROM afterimage.position p \
             JOIN unnest($1::smallint[], $2::int[]) AS w(source_id, partition) \
               ON w.source_id = p.source_id AND w.partition = p.partition \
             WHERE p.live ORDER BY p.position_id FOR NO KEY UPDATE OF p",
            &[(&sources, Type::INT2_ARRAY), (&partitions, Type::INT4_ARRAY)],
        )
        .await
}

async fn try_claim(
    client: &mut Client,
    claimant: &Claimant,
    wanted: &[Wanted],
) -> Result<(Vec<Claim>, Vec<Halted>), ClaimError> {
    let transaction = client.transaction().await?;
    transaction
        .batch_execute(
            "SET LOCAL statement_timeout = '10s'; SET LOCAL lock_timeout = '2s'; \
             SET LOCAL idle_in_transaction_session_timeout = '10s'; SET LOCAL synchronous_commit = on",
        )
        .await?;
    let sources: Vec<i16> = wanted.iter().map(|one| one.source_id).collect();
    let partitions: Vec<i32> = wanted.iter().map(|one| one.partition).collect();
    let earliest: Vec<i64> = wanted.iter().map(|one| one.earliest).collect();
    // A partition seen for the first time starts where the broker's log starts: coverage begins there.
    transaction
        .execute_typed(
            "INSERT INTO afterimage.position (source_id, partition, incarnation, first_next, next) \
             SELECT w.source_id, w.partition, \
               (SELECT coalesce(max(q.incarnation) + 1, 0) FROM afterimage.position q \
                WHERE q.source_id = w.source_id AND q.partition = w.partition), w.earliest, w.earliest \
             FROM unnest($1::smallint[], $2::int[], $3::bigint[]) AS w(source_id, partition, earliest) \
             WHERE NOT EXISTS (SELECT 1 FROM afterimage.position p \
                               WHERE p.source_id = w.source_id AND p.partition = w.partition AND p.live) \
             ORDER BY w.source_id, w.partition ON CONFLICT DO NOTHING",
            &[(&sources, Type::INT2_ARRAY), (&partitions, Type::INT4_ARRAY), (&earliest, Type::INT8_ARRAY)],
        )
        .await?;
    let by_place: BTreeMap<(i16, i32), &Wanted> =
        wanted.iter().map(|one| ((one.source_id, one.partition), one)).collect();
    let (mut ours, mut halted, mut gaps) = (Vec::new(), Vec::new(), Vec::new());
    for row in lock(&transaction, wanted).await? {
        let (position_id, next): (PositionId, i64) = (row.try_get(0)?, row.try_get(3)?);
        let place: (i16, i32) = (row.try_get(1)?, row.try_get(2)?);
        let Some(broker) = by_place.get(&place) else { continue };
        let (noted, stays): (Option<String>, bool) = (row.try_get(7)?, row.try_get(8)?);
        if stays {
            let reason = noted.unwrap_or_default();
            halted.push(Halted { source_id: place.0, partition: place.1, reason });
            continue;
        }
        // Of the last message that was read.
        let last = fingerprint(&row, 4)?;
        let found = lineage(next, broker.end, last, broker.found);
        if found.halts() {
            let wrong = WrongLog {
                topic: &broker.topic,
                partition: place.1,
                next,
                last_offset: last.map(|last| last.offset),
                lineage: found,
            };
            let reason = wrong.to_string();
            if noted.as_deref() != Some(&reason) {
                note_halt(&transaction, position_id, &reason, false).await?;
            }
            halted.push(Halted { source_id: place.0, partition: place.1, reason });
            continue;
        }
        if broker.earliest > next {
            gaps.push((position_id, next, broker.earliest));
        }
        ours.push(position_id);
    }
    failpoint!("claim.locked", made());
    for (position_id, from, to) in &gaps {
        transaction
            .execute_typed(
                "INSERT INTO afterimage.gap (position_id, from_offset, to_offset, reason) \
                 VALUES ($1, $2, $3, 'the broker dropped them before they were read')",
                &[(position_id, Type::INT4), (from, Type::INT8), (to, Type::INT8)],
            )
            .await?;
        transaction
            .execute_typed(
                "UPDATE afterimage.position SET next = $3, c_gap = c_gap + ($3 - $2) WHERE position_id = $1",
                &[(position_id, Type::INT4), (from, Type::INT8), (to, Type::INT8)],
            )
            .await?;
    }
    let rows = transaction
        .query_typed(
            "UPDATE afterimage.position SET epoch = epoch + 1, halted_at = NULL, halt = NULL WHERE position_id = ANY($1) \
             RETURNING position_id, source_id, partition, epoch, next, inval_seq, source_at, source_lsn, \
               (SELECT min(i.seq) FROM afterimage.invalidation i WHERE i.position_id = position.position_id), passed_rows, \
               pin_offset, pin_ts, pin_hash, pin_source_at, pin_source_lsn",
            &[(&ours, Type::INT4_ARRAY)],
        )
        .await?;
    failpoint!("claim.raised", made());
    let mut claims = Vec::with_capacity(rows.len());
    for row in &rows {
        let position_id: PositionId = row.try_get(0)?;
        let passed = passed_in(row.try_get(6)?, row.try_get(7)?);
        let passed_with_pin = passed_in(row.try_get(13)?, row.try_get(14)?);
        claims.push(Claim {
            position_id,
            source_id: row.try_get(1)?,
            partition: row.try_get(2)?,
            epoch: row.try_get(3)?,
            token: Uuid::new_v4(),
            next: row.try_get(4)?,
            inval_seq: row.try_get(5)?,
            oldest_inval_seq: row.try_get(8)?,
            passage: Passage::from(passed, row.try_get(9)?),
            pin: fingerprint(row, 10)?.map(|message| Pin { message, passed: passed_with_pin }),
            claims: Vec::new(),
            gap: gaps.iter().find(|gap| gap.0 == position_id).map(|gap| (gap.1, gap.2)),
        });
    }
    claims.sort_by_key(|claim| claim.position_id);
    note(&transaction, claimant, &mut claims).await?;
    failpoint!("claim.noted", made());
    transaction.commit().await?;
    failpoint!("claim.committed", made());
    Ok((claims, halted))
}

/// A step that a test made fail.
#[cfg(feature = "failpoints")]
fn made() -> ClaimError {
    ClaimError::Connect(ConnectError::Settings("a failpoint".into()))
}

/// Offset, time and hash of a message, from three columns of a row.
fn fingerprint(row: &tokio_postgres::Row, from: usize) -> Result<Option<Fingerprint>, tokio_postgres::Error> {
    let (offset, hash): (Option<i64>, Option<i64>) = (row.try_get(from)?, row.try_get(from + 2)?);
    let at: Option<Moment> = row.try_get(from + 1)?;
    let timestamp_ms = at.map(|at| at.0.div_euclid(1000));
    Ok(offset.zip(hash).map(|(offset, hash)| Fingerprint { offset, timestamp_ms, hash }))
}

/// Leaves it with a position why it is not read. `stays`: until a person lifts it.
async fn note_halt<C: tokio_postgres::GenericClient>(
    client: &C,
    position_id: PositionId,
    reason: &str,
    stays: bool,
) -> Result<(), tokio_postgres::Error> {
    client
        .execute_typed(
            "UPDATE afterimage.position SET halted_at = coalesce(halted_at, clock_timestamp()), halt = $2, halt_stays = $3 \
             WHERE position_id = $1",
            &[(&position_id, Type::INT4), (&reason, Type::TEXT), (&stays, Type::BOOL)],
        )
        .await?;
    Ok(())
}

/// Halts a position that is held under this epoch and stands at this offset; whether it was so. `stays`: until a person lifts
/// it; otherwise whoever claims it next looks anew.
///
/// # Errors
/// When the statement fails.
pub async fn halt(
    client: &mut Client,
    position_id: PositionId,
    (epoch, next): (i64, i64),
    reason: &str,
    stays: bool,
) -> Result<bool, tokio_postgres::Error> {
    let transaction = client.transaction().await?;
    transaction.batch_execute("SET LOCAL lock_timeout = '2s'; SET LOCAL statement_timeout = '10s'").await?;
    let held = transaction
        .query_typed(
            "SELECT 1 FROM afterimage.position WHERE position_id = $1 AND epoch = $2 AND next = $3 FOR NO KEY UPDATE",
            &[(&position_id, Type::INT4), (&epoch, Type::INT8), (&next, Type::INT8)],
        )
        .await?;
    if held.is_empty() {
        return Ok(false);
    }
    note_halt(&transaction, position_id, reason, stays).await?;
    transaction.commit().await?;
    Ok(true)
}

/// Leaves the claim rows and reads the older ones, which tell a local store's lineage (D14).
async fn note(
    transaction: &Transaction<'_>,
    claimant: &Claimant,
    claims: &mut [Claim],
) -> Result<(), tokio_postgres::Error> {
    let ids: Vec<i32> = claims.iter().map(|claim| claim.position_id).collect();
    let epochs: Vec<i64> = claims.iter().map(|claim| claim.epoch).collect();
    let tokens: Vec<Uuid> = claims.iter().map(|claim| claim.token).collect();
    let nexts: Vec<i64> = claims.iter().map(|claim| claim.next).collect();
    transaction
        .execute_typed(
            "INSERT INTO afterimage.claim (position_id, epoch, token, from_next, worker, config_hash) \
             SELECT c.position_id, c.epoch, c.token, c.from_next, $5, $6 \
             FROM unnest($1::int[], $2::bigint[], $3::uuid[], $4::bigint[]) AS c(position_id, epoch, token, from_next)",
            &[
                (&ids, Type::INT4_ARRAY),
                (&epochs, Type::INT8_ARRAY),
                (&tokens, Type::UUID_ARRAY),
                (&nexts, Type::INT8_ARRAY),
                (&claimant.worker, Type::TEXT),
                (&claimant.config_hash, Type::BYTEA),
            ],
        )
        .await?;
    let rows = transaction
        .query_typed(
            "SELECT position_id, epoch, token, from_next FROM afterimage.claim WHERE position_id = ANY($1) \
             ORDER BY position_id, epoch DESC",
            &[(&ids, Type::INT4_ARRAY)],
        )
        .await?;
    for row in &rows {
        let position_id: PositionId = row.try_get(0)?;
        if let Some(claim) = claims.iter_mut().find(|claim| claim.position_id == position_id) {
            claim.claims.push(ClaimRow { epoch: row.try_get(1)?, token: row.try_get(2)?, from_next: row.try_get(3)? });
        }
    }
    Ok(())
}
