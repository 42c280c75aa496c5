//! A task: the processor of one partition, from claim to release.

use afterimage_state::Mark;
use uuid::Uuid;

use super::merge::Lane;
use crate::core::batch::Advance;
use crate::core::decode::Peek;
use crate::core::position::{Counters, Passed, PositionId};
use crate::kafka::Message;
use crate::postgres::claim::Claim;
use crate::postgres::commit::Held;

/// A message that was looked at and waits for its turn.
#[derive(Debug)]
pub struct Waiting {
    /// The message.
    pub message: Message,
    /// What the first look found.
    pub peeked: Peek,
}

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
    /// Greatest (source time, LSN) below `next`.
    pub committed_passed: Passed,
    /// Next offset to take into a batch; runs ahead of `next`.
    pub read: i64,
    /// Greatest (source time, LSN) below `read`.
    pub passed: Passed,
    /// Messages below this offset were committed before this claim: they only tell what the image store
    /// must forget (protocol D13).
    pub catch_up_to: i64,
    /// Messages waiting for their turn.
    pub lane: Lane<Waiting>,
    /// Something was read since the claim; until then a slow first fetch is waited for.
    pub delivered: bool,
    /// It was waited for in vain; it is not waited for again before it delivers.
    pub left_behind: bool,
}

impl Task {
    /// A freshly claimed partition. `start` is where reading begins: before `claim.next` when the image store
    /// has to catch up.
    pub fn new(claim: &Claim, start: i64) -> Self {
        Task {
            partition: claim.partition,
            position_id: claim.position_id,
            epoch: claim.epoch,
            token: claim.token,
            next: claim.next,
            inval_seq: claim.inval_seq,
            committed_passed: claim.passed,
            read: start.min(claim.next),
            passed: claim.passed,
            catch_up_to: claim.next,
            lane: Lane::new(),
            delivered: false,
            left_behind: false,
        }
    }

    /// Back to what is committed (rewind).
    pub fn rewind(&mut self) {
        self.read = self.next;
        self.passed = self.committed_passed;
        self.lane.clear();
        self.left_behind = false;
    }

    /// Where a batch that starts with this task's next message begins.
    pub fn start(&self) -> Advance {
        Advance {
            position_id: self.position_id,
            epoch: self.epoch,
            from: self.read,
            to: self.read,
            counters: Counters::default(),
            last: None,
            passed: self.passed,
        }
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
        }
    }
}
