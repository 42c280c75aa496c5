//! Dead letters, for a person: look at them, drop them, mark them as retried.

use tokio_postgres::Client;
use tokio_postgres::types::{ToSql, Type};

use super::wire::Moment;
use crate::core::event::Micros;
use crate::core::position::PositionId;

/// Which dead letters.
#[derive(Debug, Clone, Default)]
pub struct Letters {
    /// Of this org.
    pub org: Option<String>,
    /// Of this object.
    pub object: Option<String>,
    /// Of this topic.
    pub topic: Option<String>,
    /// Of this partition.
    pub partition: Option<i32>,
    /// At this offset.
    pub offset: Option<i64>,
    /// Put aside for this reason.
    pub reason: Option<String>,
    /// Resolved ones, too.
    pub resolved: bool,
}

/// A dead letter, without its bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Letter {
    /// Org.
    pub org: String,
    /// Object.
    pub object: String,
    /// Topic.
    pub topic: String,
    /// Partition.
    pub partition: i32,
    /// Which life of the topic.
    pub incarnation: i32,
    /// Its position.
    pub position_id: PositionId,
    /// Its offset.
    pub offset: i64,
    /// When it was put aside.
    pub at: Micros,
    /// Why, in a word or two.
    pub reason: String,
    /// Where in the message; never a value.
    pub detail: Option<String>,
    /// Record id, if it could be read.
    pub sfid: Option<String>,
    /// Bytes of its key; `None` = null.
    pub key_bytes: Option<i32>,
    /// Bytes of its value that are kept; `None` = null.
    pub value_bytes: Option<i32>,
    /// The value was longer and was cut: it can't be retried.
    pub cut: bool,
    /// When it was dropped or retried, and what became of it.
    pub resolved: Option<(Micros, String)>,
}

const FROM: &str = "
FROM afterimage.dead_letter l
JOIN afterimage.position p ON p.position_id = l.position_id
JOIN afterimage.source s ON s.source_id = p.source_id
LEFT JOIN afterimage.org o ON o.org_id = s.org_id
LEFT JOIN afterimage.object b ON b.object_id = coalesce(l.object_id, s.object_id)
WHERE ($1::text IS NULL OR o.name = $1) AND ($2::text IS NULL OR b.name = $2) AND ($3::text IS NULL OR s.topic = $3)
  AND ($4::int IS NULL OR p.partition = $4) AND ($5::bigint IS NULL OR l.\"offset\" = $5)
  AND ($6::text IS NULL OR l.reason = $6) AND ($7 OR l.resolved_at IS NULL)";

fn parameters(which: &Letters) -> Vec<(&(dyn ToSql + Sync), Type)> {
    vec![
        (&which.org, Type::TEXT),
        (&which.object, Type::TEXT),
        (&which.topic, Type::TEXT),
        (&which.partition, Type::INT4),
        (&which.offset, Type::INT8),
        (&which.reason, Type::TEXT),
        (&which.resolved, Type::BOOL),
    ]
}

/// How many there are.
///
/// # Errors
/// When the query fails.
pub async fn count(client: &Client, which: &Letters) -> Result<i64, tokio_postgres::Error> {
    let rows = client.query_typed(&format!("SELECT count(*) {FROM}"), &parameters(which)).await?;
    rows.first().map_or(Ok(0), |row| row.try_get(0))
}

/// The topics that have such letters.
///
/// # Errors
/// When the query fails.
pub async fn topics(client: &Client, which: &Letters) -> Result<Vec<String>, tokio_postgres::Error> {
    let query = format!("SELECT DISTINCT coalesce(s.topic, s.name) {FROM} ORDER BY 1");
    let rows = client.query_typed(&query, &parameters(which)).await?;
    rows.iter().map(|row| row.try_get(0)).collect()
}

/// Dead letters by topic, partition, life and offset, at most `limit` of those behind `after` (position, offset).
///
/// # Errors
/// When the query fails.
pub async fn list(
    client: &Client,
    which: &Letters,
    after: Option<(PositionId, i64)>,
    limit: i64,
) -> Result<Vec<Letter>, tokio_postgres::Error> {
    let (position, offset) = after.map_or((i32::MIN, i64::MIN), |after| after);
    let mut wanted = parameters(which);
    wanted.extend([(&position as &(dyn ToSql + Sync), Type::INT4), (&offset, Type::INT8), (&limit, Type::INT8)]);
    let query = format!(
        "SELECT coalesce(o.name, ''), coalesce(b.name, ''), coalesce(s.topic, s.name), p.partition, p.incarnation, \
           l.position_id, l.\"offset\", l.at, l.reason, l.detail, l.sfid, length(l.key), length(l.value), \
           l.sha256 IS NOT NULL, l.resolved_at, coalesce(l.outcome, '') {FROM} \
           AND (l.position_id, l.\"offset\") > ($8, $9) ORDER BY l.position_id, l.\"offset\" LIMIT $10"
    );
    let rows = client.query_typed(&query, &wanted).await?;
    rows.iter()
        .map(|row| {
            let (at, resolved): (Moment, Option<Moment>) = (row.try_get(7)?, row.try_get(14)?);
            let outcome: String = row.try_get(15)?;
            Ok(Letter {
                org: row.try_get(0)?,
                object: row.try_get(1)?,
                topic: row.try_get(2)?,
                partition: row.try_get(3)?,
                incarnation: row.try_get(4)?,
                position_id: row.try_get(5)?,
                offset: row.try_get(6)?,
                at: at.0,
                reason: row.try_get(8)?,
                detail: row.try_get(9)?,
                sfid: row.try_get(10)?,
                key_bytes: row.try_get(11)?,
                value_bytes: row.try_get(12)?,
                cut: row.try_get(13)?,
                resolved: resolved.map(|at| (at.0, outcome)),
            })
        })
        .collect()
}

/// Key and value of a dead letter as they came, the value cut where it was too long; `None` if there is no such letter.
///
/// # Errors
/// When the query fails.
pub async fn bytes(
    client: &Client,
    position_id: PositionId,
    offset: i64,
) -> Result<Option<(Option<Vec<u8>>, Option<Vec<u8>>)>, tokio_postgres::Error> {
    let rows = client
        .query_typed(
            "SELECT key, value FROM afterimage.dead_letter WHERE position_id = $1 AND \"offset\" = $2",
            &[(&position_id, Type::INT4), (&offset, Type::INT8)],
        )
        .await?;
    rows.first().map(|row| Ok((row.try_get(0)?, row.try_get(1)?))).transpose()
}

/// A dead letter's bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Body {
    /// Who put it aside.
    pub position_id: PositionId,
    /// Offset.
    pub offset: i64,
    /// When it was put aside.
    pub at: Micros,
    /// Key.
    pub key: Option<Vec<u8>>,
    /// Value.
    pub value: Option<Vec<u8>>,
}

/// The bytes of those of these letters that are open.
///
/// # Errors
/// When the query fails.
pub async fn bodies(client: &Client, at: &[(PositionId, i64)]) -> Result<Vec<Body>, tokio_postgres::Error> {
    let (positions, offsets): (Vec<i32>, Vec<i64>) = at.iter().copied().unzip();
    let rows = client
        .query_typed(
            "SELECT l.position_id, l.\"offset\", l.at, l.key, l.value \
             FROM unnest($1::int[], $2::bigint[]) AS w(position_id, \"offset\") \
             JOIN afterimage.dead_letter l ON l.position_id = w.position_id AND l.\"offset\" = w.\"offset\" \
             WHERE l.resolved_at IS NULL",
            &[(&positions, Type::INT4_ARRAY), (&offsets, Type::INT8_ARRAY)],
        )
        .await?;
    rows.iter()
        .map(|row| {
            let at: Moment = row.try_get(2)?;
            Ok(Body {
                position_id: row.try_get(0)?,
                offset: row.try_get(1)?,
                at: at.0,
                key: row.try_get(3)?,
                value: row.try_get(4)?,
            })
        })
        .collect()
}

/// The topic whose dead letters are retried.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RetrySource {
    /// Its source row.
    pub source_id: i16,
    /// Its object.
    pub object_id: i16,
    /// org.object.
    pub name: String,
    /// Identity rule on record.
    pub identity: String,
    /// Whether that rule is settled.
    pub settled: bool,
}

/// What the sink knows of a topic; `None` = nothing.
///
/// # Errors
/// When the query fails.
pub async fn source(client: &Client, topic: &str) -> Result<Option<RetrySource>, tokio_postgres::Error> {
    let rows = client
        .query_typed(
            "SELECT s.source_id, s.object_id, o.name || '.' || b.name, b.identity, \
               EXISTS (SELECT FROM afterimage.field f WHERE f.object_id = b.object_id) \
             FROM afterimage.source s \
             JOIN afterimage.object b ON b.object_id = s.object_id JOIN afterimage.org o ON o.org_id = b.org_id \
             WHERE s.name = $1 AND s.kind = 'kafka'",
            &[(&topic, Type::TEXT)],
        )
        .await?;
    rows.first()
        .map(|row| {
            Ok(RetrySource {
                source_id: row.try_get(0)?,
                object_id: row.try_get(1)?,
                name: row.try_get(2)?,
                identity: row.try_get(3)?,
                settled: row.try_get(4)?,
            })
        })
        .transpose()
}

/// Gives a topic's retries a source of their own, and ends the position of the run before: whoever still works under it is
/// fenced off. The next claim of partition 0 begins another.
///
/// # Errors
/// When a statement fails.
pub async fn begin_retry(client: &mut Client, of: &RetrySource, topic: &str) -> Result<i16, tokio_postgres::Error> {
    let transaction = client.transaction().await?;
    transaction.batch_execute("SELECT pg_advisory_xact_lock(hashtext('afterimage.registry'))").await?;
    // No topic of Kafka's can have this name.
    let name = format!("{topic} (retry)");
    transaction
        .execute_typed(
            "INSERT INTO afterimage.source (name, kind, topic, org_id, object_id) \
             SELECT $1, 'retry', $1, b.org_id, b.object_id FROM afterimage.object b WHERE b.object_id = $2 \
               AND NOT EXISTS (SELECT FROM afterimage.source s WHERE s.name = $1)",
            &[(&name, Type::TEXT), (&of.object_id, Type::INT2)],
        )
        .await?;
    failpoint!("retry.registered");
    let rows = transaction
        .query_typed("SELECT source_id FROM afterimage.source WHERE name = $1", &[(&name, Type::TEXT)])
        .await?;
    let source_id: i16 = rows[0].try_get(0)?;
    transaction
        .execute_typed(
            "UPDATE afterimage.position SET live = false, epoch = epoch + 1 WHERE source_id = $1 AND live",
            &[(&source_id, Type::INT2)],
        )
        .await?;
    failpoint!("retry.ended");
    transaction.commit().await?;
    failpoint!("retry.begun");
    Ok(source_id)
}

/// Marks the open ones as dropped; the rows stay, and so do the counts. Gives how many.
///
/// # Errors
/// When the statement fails.
pub async fn drop(client: &Client, which: &Letters) -> Result<u64, tokio_postgres::Error> {
    let open = Letters { resolved: false, ..which.clone() };
    let dropped = client
        .execute_typed(
            &format!(
                "UPDATE afterimage.dead_letter d SET resolved_at = clock_timestamp(), outcome = 'dropped' \
                 WHERE (d.position_id, d.\"offset\") IN (SELECT l.position_id, l.\"offset\" {FROM})"
            ),
            &parameters(&open),
        )
        .await?;
    failpoint!("drop.committed");
    Ok(dropped)
}
