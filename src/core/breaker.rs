//! When too much of a partition can't be decoded, its task halts: the topic holds another format, and would be copied into
//! Postgres as dead letters.

use std::collections::VecDeque;

/// More dead letters than this, one after the other, halt a task.
pub const IN_A_ROW: u64 = 1_000;
/// More dead letters than this among the last [`WINDOW`] messages halt a task.
pub const AMONG: usize = 5_000;
/// See [`AMONG`].
pub const WINDOW: u64 = 10_000;

/// Why a task is halted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flood {
    /// More than [`IN_A_ROW`], nothing between them.
    InARow,
    /// More than [`AMONG`] of the last [`WINDOW`] messages.
    Half,
}

/// Counts the dead letters of one task. What is delivered again, after a rewind, counts once.
#[derive(Debug, Default)]
pub struct Breaker {
    /// Messages below this offset are counted.
    seen_to: Option<i64>,
    messages: u64,
    in_a_row: u64,
    /// Which of the last messages were dead letters, by their number.
    dead: VecDeque<u64>,
}

impl Breaker {
    /// Takes note of the message at an offset; whether it is one dead letter too many.
    pub fn take(&mut self, offset: i64, is_dead: bool) -> Option<Flood> {
        if self.seen_to.is_some_and(|seen_to| offset < seen_to) {
            return None;
        }
        self.seen_to = Some(offset + 1);
        self.messages += 1;
        if !is_dead {
            self.in_a_row = 0;
            return None;
        }
        self.in_a_row += 1;
        self.dead.push_back(self.messages);
        while self.dead.front().is_some_and(|first| first + WINDOW <= self.messages) {
            self.dead.pop_front();
        }
        if self.in_a_row > IN_A_ROW {
            Some(Flood::InARow)
        } else if self.dead.len() > AMONG {
            Some(Flood::Half)
        } else {
            None
        }
    }
}

/// What a halted task says: what is wrong with the partition, and what to do about it. `reason` is the decoder's, of the
/// message at `offset`, which is the next to be read.
pub fn flood_text(flood: Flood, topic: &str, partition: i32, offset: i64, reason: &str) -> String {
    let what = match flood {
        Flood::InARow => "more than 1,000 messages in a row",
        Flood::Half => "more than half of the last 10,000 messages",
    };
    format!(
        "{what} could not be decoded, the one at offset {offset} is `{reason}`: does the topic hold another format? Nothing is \
         read from it until that is settled. Either take the topic out of [[org]], or `afterimage offsets skip {topic} \
         --partition {partition} --to OFFSET`, which leaves messages out, or `afterimage offsets resume {topic} --partition \
         {partition}`, which reads on as before"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(breaker: &mut Breaker, from: i64, dead: impl IntoIterator<Item = bool>) -> Option<(i64, Flood)> {
        dead.into_iter().zip(from..).find_map(|(dead, offset)| Some((offset, breaker.take(offset, dead)?)))
    }

    #[test]
    fn a_thousand_in_a_row_are_borne_and_one_more_is_not() {
        let mut breaker = Breaker::default();
        assert_eq!(run(&mut breaker, 0, [true; 1_000]), None);
        assert_eq!(breaker.take(1_000, true), Some(Flood::InARow));
        let mut breaker = Breaker::default();
        assert_eq!(run(&mut breaker, 0, [true; 1_000]), None);
        assert_eq!(breaker.take(1_000, false), None);
        assert_eq!(run(&mut breaker, 1_001, [true; 1_000]), None, "the row was broken");
    }

    #[test]
    fn more_than_half_of_ten_thousand_are_too_many_wherever_the_window_lies() {
        let every_other = |n: usize| (0..n).map(|at| at % 2 == 0);
        assert_eq!(run(&mut Breaker::default(), 0, every_other(40_000)), None, "half is not more than half");
        let mut breaker = Breaker::default();
        assert_eq!(run(&mut breaker, 0, [false; 7_777]), None);
        // Three of five: 5,001 of them are reached with the 8,334th message.
        let three_of_five = (0..40_000).map(|at| at % 5 < 3);
        assert_eq!(run(&mut breaker, 7_777, three_of_five), Some((7_777 + 8_332, Flood::Half)));
    }

    #[test]
    fn what_is_delivered_again_counts_once() {
        let mut breaker = Breaker::default();
        for _ in 0..5 {
            assert_eq!(run(&mut breaker, 100, [true; 600]), None);
        }
        assert_eq!(run(&mut breaker, 100, [true; 1_001]), Some((1_100, Flood::InARow)));
    }

    #[test]
    fn a_halt_names_what_to_do() {
        let text = flood_text(Flood::InARow, "calm.emea.account", 2, 1_000, "not json");
        for part in ["offset 1000 is `not json`", "offsets skip calm.emea.account --partition 2", "offsets resume"] {
            assert!(text.contains(part), "{text}");
        }
    }
}
