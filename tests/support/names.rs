//! Names that no other test uses: tests of one binary share their servers and run side by side.

use std::sync::atomic::{AtomicU32, Ordering};

/// `<stem>_<pid>_<n>`: good as database, topic, group, connector and replication slot name. The stem may hold only
/// lower-case letters, digits and underscores, because slot names may.
pub fn unique(stem: &str) -> String {
    static COUNTER: AtomicU32 = AtomicU32::new(0);
    assert!(stem.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'_')), "not a good stem: {stem}");
    format!("{stem}_{}_{}", std::process::id(), COUNTER.fetch_add(1, Ordering::Relaxed))
}
