//! Any sequence of operations, reopening and damage-free crashes included, reads like a map.

mod support;

use afterimage_state::{Mark, PositionId, StateError, WriteBatch};
use proptest::prelude::*;
use std::collections::BTreeMap;
use support::{key, mark, open};

#[derive(Debug, Clone)]
enum Step {
    /// (position, record, value or delete)…, and for some positions how far the mark moves.
    Commit {
        records: Vec<(i32, u32, Option<u8>)>,
        marks: Vec<(i32, i8)>,
    },
    Clear(i32),
    Reopen,
}

const POSITIONS: std::ops::Range<i32> = 1..4;
const RECORDS: std::ops::Range<u32> = 0..6;

fn step() -> impl Strategy<Value = Step> {
    let record = (POSITIONS, RECORDS, proptest::option::weighted(0.7, any::<u8>()));
    let records = proptest::collection::vec(record, 0..6);
    let marks = proptest::collection::vec((POSITIONS, -1..4i8), 0..4);
    prop_oneof![
        8 => (records, marks).prop_map(|(records, marks)| Step::Commit { records, marks }),
        1 => POSITIONS.prop_map(Step::Clear),
        1 => Just(Step::Reopen),
    ]
}

#[derive(Default, Clone, PartialEq, Debug)]
struct Model {
    records: BTreeMap<(i32, u32), u8>,
    marks: BTreeMap<i32, Mark>,
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..Default::default() })]
    #[test]
    fn the_store_reads_like_a_map(steps in proptest::collection::vec(step(), 1..40)) {
        let dir = tempfile::tempdir().unwrap();
        let mut store = open(dir.path());
        let mut model = Model::default();
        for step in steps {
            match step {
                Step::Commit { records, marks } => {
                    let mut after = model.clone();
                    let (mut batch, mut rewound) = (WriteBatch::new(), false);
                    for (position, moved) in marks {
                        let next = model.marks.get(&position).map_or(50, |mark| mark.next) + i64::from(moved);
                        batch.mark(mark(position, 1, next));
                        after.marks.insert(position, mark(position, 1, next));
                    }
                    for (position, mark) in &after.marks {
                        rewound |= model.marks.get(position).is_some_and(|stored| mark.next < stored.next);
                    }
                    let mut unmarked = false;
                    for (position, record, value) in records {
                        match value {
                            Some(value) => {
                                unmarked |= !after.marks.contains_key(&position);
                                batch.put(&key(position, record), &[value]);
                                after.records.insert((position, record), value);
                            }
                            None => {
                                batch.delete(&key(position, record));
                                after.records.remove(&(position, record));
                            }
                        }
                    }
                    match store.commit(batch) {
                        Ok(()) => { prop_assert!(!rewound && !unmarked); model = after }
                        Err(StateError::Rewound { .. }) => prop_assert!(rewound),
                        Err(StateError::Unmarked(_)) => prop_assert!(unmarked && !rewound),
                        Err(error) => return Err(TestCaseError::fail(error.to_string())),
                    }
                }
                Step::Clear(position) => {
                    store.clear(PositionId(position)).unwrap();
                    model.marks.remove(&position);
                    model.records.retain(|(of, _), _| *of != position);
                }
                Step::Reopen => {
                    drop(store);
                    store = open(dir.path());
                }
            }
            let all: Vec<_> = POSITIONS.flat_map(|p| RECORDS.map(move |r| (p, r))).collect();
            let keys: Vec<_> = all.iter().map(|&(position, record)| key(position, record)).collect();
            let expected: Vec<_> = all.iter().map(|at| model.records.get(at).map(|&value| vec![value])).collect();
            prop_assert_eq!(store.multi_get(&keys).unwrap(), expected);
            prop_assert_eq!(store.marks().unwrap(), model.marks.values().copied().collect::<Vec<_>>());
        }
    }
}
