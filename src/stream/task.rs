//! A task: the processor of one partition, from claim to release.

use std::time::Instant;

use afterimage_state::Mark;
use uuid::Uuid;

use super::chunk::Arrived;
use super::merge::Lane;
use crate::core::batch::Advance;
use crate::core::breaker::Breaker;
use crate::core::position::{Passage, PositionId};
use crate::kafka::Progress;
use crate::postgres::claim::Claim;
use crate::postgres::commit::Held;

/// The processor of one partition.
#[derive(Debug)]
pub struct Task {
    /// Partition.
    pub partition: i32,
    /// Position.
    pub position_id: PositionId,
    /// Claim.
    pub epoch: i64,
    /// Claim.
    pub token: Uuid,
    /// Next offset as committed.
    pub next: i64,
    /// Invalidations known.
    pub inval_seq: i64,
    /// What was passed below `next`.
    pub committed_passage: Passage,
    /// Next offset to take into a batch; runs ahead of `next`.
    pub read: i64,
    /// What was passed below `read`.
    pub passage: Passage,
    /// Messages below this offset were committed before this claim: they only tell what the image store
    /// must forget (protocol D13).
    pub catch_up_to: i64,
    /// Messages waiting for their turn.
    pub lane: Lane<Box<Arrived>>,
    /// Something was read since the claim; until then a slow first fetch is waited for.
    pub delivered: bool,
    /// Since when it has nothing buffered although it is not at its end.
    pub silent_since: Option<Instant>,
    /// It was waited for in vain; it is not waited for again before it delivers.
    pub left_behind: bool,
    /// Records with a greater number may be missing in the image store: nobody has put them in yet. `None` = it is whole.
    pub missing_after: Option<i32>,
    /// Counts what could not be decoded.
    pub breaker: Breaker,
}

impl Task {
    /// A freshly claimed partition. `start` is where reading begins: before `claim.next` when the image store
    /// has to catch up; `missing_after`: see the field.
    pub fn new(claim: &Claim, start: i64, missing_after: Option<i32>) -> Self {
        Task {
            partition: claim.partition,
            position_id: claim.position_id,
            epoch: claim.epoch,
            token: claim.token,
            next: claim.next,
            inval_seq: claim.inval_seq,
            committed_passage: claim.passage.clone(),
            read: start.min(claim.next),
            passage: claim.passage.clone(),
            catch_up_to: claim.next,
            lane: Lane::new(),
            delivered: false,
            silent_since: None,
            left_behind: false,
            missing_after,
            breaker: Breaker::default(),
        }
    }

    /// Back to what is committed (rewind).
    pub fn rewind(&mut self) {
        // A task that still catches up has judged nothing: it goes on from where it is, or the image store would
        // keep what the rest of the range touched.
        if self.caught_up() {
            self.read = self.next;
        }
        self.passage.clone_from(&self.committed_passage);
        self.lane.clear();
        self.silent_since = None;
        self.left_behind = false;
    }

    /// Whether nothing of it is at hand although there may be more: then it has to be heard before the topic's next event
    /// is chosen. `progress` is `None` between the claim and the assignment, while nothing is fetched yet: what it holds
    /// may be older than all that lies in other lanes. `end` is the broker's end as of the last fetch.
    pub fn is_awaited(&self, progress: Option<Progress>, end: impl FnOnce() -> Option<i64>) -> bool {
        if !self.lane.is_empty() || self.left_behind {
            return false;
        }
        let Some(progress) = progress else { return true };
        progress.end.is_none() && !(self.delivered && end() == Some(progress.next))
    }

    /// Whether the image store has forgotten everything that was committed before this claim.
    pub fn caught_up(&self) -> bool {
        self.read >= self.catch_up_to
    }

    /// Where a batch that starts with this task's next message begins.
    pub fn start(&self) -> Advance {
        Advance { passage: self.passage.clone(), ..Advance::standing(self.position_id, self.epoch, self.read) }
    }

    /// As the commit checks it.
    pub fn held(&self) -> Held {
        Held { epoch: self.epoch, next: self.next, inval_seq: self.inval_seq }
    }

    /// As the image store remembers it.
    pub fn mark(&self, sink_id: Uuid) -> Mark {
        Mark {
            sink_id: sink_id.into_bytes(),
            position_id: self.position_id,
            epoch: self.epoch,
            token: self.token.into_bytes(),
            next: self.next,
            inval_seq: self.inval_seq,
            missing_after: self.missing_after,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn task(next: i64, start: i64) -> Task {
        let claim = Claim { epoch: 3, next, ..Claim::first(7, 0) };
        Task::new(&claim, start, None)
    }

    #[test]
    fn a_rewind_does_not_cut_catching_up_short() {
        let mut behind = task(5000, 100);
        behind.read = 700;
        behind.rewind();
        assert_eq!((behind.read, behind.caught_up()), (700, false));
        behind.read = 5200;
        behind.rewind();
        assert_eq!(behind.read, 5000);
    }

    #[test]
    fn a_partition_is_awaited_from_its_claim_until_it_delivers_or_ends() {
        let mut fresh = task(5, 5);
        let at = |end| Some(Progress { generation: 1, next: 5, end });
        assert!(fresh.is_awaited(None, || Some(5)), "claimed, and not assigned yet");
        assert!(fresh.is_awaited(at(None), || Some(5)), "its end was told before anything was fetched");
        assert!(!fresh.is_awaited(at(Some(5)), || None), "at its end");
        fresh.delivered = true;
        assert!(fresh.is_awaited(at(None), || Some(6)) && fresh.is_awaited(at(None), || None));
        assert!(!fresh.is_awaited(at(None), || Some(5)), "all that was fetched is delivered");
        fresh.left_behind = true;
        assert!(!fresh.is_awaited(None, || None), "waited for in vain");
    }
}
