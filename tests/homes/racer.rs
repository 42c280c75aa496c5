//! One worker of the race, whatever its sink: it reads, seals, commits, goes back, and loses partitions.

use std::any::Any;
use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use afterimage::core::batch::SealedBatch;
use afterimage::core::position::PositionId;
use afterimage::core::record::{Floor, key_hash};
use afterimage::core::touched::Touched;
use proptest::prelude::*;

use crate::course::{Again, Course, deed};
use crate::table::Deed;
use crate::worker::{FRONT, Log, Message, SMALL_FRONT, Sink, Store, Worker};

/// A part of the protocol that is undone in what a worker sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Undone {
    Nothing,
    /// The invalidation log is not looked at before a commit.
    InvalidationCheck,
    /// A record is taken over only when the batch writes a version of it.
    TakeOverOnNoops,
    /// The order bound of a moved record is not written.
    Floor,
    /// Records whose events changed nothing do not count as judged.
    NoopsTouch,
}

impl Undone {
    pub const EACH: [Undone; 4] =
        [Undone::InvalidationCheck, Undone::TakeOverOnNoops, Undone::Floor, Undone::NoopsTouch];

    fn undo(self, batch: &mut SealedBatch) {
        let written: HashSet<i32> = [&batch.deltas, &batch.keyframes, &batch.deltas_after, &batch.keyframes_after]
            .into_iter()
            .flatten()
            .map(|row| row.rid)
            .collect();
        match self {
            Undone::Nothing | Undone::InvalidationCheck => {}
            Undone::TakeOverOnNoops => {
                let mut left = HashSet::new();
                for change in batch.registry.iter_mut().filter(|change| !written.contains(&change.rid)) {
                    if let Some(seen) = change.taken_from.take()
                        && let Some(home) = seen.home
                    {
                        (change.home, change.floor) = (home, seen.floor);
                        left.insert(change.rid);
                    }
                }
                batch.records.retain(|stored| !left.contains(&stored.record.rid));
            }
            Undone::Floor => {
                for change in &mut batch.registry {
                    change.floor = Floor::default();
                    if let Some(seen) = &mut change.taken_from {
                        seen.floor = Floor::default();
                    }
                }
                for stored in &mut batch.records {
                    Arc::make_mut(&mut stored.record).floor = Floor::default();
                }
            }
            Undone::NoopsTouch => {
                batch.touched = Touched::default();
                for stored in batch.records.iter().filter(|stored| written.contains(&stored.record.rid)) {
                    batch.touched.add(key_hash(batch.object_id, &stored.identity));
                }
            }
        }
    }
}

/// A record that this worker's sink says another position took.
pub type Gone = (PositionId, Box<str>);

/// What became of a commit.
pub enum Outcome {
    Done(Vec<Gone>),
    /// Nothing was written: judged against something that changed since.
    Rewind(Vec<Gone>),
    /// Nothing was written: these partitions are another's.
    Fenced(Vec<i32>),
    /// Claim again to know.
    Unknown,
}

/// A sink that several workers write to.
pub trait Shared: Sink {
    /// Takes a partition, from whoever has it; gives its position.
    fn claim(&mut self, partition: i32) -> PositionId;
    /// Partitions held, as far as this worker knows, each with the next offset to read.
    fn held(&self) -> BTreeMap<i32, i64>;
    /// Another has it.
    fn lost(&mut self, partition: i32);
    /// One transaction.
    fn commit(&mut self, batch: &SealedBatch) -> Outcome;
}

/// What a worker does next.
#[derive(Debug, Clone, Copy)]
pub enum Move {
    /// Reads so many messages of one of its partitions.
    Read(u8, u8),
    /// Seals what was read; a batch before it is committed first.
    Seal,
    /// Commits what is sealed.
    Commit,
    /// Drops everything that is not committed.
    Rewind,
    /// Is started again, with what it has on disk or without.
    Restart(bool),
    /// Takes a partition, from whoever has it.
    Claim(u8),
}

pub fn some_move() -> impl Strategy<Value = Move> {
    prop_oneof![
        10 => (any::<u8>(), 1..6u8).prop_map(|(partition, messages)| Move::Read(partition, messages)),
        3 => Just(Move::Seal),
        5 => Just(Move::Commit),
        1 => Just(Move::Rewind),
        1 => any::<bool>().prop_map(Move::Restart),
        1 => any::<u8>().prop_map(Move::Claim),
    ]
}

/// See the module.
pub struct Racer<'w, S> {
    worker: Worker<'w, S>,
    log: &'w Log,
    undone: Undone,
    next: BTreeMap<i32, i64>,
    in_flight: Option<SealedBatch>,
    /// Commits that wrote nothing, one after the other.
    pub failures: u32,
}

impl<'w, S: Shared> Racer<'w, S> {
    pub fn new(worker: Worker<'w, S>, log: &'w Log, undone: Undone) -> Self {
        Racer { worker, log, undone, next: BTreeMap::new(), in_flight: None, failures: 0 }
    }

    fn lane(&self, partition: i32) -> &'w [Message] {
        let lane = self.log.iter().find(|((_, of), _)| *of == partition);
        lane.map_or(&[], |(_, lane)| lane)
    }

    /// Whether it has read, and committed, all that there is in its partitions.
    pub fn is_done(&self) -> bool {
        let all_read = self.next.iter().all(|(partition, next)| *next >= self.lane(*partition).len() as i64);
        all_read && self.in_flight.is_none() && self.worker.open().is_empty()
    }

    pub fn step(&mut self, step: Move, partitions: &[i32]) {
        match step {
            Move::Read(which, messages) => {
                if let Some(partition) = self.pick(which) {
                    self.read(partition, usize::from(messages));
                }
            }
            Move::Seal => self.seal(),
            Move::Commit => self.commit(),
            Move::Rewind => self.rewind(),
            Move::Restart(keeps) => {
                if !keeps {
                    let held: Vec<i32> = self.next.keys().copied().collect();
                    held.into_iter().for_each(|partition| self.claim(partition));
                }
                self.rewind();
            }
            Move::Claim(which) => self.claim(partitions[usize::from(which) % partitions.len()]),
        }
    }

    /// One step towards the end: reads what is left, then commits.
    pub fn finish(&mut self, which: u8) {
        let left = self.next.iter().find(|(partition, next)| **next < self.lane(**partition).len() as i64);
        match left.map(|(partition, _)| *partition) {
            Some(partition) if self.worker.open().events() < 8 => self.read(partition, 1 + usize::from(which % 7)),
            _ => {
                self.seal();
                self.commit();
            }
        }
    }

    /// Mostly the partition that is furthest behind in time, as a worker does; else any.
    fn pick(&self, which: u8) -> Option<i32> {
        let mine: Vec<i32> = self.next.keys().copied().collect();
        let behind = mine.iter().filter_map(|partition| {
            let message = self.lane(*partition).get(self.next[partition] as usize)?;
            Some((message.timestamp_ms, *partition))
        });
        match behind.min() {
            Some((_, partition)) if !which.is_multiple_of(3) => Some(partition),
            _ => mine.get(usize::from(which) % mine.len().max(1)).copied(),
        }
    }

    fn read(&mut self, partition: i32, messages: usize) {
        let lane = self.lane(partition);
        let from = self.next[&partition] as usize;
        let to = (from + messages).min(lane.len());
        if from < to {
            self.worker.process(&lane[from..to]);
            self.next.insert(partition, to as i64);
        }
    }

    fn seal(&mut self) {
        // Depth one: a batch is sealed once the one before it is known to be committed.
        self.commit();
        if !self.worker.open().is_empty() {
            let mut batch = self.worker.seal();
            self.undone.undo(&mut batch);
            self.in_flight = Some(batch);
        }
    }

    pub fn claim(&mut self, partition: i32) {
        let position_id = self.worker.sink.claim(partition);
        // What it knew of the position may be of an older life: not looked into here, so not believed.
        self.worker.forget_position(position_id);
        self.rewind();
    }

    fn rewind(&mut self) {
        self.in_flight = None;
        self.worker.rewind();
        self.next = self.worker.sink.held();
    }

    fn commit(&mut self) {
        let Some(batch) = self.in_flight.take() else { return };
        match self.worker.sink.commit(&batch) {
            Outcome::Done(gone) => {
                self.failures = 0;
                self.forget(&gone);
                self.worker.committed(&batch);
                // The next batch was begun before this was known.
                let hashes = gone.iter().map(|(_, identity)| key_hash(batch.object_id, identity));
                if self.undone != Undone::InvalidationCheck && self.worker.open().touched().any_of(hashes) {
                    self.rewind();
                }
            }
            Outcome::Rewind(gone) => {
                self.failures += 1;
                self.forget(&gone);
                self.rewind();
            }
            Outcome::Fenced(partitions) => {
                partitions.into_iter().for_each(|partition| self.worker.sink.lost(partition));
                self.rewind();
            }
            Outcome::Unknown => {
                self.failures += 1;
                let held: Vec<i32> = self.next.keys().copied().collect();
                held.into_iter().for_each(|partition| self.claim(partition));
            }
        }
    }

    fn forget(&mut self, gone: &[Gone]) {
        for (position_id, identity) in gone {
            self.worker.forget(*position_id, identity);
        }
    }
}

/// Which worker does what, one after the other.
pub type Steps = Vec<(u8, Move)>;

/// A race in steps: what happens to the table, what is delivered twice, who does what, and how large each worker's front
/// is.
pub type Race = (Vec<Deed>, Vec<Again>, Steps, u8);

const RECORDS: u8 = 4;
const PARTITIONS: i32 = 3;
/// Workers of a race in steps.
pub const WORKERS: usize = 3;

pub fn race() -> impl Strategy<Value = Race> {
    let deeds = prop::collection::vec(deed(RECORDS), 1..60);
    let again = prop::collection::vec((0..1000u16, 0..300u16), 0..3);
    let steps = prop::collection::vec((any::<u8>(), some_move()), 1..120);
    (deeds, again, steps, 0..3u8)
}

pub fn race_course((deeds, again, ..): &Race) -> Course {
    Course::new(RECORDS, PARTITIONS, deeds, again)
}

/// Runs a race in steps to its end; `look` is called after each of the random ones, and at the end.
///
/// # Panics
/// When it comes to no end.
pub fn drive<S: Shared>(course: &Course, doors: &mut [S], steps: &Steps, front: u8, undone: Undone, look: impl Fn()) {
    let mut stores: Vec<Store> = vec![Store::new(); doors.len()];
    let mut outcomes = vec![Vec::new(); doors.len()];
    let front = [0, SMALL_FRONT, FRONT][usize::from(front)];
    let mut racers: Vec<Racer<'_, S>> = doors
        .iter_mut()
        .zip(&mut stores)
        .zip(&mut outcomes)
        .map(|((door, store), outcomes)| {
            Racer::new(Worker::start(&course.topic, door, store, outcomes, front), &course.log, undone)
        })
        .collect();
    let partitions: Vec<i32> = course.ends().into_keys().collect();
    if partitions.is_empty() {
        return;
    }
    let workers = racers.len();
    for (n, partition) in partitions.iter().enumerate() {
        racers[n % workers].claim(*partition);
    }
    for (who, step) in steps {
        racers[usize::from(*who) % workers].step(*step, &partitions);
        look();
    }
    // Enough for every message to be tried a hundred times.
    let most = 100 * (10 + course.log.values().map(Vec::len).sum::<usize>());
    for turn in 0.. {
        assert!(turn < most, "the race comes to no end");
        racers[turn % workers].finish((turn % 251) as u8);
        if racers.iter().all(Racer::is_done) {
            break;
        }
    }
    look();
}

/// What a panic said.
pub fn words(panic: Box<dyn Any + Send>) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied());
    text.unwrap_or("a panic without words").to_owned()
}
