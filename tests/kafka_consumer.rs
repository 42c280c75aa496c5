//! The consumer against librdkafka's embedded broker: groups, rewinds, back-pressure, ends, faults, stopping.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use afterimage::kafka::{
    Consumer, ConsumerState, EmbeddedBroker, FaultKind, Inbox, KafkaError, KafkaSettings, Message, Metadata, Ownership,
    Producer, TopicPartition,
};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

/// No fact in these tests takes longer, also on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

type Offsets = BTreeMap<TopicPartition, i64>;

/// What Postgres is in the product: the position of each partition and the epoch of its owner; and what was read.
#[derive(Default)]
struct Ledger {
    positions: Mutex<BTreeMap<TopicPartition, Position>>,
    changed: Condvar,
}

#[derive(Default)]
struct Position {
    epoch: u64,
    next: i64,
    /// Offsets that were committed out of order: must stay empty.
    wrong: Vec<(i64, i64)>,
}

impl Ledger {
    fn claim(&self, of: &TopicPartition) -> (u64, i64) {
        let mut positions = self.positions.lock().unwrap();
        let position = positions.entry(of.clone()).or_default();
        position.epoch += 1;
        (position.epoch, position.next)
    }

    /// Commits one batch if the epoch is still the owner's. The batch must go on exactly where the last one ended.
    fn commit(&self, of: &TopicPartition, epoch: u64, batch: &[i64]) -> bool {
        let mut positions = self.positions.lock().unwrap();
        let position = positions.get_mut(of).unwrap();
        if position.epoch != epoch {
            return false;
        }
        for &offset in batch {
            if offset != position.next {
                position.wrong.push((position.next, offset));
            }
            position.next = offset + 1;
        }
        self.changed.notify_all();
        true
    }

    fn next(&self, of: &TopicPartition) -> i64 {
        self.positions.lock().unwrap().get(of).map_or(0, |position| position.next)
    }

    /// Waits until so many messages were committed in all.
    fn wait_for(&self, total: i64) {
        let deadline = Instant::now() + PATIENCE;
        let mut positions = self.positions.lock().unwrap();
        loop {
            let sum: i64 = positions.values().map(|position| position.next).sum();
            if sum >= total {
                return;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "{sum} of {total} messages arrived");
            positions = self.changed.wait_timeout(positions, left).unwrap().0;
        }
    }

    fn assert_in_order(&self) {
        for (of, position) in self.positions.lock().unwrap().iter() {
            assert!(position.wrong.is_empty(), "{of}: expected, got: {:?}", position.wrong);
        }
    }
}

/// One worker process: a consumer and a thread per topic that commits to the ledger in batches.
struct Worker {
    consumer: Consumer,
    rewinds: Arc<AtomicUsize>,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

struct Claims {
    ledger: Arc<Ledger>,
    epochs: Mutex<BTreeMap<TopicPartition, u64>>,
}

impl Ownership for Claims {
    fn claim(&self, partitions: &[TopicPartition]) -> Vec<(TopicPartition, i64)> {
        let mut epochs = self.epochs.lock().unwrap();
        partitions
            .iter()
            .map(|of| {
                let (epoch, next) = self.ledger.claim(of);
                epochs.insert(of.clone(), epoch);
                (of.clone(), next)
            })
            .collect()
    }

    fn revoked(&self, partitions: &[TopicPartition], _: bool) {
        let mut epochs = self.epochs.lock().unwrap();
        for of in partitions {
            epochs.remove(of);
        }
    }
}

impl Worker {
    /// `fail_every`: every so many batches of a partition the commit "fails" and the partition is rewound.
    fn start(settings: &KafkaSettings, topics: &[Arc<str>], ledger: &Arc<Ledger>, fail_every: usize) -> Self {
        let claims = Arc::new(Claims { ledger: Arc::clone(ledger), epochs: Mutex::default() });
        let (consumer, inboxes) = Consumer::start(settings, topics, Arc::clone(&claims) as _).unwrap();
        let (stop, rewinds) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let threads = inboxes
            .into_iter()
            .map(|inbox| {
                let (stop, claims, consumer) = (Arc::clone(&stop), Arc::clone(&claims), consumer.clone());
                let rewinds = Arc::clone(&rewinds);
                thread::spawn(move || work(&inbox, &claims, &consumer, &stop, fail_every, &rewinds))
            })
            .collect();
        Self { consumer, rewinds, stop, threads }
    }

    fn stop(self) {
        self.consumer.stop(PATIENCE).unwrap();
        self.stop.store(true, Ordering::Release);
        for thread in self.threads {
            thread.join().unwrap();
        }
    }
}

fn work(
    inbox: &Inbox,
    claims: &Claims,
    consumer: &Consumer,
    stop: &AtomicBool,
    fail_every: usize,
    rewinds: &AtomicUsize,
) {
    let mut batches = 0;
    while !stop.load(Ordering::Acquire) {
        let mut messages = Vec::new();
        inbox.drain(&mut messages, 200, Duration::from_millis(50));
        let mut by_partition = BTreeMap::<i32, Vec<Message>>::new();
        for message in messages {
            by_partition.entry(message.partition).or_default().push(message);
        }
        for (partition, batch) in by_partition {
            let of = TopicPartition::new(Arc::clone(inbox.topic()), partition);
            batches += 1;
            let Some(epoch) = claims.epochs.lock().unwrap().get(&of).copied() else { continue };
            // Drained before a revocation, judged after a new claim: void, as in the product.
            if inbox.progress(partition).is_none_or(|progress| progress.generation != batch[0].generation) {
                continue;
            }
            if fail_every > 0 && batches % fail_every == 0 {
                // Not ours any more is fine: then the next owner reads it.
                if consumer.rewind(&[(of.clone(), claims.ledger.next(&of))]).is_ok() {
                    rewinds.fetch_add(1, Ordering::AcqRel);
                }
                continue;
            }
            let offsets: Vec<i64> = batch.iter().map(|message| message.offset).collect();
            claims.ledger.commit(&of, epoch, &offsets);
        }
    }
}

fn topics(broker: &EmbeddedBroker, names: &[&str], partitions: i32) -> Vec<Arc<str>> {
    for name in names {
        broker.create_topic(name, partitions).unwrap();
    }
    names.iter().map(|name| Arc::from(*name)).collect()
}

fn settings(broker: &EmbeddedBroker, group: &str) -> KafkaSettings {
    let mut settings = KafkaSettings::new(broker.servers(), group);
    // A member learns of a rebalance with its next heartbeat.
    settings.extra.insert("heartbeat.interval.ms".into(), "100".into());
    // A rewound partition is fetched when the fetch under way comes back.
    settings.extra.insert("fetch.wait.max.ms".into(), "10".into());
    // The embedded broker takes the session time-out less one second for each step of a rebalance.
    settings.session_timeout = Duration::from_millis(1_600);
    settings
}

/// Writes `count` messages to each partition; the payload is the offset it should get.
fn fill(producer: &Producer, topic: &str, partitions: i32, from: i64, count: i64) {
    for offset in from..from + count {
        for partition in 0..partitions {
            let text = offset.to_string();
            producer.send(topic, Some(partition), Some(b"k"), Some(text.as_bytes()), Some(1_000 + offset)).unwrap();
        }
    }
    producer.flush(PATIENCE).unwrap();
}

/// Waits until `fact` holds.
fn eventually(what: &str, mut fact: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !fact() {
        assert!(Instant::now() < deadline, "never happened: {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

/// Drains until there are `count` messages.
fn drain(inbox: &Inbox, count: usize) -> Vec<Message> {
    let mut messages = Vec::new();
    eventually(&format!("{count} messages"), || {
        let left = count - messages.len();
        inbox.drain(&mut messages, left, Duration::from_millis(100));
        messages.len() >= count
    });
    messages
}

/// An owner that starts everything at fixed offsets and writes down what it is told.
#[derive(Default)]
struct Recorder {
    starts: Mutex<Offsets>,
    /// Claims are refused while this is true.
    refuse: AtomicBool,
    claims: AtomicUsize,
    revoked: Mutex<Vec<(TopicPartition, bool)>>,
    /// Called inside `revoked`.
    #[allow(clippy::type_complexity)]
    on_revoke: Mutex<Option<Box<dyn FnMut() + Send>>>,
}

impl Ownership for Recorder {
    fn claim(&self, partitions: &[TopicPartition]) -> Vec<(TopicPartition, i64)> {
        self.claims.fetch_add(1, Ordering::AcqRel);
        if self.refuse.load(Ordering::Acquire) {
            return Vec::new();
        }
        let starts = self.starts.lock().unwrap();
        partitions.iter().map(|of| (of.clone(), starts.get(of).copied().unwrap_or(0))).collect()
    }

    fn revoked(&self, partitions: &[TopicPartition], lost: bool) {
        if let Some(on_revoke) = self.on_revoke.lock().unwrap_or_else(PoisonError::into_inner).as_mut() {
            on_revoke();
        }
        self.revoked.lock().unwrap().extend(partitions.iter().map(|of| (of.clone(), lost)));
    }
}

struct Single {
    _broker: EmbeddedBroker,
    producer: Producer,
    settings: KafkaSettings,
    owner: Arc<Recorder>,
    consumer: Consumer,
    inbox: Arc<Inbox>,
}

/// One worker alone with topic `t`, all partitions assigned.
fn single(partitions: i32, fill_to: i64) -> Single {
    let broker = EmbeddedBroker::start(1).unwrap();
    let topics = topics(&broker, &["t"], partitions);
    let producer = broker.producer().unwrap();
    fill(&producer, "t", partitions, 0, fill_to);
    let owner = Arc::new(Recorder::default());
    let settings = settings(&broker, "g");
    let (consumer, inboxes) = Consumer::start(&settings, &topics, Arc::clone(&owner) as _).unwrap();
    let inbox = Arc::clone(&inboxes[0]);
    eventually("assigned", || consumer.assigned().len() == partitions as usize);
    Single { _broker: broker, producer, settings, owner, consumer, inbox }
}

fn at(partition: i32) -> TopicPartition {
    TopicPartition::new("t", partition)
}

#[test]
fn every_message_is_read_once_while_members_join_leave_and_rewind() {
    let broker = EmbeddedBroker::start(3).unwrap();
    let (partitions, rounds) = (4, 6);
    let topics = topics(&broker, &["a", "b"], partitions);
    let ledger = Arc::new(Ledger::default());
    let settings = settings(&broker, "g");
    // Messages are under way all the time, at a pace that keeps far from the embedded broker's retention.
    let producer = broker.producer().unwrap();
    let written = Arc::new(AtomicUsize::new(0));
    let (done, count) = (Arc::new(AtomicBool::new(false)), Arc::clone(&written));
    let finished = Arc::clone(&done);
    let writer = thread::spawn(move || {
        while !finished.load(Ordering::Acquire) {
            let from = count.fetch_add(20, Ordering::AcqRel) as i64;
            for topic in ["a", "b"] {
                fill(&producer, topic, partitions, from, 20);
            }
        }
    });
    let total = || written.load(Ordering::Acquire) as i64 * 2 * i64::from(partitions);
    let mut workers = vec![Worker::start(&settings, &topics, &ledger, 7)];
    for round in 0..rounds {
        ledger.wait_for(total());
        if round % 2 == 0 {
            workers.push(Worker::start(&settings, &topics, &ledger, 7));
            eventually("both have partitions", || workers.iter().all(|worker| !worker.consumer.assigned().is_empty()));
        } else {
            workers.remove(0).stop();
        }
    }
    done.store(true, Ordering::Release);
    writer.join().unwrap();
    ledger.wait_for(total());
    let rewinds: usize = workers.iter().map(|worker| worker.rewinds.load(Ordering::Acquire)).sum();
    for worker in workers {
        worker.stop();
    }
    println!("{} messages, {rewinds} rewinds by the last worker", total());
    assert!(rewinds > 0);
    ledger.assert_in_order();
    for topic in topics {
        for partition in 0..partitions {
            let end = ledger.next(&TopicPartition::new(Arc::clone(&topic), partition));
            assert_eq!(end, written.load(Ordering::Acquire) as i64);
        }
    }
}

#[test]
fn a_rewind_delivers_exactly_from_its_offset_on() {
    let (partitions, filled) = (3, 3_000);
    let single = single(partitions, filled);
    let seed = rand::rng().random();
    println!("seed {seed}");
    let mut random = SmallRng::seed_from_u64(seed);
    let mut next = vec![0_i64; partitions as usize];
    let mut generation = vec![0_u64; partitions as usize];
    let mut rewinds = 0;
    let mut total = filled;
    let deadline = Instant::now() + PATIENCE;
    let mut messages = Vec::new();
    while next.iter().any(|next| *next < total) || rewinds < 300 {
        assert!(Instant::now() < deadline, "{next:?} of {total}, {rewinds} rewinds");
        messages.clear();
        single.inbox.drain(&mut messages, random.random_range(1..500), Duration::from_millis(20));
        for message in &messages {
            let index = message.partition as usize;
            assert_eq!(message.offset, next[index], "partition {index} after {rewinds} rewinds");
            assert!(message.generation >= generation[index], "a message of a generation that was rewound");
            assert_eq!(message.payload.as_deref(), Some(message.offset.to_string().as_bytes()));
            generation[index] = message.generation;
            next[index] = message.offset + 1;
        }
        if rewinds < 300 {
            // One partition or all; back to anywhere, or to where it is; while more is being written now and then.
            let mut back = Vec::new();
            for partition in 0..partitions {
                if random.random_bool(0.4) {
                    back.push((at(partition), random.random_range(0..=next[partition as usize])));
                }
            }
            if rewinds % 50 == 0 {
                fill(&single.producer, "t", partitions, total, 20);
                total += 20;
            }
            single.consumer.rewind(&back).unwrap();
            for (of, offset) in back {
                let index = of.partition as usize;
                next[index] = offset;
                generation[index] += 1;
                rewinds += 1;
            }
        }
    }
    assert!(single.owner.revoked.lock().unwrap().is_empty(), "the group must not notice a rewind");
    assert_eq!(single.owner.claims.load(Ordering::Acquire), 1);
}

#[test]
fn a_rewind_beside_a_draining_thread_never_lets_an_old_message_through() {
    let single = single(1, 2_000);
    // Where each generation began; the first one at 0.
    let starts = Mutex::new(BTreeMap::from([(single.inbox.progress(0).unwrap().generation, 0)]));
    let done = AtomicBool::new(false);
    let messages = thread::scope(|scope| {
        let drained = scope.spawn(|| {
            let mut messages = Vec::new();
            while !done.load(Ordering::Acquire) {
                single.inbox.drain(&mut messages, 3, Duration::from_millis(1));
            }
            messages
        });
        let mut random = SmallRng::seed_from_u64(1);
        for _ in 0..200 {
            let offset = random.random_range(0..1_000);
            single.consumer.rewind(&[(at(0), offset)]).unwrap();
            starts.lock().unwrap().insert(single.inbox.progress(0).unwrap().generation, offset);
            // Let some of them get going before the next one comes.
            if random.random_bool(0.5) {
                eventually("going on", || single.inbox.progress(0).unwrap().next > offset + 2);
            }
        }
        done.store(true, Ordering::Release);
        drained.join().unwrap()
    });
    let mut next = starts.into_inner().unwrap();
    assert_eq!(next.len(), 201);
    for message in &messages {
        let expected = next.get_mut(&message.generation).unwrap();
        assert_eq!(message.offset, *expected, "generation {}", message.generation);
        *expected += 1;
    }
    assert!(messages.len() > 200, "{}", messages.len());
}

#[test]
fn a_rewind_while_the_revoke_callback_waits_for_the_same_thread_takes_effect_after_it() {
    let single = single(2, 50);
    drain(&single.inbox, 100);
    let ledger = Arc::new(Ledger::default());
    // The callback lets the topic thread (here: a thread of its own) rewind everything, and waits for it.
    let (consumer, inbox, other) = (single.consumer.clone(), Arc::clone(&single.inbox), Arc::clone(&ledger));
    let results = Arc::new(Mutex::new(Vec::new()));
    let written = Arc::clone(&results);
    *single.owner.on_revoke.lock().unwrap() = Some(Box::new(move || {
        let open: Vec<bool> = (0..2).map(|partition| inbox.progress(partition).is_some()).collect();
        let consumer = consumer.clone();
        let rewound = thread::spawn(move || consumer.rewind(&[(at(0), 10), (at(1), 10)])).join().unwrap();
        // Nothing may tell the group that the callback is done: the embedded broker needs 1 s to give the partition
        // to the other member.
        let mut early = false;
        let deadline = Instant::now() + Duration::from_secs(3);
        while !early && Instant::now() < deadline {
            early = !other.positions.lock().unwrap().is_empty();
            thread::sleep(Duration::from_millis(10));
        }
        written.lock().unwrap().push((open, rewound, early));
    }));
    let second = Worker::start(&single.settings, &[Arc::from("t")], &ledger, 0);
    eventually("one partition went over", || !single.owner.revoked.lock().unwrap().is_empty());
    *single.owner.on_revoke.lock().unwrap() = None;
    let (gone, lost) = single.owner.revoked.lock().unwrap()[0].clone();
    assert!(!lost);
    let kept = 1 - gone.partition;
    match results.lock().unwrap().as_slice() {
        [(open, Err(KafkaError::NotAssigned(partitions)), early)] => {
            assert_eq!(partitions, std::slice::from_ref(&gone));
            assert_eq!(*open, (0..2).map(|partition| partition == kept).collect::<Vec<_>>());
            assert!(!early, "the other member got the partition during the callback");
        }
        other => panic!("{other:?}"),
    }
    let messages = drain(&single.inbox, 40);
    assert_eq!(messages.iter().map(|message| message.offset).collect::<Vec<_>>(), (10..50).collect::<Vec<_>>());
    assert!(messages.iter().all(|message| message.partition == kept));
    ledger.wait_for(50);
    second.stop();
}

#[test]
fn a_queue_that_nobody_drains_stops_the_fetching_of_its_partition_only() {
    let broker = EmbeddedBroker::start(1).unwrap();
    let topics = topics(&broker, &["t"], 2);
    let mut settings = settings(&broker, "g");
    settings.queue_bytes = 512 << 10;
    // Small message sets, as from a real broker: a fetch brings one set whatever its size.
    settings.extra.insert("batch.size".into(), "20000".into());
    let producer = Producer::connect(&settings).unwrap();
    settings.extra.remove("batch.size");
    let (count, size) = (3_000, 1_000);
    for offset in 0..count {
        let text = format!("{offset:0size$}");
        producer.send("t", Some(0), None, Some(text.as_bytes()), None).unwrap();
    }
    producer.flush(PATIENCE).unwrap();
    let (consumer, inboxes) = Consumer::start(&settings, &topics, Arc::new(Recorder::default())).unwrap();
    let inbox = &inboxes[0];
    // Each of these needs a fetch, and each fetch would also bring partition 0 on.
    let mut other = Vec::new();
    for round in 0..40 {
        producer.send("t", Some(1), None, Some(b"x"), None).unwrap();
        producer.flush(PATIENCE).unwrap();
        eventually("the other partition goes on", || {
            inbox.drain_with(
                &mut other,
                10,
                Duration::from_millis(50),
                |partition| if partition == 1 { 10 } else { 0 },
            );
            other.len() > round
        });
    }
    let queued = inbox.queued(0).unwrap();
    let bound = (settings.queue_bytes / 2 + 20_000) / size;
    assert!(queued <= bound, "{queued} messages queued, at most {bound} expected");
    assert!(queued > 50, "{queued} messages queued");
    let messages = drain(inbox, count as usize);
    let offsets: Vec<i64> = messages.iter().map(|message| message.offset).collect();
    assert_eq!(offsets, (0..count).collect::<Vec<_>>());
    consumer.stop(PATIENCE).unwrap();
}

#[test]
fn the_end_of_a_partition_is_known_again_after_every_message_and_rewind() {
    let single = single(2, 5);
    drain(&single.inbox, 10);
    let tail = |partition| {
        single.inbox.drain(&mut Vec::new(), 1, Duration::from_millis(10));
        single.consumer.tail_position("t", partition)
    };
    eventually("the end is met", || tail(0) == Some(5) && tail(1) == Some(5));
    assert_eq!(single.consumer.high_watermark("t", 0), Some(5));
    fill(&single.producer, "t", 1, 5, 1);
    assert_eq!(drain(&single.inbox, 1)[0].offset, 5);
    assert_ne!(single.consumer.tail_position("t", 0), Some(5), "the old end");
    eventually("the new end is met", || tail(0) == Some(6));
    assert_eq!((tail(1), single.consumer.high_watermark("t", 0)), (Some(5), Some(6)));
    // A rewind to the end itself: nothing to deliver, and the end must be met all the same.
    single.consumer.rewind(&[(at(0), 6)]).unwrap();
    assert_eq!(single.inbox.progress(0).unwrap().end, None);
    eventually("the end is met after a rewind", || tail(0) == Some(6));
    assert_eq!(single.consumer.high_watermark("t", 7), None);
    assert_eq!(single.consumer.tail_position("other", 0), None);
}

#[test]
fn a_message_written_right_after_the_end_was_met_survives_a_rebalance() {
    // librdkafka resumes a partition from where it was polled; an end-of-partition mark must not count as a message.
    let single = single(2, 5);
    drain(&single.inbox, 10);
    eventually("the end is met", || {
        single.inbox.drain(&mut Vec::new(), 1, Duration::from_millis(10));
        (0..2).all(|partition| single.consumer.tail_position("t", partition) == Some(5))
    });
    let ledger = Arc::new(Ledger::default());
    let second = Worker::start(&single.settings, &[Arc::from("t")], &ledger, 0);
    eventually("one partition went over", || !single.owner.revoked.lock().unwrap().is_empty());
    fill(&single.producer, "t", 2, 5, 1);
    let message = &drain(&single.inbox, 1)[0];
    assert_eq!((message.offset, message.timestamp_ms, message.key.as_deref()), (5, Some(1_005), Some(&b"k"[..])));
    assert!(single.inbox.take_faults().is_empty());
    second.stop();
}

#[test]
fn a_released_partition_is_silent_until_it_is_reclaimed() {
    let single = single(2, 5);
    drain(&single.inbox, 10);
    single.consumer.release(&[at(0)]);
    assert_eq!(single.consumer.assigned(), [at(1)]);
    assert_eq!(single.inbox.progress(0), None);
    assert!(matches!(single.consumer.rewind(&[(at(0), 0)]), Err(KafkaError::NotAssigned(_))));
    fill(&single.producer, "t", 2, 5, 1);
    let message = &drain(&single.inbox, 1)[0];
    assert_eq!((message.partition, message.offset), (1, 5));
    single.owner.starts.lock().unwrap().insert(at(0), 3);
    single.consumer.reclaim(&[at(0), at(1)]);
    let offsets: Vec<_> = drain(&single.inbox, 3).iter().map(|message| (message.partition, message.offset)).collect();
    assert_eq!(offsets, [(0, 3), (0, 4), (0, 5)]);
    assert!(single.owner.revoked.lock().unwrap().is_empty(), "the group must not notice");
}

#[test]
fn partitions_that_are_not_read_can_be_taken_away_as_well() {
    let single = single(2, 5);
    single.consumer.release(&[at(0), at(1)]);
    let ledger = Arc::new(Ledger::default());
    let second = Worker::start(&single.settings, &[Arc::from("t")], &ledger, 0);
    ledger.wait_for(5);
    assert_eq!(single.owner.revoked.lock().unwrap().len(), 1);
    single.consumer.stop(PATIENCE).unwrap();
    ledger.wait_for(10);
    second.stop();
}

#[test]
fn what_a_claim_leaves_out_is_claimed_again() {
    let broker = EmbeddedBroker::start(1).unwrap();
    let topics = topics(&broker, &["t"], 2);
    fill(&broker.producer().unwrap(), "t", 2, 0, 5);
    let owner = Arc::new(Recorder { refuse: AtomicBool::new(true), ..Recorder::default() });
    let (consumer, inboxes) = Consumer::start(&settings(&broker, "g"), &topics, Arc::clone(&owner) as _).unwrap();
    eventually("claimed twice", || owner.claims.load(Ordering::Acquire) >= 2);
    assert!(consumer.assigned().is_empty());
    owner.refuse.store(false, Ordering::Release);
    drain(&inboxes[0], 10);
    assert_eq!(consumer.assigned().len(), 2);
}

#[test]
fn an_offset_outside_the_log_is_a_fault_and_a_rewind_ends_it() {
    let single = single(2, 5);
    drain(&single.inbox, 10);
    single.consumer.rewind(&[(at(0), 100)]).unwrap();
    let mut faults = Vec::new();
    eventually("the fault", || {
        assert_eq!(single.inbox.drain(&mut Vec::new(), 1, Duration::from_millis(10)), 0);
        faults.extend(single.inbox.take_faults());
        !faults.is_empty()
    });
    assert_eq!((faults[0].partition, faults[0].kind), (0, FaultKind::OutOfRange), "{faults:?}");
    assert_eq!(faults[0].generation, single.inbox.progress(0).unwrap().generation);
    single.consumer.rewind(&[(at(0), 2)]).unwrap();
    let offsets: Vec<_> = drain(&single.inbox, 3).iter().map(|message| message.offset).collect();
    assert_eq!(offsets, [2, 3, 4]);
}

#[test]
fn stopping_revokes_everything_and_leaves_the_group() {
    let single = single(3, 5);
    drain(&single.inbox, 15);
    single.consumer.commit_offsets(&[(at(0), 5)]);
    single.consumer.stop(PATIENCE).unwrap();
    assert_eq!(*single.owner.revoked.lock().unwrap(), (0..3).map(|p| (at(p), false)).collect::<Vec<_>>());
    assert!(matches!(single.consumer.state(), ConsumerState::Stopped));
    assert!(matches!(single.consumer.rewind(&[(at(0), 0)]), Err(KafkaError::Stopped)));
    assert_eq!(single.consumer.high_watermark("t", 0), None);
    assert_eq!(single.inbox.drain(&mut Vec::new(), 1, Duration::ZERO), 0);
    single.consumer.stop(Duration::ZERO).unwrap();
}

#[test]
fn the_last_handle_dropped_leaves_the_group_too() {
    let single = single(1, 0);
    let Single { owner, consumer, .. } = &single;
    drop(consumer.clone());
    thread::yield_now();
    assert!(matches!(consumer.state(), ConsumerState::Running));
    let owner = Arc::clone(owner);
    let Single { consumer, _broker, .. } = single;
    drop(consumer);
    eventually("revoked", || *owner.revoked.lock().unwrap() == [(at(0), false)]);
}

#[test]
fn stopping_while_a_callback_waits_keeps_its_deadline() {
    let single = single(2, 0);
    // Revocation hangs until the gate opens.
    let gate = Arc::new((Mutex::new((false, false)), Condvar::new()));
    let inner = Arc::clone(&gate);
    *single.owner.on_revoke.lock().unwrap() = Some(Box::new(move || {
        let mut state = inner.0.lock().unwrap();
        state.0 = true;
        inner.1.notify_all();
        while !state.1 {
            state = inner.1.wait(state).unwrap();
        }
    }));
    let ledger = Arc::new(Ledger::default());
    let second = Worker::start(&single.settings, &[Arc::from("t")], &ledger, 0);
    let mut state = gate.0.lock().unwrap();
    while !state.0 {
        state = gate.1.wait(state).unwrap();
    }
    drop(state);
    assert!(matches!(single.consumer.stop(Duration::from_millis(50)), Err(KafkaError::StopTimeout)));
    // Neither may the other calls hang.
    assert!(single.consumer.assigned().len() < 2);
    single.consumer.release(&[at(0), at(1)]);
    gate.0.lock().unwrap().1 = true;
    gate.1.notify_all();
    single.consumer.stop(PATIENCE).unwrap();
    eventually("the other has both", || second.consumer.assigned().len() == 2);
    second.stop();
}

#[test]
fn topics_can_be_added() {
    let broker = EmbeddedBroker::start(1).unwrap();
    let topics = topics(&broker, &["t"], 1);
    let producer = broker.producer().unwrap();
    let owner = Arc::new(Recorder::default());
    let (consumer, _) = Consumer::start(&settings(&broker, "g"), &topics, Arc::clone(&owner) as _).unwrap();
    eventually("assigned", || consumer.assigned() == [at(0)]);
    broker.create_topic("u", 1).unwrap();
    fill(&producer, "u", 1, 0, 3);
    let added = consumer.add_topics(&[Arc::from("u"), Arc::from("t")]).unwrap();
    assert_eq!(drain(&added[0], 3).len(), 3);
    assert_eq!(&**added[1].topic(), "t");
    assert!(owner.revoked.lock().unwrap().is_empty());
}

#[test]
fn waking_ends_a_wait() {
    let single = single(1, 0);
    let inbox = Arc::clone(&single.inbox);
    let waiting = thread::spawn(move || inbox.drain(&mut Vec::new(), 1, PATIENCE * 10));
    single.inbox.wake();
    eventually("woken", || waiting.is_finished());
    assert_eq!(waiting.join().unwrap(), 0);
}

#[test]
fn what_is_wrong_at_the_start_is_named() {
    let broker = EmbeddedBroker::start(1).unwrap();
    topics(&broker, &["t"], 1);
    let names = [Arc::from("t"), Arc::from("nope"), Arc::from("neither")];
    let start = |settings: &KafkaSettings| Consumer::start(settings, &names, Arc::new(Recorder::default())).err();
    match start(&settings(&broker, "g")) {
        Some(KafkaError::UnknownTopics(unknown)) => assert_eq!(unknown, ["nope", "neither"]),
        other => panic!("{other:?}"),
    }
    let mut wrong = settings(&broker, "g");
    wrong.extra.insert("no.such.setting".into(), "1".into());
    match start(&wrong) {
        Some(KafkaError::Setting { name, .. }) => assert_eq!(name, "no.such.setting"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn metadata_answers_plain_questions() {
    let broker = EmbeddedBroker::start(2).unwrap();
    topics(&broker, &["org.b", "org.a", "side"], 3);
    fill(&broker.producer().unwrap(), "org.a", 2, 0, 7);
    let metadata = Metadata::connect(&settings(&broker, "unused")).unwrap();
    let found = metadata.topics(PATIENCE, |name| name.starts_with("org.")).unwrap();
    assert_eq!(
        found.iter().map(|topic| (&*topic.name, topic.partitions)).collect::<Vec<_>>(),
        [("org.a", 3), ("org.b", 3)]
    );
    let ends = metadata.watermarks(&[TopicPartition::new("org.a", 1), TopicPartition::new("org.a", 2)], PATIENCE);
    let ends: Vec<_> = ends.unwrap().into_iter().map(|(_, ends)| (ends.low, ends.high)).collect();
    assert_eq!(ends, [(0, 7), (0, 0)]);
    assert!(!metadata.cluster_id(PATIENCE).unwrap().is_empty());
    let gone = metadata.watermarks(&[TopicPartition::new("org.a", 9)], PATIENCE).unwrap_err();
    assert!(gone.to_string().contains("org.a/9"), "{gone}");
}

#[test]
fn an_unreachable_broker_is_named_with_the_reason() {
    // A port that was free a moment ago; nothing listens there.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let settings = KafkaSettings::new(format!("127.0.0.1:{port}"), "g");
    let error = Metadata::connect(&settings).unwrap().topics(Duration::from_secs(2), |_| true).unwrap_err();
    let text = error.to_string();
    assert!(matches!(error, KafkaError::Unreachable { .. }), "{text}");
    assert!(text.contains(&port.to_string()) && text.contains("refused"), "{text}");
}
