//! How much of what was produced has not been committed yet, per partition.
//!
//! The embedded broker keeps 5 MiB of a partition and silently drops the oldest beyond that, so a producer that runs
//! ahead of the workers would lose messages. It is held back by what Postgres says is committed. A real broker keeps all,
//! and is fed in the same way: the demo shows workers that keep up, not a backlog.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

/// Bytes of a partition that may wait for a commit: well below what the broker keeps, so that a message set that lies
/// half below the committed position still fits above it.
pub const LIMIT: usize = 3 << 20;
/// What a message costs in the broker beside its key and value (record header, share of the message set's header).
pub const OVERHEAD: usize = 100;

/// A partition of a topic.
pub type TopicPartition = (Arc<str>, i32);

/// The account of produced and committed messages. Offsets count from 0, as the demo's topics are its own.
#[derive(Debug, Default)]
pub struct Backlog {
    partitions: BTreeMap<TopicPartition, Waiting>,
}

#[derive(Debug, Default)]
struct Waiting {
    end: i64,
    committed: i64,
    /// Sizes of the messages from `committed` to `end`.
    sizes: VecDeque<usize>,
    bytes: usize,
}

impl Backlog {
    /// Nothing produced yet.
    pub fn new(partitions: impl IntoIterator<Item = TopicPartition>) -> Self {
        Backlog { partitions: partitions.into_iter().map(|partition| (partition, Waiting::default())).collect() }
    }

    /// Whether a message of this size may be produced now. One that is larger than the limit may if nothing waits.
    pub fn admits(&self, partition: &TopicPartition, size: usize) -> bool {
        self.partitions
            .get(partition)
            .is_none_or(|waiting| waiting.sizes.is_empty() || waiting.bytes + size + OVERHEAD <= LIMIT)
    }

    /// A message of this size was handed to the broker.
    pub fn produced(&mut self, partition: &TopicPartition, size: usize) {
        let waiting = self.partitions.entry(partition.clone()).or_default();
        waiting.end += 1;
        waiting.sizes.push_back(size + OVERHEAD);
        waiting.bytes += size + OVERHEAD;
    }

    /// The sink's position of this partition is `next`. A position that goes back or beyond the end changes nothing.
    pub fn committed(&mut self, partition: &TopicPartition, next: i64) {
        let Some(waiting) = self.partitions.get_mut(partition) else { return };
        while waiting.committed < next {
            let Some(size) = waiting.sizes.pop_front() else { return };
            waiting.committed += 1;
            waiting.bytes -= size;
        }
    }

    /// Messages of a partition that are not committed yet.
    pub fn waiting(&self, partition: &TopicPartition) -> i64 {
        self.partitions.get(partition).map_or(0, |waiting| waiting.end - waiting.committed)
    }

    /// Messages produced in all.
    pub fn total_produced(&self) -> i64 {
        self.partitions.values().map(|waiting| waiting.end).sum()
    }

    /// Messages committed in all.
    pub fn total_committed(&self) -> i64 {
        self.partitions.values().map(|waiting| waiting.committed).sum()
    }

    /// Where each partition ends: the offset of its next message.
    pub fn ends(&self) -> impl Iterator<Item = (&TopicPartition, i64)> {
        self.partitions.iter().map(|(partition, waiting)| (partition, waiting.end))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn partition(number: i32) -> TopicPartition {
        ("t".into(), number)
    }

    #[test]
    fn a_partition_that_waits_for_commits_takes_no_more() {
        let size = LIMIT / 3 - OVERHEAD;
        let mut backlog = Backlog::new([partition(0), partition(1)]);
        for _ in 0..3 {
            assert!(backlog.admits(&partition(0), size));
            backlog.produced(&partition(0), size);
        }
        assert!(!backlog.admits(&partition(0), size));
        assert!(backlog.admits(&partition(1), size), "partitions do not wait for one another");
        backlog.committed(&partition(0), 1);
        assert!(backlog.admits(&partition(0), size));
        assert_eq!((backlog.total_produced(), backlog.total_committed()), (3, 1));
        assert_eq!((backlog.waiting(&partition(0)), backlog.waiting(&partition(1))), (2, 0));
    }

    #[test]
    fn a_message_above_the_limit_passes_alone() {
        let mut backlog = Backlog::new([partition(0)]);
        assert!(backlog.admits(&partition(0), 2 * LIMIT));
        backlog.produced(&partition(0), 2 * LIMIT);
        assert!(!backlog.admits(&partition(0), 1));
        backlog.committed(&partition(0), 1);
        assert!(backlog.admits(&partition(0), 1));
    }

    #[test]
    fn a_position_out_of_range_does_no_harm() {
        let mut backlog = Backlog::new([partition(0)]);
        backlog.produced(&partition(0), 10);
        backlog.committed(&partition(0), 99);
        backlog.committed(&partition(0), -1);
        backlog.committed(&partition(7), 3);
        assert_eq!(backlog.total_committed(), 1);
        assert_eq!(backlog.ends().map(|(_, end)| end).collect::<Vec<_>>(), [1]);
    }
}
