//! Whether the product's result is right: without that its figures are worth nothing.
//!
//! All versions are counted and their numbers added up. Of a sample of the records every change is compared by content,
//! old and new values, and so is the last image.

use std::collections::BTreeMap;

use md5::{Digest, Md5};
use tokio_postgres::Client;

use super::account::{Change, Source, sfid};

/// About how many changes are compared by content.
const SAMPLE: u64 = 60_000;

/// What the history must hold, from the generator.
#[derive(Debug, Clone)]
pub struct Expected {
    records: u64,
    events: u64,
    changes: u64,
    sum_of_seqs: u64,
    /// Records of which the content is compared: every one whose index is a multiple of this.
    every: u32,
    sampled: u64,
    sampled_digest: u128,
}

impl Expected {
    /// For this many records and events after the baseline, of which about `changes` change something.
    pub fn new(records: u32, events: u64, changes: u64) -> Self {
        let every = u32::try_from((changes / SAMPLE).max(1)).unwrap_or(u32::MAX).min(records);
        let records = u64::from(records);
        Expected { records, events, changes: 0, sum_of_seqs: 0, every, sampled: 0, sampled_digest: 0 }
    }

    /// Takes note of a change.
    pub fn take(&mut self, change: &Change<'_>) {
        self.changes += 1;
        self.sum_of_seqs += u64::from(change.seq);
        if change.record.is_multiple_of(self.every) {
            let (old, new) = match change.score {
                Some((old, new)) => (old.to_string(), new.to_string()),
                None => ("-".into(), "-".into()),
            };
            self.sampled += 1;
            self.sampled_digest += digest(&format!(
                "{}|{}|update|{}|{}|{old}|{new}",
                sfid(change.record),
                change.seq,
                change.phone.0,
                change.phone.1
            ));
        }
    }

    /// Takes note of so many more events.
    pub fn more_events(&mut self, events: u64) {
        self.events += events;
    }

    /// Changes in all.
    pub fn changes(&self) -> u64 {
        self.changes
    }

    /// Compares the history in a database, after the baseline only or after the whole stream.
    ///
    /// # Errors
    /// Every difference, one a line.
    pub async fn compare(&self, source: &Source, after_stream: bool, database: &Client) -> Result<(), String> {
        let (changes, events) = if after_stream { (self.changes, self.events) } else { (0, 0) };
        let mut wrong = Vec::new();
        let mut same = |what: &str, wanted: String, found: String| {
            if wanted != found {
                wrong.push(format!("{what}: {wanted} wanted, {found} found"));
            }
        };

        let outcomes = "select outcome, sum(events)::bigint from afterimage.outcomes where events > 0 group by 1";
        let found: BTreeMap<String, i64> =
            database.query(outcomes, &[]).await.unwrap().iter().map(|row| (row.get(0), row.get(1))).collect();
        let wanted = [("baseline", self.records), ("delta", changes), ("noop", events - changes)];
        let wanted: BTreeMap<String, i64> =
            wanted.into_iter().filter(|(_, n)| *n > 0).map(|(name, n)| (name.to_string(), n as i64)).collect();
        same("outcomes", format!("{wanted:?}"), format!("{found:?}"));

        let versions =
            "select count(*) filter (where op = 'baseline' and seq = 0), count(*) filter (where op = 'update'),
            count(*), coalesce(sum(seq), 0)::bigint from afterimage.changes";
        let row = database.query_one(versions, &[]).await.unwrap();
        let found: [i64; 4] = std::array::from_fn(|column| row.get(column));
        let sum = if after_stream { self.sum_of_seqs } else { 0 };
        let wanted = [self.records, changes, self.records + changes, sum].map(|n| n as i64);
        same("versions (baselines, updates, all, sum of seq)", format!("{wanted:?}"), format!("{found:?}"));

        if after_stream {
            let ids: Vec<String> = (0..self.records as u32).step_by(self.every as usize).map(sfid).collect();
            let row = database.query_one(&sample_of_changes(), &[&ids]).await.unwrap();
            let found = (row.get::<_, i64>(0), row.get::<_, String>(1), row.get::<_, i64>(2));
            let wanted = (self.sampled as i64, self.sampled_digest.to_string(), 0_i64);
            same("changes by content (number, digest, with other fields)", format!("{wanted:?}"), format!("{found:?}"));

            let row = database.query_one(&sample_of_images(), &[&ids]).await.unwrap();
            let found = (row.get::<_, i64>(0), row.get::<_, String>(1));
            let accounts = source.accounts().iter().enumerate().step_by(self.every as usize);
            let digests = accounts.map(|(index, account)| {
                let id = sfid(index as u32);
                digest(&format!("{id}|{}|live|{}|{}", account.changes, account.phone, account.score))
            });
            let wanted = (ids.len() as i64, digests.sum::<u128>().to_string());
            same("last images by content (number, digest)", format!("{wanted:?}"), format!("{found:?}"));
        }
        if wrong.is_empty() { Ok(()) } else { Err(wrong.join("\n")) }
    }
}

/// The first 60 bits of a text's MD5, so that PostgreSQL can add them up.
pub fn digest(text: &str) -> u128 {
    let hash: [u8; 16] = Md5::digest(text.as_bytes()).into();
    u128::from_be_bytes(hash) >> 68
}

/// The sum of [`digest`] over a query's rows, in SQL.
pub fn sql_digest(text: &str) -> String {
    format!("coalesce(sum(('x' || substr(md5({text}), 1, 15))::bit(60)::bigint), 0)::text")
}

fn sample_of_changes() -> String {
    let line = "concat(sfid, '|', seq, '|', op, '|', changes #>> '{phone,0}', '|', changes #>> '{phone,1}', '|',
        coalesce(changes #>> '{score__c,0}', '-'), '|', coalesce(changes #>> '{score__c,1}', '-'))";
    format!(
        "with found as materialized (
           select sfid, seq, op, changes from afterimage.changes where sfid = any($1) and seq > 0)
         select count(*), {}, count(*) filter (where changes - array['phone', 'score__c'] <> '{{}}') from found",
        sql_digest(line)
    )
}

fn sample_of_images() -> String {
    let line = "concat(sfid, '|', seq, '|', status, '|', image ->> 'phone', '|', image ->> 'score__c')";
    format!(
        "with found as materialized (
           select sfid, seq, status, image from afterimage.records where sfid = any($1))
         select count(*), {} from found",
        sql_digest(line)
    )
}
