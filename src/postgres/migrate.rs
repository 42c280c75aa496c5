//! The schema of the sink: numbered SQL files in the binary, applied once each, never edited afterwards.
//!
//! Each file is one transaction under one advisory lock, so two runs at once, or a run beside workers, are safe.

use std::fmt;
use std::time::Duration;

use sha2::{Digest, Sha256};
use thiserror::Error;
use tokio_postgres::error::SqlState;
use tokio_postgres::types::Type;
use tokio_postgres::{Client, GenericClient, Transaction};
use uuid::Uuid;

use super::client::{ANSWER_TIME, SinkSettings};
use super::vigil::{self, Silence};

/// One file of SQL.
struct Migration {
    number: i32,
    name: &'static str,
    sql: &'static str,
}

macro_rules! migrations {
    ($($number:literal $name:literal),+ $(,)?) => {
        &[$(Migration {
            number: $number,
            name: $name,
            sql: include_str!(concat!("migrations/", $name, ".sql")),
        }),+]
    };
}

const MIGRATIONS: &[Migration] = migrations![
    1 "0001_tables",
    2 "0002_functions",
    3 "0003_history",
    4 "0004_commit",
    5 "0005_views",
    6 "0006_object_views",
    7 "0007_typed_values",
    8 "0008_lookups",
    9 "0009_short_stamps",
    10 "0010_owners",
    11 "0011_anchors",
    12 "0012_operator",
    13 "0013_workers",
    14 "0014_passage",
    15 "0015_unshown",
    16 "0016_pins",
];

/// The schema version that this binary works with: the number of its last migration.
pub const SCHEMA_VERSION: i32 = MIGRATIONS[MIGRATIONS.len() - 1].number;

/// `server_version_num` of PostgreSQL 14: SQL-standard function bodies, infinite numerics.
const OLDEST_SERVER: i32 = 140_000;

/// Serialises migrations; a number of our own, the same in every version of afterimage ("aftermig").
const LOCK: i64 = 0x6166_7465_726d_6967;

/// How often a run that waits for another one says so.
const TELL: Duration = Duration::from_secs(10);

/// What a run of [`migrate`] did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// Numbers and names of the migrations that this run applied, in order; empty = nothing was to do.
    pub applied: Vec<(i32, String)>,
    /// The schema version now.
    pub version: i32,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (_, name) in &self.applied {
            writeln!(f, "applied {name}")?;
        }
        write!(f, "the sink is at schema {}", self.version)
    }
}

/// Which sink this is, and its schema.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SchemaVersion {
    /// Number of the last migration applied.
    pub version: i32,
    /// Made with the sink; tells it apart from every other, and from what a local store remembers.
    pub sink_id: Uuid,
    /// `pg_control_system().system_identifier` of the cluster in which the sink was made, if it could be read.
    pub system_identifier: Option<i64>,
}

/// Why the schema is not, or cannot be made, what this binary needs.
#[derive(Debug, Error)]
pub enum MigrateError {
    /// No schema, or an older one.
    #[error("{} (this binary needs schema {needed}): run `afterimage migrate`", match found {
        Some(found) => format!("the sink is at schema {found}"),
        None => "the database has no afterimage schema".to_owned(),
    })]
    TooOld {
        /// The sink's version; none = never migrated.
        found: Option<i32>,
        /// This binary's.
        needed: i32,
    },
    /// A newer afterimage has been here.
    #[error("this binary knows schema {known}, the sink is at {found}: upgrade afterimage")]
    TooNew {
        /// The sink's version.
        found: i32,
        /// This binary's.
        known: i32,
    },
    /// A migration that was applied is not the one in this binary.
    #[error(
        "migration {name} was applied in another form than this binary has: \
         it is not the afterimage that made this sink, or the table afterimage.migration was changed"
    )]
    Changed {
        /// The migration's file name, without its ending.
        name: String,
    },
    /// Someone else's schema has our name.
    #[error(
        "the database has a schema afterimage that is not this program's: it holds {example}, and no record of \
         afterimage's migrations; nothing was written"
    )]
    Foreign {
        /// The name of something in it.
        example: String,
    },
    /// The payloads are UTF-8 and are read by `convert_from(…, 'UTF8')`.
    #[error(
        "the database's encoding is {0}, afterimage needs UTF8: create one with `TEMPLATE template0 ENCODING 'UTF8'`"
    )]
    Encoding(String),
    /// Older than PostgreSQL 14.
    #[error("the server is PostgreSQL {0}, afterimage needs 14 or later")]
    Server(String),
    /// A migration failed; it was rolled back, those before it stand.
    #[error("migration {name} failed and was rolled back")]
    Failed {
        /// The migration's file name, without its ending.
        name: &'static str,
        /// What the server said.
        source: tokio_postgres::Error,
    },
    /// The server process that does it is frozen, or cut off.
    #[error(
        "migration {name} is given up: server process {pid} {silence}; it is rolled back, or was committed as a whole"
    )]
    Dead {
        /// The migration's file name, without its ending.
        name: &'static str,
        /// The server process.
        pid: i32,
        /// What it was.
        silence: Silence,
    },
    /// It takes questions, and does not answer.
    #[error("the server has not answered within {} s", .0.as_secs())]
    Silent(Duration),
    /// Any other answer of the server.
    #[error("the sink does not answer as expected")]
    Postgres(#[from] tokio_postgres::Error),
}

/// Brings the schema up to this binary's version; nothing to do is no error. What alters tables may take as long as it
/// takes, and another run is waited for; a server that answers no question is not.
///
/// # Errors
/// See [`MigrateError`].
pub async fn migrate(client: &mut Client) -> Result<Report, MigrateError> {
    apply(client, None, MIGRATIONS).await
}

/// The same, told of while it goes on, and given up when the server process that does it is frozen: a second connection
/// to `sink` looks after it.
///
/// # Errors
/// See [`MigrateError`].
pub async fn migrate_watched(client: &mut Client, sink: &SinkSettings) -> Result<Report, MigrateError> {
    apply(client, Some(sink), MIGRATIONS).await
}

/// Whether `run` can work with this schema as it is: neither too old nor too new.
///
/// # Errors
/// See [`MigrateError`].
pub async fn check(client: &Client) -> Result<SchemaVersion, MigrateError> {
    answered(looked_at(client)).await
}

/// A question that is answered at once by a server that is alive.
async fn answered<T>(question: impl Future<Output = Result<T, MigrateError>>) -> Result<T, MigrateError> {
    tokio::time::timeout(ANSWER_TIME, question).await.unwrap_or(Err(MigrateError::Silent(ANSWER_TIME)))
}

async fn looked_at(client: &Client) -> Result<SchemaVersion, MigrateError> {
    let too_old = |found| MigrateError::TooOld { found, needed: SCHEMA_VERSION };
    if !is_begun(client).await? {
        return Err(too_old(None));
    }
    // What `migrate` goes by; the number in afterimage.meta is for people.
    match highest(client).await? {
        0 => return Err(too_old(None)),
        found if found < SCHEMA_VERSION => return Err(too_old(Some(found))),
        found if found > SCHEMA_VERSION => return Err(MigrateError::TooNew { found, known: SCHEMA_VERSION }),
        _ => {}
    }
    let rows = client.query_typed("select sink_id, system_identifier from afterimage.meta", &[]).await?;
    let Some(row) = rows.first() else { return Err(too_old(None)) };
    Ok(SchemaVersion { version: SCHEMA_VERSION, sink_id: row.try_get(0)?, system_identifier: row.try_get(1)? })
}

async fn apply(
    client: &mut Client,
    sink: Option<&SinkSettings>,
    migrations: &[Migration],
) -> Result<Report, MigrateError> {
    answered(check_server(client)).await?;
    let pid: i32 = answered(async {
        let rows = client.query_typed("select pg_catalog.pg_backend_pid()", &[]).await?;
        rows.first().map_or(Ok(0), |row| Ok(row.try_get(0)?))
    })
    .await?;
    let known = migrations.last().map_or(0, |m| m.number);
    let mut applied = Vec::new();

    let tx = locked(client).await?;
    answered(async {
        if !is_begun(&tx).await? {
            tx.batch_execute(
                "create schema if not exists afterimage;
                 create table afterimage.migration (
                   number int primary key, name text not null, checksum bytea not null,
                   applied_at timestamptz not null default now());
                 comment on table afterimage.migration is
                   'Which numbered SQL files made this schema, with their SHA-256.';",
            )
            .await?;
        }
        Ok(tx.commit().await?)
    })
    .await?;

    for migration in migrations {
        let tx = locked(client).await?;
        // Asked under the lock, before each: another run may be at it, even one of a newer binary.
        let found = answered(async { Ok(highest(&tx).await?) }).await?;
        if found > known {
            return Err(MigrateError::TooNew { found, known });
        }
        let checksum = Sha256::digest(migration.sql).to_vec();
        let asked = "select checksum from afterimage.migration where number = $1";
        let before = answered(async { Ok(tx.query_typed(asked, &[(&migration.number, Type::INT4)]).await?) }).await?;
        if let Some(row) = before.first() {
            if row.try_get::<_, Vec<u8>>(0)? != checksum {
                return Err(MigrateError::Changed { name: migration.name.to_owned() });
            }
            continue;
        }
        let work = applied_in(tx, migration, &checksum);
        match sink {
            None => work.await,
            Some(sink) => {
                let dead = |silence| MigrateError::Dead { name: migration.name, pid, silence };
                vigil::over(sink, pid, &format!("migration {}", migration.name), work).await.map_err(dead)?
            }
        }
        .map_err(|source| MigrateError::Failed { name: migration.name, source })?;
        applied.push((migration.number, migration.name.to_owned()));
    }
    if applied.is_empty() && known > 0 {
        let put_right = "update afterimage.meta set schema_version = $1 where schema_version <> $1";
        answered(async { Ok(client.execute_typed(put_right, &[(&known, Type::INT4)]).await?) }).await?;
    }
    Ok(Report { applied, version: known })
}

/// The migration itself, to the end of its transaction.
async fn applied_in(tx: Transaction<'_>, migration: &Migration, checksum: &[u8]) -> Result<(), tokio_postgres::Error> {
    // A worker may hold what a later migration alters: fail rather than queue everyone behind us.
    tx.batch_execute("set local lock_timeout = '30s'").await?;
    tx.batch_execute(migration.sql).await?;
    tx.execute_typed(
        "insert into afterimage.migration (number, name, checksum) values ($1, $2, $3)",
        &[(&migration.number, Type::INT4), (&migration.name, Type::TEXT), (&checksum, Type::BYTEA)],
    )
    .await?;
    tx.execute_typed("update afterimage.meta set schema_version = $1", &[(&migration.number, Type::INT4)]).await?;
    tx.commit().await
}

/// A transaction that holds the lock of all migrations; dropped = rolled back. Whoever has it is waited for, and named
/// from time to time.
async fn locked(client: &mut Client) -> Result<Transaction<'_>, MigrateError> {
    let begun =
        format!("set local statement_timeout = 0; set local lock_timeout = '{}s'; savepoint waiting", TELL.as_secs());
    let tx = answered(async {
        let tx = client.transaction().await?;
        tx.batch_execute(&begun).await?;
        Ok(tx)
    })
    .await?;
    let within = TELL + ANSWER_TIME;
    loop {
        let lock = tx.query_typed("select pg_catalog.pg_advisory_xact_lock($1)", &[(&LOCK, Type::INT8)]);
        match tokio::time::timeout(within, lock).await.map_err(|_| MigrateError::Silent(within))? {
            Ok(_) => break,
            Err(error) if error.code() == Some(&SqlState::LOCK_NOT_AVAILABLE) => {}
            Err(error) => return Err(error.into()),
        }
        let holder = answered(async {
            tx.batch_execute("rollback to savepoint waiting").await?;
            Ok(holder(&tx).await?)
        })
        .await?;
        tracing::warn!("waiting for another migration of this database: {holder}");
    }
    answered(async { Ok(tx.batch_execute("release savepoint waiting; set local lock_timeout = 0").await?) }).await?;
    Ok(tx)
}

/// Who has the lock of all migrations.
async fn holder(client: &impl GenericClient) -> Result<String, tokio_postgres::Error> {
    // A lock's number stands there in two halves.
    let rows = client
        .query_typed(
            "select pg_catalog.format('server process %s%s%s%s', l.pid, ' of role ' || a.usename,
               ' (' || nullif(a.application_name, '') || ')',
               ', for ' || extract(epoch from pg_catalog.clock_timestamp() - a.xact_start)::bigint || ' s')
             from pg_catalog.pg_locks l left join pg_catalog.pg_stat_activity a on a.pid = l.pid
             where l.locktype = 'advisory' and l.granted and l.objsubid = 1
               and l.database = (select d.oid from pg_catalog.pg_database d where d.datname = pg_catalog.current_database())
               and l.classid::bigint = $1 >> 32 and l.objid::bigint = $1 & 4294967295",
            &[(&LOCK, Type::INT8)],
        )
        .await?;
    rows.first().map_or(Ok("its end is near".to_owned()), |row| row.try_get(0))
}

async fn highest(client: &impl GenericClient) -> Result<i32, tokio_postgres::Error> {
    let rows = client.query_typed("select coalesce(max(number), 0) from afterimage.migration", &[]).await?;
    rows.first().map_or(Ok(0), |row| row.try_get(0))
}

/// Whether the schema is ours and has its table of migrations. A schema that someone made for us, and that is empty, is
/// not begun; one with anything else in it is not ours. Asks the catalogues only, which needs no rights.
async fn is_begun(client: &impl GenericClient) -> Result<bool, MigrateError> {
    let rows = client
        .query_typed(
            "select coalesce(ours.columns = 4, false), other.name, ours.columns is not null
             from pg_catalog.pg_namespace n
             left join lateral (
               select pg_catalog.count(*) filter (where a.attname in ('number', 'name', 'checksum', 'applied_at')) as columns
               from pg_catalog.pg_class c join pg_catalog.pg_attribute a on a.attrelid = c.oid
               where c.relnamespace = n.oid and c.relname = 'migration' having pg_catalog.count(*) > 0) ours on true
             left join lateral (
               select c.relname::text as name from pg_catalog.pg_class c
               where c.relnamespace = n.oid and c.relname not in ('migration', 'migration_pkey')
               union all
               select p.proname::text from pg_catalog.pg_proc p where p.pronamespace = n.oid
               order by 1 limit 1) other on true
             where n.nspname = 'afterimage'",
            &[],
        )
        .await?;
    let Some(row) = rows.first() else { return Ok(false) };
    let (begun, other, named): (bool, Option<String>, bool) = (row.try_get(0)?, row.try_get(1)?, row.try_get(2)?);
    match (begun, other, named) {
        // An empty table of migrations among other things was left behind by a run over a foreign schema.
        (true, Some(example), _) if highest(client).await? == 0 => Err(MigrateError::Foreign { example }),
        (true, ..) => Ok(true),
        (false, Some(example), _) => Err(MigrateError::Foreign { example }),
        (false, None, true) => Err(MigrateError::Foreign { example: "another table named migration".to_owned() }),
        (false, None, false) => Ok(false),
    }
}

async fn check_server(client: &Client) -> Result<(), MigrateError> {
    let rows = client
        .query_typed(
            "select pg_catalog.current_setting('server_version_num')::int,
                    pg_catalog.current_setting('server_version'),
                    pg_catalog.current_setting('server_encoding')",
            &[],
        )
        .await?;
    let Some(row) = rows.first() else { return Ok(()) };
    if row.try_get::<_, i32>(0)? < OLDEST_SERVER {
        return Err(MigrateError::Server(row.try_get(1)?));
    }
    match row.try_get::<_, String>(2)? {
        encoding if encoding == "UTF8" => Ok(()),
        encoding => Err(MigrateError::Encoding(encoding)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn migrations_are_numbered_without_a_gap_and_named_by_their_number() {
        for (i, migration) in MIGRATIONS.iter().enumerate() {
            assert_eq!(migration.number, i as i32 + 1);
            assert!(migration.name.starts_with(&format!("{:04}_", migration.number)), "{}", migration.name);
        }
    }
}
