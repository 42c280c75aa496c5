//! `make bench-micro`: what single steps cost, over the crate's public functions, without Kafka and PostgreSQL. One item is
//! one message, one record or one version.

mod account;

use std::cell::{Cell, RefCell};

use afterimage::core::batch::OpenBatch;
use afterimage::core::decode::{Decoded, Decoder, Envelope, Peek, TopicRules, peek};
use afterimage::core::event::{Class, Event, FieldNo};
use afterimage::core::format::{self, Header, VersionOp};
use afterimage::core::front::Front;
use afterimage::core::judge::{Arrival, FieldFact, Judge, Need, ObjectFacts};
use afterimage::core::overlay::{KeySlot, Overlay};
use afterimage::core::position::Counter;
use afterimage::core::record::Record;
use afterimage::core::value::{Kind, Value};
use afterimage_state::{Mark, PositionId, RecordKey, StateOptions, Store, WriteBatch};
use divan::Bencher;
use divan::counter::ItemsCount;

use account::{Load, Source};

/// Records: more than fit the processor's caches with their messages, few enough to be ready at once.
const RECORDS: u32 = 4_000;
/// Bytes of the hash front: room for all of them.
const FRONT: usize = 16 << 20;
/// Source time of the first event: 2026-01-01.
const FROM: i64 = 1_767_225_600_000_000;

fn main() {
    divan::main();
}

fn load(noops: u32) -> Load {
    Load { records: RECORDS, events: u64::MAX >> 32, noops, seed: 1, from: FROM }
}

type Message = (Vec<u8>, Vec<u8>);

fn next(source: &mut Source) -> Message {
    let (key, value) = source.next(|_| ()).expect("a stream without end");
    (key.to_vec(), value.to_vec())
}

/// Messages without `before` (A), as most connectors send them.
fn short_messages() -> Vec<Message> {
    let mut source = Source::new(load(9_500));
    (0..RECORDS).map(|_| next(&mut source)).collect()
}

/// Messages with `before` (B).
fn long_messages() -> Vec<Message> {
    let mut source = Source::new(load(9_500));
    let keys: Vec<Message> = (0..RECORDS).map(|_| next(&mut source)).collect();
    let rows = source.accounts();
    let value = |n: usize| account::with_before(load(0), n as u32, &rows[n], &rows[n], FROM + n as i64 * 1_000);
    keys.into_iter().enumerate().map(|(n, (key, _))| (key, value(n))).collect()
}

fn rules() -> TopicRules {
    let types = [
        ("createddate", Kind::Timestamp),
        ("systemmodstamp", Kind::Timestamp),
        ("lastmodifieddate", Kind::Timestamp),
        ("lastactivitydate", Kind::Date),
        ("score__c", Kind::Float8),
        ("annualrevenue", Kind::Float8),
        ("numberofemployees", Kind::Int4),
        ("id", Kind::Int4),
    ];
    TopicRules { types: types.map(|(name, kind)| (name.to_string(), kind)).into(), ..TopicRules::default() }
}

/// Goes round a list.
struct Round<T> {
    all: Vec<T>,
    at: Cell<usize>,
}

impl<T> Round<T> {
    fn of(all: Vec<T>) -> Self {
        Round { all, at: Cell::new(0) }
    }

    fn next(&self) -> &T {
        let at = self.at.get();
        self.at.set((at + 1) % self.all.len());
        &self.all[at]
    }
}

/// A decoder that has seen this message, and prints the rows of the next ones.
fn printing((key, value): &Message) -> Decoder {
    let mut decoder = Decoder::new(rules());
    decoder.print_rows(1, 7);
    let peeked = decoder.peek(Some(key), Some(value));
    assert!(matches!(decoder.decode(&peeked, Some(key), Some(value)), Ok(Decoded::Event(_))));
    decoder
}

mod decode {
    use super::*;

    #[divan::bench(args = ["A", "B"], sample_count = 200, sample_size = 500)]
    fn first_look(bencher: Bencher<'_, '_>, form: &str) {
        let messages = Round::of(messages(form));
        bencher.counter(ItemsCount::new(1_usize)).bench_local(|| {
            let (key, value) = messages.next();
            peek(Some(key), Some(value))
        });
    }

    /// Of rows laid out as the last one: with a print of what is visible.
    #[divan::bench(args = ["A", "B"], sample_count = 200, sample_size = 500)]
    fn first_look_with_print(bencher: Bencher<'_, '_>, form: &str) {
        let messages = Round::of(messages(form));
        let decoder = printing(messages.next());
        bencher.counter(ItemsCount::new(1_usize)).bench_local(|| {
            let (key, value) = messages.next();
            let peeked = decoder.peek(Some(key), Some(value));
            assert!(matches!(peeked, Peek::Row(Envelope { print: Some(_), .. })));
            peeked
        });
    }

    #[divan::bench(args = ["A", "B"], sample_count = 200, sample_size = 500)]
    fn first_look_and_row(bencher: Bencher<'_, '_>, form: &str) {
        let messages = Round::of(messages(form));
        let mut decoder = Decoder::new(rules());
        bencher.counter(ItemsCount::new(1_usize)).bench_local(|| {
            let (key, value) = messages.next();
            let peeked = decoder.peek(Some(key), Some(value));
            decoder.decode(&peeked, Some(key), Some(value)).expect("a row")
        });
    }

    fn messages(form: &str) -> Vec<Message> {
        if form == "A" { short_messages() } else { long_messages() }
    }
}

mod judge {
    use super::*;

    /// One position that knows all its records: what is left is the judgement itself.
    struct Court {
        source: Source,
        decoder: Decoder,
        object: ObjectFacts,
        overlay: Overlay,
        batch: OpenBatch,
        front: Front,
    }

    impl Court {
        fn new(noops: u32) -> Court {
            let mut court = Court {
                source: Source::new(load(noops)),
                decoder: Decoder::new(rules()),
                object: ObjectFacts { object_id: 1, create_window: 86_400_000_000, ..ObjectFacts::default() },
                overlay: Overlay::default(),
                batch: OpenBatch::new(1),
                front: Front::new(FRONT),
            };
            for rid in 1..=RECORDS as i32 {
                let event = court.event();
                let identity = event.identity.clone().expect("an account has an id");
                court.overlay.load_record(identity, Record::registered(rid, None, None));
                court.overlay.load_key(event.key.clone(), KeySlot::default());
                assert_eq!(court.judge(court.arrival(&event)), Ok(Counter::Baseline));
            }
            court
        }

        fn event(&mut self) -> Event {
            let (key, value) = next(&mut self.source);
            let peeked = self.decoder.peek(Some(&key), Some(&value));
            assert!(matches!(peeked, Peek::Row(_)));
            let decoded = self.decoder.decode(&peeked, Some(&key), Some(&value));
            let Ok(Decoded::Event(event)) = decoded else { panic!("{decoded:?}") };
            if self.object.fields.is_empty() {
                let columns = self.decoder.columns().iter().enumerate();
                let fact = |kind| FieldFact { kind, first_seen: Some(FROM) };
                self.object.fields = columns.map(|(at, column)| (number(at), fact(column.kind))).collect();
                let named =
                    |name: &str| self.decoder.columns().iter().position(|column| &*column.name == name).map(number);
                self.object.stamp_no = named("systemmodstamp");
                self.object.modified_no = named("lastmodifieddate");
                self.object.modified_by_no = named("lastmodifiedbyid");
                self.object.created_no = named("createddate");
                assert!(self.decoder.columns().iter().any(|column| column.class == Class::System));
            }
            event
        }

        fn arrival<'a>(&self, event: &'a Event) -> Arrival<'a> {
            Arrival {
                position_id: 1,
                offset: event.lsn as i64,
                message_time: FROM,
                now: FROM + 86_400_000_000,
                passed: false,
                event,
                // The long way: what the front knows does not come here.
                print: None,
                fields: event.row.values.iter().map(|(at, value)| (number(usize::from(*at)), value.clone())).collect(),
            }
        }

        fn judge(&mut self, arrival: Arrival<'_>) -> Result<Counter, Need> {
            let Court { object, overlay, batch, front, .. } = self;
            Judge { object, overlay, batch, front }.judge(arrival)
        }
    }

    fn number(at: usize) -> FieldNo {
        at as FieldNo + 1
    }

    fn bench(bencher: Bencher<'_, '_>, noops: u32, wanted: Counter) {
        let court = RefCell::new(Court::new(noops));
        bencher
            .counter(ItemsCount::new(1_usize))
            .with_inputs(|| {
                let mut court = court.borrow_mut();
                // As long as a commit's.
                if court.batch.rows() > 20_000 {
                    court.batch = OpenBatch::new(court.batch.number() + 1);
                }
                court.event()
            })
            .bench_local_values(|event| {
                let mut court = court.borrow_mut();
                let arrival = court.arrival(&event);
                assert_eq!(court.judge(arrival), Ok(wanted));
                event
            });
    }

    #[divan::bench(sample_count = 200, sample_size = 500)]
    fn no_op(bencher: Bencher<'_, '_>) {
        bench(bencher, 10_000, Counter::NoopSystem);
    }

    #[divan::bench(sample_count = 200, sample_size = 500)]
    fn change(bencher: Bencher<'_, '_>) {
        bench(bencher, 0, Counter::Delta);
    }
}

mod front {
    use super::*;

    /// An event that repeats its record's last one, from its print to its outcome.
    #[divan::bench(sample_count = 200, sample_size = 500)]
    fn repeat(bencher: Bencher<'_, '_>) {
        let mut source = Source::new(load(10_000));
        let first = next(&mut source);
        let decoder = printing(&first);
        let print = |(key, value): Message| match decoder.peek(Some(&key), Some(&value)) {
            Peek::Row(Envelope { print: Some(print), lsn, .. }) => (print, lsn),
            other => panic!("{other:?}"),
        };
        let mut front = Front::new(FRONT);
        let (seen, lsn) = print(first);
        front.remember(1, &seen, lsn);
        for _ in 1..RECORDS {
            let (seen, lsn) = print(next(&mut source));
            front.remember(1, &seen, lsn);
        }
        let front = RefCell::new(front);
        bencher
            .counter(ItemsCount::new(1_usize))
            // A record that found no room in its set is not known, however small the table; it is not what is asked here.
            .with_inputs(|| {
                loop {
                    let (print, lsn) = print(next(&mut source));
                    if front.borrow().would_repeat(1, &print, lsn) {
                        break (print, lsn);
                    }
                }
            })
            .bench_local_values(|(print, lsn)| assert!(front.borrow_mut().repeat(1, &print, lsn).is_some()));
    }
}

mod store {
    use super::*;

    const STORED: u32 = 50_000;

    fn key(index: u32) -> RecordKey {
        RecordKey::image(PositionId(1), 1, account::sfid(index % STORED).as_bytes())
    }

    fn mark(next: i64) -> Mark {
        Mark { sink_id: [1; 16], position_id: 1, epoch: 1, token: [2; 16], next, inval_seq: 0, missing_after: None }
    }

    fn filled() -> (tempfile::TempDir, Store, Vec<Vec<u8>>) {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path(), &StateOptions::default()).unwrap();
        // A row's text has about the length and the entropy of an image.
        let images: Vec<Vec<u8>> = short_messages().into_iter().map(|(_, value)| value[25..825].to_vec()).collect();
        for from in (0..STORED).step_by(5_000) {
            let mut batch = WriteBatch::new();
            for index in from..from + 5_000 {
                batch.put(&key(index), &images[index as usize % images.len()]);
            }
            batch.mark(mark(i64::from(from)));
            store.commit(batch).unwrap();
        }
        (dir, store, images)
    }

    /// Scattered over all records.
    fn scattered(n: u32) -> u32 {
        n.wrapping_mul(2_654_435_761) % STORED
    }

    #[divan::bench(args = [16, 256, 4_096])]
    fn get(bencher: Bencher<'_, '_>, at_once: u32) {
        let (_dir, store, _) = filled();
        let round = Cell::new(0_u32);
        bencher
            .counter(ItemsCount::new(at_once))
            .with_inputs(|| {
                round.set(round.get() + 1);
                (0..at_once).map(|n| key(scattered(round.get() * at_once + n))).collect::<Vec<_>>()
            })
            .bench_local_values(|keys| store.multi_get(&keys).unwrap());
    }

    #[divan::bench(args = [1_000, 10_000])]
    fn put(bencher: Bencher<'_, '_>, at_once: u32) {
        let (_dir, store, images) = filled();
        let round = Cell::new(0_u32);
        bencher.counter(ItemsCount::new(at_once)).bench_local(|| {
            round.set(round.get() + 1);
            let mut batch = WriteBatch::new();
            for n in 0..at_once {
                batch.put(&key(scattered(round.get() * at_once + n)), &images[n as usize % images.len()]);
            }
            batch.mark(mark(i64::from(STORED + round.get())));
            store.commit(batch).unwrap();
        });
    }
}

mod stored_form {
    use super::*;

    fn header() -> Header {
        Header {
            op: VersionOp::Update,
            n: 7,
            local: false,
            no_source_time: false,
            raw_at: None,
            stamp: Some(FROM - 3_000_000),
            modified_is_stamp: true,
            position_id: 3,
            offset: 1_234_567,
            lsn: 0x16_B374_D848,
            recorded: FROM + 750_000,
        }
    }

    fn fields() -> Vec<(FieldNo, Value)> {
        vec![(6, Value::Text("1-151-183-4668 x379".into())), (7, Value::Text("15".into()))]
    }

    #[divan::bench]
    fn encode(bencher: Bencher<'_, '_>) {
        let (header, fields) = (header(), fields());
        let bench = || format::encode(FROM, divan::black_box(&header), Some(4), divan::black_box(&fields));
        bencher.counter(ItemsCount::new(1_usize)).bench_local(bench);
    }

    #[divan::bench]
    fn decode(bencher: Bencher<'_, '_>) {
        let stored = format::encode(FROM, &header(), Some(4), &fields());
        bencher
            .counter(ItemsCount::new(1_usize))
            .bench_local(|| format::decode(FROM, divan::black_box(&stored), Some(4)));
    }
}
