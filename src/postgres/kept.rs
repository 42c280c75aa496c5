//! Events that are kept whole: late ones, and the anchors that they are placed by.

use std::pin::pin;

use bytes::Bytes;
use tokio_postgres::Transaction;
use tokio_postgres::binary_copy::BinaryCopyInWriter;
use tokio_postgres::types::{ToSql, Type};

use super::commit::CommitError;
use super::wire::Moment;
use crate::core::batch::{KeptRow, SealedBatch};

const COLUMNS: [(&str, Type); 9] = [
    ("position_id", Type::INT4),
    ("\"offset\"", Type::INT8),
    ("rid", Type::INT4),
    ("op", Type::CHAR),
    ("row_key", Type::BYTEA),
    ("lsn", Type::INT8),
    ("at", Type::TIMESTAMPTZ),
    ("d", Type::BYTEA),
    ("recorded_at", Type::TIMESTAMPTZ),
];

/// Appends what these batches keep.
pub(super) async fn append(transaction: &Transaction<'_>, batches: &[&SealedBatch]) -> Result<(), CommitError> {
    let late = batches.iter().flat_map(|batch| &batch.late).map(|late| (&late.event, Some(late.reason)));
    copy(transaction, "late_event", late).await?;
    let anchors = batches.iter().flat_map(|batch| &batch.anchors).map(|anchor| (anchor, None));
    copy(transaction, "anchor", anchors).await
}

/// A late event comes with its reason, an anchor without: all of a table have one, or none has.
async fn copy<'r>(
    transaction: &Transaction<'_>,
    table: &'static str,
    rows: impl Iterator<Item = (&'r KeptRow, Option<&'static str>)>,
) -> Result<(), CommitError> {
    let mut rows = rows.peekable();
    let Some((_, reason)) = rows.peek() else { return Ok(()) };
    let mut columns: Vec<&str> = COLUMNS.iter().map(|(name, _)| *name).collect();
    let mut types: Vec<Type> = COLUMNS.iter().map(|(_, kind)| kind.clone()).collect();
    let (column, kind) = if reason.is_some() { ("reason", Type::TEXT) } else { ("moved", Type::BOOL) };
    columns.push(column);
    types.push(kind);
    let statement = format!("COPY afterimage.{table} ({}) FROM STDIN (FORMAT binary)", columns.join(", "));
    let sink = transaction.copy_in::<_, Bytes>(statement.as_str()).await?;
    let mut writer = pin!(BinaryCopyInWriter::new(sink, &types));
    for (kept, reason) in rows {
        let (op, lsn) = (kept.op.letter() as u8 as i8, kept.lsn as i64);
        let (at, recorded, key) = (Moment(kept.at), Moment(kept.recorded), kept.row_key.as_bytes());
        let mut row: Vec<&(dyn ToSql + Sync)> =
            vec![&kept.position_id, &kept.offset, &kept.rid, &op, &key, &lsn, &at, &kept.d, &recorded];
        match &reason {
            Some(reason) => row.push(reason),
            None => row.push(&kept.moved),
        }
        writer.as_mut().write(&row).await?;
    }
    writer.finish().await?;
    Ok(())
}
