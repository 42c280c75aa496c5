//! The race on the memory twin: every order of steps is a value, so a failure shrinks to a few of them.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;

use afterimage::core::batch::SealedBatch;
use afterimage::core::event::{Class, Micros};
use afterimage::core::overlay::KeySlot;
use afterimage::core::position::{Counter, PositionId};
use afterimage::core::record::{Record, key_hash};
use afterimage::core::value::{Kind, Value};
use proptest::prelude::*;

use crate::course::{Course, drawn};
use crate::memory::{MemorySink, ObjectRow};
use crate::racer::{self, Gone, Move, Outcome, Race, Shared, Steps, Undone, WORKERS, race, race_course};
use crate::table::Deed;
use crate::worker::{Sink, Standing, Topic};

/// The twin, with what tells workers apart.
#[derive(Default)]
struct Twin {
    sink: MemorySink,
    epochs: BTreeMap<PositionId, i64>,
    /// The invalidation log of each position: which record was taken from it.
    log: BTreeMap<PositionId, Vec<Box<str>>>,
}

/// A partition as a worker holds it.
#[derive(Clone)]
struct Held {
    standing: Standing,
    inval_seq: usize,
}

/// One worker's way to the twin.
struct Door {
    twin: Rc<RefCell<Twin>>,
    held: BTreeMap<i32, Held>,
    source_id: i16,
    undone: Undone,
}

impl Sink for Door {
    fn source(&mut self, topic: &Topic) -> (i16, i16) {
        let ids = Sink::source(&mut self.twin.borrow_mut().sink, topic);
        self.source_id = ids.0;
        ids
    }

    fn object(&mut self, object_id: i16) -> ObjectRow {
        self.twin.borrow().sink.object(object_id).clone()
    }

    fn note(
        &mut self,
        object_id: i16,
        identity: Option<String>,
        columns: &[(String, Class, Kind)],
        at: Option<Micros>,
    ) {
        self.twin.borrow_mut().sink.note(object_id, identity, columns, at);
    }

    fn standing(&mut self, _: i16, partition: i32, _: i64) -> Standing {
        self.held[&partition].standing.clone()
    }

    fn register(&mut self, object_id: i16, identity: &str, home: PositionId, row_key: &str) {
        self.twin.borrow_mut().sink.register(object_id, identity, home, row_key);
    }

    fn record(&mut self, object_id: i16, identity: &str) -> Option<Record> {
        self.twin.borrow().sink.record(object_id, identity)
    }

    fn key(&mut self, source_id: i16, object_id: i16, key: &str) -> KeySlot {
        self.twin.borrow().sink.key(source_id, object_id, key)
    }
}

impl Shared for Door {
    fn claim(&mut self, partition: i32) -> PositionId {
        let mut twin = self.twin.borrow_mut();
        let standing = twin.sink.standing(self.source_id, partition, 0);
        let epoch = twin.epochs.entry(standing.position_id).or_insert(0);
        *epoch += 1;
        let standing = Standing { epoch: *epoch, ..standing };
        let position_id = standing.position_id;
        let inval_seq = twin.log.get(&position_id).map_or(0, Vec::len);
        self.held.insert(partition, Held { standing, inval_seq });
        position_id
    }

    fn held(&self) -> BTreeMap<i32, i64> {
        self.held.iter().map(|(partition, held)| (*partition, held.standing.next)).collect()
    }

    fn lost(&mut self, partition: i32) {
        self.held.remove(&partition);
    }

    fn commit(&mut self, batch: &SealedBatch) -> Outcome {
        let twin = &mut *self.twin.borrow_mut();
        let donors: Vec<(PositionId, Box<str>)> = (batch.registry.iter())
            .filter_map(|change| Some((change.taken_from.as_ref()?.home?, change.identity.clone())))
            .collect();
        let locked = |held: &Held| {
            let id = held.standing.position_id;
            batch.advances.iter().any(|advance| advance.position_id == id)
                || donors.iter().any(|(donor, _)| *donor == id)
        };
        let fenced = |held: &Held| twin.epochs[&held.standing.position_id] != held.standing.epoch;
        let lost: Vec<i32> =
            self.held.iter().filter(|(_, held)| locked(held) && fenced(held)).map(|(p, _)| *p).collect();
        if !lost.is_empty() {
            return Outcome::Fenced(lost);
        }
        let mut gone: Vec<Gone> = Vec::new();
        if self.undone != Undone::InvalidationCheck {
            for held in self.held.values().filter(|held| locked(held)) {
                let id = held.standing.position_id;
                let log = twin.log.get(&id).map_or(&[][..], Vec::as_slice);
                gone.extend(log[held.inval_seq..].iter().map(|identity| (id, identity.clone())));
            }
        }
        let judged = batch.touched.any_of(gone.iter().map(|(_, identity)| key_hash(batch.object_id, identity)));
        let seen = |rid: i32| {
            let row = &twin.sink.records[&rid];
            (row.home, row.floor, twin.sink.record(row.object_id, &row.sfid).and_then(|record| record.head_id()))
        };
        let changed = (batch.registry.iter())
            .filter_map(|change| Some((change.rid, change.taken_from.as_ref()?)))
            .any(|(rid, taken)| (taken.home, taken.floor, taken.head) != seen(rid));
        if !judged && !changed {
            twin.sink.apply(batch);
            for (donor, identity) in donors.clone() {
                twin.log.entry(donor).or_default().push(identity);
            }
        }
        for held in self.held.values_mut().filter(|held| locked(held)) {
            let id = held.standing.position_id;
            if judged || !changed {
                held.inval_seq = twin.log.get(&id).map_or(0, Vec::len);
            }
            let row = &twin.sink.positions[&id];
            held.standing = Standing { next: row.next, passage: row.passage.clone(), ..held.standing };
        }
        match (judged, changed) {
            (true, _) => Outcome::Rewind(gone),
            (_, true) => Outcome::Rewind(Vec::new()),
            _ => Outcome::Done(gone),
        }
    }
}

/// Runs it to the end: what is wrong then.
pub fn run(race: &Race, undone: Undone) -> Result<MemorySink, String> {
    let (course, (.., steps, front)) = (race_course(race), race);
    let twin = Rc::new(RefCell::new(Twin::default()));
    // What does not fit the twin, or its own rules, is a panic there.
    catch_unwind(AssertUnwindSafe(|| drive(&course, &twin, steps, *front, undone))).map_err(racer::words)?;
    let sink = twin.take().sink;
    for (sfid, wanted) in &course.finals {
        let image = sink.image("emea", "account", sfid).ok_or_else(|| format!("{sfid} has no history"))?;
        let found = image.0.then(|| (text(&image.1["name"]), text(&image.1["notes__c"])));
        let wanted = wanted.as_ref().map(|(name, notes)| (Some(name.clone()), notes.clone()));
        if found != wanted {
            return Err(format!("{sfid}: the sink has {found:?}, the table {wanted:?}"));
        }
    }
    Ok(sink)
}

fn text(value: &Value) -> Option<String> {
    value.text().map(str::to_owned)
}

fn drive(course: &Course, twin: &Rc<RefCell<Twin>>, steps: &Steps, front: u8, undone: Undone) {
    let door = |_| Door { twin: Rc::clone(twin), held: BTreeMap::new(), source_id: 0, undone };
    let mut doors: Vec<Door> = (0..WORKERS).map(door).collect();
    racer::drive(course, &mut doors, steps, front, undone, || twin.borrow().sink.check());
    let twin = twin.borrow();
    for (partition, end) in course.ends() {
        let row = twin.sink.positions.values().find(|row| row.partition == partition).expect("a claimed partition");
        assert_eq!(row.next, end, "partition {partition} is read to its end");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn whoever_reads_what_first_every_record_has_one_writer(race in race()) {
        if let Err(fault) = run(&race, Undone::Nothing) {
            prop_assert!(false, "{}", fault);
        }
    }
}

/// The first worker registers both records under the key that they get in turn, and loses its partition before it
/// commits. The second one reads the first record under that key, then the other one under another key: that one has
/// held none, and takes nothing from anybody.
#[test]
fn a_key_that_a_record_was_registered_with_by_a_batch_that_failed_is_not_its_own() {
    let deeds = vec![Deed::Truncate(0), Deed::Edit(0, false, 0), Deed::Truncate(1)];
    let steps = [
        (0, Move::Read(0, 5)),
        (1, Move::Claim(0)),
        (1, Move::Read(1, 1)),
        (1, Move::Read(1, 1)),
        (1, Move::Read(1, 4)),
        (1, Move::Seal),
        (1, Move::Commit),
    ];
    run(&(deeds, Vec::new(), steps.to_vec(), 0), Undone::Nothing).expect("one record to a key");
}

/// Were a part of the protocol left out, the race would show it. The same races pass with all of it.
#[test]
fn each_part_of_the_protocol_is_needed() {
    let mut found: BTreeMap<String, Vec<(u64, String)>> = BTreeMap::new();
    let (mut moves, mut late) = (0, 0);
    for seed in 0..300 {
        let race = drawn(seed, race());
        let sink = run(&race, Undone::Nothing).unwrap_or_else(|fault| panic!("seed {seed}: {fault}"));
        late += sink.count(Counter::Stale);
        moves += sink.records.values().filter(|row| row.floor.ts.is_some()).count();
        for undone in Undone::EACH {
            let faults = found.entry(format!("{undone:?}")).or_default();
            if let Err(fault) = run(&race, undone) {
                faults.push((seed, fault));
            }
        }
    }
    assert!(moves > 100 && late > 100, "{moves} records that moved, {late} late events");
    for (undone, faults) in found {
        println!("{undone}: {} of 300 races go wrong, the first so: {:?}", faults.len(), faults.first());
        assert!(!faults.is_empty(), "without {undone} nothing goes wrong");
    }
}
