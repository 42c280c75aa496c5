//! Reading the partitions of one topic in source time order (protocol D20).
//!
//! A record that moved has events on two partitions. Read one after the other, the older ones come too late to be
//! placed; merged by the time of their commits at the source, they come as they happened.

use std::collections::VecDeque;

use crate::core::event::{Lsn, Micros};

/// An event's turn: source commit time, then LSN, a delete before what else has the same.
///
/// One number, so that comparing two takes no branches: it is done for every message and partition. The time stands above,
/// with its sign turned over; below it the LSN, and in the lowest bit whether it is no delete.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Turn(u128);

impl Turn {
    /// What has no time of its own (a tombstone, junk) follows its predecessor at once.
    pub const AT_ONCE: Turn = Turn(0);
    /// After everything: of a lane where nothing waits.
    pub const NEVER: Turn = Turn(u128::MAX);

    /// The turn of a row event.
    pub fn new(ts: Option<Micros>, lsn: Lsn, delete: bool) -> Self {
        let time = ts.unwrap_or(Micros::MIN) as u64 ^ (1 << 63);
        // PostgreSQL's positions have 64 bits, of which no log ever fills the highest; below the mark for "never".
        let place = lsn.min((u64::MAX >> 1) - 1) << 1 | u64::from(!delete);
        Turn(u128::from(time) << 64 | u128::from(place))
    }

    /// Its source time; of what has none, the beginning of time.
    pub fn at(self) -> Micros {
        ((self.0 >> 64) as u64 ^ (1 << 63)) as Micros
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

    /// Its first message's turn; [`Turn::NEVER`] if nothing waits.
    pub fn turn(&self) -> Turn {
        self.queue.front().map_or(Turn::NEVER, |(turn, _)| *turn)
    }

    /// Source time of the newest message that has one.
    pub fn newest(&self) -> Option<Micros> {
        self.queue.iter().rev().map(|(turn, _)| turn.at()).find(|ts| *ts != Micros::MIN)
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

/// Which lane's first message is next, by the turns of all lanes' first messages. Within a partition the order of Kafka
/// stands, whatever the times say.
pub fn next(turns: &[Turn]) -> Option<usize> {
    let mut first = Turn::NEVER;
    let mut next = None;
    for (at, turn) in turns.iter().enumerate() {
        if *turn < first {
            (first, next) = (*turn, Some(at));
        }
    }
    next
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
    fn turns_are_in_the_order_of_time_and_place() {
        let far = Micros::MAX;
        let turns = [
            Turn::AT_ONCE,
            Turn::new(None, 7, true),
            Turn::new(Some(-5), 9, true),
            Turn::new(Some(-5), 9, false),
            Turn::new(Some(0), 0, true),
            Turn::new(Some(0), 1 << 62, false),
            Turn::new(Some(far), u64::MAX, true),
            Turn::new(Some(far), u64::MAX, false),
            Turn::NEVER,
        ];
        assert!(turns.is_sorted_by(|a, b| a < b), "{turns:?}");
        assert_eq!([2, 4, 6].map(|at: usize| turns[at].at()), [-5, 0, far]);
        assert_eq!((turns[0].at(), turns[1].at()), (Micros::MIN, Micros::MIN));
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
