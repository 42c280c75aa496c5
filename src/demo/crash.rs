//! kill -9 of a worker in the middle of the demo: who was killed with how much in hand, and when its partitions went on.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde::Serialize;

use super::backlog::{Backlog, TopicPartition};
use super::sink::Holder;

/// How far the simulation has come when a worker is killed.
pub const WHEN: f64 = 0.4;

/// How long it stays dead, as under a supervisor that pauses before it starts a process again. Kafka deals out the
/// partitions when the dead one's session of 6 s is over, whenever its successor comes before that. The embedded broker
/// deals them out 5 s after the successor came; if the session lasts beyond that (it looks once a second), the dead one gets
/// a share, and everybody waits for 5 s more.
pub const RESTART: Duration = Duration::from_secs(2);

/// What is told of it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Crash {
    /// The worker that was killed.
    pub worker: String,
    /// Messages committed by all workers until then.
    pub committed: i64,
    /// Partitions that it held.
    pub partitions: usize,
    /// Messages in these that were not committed then: read or not, all of it has to be done again.
    pub waiting: i64,
    /// Seconds until the first of its partitions had a new commit.
    pub resumed_after: Option<f64>,
    /// Seconds until all of its partitions were claimed anew.
    pub claimed_after: Option<f64>,
}

/// A crash that is being watched.
#[derive(Debug)]
pub struct CrashWatch {
    crash: Crash,
    at: Instant,
    held: BTreeMap<TopicPartition, Held>,
}

#[derive(Debug)]
struct Held {
    /// Its epoch at the kill.
    epoch: i64,
    /// Its position when it was first seen claimed anew.
    claimed_at: Option<i64>,
}

impl CrashWatch {
    /// Chooses the worker that has most in hand; none if nobody has anything.
    pub fn choose(holders: &[Holder], backlog: &Backlog) -> Option<Crash> {
        let mut workers: BTreeMap<&str, (usize, i64)> = BTreeMap::new();
        for holder in holders.iter().filter(|holder| !holder.worker.is_empty()) {
            let (partitions, waiting) = workers.entry(&holder.worker).or_default();
            *partitions += 1;
            *waiting += backlog.waiting(&holder.partition);
        }
        let (worker, (partitions, waiting)) = workers.into_iter().max_by_key(|(_, (_, waiting))| *waiting)?;
        (waiting > 0).then(|| Crash {
            worker: worker.to_string(),
            committed: backlog.total_committed(),
            partitions,
            waiting,
            resumed_after: None,
            claimed_after: None,
        })
    }

    /// The worker was killed at this moment, with these partitions in its hands.
    pub fn begin(crash: Crash, at: Instant, holders: &[Holder]) -> CrashWatch {
        let own = holders.iter().filter(|holder| holder.worker == crash.worker);
        let held =
            own.map(|holder| (holder.partition.clone(), Held { epoch: holder.epoch, claimed_at: None })).collect();
        CrashWatch { crash, at, held }
    }

    /// Looks whether its partitions go on. Its last commit may have been on its way when it was killed: only what was
    /// claimed anew counts.
    pub fn look(&mut self, now: Instant, holders: &[Holder]) {
        let seconds = now.duration_since(self.at).as_secs_f64();
        let (mut claimed, mut moved) = (0, false);
        for holder in holders {
            if let Some(held) = self.held.get_mut(&holder.partition)
                && holder.epoch > held.epoch
            {
                claimed += 1;
                moved |= holder.next > *held.claimed_at.get_or_insert(holder.next);
            }
        }
        if moved {
            self.crash.resumed_after.get_or_insert(seconds);
        }
        if claimed == self.held.len() {
            self.crash.claimed_after.get_or_insert(seconds);
        }
    }

    /// Whether there is nothing more to see.
    pub fn is_over(&self) -> bool {
        self.crash.resumed_after.is_some() && self.crash.claimed_after.is_some()
    }

    /// What was seen.
    pub fn crash(&self) -> &Crash {
        &self.crash
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn holder(partition: i32, worker: &str, epoch: i64, next: i64) -> Holder {
        Holder { partition: ("t".into(), partition), next, epoch, worker: worker.into() }
    }

    #[test]
    fn the_worker_with_most_in_hand_is_chosen_and_its_partitions_are_watched() {
        let partition = |number| -> TopicPartition { ("t".into(), number) };
        let mut backlog = Backlog::new((0..3).map(partition));
        let mut holders = vec![holder(0, "a", 1, 0), holder(1, "b", 1, 0), holder(2, "b", 1, 0)];
        assert_eq!(CrashWatch::choose(&holders, &backlog), None, "nobody has anything in hand");
        for number in [0, 1, 1, 2] {
            backlog.produced(&partition(number), 10);
        }
        let crash = CrashWatch::choose(&holders, &backlog).unwrap();
        assert_eq!((crash.worker.as_str(), crash.partitions, crash.waiting), ("b", 2, 3));

        let at = Instant::now();
        let mut watch = CrashWatch::begin(crash, at, &holders);
        let later = |seconds| at + Duration::from_secs(seconds);
        holders[1].next = 2; // its last commit, already on its way
        holders[0].epoch = 9; // another's
        watch.look(later(1), &holders);
        assert!(watch.crash().resumed_after.is_none() && watch.crash().claimed_after.is_none());
        (holders[1].epoch, holders[1].worker) = (2, "a".into());
        watch.look(later(2), &holders);
        assert_eq!((watch.crash().resumed_after, watch.crash().claimed_after), (None, None));
        holders[1].next = 3;
        watch.look(later(3), &holders);
        assert_eq!((watch.crash().resumed_after, watch.crash().claimed_after), (Some(3.0), None));
        holders[2].epoch = 2;
        watch.look(later(4), &holders);
        watch.look(later(9), &holders);
        assert_eq!((watch.crash().resumed_after, watch.crash().claimed_after), (Some(3.0), Some(4.0)));
        assert!(watch.is_over());
    }
}
