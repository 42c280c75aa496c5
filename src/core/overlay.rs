//! What the open and the sealed-but-uncommitted batches know: records, keys, rows waiting for an id.
//!
//! The overlay belongs to the tasks of one topic on one worker, so a record that moves between two of
//! their partitions is seen by both at once. Entries that no batch changed are only borrowed for a while
//! and leave with [`Overlay::forget_clean`]; changed ones leave when the batch that changed them last is
//! known to be committed.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;

use foldhash::fast::RandomState;

use super::event::{FieldNo, Lsn, Micros};
use super::position::PositionId;
use super::record::{Floor, HeadId, Record};
use super::unshown::Unshown;
use super::value::Value;

/// A record's registry row as Postgres has it, or will have it once every sealed batch is committed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// Home.
    pub home: Option<PositionId>,
    /// Key.
    pub row_key: Option<Box<str>>,
    /// Floor.
    pub floor: Floor,
    /// What rests on rows that left no version.
    pub unshown: Unshown,
    /// Newest version.
    pub head: Option<HeadId>,
    /// Number of its home's last invalidation when it was looked up; `None` = this worker knows of them by itself.
    pub inval_seq: Option<i64>,
}

impl Seen {
    /// As the record stands.
    pub fn of(record: &Record) -> Self {
        let (row_key, head) = (record.row_key.clone(), record.head_id());
        let unshown = record.unshown.clone();
        Seen { home: record.home, row_key, floor: record.floor, unshown, head, inval_seq: None }
    }
}

/// A record as a lookup in Postgres found it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// The record.
    pub record: Record,
    /// Number of its home's last invalidation at that moment. A splice may change a record's image and leave home, floor
    /// and newest version as they were; only the log of its home tells.
    pub inval_seq: Option<i64>,
}

/// One record in the overlay.
#[derive(Debug, Clone)]
pub struct RecordSlot {
    /// As it stands after the last judged event. A sealed batch shares it until the next event changes it.
    pub record: Arc<Record>,
    /// As the last sealed batch leaves it in Postgres.
    pub seen: Seen,
    /// The newest batch that changed it.
    pub dirty: Option<u64>,
    /// The image store has it under `seen`'s home and key, or will once every sealed batch is committed.
    pub stored: bool,
}

/// The last record seen under a key that it does not hold now (`afterimage.old_key`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OldKey {
    /// Its identity.
    pub identity: Box<str>,
    /// Its registry number.
    pub rid: i32,
    /// LSN of the event by which it lost the key, or of the stale one under it.
    pub lsn: Lsn,
    /// Source time of that event.
    pub ts: Option<Micros>,
}

/// A row that Salesforce has not given an id yet, whole (`afterimage.pending`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PendingRow {
    /// 0 for the insert, then one per edit while pending.
    pub n: i16,
    /// When it was so.
    pub at: Micros,
    /// LSN of its event.
    pub lsn: Lsn,
    /// Where it came from.
    pub position_id: PositionId,
    /// Where it came from.
    pub offset: i64,
    /// An application's write.
    pub local: bool,
    /// Its stamp, if any.
    pub stamp: Option<Micros>,
    /// All visible fields then, placeholders filled.
    pub fields: Vec<(FieldNo, Value)>,
}

/// Everything known about one row key.
#[derive(Debug, Clone, Default)]
pub struct KeySlot {
    /// The record that holds it now.
    pub owner: Option<Box<str>>,
    /// The one that held it before.
    pub old: Option<OldKey>,
    /// A row without identity under it, oldest first.
    pub pending: Vec<PendingRow>,
    /// The newest batch that changed `old` or `pending` (`owner` is written with its record).
    pub dirty: Option<u64>,
    /// A batch changed `owner`: what Postgres says of it is out of date until that batch is committed.
    pub owner_dirty: Option<u64>,
}

/// See the module.
#[derive(Debug, Default)]
pub struct Overlay {
    records: HashMap<Box<str>, RecordSlot, RandomState>,
    keys: HashMap<Box<str>, KeySlot, RandomState>,
    /// What was loaded since the clean was forgotten last.
    loaded: Vec<Box<str>>,
    loaded_keys: Vec<Box<str>>,
}

impl Overlay {
    /// The record, if it is here.
    pub fn record(&self, identity: &str) -> Option<&RecordSlot> {
        self.records.get(identity)
    }

    /// The record, to be changed.
    pub fn record_mut(&mut self, identity: &str) -> Option<&mut RecordSlot> {
        self.records.get_mut(identity)
    }

    /// What is known of the key, if it is here.
    pub fn key(&self, key: &str) -> Option<&KeySlot> {
        self.keys.get(key)
    }

    /// The key's slot, made empty if missing. Only for keys whose state is known (looked up, or just lost by
    /// the record that held it).
    pub fn key_mut(&mut self, key: &str) -> &mut KeySlot {
        if !self.keys.contains_key(key) {
            self.loaded_keys.push(key.into());
            self.keys.insert(key.into(), KeySlot::default());
        }
        self.keys.get_mut(key).expect("inserted above")
    }

    /// Takes in a record that nobody else changes. One that is here already is newer and stays.
    pub fn load_record(&mut self, identity: Box<str>, record: Record) {
        self.load(identity, Found { record, inval_seq: None }, false);
    }

    /// The same for what a lookup in Postgres found.
    pub fn load_found(&mut self, identity: Box<str>, found: Found) {
        self.load(identity, found, false);
    }

    /// The same for what the image store had.
    pub fn load_stored(&mut self, identity: Box<str>, record: Record) {
        self.load(identity, Found { record, inval_seq: None }, true);
    }

    fn load(&mut self, identity: Box<str>, found: Found, stored: bool) {
        if let Entry::Vacant(vacant) = self.records.entry(identity) {
            self.loaded.push(vacant.key().clone());
            let Found { record, inval_seq } = found;
            let seen = Seen { inval_seq, ..Seen::of(&record) };
            vacant.insert(RecordSlot { seen, record: Arc::new(record), dirty: None, stored });
        }
    }

    /// Takes in what a lookup found for a key; `owner` is dropped if the overlay knows that the record has
    /// left the key since.
    pub fn load_key(&mut self, key: Box<str>, mut slot: KeySlot) {
        if self.keys.contains_key(&key) {
            return;
        }
        if let Some(owner) = &slot.owner
            && let Some(known) = self.records.get(owner)
            && known.record.row_key.as_deref() != Some(&key)
        {
            slot.owner = None;
        }
        self.loaded_keys.push(key.clone());
        self.keys.insert(key, slot);
    }

    /// Whether the key's owner, as looked up, holds it no more: another worker moved the record between two
    /// questions. Then both are dropped, to be asked again; what a batch changed stays.
    pub fn forget_if_moved(&mut self, key: &str) -> bool {
        let Some(slot) = self.keys.get(key) else { return false };
        let Some(owner) = slot.owner.clone() else { return false };
        if slot.dirty.is_some() || slot.owner_dirty.is_some() {
            return false;
        }
        let moved = self
            .records
            .get(&owner)
            .is_some_and(|found| found.dirty.is_none() && found.record.row_key.as_deref() != Some(key));
        if moved {
            self.keys.remove(key);
            self.records.remove(&owner);
        }
        moved
    }

    /// Drops what was loaded and no batch changed.
    pub fn forget_clean(&mut self) {
        for identity in self.loaded.drain(..) {
            if self.records.get(&identity).is_some_and(|slot| slot.dirty.is_none()) {
                self.records.remove(&identity);
            }
        }
        for key in self.loaded_keys.drain(..) {
            if self.keys.get(&key).is_some_and(|slot| slot.dirty.is_none() && slot.owner_dirty.is_none()) {
                self.keys.remove(&key);
            }
        }
    }

    /// Batch `number` and all before it are committed and in the image store.
    pub fn committed(&mut self, number: u64) {
        let open = |dirty: &mut Option<u64>| {
            if dirty.is_some_and(|n| n <= number) {
                *dirty = None;
            }
        };
        for slot in self.records.values_mut() {
            open(&mut slot.dirty);
        }
        for slot in self.keys.values_mut() {
            open(&mut slot.dirty);
            open(&mut slot.owner_dirty);
        }
        self.records.retain(|_, slot| slot.dirty.is_some());
        self.keys.retain(|_, slot| slot.dirty.is_some() || slot.owner_dirty.is_some());
        self.loaded.clear();
        self.loaded_keys.clear();
    }

    /// Everything is void (rewind).
    pub fn clear(&mut self) {
        self.records.clear();
        self.keys.clear();
        self.loaded.clear();
        self.loaded_keys.clear();
    }
}
