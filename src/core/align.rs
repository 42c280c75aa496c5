//! Keeping the workers of one topic in step (protocol D20): how far may one read ahead of the partitions that others
//! own, by the source's time?
//!
//! Each worker knows of the others only what they have committed. It reads freely up to [`LEEWAY`] beyond the slowest of
//! their partitions that still has a backlog, and from there a step of up to [`STEP`] events: where events are rare, time
//! alone would allow one event for each commit. A step ends early where events are dense ([`DENSE`]): a table reload moves
//! its records within minutes, and there time is the better measure. Then it waits, unless nobody is slower than itself. While the others have
//! no backlog it reads what it had at hand when that was asked, and then asks again: what they get later is not older,
//! because the source wrote it later. Until the first answer it takes nothing.
//!
//! **Two workers never wait for each other for good.** Committed times only rise. So what a worker knows of the others
//! is at most their true place, and once it has asked again it is that place. Take the partition with the smallest
//! committed time of all: whatever its owner knows of the others lies at or above it, therefore
//! [`step_again`](Stride::step_again) lets the owner go on, as often as it takes until that partition has moved.

use super::event::Micros;

/// Events this close together are not held apart (µs of source time).
pub const LEEWAY: Micros = 2_000_000;
/// An owner that commits nothing for this long (µs) is not waited for any more.
pub const STUCK: Micros = 60_000_000;
/// The same where the owner's process is gone: longer than the group needs to find another one (µs).
pub const OWNERLESS: Micros = 15_000_000;
/// Events beyond the slowest partition of others that a worker may take before it waits, where events are rare. Not too
/// few, because a step takes the time of a commit.
pub const STEP: usize = 500;
/// Events within one leeway that end a step. Few, because of a record that moves while they are taken, the later event may
/// be read first.
pub const DENSE: usize = 25;

/// A partition of the topic that is not ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Other {
    /// Which.
    pub partition: i32,
    /// Source time that its committed position has reached; `None` = none yet.
    pub source_at: Option<Micros>,
    /// The broker has messages beyond its committed position.
    pub backlog: bool,
    /// The process of its owner is there.
    pub owned: bool,
    /// For how long nothing was committed there (µs), whoever owned it meanwhile.
    pub unchanged: Micros,
}

impl Other {
    /// Has a backlog, but is not waited for any longer.
    fn is_left_behind(&self) -> bool {
        self.backlog && self.unchanged >= if self.owned { STUCK } else { OWNERLESS }
    }
}

/// What follows from the others' places.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Slowest {
    /// Committed source time of the slowest partition that is waited for; one without any counts as the beginning
    /// of time. `None` = nobody is waited for.
    pub at: Option<Micros>,
    /// Partitions that are not waited for although they have a backlog.
    pub left_behind: Vec<i32>,
}

/// Looks for the slowest partition of the others. One at its end is never waited for.
pub fn slowest(others: &[Other]) -> Slowest {
    let mut found = Slowest::default();
    for other in others.iter().filter(|other| other.backlog) {
        if other.is_left_behind() {
            found.left_behind.push(other.partition);
        } else {
            let at = other.source_at.unwrap_or(Micros::MIN);
            found.at = Some(found.at.map_or(at, |slowest| slowest.min(at)));
        }
    }
    found
}

/// How far one worker is ahead of the slowest partition of the others.
#[derive(Debug)]
pub struct Stride {
    step: usize,
    /// As last told; `None` = nobody was waited for.
    slowest: Option<Micros>,
    /// The slowest, or the newest event at hand when there was none; `None` = all events are taken freely.
    mark: Option<Micros>,
    /// Others read this topic too, and nothing is known of them yet.
    asking: bool,
    /// Source times of events taken beyond the mark: the first `step` of them, more are of no interest.
    ahead: Vec<Micros>,
}

impl Stride {
    /// All partitions are ours; `step` as in [`STEP`].
    pub fn new(step: usize) -> Self {
        Stride { step: step.max(1), slowest: None, mark: None, asking: false, ahead: Vec::new() }
    }

    /// Whether everything may be taken.
    pub fn is_free(&self) -> bool {
        self.mark.is_none() && !self.asking
    }

    /// Who else reads this topic has changed: nothing is taken before [`see`](Self::see) or [`free`](Self::free). What
    /// lies at hand may be hours ahead of them.
    pub fn ask(&mut self) {
        self.asking = true;
    }

    /// Nobody else reads this topic, or nobody answers.
    pub fn free(&mut self) {
        *self = Stride::new(self.step);
    }

    /// The slowest partition of the others is there now ([`Slowest::at`]); `newest` is the source time of the newest
    /// event at hand.
    pub fn see(&mut self, slowest: Option<Micros>, newest: Micros) {
        let mark = slowest.unwrap_or(newest);
        self.slowest = slowest;
        self.mark = Some(mark);
        self.asking = false;
        self.ahead.retain(|at| *at > mark);
    }

    /// Takes the event of this source time, if it may be taken now.
    pub fn take(&mut self, at: Micros) -> bool {
        if self.asking {
            return false;
        }
        let Some(mark) = self.mark.filter(|mark| at > *mark) else { return true };
        if at > mark.saturating_add(LEEWAY) && (self.ahead.len() >= self.step || self.is_dense(at)) {
            return false;
        }
        if self.ahead.len() < self.step {
            self.ahead.push(at);
        }
        true
    }

    /// Whether many events were taken shortly before this one.
    fn is_dense(&self, at: Micros) -> bool {
        let since = at.saturating_sub(LEEWAY);
        self.ahead.iter().rev().take(DENSE).filter(|taken| **taken >= since).count() == DENSE
    }

    /// After [`take`](Self::take) refused, and all that was taken is committed: another step, if none of the others is
    /// slower. `floor` is the committed source time of the slowest of our own partitions that have a backlog.
    pub fn step_again(&mut self, floor: Micros) -> bool {
        let nobody_is_slower = self.slowest.is_some_and(|slowest| floor <= slowest);
        if nobody_is_slower {
            self.ahead.clear();
        }
        nobody_is_slower
    }

    /// Whether others may be waiting for us: the slowest of them is ahead of our slowest.
    pub fn is_behind(&self, floor: Micros) -> bool {
        self.slowest.is_some_and(|slowest| floor < slowest)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECOND: Micros = 1_000_000;

    fn other(partition: i32, at: Micros) -> Other {
        Other { partition, source_at: Some(at), backlog: true, owned: true, unchanged: 0 }
    }

    #[test]
    fn the_slowest_with_a_backlog_counts_and_ends_do_not() {
        assert_eq!(slowest(&[]), Slowest::default());
        let at_end = Other { backlog: false, ..other(0, 1) };
        assert_eq!(slowest(&[at_end]).at, None);
        assert_eq!(slowest(&[at_end, other(1, 30), other(2, 20)]).at, Some(20));
        let unread = Other { source_at: None, ..other(3, 0) };
        assert_eq!(slowest(&[other(1, 30), unread]).at, Some(Micros::MIN));
    }

    #[test]
    fn who_stands_still_is_left_behind_after_a_while() {
        let still = |unchanged, owned| Other { unchanged, owned, ..other(1, 20) };
        assert_eq!(slowest(&[still(STUCK - 1, true)]).at, Some(20));
        assert_eq!(slowest(&[still(STUCK, true)]), Slowest { at: None, left_behind: vec![1] });
        assert_eq!(slowest(&[still(OWNERLESS - 1, false)]).at, Some(20));
        assert_eq!(slowest(&[still(OWNERLESS, false), other(2, 50)]), Slowest { at: Some(50), left_behind: vec![1] });
        let done = Other { backlog: false, ..still(STUCK, true) };
        assert_eq!(slowest(&[done]), Slowest::default(), "at its end it has not been left behind");
    }

    #[test]
    fn within_the_leeway_everything_is_taken_and_in_any_case_a_step() {
        let mut stride = Stride::new(2);
        assert!(stride.is_free() && stride.take(Micros::MAX));
        stride.see(Some(100 * SECOND), 0);
        for _ in 0..10 {
            assert!(stride.take(102 * SECOND));
        }
        assert!(!stride.take(103 * SECOND), "the step was taken within the leeway");
        stride.free();
        stride.see(Some(100 * SECOND), 0);
        assert!(stride.take(103 * SECOND) && stride.take(104 * SECOND) && !stride.take(105 * SECOND));
        assert!(stride.take(101 * SECOND), "an event within the leeway is never held");
        stride.see(Some(103 * SECOND), 0);
        assert!(stride.take(106 * SECOND) && !stride.take(107 * SECOND), "one of the two is not ahead any more");
        assert!(!stride.step_again(104 * SECOND), "someone is slower");
        assert!(stride.step_again(103 * SECOND) && stride.take(107 * SECOND), "nobody is slower");
        stride.free();
        assert!(stride.take(Micros::MAX));
    }

    #[test]
    fn a_step_is_long_where_events_are_rare_and_short_where_they_are_dense() {
        let taken = |apart: Micros| {
            let mut stride = Stride::new(STEP);
            stride.see(Some(0), 0);
            (1..).take_while(|nth| stride.take(10 * SECOND + nth * apart)).count()
        };
        assert_eq!((taken(60 * SECOND), taken(SECOND)), (STEP, STEP));
        assert_eq!((taken(SECOND / 100), taken(0)), (DENSE, DENSE));
    }

    #[test]
    fn while_the_others_are_at_their_ends_what_is_at_hand_is_read_and_then_they_are_asked_again() {
        let mut stride = Stride::new(1);
        stride.see(None, 100 * SECOND);
        assert!(stride.take(102 * SECOND) && !stride.take(103 * SECOND));
        assert!(!stride.step_again(0), "only an answer tells that they still are");
        stride.see(None, 110 * SECOND);
        assert!(stride.take(103 * SECOND));
    }

    #[test]
    fn before_the_first_answer_nothing_is_taken() {
        let mut stride = Stride::new(5);
        stride.ask();
        assert!(!stride.is_free() && !stride.take(Micros::MIN));
        stride.see(Some(0), 0);
        assert!(stride.take(1) && stride.take(SECOND));
        stride.ask();
        assert!(!stride.take(1), "others than before");
        stride.free();
        assert!(stride.is_free() && stride.take(Micros::MAX), "nobody answers");
    }

    /// A worker of the simulation: its partitions' events by time, and what it has taken and committed of them.
    struct Worker {
        lanes: Vec<Vec<Micros>>,
        taken: Vec<usize>,
        committed: Vec<usize>,
        stride: Stride,
        held: bool,
    }

    impl Worker {
        fn place(&self, lane: usize) -> Option<Micros> {
            self.committed[lane].checked_sub(1).map(|last| self.lanes[lane][last])
        }

        fn others(&self) -> impl Iterator<Item = Other> {
            (0..self.lanes.len()).map(|lane| Other {
                source_at: self.place(lane),
                backlog: self.committed[lane] < self.lanes[lane].len(),
                ..other(0, 0)
            })
        }

        fn floor(&self) -> Option<Micros> {
            self.others().filter(|one| one.backlog).map(|one| one.source_at.unwrap_or(Micros::MIN)).min()
        }

        fn is_done(&self) -> bool {
            (0..self.lanes.len()).all(|lane| self.committed[lane] == self.lanes[lane].len())
        }

        /// Takes what may be taken, in time order, up to a chunk.
        fn work(&mut self, chunk: usize) {
            if self.held
                && self.taken == self.committed
                && let Some(floor) = self.floor()
            {
                self.stride.step_again(floor);
            }
            self.held = false;
            for _ in 0..chunk {
                let next = (0..self.lanes.len())
                    .filter_map(|lane| Some((*self.lanes[lane].get(self.taken[lane])?, lane)))
                    .min();
                let Some((at, lane)) = next else { return };
                if !self.stride.take(at) {
                    self.held = true;
                    return;
                }
                self.taken[lane] += 1;
            }
        }
    }

    /// A few workers, each with a few partitions; gaps between events from nothing to days.
    fn workers() -> impl Strategy<Value = Vec<Vec<Vec<Micros>>>> {
        let gap = prop_oneof![0..3i64, 0..3 * SECOND, Just(60 * SECOND), Just(86_400 * SECOND)];
        let lane = prop::collection::vec(gap, 0..40).prop_map(|gaps| {
            gaps.into_iter()
                .scan(0, |at, gap| {
                    *at += gap;
                    Some(*at)
                })
                .collect()
        });
        prop::collection::vec(prop::collection::vec(lane, 1..4), 2..5)
    }

    fn simulate(lanes: Vec<Vec<Vec<Micros>>>, step: usize) -> Vec<Worker> {
        lanes
            .into_iter()
            .map(|lanes| Worker {
                taken: vec![0; lanes.len()],
                committed: vec![0; lanes.len()],
                stride: Stride::new(step),
                held: false,
                lanes,
            })
            .collect()
    }

    fn ask(workers: &mut [Worker], who: usize) {
        let others: Vec<Other> =
            (0..workers.len()).filter(|other| *other != who).flat_map(|other| workers[other].others()).collect();
        let at_hand = workers[who].lanes.iter().filter_map(|lane| lane.last()).max();
        let newest = at_hand.copied().unwrap_or(0);
        workers[who].stride.see(slowest(&others).at, newest);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(400))]

        /// Whatever the order of asking, reading and committing: everything is read, nobody waits for good.
        #[test]
        fn nobody_waits_for_good(lanes in workers(), step in 1..6usize, order in prop::collection::vec((0..5usize, 0..3u8), 0..300)) {
            let mut workers = simulate(lanes, step);
            let act = |workers: &mut Vec<Worker>, who: usize, what: u8| match what {
                0 => ask(workers, who),
                1 => workers[who].work(7),
                _ => workers[who].committed = workers[who].taken.clone(),
            };
            for (who, what) in order {
                let who = who % workers.len();
                act(&mut workers, who, what);
            }
            let events: usize = workers.iter().flat_map(|worker| &worker.lanes).map(Vec::len).sum();
            // Whoever has the smallest committed time gets on by at least one event in each round.
            for _ in 0..=events {
                for who in 0..workers.len() {
                    for what in [0, 1, 2] {
                        act(&mut workers, who, what);
                    }
                }
            }
            for (who, worker) in workers.iter().enumerate() {
                prop_assert!(worker.is_done(), "worker {who} stands at {:?} of {:?}", worker.committed, worker.lanes);
            }
        }

        /// Who is not the slowest never takes more than a step beyond the leeway of who is.
        #[test]
        fn nobody_runs_away(lanes in workers(), step in 1..6usize, order in prop::collection::vec((0..5usize, 0..3u8), 0..300)) {
            let mut workers = simulate(lanes, step);
            for (who, what) in order {
                let who = who % workers.len();
                match what {
                    0 => ask(&mut workers, who),
                    1 => {
                        ask(&mut workers, who);
                        workers[who].work(7);
                        let others: Vec<Other> = (0..workers.len()).filter(|o| *o != who).flat_map(|o| workers[o].others()).collect();
                        let Some(at) = slowest(&others).at else { continue };
                        let worker = &workers[who];
                        if worker.floor().is_some_and(|floor| floor <= at) {
                            continue;
                        }
                        let horizon = at.saturating_add(LEEWAY);
                        let beyond: usize = (0..worker.lanes.len())
                            .map(|lane| worker.lanes[lane][worker.committed[lane]..worker.taken[lane]].iter().filter(|at| **at > horizon).count())
                            .sum();
                        prop_assert!(beyond <= step, "{beyond} events beyond {horizon}");
                    }
                    _ => workers[who].committed = workers[who].taken.clone(),
                }
            }
        }
    }
}
