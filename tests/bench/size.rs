//! What the history takes in PostgreSQL, table by table.

use serde::Serialize;
use tokio_postgres::Client;

/// Bytes after `VACUUM`, visibility and free space maps included.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub struct Sizes {
    /// Deltas without their indexes.
    pub deltas: i64,
    /// Their indexes.
    pub delta_indexes: i64,
    /// Keyframes with indexes: the first image of each record, and one for every 64 versions.
    pub keyframes: i64,
    /// Share of the keyframes' bytes that are first images.
    pub first_images: f64,
    /// Registry of the records, with indexes.
    pub registry: i64,
    /// All else in the schema: positions, dictionaries, claims.
    pub rest: i64,
}

/// Vacuums, then measures.
pub async fn measure(database: &Client) -> Sizes {
    database.batch_execute("vacuum analyze").await.unwrap();
    let query = "
        with delta as (
          select coalesce(sum(pg_table_size(relid)), 0)::bigint as own, coalesce(sum(pg_indexes_size(relid)), 0)::bigint as indexes
          from pg_partition_tree('afterimage.delta') where isleaf),
        frames as (
          select coalesce(sum(pg_column_size(d)) filter (where kf = 0), 0)::float8 as first, greatest(sum(pg_column_size(d)), 1)::float8 as all
          from afterimage.keyframe),
        whole as (
          select coalesce(sum(pg_total_relation_size(c.oid)), 0)::bigint as bytes
          from pg_class c where c.relnamespace = 'afterimage'::regnamespace and c.relkind = 'r'),
        named as (
          select pg_total_relation_size('afterimage.keyframe') as keyframes, pg_total_relation_size('afterimage.record') as registry)
        select own, indexes, keyframes, coalesce(first / frames.all, 1), registry, whole.bytes - own - indexes - keyframes - registry
        from delta, frames, whole, named";
    let row = database.query_one(query, &[]).await.unwrap();
    Sizes {
        deltas: row.get(0),
        delta_indexes: row.get(1),
        keyframes: row.get(2),
        first_images: row.get(3),
        registry: row.get(4),
        rest: row.get(5),
    }
}
