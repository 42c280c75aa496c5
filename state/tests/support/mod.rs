//! What the tests of the store share.
#![allow(dead_code, missing_docs)]

use afterimage_state::{Mark, PositionId, RecordKey, StateOptions, Store};
use std::path::Path;

/// The least memory: write buffers of half a megabyte, so that tests see flushes and compaction too.
pub fn small() -> StateOptions {
    StateOptions { memory: StateOptions::LEAST_MEMORY, ..Default::default() }
}

pub fn open(dir: &Path) -> Store {
    Store::open(dir, &small()).expect("open")
}

pub fn mark(position_id: i32, epoch: i64, next: i64) -> Mark {
    Mark { sink_id: [1; 16], position_id, epoch, token: [epoch as u8; 16], next, inval_seq: 0, missing_after: None }
}

pub fn key(position: i32, record: u32) -> RecordKey {
    RecordKey::image(PositionId(position), 1, format!("0011x{record:013}").as_bytes())
}

pub fn get(store: &Store, key: &RecordKey) -> Option<Vec<u8>> {
    store.multi_get(std::slice::from_ref(key)).expect("read").remove(0)
}

/// Bytes that compression can't shorten, the same for the same seed.
pub fn noise(seed: u32, len: usize) -> Vec<u8> {
    let mut x = u64::from(seed) * 2 + 1;
    let next = || {
        // xorshift64
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        (x >> 24) as u8
    };
    std::iter::repeat_with(next).take(len).collect()
}
