//! Partitions that another worker has claimed while the group says that they are ours.
//!
//! Once is a rebalance that has not been heard of here yet. Again and again is two deployments, or two workers of one name,
//! that take a partition from each other (protocol D8): then it is left alone for a while, and a person has to look.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::group::Group;
use super::settle::REST;
use crate::core::position::PositionId;
use crate::kafka::TopicPartition;
use crate::postgres::claim::{Holder, holders};

/// A partition that was taken away more than [`MOST`] times within this time rests for as long.
const LATELY: Duration = Duration::from_secs(60);
const MOST: usize = 3;
/// How long the sink may take to say who holds a fenced partition.
const ASK_TIME: Duration = Duration::from_secs(2);

/// When partitions were taken away.
#[derive(Debug, Default)]
pub(super) struct Fences(BTreeMap<i32, Vec<Instant>>);

impl Fences {
    /// How often it was taken away lately, this time included.
    fn note(&mut self, partition: i32, now: Instant) -> usize {
        let times = self.0.entry(partition).or_default();
        times.retain(|at| now.duration_since(*at) < LATELY);
        times.push(now);
        times.len()
    }
}

/// Whether another worker holds the position, one of our own name included: not nobody, for whom a person has fenced it off,
/// and not this process under a newer claim.
fn is_another(holder: &Holder, ours: Option<i64>) -> bool {
    holder.worker.is_some() && !holder.only_again && ours != Some(holder.epoch)
}

impl Group {
    /// These positions, or if none is named all of ours, are not ours any more.
    pub(super) fn fenced(&mut self, positions: &[PositionId], detail: &str) {
        let all: Vec<PositionId> = self.tasks.values().map(|task| task.position_id).collect();
        let positions = if positions.is_empty() { &all[..] } else { positions };
        let found = self.holders(positions);
        // If the sink does not say, another worker may hold them.
        if found.as_ref().is_some_and(|found| !found.is_empty() && found.iter().all(|one| one.only_again)) {
            return self.claim_again("the lookup fields of its object have changed");
        }
        let silent = found.is_none();
        let found = found.unwrap_or_default();
        let by: BTreeSet<&str> = found.iter().filter_map(|one| one.worker.as_deref()).collect();
        let by = Vec::from_iter(by).join(", ");
        let topic = &self.parts.topic;
        if silent || !by.is_empty() {
            tracing::warn!(%topic, %detail, by, "fenced: another worker holds a partition");
        } else {
            tracing::warn!(%topic, %detail, "fenced: a partition was fenced off, and nobody holds it");
        }
        let (now, mut rests) = (Instant::now(), Vec::new());
        for task in self.tasks.values().filter(|task| positions.contains(&task.position_id)) {
            let partition = task.partition;
            let ours = self.parts.logs.epoch(&TopicPartition::new(Arc::clone(topic), partition));
            let holder = found.iter().find(|one| one.position_id == task.position_id);
            let times =
                if holder.is_some_and(|one| is_another(one, ours)) { self.fences.note(partition, now) } else { 0 };
            let contested = times > MOST;
            if contested {
                tracing::error!(
                    %topic, partition, by, times,
                    "contested: the group gives this partition to this worker, and another one keeps claiming it; it is left \
                     alone for {} s. Stop one of them, or give them groups of their own: `afterimage status` shows who holds \
                     what, `kafka.group` names the group",
                    LATELY.as_secs()
                );
            }
            rests.push((partition, if contested { LATELY } else { REST }));
        }
        self.close_and_rest(&rests);
    }

    fn holders(&self, positions: &[PositionId]) -> Option<Vec<Holder>> {
        let asked = async {
            let client = self.parts.sink.connect().await.ok()?;
            holders(&client, &self.parts.sink.worker, positions).await.ok()
        };
        self.parts.runtime.block_on(async { tokio::time::timeout(ASK_TIME, asked).await }).ok().flatten()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_taken_away_lately_counts() {
        let mut fences = Fences::default();
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        assert_eq!([0, 10, 20].map(|seconds| fences.note(1, at(seconds))), [1, 2, 3]);
        assert_eq!(fences.note(2, at(20)), 1, "another partition");
        assert_eq!(fences.note(1, at(30)), 4);
        assert_eq!(fences.note(1, at(75)), 3, "the first two are long ago");
    }

    #[test]
    fn only_another_worker_takes_a_partition_away() {
        let holder = |worker: Option<&str>, only_again| Holder {
            position_id: 1,
            epoch: 7,
            worker: worker.map(Into::into),
            only_again,
        };
        assert!(is_another(&holder(Some("two"), false), Some(6)));
        assert!(is_another(&holder(Some("one"), false), Some(6)), "another process of our name");
        assert!(is_another(&holder(Some("two"), false), None));
        assert!(!is_another(&holder(None, false), Some(6)), "a person, who has skipped messages");
        assert!(!is_another(&holder(Some("one"), false), Some(7)), "we, under a newer claim");
        assert!(!is_another(&holder(Some("one"), true), Some(6)), "we, who are to read the lookup fields anew");
    }
}
