//! What a directory says when it is opened: what is in it, who has it, and whether it can be trusted.

mod support;

use afterimage_state::{FORMAT, PositionId, StateError, Store, WriteBatch, wipe};
use std::{fs, os::unix::fs::PermissionsExt, path::Path};
use support::{get, key, mark, noise, open, small};

fn fill(store: &Store, position: i32, next: i64) {
    let mut batch = WriteBatch::new();
    batch.mark(mark(position, 1, next));
    batch.put(&key(position, 0), &next.to_be_bytes());
    store.commit(batch).unwrap();
}

fn refusal(dir: &Path) -> StateError {
    Store::open(dir, &small()).expect_err("must be refused")
}

#[test]
fn what_was_committed_is_there_after_reopening() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("deep/er");
    for next in 1..4 {
        let store = open(&path);
        assert_eq!(store.mark(PositionId(7)).unwrap().map_or(0, |mark| mark.next), next - 1);
        fill(&store, 7, next);
        fill(&store, i32::from(next as u8), next);
    }
    let store = open(&path);
    assert_eq!(get(&store, &key(7, 0)), Some(3i64.to_be_bytes().to_vec()));
    assert_eq!(store.marks().unwrap(), [mark(1, 1, 1), mark(2, 1, 2), mark(3, 1, 3), mark(7, 1, 3)]);
}

#[test]
fn a_store_in_use_is_locked_until_it_is_dropped() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    assert!(matches!(refusal(dir.path()), StateError::Locked(_)));
    assert!(matches!(wipe(dir.path()), Err(StateError::Locked(_))));
    fill(&store, 1, 1);
    drop(store);
    assert!(open(dir.path()).mark(PositionId(1)).unwrap().is_some());
}

#[test]
fn the_instance_id_stays_with_the_directory() {
    let dir = tempfile::tempdir().unwrap();
    let id = open(dir.path()).instance_id().to_owned();
    assert_eq!(id.len(), 36);
    assert_eq!(open(dir.path()).instance_id(), id);
    wipe(dir.path()).unwrap();
    assert_eq!(open(dir.path()).instance_id(), id);
    let other = tempfile::tempdir().unwrap();
    assert_ne!(open(other.path()).instance_id(), id);
    // Half-written by hand: a new one, not a refusal.
    fs::write(dir.path().join("instance-id"), [0xff, 0xfe]).unwrap();
    let new = open(dir.path()).instance_id().to_owned();
    assert_ne!(new, id);
    assert_eq!(open(dir.path()).instance_id(), new);
}

#[test]
fn a_store_of_a_later_release_is_refused_and_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    fill(&open(dir.path()), 1, 1);
    fs::write(dir.path().join("format"), format!("{}\n", FORMAT + 1)).unwrap();
    let error = refusal(dir.path());
    assert!(matches!(error, StateError::Format { found, known: FORMAT, .. } if found == FORMAT + 1), "{error}");
    fs::write(dir.path().join("format"), format!("{FORMAT}\n")).unwrap();
    assert!(open(dir.path()).mark(PositionId(1)).unwrap().is_some());
}

#[test]
fn damage_is_told_apart_and_a_wipe_mends_it() {
    type Damage = (&'static str, fn(&Path));
    let damages: [Damage; 6] = [
        ("a format that is no number", |dir| fs::write(dir.join("format"), "one").unwrap()),
        ("a format that is no text", |dir| fs::write(dir.join("format"), [0xff]).unwrap()),
        ("a format of before the first", |dir| fs::write(dir.join("format"), "0").unwrap()),
        ("images without a format", |dir| fs::remove_file(dir.join("format")).unwrap()),
        ("a pointer to nowhere", |dir| fs::write(dir.join("images/CURRENT"), "MANIFEST-999999\n").unwrap()),
        ("a manifest of rubbish", |dir| {
            for file in fs::read_dir(dir.join("images")).unwrap().map(Result::unwrap) {
                if file.file_name().to_string_lossy().starts_with("MANIFEST") {
                    fs::write(file.path(), [b'x'; 4096]).unwrap();
                }
            }
        }),
    ];
    for (name, damage) in damages {
        let dir = tempfile::tempdir().unwrap();
        fill(&open(dir.path()), 1, 1);
        damage(dir.path());
        let error = refusal(dir.path());
        assert!(matches!(error, StateError::Corrupted { .. }), "{name}: {error:?}");
        wipe(dir.path()).unwrap();
        let store = open(dir.path());
        assert_eq!(store.marks().unwrap(), [], "{name}");
        assert_eq!(get(&store, &key(1, 0)), None, "{name}");
        fill(&store, 1, 1);
    }
}

/// Every table file of a store that outgrew its buffers, damaged in its middle: never a wrong value, and the
/// error says that wiping is the cure.
#[test]
fn a_damaged_block_is_an_error_not_a_value() {
    let dir = tempfile::tempdir().unwrap();
    let value = |record: u32| noise(record, 700);
    let store = open(dir.path());
    for next in 1..=20 {
        let mut batch = WriteBatch::new();
        batch.mark(mark(1, 1, next));
        for record in 0..200 {
            batch.put(&key(1, next as u32 * 200 + record), &value(next as u32 * 200 + record));
        }
        store.commit(batch).unwrap();
    }
    drop(store);
    let mut damaged = 0;
    for file in fs::read_dir(dir.path().join("images")).unwrap().map(Result::unwrap) {
        if file.path().extension().is_some_and(|extension| extension == "sst") {
            let mut bytes = fs::read(file.path()).unwrap();
            let middle = bytes.len() / 3;
            bytes[middle..middle + 64].fill(0x5a);
            fs::write(file.path(), bytes).unwrap();
            damaged += 1;
        }
    }
    assert!(damaged > 0);
    let mut refused = 0;
    match Store::open(dir.path(), &small()) {
        Err(StateError::Corrupted { .. }) => refused += 1,
        Err(error) => panic!("{error}"),
        Ok(store) => {
            for record in 200..4200 {
                match store.multi_get(&[key(1, record)]) {
                    Ok(found) => assert_eq!(found, [Some(value(record))]),
                    Err(StateError::Corrupted { .. }) => refused += 1,
                    Err(error) => panic!("{error}"),
                }
            }
        }
    }
    assert!(refused > 0);
    wipe(dir.path()).unwrap();
    assert_eq!(open(dir.path()).marks().unwrap(), []);
}

/// What a power cut leaves of a log that was never synced: its end is missing, or holes are in it.
#[test]
fn a_torn_or_damaged_log_leaves_an_older_pair_never_a_mix() {
    let dir = tempfile::tempdir().unwrap();
    // The log has blocks of 32 KiB: a hole in one must also hide the sound blocks after it.
    let value = |n: i64| (n > 0).then(|| n.to_be_bytes().repeat(128));
    let fill_both = |store: &Store, next: i64| {
        let mut batch = WriteBatch::new();
        batch.put(&key(1, (next % 3) as u32), &value(next).unwrap());
        batch.mark(mark(1, 1, next));
        batch.put(&key(1, 9), &value(next).unwrap());
        store.commit(batch).unwrap();
    };
    let store = open(dir.path());
    (1..=100).for_each(|next| fill_both(&store, next));
    drop(store);
    let log = fs::read_dir(dir.path().join("images"))
        .unwrap()
        .map(|file| file.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "log"))
        .max_by_key(|path| fs::metadata(path).unwrap().len())
        .expect("a log");
    let whole = fs::read(&log).unwrap();
    assert!(whole.len() > 150_000, "the batches must be in the log: {}", whole.len());
    let mut seen = std::collections::BTreeSet::new();
    for at in (0..whole.len()).step_by(whole.len() / 23) {
        for hole in [false, true] {
            let mut torn = whole.clone();
            match hole {
                true => torn[at..].iter_mut().take(7).for_each(|byte| *byte ^= 0x55),
                false => torn.truncate(at),
            }
            let copy = tempfile::tempdir().unwrap();
            let images = copy.path().join("images");
            fs::create_dir(&images).unwrap();
            fs::copy(dir.path().join("format"), copy.path().join("format")).unwrap();
            for file in fs::read_dir(dir.path().join("images")).unwrap().map(Result::unwrap) {
                fs::copy(file.path(), images.join(file.file_name())).unwrap();
            }
            fs::write(images.join(log.file_name().unwrap()), torn).unwrap();
            let store = open(copy.path());
            let next = store.mark(PositionId(1)).unwrap().map_or(0, |mark| mark.next);
            assert!(next < 100, "damage at {at} was not noticed");
            assert_eq!(get(&store, &key(1, 9)), value(next), "damage at {at}");
            for record in 0..3 {
                let last = (1..=next).rev().find(|n| n % 3 == record).unwrap_or(0);
                assert_eq!(get(&store, &key(1, record as u32)), value(last), "damage at {at}");
            }
            fill_both(&store, next + 1);
            seen.insert(next);
        }
    }
    assert!(seen.len() > 10, "different damage leaves different batches: {seen:?}");
}

#[test]
fn a_wipe_of_nothing_is_fine_and_a_broken_off_one_is_finished() {
    let dir = tempfile::tempdir().unwrap();
    wipe(&dir.path().join("new")).unwrap();
    fill(&open(dir.path()), 1, 1);
    // As after a crash between the rename and the removal.
    fs::rename(dir.path().join("images"), dir.path().join("wiped")).unwrap();
    assert_eq!(open(dir.path()).marks().unwrap(), []);
    assert!(!dir.path().join("wiped").exists());
}

/// Images are customers' data.
#[test]
fn directories_are_private() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("state");
    let _store = open(&path);
    for made in [path.clone(), path.join("images")] {
        assert_eq!(fs::metadata(&made).unwrap().permissions().mode() & 0o777, 0o700, "{}", made.display());
    }
}
