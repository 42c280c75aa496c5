//! Plays the connector: writes the load into Kafka at a steady pace, whatever happens to the broker.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rdkafka::ClientContext;
use rdkafka::config::ClientConfig;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::producer::{BaseRecord, DeliveryResult, Producer, ProducerContext, ThreadedProducer};

use super::source::{Message, Micros, Source, TABLES};
use super::support::wait::happens_within;

/// End of each partition by (index of the table, partition).
pub type Ends = BTreeMap<(usize, i32), i64>;

/// Looks at the pace this often.
const TICK: Duration = Duration::from_millis(10);

#[derive(Default)]
struct Shared {
    /// What was given to the client, by partition.
    given: Mutex<Ends>,
    /// Messages that the client could not deliver.
    failed: AtomicU64,
    done: AtomicBool,
}

/// A running feed.
pub struct Feed {
    shared: Arc<Shared>,
    thread: Mutex<Option<thread::JoinHandle<Source>>>,
}

struct Deliveries(Arc<Shared>);

impl ClientContext for Deliveries {
    // Brokers that are killed are meant to be.
    fn error(&self, _: KafkaError, _: &str) {}
    fn log(&self, _: rdkafka::config::RDKafkaLogLevel, _: &str, _: &str) {}
}

impl ProducerContext for Deliveries {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, (): ()) {
        if result.is_err() {
            self.0.failed.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Now.
pub fn now() -> Micros {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_micros() as Micros)
}

/// The topic of a table.
pub fn topic(table: usize) -> String {
    format!("chaos.emea.{}", TABLES[table])
}

impl Feed {
    /// Starts writing: first the rows that are there, then so many messages a second.
    pub fn start(client: &ClientConfig, source: Source, records: u32, rate: u32) -> Feed {
        let shared = Arc::new(Shared::default());
        let mut config = client.clone();
        // In order and once, over any number of the broker's deaths.
        config.set("enable.idempotence", "true").set("linger.ms", "5").set("message.timeout.ms", "0");
        config.set("queue.buffering.max.messages", "1000000").set("compression.type", "lz4");
        let producer: ThreadedProducer<Deliveries> =
            config.create_with_context(Deliveries(Arc::clone(&shared))).expect("a producer");
        let ours = Arc::clone(&shared);
        let thread = thread::spawn(move || write(&ours, &producer, source, records, rate));
        Feed { shared, thread: Mutex::new(Some(thread)) }
    }

    /// Offsets after everything given to the client until now.
    pub fn given(&self) -> Ends {
        self.shared.given.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether it has ended before it was told to.
    pub fn has_ended(&self) -> bool {
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner);
        thread.as_ref().is_none_or(thread::JoinHandle::is_finished)
    }

    /// Ends the load with a last sweep over all records, and waits until the broker has it all.
    ///
    /// # Panics
    /// When a message could not be delivered, or it has been ended before.
    pub fn end(&self) -> Source {
        self.shared.done.store(true, Ordering::Release);
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take().expect("a feed that runs");
        let source = thread.join().expect("the feed");
        assert_eq!(self.shared.failed.load(Ordering::Relaxed), 0, "messages were not delivered");
        source
    }
}

fn write(
    shared: &Arc<Shared>,
    producer: &ThreadedProducer<Deliveries>,
    mut source: Source,
    records: u32,
    rate: u32,
) -> Source {
    send(shared, producer, source.populate(records, now()));
    let begun = Instant::now();
    let mut made = 0;
    while !shared.done.load(Ordering::Acquire) {
        let due = (begun.elapsed().as_secs_f64() * f64::from(rate)) as u64;
        while made < due && !shared.done.load(Ordering::Acquire) {
            let messages = source.step(now());
            // A step that makes nothing counts too: it must not be tried without end.
            made += messages.len().max(1) as u64;
            send(shared, producer, messages);
        }
        happens_within(TICK, || shared.done.load(Ordering::Acquire));
    }
    send(shared, producer, source.sweep(now()));
    producer.flush(Duration::from_secs(120)).expect("the broker takes all messages");
    source
}

fn send(shared: &Shared, producer: &ThreadedProducer<Deliveries>, messages: Vec<Message>) {
    for message in messages {
        let topic = topic(message.table);
        let mut record = BaseRecord::to(&topic).partition(message.partition).key(&message.key);
        record.payload = message.value.as_ref();
        // The broker may be away for a while; what it missed is kept here meanwhile.
        while let Err((error, back)) = producer.send(record) {
            assert_eq!(error.rdkafka_error_code(), Some(RDKafkaErrorCode::QueueFull), "{topic}: {error}");
            record = back;
            happens_within(TICK, || false);
        }
        let mut given = shared.given.lock().unwrap_or_else(PoisonError::into_inner);
        *given.entry((message.table, message.partition)).or_default() += 1;
    }
}
