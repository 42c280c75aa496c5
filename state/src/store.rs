//! The store: one RocksDB, all positions of the process in it.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, OnceLock},
};

use rocksdb::{DB, DBRawIterator, ReadOptions, properties};

use crate::{Mark, PositionId, RecordKey, StateError, StateOptions, WriteBatch, directory::Directory, layout, options};

/// Images and marks of every position this process has worked on. One per directory; share it by `Arc`.
pub struct Store {
    // Fields drop in this order: RocksDB is closed before the directory is unlocked.
    db: DB,
    images: PathBuf,
    options: StateOptions,
    /// Every stored mark. Its lock is the writers' lock: what is checked against the marks is written before
    /// they can change. Readers of records don't take it.
    marks: Mutex<BTreeMap<PositionId, Mark>>,
    poison: OnceLock<String>,
    directory: Directory,
}

/// How large the store is. Numbers of bytes and records are RocksDB's estimates.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Stats {
    /// Positions with a mark; exact.
    pub positions: usize,
    /// Keys, marks and row keys included.
    pub keys: u64,
    /// Bytes of live table files.
    pub disk_bytes: u64,
    /// Bytes of memory in use: blocks, indexes, filters and write buffers, in the cache or outside it.
    pub memory_bytes: u64,
    /// The part of it that is write buffers.
    pub write_buffer_bytes: u64,
    /// Bytes of memory allowed.
    pub memory_capacity: u64,
    /// Bytes that compaction has yet to rewrite; a number that only rises means that the disk can't keep up.
    pub compaction_debt_bytes: u64,
}

/// What the store holds of one position; exact.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Contents {
    /// Images.
    pub images: u64,
    /// Row keys.
    pub row_keys: u64,
    /// Bytes of all keys and values, as they are before compression.
    pub bytes: u64,
}

/// Keys per call of RocksDB's batched read: bounds the blocks that one call pins.
const READ_CHUNK: usize = 1024;

impl Store {
    /// Open the store in `dir`; makes one if there is none.
    ///
    /// # Errors
    /// [`StateError::Locked`], [`StateError::Format`], [`StateError::Corrupted`], [`StateError::Full`],
    /// [`StateError::Io`], [`StateError::Engine`]: the variants say what to do.
    pub fn open(dir: &Path, options: &StateOptions) -> Result<Store, StateError> {
        let directory = Directory::open(dir)?;
        let images = directory.images();
        let given = options.clone();
        let options = options::engine(options);
        // Named, since batched reads want the family's handle; with its options, since it would get RocksDB's
        // defaults otherwise.
        let families = [(rocksdb::DEFAULT_COLUMN_FAMILY_NAME, options.clone())];
        let db = DB::open_cf_with_opts(&options, &images, families)
            .map_err(|error| StateError::engine("open", &images, error))?;
        let marks = Mutex::new(read_marks(&db, &images)?);
        Ok(Store { db, images, options: given, marks, poison: OnceLock::new(), directory })
    }

    /// Who this disk is: a UUID made with the directory and kept in it, also by [`wipe`](crate::wipe).
    pub fn instance_id(&self) -> &str {
        &self.directory.instance_id
    }

    /// The mark of a position; `None` = the store holds nothing of it.
    ///
    /// # Errors
    /// [`StateError::Poisoned`].
    pub fn mark(&self, position: PositionId) -> Result<Option<Mark>, StateError> {
        Ok(self.marks_lock()?.get(&position).copied())
    }

    /// The marks of all positions present, ascending by position.
    ///
    /// # Errors
    /// [`StateError::Poisoned`].
    pub fn marks(&self) -> Result<Vec<Mark>, StateError> {
        Ok(self.marks_lock()?.values().copied().collect())
    }

    /// The values under these keys, in their order; `None` = not here, which says nothing about the sink.
    ///
    /// # Errors
    /// [`StateError::Poisoned`], [`StateError::Corrupted`], [`StateError::Engine`].
    pub fn multi_get(&self, keys: &[RecordKey]) -> Result<Vec<Option<Vec<u8>>>, StateError> {
        self.refuse_if_poisoned()?;
        let column = self.db.cf_handle(rocksdb::DEFAULT_COLUMN_FAMILY_NAME).ok_or_else(|| StateError::Corrupted {
            path: self.images.clone(),
            detail: "no default column family".into(),
        })?;
        // Sorted input saves RocksDB a sort of its own and walks each block once.
        let mut order: Vec<usize> = (0..keys.len()).collect();
        order.sort_unstable_by(|&a, &b| keys[a].cmp(&keys[b]));
        let mut values = vec![None; keys.len()];
        for chunk in order.chunks(READ_CHUNK) {
            let sorted = chunk.iter().map(|&at| keys[at].as_bytes());
            for (&at, value) in chunk.iter().zip(self.db.batched_multi_get_cf(&column, sorted, true)) {
                let value = value.map_err(|error| StateError::engine("read", &self.images, error))?;
                values[at] = value.map(|bytes| bytes.to_vec());
            }
        }
        Ok(values)
    }

    /// What the store holds of a position. Reads all of it.
    ///
    /// # Errors
    /// [`StateError::Poisoned`], [`StateError::Corrupted`], [`StateError::Engine`].
    pub fn contents(&self, position: PositionId) -> Result<Contents, StateError> {
        self.refuse_if_poisoned()?;
        let (from, to) = layout::range(position);
        let mut contents = Contents::default();
        let mut keys = self.range(from, to);
        while let Some((key, value)) = keys.item() {
            contents.bytes += (key.len() + value.len()) as u64;
            if RecordKey::stored_image(key).is_some() {
                contents.images += 1;
            } else if key != layout::mark_key(position) {
                contents.row_keys += 1;
            }
            keys.next();
        }
        keys.status().map_err(|error| StateError::engine("read", &self.images, error))?;
        Ok(contents)
    }

    /// At most `limit` images of a position in the order of their keys, those after `after`.
    ///
    /// # Errors
    /// [`StateError::Poisoned`], [`StateError::Corrupted`], [`StateError::Engine`].
    pub fn images(
        &self,
        position: PositionId,
        after: Option<&RecordKey>,
        limit: usize,
    ) -> Result<Vec<(RecordKey, Vec<u8>)>, StateError> {
        self.refuse_if_poisoned()?;
        let (from, to) = layout::images(position);
        let mut keys = self.range(from, to);
        if let Some(after) = after {
            keys.seek(after.as_bytes());
            if keys.key() == Some(after.as_bytes()) {
                keys.next();
            }
        }
        let mut found = Vec::new();
        while found.len() < limit
            && let Some((key, value)) = keys.item()
        {
            found.extend(RecordKey::stored_image(key).map(|key| (key, value.to_vec())));
            keys.next();
        }
        keys.status().map_err(|error| StateError::engine("read", &self.images, error))?;
        Ok(found)
    }

    /// Write a batch, whole or not at all. It survives the end of this process from here on, kill -9 included;
    /// a power cut may undo it together with everything after it: the log isn't synced, since the mark tells what
    /// is missing and the sink has it.
    ///
    /// A batch without marks may fill a position that has one: values that were true at that mark.
    ///
    /// # Errors
    /// [`StateError::Rewound`] and [`StateError::Unmarked`]: nothing written, the store lives on.
    /// [`StateError::Full`], [`StateError::Engine`], [`StateError::Corrupted`]: the store is poisoned from now on.
    pub fn commit(&self, batch: WriteBatch) -> Result<(), StateError> {
        let mut stored = self.marks_lock()?;
        for (position, &offered) in &batch.marks {
            match stored.get(position) {
                Some(&stored) if !follows(&stored, &offered) => {
                    return Err(StateError::Rewound { stored: stored.into(), offered: offered.into() });
                }
                _ => {}
            }
        }
        for &position in &batch.filled {
            if !batch.marks.contains_key(&position) && !stored.contains_key(&position) {
                return Err(StateError::Unmarked(position));
            }
        }
        let WriteBatch { mut records, marks, .. } = batch;
        for (&position, mark) in &marks {
            records.put(layout::mark_key(position), mark.encode());
        }
        self.write("commit", records)?;
        stored.extend(marks);
        Ok(())
    }

    /// Forget everything of a position, its mark included, at once.
    ///
    /// # Errors
    /// [`StateError::Full`], [`StateError::Engine`], [`StateError::Corrupted`]: the store is poisoned from now on.
    pub fn clear(&self, position: PositionId) -> Result<(), StateError> {
        self.forget(position, None)
    }

    /// Forget everything of a position, and set this mark instead, whatever stood there: in one write, so that no batch of
    /// an older mark finds its way between.
    ///
    /// # Errors
    /// As of [`clear`](Store::clear).
    pub fn begin(&self, mark: Mark) -> Result<(), StateError> {
        self.forget(PositionId(mark.position_id), Some(mark))
    }

    fn forget(&self, position: PositionId, mark: Option<Mark>) -> Result<(), StateError> {
        let mut stored = self.marks_lock()?;
        let (from, to) = layout::range(position);
        let mut records = rocksdb::WriteBatch::default();
        // Every range tombstone costs later reads until it is compacted away: none for an empty range, so that
        // claiming 256 new partitions leaves none.
        if stored.contains_key(&position) || !self.is_empty(from, to)? {
            // Not `delete_file_in_range`, which frees the disk sooner: it can drop a file that holds a newer value
            // or this very tombstone, and an older value below it would come back.
            records.delete_range(from, to);
        }
        if let Some(mark) = &mark {
            records.put(layout::mark_key(position), mark.encode());
        }
        if !records.is_empty() {
            self.write("clear", records)?;
        }
        match mark {
            Some(mark) => stored.insert(position, mark),
            None => stored.remove(&position),
        };
        Ok(())
    }

    /// Bytes that are free on its disk.
    ///
    /// # Errors
    /// When the system does not tell.
    pub fn room(&self) -> std::io::Result<u64> {
        crate::free(&self.images)
    }

    /// While `on`, files are merged later and more at a time: for whoever puts in many records at once. Each write is then
    /// rewritten once less, and a read looks into more files.
    ///
    /// # Errors
    /// [`StateError::Engine`].
    pub fn put_off_merging(&self, on: bool) -> Result<(), StateError> {
        let merging = options::merging(on, &self.options);
        let merging = merging.each_ref().map(|(name, value)| (*name, value.as_str()));
        self.db.set_options(&merging).map_err(|error| StateError::engine("set options of", &self.images, error))
    }

    /// How large the store is. Cheap enough for every scrape of metrics; works on a poisoned store too.
    pub fn stats(&self) -> Stats {
        let number = |name| self.db.property_int_value(name).ok().flatten().unwrap_or(0);
        Stats {
            positions: self.marks.lock().map_or(0, |marks| marks.len()),
            keys: number(properties::ESTIMATE_NUM_KEYS),
            disk_bytes: number(properties::LIVE_SST_FILES_SIZE),
            memory_bytes: number(properties::BLOCK_CACHE_USAGE) + number(properties::ESTIMATE_TABLE_READERS_MEM),
            write_buffer_bytes: number(properties::SIZE_ALL_MEM_TABLES),
            memory_capacity: number(properties::BLOCK_CACHE_CAPACITY),
            compaction_debt_bytes: number(properties::ESTIMATE_PENDING_COMPACTION_BYTES),
        }
    }

    fn is_empty(&self, from: [u8; 5], to: [u8; 5]) -> Result<bool, StateError> {
        let keys = self.range(from, to);
        let empty = !keys.valid();
        keys.status().map_err(|error| StateError::engine("read", &self.images, error))?;
        Ok(empty)
    }

    /// Stands at the first key of a range, and ends with it.
    fn range(&self, from: [u8; 5], to: [u8; 5]) -> DBRawIterator<'_> {
        let mut options = ReadOptions::default();
        options.set_iterate_upper_bound(to);
        let mut keys = self.db.raw_iterator_opt(options);
        keys.seek(from);
        keys
    }

    /// The only write. After a failure nobody knows whether the log has it, so nothing may be built on either
    /// answer before the log is read again.
    fn write(&self, operation: &'static str, records: rocksdb::WriteBatch) -> Result<(), StateError> {
        self.db.write(records).map_err(|error| {
            let _ = self.poison.set(error.to_string());
            StateError::engine(operation, &self.images, error)
        })
    }

    fn refuse_if_poisoned(&self) -> Result<(), StateError> {
        match self.poison.get() {
            Some(reason) => Err(StateError::Poisoned(reason.clone())),
            None => Ok(()),
        }
    }

    /// The marks, unless the store is poisoned. Asked after the lock is taken: the writer before us may have
    /// been the one that failed.
    fn marks_lock(&self) -> Result<MutexGuard<'_, BTreeMap<PositionId, Mark>>, StateError> {
        let marks =
            self.marks.lock().map_err(|_| StateError::Poisoned("a writer panicked between check and write".into()))?;
        self.refuse_if_poisoned()?;
        Ok(marks)
    }
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Store").field("images", &self.images).field("stats", &self.stats()).finish_non_exhaustive()
    }
}

/// Whether a mark may replace another. Within one life of a sink everything only grows; whatever else came
/// about must go through `clear`, or records of two lives would stand under one mark.
fn follows(stored: &Mark, offered: &Mark) -> bool {
    offered.sink_id == stored.sink_id
        && (offered.epoch > stored.epoch || offered.epoch == stored.epoch && offered.token == stored.token)
        && offered.next >= stored.next
        && offered.inval_seq >= stored.inval_seq
}

/// All marks, by hopping from position to position: a mark is the first key of its range.
fn read_marks(db: &DB, images: &Path) -> Result<BTreeMap<PositionId, Mark>, StateError> {
    let damaged = |detail: String| StateError::Corrupted { path: images.to_owned(), detail };
    let mut marks = BTreeMap::new();
    let mut keys = db.raw_iterator();
    keys.seek_to_first();
    while let Some((key, value)) = keys.item() {
        let position =
            layout::position_of(key).ok_or_else(|| damaged(format!("a strange key: {}", key.escape_ascii())))?;
        if key != layout::mark_key(position) {
            return Err(damaged(format!("records of position {position} without a mark")));
        }
        let mark = Mark::decode(value).map_err(|error| StateError::wire(images, error))?;
        if mark.position_id != position.0 {
            return Err(damaged(format!("position {position} has the mark of {}", mark.position_id)));
        }
        marks.insert(position, mark);
        keys.seek(layout::range(position).1);
    }
    keys.status().map_err(|error| StateError::engine("read", images, error))?;
    Ok(marks)
}
