//! Records and marks move together or not at all; and a mark never goes back.

mod support;

use afterimage_state::{Mark, PositionId, RecordKey, StateError, StateOptions, Store, WriteBatch};
use std::{path::Path, process::Command};
use support::{get, key, mark, noise, open, small};

#[test]
fn one_batch_carries_records_and_marks_of_several_positions() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let mut batch = WriteBatch::new();
    for position in [1, 2, 300] {
        batch.put(&key(position, 0), &[position as u8]);
        batch.mark(mark(position, 1, 10));
    }
    assert_eq!(batch.len(), 6);
    store.commit(batch).unwrap();
    for position in [1, 2, 300] {
        assert_eq!(get(&store, &key(position, 0)), Some(vec![position as u8]));
        assert_eq!(store.mark(PositionId(position)).unwrap(), Some(mark(position, 1, 10)));
    }
    assert_eq!(store.marks().unwrap(), [mark(1, 1, 10), mark(2, 1, 10), mark(300, 1, 10)]);
    assert_eq!(store.mark(PositionId(3)).unwrap(), None);
}

#[test]
fn the_last_word_on_a_key_counts() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let mut batch = WriteBatch::new();
    batch.mark(mark(1, 1, 1));
    batch.put(&key(1, 1), b"a");
    batch.delete(&key(1, 1));
    batch.delete(&key(1, 2));
    batch.put(&key(1, 2), b"b");
    store.commit(batch).unwrap();
    assert_eq!(store.multi_get(&[key(1, 1), key(1, 2)]).unwrap(), [None, Some(b"b".to_vec())]);
}

/// More keys than one read takes, in no order, some of them twice, some missing.
#[test]
fn values_come_in_the_order_of_their_keys() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let mut batch = WriteBatch::new();
    batch.mark(mark(1, 1, 1));
    for record in (0..3000).step_by(3) {
        batch.put(&key(1, record), &record.to_be_bytes());
    }
    store.commit(batch).unwrap();
    let asked: Vec<u32> = (0..5000).map(|i| i * 1663 % 3000).collect();
    let keys: Vec<RecordKey> = asked.iter().map(|&record| key(1, record)).collect();
    let expected: Vec<_> = asked.iter().map(|r| (r % 3 == 0).then(|| r.to_be_bytes().to_vec())).collect();
    assert_eq!(store.multi_get(&keys).unwrap(), expected);
    assert_eq!(store.multi_get(&[]).unwrap(), Vec::<Option<Vec<u8>>>::new());
}

#[test]
fn images_and_row_keys_of_equal_text_are_different_things() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let keys = [
        RecordKey::image(PositionId(1), 1, b"9001"),
        RecordKey::row_key(PositionId(1), 1, b"9001"),
        RecordKey::image(PositionId(1), 2, b"9001"),
        RecordKey::image(PositionId(1), 1, b"900"),
        RecordKey::image(PositionId(1), 1, b""),
    ];
    let mut batch = WriteBatch::new();
    batch.mark(mark(1, 1, 1));
    for (value, key) in keys.iter().enumerate() {
        batch.put(key, &[value as u8]);
    }
    store.commit(batch).unwrap();
    assert_eq!(store.multi_get(&keys).unwrap(), (0..5).map(|value| Some(vec![value])).collect::<Vec<_>>());
}

/// A batch of position 1 (which may move) and 2 (whose new mark is `offered`).
fn offer(store: &Store, offered: Mark) -> Result<(), StateError> {
    let mut batch = WriteBatch::new();
    batch.mark(Mark { next: 99, ..mark(1, 5, 20) });
    batch.put(&key(1, 0), b"new");
    batch.put(&key(2, 0), b"new");
    batch.mark(offered);
    store.commit(batch)
}

#[test]
fn a_mark_that_does_not_follow_is_refused_with_its_whole_batch() {
    let stored = Mark { inval_seq: 3, ..mark(2, 5, 20) };
    let refused = [
        ("next goes back", Mark { next: 19, ..stored }),
        ("an invalidation is forgotten", Mark { inval_seq: 2, ..stored }),
        ("a lower epoch", Mark { epoch: 4, ..stored }),
        ("a lower epoch further on", Mark { epoch: 4, next: 30, ..stored }),
        ("another claim of the same epoch", Mark { token: [9; 16], next: 30, ..stored }),
        ("another sink", Mark { sink_id: [9; 16], epoch: 6, next: 30, ..stored }),
        ("a new claim that goes back", Mark { epoch: 6, token: [6; 16], next: 19, ..stored }),
    ];
    for (name, offered) in refused {
        let dir = tempfile::tempdir().unwrap();
        let store = open(dir.path());
        let mut batch = WriteBatch::new();
        for mark in [mark(1, 5, 20), stored] {
            batch.put(&key(mark.position_id, 0), b"old");
            batch.mark(mark);
        }
        store.commit(batch).unwrap();
        let error = offer(&store, offered).unwrap_err();
        assert!(
            matches!(error, StateError::Rewound { stored: s, offered: o } if *s == stored && *o == offered),
            "{name}"
        );
        // Nothing of it is there, the other position's part included, and the store lives on.
        assert_eq!(store.marks().unwrap(), [mark(1, 5, 20), stored], "{name}");
        assert_eq!(store.multi_get(&[key(1, 0), key(2, 0)]).unwrap(), [Some(b"old".to_vec()), Some(b"old".to_vec())]);
        // Clearing is the way back.
        store.clear(PositionId(2)).unwrap();
        offer(&store, offered).unwrap();
        assert_eq!(store.mark(PositionId(2)).unwrap(), Some(offered), "{name}");
    }
}

#[test]
fn a_mark_may_stand_still_and_a_new_claim_may_take_over() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let stored = mark(2, 5, 20);
    for offered in [stored, stored, Mark { next: 21, ..stored }, Mark { inval_seq: 1, ..mark(2, 7, 21) }] {
        let mut batch = WriteBatch::new();
        batch.mark(offered);
        store.commit(batch).unwrap();
        assert_eq!(store.mark(PositionId(2)).unwrap(), Some(offered));
    }
}

#[test]
fn records_without_a_mark_are_refused_but_a_marked_position_may_be_filled() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let fill = || {
        let mut batch = WriteBatch::new();
        batch.put(&key(4, 0), b"read from the sink");
        batch
    };
    assert!(matches!(store.commit(fill()), Err(StateError::Unmarked(PositionId(4)))));
    assert_eq!(get(&store, &key(4, 0)), None);
    let mut batch = WriteBatch::new();
    batch.mark(mark(4, 1, 0));
    store.commit(batch).unwrap();
    store.commit(fill()).unwrap();
    assert_eq!(get(&store, &key(4, 0)), Some(b"read from the sink".to_vec()));
    // After a clear the position is as if it had never been.
    store.clear(PositionId(4)).unwrap();
    assert!(matches!(store.commit(fill()), Err(StateError::Unmarked(PositionId(4)))));
}

#[test]
fn clearing_takes_one_position_with_its_mark_and_no_other() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let mut batch = WriteBatch::new();
    for position in [255, 256, 257] {
        batch.mark(mark(position, 1, 1));
        batch.put(&key(position, 0), b"a");
        batch.put(&RecordKey::row_key(PositionId(position), -1, &[0xff; 9]), b"b");
    }
    store.commit(batch).unwrap();
    store.clear(PositionId(256)).unwrap();
    store.clear(PositionId(1)).unwrap(); // never there
    assert_eq!(store.marks().unwrap(), [mark(255, 1, 1), mark(257, 1, 1)]);
    for (position, there) in [(255, true), (256, false), (257, true)] {
        assert_eq!(get(&store, &key(position, 0)).is_some(), there);
        let row_key = RecordKey::row_key(PositionId(position), -1, &[0xff; 9]);
        assert_eq!(get(&store, &row_key).is_some(), there);
    }
}

#[test]
fn a_position_begins_anew_under_another_mark_and_what_is_of_the_mark_before_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let batch = |mark: Mark| {
        let mut batch = WriteBatch::new();
        batch.put(&key(mark.position_id, 0), b"a");
        batch.mark(mark);
        batch
    };
    // A mark of another life may stand anywhere, also before the one that stands there.
    let (before, anew) = (mark(2, 5, 20), Mark { sink_id: [9; 16], ..mark(2, 3, 7) });
    let store = open(dir.path());
    store.commit(batch(mark(1, 5, 20))).unwrap();
    store.commit(batch(before)).unwrap();
    store.begin(anew).unwrap();
    assert!(matches!(store.commit(batch(before)), Err(StateError::Rewound { .. })));
    // Where nothing was, too.
    store.begin(mark(3, 1, 1)).unwrap();
    drop(store);
    let store = open(dir.path());
    assert_eq!(store.marks().unwrap(), [mark(1, 5, 20), anew, mark(3, 1, 1)]);
    assert_eq!(store.multi_get(&[key(1, 0), key(2, 0)]).unwrap(), [Some(b"a".to_vec()), None]);
}

/// One budget for blocks, indexes, filters and write buffers, however many positions share it.
#[test]
fn memory_stays_within_the_budget_with_256_positions() {
    let dir = tempfile::tempdir().unwrap();
    let memory = 8 << 20;
    let store = Store::open(dir.path(), &StateOptions { memory, ..Default::default() }).unwrap();
    let mut most = 0;
    for round in 0..60u32 {
        let mut batch = WriteBatch::new();
        for position in 1..=256 {
            batch.mark(mark(position, 1, i64::from(round)));
            for record in 0..2 {
                let value = noise(round * 512 + record * 256 + position as u32, 800);
                batch.put(&key(position, round * 2 + record), &value);
            }
        }
        store.commit(batch).unwrap();
        let keys: Vec<_> = (1..=256).map(|position| key(position, round / 2)).collect();
        assert!(store.multi_get(&keys).unwrap().iter().all(Option::is_some));
        most = most.max(store.stats().memory_bytes);
    }
    let stats = store.stats();
    assert_eq!((stats.positions, stats.memory_capacity), (256, memory as u64));
    assert!(stats.disk_bytes > 2 * stats.memory_capacity, "the data must not fit: {stats:?}");
    // A batch is inserted whole, whatever room is left, and flushes lag behind on a busy machine.
    assert!(most <= stats.memory_capacity * 3 / 2, "{most} of {stats:?}");
}

/// Nothing is cached yet: whatever memory the cache counts is the write buffers'.
#[test]
fn write_buffers_are_charged_to_the_one_budget() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path(), &StateOptions::default()).unwrap();
    assert_eq!(store.stats().memory_capacity, StateOptions::MEMORY as u64);
    let mut batch = WriteBatch::new();
    batch.mark(mark(1, 1, 1));
    for record in 0..4096 {
        batch.put(&key(1, record), &noise(record, 1024));
    }
    store.commit(batch).unwrap();
    let stats = store.stats();
    assert!(stats.write_buffer_bytes >= 4 << 20, "{stats:?}");
    assert!(stats.memory_bytes >= 4 << 20, "{stats:?}");
}

/// What the child of the next test does: commit until the disk is full, then see the store refuse itself.
#[test]
fn child_fills_the_disk() {
    let Some(dir) = std::env::var_os("AFTERIMAGE_TEST_FULL_DISK") else { return };
    let store = Store::open(Path::new(&dir), &small()).unwrap();
    for next in 1..10_000 {
        let mut batch = WriteBatch::new();
        batch.mark(mark(1, 1, next));
        for record in 0..8 {
            batch.put(&key(1, record), &[next.to_be_bytes(); 64].concat());
        }
        if let Err(error) = store.commit(batch) {
            assert!(matches!(error, StateError::Engine { operation: "commit", .. }), "{error}");
            // Memory may lack what the log has: no answer may be given from it any more.
            let poisoned = |result: Result<(), StateError>| matches!(result, Err(StateError::Poisoned(_)));
            assert!(poisoned(store.mark(PositionId(1)).map(drop)));
            assert!(poisoned(store.marks().map(drop)));
            assert!(poisoned(store.multi_get(&[key(1, 0)]).map(drop)));
            assert!(poisoned(store.commit(WriteBatch::new())));
            assert!(poisoned(store.clear(PositionId(1))));
            println!("poisoned after {}", next - 1);
            return;
        }
    }
    panic!("the disk was never full");
}

/// A limit on the size of a file stands for a full disk: a write fails in its middle, after part of it.
#[test]
fn a_full_disk_poisons_the_store_and_leaves_whole_batches() {
    let dir = tempfile::tempdir().unwrap();
    let child = Command::new("bash")
        .args(["-c", r#"trap "" XFSZ; ulimit -f 200; exec "$0" --exact child_fills_the_disk --nocapture"#])
        .arg(std::env::current_exe().unwrap())
        .env("AFTERIMAGE_TEST_FULL_DISK", dir.path())
        .output()
        .unwrap();
    let output = String::from_utf8_lossy(&child.stdout);
    assert!(child.status.success(), "{output}{}", String::from_utf8_lossy(&child.stderr));
    let committed: i64 = output
        .split("poisoned after ")
        .nth(1)
        .and_then(|rest| rest.split_whitespace().next())
        .expect("the child says how far it came")
        .parse()
        .unwrap();
    let store = open(dir.path());
    let next = store.mark(PositionId(1)).unwrap().expect("a mark").next;
    assert!(committed > 3 && next >= committed, "{next} after {committed} commits");
    for record in 0..8 {
        assert_eq!(get(&store, &key(1, record)), Some([next.to_be_bytes(); 64].concat()));
    }
}
