//! Reading a position's records back: block after block, each in a snapshot of its own, in the order of their numbers.
//!
//! A block says where its positions stood in its snapshot: its records contain what was committed below that, and
//! nothing else. It needs no lock, and holds no snapshot longer than one block takes.

use std::collections::HashMap;

use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{Client, IsolationLevel, Row};

use super::lookup::{LookupError, Stored};
use super::wire::Moment;
use crate::core::judge::ObjectFacts;
use crate::core::position::PositionId;
use crate::core::record::Record;

/// As for every look-up, see [`super::lookup`]: by index, whatever the planner believes; the joins' order is given. Pages
/// of a range may be read in their own order.
const BLOCK_LIMITS: &str = "\
SET LOCAL statement_timeout = '60s'; SET LOCAL lock_timeout = '2s'; SET LOCAL idle_in_transaction_session_timeout = '5s'; \
SET LOCAL enable_seqscan = off; SET LOCAL enable_hashjoin = off; SET LOCAL enable_mergejoin = off; \
SET LOCAL max_parallel_workers_per_gather = 0; SET LOCAL jit = off";
const LAST: &str = "SELECT max(rid) FROM afterimage.record";

const PLACES: &str = "SELECT position_id, epoch, next FROM afterimage.position WHERE position_id = ANY ($1::int[])";

/// In the order of the primary key; the sum keeps the planner from the object's other indexes, which would sort all of its
/// records for each block.
const RECORDS: &str = "
SELECT rid, sfid, home, row_key, floor_lsn, floor_ts, unshown FROM afterimage.record
WHERE object_id + 0 = $1 AND home = ANY ($2::int[]) AND rid > $3 AND rid <= $4 ORDER BY rid LIMIT $5";

const KEYFRAMES: &str = "
SELECT k.rid, k.kf, k.at, k.d
FROM unnest($1::int[]) AS wanted(rid)
CROSS JOIN LATERAL (
  SELECT rid, kf, at, d FROM afterimage.keyframe WHERE rid = wanted.rid ORDER BY kf DESC LIMIT 1 OFFSET 0) k";

const CHAINS: &str = "
SELECT x.rid, x.kf, x.at, x.d
FROM unnest($1::int[], $2::int[]) AS wanted(rid, kf)
CROSS JOIN LATERAL (SELECT rid, kf, at, d FROM afterimage.delta WHERE rid = wanted.rid AND kf = wanted.kf OFFSET 0) x";

/// The same for all records of a range of numbers, at half the price for each. Most records have one chain.
const KEYFRAMES_BETWEEN: &str = "
SELECT DISTINCT ON (rid) rid, kf, at, d FROM afterimage.keyframe
WHERE rid BETWEEN $1 AND $2 ORDER BY rid DESC, kf DESC";

/// In the order of the disk, which is that of time.
const FIRST_CHAINS_BETWEEN: &str = "
SELECT rid, kf, at, d FROM afterimage.delta WHERE rid BETWEEN $1 AND $2 AND kf = 0";

const OLD_KEYS: &str = "
SELECT wanted.rid, o.row_key
FROM unnest($2::int[]) AS wanted(rid)
CROSS JOIN LATERAL (
  SELECT row_key FROM afterimage.old_key
  WHERE object_id = $1 AND rid = wanted.rid ORDER BY ts DESC NULLS LAST, lsn DESC LIMIT 1 OFFSET 0) o";

/// Where a position stood.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// Which.
    pub position_id: PositionId,
    /// Its claim.
    pub epoch: i64,
    /// Its next offset.
    pub next: i64,
}

/// The records of some positions whose numbers lie in one range, as the tables had them in one snapshot; not folded yet.
pub struct Block {
    /// Where the positions stood then.
    pub places: Vec<Place>,
    /// Up to this number nothing is left to read.
    pub upto: i32,
    records: Vec<Row>,
    keyframes: Vec<Row>,
    chains: Vec<Row>,
    old_keys: Vec<Row>,
}

/// The greatest number that a record has, of any object; 0 if there is none.
///
/// # Errors
/// When the query fails.
pub async fn last(client: &Client) -> Result<i32, LookupError> {
    let rows = client.query_typed(LAST, &[]).await?;
    Ok(rows.first().map_or(Ok(None), |row| row.try_get::<_, Option<i32>>(0))?.unwrap_or(0))
}

/// What a block is to be made of.
#[derive(Debug, Clone, Copy)]
pub struct Wanted {
    /// Records with a greater number.
    pub after: i32,
    /// And at most this one. It bounds how many records of others are passed by.
    pub to: i32,
    /// At most so many.
    pub most: i64,
}

/// Reads a block.
///
/// # Errors
/// When a query fails.
pub async fn read(
    client: &mut Client,
    object_id: i16,
    positions: &[PositionId],
    block: Wanted,
) -> Result<Block, LookupError> {
    let Wanted { after, to, most } = block;
    let build = client.build_transaction().isolation_level(IsolationLevel::RepeatableRead).read_only(true);
    let transaction = build.start().await?;
    transaction.batch_execute(BLOCK_LIMITS).await?;
    let places = transaction.query_typed(PLACES, &[(&positions, Type::INT4_ARRAY)]).await?;
    let places = places
        .iter()
        .map(|row| Ok(Place { position_id: row.try_get(0)?, epoch: row.try_get(1)?, next: row.try_get(2)? }));
    let places = places.collect::<Result<Vec<_>, tokio_postgres::Error>>()?;
    let wanted = &[
        (&object_id as _, Type::INT2),
        (&positions as _, Type::INT4_ARRAY),
        (&after as _, Type::INT4),
        (&to as _, Type::INT4),
        (&most as _, Type::INT8),
    ];
    let records = transaction.query_typed(RECORDS, wanted).await?;
    let mut rids: Vec<i32> = Vec::with_capacity(records.len());
    let mut without_key: Vec<i32> = Vec::new();
    for row in &records {
        let rid = row.try_get(0)?;
        rids.push(rid);
        if row.try_get::<_, Option<&[u8]>>(3)?.is_none() {
            without_key.push(rid);
        }
    }
    let (first, last) = (rids.first().copied().unwrap_or(0), rids.last().copied().unwrap_or(0));
    // Others' records lie in between, of other objects and partitions: too many of them are dearer than one by one.
    let dense = rids.len() * 2 > (i64::from(last) - i64::from(first)) as usize;
    let between: &[(&(dyn ToSql + Sync), Type)] = &[(&first, Type::INT4), (&last, Type::INT4)];
    let keyframes = match dense {
        true => transaction.query_typed(KEYFRAMES_BETWEEN, between).await?,
        false => transaction.query_typed(KEYFRAMES, &[(&rids, Type::INT4_ARRAY)]).await?,
    };
    let mut chains = match dense {
        true => transaction.query_typed(FIRST_CHAINS_BETWEEN, between).await?,
        false => Vec::new(),
    };
    let (mut of, mut kfs): (Vec<i32>, Vec<i32>) = (Vec::new(), Vec::new());
    for row in &keyframes {
        let kf: i32 = row.try_get(1)?;
        if kf > 0 || !dense {
            of.push(row.try_get(0)?);
            kfs.push(kf);
        }
    }
    if !of.is_empty() {
        chains.extend(transaction.query_typed(CHAINS, &[(&of, Type::INT4_ARRAY), (&kfs, Type::INT4_ARRAY)]).await?);
    }
    let old_keys = match without_key.is_empty() {
        true => Vec::new(),
        false => {
            transaction.query_typed(OLD_KEYS, &[(&object_id, Type::INT2), (&without_key, Type::INT4_ARRAY)]).await?
        }
    };
    transaction.commit().await?;
    let upto = rids.last().copied().filter(|_| rids.len() as i64 == most).unwrap_or(to);
    Ok(Block { places, upto, records, keyframes, chains, old_keys })
}

/// A record's number, a chain, a moment, a row.
type Numbered<'a> = (i32, i32, Moment, &'a [u8]);

impl Block {
    /// Number of records.
    pub fn records(&self) -> usize {
        self.records.len()
    }

    /// Bytes of their stored versions.
    ///
    /// # Errors
    /// When a row is not of the form asked for.
    pub fn bytes(&self) -> Result<usize, LookupError> {
        let mut bytes = 0;
        for row in self.keyframes.iter().chain(&self.chains) {
            bytes += row.try_get::<_, &[u8]>(3)?.len();
        }
        Ok(bytes)
    }

    /// The records' last states, by number.
    ///
    /// # Errors
    /// When a stored row cannot be read.
    pub fn fold<'a>(&'a self, object: &ObjectFacts) -> Result<Vec<(Box<str>, Record)>, LookupError> {
        let by_rid = |rows: &'a [Row]| {
            let mut found = Vec::with_capacity(rows.len());
            for row in rows {
                let row: Numbered<'a> = (row.try_get(0)?, row.try_get(1)?, row.try_get(2)?, row.try_get(3)?);
                found.push(row);
            }
            found.sort_unstable_by_key(|(rid, ..)| *rid);
            Ok::<_, LookupError>(found)
        };
        let (keyframes, chains) = (by_rid(&self.keyframes)?, by_rid(&self.chains)?);
        let (mut keyframes, mut chains) = (keyframes.as_slice(), chains.as_slice());
        let mut old_keys: HashMap<i32, &[u8]> = HashMap::new();
        for row in &self.old_keys {
            old_keys.insert(row.try_get(0)?, row.try_get(1)?);
        }
        let folded = self.records.iter().map(|row| {
            let rid: i32 = row.try_get(0)?;
            let identity: &str = row.try_get(1)?;
            let keyframe = of(&mut keyframes, rid).first().map(|(_, kf, at, d)| (*kf, *at, *d));
            let kf = keyframe.map(|(kf, ..)| kf);
            let chain = of(&mut chains, rid).iter().filter(|(_, of, ..)| Some(*of) == kf);
            let stored = Stored {
                rid,
                home: row.try_get(2)?,
                row_key: row.try_get(3)?,
                floor_lsn: row.try_get(4)?,
                floor_ts: row.try_get(5)?,
                keyframe,
                chain: chain.map(|(_, _, at, d)| (*at, *d)).collect(),
                old_key: old_keys.get(&rid).copied(),
                unshown: row.try_get(6)?,
            };
            Ok((identity.into(), stored.fold(object)?))
        });
        folded.collect()
    }
}

/// Takes the rows of a record off the front, and those of smaller numbers with them: rows of records that were not asked for.
fn of<'r, 'a>(rows: &mut &'r [Numbered<'a>], rid: i32) -> &'r [Numbered<'a>] {
    let from = rows.partition_point(|(other, ..)| *other < rid);
    let (found, rest) = rows[from..].split_at(rows[from..].partition_point(|(other, ..)| *other == rid));
    *rows = rest;
    found
}
