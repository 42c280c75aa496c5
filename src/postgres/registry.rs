//! Names become numbers: orgs, objects, sources, fields.

use std::collections::{BTreeMap, HashMap};

use tokio_postgres::types::{Json, Type};
use tokio_postgres::{Client, Transaction};
use uuid::Uuid;

use super::client::describe;
use super::search;
use super::wire::Moment;
use crate::core::event::{Class, FieldNo, Micros};
use crate::core::position::PositionId;
use crate::core::value::Kind;

/// The registry refused.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// The statement failed.
    #[error("the sink's registry: {}", describe(.0))]
    Query(#[from] tokio_postgres::Error),
    /// Another deployment feeds this sink from the same topic.
    #[error(
        "topic {topic} is held by group {group} on cluster {cluster} since {since}: two deployments must not feed one sink from \
         one topic; use that group, or another sink, or, if this deployment takes the topic over, `afterimage offsets adopt \
         {topic}`"
    )]
    Held {
        /// Topic.
        topic: String,
        /// The group that holds it.
        group: String,
        /// The cluster it reads.
        cluster: String,
        /// Since when, by the sink's clock.
        since: String,
    },
    /// The topic was declared for another org or object before.
    #[error("topic {topic} was recorded as {before} before, now it is declared as {now}: its history would be mixed")]
    Moved {
        /// Topic.
        topic: String,
        /// org.object before.
        before: String,
        /// org.object now.
        now: String,
    },
}

/// A topic as configuration declares it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Declared {
    /// Topic.
    pub topic: String,
    /// Org.
    pub org: String,
    /// Object.
    pub object: String,
    /// Identity rule as stored (`sfid`, `key`, or a JSON array of columns), if declared.
    pub identity: Option<String>,
    /// Grace for cancelling a delete, µs.
    pub grace: Micros,
    /// Columns that configuration takes out of history, sorted.
    pub masked: Vec<String>,
    /// Declared column types.
    pub types: BTreeMap<String, Kind>,
    /// Columns that records are to be found by.
    pub lookup: Vec<String>,
    /// Hash of the effective configuration.
    pub config_hash: Vec<u8>,
}

/// A topic as the sink knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    /// Source number.
    pub source_id: i16,
    /// Object number.
    pub object_id: i16,
    /// Topic.
    pub topic: String,
    /// Identity rule on record.
    pub identity: String,
    /// Whether the object has any field yet (then its identity rule is settled).
    pub settled: bool,
    /// Org.
    pub org: String,
}

/// Which sink this is: a local store made for another one is worthless.
///
/// # Errors
/// When the query fails.
pub async fn sink_id(client: &Client) -> Result<Uuid, tokio_postgres::Error> {
    client.query_typed("SELECT sink_id FROM afterimage.meta", &[]).await?[0].try_get(0)
}

/// Finds or makes the rows of declared topics.
///
/// # Errors
/// When a topic is held by another deployment, or was recorded for another object.
pub async fn sources(
    client: &mut Client,
    declared: &[Declared],
    cluster: &str,
    group: &str,
) -> Result<Vec<Source>, RegistryError> {
    let transaction = client.transaction().await?;
    // One worker at a time: start-up is rare, and numbers stay small.
    transaction.batch_execute("SELECT pg_advisory_xact_lock(hashtext('afterimage.registry'))").await?;
    let mut sources = Vec::with_capacity(declared.len());
    for one in declared {
        sources.push(source(&transaction, one, cluster, group).await?);
    }
    transaction.commit().await?;
    Ok(sources)
}

async fn source(
    transaction: &Transaction<'_>,
    declared: &Declared,
    cluster: &str,
    group: &str,
) -> Result<Source, RegistryError> {
    let org_id: i16 = match transaction
        .query_typed("SELECT org_id FROM afterimage.org WHERE name = $1", &[(&declared.org, Type::TEXT)])
        .await?
        .first()
    {
        Some(row) => row.try_get(0)?,
        None => transaction
            .query_typed(
                "INSERT INTO afterimage.org (name) VALUES ($1) RETURNING org_id",
                &[(&declared.org, Type::TEXT)],
            )
            .await?[0]
            .try_get(0)?,
    };
    let found = transaction
        .query_typed(
            "SELECT object_id, identity, EXISTS (SELECT 1 FROM afterimage.field f WHERE f.object_id = o.object_id) \
             FROM afterimage.object o WHERE org_id = $1 AND name = $2",
            &[(&org_id, Type::INT2), (&declared.object, Type::TEXT)],
        )
        .await?;
    let (object_id, identity, settled): (i16, String, bool) = match found.first() {
        Some(row) => (row.try_get(0)?, row.try_get(1)?, row.try_get(2)?),
        None => {
            let identity = declared.identity.clone().unwrap_or_else(|| "sfid".into());
            let row = transaction
                .query_typed(
                    "INSERT INTO afterimage.object (org_id, name, identity) VALUES ($1, $2, $3) RETURNING object_id",
                    &[(&org_id, Type::INT2), (&declared.object, Type::TEXT), (&identity, Type::TEXT)],
                )
                .await?;
            (row[0].try_get(0)?, identity, false)
        }
    };
    transaction
        .execute_typed(
            "UPDATE afterimage.object SET grace = $2 * interval '1 microsecond' \
             WHERE object_id = $1 AND grace <> $2 * interval '1 microsecond'",
            &[(&object_id, Type::INT2), (&(declared.grace as f64), Type::FLOAT8)],
        )
        .await?;
    let found = transaction
        .query_typed(
            "SELECT source_id, org_id, object_id, cluster_id, group_id, \
               to_char(since AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"') \
             FROM afterimage.source WHERE name = $1",
            &[(&declared.topic, Type::TEXT)],
        )
        .await?;
    let source_id = match found.first() {
        Some(row) => {
            let before: (i16, Option<i16>) = (row.try_get(1)?, row.try_get(2)?);
            let (its_cluster, its_group): (Option<String>, Option<String>) = (row.try_get(3)?, row.try_get(4)?);
            if before != (org_id, Some(object_id)) {
                return Err(RegistryError::Moved {
                    topic: declared.topic.clone(),
                    before: name(transaction, before.1.unwrap_or(0)).await?,
                    now: format!("{}.{}", declared.org, declared.object),
                });
            }
            let (its_cluster, its_group) = (its_cluster.unwrap_or_default(), its_group.unwrap_or_default());
            if (its_cluster.as_str(), its_group.as_str()) != (cluster, group) {
                return Err(RegistryError::Held {
                    topic: declared.topic.clone(),
                    group: its_group,
                    cluster: its_cluster,
                    since: row.try_get(5)?,
                });
            }
            row.try_get(0)?
        }
        None => transaction
            .query_typed(
                "INSERT INTO afterimage.source (name, kind, cluster_id, topic, group_id, org_id, object_id) \
                 VALUES ($1, 'kafka', $2, $1, $3, $4, $5) RETURNING source_id",
                &[
                    (&declared.topic, Type::TEXT),
                    (&cluster, Type::TEXT),
                    (&group, Type::TEXT),
                    (&org_id, Type::INT2),
                    (&object_id, Type::INT2),
                ],
            )
            .await?[0]
            .try_get(0)?,
    };
    declare(transaction, object_id, declared).await?;
    search::declare(transaction, object_id, &declared.lookup).await?;
    Ok(Source { source_id, object_id, topic: declared.topic.clone(), identity, settled, org: declared.org.clone() })
}

/// Leaves a row for users when an object's masks or types change.
async fn declare(
    transaction: &Transaction<'_>,
    object_id: i16,
    declared: &Declared,
) -> Result<(), tokio_postgres::Error> {
    let types: BTreeMap<&str, &str> = declared.types.iter().map(|(name, kind)| (name.as_str(), kind.sql())).collect();
    transaction
        .execute_typed(
            "INSERT INTO afterimage.declaration (object_id, masked, types, config_hash) SELECT $1, $2, $3, $4 \
             WHERE NOT EXISTS (SELECT 1 FROM (SELECT d.masked, d.types FROM afterimage.declaration d \
                                 WHERE d.object_id = $1 ORDER BY d.at DESC LIMIT 1) last \
                               WHERE last.masked = $2 AND last.types = $3)",
            &[
                (&object_id, Type::INT2),
                (&declared.masked, Type::TEXT_ARRAY),
                (&Json(types), Type::JSONB),
                (&declared.config_hash, Type::BYTEA),
            ],
        )
        .await?;
    Ok(())
}

async fn name(transaction: &Transaction<'_>, object_id: i16) -> Result<String, tokio_postgres::Error> {
    let rows = transaction
        .query_typed(
            "SELECT g.name || '.' || o.name FROM afterimage.object o JOIN afterimage.org g USING (org_id) \
             WHERE o.object_id = $1",
            &[(&object_id, Type::INT2)],
        )
        .await?;
    rows.first().map_or(Ok("another object".into()), |row| row.try_get(0))
}

/// Settles how records of an object are identified, once its first event has shown it.
///
/// # Errors
/// When the statement fails.
pub async fn settle_identity(client: &Client, object_id: i16, identity: &str) -> Result<(), tokio_postgres::Error> {
    client
        .execute_typed(
            "UPDATE afterimage.object SET identity = $2 WHERE object_id = $1 AND identity <> $2",
            &[(&object_id, Type::INT2), (&identity, Type::TEXT)],
        )
        .await?;
    Ok(())
}

/// A field of an object's dictionary.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Field {
    /// Number.
    pub no: FieldNo,
    /// Column name.
    pub name: String,
    /// Class.
    pub class: Class,
    /// Type now.
    pub kind: Kind,
    /// Source time of the first event that had it.
    pub first_seen: Option<Micros>,
    /// Its values are kept as search keys.
    pub lookup: bool,
}

/// A field as an event shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SeenField {
    /// Column name.
    pub name: String,
    /// Class by configuration.
    pub class: Class,
    /// Type.
    pub kind: Kind,
    /// Source time of the event.
    pub at: Option<Micros>,
}

fn letter(class: Class) -> i8 {
    (match class {
        Class::Visible => b'v',
        Class::System => b's',
        Class::Status => b'h',
        Class::Excluded => b'x',
    }) as i8
}

fn class(letter: i8) -> Class {
    match letter as u8 {
        b's' => Class::System,
        b'h' => Class::Status,
        b'x' => Class::Excluded,
        _ => Class::Visible,
    }
}

/// The object's dictionary.
///
/// # Errors
/// When the query fails.
pub async fn fields<C: tokio_postgres::GenericClient>(
    client: &C,
    object_id: i16,
) -> Result<Vec<Field>, tokio_postgres::Error> {
    let rows = client
        .query_typed(
            "SELECT f.field_no, f.name, f.class, f.types -> -1 ->> 'type', f.first_seen, \
               EXISTS (SELECT FROM afterimage.lookup l WHERE l.object_id = $1 AND l.name = f.name \
                         AND l.state IN ('building', 'ready')) \
             FROM afterimage.field f WHERE f.object_id = $1 ORDER BY f.field_no",
            &[(&object_id, Type::INT2)],
        )
        .await?;
    rows.iter()
        .map(|row| {
            let first_seen: Option<Moment> = row.try_get(4)?;
            let kind: Option<&str> = row.try_get(3)?;
            Ok(Field {
                no: row.try_get(0)?,
                name: row.try_get(1)?,
                class: class(row.try_get(2)?),
                kind: kind.and_then(Kind::from_sql_name).unwrap_or(Kind::Text),
                first_seen: first_seen.map(|at| at.0),
                lookup: row.try_get(5)?,
            })
        })
        .collect()
}

/// Brings the dictionary up to what was seen: new fields get numbers, changed types and classes are noted.
/// A field that becomes visible counts as first seen now. Returns the whole dictionary.
///
/// # Errors
/// When a statement fails.
pub async fn note_fields(
    client: &mut Client,
    object_id: i16,
    seen: &[SeenField],
) -> Result<Vec<Field>, tokio_postgres::Error> {
    let transaction = client.transaction().await?;
    transaction
        .query_typed(
            "SELECT 1 FROM afterimage.object WHERE object_id = $1 FOR NO KEY UPDATE",
            &[(&object_id, Type::INT2)],
        )
        .await?;
    let known = fields(&transaction, object_id).await?;
    let mut next = known.last().map_or(1, |field| field.no + 1);
    let by_name: HashMap<&str, &Field> = known.iter().map(|field| (field.name.as_str(), field)).collect();
    for one in seen {
        let at = one.at.map(Moment);
        let entry = Json(serde_json::json!({ "type": one.kind.sql(), "since": one.at.map(rfc3339) }));
        match by_name.get(one.name.as_str()) {
            None => {
                transaction
                    .execute_typed(
                        "INSERT INTO afterimage.field (object_id, field_no, name, class, types, first_seen, last_seen) \
                         VALUES ($1, $2, $3, $4, jsonb_build_array($5::jsonb), $6, $6)",
                        &[
                            (&object_id, Type::INT2),
                            (&next, Type::INT2),
                            (&one.name, Type::TEXT),
                            (&letter(one.class), Type::CHAR),
                            (&entry, Type::JSONB),
                            (&at, Type::TIMESTAMPTZ),
                        ],
                    )
                    .await?;
                next += 1;
            }
            Some(field) if field.kind != one.kind || field.class != one.class => {
                let unmasked = one.class == Class::Visible && field.class != Class::Visible;
                transaction
                    .execute_typed(
                        "UPDATE afterimage.field SET class = $3, \
                           types = CASE WHEN types -> -1 ->> 'type' = $4::jsonb ->> 'type' THEN types ELSE types || $4::jsonb END, \
                           first_seen = CASE WHEN $6 THEN $5 ELSE first_seen END \
                         WHERE object_id = $1 AND field_no = $2",
                        &[
                            (&object_id, Type::INT2),
                            (&field.no, Type::INT2),
                            (&letter(one.class), Type::CHAR),
                            (&entry, Type::JSONB),
                            (&at, Type::TIMESTAMPTZ),
                            (&unmasked, Type::BOOL),
                        ],
                    )
                    .await?;
            }
            Some(_) => {}
        }
    }
    let all = fields(&transaction, object_id).await?;
    transaction.commit().await?;
    Ok(all)
}

fn rfc3339(at: Micros) -> String {
    crate::core::value::calendar::timestamp_text(at, true)
}

/// Leaves it with a field that a value does not fit the type declared for it: the first such message counts.
///
/// # Errors
/// When the statement fails.
pub async fn note_misfit(
    client: &Client,
    object_id: i16,
    field_no: FieldNo,
    message: (PositionId, i64),
) -> Result<(), tokio_postgres::Error> {
    client
        .execute_typed(
            "UPDATE afterimage.field SET misfit_type = types -> -1 ->> 'type', misfit_at = now(), misfit_position = $3, \
               misfit_offset = $4 \
             WHERE object_id = $1 AND field_no = $2 AND misfit_type IS DISTINCT FROM types -> -1 ->> 'type'",
            &[
                (&object_id, Type::INT2),
                (&field_no, Type::INT2),
                (&message.0, Type::INT4),
                (&message.1, Type::INT8),
            ],
        )
        .await?;
    Ok(())
}

/// Makes sure that the month of each date has its partition, before a batch writes into it.
///
/// # Errors
/// When the function fails.
pub async fn ensure_months(client: &Client, months: &[Micros]) -> Result<(), tokio_postgres::Error> {
    for month in months {
        client
            .query_typed(
                "SELECT afterimage.ensure_month(($1 AT TIME ZONE 'UTC')::date)",
                &[(&Moment(*month), Type::TIMESTAMPTZ)],
            )
            .await?;
    }
    Ok(())
}
