//! Partitions that the group gives to this worker and that are let alone for a while: taken by another worker, out of range,
//! halted by a message that must not be read.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::group::Group;
use crate::kafka::TopicPartition;

/// One of them.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Rest {
    partition: i32,
    until: Instant,
    halted: bool,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Resting(Vec<Rest>);

impl Resting {
    /// It rests for so long, whatever was said before.
    pub fn begin(&mut self, partition: i32, now: Instant, rest: Duration) {
        self.forget(&[partition]);
        self.0.push(Rest { partition, until: now + rest, halted: false });
    }

    /// A person has to look at it: it counts as halted while it rests.
    pub fn mark_halted(&mut self, partition: i32) {
        self.0.iter_mut().filter(|rest| rest.partition == partition).for_each(|rest| rest.halted = true);
    }

    /// These are not ours any more. When they come back, it is the group that decided it, and they are claimed at once: what
    /// is left of a rest must not end one that is begun later. How often they were taken away stays known
    /// (`fences.rs`).
    pub fn forget(&mut self, partitions: &[i32]) {
        self.0.retain(|rest| !partitions.contains(&rest.partition));
    }

    /// Those that have rested.
    pub fn take_rested(&mut self, now: Instant) -> Vec<i32> {
        let (rested, resting) = std::mem::take(&mut self.0).into_iter().partition(|rest| rest.until <= now);
        self.0 = resting;
        let rested: Vec<Rest> = rested;
        rested.into_iter().map(|rest| rest.partition).collect()
    }

    /// How many are halted.
    pub fn halted(&self) -> usize {
        self.0.iter().filter(|rest| rest.halted).count()
    }
}

impl Group {
    /// Has those claimed again that have rested.
    pub(super) fn reclaim_rested(&mut self) {
        let rested = self.resting.take_rested(Instant::now());
        if !rested.is_empty() {
            let of = |partition| TopicPartition::new(Arc::clone(&self.parts.topic), partition);
            let partitions: Vec<TopicPartition> = rested.into_iter().map(of).collect();
            self.parts.consumer.reclaim(&partitions);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_of_a_rest_does_not_end_a_later_one() {
        let (mut resting, start) = (Resting::default(), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        resting.begin(1, start, Duration::from_secs(3));
        resting.begin(2, start, Duration::from_secs(3));
        // The group takes one away and gives it back; claimed at once, it is taken by another worker again.
        resting.forget(&[1]);
        assert_eq!(resting.take_rested(at(3)), [2], "nothing is left of a partition that was revoked");
        resting.begin(1, at(2), Duration::from_secs(60));
        assert_eq!(resting.take_rested(at(61)), [0; 0]);
        // Nor where no revocation came between.
        resting.begin(1, at(4), Duration::from_secs(3));
        assert_eq!(resting.take_rested(at(7)), [1]);
        assert_eq!(resting.take_rested(at(1_000)), [0; 0]);
    }

    #[test]
    fn a_partition_counts_as_halted_while_it_rests() {
        let (mut resting, start) = (Resting::default(), Instant::now());
        resting.begin(1, start, Duration::from_secs(10));
        resting.begin(2, start, Duration::from_secs(10));
        resting.mark_halted(1);
        assert_eq!(resting.halted(), 1);
        resting.begin(1, start, Duration::ZERO);
        assert_eq!(resting.halted(), 0, "this time it only rests");
        resting.mark_halted(1);
        assert_eq!(resting.take_rested(start), [1]);
        assert_eq!(resting.halted(), 0);
    }
}
