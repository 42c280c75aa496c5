//! What is known of one Salesforce record: its image, its newest version, and who may write it.

use std::collections::HashSet;
use std::hash::{BuildHasherDefault, Hasher};

use xxhash_rust::xxh3::xxh3_64;

use super::event::{Lsn, Micros};
use super::format::VersionOp;
use super::image::Image;
use super::position::PositionId;
use super::unshown::Unshown;

/// One stored version of a record, without its fields.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Version {
    /// 0 for the first; `seq = 64 · kf + n`.
    pub seq: u32,
    /// What it is.
    pub op: VersionOp,
    /// Valid from.
    pub at: Micros,
    /// The raw source time where `at` had to be moved up to the previous version's.
    pub raw_at: Option<Micros>,
    /// The event brought no usable source time; `at` is the message's.
    pub no_source_time: bool,
    /// LSN, or for a version written by a snapshot read the newest one inherited; 0 = unknown.
    pub lsn: Lsn,
    /// Where it came from.
    pub position_id: PositionId,
    /// Where it came from.
    pub offset: i64,
    /// When it was recorded.
    pub recorded: Micros,
}

impl Version {
    /// Source time for ordering.
    pub fn ts(&self) -> Option<Micros> {
        if self.no_source_time { None } else { Some(self.raw_at.unwrap_or(self.at)) }
    }
}

/// Chains of versions are cut every this many: each starts with a keyframe (protocol D16).
pub const CHAIN: u32 = 64;

/// The order bound below which a record's events are old although no version tells so (protocol D9).
/// The pair moves as one, and only to a later or equal time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Floor {
    /// LSN of the event that re-keyed or took over the record; 0 if that was a snapshot read.
    pub lsn: Lsn,
    /// Its source time; `None` = no floor.
    pub ts: Option<Micros>,
}

/// Names a record in invalidations and among the judged ones: XXH3-64, seed 0, of the object's number
/// (big-endian) and the identity.
pub fn key_hash(object_id: i16, identity: &str) -> i64 {
    // Hashing in one piece is far cheaper than in two; what is longer than any Salesforce id takes its time.
    let mut bytes = [0; 64];
    let object = object_id.to_be_bytes();
    let length = object.len() + identity.len();
    let hash = match bytes.get_mut(..length) {
        Some(whole) => {
            let (start, rest) = whole.split_at_mut(object.len());
            start.copy_from_slice(&object);
            rest.copy_from_slice(identity.as_bytes());
            xxh3_64(whole)
        }
        None => xxh3_64(&[&object, identity.as_bytes()].concat()),
    };
    hash as i64
}

/// A set of [`key_hash`]es, which need no more hashing.
pub type KeyHashes = HashSet<i64, BuildHasherDefault<Hashed>>;

/// The hasher for what is a hash.
#[derive(Debug, Default, Clone, Copy)]
pub struct Hashed(u64);

impl Hasher for Hashed {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        self.0 = xxh3_64(bytes);
    }

    fn write_i64(&mut self, hash: i64) {
        self.0 = hash as u64;
    }
}

/// The newest version as `(seq, position, offset)`: identifies it beyond doubt, also after a cancelled delete.
pub type HeadId = (u32, PositionId, i64);

/// Everything that judging an event of a record needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Registry number.
    pub rid: i32,
    /// The one position that writes it.
    pub home: Option<PositionId>,
    /// The Kafka key it lives under now; `None` after a delete or a theft.
    pub row_key: Option<Box<str>>,
    /// The key a deleted record had.
    pub deleted_key: Option<Box<str>>,
    /// Order bound.
    pub floor: Floor,
    /// What rests on rows that left no version.
    pub unshown: Unshown,
    /// Newest version; `None` = registered, nothing stored yet.
    pub head: Option<Version>,
    /// The version before a delete, wanted back when that delete is cancelled.
    pub before_delete: Option<Version>,
    /// Newest known `systemmodstamp` of the chain (local writes carry none).
    pub stamp: Option<Micros>,
    /// The chain's last `lastmodifiedbyid`.
    pub modified_by: Option<Box<str>>,
    /// Last image.
    pub image: Image,
    /// Hash of the status columns as of the last version (no-op reasons, best effort).
    pub status_hash: u32,
    /// Hash of the system columns, likewise.
    pub system_hash: u32,
}

impl Record {
    /// A record that is registered but has no version.
    pub fn registered(rid: i32, home: Option<PositionId>, row_key: Option<Box<str>>) -> Self {
        Record {
            rid,
            home,
            row_key,
            deleted_key: None,
            floor: Floor::default(),
            unshown: Unshown::default(),
            head: None,
            before_delete: None,
            stamp: None,
            modified_by: None,
            image: Image::default(),
            status_hash: 0,
            system_hash: 0,
        }
    }

    /// Whether the newest version is a delete.
    pub fn is_deleted(&self) -> bool {
        self.head.as_ref().is_some_and(|head| head.op == VersionOp::Delete)
    }

    /// Identifies the newest version.
    pub fn head_id(&self) -> Option<HeadId> {
        self.head.as_ref().map(|head| (head.seq, head.position_id, head.offset))
    }
}
