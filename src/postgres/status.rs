//! Where things stand: positions with owners and outcomes, and what slows the sink down. Reads only, no locks.

use tokio_postgres::types::Type;
use tokio_postgres::{Client, Error};
use uuid::Uuid;

use super::wire::Moment;
use crate::core::event::Micros;

/// A live position, as the workers of its topic look at each other's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// Its topic's source row.
    pub source_id: i16,
    /// Partition.
    pub partition: i32,
    /// Next offset to read.
    pub next: i64,
    /// Epoch of the newest claim.
    pub epoch: i64,
    /// Source time reached.
    pub source_at: Option<Micros>,
    /// Worker of the newest claim.
    pub worker: Option<String>,
}

/// The live positions of some topics.
///
/// # Errors
/// When the query fails.
pub async fn places(client: &Client, sources: &[i16]) -> Result<Vec<Place>, Error> {
    let rows = client
        .query_typed(
            "SELECT p.source_id, p.partition, p.next, p.epoch, p.source_at, c.worker FROM afterimage.position p \
             LEFT JOIN afterimage.claim c ON c.position_id = p.position_id AND c.epoch = p.epoch \
             WHERE p.live AND p.source_id = ANY($1)",
            &[(&sources, Type::INT2_ARRAY)],
        )
        .await?;
    rows.iter()
        .map(|row| {
            let source_at: Option<Moment> = row.try_get(4)?;
            Ok(Place {
                source_id: row.try_get(0)?,
                partition: row.try_get(1)?,
                next: row.try_get(2)?,
                epoch: row.try_get(3)?,
                source_at: source_at.map(|at| at.0),
                worker: row.try_get(5)?,
            })
        })
        .collect()
}

/// The workers that live: those with a session in this database, and those behind a pooler that were seen of late.
///
/// # Errors
/// When the query fails.
pub async fn workers(client: &Client) -> Result<Vec<String>, Error> {
    let rows = client
        .query_typed(
            "SELECT substr(application_name, length('afterimage/') + 1) FROM pg_stat_activity \
             WHERE datname = current_database() AND application_name LIKE 'afterimage/%' \
             UNION SELECT worker FROM afterimage.worker WHERE seen_at > clock_timestamp() - interval '10 seconds'",
            &[],
        )
        .await?;
    rows.iter().map(|row| row.try_get(0)).collect()
}

/// A worker behind a pooler shows that this process of it lives: for the ten seconds that follow. What was seen last a
/// day ago is forgotten.
///
/// # Errors
/// When a statement fails.
pub async fn show_alive(client: &Client, worker: &str, process: Uuid) -> Result<(), Error> {
    let shown = client
        .execute_typed(
            "UPDATE afterimage.worker SET seen_at = clock_timestamp() WHERE worker = $1 AND process = $2",
            &[(&worker, Type::TEXT), (&process, Type::UUID)],
        )
        .await?;
    if shown == 0 {
        client
            .execute_typed(
                "INSERT INTO afterimage.worker (worker, process, seen_at) VALUES ($1, $2, clock_timestamp()) ON CONFLICT DO NOTHING",
                &[(&worker, Type::TEXT), (&process, Type::UUID)],
            )
            .await?;
        client
            .execute_typed("DELETE FROM afterimage.worker WHERE seen_at < clock_timestamp() - interval '1 day'", &[])
            .await?;
    }
    Ok(())
}

/// The process ends, and is not waited for.
///
/// # Errors
/// When the statement fails.
pub async fn show_gone(client: &Client, worker: &str, process: Uuid) -> Result<(), Error> {
    let query = "DELETE FROM afterimage.worker WHERE worker = $1 AND process = $2";
    client.execute_typed(query, &[(&worker, Type::TEXT), (&process, Type::UUID)]).await?;
    Ok(())
}

/// How many sessions in this database, this one left out, are of a worker of this name; processes, behind a pooler.
///
/// # Errors
/// When the query fails.
pub async fn namesakes(client: &Client, worker: &str) -> Result<i64, Error> {
    let rows = client
        .query_typed(
            "SELECT (SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() \
                       AND pid <> pg_backend_pid() AND application_name = 'afterimage/' || $1) \
                  + (SELECT count(*) FROM afterimage.worker \
                     WHERE worker = $1 AND seen_at > clock_timestamp() - interval '10 seconds')",
            &[(&worker, Type::TEXT)],
        )
        .await?;
    rows.first().map_or(Ok(0), |row| row.try_get(0))
}

/// Age in seconds of the oldest snapshot that this role may see in this database, sessions and prepared transactions:
/// as long as it is there, every update of a position leaves a dead row that each later one steps over.
///
/// # Errors
/// When the query fails.
pub async fn oldest_snapshot_seconds(client: &Client) -> Result<f64, Error> {
    let row = client
        .query_typed(
            "SELECT coalesce(extract(epoch FROM clock_timestamp() - least( \
               (SELECT min(xact_start) FROM pg_stat_activity \
                WHERE backend_xmin IS NOT NULL AND datname = current_database() AND pid <> pg_backend_pid()), \
               (SELECT min(prepared) FROM pg_prepared_xacts WHERE database = current_database()))), 0)::float8",
            &[],
        )
        .await?;
    let seconds: f64 = row.first().map_or(Ok(0.0), |row| row.try_get(0))?;
    Ok(seconds.max(0.0))
}

/// One partition as `afterimage status` shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PartitionStatus {
    /// Org.
    pub org: String,
    /// Object.
    pub object: String,
    /// Topic.
    pub topic: String,
    /// Partition.
    pub partition: i32,
    /// Worker of the newest claim.
    pub worker: Option<String>,
    /// Whether that worker lives: see [`workers`].
    pub worker_seen: bool,
    /// How often the partition was claimed.
    pub epoch: i64,
    /// Where reading began.
    pub first: i64,
    /// Next offset to read.
    pub next: i64,
    /// Source time reached.
    pub source_at: Option<Micros>,
    /// When the position last moved.
    pub committed_at: Option<Micros>,
    /// The sink's clock.
    pub now: Micros,
    /// Since when it is halted, and why.
    pub halt: Option<(Micros, String)>,
    /// What became of the messages, in the order of [`OUTCOMES`].
    pub outcomes: [i64; OUTCOMES.len()],
}

/// The outcomes of [`PartitionStatus::outcomes`]: they add up to `next - first`.
pub const OUTCOMES: [&str; 13] = [
    "delta",
    "baseline",
    "noop",
    "duplicate",
    "stale",
    "tombstone",
    "ignored",
    "pending",
    "dead_letter",
    "delete_unknown",
    "forgotten",
    "hole",
    "gap",
];

/// Whether the worker of the claim `c` lives: it has a session, or, behind a pooler, was seen a moment ago.
pub(super) const LIVES: &str = "\
(EXISTS (SELECT FROM pg_stat_activity a WHERE a.datname = current_database() \
         AND a.application_name = 'afterimage/' || c.worker) \
 OR EXISTS (SELECT FROM afterimage.worker w WHERE w.worker = c.worker \
            AND w.seen_at > clock_timestamp() - interval '10 seconds'))";

/// All live partitions, of one org or object if named, by org, object, topic, partition.
///
/// # Errors
/// When the query fails.
pub async fn partitions(
    client: &Client,
    org: Option<&str>,
    object: Option<&str>,
) -> Result<Vec<PartitionStatus>, Error> {
    let rows = client
        .query_typed(
            &format!("SELECT coalesce(o.name, ''), coalesce(b.name, ''), coalesce(s.topic, s.name), p.partition, c.worker, \
               {LIVES}, \
               p.epoch, p.first_next, p.next, p.source_at, p.committed_at, clock_timestamp(), \
               ARRAY[p.c_delta, p.c_baseline, p.c_noop + p.c_noop_status + p.c_noop_system, p.c_duplicate, p.c_stale, \
                     p.c_tombstone, p.c_ignored, p.c_pending, p.c_dead, p.c_delete_unknown, p.c_forgotten, p.c_hole, p.c_gap], \
               p.halted_at, p.halt \
             FROM afterimage.position p \
             JOIN afterimage.source s ON s.source_id = p.source_id \
             LEFT JOIN afterimage.org o ON o.org_id = s.org_id \
             LEFT JOIN afterimage.object b ON b.object_id = s.object_id \
             LEFT JOIN afterimage.claim c ON c.position_id = p.position_id AND c.epoch = p.epoch \
             WHERE p.live AND s.kind = 'kafka' AND ($1::text IS NULL OR o.name = $1) AND ($2::text IS NULL OR b.name = $2) \
             ORDER BY o.name, b.name, s.topic, p.partition"),
            &[(&org, Type::TEXT), (&object, Type::TEXT)],
        )
        .await?;
    rows.iter()
        .map(|row| {
            let (source_at, committed_at): (Option<Moment>, Option<Moment>) = (row.try_get(9)?, row.try_get(10)?);
            let now: Moment = row.try_get(11)?;
            let counts: Vec<i64> = row.try_get(12)?;
            let (halted_at, halt): (Option<Moment>, Option<String>) = (row.try_get(13)?, row.try_get(14)?);
            let mut outcomes = [0; OUTCOMES.len()];
            outcomes.iter_mut().zip(counts).for_each(|(to, from)| *to = from);
            Ok(PartitionStatus {
                org: row.try_get(0)?,
                object: row.try_get(1)?,
                topic: row.try_get(2)?,
                partition: row.try_get(3)?,
                worker: row.try_get(4)?,
                worker_seen: row.try_get(5)?,
                epoch: row.try_get(6)?,
                first: row.try_get(7)?,
                next: row.try_get(8)?,
                source_at: source_at.map(|at| at.0),
                committed_at: committed_at.map(|at| at.0),
                now: now.0,
                halt: halted_at.map(|at| (at.0, halt.unwrap_or_default())),
                outcomes,
            })
        })
        .collect()
}
