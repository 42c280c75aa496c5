//! What a person does to positions: look, skip, adopt, lift a halt. Each change is one transaction that finds the position as
//! it was looked at, or does nothing; and each raises the epoch, so that a worker that still believes it holds the partition
//! can write nothing more.

use std::collections::BTreeMap;

use tokio_postgres::types::Type;
use tokio_postgres::{Client, Transaction};
use uuid::Uuid;

use super::client::describe;
use super::status::LIVES;
use super::wire::{Moment, passed_out};
use crate::core::event::Micros;
use crate::core::intervention::Holder;
use crate::core::lineage::{Fingerprint, Pin};
use crate::core::position::{Passed, PositionId};

/// Nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum OperatorError {
    /// The statement failed.
    #[error("{}", describe(.0))]
    Query(#[from] tokio_postgres::Error),
    /// Somebody else moved it between the look and the change.
    #[error("partition {0} has moved since it was looked at: a worker has claimed it, or somebody else is at it")]
    Moved(i32),
}

/// Which positions.
#[derive(Debug, Clone, Default)]
pub struct Which {
    /// Of this org.
    pub org: Option<String>,
    /// Of this object.
    pub object: Option<String>,
    /// Of this topic.
    pub topic: Option<String>,
    /// Of this partition.
    pub partition: Option<i32>,
    /// Former lives of topics, too.
    pub former: bool,
}

/// A position as it is looked at before it is changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Standing {
    /// Org.
    pub org: String,
    /// Object.
    pub object: String,
    /// Topic.
    pub topic: String,
    /// Its row.
    pub source_id: i16,
    /// Partition.
    pub partition: i32,
    /// Position.
    pub position_id: PositionId,
    /// Which life of the topic.
    pub incarnation: i32,
    /// It is the present one.
    pub live: bool,
    /// Where reading began.
    pub first: i64,
    /// Next offset to read.
    pub next: i64,
    /// How often it was claimed, or changed by hand.
    pub epoch: i64,
    /// Who holds it.
    pub holder: Holder,
    /// The last message that was read.
    pub last: Option<Fingerprint>,
    /// Greatest (source time, LSN) below `next`.
    pub passed: Option<Passed>,
    /// Since when it is halted, and why.
    pub halt: Option<(Micros, String)>,
    /// The halt stays until a person lifts it.
    pub halt_stays: bool,
    /// The cluster that its topic is read from.
    pub cluster: String,
    /// The group that reads it.
    pub group: String,
}

/// The positions of topics, by org, object, topic, partition, life.
///
/// # Errors
/// When the query fails.
pub async fn standings(client: &Client, which: &Which) -> Result<Vec<Standing>, tokio_postgres::Error> {
    let rows = client
        .query_typed(
            &format!(
                "SELECT coalesce(o.name, ''), coalesce(b.name, ''), s.topic, p.source_id, p.partition, p.position_id, \
               p.incarnation, p.live, p.first_next, p.next, p.epoch, c.worker, \
               {LIVES}, \
               p.last_offset, p.last_ts, p.last_hash, p.source_at, p.source_lsn, p.halted_at, p.halt, p.halt_stays, \
               coalesce(s.cluster_id, ''), coalesce(s.group_id, '') \
             FROM afterimage.position p \
             JOIN afterimage.source s ON s.source_id = p.source_id \
             LEFT JOIN afterimage.org o ON o.org_id = s.org_id \
             LEFT JOIN afterimage.object b ON b.object_id = s.object_id \
             LEFT JOIN afterimage.claim c ON c.position_id = p.position_id AND c.epoch = p.epoch \
             WHERE s.kind = 'kafka' AND (p.live OR $5) AND ($1::text IS NULL OR o.name = $1) \
               AND ($2::text IS NULL OR b.name = $2) AND ($3::text IS NULL OR s.topic = $3) \
               AND ($4::int IS NULL OR p.partition = $4) \
             ORDER BY o.name, b.name, s.topic, p.partition, p.incarnation"
            ),
            &[
                (&which.org, Type::TEXT),
                (&which.object, Type::TEXT),
                (&which.topic, Type::TEXT),
                (&which.partition, Type::INT4),
                (&which.former, Type::BOOL),
            ],
        )
        .await?;
    rows.iter()
        .map(|row| {
            let moment = |at| row.try_get::<_, Option<Moment>>(at).map(|at| at.map(|at| at.0));
            let (offset, hash): (Option<i64>, Option<i64>) = (row.try_get(13)?, row.try_get(15)?);
            let timestamp_ms = moment(14)?.map(|at| at.div_euclid(1000));
            let (source_at, lsn): (Option<Micros>, Option<i64>) = (moment(16)?, row.try_get(17)?);
            let halt = moment(18)?.zip(row.try_get::<_, Option<String>>(19)?);
            Ok(Standing {
                org: row.try_get(0)?,
                object: row.try_get(1)?,
                topic: row.try_get(2)?,
                source_id: row.try_get(3)?,
                partition: row.try_get(4)?,
                position_id: row.try_get(5)?,
                incarnation: row.try_get(6)?,
                live: row.try_get(7)?,
                first: row.try_get(8)?,
                next: row.try_get(9)?,
                epoch: row.try_get(10)?,
                holder: Holder { worker: row.try_get(11)?, seen: row.try_get(12)?, halted: halt.is_some() },
                last: offset.zip(hash).map(|(offset, hash)| Fingerprint { offset, timestamp_ms, hash }),
                passed: source_at.map(|ts| Passed { ts, lsn: lsn.unwrap_or(0) as u64 }),
                halt,
                halt_stays: row.try_get(20)?,
                cluster: row.try_get(21)?,
                group: row.try_get(22)?,
            })
        })
        .collect()
}

/// What the sink knows of a position that an image store has a mark of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Known {
    /// Next offset to read.
    pub next: i64,
    /// Invalidations so far.
    pub inval_seq: i64,
    /// Token of the claim with the mark's epoch, if there was one.
    pub token: Option<Uuid>,
}

/// What the sink knows of these positions, each with the epoch of a mark.
///
/// # Errors
/// When the query fails.
pub async fn known(
    client: &Client,
    marks: &[(PositionId, i64)],
) -> Result<BTreeMap<PositionId, Known>, tokio_postgres::Error> {
    let (ids, epochs): (Vec<i32>, Vec<i64>) = marks.iter().copied().unzip();
    let rows = client
        .query_typed(
            "SELECT p.position_id, p.next, p.inval_seq, c.token \
             FROM unnest($1::int[], $2::bigint[]) AS m(position_id, epoch) \
             JOIN afterimage.position p ON p.position_id = m.position_id \
             LEFT JOIN afterimage.claim c ON c.position_id = m.position_id AND c.epoch = m.epoch",
            &[(&ids, Type::INT4_ARRAY), (&epochs, Type::INT8_ARRAY)],
        )
        .await?;
    rows.iter()
        .map(|row| {
            let known = Known { next: row.try_get(1)?, inval_seq: row.try_get(2)?, token: row.try_get(3)? };
            Ok((row.try_get(0)?, known))
        })
        .collect()
}

/// Locks positions, in one order for everyone, and makes sure that they are as they were looked at.
async fn unmoved(transaction: &Transaction<'_>, standings: &[&Standing]) -> Result<(), OperatorError> {
    transaction
        .batch_execute(
            "SET LOCAL lock_timeout = '5s'; SET LOCAL statement_timeout = '30s'; \
             SET LOCAL idle_in_transaction_session_timeout = '10s'; SET LOCAL synchronous_commit = on",
        )
        .await?;
    let ids: Vec<PositionId> = standings.iter().map(|one| one.position_id).collect();
    let rows = transaction
        .query_typed(
            "SELECT position_id, epoch, next, live FROM afterimage.position WHERE position_id = ANY($1) \
             ORDER BY position_id FOR NO KEY UPDATE",
            &[(&ids, Type::INT4_ARRAY)],
        )
        .await?;
    let mut found = BTreeMap::new();
    for row in &rows {
        let at: (i64, i64, bool) = (row.try_get(1)?, row.try_get(2)?, row.try_get(3)?);
        found.insert(row.try_get::<_, PositionId>(0)?, at);
    }
    match standings.iter().find(|one| found.get(&one.position_id) != Some(&(one.epoch, one.next, one.live))) {
        Some(moved) => Err(OperatorError::Moved(moved.partition)),
        None => Ok(()),
    }
}

/// Raises epochs, lifts halts, and leaves a claim of nobody with its reason.
async fn fence(transaction: &Transaction<'_>, ids: &[PositionId], reason: &str) -> Result<(), tokio_postgres::Error> {
    transaction
        .execute_typed(
            "WITH moved AS ( \
               UPDATE afterimage.position SET epoch = epoch + 1, halted_at = NULL, halt = NULL, halt_stays = false \
               WHERE position_id = ANY($1) RETURNING position_id, epoch, next) \
             INSERT INTO afterimage.claim (position_id, epoch, token, from_next, worker, reason) \
             SELECT m.position_id, m.epoch, gen_random_uuid(), m.next, NULL, $2 FROM moved m",
            &[(&ids, Type::INT4_ARRAY), (&reason, Type::TEXT)],
        )
        .await?;
    Ok(())
}

/// Goes on at `to`, and records what lies between as a gap, with its reason. `another_log`: the message that was read last is
/// not to be looked for any more.
///
/// # Errors
/// See [`OperatorError`].
pub async fn skip(
    client: &mut Client,
    at: &Standing,
    to: i64,
    another_log: bool,
    reason: &str,
) -> Result<(), OperatorError> {
    failpoint!("skip.looked");
    let transaction = client.transaction().await?;
    unmoved(&transaction, &[at]).await?;
    failpoint!("skip.locked");
    if to > at.next {
        transaction
            .execute_typed(
                "INSERT INTO afterimage.gap (position_id, from_offset, to_offset, reason) VALUES ($1, $2, $3, $4)",
                &[(&at.position_id, Type::INT4), (&at.next, Type::INT8), (&to, Type::INT8), (&reason, Type::TEXT)],
            )
            .await?;
        failpoint!("skip.noted");
    }
    transaction
        .execute_typed(
            "UPDATE afterimage.position SET next = $2, c_gap = c_gap + ($2 - next), \
               last_offset = CASE WHEN $3 THEN NULL ELSE last_offset END, \
               last_ts = CASE WHEN $3 THEN NULL ELSE last_ts END, \
               last_hash = CASE WHEN $3 THEN NULL ELSE last_hash END, \
               pin_offset = CASE WHEN $3 THEN NULL ELSE pin_offset END, \
               pin_ts = CASE WHEN $3 THEN NULL ELSE pin_ts END, \
               pin_hash = CASE WHEN $3 THEN NULL ELSE pin_hash END \
             WHERE position_id = $1",
            &[(&at.position_id, Type::INT4), (&to, Type::INT8), (&another_log, Type::BOOL)],
        )
        .await?;
    failpoint!("skip.moved");
    fence(&transaction, &[at.position_id], "offsets skip").await?;
    failpoint!("skip.fenced");
    transaction.commit().await?;
    failpoint!("skip.committed");
    Ok(())
}

/// Fences a position off that is held under this epoch, because its log is another than the one that this message was read
/// from: claiming it compares again, and halts it. Whether it was held so.
///
/// # Errors
/// When a statement fails.
pub async fn distrust(
    client: &mut Client,
    position_id: PositionId,
    epoch: i64,
    pin: Pin,
) -> Result<bool, OperatorError> {
    let transaction = client.transaction().await?;
    transaction.batch_execute("SET LOCAL lock_timeout = '5s'; SET LOCAL statement_timeout = '10s'").await?;
    let at = pin.message.timestamp_ms.map(|ms| Moment(ms.saturating_mul(1000)));
    let (source_at, source_lsn) = passed_out(pin.passed).unzip();
    let held = transaction
        .execute_typed(
            "UPDATE afterimage.position SET last_offset = $3, last_ts = $4, last_hash = $5, \
               source_at = $6, source_lsn = $7, passed_rows = NULL \
             WHERE position_id = $1 AND epoch = $2",
            &[
                (&position_id, Type::INT4),
                (&epoch, Type::INT8),
                (&pin.message.offset, Type::INT8),
                (&at, Type::TIMESTAMPTZ),
                (&pin.message.hash, Type::INT8),
                (&source_at, Type::TIMESTAMPTZ),
                (&source_lsn, Type::INT8),
            ],
        )
        .await?;
    if held == 0 {
        return Ok(false);
    }
    fence(&transaction, &[position_id], "another log").await?;
    transaction.commit().await?;
    Ok(true)
}

/// Lifts halts; what they were about is looked at anew.
///
/// # Errors
/// See [`OperatorError`].
pub async fn resume(client: &mut Client, standings: &[&Standing]) -> Result<(), OperatorError> {
    failpoint!("resume.looked");
    let transaction = client.transaction().await?;
    unmoved(&transaction, standings).await?;
    failpoint!("resume.locked");
    let ids: Vec<PositionId> = standings.iter().map(|one| one.position_id).collect();
    transaction
        .execute_typed(
            "UPDATE afterimage.position SET halted_at = NULL, halt = NULL, halt_stays = false WHERE position_id = ANY($1)",
            &[(&ids, Type::INT4_ARRAY)],
        )
        .await?;
    failpoint!("resume.lifted");
    transaction.commit().await?;
    failpoint!("resume.committed");
    Ok(())
}

/// What adopting a topic changes.
#[derive(Debug, Clone)]
pub struct Adoption<'a> {
    /// Its row.
    pub source_id: i16,
    /// The cluster and the group that hold it from now on, if they are others.
    pub holder: Option<(&'a str, &'a str)>,
    /// Partitions that begin another life.
    pub lives: Vec<Life<'a>>,
    /// Every position that this concerns: none may have moved since it was looked at.
    pub seen: Vec<&'a Standing>,
}

/// A partition that begins another life.
#[derive(Debug, Clone, Copy)]
pub struct Life<'a> {
    /// The one that ends.
    pub old: &'a Standing,
    /// First offset of the next one; none where the log has no such partition.
    pub start: Option<i64>,
    /// What the next one knows to be delivered before.
    pub passed: Option<Passed>,
}

/// Lets partitions begin another life, and gives the topic to another group or cluster; all of it or nothing.
///
/// # Errors
/// See [`OperatorError`].
pub async fn adopt(client: &mut Client, adoption: &Adoption<'_>) -> Result<(), OperatorError> {
    failpoint!("adopt.looked");
    let transaction = client.transaction().await?;
    // As whoever registers topics: a worker that starts now sees the topic before or after, and not in between.
    transaction.batch_execute("SELECT pg_advisory_xact_lock(hashtext('afterimage.registry'))").await?;
    unmoved(&transaction, &adoption.seen).await?;
    failpoint!("adopt.locked");
    if let Some((cluster, group)) = adoption.holder {
        transaction
            .execute_typed(
                "UPDATE afterimage.source SET cluster_id = $2, group_id = $3, since = clock_timestamp() WHERE source_id = $1",
                &[(&adoption.source_id, Type::INT2), (&cluster, Type::TEXT), (&group, Type::TEXT)],
            )
            .await?;
        failpoint!("adopt.held");
    }
    // Whoever held any of it under the old order writes nothing more.
    let ids: Vec<PositionId> = adoption.seen.iter().map(|one| one.position_id).collect();
    fence(&transaction, &ids, "offsets adopt").await?;
    failpoint!("adopt.fenced");
    for Life { old, start, passed } in &adoption.lives {
        let (source_at, lsn) = passed.map_or((None, None), |passed| (Some(Moment(passed.ts)), Some(passed.lsn as i64)));
        transaction
            .execute_typed(
                "UPDATE afterimage.position SET live = false WHERE position_id = $1",
                &[(&old.position_id, Type::INT4)],
            )
            .await?;
        failpoint!("adopt.ended");
        if let Some(start) = start {
            transaction
                .execute_typed(
                    "INSERT INTO afterimage.position \
                       (source_id, partition, incarnation, first_next, next, source_at, source_lsn) \
                     SELECT $1, $2, max(p.incarnation) + 1, $3, $3, $4, $5 FROM afterimage.position p \
                     WHERE p.source_id = $1 AND p.partition = $2",
                    &[
                        (&adoption.source_id, Type::INT2),
                        (&old.partition, Type::INT4),
                        (start, Type::INT8),
                        (&source_at, Type::TIMESTAMPTZ),
                        (&lsn, Type::INT8),
                    ],
                )
                .await?;
            failpoint!("adopt.begun");
        }
    }
    transaction.commit().await?;
    failpoint!("adopt.committed");
    Ok(())
}
