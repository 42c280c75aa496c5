//! The demo's broker, behind a producer: the embedded one (librdkafka's mock cluster, in this process), a private Kafka
//! in a JVM, or a running one of the user's, where the demo is a guest ([`guest`]).
//!
//! The embedded broker speaks Kafka's protocol well enough for workers in other processes, consumer groups included. It
//! keeps nothing on disk, dies with the process, and knows no transactions or time index: it is for the demo and fast
//! tests only.

pub mod guest;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rdkafka::ClientConfig;
use rdkafka::client::ClientContext;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{DeliveryResult, Header, Message, OwnedHeaders};
use rdkafka::mocking::MockCoordinator;
use rdkafka::producer::{BaseRecord, Producer, ProducerContext, ThreadedProducer};

use super::child::Ended;
use super::kafka::PrivateKafka;
use super::simulator::SimMessage;
use guest::{Guest, WORKERS, create_topics};

/// How long a new group waits for its members before it deals out partitions. The mock's own 3 s make every start slow;
/// whoever comes later comes as a rebalance, and that takes the mock 5 s.
const FIRST_REBALANCE: Duration = Duration::from_secs(1);
/// The embedded broker that coordinates the workers' group, and leads no partition.
const COORDINATOR: i32 = 1;
/// The one that leads all partitions.
const LEADER: i32 = 2;
/// By how much the coordinator's answers come later. The mock calls a rebalance done when the leading member has dealt
/// the partitions out, and refuses whoever asks for its share a moment later: that one joins anew, and everybody waits
/// for 5 s more. The leading member has one question more to ask before it deals, so it comes later by this much.
const COORDINATION: Duration = Duration::from_millis(100);

/// A running broker and a producer into it. Dropping it stops what was started, and leaves nothing on a broker that
/// was there before.
pub struct Broker {
    producer: ThreadedProducer<Deliveries>,
    bootstrap: String,
    _guest: Option<Guest>,
    private: Option<PrivateKafka>,
}

/// What the broker acknowledged.
#[derive(Default)]
struct Deliveries {
    state: Mutex<DeliveryState>,
}

#[derive(Default)]
struct DeliveryState {
    ends: BTreeMap<(String, i32), i64>,
    failed: Option<String>,
}

impl Deliveries {
    fn lock(&self) -> MutexGuard<'_, DeliveryState> {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

impl ClientContext for Deliveries {}

impl ProducerContext for Deliveries {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, _: ()) {
        let mut state = self.lock();
        match result {
            Ok(message) => {
                let end = state.ends.entry((message.topic().to_string(), message.partition())).or_default();
                *end = (*end).max(message.offset() + 1);
            }
            Err((error, _)) => _ = state.failed.get_or_insert_with(|| error.to_string()),
        }
    }
}

impl Broker {
    /// Starts an embedded broker with these topics.
    ///
    /// # Errors
    /// When librdkafka cannot make the cluster, or refuses a topic.
    pub fn embedded<'a>(topics: impl IntoIterator<Item = &'a str>, partitions: i32) -> Result<Self> {
        let mut config = producer_config();
        // A consumer gets one message set per partition and fetch: few large sets are quick, many small ones slow.
        config.set("test.mock.num.brokers", "2").set("linger.ms", "20").set("batch.size", "524288");
        let producer = config.create_with_context(Deliveries::default()).context("cannot start the embedded broker")?;
        let producer: ThreadedProducer<Deliveries> = producer;
        let bootstrap = {
            let cluster = producer.client().mock_cluster().context("the embedded broker did not come up")?;
            for topic in topics {
                cluster
                    .create_topic(topic, partitions, 1)
                    .and_then(|()| {
                        (0..partitions).try_for_each(|number| cluster.partition_leader(topic, number, Some(LEADER)))
                    })
                    .with_context(|| format!("cannot create the topic {topic}"))?;
            }
            cluster
                .coordinator(MockCoordinator::Group(WORKERS.to_string()), COORDINATOR)
                .and_then(|()| cluster.broker_round_trip_time(COORDINATOR, COORDINATION))
                .context("cannot set up the embedded broker")?;
            cluster.bootstrap_servers()
        };
        shorten_first_rebalance(&producer, FIRST_REBALANCE);
        Ok(Broker { producer, bootstrap, _guest: None, private: None })
    }

    /// Makes the topics on a private Kafka and keeps it.
    ///
    /// # Errors
    /// When it refuses a topic.
    pub async fn private(kafka: PrivateKafka, topics: &[&str], partitions: i32) -> Result<Self> {
        let bootstrap = kafka.bootstrap();
        create_topics(&bootstrap, topics, partitions).await?;
        let producer = producer(&bootstrap)?;
        Ok(Broker { producer, bootstrap, _guest: None, private: Some(kafka) })
    }

    /// Makes the topics on a running broker, as a guest.
    ///
    /// # Errors
    /// When it refuses a topic.
    pub async fn given(guest: Guest, topics: &[&str], partitions: i32) -> Result<Self> {
        let bootstrap = guest.bootstrap().to_string();
        let guest = guest.bring(topics, partitions).await?;
        let producer = producer(&bootstrap)?;
        Ok(Broker { producer, bootstrap, _guest: Some(guest), private: None })
    }

    /// Whether a private one has ended by itself since this was asked last. An embedded one can't, and a guest's is not
    /// the demo's own.
    pub fn ended(&mut self) -> Option<Ended> {
        self.private.as_mut()?.ended()
    }

    /// `host:port` for clients.
    pub fn bootstrap(&self) -> &str {
        &self.bootstrap
    }

    /// Hands a message to the producer, in order per partition. Waits while its queue is full.
    ///
    /// # Errors
    /// When the broker refused this message or an earlier one.
    pub async fn produce(&self, message: &SimMessage) -> Result<()> {
        if let Some(error) = &self.producer.context().lock().failed {
            bail!("the broker refused a message: {error}");
        }
        let mut record: BaseRecord<'_, [u8], [u8]> =
            BaseRecord::to(&message.topic).partition(message.partition).timestamp(message.timestamp);
        record.key = message.key.as_deref();
        record.payload = message.value.as_deref();
        if !message.headers.is_empty() {
            let headers = OwnedHeaders::new_with_capacity(message.headers.len());
            let add = |all: OwnedHeaders, (key, value): &(&str, String)| {
                all.insert(Header { key, value: Some(value.as_bytes()) })
            };
            record = record.headers(message.headers.iter().fold(headers, add));
        }
        loop {
            match self.producer.send(record) {
                Ok(()) => return Ok(()),
                Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), back)) => {
                    record = back;
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
                Err((error, _)) => return Err(error).context("cannot produce into the broker"),
            }
        }
    }

    /// Waits until all that was produced is acknowledged, and says where each partition ends. A partition that nothing
    /// was produced to is missing.
    ///
    /// # Errors
    /// When a message was refused, or the broker does not answer in time.
    pub async fn flush(&self) -> Result<BTreeMap<(Arc<str>, i32), i64>> {
        let producer = self.producer.clone();
        let flushed = tokio::task::spawn_blocking(move || producer.flush(Duration::from_secs(30))).await?;
        flushed.context("the broker did not take all messages")?;
        let state = self.producer.context().lock();
        if let Some(error) = &state.failed {
            bail!("the broker refused a message: {error}");
        }
        Ok(state.ends.iter().map(|((topic, partition), end)| ((topic.as_str().into(), *partition), *end)).collect())
    }
}

fn producer_config() -> ClientConfig {
    let mut config = ClientConfig::new();
    config.set("enable.idempotence", "true").set("message.max.bytes", "4194304");
    config
}

fn producer(bootstrap: &str) -> Result<ThreadedProducer<Deliveries>> {
    let mut config = producer_config();
    // Its own limit of a request is 1 MB.
    config.set("bootstrap.servers", bootstrap).set("linger.ms", "10").set("batch.size", "262144");
    config.create_with_context(Deliveries::default()).context("cannot make a producer")
}

#[allow(unsafe_code)] // the crate does not wrap this one call
fn shorten_first_rebalance(producer: &ThreadedProducer<Deliveries>, delay: Duration) {
    let millis = i32::try_from(delay.as_millis()).unwrap_or(i32::MAX);
    // SAFETY: the client is alive for the whole block, and with it the mock cluster it owns, whose pointer is not kept.
    // The setter takes the cluster's own lock; a null cluster (not a mock) is left alone.
    unsafe {
        let cluster = rdkafka::bindings::rd_kafka_handle_mock_cluster(producer.client().native_ptr());
        if !cluster.is_null() {
            rdkafka::bindings::rd_kafka_mock_group_initial_rebalance_delay_ms(cluster, millis);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::demo::backlog::TopicPartition;
    use rdkafka::TopicPartitionList;
    use rdkafka::consumer::{BaseConsumer, Consumer};
    use rdkafka::message::Headers as _;
    use std::time::Instant;

    const DEADLINE: Duration = Duration::from_secs(30);

    fn consumer(broker: &Broker, group: &str) -> BaseConsumer {
        ClientConfig::new()
            .set("bootstrap.servers", broker.bootstrap())
            .set("group.id", group)
            .set("auto.offset.reset", "earliest")
            .set("enable.auto.commit", "false")
            .create()
            .unwrap()
    }

    #[tokio::test]
    async fn what_is_produced_is_read_back_in_order() {
        let broker = Broker::embedded(["a.b.c"], 2).unwrap();
        let partition: TopicPartition = ("a.b.c".into(), 1);
        for number in 0..1_000_i64 {
            let message = SimMessage {
                topic: partition.0.clone(),
                partition: partition.1,
                key: Some(format!("{{\"id\":{number}}}").into_bytes()),
                value: (number % 7 != 0).then(|| b"v".repeat(500)),
                timestamp: 1_599_458_400_000 + number,
                headers: vec![("h", number.to_string())],
            };
            broker.produce(&message).await.unwrap();
        }
        let ends = broker.flush().await.unwrap();
        assert_eq!(ends, BTreeMap::from([(partition, 1_000)]));

        let consumer = consumer(&broker, "g");
        let mut assignment = TopicPartitionList::new();
        assignment.add_partition_offset("a.b.c", 1, rdkafka::Offset::Beginning).unwrap();
        consumer.assign(&assignment).unwrap();
        let begun = Instant::now();
        let mut next = 0;
        while next < 1_000 {
            assert!(begun.elapsed() < DEADLINE, "stuck at {next}");
            let Some(message) = consumer.poll(Duration::from_millis(100)) else { continue };
            let message = message.unwrap();
            assert_eq!(message.offset(), next);
            assert_eq!(message.key(), Some(format!("{{\"id\":{next}}}").as_bytes()));
            assert_eq!(message.payload().is_none(), next % 7 == 0, "a tombstone stays one");
            let header = message.headers().unwrap().get(0);
            assert_eq!((header.key, header.value), ("h", Some(next.to_string().as_bytes())));
            next += 1;
        }
    }

    #[test]
    fn a_group_gets_its_partitions() {
        let broker = Broker::embedded(["a.b.c"], 3).unwrap();
        let consumer = consumer(&broker, "g");
        consumer.subscribe(&["a.b.c"]).unwrap();
        let begun = Instant::now();
        while consumer.assignment().unwrap().count() < 3 {
            assert!(begun.elapsed() < DEADLINE, "no assignment");
            if let Some(Err(error)) = consumer.poll(Duration::from_millis(100)) {
                panic!("{error}");
            }
        }
    }
}
