//! Read-through: what Postgres knows of records and keys, folded into the form that events are judged against.

use std::collections::HashMap;

use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{Client, Row, Transaction};

use super::wire::Moment;
use crate::core::event::{FieldNo, Micros};
use crate::core::fold;
use crate::core::format;
use crate::core::judge::ObjectFacts;
use crate::core::overlay::{Found, KeySlot, OldKey, PendingRow};
use crate::core::record::{CHAIN, Floor, Record};
use crate::core::unshown::Unshown;

/// What Postgres holds cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum LookupError {
    /// The query failed.
    #[error("lookup in the sink failed: {}", super::client::describe(.0))]
    Query(#[from] tokio_postgres::Error),
    /// A stored row is not in the form that this version writes.
    #[error("record {rid}: its stored history cannot be read: {reason}")]
    Stored {
        /// Which record.
        rid: i32,
        /// What is wrong.
        reason: String,
    },
}

/// Look-ups are small and by index, whatever the planner believes of tables that grew since they were last analysed:
/// one scan of a registry of millions for a thousand keys would stop the stream. `OFFSET 0` in the queries below keeps
/// the planner from turning a join around, which without statistics it does: every record once for every key.
/// And bounded, as every question to the sink is: another worker, frozen in the middle of registering the same records, would
/// hold this one up for as long as it stays so.
const BY_INDEX: &str = "\
SET LOCAL statement_timeout = '30s'; SET LOCAL lock_timeout = '2s'; SET LOCAL idle_in_transaction_session_timeout = '5s'; \
SET LOCAL enable_seqscan = off; SET LOCAL enable_bitmapscan = off; SET LOCAL enable_hashjoin = off; \
SET LOCAL enable_mergejoin = off";

// Without ORDER BY in the aggregates, which would set up two sorts for each record: `record` sorts.
const RECORDS: &str = "
SELECT r.sfid, r.rid, r.home, r.row_key, r.floor_lsn, r.floor_ts, k.kf, k.at, k.d, c.ats, c.ds, o.row_key, h.inval_seq, r.unshown
FROM unnest($2::text[]) AS wanted(sfid)
CROSS JOIN LATERAL (SELECT * FROM afterimage.record WHERE object_id = $1 AND sfid = wanted.sfid OFFSET 0) r
LEFT JOIN LATERAL (
  SELECT kf, at, d FROM afterimage.keyframe WHERE rid = r.rid ORDER BY kf DESC LIMIT 1) k ON true
LEFT JOIN LATERAL (
  SELECT array_agg(x.at) AS ats, array_agg(x.d) AS ds FROM afterimage.delta x WHERE x.rid = r.rid AND x.kf = k.kf) c ON true
LEFT JOIN LATERAL (
  SELECT row_key FROM afterimage.old_key
  WHERE r.row_key IS NULL AND object_id = $1 AND rid = r.rid ORDER BY ts DESC NULLS LAST, lsn DESC LIMIT 1) o ON true
LEFT JOIN LATERAL (SELECT inval_seq FROM afterimage.position WHERE position_id = r.home OFFSET 0) h ON true";

/// One row for an owner, for a previous owner, for each pending row: what applies to the key.
const KEYS: &str = "
SELECT 'owner', wanted.key, r.sfid, r.rid, null::bigint, null::timestamptz, null::smallint, null::bytea
FROM unnest($2::bytea[]) AS wanted(key)
CROSS JOIN LATERAL (
  SELECT o.sfid, o.rid FROM afterimage.record o WHERE o.object_id = $1 AND o.row_key = wanted.key
    AND EXISTS (SELECT 1 FROM afterimage.keyframe f WHERE f.rid = o.rid AND f.kf = 0) OFFSET 0) r
UNION ALL
SELECT 'old', wanted.key, r.sfid, k.rid, k.lsn, k.ts, null, null
FROM unnest($2::bytea[]) AS wanted(key)
CROSS JOIN LATERAL (SELECT * FROM afterimage.old_key WHERE object_id = $1 AND row_key = wanted.key OFFSET 0) k
CROSS JOIN LATERAL (SELECT sfid FROM afterimage.record WHERE rid = k.rid OFFSET 0) r
UNION ALL
SELECT 'pending', wanted.key, null, null, null, p.at, p.n, p.d
FROM unnest($2::bytea[]) AS wanted(key)
CROSS JOIN LATERAL (SELECT * FROM afterimage.pending WHERE source_id = $3 AND row_key = wanted.key OFFSET 0) p";

const REGISTER: &str = "
INSERT INTO afterimage.record (object_id, sfid, home, row_key)
SELECT $1, n.sfid, n.home, n.row_key
FROM unnest($2::text[], $3::int[], $4::bytea[]) AS n(sfid, home, row_key)
WHERE NOT EXISTS (SELECT 1 FROM afterimage.record r WHERE r.object_id = $1 AND r.sfid = n.sfid OFFSET 0)
ORDER BY n.sfid COLLATE \"C\"
ON CONFLICT DO NOTHING";

/// A record to be given a registry number: identity, the position that saw it first, its key there.
pub type Newcomer = (Box<str>, i32, Box<str>);

/// Registers records that Postgres does not know, in a statement of its own before the batch: inside the
/// batch, two tasks in opposite order would deadlock. A number without history is harmless.
///
/// # Errors
/// When the statement fails.
pub async fn register(client: &mut Client, object_id: i16, newcomers: &mut [Newcomer]) -> Result<(), LookupError> {
    newcomers.sort();
    let sfids: Vec<&str> = newcomers.iter().map(|(sfid, _, _)| &**sfid).collect();
    let homes: Vec<i32> = newcomers.iter().map(|(_, home, _)| *home).collect();
    let keys: Vec<&[u8]> = newcomers.iter().map(|(_, _, key)| key.as_bytes()).collect();
    let transaction = by_index(client).await?;
    // Waited for on disk: a number that a crash of the server took back would be given to another record, and the batch
    // in hand, which outlives the server, would write this one's history there.
    transaction.batch_execute("SET LOCAL synchronous_commit = on").await?;
    transaction
        .query_typed(
            REGISTER,
            &[
                (&object_id, Type::INT2),
                (&sfids, Type::TEXT_ARRAY),
                (&homes, Type::INT4_ARRAY),
                (&keys, Type::BYTEA_ARRAY),
            ],
        )
        .await?;
    transaction.commit().await?;
    failpoint!("lookup.registered");
    Ok(())
}

async fn by_index(client: &mut Client) -> Result<Transaction<'_>, LookupError> {
    let transaction = client.transaction().await?;
    transaction.batch_execute(BY_INDEX).await?;
    Ok(transaction)
}

/// The records of these identities as Postgres has them; unknown ones are missing from the answer.
///
/// # Errors
/// When the query fails or a stored row cannot be read.
pub async fn records(
    client: &mut Client,
    object: &ObjectFacts,
    identities: &[&str],
) -> Result<Vec<(Box<str>, Found)>, LookupError> {
    let transaction = by_index(client).await?;
    let wanted: &[(&(dyn ToSql + Sync), Type)] = &[(&object.object_id, Type::INT2), (&identities, Type::TEXT_ARRAY)];
    let rows = transaction.query_typed(RECORDS, wanted).await?;
    transaction.commit().await?;
    rows.iter().map(|row| found(object, row)).collect()
}

fn found(object: &ObjectFacts, row: &Row) -> Result<(Box<str>, Found), LookupError> {
    let identity: &str = row.try_get(0)?;
    let keyframe = match row.try_get::<_, Option<i32>>(6)? {
        Some(kf) => Some((kf, row.try_get(7)?, row.try_get(8)?)),
        None => None,
    };
    let ats: Option<Vec<Moment>> = row.try_get(9)?;
    let ds: Option<Vec<&[u8]>> = row.try_get(10)?;
    let stored = Stored {
        rid: row.try_get(1)?,
        home: row.try_get(2)?,
        row_key: row.try_get(3)?,
        floor_lsn: row.try_get(4)?,
        floor_ts: row.try_get(5)?,
        keyframe,
        chain: ats.unwrap_or_default().into_iter().zip(ds.unwrap_or_default()).collect(),
        old_key: row.try_get(11)?,
        unshown: row.try_get(13)?,
    };
    Ok((identity.into(), Found { record: stored.fold(object)?, inval_seq: row.try_get(12)? }))
}

/// What the tables hold of one record, as far as its last state needs it.
pub(super) struct Stored<'a> {
    pub rid: i32,
    pub home: Option<i32>,
    pub row_key: Option<&'a [u8]>,
    pub floor_lsn: i64,
    pub floor_ts: Option<Moment>,
    /// The newest: its chain, its moment, its row.
    pub keyframe: Option<(i32, Moment, &'a [u8])>,
    /// The deltas of that chain, in any order.
    pub chain: Vec<(Moment, &'a [u8])>,
    /// The key it held last, of a record that holds none.
    pub old_key: Option<&'a [u8]>,
    pub unshown: Option<&'a [u8]>,
}

impl Stored<'_> {
    /// The record's last state.
    pub fn fold(mut self, object: &ObjectFacts) -> Result<Record, LookupError> {
        let rid = self.rid;
        let unreadable = |reason: String| LookupError::Stored { rid, reason };
        let mut record = Record::registered(rid, self.home, key_text(rid, self.row_key)?);
        record.deleted_key = key_text(rid, self.old_key)?;
        record.floor = Floor { lsn: self.floor_lsn as u64, ts: self.floor_ts.map(|at| at.0) };
        record.unshown = Unshown::from_bytes(self.unshown);
        let Some((kf, at, d)) = self.keyframe else { return Ok(record) };
        let shown = if kf == 0 { 0 } else { kf as u32 * CHAIN - 1 };
        fold::step(object, &mut record, shown, at.0, d).map_err(|error| unreadable(error.to_string()))?;
        let n = |d: &[u8]| d.get(1).map_or(0, |n| n & 63);
        self.chain.sort_by_key(|(_, d)| n(d));
        for (at, d) in self.chain {
            let seq = kf as u32 * CHAIN + u32::from(n(d));
            fold::step(object, &mut record, seq, at.0, d).map_err(|error| unreadable(error.to_string()))?;
        }
        if !record.is_deleted() {
            // It lost its key to another row, or never had one: no delete was seen under what the query found.
            record.deleted_key = None;
        }
        Ok(record)
    }
}

fn key_text(rid: i32, key: Option<&[u8]>) -> Result<Option<Box<str>>, LookupError> {
    key.map(|key| std::str::from_utf8(key).map(Into::into))
        .transpose()
        .map_err(|_| LookupError::Stored { rid, reason: "its key is not UTF-8".into() })
}

/// Owner, previous owner and pending rows of these keys; every key is answered.
///
/// # Errors
/// When the query fails or a stored row cannot be read.
pub async fn keys(
    client: &mut Client,
    object: &ObjectFacts,
    source_id: i16,
    keys: &[&str],
) -> Result<Vec<(Box<str>, KeySlot)>, LookupError> {
    let raw: Vec<&[u8]> = keys.iter().map(|key| key.as_bytes()).collect();
    let transaction = by_index(client).await?;
    let rows = transaction
        .query_typed(KEYS, &[(&object.object_id, Type::INT2), (&raw, Type::BYTEA_ARRAY), (&source_id, Type::INT2)])
        .await?;
    transaction.commit().await?;
    let mut found: HashMap<Box<str>, KeySlot> = HashMap::with_capacity(rows.len());
    for row in &rows {
        let key = key_text(0, row.try_get(1)?)?.unwrap_or_default();
        let slot = found.entry(key).or_default();
        let identity: Option<&str> = row.try_get(2)?;
        let at = row.try_get::<_, Option<Moment>>(5)?.map(|at| at.0);
        match (row.try_get(0)?, identity) {
            ("owner", owner) => slot.owner = owner.map(Into::into),
            ("old", Some(identity)) => {
                let lsn = row.try_get::<_, Option<i64>>(4)?.unwrap_or(0) as u64;
                slot.old = Some(OldKey { identity: identity.into(), rid: row.try_get(3)?, lsn, ts: at });
            }
            _ => slot.pending.push(pending(object, row, at.unwrap_or_default())?),
        }
    }
    for slot in found.values_mut() {
        slot.pending.sort_by_key(|row| row.n);
    }
    Ok(keys.iter().map(|key| ((*key).into(), found.remove(*key).unwrap_or_default())).collect())
}

fn pending(object: &ObjectFacts, row: &Row, at: Micros) -> Result<PendingRow, LookupError> {
    let d: &[u8] = row.try_get(7)?;
    let (header, fields) = format::decode(at, d, object.stamp_no)
        .map_err(|error| LookupError::Stored { rid: 0, reason: format!("a pending row: {error}") })?;
    Ok(PendingRow {
        n: row.try_get(6)?,
        at,
        lsn: header.lsn,
        position_id: header.position_id,
        offset: header.offset,
        local: header.local,
        stamp: header.stamp,
        fields: fields.into_iter().filter(|(no, _)| !is_system(object, *no)).collect(),
    })
}

fn is_system(object: &ObjectFacts, no: FieldNo) -> bool {
    [object.stamp_no, object.modified_no, object.modified_by_no].contains(&Some(no))
}
