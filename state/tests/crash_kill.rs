//! kill -9 at any moment: every record agrees with its mark, and no acknowledged commit is lost.

mod support;

use afterimage_state::{PositionId, Store, WriteBatch};
use std::{
    io::{BufRead, BufReader},
    path::Path,
    process::{Child, Command, Stdio},
};
use support::{key, mark, open};

const POSITIONS: [i32; 2] = [1, 2];
const RECORDS: u32 = 40;
const LIFE: i64 = 97;

/// What batch `n` does to a record: batches touch a third of the records each, some by deleting them.
fn touched(n: i64, record: u32) -> bool {
    (n + i64::from(record)) % 3 == 0
}

/// Batch after which a record holds its value, and whether that batch deleted it. Every [`LIFE`] batches the
/// second position is cleared just before.
fn last_touch(position: i32, record: u32, next: i64) -> Option<i64> {
    let since = if position == 2 { next / LIFE * LIFE } else { 1 };
    (since.max(1)..=next).rev().take(3).find(|&n| touched(n, record)).filter(|&n| !deletes(n, record))
}

fn deletes(n: i64, record: u32) -> bool {
    (n + i64::from(record)) % 9 == 0
}

/// Long enough that write buffers of half a megabyte are flushed and compacted along the way.
fn value(position: i32, record: u32, n: i64) -> Vec<u8> {
    format!("{position} {record} {n} ").repeat(60).into_bytes()
}

/// What the child does until it is killed. Says the number of each batch once it is committed.
#[test]
fn child_commits_until_killed() {
    let Some(dir) = std::env::var_os("AFTERIMAGE_TEST_CRASH") else { return };
    let store = Store::open(Path::new(&dir), &support::small()).unwrap();
    let done = |position| store.mark(PositionId(position)).unwrap().map_or(0, |mark| mark.next);
    for n in done(1) + 1.. {
        if n % LIFE == 0 && done(2) < n {
            store.clear(PositionId(2)).unwrap();
        }
        let mut batch = WriteBatch::new();
        for position in POSITIONS {
            for record in (0..RECORDS).filter(|&record| touched(n, record)) {
                match deletes(n, record) {
                    true => batch.delete(&key(position, record)),
                    false => batch.put(&key(position, record), &value(position, record, n)),
                }
            }
            batch.mark(mark(position, 1, n));
        }
        store.commit(batch).unwrap();
        println!("committed {n}");
    }
}

/// Runs until the given number of commits were acknowledged, then SIGKILL; gives the last one acknowledged.
fn run_and_kill(dir: &Path, commits: u32) -> i64 {
    let mut child: Child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child_commits_until_killed", "--nocapture"])
        .env("AFTERIMAGE_TEST_CRASH", dir)
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn()
        .unwrap();
    let mut last = 0;
    let mut left = commits;
    let mut killed = false;
    // What is in the pipe after the kill was acknowledged too: read to its end. The kill itself meets the child
    // wherever it is by then.
    for line in BufReader::new(child.stdout.take().unwrap()).lines() {
        let line = line.unwrap();
        let Some(n) = line.rsplit_once("committed ").and_then(|(_, n)| n.parse::<i64>().ok()) else { continue };
        last = n;
        left = left.saturating_sub(1);
        if left == 0 && !killed {
            child.kill().unwrap();
            killed = true;
        }
    }
    let status = child.wait().unwrap();
    assert!(killed, "the child ended by itself: {status}");
    last
}

#[test]
fn after_kill_9_every_record_agrees_with_its_mark() {
    let dir = tempfile::tempdir().unwrap();
    let mut acknowledged = 0;
    // Different numbers of commits, so that kills fall before, in and after flushes, compactions and clears.
    for round in 0..24u32 {
        acknowledged = acknowledged.max(run_and_kill(dir.path(), 1 + round * 37 % 211));
        let store = open(dir.path());
        let next = store.mark(PositionId(1)).unwrap().expect("the first position is never cleared").next;
        assert!(next >= acknowledged, "round {round}: commit {acknowledged} was acknowledged, {next} is there");
        let second = store.mark(PositionId(2)).unwrap();
        // Either side of a clear is a state of its own.
        assert!(second == Some(mark(2, 1, next)) || second.is_none() && (next + 1) % LIFE == 0, "{second:?} {next}");
        for position in POSITIONS {
            let keys: Vec<_> = (0..RECORDS).map(|record| key(position, record)).collect();
            let found = store.multi_get(&keys).unwrap();
            for (record, found) in (0..RECORDS).zip(found) {
                let expected = match position == 2 && second.is_none() {
                    true => None,
                    false => last_touch(position, record, next).map(|n| value(position, record, n)),
                };
                assert_eq!(found, expected, "round {round}, position {position}, record {record}, next {next}");
            }
        }
    }
}
