//! What one commit writes, in the order given: the last word on a key counts.

use std::collections::{BTreeMap, BTreeSet};

use crate::{Mark, PositionId, RecordKey};

/// Puts, deletes and marks for any number of positions; written whole by [`Store::commit`](crate::Store::commit),
/// or not at all.
#[derive(Default)]
pub struct WriteBatch {
    pub(crate) records: rocksdb::WriteBatch,
    /// Positions that get a value: each needs a mark.
    pub(crate) filled: BTreeSet<PositionId>,
    pub(crate) marks: BTreeMap<PositionId, Mark>,
}

impl WriteBatch {
    /// An empty batch.
    pub fn new() -> WriteBatch {
        WriteBatch::default()
    }

    /// An empty batch with room for so many bytes of keys and values.
    pub fn with_capacity(bytes: usize) -> WriteBatch {
        WriteBatch { records: rocksdb::WriteBatch::with_capacity_bytes(bytes), ..WriteBatch::default() }
    }

    /// Set the value under a key.
    pub fn put(&mut self, key: &RecordKey, value: &[u8]) {
        self.filled.insert(key.position());
        self.records.put(key.as_bytes(), value);
    }

    /// Forget the value under a key, if there is one.
    pub fn delete(&mut self, key: &RecordKey) {
        self.records.delete(key.as_bytes());
    }

    /// Set the mark of `mark.position_id`. It must follow from the stored one, see
    /// [`StateError::Rewound`](crate::StateError::Rewound).
    pub fn mark(&mut self, mark: Mark) {
        self.marks.insert(PositionId(mark.position_id), mark);
    }

    /// Number of puts, deletes and marks.
    pub fn len(&self) -> usize {
        self.records.len() + self.marks.len()
    }

    /// Whether there is nothing to write.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes of keys and values collected so far, to bound a batch by.
    pub fn size_in_bytes(&self) -> usize {
        self.records.size_in_bytes()
    }
}
