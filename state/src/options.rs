//! Options, each argued for one load: read an image, write it back, on a small machine. The measurements are
//! RocksDB 11.8 with 500-byte images; README.md tells when to change what.

use rocksdb::{BlockBasedOptions, Cache, DBCompressionType, DBRecoveryMode, Options, WriteBufferManager};

/// What may be tuned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StateOptions {
    /// Bytes of memory for the whole store: cached blocks, their indexes and filters, and write buffers,
    /// whatever the number of positions. At least 4 MiB, smaller values count as that.
    /// Default 64 MiB, a sixteenth of a 1 GiB machine. Raise it while block reads show in a profile.
    pub memory: usize,
    /// Threads that flush and compact behind the writers. Default 2.
    pub background_threads: u16,
}

impl StateOptions {
    /// Default of [`memory`](StateOptions::memory).
    pub const MEMORY: usize = 64 << 20;
    /// Least [`memory`](StateOptions::memory).
    pub const LEAST_MEMORY: usize = 4 << 20;

    /// Bytes that have to be free on the disk before a store that has met a full one is opened again: what is in the
    /// log becomes table files of at most the write buffers' size, and compaction writes as much beside them. With
    /// less it would soon be full again.
    pub fn room(&self) -> u64 {
        self.budget() as u64 / 2
    }

    /// Memory, its bound applied.
    fn budget(&self) -> usize {
        self.memory.max(StateOptions::LEAST_MEMORY)
    }
}

impl Default for StateOptions {
    fn default() -> Self {
        StateOptions { memory: StateOptions::MEMORY, background_threads: 2 }
    }
}

/// Size of a data block before compression. 4 KiB reads less for one image than 16 KiB once the store outgrows
/// the cache (249 against 156 thousand gets a second at 5 million records), and costs 19 % more disk.
const BLOCK: usize = 4 << 10;

/// Compression by level.
const LEVELS: [DBCompressionType; 7] = {
    let mut levels = [DBCompressionType::Lz4; 7];
    levels[0] = DBCompressionType::None;
    levels
};

/// From how many unmerged files on they are merged, and what the first merged level is to have: RocksDB's own number, and
/// one for while many records are put in at once. 64 files of write buffers: half a GiB at the default memory.
pub(crate) fn merging(put_off: bool, state: &StateOptions) -> [(&'static str, String); 2] {
    let (files, base) = if put_off { (64, 16) } else { (4, 1) };
    [
        ("level0_file_num_compaction_trigger", files.to_string()),
        // They are merged by their bytes, too.
        ("max_bytes_for_level_base", (base * base_bytes(state)).to_string()),
    ]
}

/// Bytes of the first merged level.
fn base_bytes(state: &StateOptions) -> u64 {
    4 * (state.budget() / 8).max(4 << 20) as u64
}

/// RocksDB's view of the options. It keeps the cache and the write buffer manager alive by itself.
pub(crate) fn engine(state: &StateOptions) -> Options {
    let capacity = state.budget();
    // A quarter for writing, in two buffers: one fills while the other is flushed.
    let write_share = capacity / 4;
    let write_buffer = write_share / 2;

    // LRU was a tenth faster than the clock cache for few readers, and it takes the write buffers' bookkeeping.
    let cache = Cache::new_lru_cache(capacity);
    let mut table = BlockBasedOptions::default();
    table.set_block_cache(&cache);
    table.set_block_size(BLOCK);
    // Indexes and filters live in the cache: outside they would grow with the data, past any budget.
    table.set_cache_index_and_filter_blocks(true);
    table.set_pin_l0_filter_and_index_blocks_in_cache(true);
    // A filter saves a read on a miss. Misses are the rule while a store fills, and each goes on to Postgres.
    table.set_bloom_filter(10.0, false);

    let mut options = Options::default();
    options.create_if_missing(true);
    options.set_block_based_table_factory(&table);
    // No filters on the last level, where nine tenths of the data are: once full, most reads hit.
    options.set_optimize_filters_for_hits(true);
    // What was just written is rewritten soon: compressing it costs a third of writing it out.
    options.set_compression_type(DBCompressionType::Lz4);
    options.set_compression_per_level(&LEVELS);
    options.set_level_compaction_dynamic_level_bytes(true);

    // Write buffers are charged to the cache: one budget, not two. No stall: it would stop every task at once,
    // and a buffer that is too full is flushed soon enough.
    options.set_write_buffer_manager(&WriteBufferManager::new_write_buffer_manager_with_cache(
        write_share,
        false,
        cache,
    ));
    options.set_write_buffer_size(write_buffer);
    options.set_max_write_buffer_number(3);
    options.set_target_file_size_base(write_buffer.max(4 << 20) as u64);
    options.set_max_bytes_for_level_base(base_bytes(state));
    // Above what is left when merging was put off, also by a process that was killed then: or all writes would wait.
    options.set_level_zero_slowdown_writes_trigger(96);
    options.set_level_zero_stop_writes_trigger(128);
    options.set_max_background_jobs(i32::from(state.background_threads.max(1)));

    // The log is on and never synced (see `Store::commit`). After a power cut its tail may be torn or missing:
    // stop at the first damage and keep the whole batches before it. An older pair of records and mark is fine,
    // a mix would not be; and refusing to open would only lead to a wipe.
    options.set_wal_recovery_mode(DBRecoveryMode::PointInTime);
    // Write back in small steps behind the writers instead of one burst at the flush.
    options.set_bytes_per_sync(1 << 20);
    options.set_wal_bytes_per_sync(1 << 20);

    // RocksDB's own diary: bounded, since a dyno's disk is everyone's.
    options.set_keep_log_file_num(2);
    options.set_max_log_file_size(4 << 20);
    options.set_stats_dump_period_sec(0);
    options
}
