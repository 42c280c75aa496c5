//! Is the log at hand the one that a position was read from? A topic that was made anew, or whose log was cut and written
//! on, has the same name and offsets and other messages: reading on would mix two histories (protocol D8).
//!
//! With each commit a position keeps the fingerprint of its last message. Before it is claimed, the message that the broker
//! has at that offset now is compared with it:
//!
//! | the broker's log | verdict | what follows |
//! | --- | --- | --- |
//! | ends before the position | [`Lineage::Short`] | halted |
//! | has another message at that offset | [`Lineage::Other`] | halted |
//! | has that message | [`Lineage::Same`] | read on |
//! | has no message there (retention, compaction, a control record), or none was read yet | [`Lineage::Unknown`] | read on |

use std::collections::BTreeSet;
use std::fmt;

use xxhash_rust::xxh3::Xxh3;

use super::position::Passed;

/// The length that stands for null.
const NULL: u32 = u32::MAX;

/// XXH3-64 with seed 0 over key length ‖ key ‖ value length ‖ value, lengths in four bytes, big-endian; null has the length
/// 0xFFFFFFFF.
pub fn message_hash(key: Option<&[u8]>, value: Option<&[u8]>) -> i64 {
    let mut hash = Xxh3::new();
    for part in [key, value] {
        match part {
            Some(bytes) => {
                hash.update(&u32::try_from(bytes.len()).unwrap_or(NULL - 1).to_be_bytes());
                hash.update(bytes);
            }
            None => hash.update(&NULL.to_be_bytes()),
        }
    }
    hash.digest() as i64
}

/// What tells one message of a partition from another at the same offset.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fingerprint {
    /// Its offset.
    pub offset: i64,
    /// Its time in ms; `None` = it has none.
    pub timestamp_ms: Option<i64>,
    /// [`message_hash`].
    pub hash: i64,
}

impl Fingerprint {
    /// Of a message; its time is in ms.
    pub fn of(offset: i64, timestamp_ms: Option<i64>, key: Option<&[u8]>, value: Option<&[u8]>) -> Self {
        Fingerprint { offset, timestamp_ms, hash: message_hash(key, value) }
    }
}

/// By which a log is known: a message that stood in it when it was last looked at, and what its position had passed then. What
/// came after it may be of another log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pin {
    /// The message.
    pub message: Fingerprint,
    /// What was passed with it.
    pub passed: Passed,
}

/// What is to be thought of a log; see the module.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lineage {
    /// The message that was read last is still there.
    Same,
    /// There is nothing to compare.
    Unknown,
    /// Another message stands where the last one was read.
    Other,
    /// The log ends before the position.
    Short,
}

/// Compares. `end` is the next offset that the broker will give; `found` what it has at the offset of `last`, if it has a
/// message there.
pub fn lineage(next: i64, end: i64, last: Option<Fingerprint>, found: Option<Fingerprint>) -> Lineage {
    if next > end {
        return Lineage::Short;
    }
    let (Some(last), Some(found)) = (last, found) else { return Lineage::Unknown };
    if last.offset != found.offset {
        return Lineage::Unknown;
    }
    // A time that is none is not kept as it came.
    let usable = |ms: &i64| (0..9_000_000_000_000_000).contains(ms);
    let same_time = match (last.timestamp_ms.filter(usable), found.timestamp_ms.filter(usable)) {
        (Some(last), Some(found)) => last == found,
        _ => true,
    };
    if same_time && last.hash == found.hash { Lineage::Same } else { Lineage::Other }
}

impl Lineage {
    /// Whether nothing may be read before a person has looked.
    pub fn halts(self) -> bool {
        matches!(self, Lineage::Other | Lineage::Short)
    }

    /// In one word, for tables and JSON.
    pub fn word(self) -> &'static str {
        match self {
            Lineage::Same => "same",
            Lineage::Unknown => "unknown",
            Lineage::Other => "other",
            Lineage::Short => "short",
        }
    }
}

/// A partition that is halted because of its log: what is wrong, and what to do about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WrongLog<'a> {
    /// Topic.
    pub topic: &'a str,
    /// Partition.
    pub partition: i32,
    /// The next offset by the sink.
    pub next: i64,
    /// Offset of the message that was read last.
    pub last_offset: Option<i64>,
    /// [`Lineage::Other`] or [`Lineage::Short`].
    pub lineage: Lineage,
}

impl fmt::Display for WrongLog<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let WrongLog { topic, partition, next, .. } = self;
        match self.lineage {
            // Not where: that changes while the log grows, and this is told anew whenever it changes.
            Lineage::Short => write!(
                f,
                "the sink has read up to offset {next}, but the broker's log ends before that: the topic was created anew or \
                 cut; nothing is read from it until that is settled. Either `afterimage offsets adopt {topic} --partition \
                 {partition}`, which reads this log from its start as another life of the topic, or put the old log back"
            ),
            _ => write!(
                f,
                "the message at offset {} is not the one that was read there: the topic was created anew, or its log was cut \
                 and written on; nothing is read from it until that is settled. Either `afterimage offsets adopt {topic} \
                 --partition {partition}`, which reads this log from its start as another life of the topic, or \
                 `afterimage offsets skip {topic} --partition {partition} --to {next}`, which takes it for the old one and \
                 goes on there, or put the old log back",
                self.last_offset.unwrap_or(next - 1)
            ),
        }
    }
}

/// A partition of a topic that may have been made anew: its number, what is to be thought of its log, and whether anything
/// was ever read of it.
pub type Partition = (i32, Lineage, bool);

/// Whether a topic was made anew, and not only cut: some partition has another log, and none has the old one.
pub fn made_anew(partitions: &[Partition]) -> bool {
    let has = |wanted: fn(Lineage) -> bool| partitions.iter().any(|(_, lineage, _)| wanted(*lineage));
    has(Lineage::halts) && !has(|lineage| lineage == Lineage::Same)
}

/// Which partitions of a topic begin another life when it is adopted: all of which something was read if it was made anew,
/// else those that certainly have another log.
pub fn to_adopt(partitions: &[Partition]) -> BTreeSet<i32> {
    let all = made_anew(partitions);
    let meant = |(_, lineage, read): &&Partition| lineage.halts() || all && *read;
    partitions.iter().filter(meant).map(|(partition, ..)| *partition).collect()
}

/// What the positions of a topic's next life know of what was delivered before: everything up to the least that *every*
/// partition has passed, however the keys are dealt to partitions now. Nothing if one has passed nothing.
pub fn inherited(passed: &[Option<Passed>]) -> Option<Passed> {
    passed.iter().copied().collect::<Option<Vec<_>>>()?.into_iter().min()
}

#[cfg(test)]
mod tests {
    use super::*;

    const LAST: Fingerprint = Fingerprint { offset: 9, timestamp_ms: Some(5), hash: 7 };

    #[test]
    fn a_hash_tells_null_from_empty_and_key_from_value() {
        let hashes = [
            message_hash(None, None),
            message_hash(Some(b""), None),
            message_hash(None, Some(b"")),
            message_hash(Some(b"a"), Some(b"b")),
            message_hash(Some(b"ab"), Some(b"")),
            message_hash(Some(b"b"), Some(b"a")),
        ];
        assert_eq!(hashes.iter().collect::<BTreeSet<_>>().len(), hashes.len(), "{hashes:?}");
        // Stored in sinks: it never changes.
        assert_eq!(message_hash(Some(b"a"), Some(b"b")), {
            xxhash_rust::xxh3::xxh3_64(b"\0\0\0\x01a\0\0\0\x01b") as i64
        });
        assert_eq!(message_hash(Some(b"a"), None), xxhash_rust::xxh3::xxh3_64(b"\0\0\0\x01a\xff\xff\xff\xff") as i64);
    }

    #[test]
    fn each_part_of_the_fingerprint_counts() {
        let of = |found| lineage(10, 20, Some(LAST), found);
        assert_eq!(of(Some(LAST)), Lineage::Same);
        assert_eq!(of(Some(Fingerprint { hash: 8, ..LAST })), Lineage::Other);
        assert_eq!(of(Some(Fingerprint { timestamp_ms: Some(6), ..LAST })), Lineage::Other);
        assert_eq!(
            of(Some(Fingerprint { timestamp_ms: None, ..LAST })),
            Lineage::Same,
            "times are not kept everywhere"
        );
    }

    #[test]
    fn where_nothing_can_be_compared_nothing_is_wrong() {
        assert_eq!(lineage(10, 20, Some(LAST), None), Lineage::Unknown);
        assert_eq!(lineage(10, 20, None, Some(LAST)), Lineage::Unknown);
        // Compacted away, or a control record: the broker's next message is a later one.
        assert_eq!(lineage(10, 20, Some(LAST), Some(Fingerprint { offset: 10, ..LAST })), Lineage::Unknown);
        assert_eq!(lineage(10, 10, Some(LAST), Some(LAST)), Lineage::Same, "at the end");
    }

    #[test]
    fn a_log_that_ends_before_the_position_is_short_whatever_is_in_it() {
        assert_eq!(lineage(10, 9, Some(LAST), Some(LAST)), Lineage::Short);
        assert_eq!(lineage(10, 0, None, None), Lineage::Short);
    }

    #[test]
    fn a_halt_names_the_command_that_settles_it() {
        let wrong = WrongLog {
            topic: "calm.emea.account",
            partition: 3,
            next: 10,
            last_offset: Some(8),
            lineage: Lineage::Short,
        };
        assert!(wrong.to_string().contains("`afterimage offsets adopt calm.emea.account --partition 3`"), "{wrong}");
        assert!(!wrong.to_string().contains("offsets skip"), "there is nothing to go on with: {wrong}");
        let wrong = WrongLog { lineage: Lineage::Other, ..wrong };
        assert!(wrong.to_string().contains("the message at offset 8 is not"), "{wrong}");
        assert!(
            wrong.to_string().contains("`afterimage offsets skip calm.emea.account --partition 3 --to 10`"),
            "{wrong}"
        );
    }

    #[test]
    fn a_topic_made_anew_is_adopted_whole_and_a_cut_one_in_part() {
        use Lineage::{Other, Same, Short, Unknown};
        assert_eq!(to_adopt(&[(0, Other, true), (1, Unknown, true), (2, Short, true)]), [0, 1, 2].into());
        assert_eq!(to_adopt(&[(0, Other, true), (1, Unknown, false)]), [0].into(), "nothing was read of it");
        assert_eq!(to_adopt(&[(0, Other, true), (1, Unknown, true), (2, Same, true)]), [0].into());
        assert_eq!(to_adopt(&[(0, Unknown, true), (1, Unknown, true)]), [].into());
        assert_eq!(to_adopt(&[(0, Same, true)]), [].into());
    }

    #[test]
    fn the_next_life_inherits_what_every_partition_has_passed() {
        let (a, b) = (Passed { ts: 5, lsn: 50 }, Passed { ts: 4, lsn: 90 });
        assert_eq!(inherited(&[Some(a), Some(b)]), Some(b));
        assert_eq!(inherited(&[Some(a), None]), None);
        assert_eq!(inherited(&[]), None);
    }
}
