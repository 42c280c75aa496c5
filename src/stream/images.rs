//! The image store's face towards the tasks: records in, records out, by position.

use std::sync::Arc;
use std::time::Instant;

use afterimage_proto::{FieldValue, decode_record, encode_record, put_field, unpack, v1};
use afterimage_state::{Mark, PositionId as StoreId, RecordKey, StateError, Store, WriteBatch};
use metrics::histogram;
use tokio::sync::mpsc;

use crate::core::batch::StoredRecord;
use crate::core::format::VersionOp;
use crate::core::image::{Form, Image};
use crate::core::position::PositionId;
use crate::core::record::{Floor, Record, Version, key_hash};
use crate::core::unshown::Unshown;
use crate::core::value::ValueRef;
use crate::postgres::commit::Invalidated;
use crate::telemetry::names;

/// Records of all positions of this process.
#[derive(Clone)]
pub struct Images {
    store: Arc<Store>,
    /// The store is shared: when it fails, all tasks of the worker are over, whoever met the failure.
    failures: mpsc::UnboundedSender<StateError>,
}

/// The image store has failed. The worker was told why, and what it reads now is over.
#[derive(Debug, thiserror::Error)]
#[error("the image store has failed: {0}")]
pub struct StoreFailed(String);

impl Images {
    /// Over an open store; `failures` gets what it refuses.
    pub fn new(store: Arc<Store>, failures: mpsc::UnboundedSender<StateError>) -> Self {
        Images { store, failures }
    }

    fn told<T>(&self, answer: Result<T, StateError>) -> Result<T, StoreFailed> {
        answer.map_err(|error| {
            let failed = StoreFailed(error.to_string());
            // Nobody listens to a worker that stops.
            let _ = self.failures.send(error);
            failed
        })
    }

    /// How far the store is with a position; `None` = it holds nothing of it.
    ///
    /// # Errors
    /// When the store has failed.
    pub fn mark(&self, position: PositionId) -> Result<Option<Mark>, StoreFailed> {
        self.told(self.store.mark(StoreId(position)))
    }

    /// Forgets everything of a position, and begins anew with this mark, in one.
    ///
    /// # Errors
    /// When the store cannot be written.
    pub fn begin(&self, mark: Mark) -> Result<(), StoreFailed> {
        self.told(self.store.begin(mark))
    }

    /// The records that these positions hold, in the order asked; `None` = not here, ask Postgres.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn get(&self, object_id: i16, wanted: &[(PositionId, &str)]) -> Result<Vec<Option<Record>>, StoreFailed> {
        let keys: Vec<RecordKey> = wanted
            .iter()
            .map(|(position, identity)| RecordKey::image(StoreId(*position), object_id, identity.as_bytes()))
            .collect();
        let started = Instant::now();
        let found = self.told(self.store.multi_get(&keys))?;
        histogram!(names::STATE_SECONDS, "operation" => "get").record(started.elapsed().as_secs_f64());
        Ok(found
            .into_iter()
            .zip(wanted)
            .map(|(bytes, (position, _))| bytes.and_then(|bytes| decode(&bytes, *position)))
            .collect())
    }

    /// The records that were last put under these keys here; entries outlive their records' moves, so the
    /// answer may name too many, never too few.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn holders(&self, object_id: i16, keys: &[(PositionId, &str)]) -> Result<Vec<Option<Box<str>>>, StoreFailed> {
        let wanted: Vec<RecordKey> = keys
            .iter()
            .map(|(position, key)| RecordKey::row_key(StoreId(*position), object_id, key.as_bytes()))
            .collect();
        let found = self.told(self.store.multi_get(&wanted))?;
        Ok(found.into_iter().map(|bytes| Some(String::from_utf8(bytes?).ok()?.into())).collect())
    }

    /// What a committed batch leaves: its records under their homes, nothing under homes they left, nothing of
    /// what others took over, and the new marks; atomically. False, and nothing is written, if a position was claimed anew
    /// since.
    ///
    /// # Errors
    /// When the store cannot be written.
    pub fn apply(
        &self,
        object_id: i16,
        records: &[StoredRecord],
        gone: &[Invalidated],
        marks: impl IntoIterator<Item = Mark>,
    ) -> Result<bool, StoreFailed> {
        let mut batch = WriteBatch::new();
        for one in gone {
            batch.delete(&RecordKey::image(StoreId(one.position_id), one.object_id, one.identity.as_bytes()));
        }
        for one in records {
            let key = |position| RecordKey::image(StoreId(position), object_id, one.identity.as_bytes());
            if let Some(left) = one.left {
                batch.delete(&key(left));
            }
            if let Some(home) = one.record.home {
                batch.put(&key(home), &encode(&one.record));
                if let Some(row_key) = one.record.row_key.as_ref().filter(|_| one.new_key) {
                    let holder = RecordKey::row_key(StoreId(home), object_id, row_key.as_bytes());
                    batch.put(&holder, one.identity.as_bytes());
                }
            }
        }
        for mark in marks {
            batch.mark(mark);
        }
        self.commit(batch)
    }

    /// Puts in what was read back from the sink, with the marks that tell how far that has come. False, and nothing is put
    /// in, if a position was claimed anew since.
    ///
    /// # Errors
    /// When the store cannot be written.
    pub fn fill<'a>(
        &self,
        object_id: i16,
        records: impl IntoIterator<Item = &'a Restored>,
        marks: impl IntoIterator<Item = Mark>,
    ) -> Result<bool, StoreFailed> {
        let mut records: Vec<&Restored> = records.into_iter().collect();
        // Numbers of records rise as their identities and keys mostly do: kept together, what belongs together is put in in
        // nearly its order, which costs the store half as much as in turns.
        records.sort_by_key(|one| one.home);
        let mut batch = WriteBatch::with_capacity(records.iter().map(|one| one.room()).sum());
        for of_home in records.chunk_by(|one, next| one.home == next.home) {
            for one in of_home {
                let key = RecordKey::image(StoreId(one.home), object_id, one.identity.as_bytes());
                batch.put(&key, &one.bytes);
            }
            for one in of_home {
                if let Some(row_key) = &one.row_key {
                    let key = RecordKey::row_key(StoreId(one.home), object_id, row_key.as_bytes());
                    batch.put(&key, one.identity.as_bytes());
                }
            }
        }
        for mark in marks {
            batch.mark(mark);
        }
        self.commit(batch)
    }

    /// Bytes that are free on the store's disk, if the system tells.
    pub fn room(&self) -> Option<u64> {
        self.store.room().ok()
    }

    /// While `on`, the store merges its files later: for as long as many records are put in. It only makes that faster.
    pub fn put_off_merging(&self, on: bool) {
        if let Err(error) = self.store.put_off_merging(on) {
            tracing::debug!(%error, "merging in the image store");
        }
    }

    fn commit(&self, batch: WriteBatch) -> Result<bool, StoreFailed> {
        let started = Instant::now();
        let written = match self.store.commit(batch) {
            Err(StateError::Rewound { .. }) => false,
            written => self.told(written).map(|()| true)?,
        };
        histogram!(names::STATE_SECONDS, "operation" => "put").record(started.elapsed().as_secs_f64());
        Ok(written)
    }
}

/// A record as it was read back from the sink.
pub struct Restored {
    /// Its [`key_hash`].
    pub hash: i64,
    /// Its identity.
    pub identity: Box<str>,
    /// The position that holds it.
    pub home: PositionId,
    /// Its key.
    pub row_key: Option<Box<str>>,
    /// As the store keeps it.
    pub bytes: Vec<u8>,
}

impl Restored {
    /// Bytes that it takes in a batch, about.
    fn room(&self) -> usize {
        let row_key = self.row_key.as_ref().map_or(0, |key| key.len() + self.identity.len() + 16);
        self.bytes.len() + self.identity.len() + 16 + row_key
    }

    /// Of a record with a home and a history.
    pub fn of(object_id: i16, identity: Box<str>, record: &Record) -> Option<Restored> {
        // One that was only registered holds no key.
        let home = record.home.filter(|_| record.head.is_some())?;
        let hash = key_hash(object_id, &identity);
        Some(Restored { hash, identity, home, row_key: record.row_key.clone(), bytes: encode(record) })
    }
}

fn version_out(version: &Version) -> v1::Version {
    v1::Version {
        seq: version.seq,
        op: version.op as i32,
        at: version.at,
        raw_at: version.raw_at,
        lsn: version.lsn,
        position_id: version.position_id,
        offset: version.offset,
        recorded: version.recorded,
        no_source_time: version.no_source_time,
    }
}

fn version_in(version: v1::Version) -> Option<Version> {
    Some(Version {
        seq: version.seq,
        op: VersionOp::from_number(u8::try_from(version.op).ok()?)?,
        at: version.at,
        raw_at: version.raw_at,
        no_source_time: version.no_source_time,
        lsn: version.lsn,
        position_id: version.position_id,
        offset: version.offset,
        recorded: version.recorded,
    })
}

/// A record as the store keeps it.
pub fn encode(record: &Record) -> Vec<u8> {
    let mut image = Vec::with_capacity(record.image.text_len() + 4 * record.image.fields().len());
    for (no, value) in record.image.fields() {
        let value = match value {
            ValueRef::Null => FieldValue::Null,
            ValueRef::Unknown => FieldValue::Unknown,
            ValueRef::Text(text) => FieldValue::Text(text),
        };
        put_field(&mut image, no, value);
    }
    let mut stored = v1::Record {
        format: 0,
        rid: record.rid,
        row_key: record.row_key.as_deref().map(Into::into),
        deleted_key: record.deleted_key.as_deref().map(Into::into),
        floor: Some(v1::Floor { lsn: record.floor.lsn, ts: record.floor.ts }),
        head: record.head.as_ref().map(version_out),
        prev: record.before_delete.as_ref().map(version_out),
        stamp: record.stamp,
        modified_by: record.modified_by.as_deref().map(Into::into),
        fields: Vec::new(),
        image,
        status_hash: record.status_hash,
        system_hash: record.system_hash,
        unshown: record.unshown.to_bytes().unwrap_or_default(),
    };
    encode_record(&mut stored)
}

/// The record that `home` holds; `None` where the bytes are not in this version's form: then Postgres is asked.
pub fn decode(bytes: &[u8], home: PositionId) -> Option<Record> {
    let stored = decode_record(bytes).ok()?;
    let (texts, fields) = unpack(&stored.image).ok()?;
    let fields = fields.into_iter().map(|field| {
        let form = match field.value {
            FieldValue::Null => Form::Null,
            FieldValue::Unknown => Form::Unknown,
            FieldValue::Text(()) => Form::Text,
        };
        (field.no, form, field.end)
    });
    let image = Image::packed(texts, fields)?;
    let floor = stored.floor.unwrap_or_default();
    Some(Record {
        rid: stored.rid,
        home: Some(home),
        row_key: stored.row_key.map(Into::into),
        deleted_key: stored.deleted_key.map(Into::into),
        floor: Floor { lsn: floor.lsn, ts: floor.ts },
        unshown: Unshown::from_bytes(Some(&stored.unshown)),
        head: stored.head.map(version_in).map_or(Some(None), |version| version.map(Some))?,
        before_delete: stored.prev.map(version_in).map_or(Some(None), |version| version.map(Some))?,
        stamp: stored.stamp,
        modified_by: stored.modified_by.map(Into::into),
        image,
        status_hash: stored.status_hash,
        system_hash: stored.system_hash,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_of_an_older_claim_is_refused_whole_and_no_failure() {
        let dir = tempfile::tempdir().unwrap();
        let store = Arc::new(Store::open(dir.path(), &afterimage_state::StateOptions::default()).unwrap());
        let (failures, mut failed) = mpsc::unbounded_channel();
        let images = Images::new(store, failures);
        let mark = |epoch: i64, next| Mark {
            sink_id: [1; 16],
            position_id: 7,
            epoch,
            token: [epoch as u8; 16],
            next,
            inval_seq: 0,
            missing_after: Some(0),
        };
        let mut record = Record::registered(1, Some(7), Some("k".into()));
        record.head = Some(Version {
            seq: 0,
            op: VersionOp::Create,
            at: 1,
            raw_at: None,
            no_source_time: false,
            lsn: 1,
            position_id: 7,
            offset: 1,
            recorded: 1,
        });
        let restored = Restored::of(1, "a".into(), &record).unwrap();
        let get = || images.get(1, &[(7, "a")]).unwrap().remove(0);
        assert!(images.apply(1, &[], &[], [mark(5, 200)]).unwrap());
        assert!(!images.fill(1, [&restored], [mark(3, 100)]).unwrap(), "read back under the claim before");
        assert!(!images.apply(1, &[], &[], [mark(3, 100)]).unwrap());
        assert!(get().is_none() && failed.try_recv().is_err());
        assert!(images.fill(1, [&restored], [mark(5, 200)]).unwrap());
        assert_eq!(get().as_ref(), Some(&record));
        record.head = None;
        assert!(Restored::of(1, "b".into(), &record).is_none(), "it was only registered");
    }
}
