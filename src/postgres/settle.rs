//! The part of a commit that changes rows in place: cancelled deletes, the registry, keys, pending rows.

use tokio_postgres::Transaction;
use tokio_postgres::types::Type;

use super::commit::{CommitError, Committed, history};
use super::wire::Moment;
use crate::core::batch::{RegistryChange, Resolved, SealedBatch};
use crate::core::format::{self, Header, VersionOp};

/// Everything that changes rows in place, sorted by key.
pub(super) async fn settle(transaction: &Transaction<'_>, batch: &SealedBatch) -> Result<(), CommitError> {
    for cancel in &batch.cancels {
        let n = i32::from(cancel.n);
        let gone = transaction
            .execute_typed(
                "DELETE FROM afterimage.delta WHERE rid = $1 AND kf = $2 AND at = $3 AND get_byte(d, 1) & 63 = $4 \
                 AND get_byte(d, 0) & 7 = 4",
                &[
                    (&cancel.rid, Type::INT4),
                    (&cancel.kf, Type::INT4),
                    (&Moment(cancel.at), Type::TIMESTAMPTZ),
                    (&n, Type::INT4),
                ],
            )
            .await?;
        if gone != 1 {
            let reason = format!("the delete to be taken back is not there ({gone} rows)");
            return Err(CommitError::Rewind { reason, known: Committed::default() });
        }
        if cancel.with_keyframe {
            transaction
                .execute_typed(
                    "DELETE FROM afterimage.keyframe WHERE rid = $1 AND kf = $2",
                    &[(&cancel.rid, Type::INT4), (&cancel.kf, Type::INT4)],
                )
                .await?;
        }
    }
    history(transaction, "delta", batch.deltas_after.iter()).await?;
    history(transaction, "keyframe", batch.keyframes_after.iter()).await?;
    registry(transaction, &batch.registry).await?;
    lookups(transaction, batch).await?;
    keys(transaction, batch).await?;
    resolve(transaction, &batch.resolved).await
}

/// Dead letters that were retried. One that somebody else has settled meanwhile is not brought in a second time.
async fn resolve(transaction: &Transaction<'_>, resolved: &[Resolved]) -> Result<(), CommitError> {
    if resolved.is_empty() {
        return Ok(());
    }
    let positions: Vec<i32> = resolved.iter().map(|one| one.position_id).collect();
    let offsets: Vec<i64> = resolved.iter().map(|one| one.offset).collect();
    let outcomes: Vec<&str> = resolved.iter().map(|one| one.outcome).collect();
    let done = transaction
        .execute_typed(
            "UPDATE afterimage.dead_letter d SET resolved_at = clock_timestamp(), outcome = r.outcome \
             FROM unnest($1::int[], $2::bigint[], $3::text[]) AS r(position_id, \"offset\", outcome) \
             WHERE d.position_id = r.position_id AND d.\"offset\" = r.\"offset\" AND d.resolved_at IS NULL",
            &[(&positions, Type::INT4_ARRAY), (&offsets, Type::INT8_ARRAY), (&outcomes, Type::TEXT_ARRAY)],
        )
        .await?;
    if done != resolved.len() as u64 {
        let reason = "dead letters were settled by somebody else meanwhile".to_string();
        return Err(CommitError::Rewind { reason, known: Committed::default() });
    }
    Ok(())
}

/// Values of lookup fields. One that a record had before is there already.
pub(super) async fn lookups(transaction: &Transaction<'_>, batch: &SealedBatch) -> Result<(), CommitError> {
    if batch.lookups.is_empty() {
        return Ok(());
    }
    let fields: Vec<i16> = batch.lookups.iter().map(|one| one.field_no).collect();
    let values: Vec<&str> = batch.lookups.iter().map(|one| &*one.value).collect();
    let rids: Vec<i32> = batch.lookups.iter().map(|one| one.rid).collect();
    transaction
        .execute_typed(
            "INSERT INTO afterimage.record_lookup (object_id, field_no, value, rid) \
             SELECT $1, l.field_no, l.value, l.rid \
             FROM unnest($2::smallint[], $3::text[], $4::int[]) WITH ORDINALITY AS l(field_no, value, rid, n) ORDER BY l.n \
             ON CONFLICT DO NOTHING",
            &[
                (&batch.object_id, Type::INT2),
                (&fields, Type::INT2_ARRAY),
                (&values, Type::TEXT_ARRAY),
                (&rids, Type::INT4_ARRAY),
            ],
        )
        .await?;
    Ok(())
}

async fn registry(transaction: &Transaction<'_>, changes: &[RegistryChange]) -> Result<(), CommitError> {
    if changes.is_empty() {
        return Ok(());
    }
    let rids: Vec<i32> = changes.iter().map(|change| change.rid).collect();
    let keys: Vec<Option<&[u8]>> = changes.iter().map(|change| change.row_key.as_deref().map(str::as_bytes)).collect();
    let lsns: Vec<i64> = changes.iter().map(|change| change.floor.lsn as i64).collect();
    let tss: Vec<Option<Moment>> = changes.iter().map(|change| change.floor.ts.map(Moment)).collect();
    let unshown: Vec<Option<Vec<u8>>> = changes.iter().map(|change| change.unshown.to_bytes()).collect();
    transaction
        .query_typed(
            "SELECT 1 FROM afterimage.record WHERE rid = ANY($1) ORDER BY rid FOR NO KEY UPDATE",
            &[(&rids, Type::INT4_ARRAY)],
        )
        .await?;
    transaction
        .execute_typed(
            "UPDATE afterimage.record r \
             SET row_key = c.row_key, floor_lsn = c.floor_lsn, floor_ts = c.floor_ts, unshown = c.unshown \
             FROM unnest($1::int[], $2::bytea[], $3::bigint[], $4::timestamptz[], $5::bytea[]) \
               AS c(rid, row_key, floor_lsn, floor_ts, unshown) \
             WHERE r.rid = c.rid",
            &[
                (&rids, Type::INT4_ARRAY),
                (&keys, Type::BYTEA_ARRAY),
                (&lsns, Type::INT8_ARRAY),
                (&tss, Type::TIMESTAMPTZ_ARRAY),
                (&unshown, Type::BYTEA_ARRAY),
            ],
        )
        .await?;
    Ok(())
}

async fn keys(transaction: &Transaction<'_>, batch: &SealedBatch) -> Result<(), CommitError> {
    if batch.keys.is_empty() {
        return Ok(());
    }
    let all: Vec<&[u8]> = batch.keys.iter().map(|change| change.key.as_bytes()).collect();
    let old: Vec<_> =
        batch.keys.iter().filter_map(|change| Some((change.key.as_bytes(), change.old.as_ref()?))).collect();
    let gone: Vec<&[u8]> =
        batch.keys.iter().filter(|change| change.old.is_none()).map(|change| change.key.as_bytes()).collect();
    transaction
        .execute_typed(
            "DELETE FROM afterimage.old_key WHERE object_id = $1 AND row_key = ANY($2)",
            &[(&batch.object_id, Type::INT2), (&gone, Type::BYTEA_ARRAY)],
        )
        .await?;
    if !old.is_empty() {
        let keys: Vec<&[u8]> = old.iter().map(|(key, _)| *key).collect();
        let rids: Vec<i32> = old.iter().map(|(_, old)| old.rid).collect();
        let lsns: Vec<i64> = old.iter().map(|(_, old)| old.lsn as i64).collect();
        let tss: Vec<Option<Moment>> = old.iter().map(|(_, old)| old.ts.map(Moment)).collect();
        transaction
            .execute_typed(
                "INSERT INTO afterimage.old_key (object_id, row_key, rid, lsn, ts) \
                 SELECT $1, o.row_key, o.rid, o.lsn, o.ts \
                 FROM unnest($2::bytea[], $3::int[], $4::bigint[], $5::timestamptz[]) AS o(row_key, rid, lsn, ts) \
                 ON CONFLICT (object_id, row_key) DO UPDATE SET rid = excluded.rid, lsn = excluded.lsn, ts = excluded.ts",
                &[
                    (&batch.object_id, Type::INT2),
                    (&keys, Type::BYTEA_ARRAY),
                    (&rids, Type::INT4_ARRAY),
                    (&lsns, Type::INT8_ARRAY),
                    (&tss, Type::TIMESTAMPTZ_ARRAY),
                ],
            )
            .await?;
    }
    transaction
        .execute_typed(
            "DELETE FROM afterimage.pending WHERE source_id = $1 AND row_key = ANY($2)",
            &[(&batch.source_id, Type::INT2), (&all, Type::BYTEA_ARRAY)],
        )
        .await?;
    let mut ds = Vec::new();
    let (mut keys, mut ns, mut ats) = (Vec::new(), Vec::new(), Vec::new());
    for change in &batch.keys {
        for row in &change.pending {
            let header = Header {
                op: VersionOp::Create,
                n: 0,
                local: row.local,
                no_source_time: false,
                raw_at: None,
                stamp: row.stamp,
                modified_is_stamp: false,
                position_id: row.position_id,
                offset: row.offset,
                lsn: row.lsn,
                recorded: row.at,
            };
            ds.push(format::encode(row.at, &header, None, &row.fields));
            keys.push(change.key.as_bytes());
            ns.push(row.n);
            ats.push(Moment(row.at));
        }
    }
    if !keys.is_empty() {
        transaction
            .execute_typed(
                "INSERT INTO afterimage.pending (source_id, row_key, n, at, d) \
                 SELECT $1, p.row_key, p.n, p.at, p.d \
                 FROM unnest($2::bytea[], $3::smallint[], $4::timestamptz[], $5::bytea[]) AS p(row_key, n, at, d)",
                &[
                    (&batch.source_id, Type::INT2),
                    (&keys, Type::BYTEA_ARRAY),
                    (&ns, Type::INT2_ARRAY),
                    (&ats, Type::TIMESTAMPTZ_ARRAY),
                    (&ds, Type::BYTEA_ARRAY),
                ],
            )
            .await?;
    }
    Ok(())
}
