//! A ledger in the place of Postgres, workers, owners, and waiting for facts.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use afterimage::kafka::{Consumer, EmbeddedBroker, Inbox, KafkaSettings, Message, Ownership, Producer, TopicPartition};

/// No fact in these tests takes longer, also on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(60);

pub type Offsets = BTreeMap<TopicPartition, i64>;

/// What Postgres is in the product: the position of each partition and the epoch of its owner; and what was read.
#[derive(Default)]
pub struct Ledger {
    pub positions: Mutex<BTreeMap<TopicPartition, Position>>,
    changed: Condvar,
}

#[derive(Default)]
pub struct Position {
    epoch: u64,
    next: i64,
    /// Offsets that were committed out of order: must stay empty.
    wrong: Vec<(i64, i64)>,
}

impl Ledger {
    pub fn claim(&self, of: &TopicPartition) -> (u64, i64) {
        let mut positions = self.positions.lock().unwrap();
        let position = positions.entry(of.clone()).or_default();
        position.epoch += 1;
        (position.epoch, position.next)
    }

    /// Commits one batch if the epoch is still the owner's. The batch must go on exactly where the last one ended.
    pub fn commit(&self, of: &TopicPartition, epoch: u64, batch: &[i64]) -> bool {
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

    pub fn next(&self, of: &TopicPartition) -> i64 {
        self.positions.lock().unwrap().get(of).map_or(0, |position| position.next)
    }

    /// Waits until so many messages were committed in all.
    pub fn wait_for(&self, total: i64) {
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

    pub fn assert_in_order(&self) {
        for (of, position) in self.positions.lock().unwrap().iter() {
            assert!(position.wrong.is_empty(), "{of}: expected, got: {:?}", position.wrong);
        }
    }
}

/// One worker process: a consumer and a thread per topic that commits to the ledger in batches.
pub struct Worker {
    pub consumer: Consumer,
    pub rewinds: Arc<AtomicUsize>,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

pub struct Claims {
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
    pub fn start(settings: &KafkaSettings, topics: &[Arc<str>], ledger: &Arc<Ledger>, fail_every: usize) -> Self {
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

    pub fn stop(self) {
        self.consumer.stop(PATIENCE).unwrap();
        self.stop.store(true, Ordering::Release);
        for thread in self.threads {
            thread.join().unwrap();
        }
    }
}

pub fn work(
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

pub fn topics(broker: &EmbeddedBroker, names: &[&str], partitions: i32) -> Vec<Arc<str>> {
    for name in names {
        broker.create_topic(name, partitions).unwrap();
    }
    names.iter().map(|name| Arc::from(*name)).collect()
}

pub fn settings(broker: &EmbeddedBroker, group: &str) -> KafkaSettings {
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
pub fn fill(producer: &Producer, topic: &str, partitions: i32, from: i64, count: i64) {
    for offset in from..from + count {
        for partition in 0..partitions {
            let text = offset.to_string();
            producer.send(topic, Some(partition), Some(b"k"), Some(text.as_bytes()), Some(1_000 + offset)).unwrap();
        }
    }
    producer.flush(PATIENCE).unwrap();
}

/// Waits until `fact` holds.
pub fn eventually(what: &str, mut fact: impl FnMut() -> bool) {
    crate::wait::wait_blocking(what, PATIENCE, || if fact() { Ok(()) } else { Err("not yet") });
}

/// Drains until there are `count` messages.
pub fn drain(inbox: &Inbox, count: usize) -> Vec<Message> {
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
pub struct Recorder {
    pub starts: Mutex<Offsets>,
    /// Claims are refused while this is true.
    pub refuse: AtomicBool,
    pub claims: AtomicUsize,
    pub revoked: Mutex<Vec<(TopicPartition, bool)>>,
    /// Called inside `revoked`.
    #[allow(clippy::type_complexity)]
    pub on_revoke: Mutex<Option<Box<dyn FnMut() + Send>>>,
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

pub struct Single {
    pub broker: EmbeddedBroker,
    pub producer: Producer,
    pub settings: KafkaSettings,
    pub owner: Arc<Recorder>,
    pub consumer: Consumer,
    pub inbox: Arc<Inbox>,
}

/// One worker alone with topic `t`, all partitions assigned.
pub fn single(partitions: i32, fill_to: i64) -> Single {
    let broker = EmbeddedBroker::start(1).unwrap();
    let topics = topics(&broker, &["t"], partitions);
    let producer = broker.producer().unwrap();
    fill(&producer, "t", partitions, 0, fill_to);
    let owner = Arc::new(Recorder::default());
    let settings = settings(&broker, "g");
    let (consumer, inboxes) = Consumer::start(&settings, &topics, Arc::clone(&owner) as _).unwrap();
    let inbox = Arc::clone(&inboxes[0]);
    eventually("assigned", || consumer.assigned().len() == partitions as usize);
    Single { broker, producer, settings, owner, consumer, inbox }
}

pub fn at(partition: i32) -> TopicPartition {
    TopicPartition::new("t", partition)
}
