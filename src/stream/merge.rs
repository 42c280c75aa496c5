//! Reading the partitions of one topic in source time order (protocol D20).
//!
//! A record that moved has events on two partitions. Read one after the other, the older ones come too late to be
//! placed; merged by the time of their commits at the source, they come as they happened.

use std::collections::VecDeque;

use crate::core::event::{Lsn, Micros};

/// An event's turn: source commit time, then LSN, a delete before what else has the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Turn {
    ts: Micros,
    lsn: Lsn,
    later: bool,
}

impl Turn {
    /// What has no time of its own (a tombstone, junk) follows its predecessor at once.
    pub const AT_ONCE: Turn = Turn { ts: Micros::MIN, lsn: 0, later: false };

    /// The turn of a row event.
    pub fn new(ts: Option<Micros>, lsn: Lsn, delete: bool) -> Self {
        Turn { ts: ts.unwrap_or(Micros::MIN), lsn, later: !delete }
    }

    /// Its source time; of what has none, the beginning of time.
    pub fn at(self) -> Micros {
        self.ts
    }
}

/// What waits in one partition.
#[derive(Debug, Default)]
pub struct Lane<T> {
    queue: VecDeque<(Turn, T)>,
}

impl<T> Lane<T> {
    /// An empty lane.
    pub fn new() -> Self {
        Lane { queue: VecDeque::new() }
    }

    /// Adds the partition's next message.
    pub fn push(&mut self, turn: Turn, item: T) {
        self.queue.push_back((turn, item));
    }

    /// Its first message's turn.
    pub fn turn(&self) -> Option<Turn> {
        self.queue.front().map(|(turn, _)| *turn)
    }

    /// Source time of the newest message that has one.
    pub fn newest(&self) -> Option<Micros> {
        self.queue.iter().rev().map(|(turn, _)| turn.ts).find(|ts| *ts != Micros::MIN)
    }

    /// Takes the first message.
    pub fn pop(&mut self) -> Option<T> {
        self.queue.pop_front().map(|(_, item)| item)
    }

    /// Everything that waits, first to last.
    pub fn iter_mut(&mut self) -> impl DoubleEndedIterator<Item = &mut T> {
        self.queue.iter_mut().map(|(_, item)| item)
    }

    /// Messages waiting.
    pub fn len(&self) -> usize {
        self.queue.len()
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// Drops everything.
    pub fn clear(&mut self) {
        self.queue.clear();
    }
}

/// Which lane's first message is next, by the turns of all lanes' first messages (`None` = an empty lane). Within a
/// partition the order of Kafka stands, whatever the times say.
pub fn next(turns: &[Option<Turn>]) -> Option<usize> {
    let first = turns.iter().enumerate().filter_map(|(at, turn)| Some(((*turn)?, at)));
    first.min_by_key(|(turn, _)| *turn).map(|(_, at)| at)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(lanes: &mut [Lane<&'static str>]) -> Vec<&'static str> {
        let mut out = Vec::new();
        while let Some(at) = next(&lanes.iter().map(Lane::turn).collect::<Vec<_>>()) {
            out.extend(lanes[at].pop());
        }
        out
    }

    #[test]
    fn partitions_are_read_as_their_source_committed() {
        let mut lanes = [Lane::new(), Lane::new()];
        lanes[0].push(Turn::new(Some(1), 10, false), "a");
        lanes[0].push(Turn::new(Some(4), 40, false), "d");
        lanes[1].push(Turn::new(Some(2), 20, true), "b");
        lanes[1].push(Turn::AT_ONCE, "b's tombstone");
        lanes[1].push(Turn::new(Some(3), 30, false), "c");
        assert_eq!(read(&mut lanes), ["a", "b", "b's tombstone", "c", "d"]);
    }

    #[test]
    fn a_delete_comes_before_the_insert_of_the_same_lsn() {
        let mut lanes = [Lane::new(), Lane::new()];
        lanes[0].push(Turn::new(Some(1), 10, false), "insert");
        lanes[1].push(Turn::new(Some(1), 10, true), "delete");
        assert_eq!(read(&mut lanes), ["delete", "insert"]);
    }

    #[test]
    fn a_partition_keeps_its_own_order_also_where_times_fall() {
        let mut lanes = [Lane::new(), Lane::new()];
        lanes[0].push(Turn::new(Some(5), 50, false), "first");
        lanes[0].push(Turn::new(Some(1), 10, false), "second, re-delivered");
        lanes[1].push(Turn::new(Some(3), 30, false), "other");
        assert_eq!(read(&mut lanes), ["other", "first", "second, re-delivered"]);
    }
}
