//! An in-process broker (librdkafka's mock cluster) and a producer: for the demo and for tests without a JVM.
//!
//! It listens on a real port of 127.0.0.1, so other processes can use it, but it ends with the process that made
//! it. What it is not: it keeps 5 MiB or 100,000 message sets per partition and **silently drops the oldest**, so a
//! producer must be held back by its consumers; it has no compaction, no time index and no isolation of
//! transactions, so it proves nothing about exactly-once against Kafka. Each step of a rebalance (a cooperative join has
//! two) takes its session time-out less one second, so several workers want a short
//! [`session_timeout`](KafkaSettings::session_timeout) and `heartbeat.interval.ms` here.
#![allow(unsafe_code)]

use std::ffi::{CStr, CString};
use std::sync::Mutex;
use std::time::Duration;

use rdkafka::bindings as rd;
use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use rdkafka::error::{IsError, KafkaError as NativeError, RDKafkaErrorCode};
use rdkafka::producer::{BaseProducer, BaseRecord, DeliveryResult, Producer as _, ProducerContext, ThreadedProducer};
use rdkafka::{ClientContext, Message as _};

use super::client::{ClientLog, creation_error, producer_config};
use super::inbox::lock;
use super::{KafkaError, KafkaSettings};

/// A broker in this process; gone when dropped.
pub struct EmbeddedBroker {
    /// The client that carries the mock cluster.
    carrier: BaseProducer,
    brokers: i32,
}

impl EmbeddedBroker {
    /// Starts a cluster of `brokers` brokers on free ports of 127.0.0.1.
    ///
    /// # Errors
    /// [`KafkaError::Request`] when librdkafka can't start it.
    pub fn start(brokers: u16) -> Result<Self, KafkaError> {
        let mut config = ClientConfig::new();
        config.set("test.mock.num.brokers", brokers.max(1).to_string()).set_log_level(RDKafkaLogLevel::Error);
        let carrier: BaseProducer = config.create().map_err(creation_error)?;
        let broker = Self { carrier, brokers: brokers.max(1).into() };
        // SAFETY: the handle is valid while `carrier` lives. The default delay of 3 s makes every rebalance slow.
        unsafe { rd::rd_kafka_mock_group_initial_rebalance_delay_ms(broker.handle(), 50) };
        Ok(broker)
    }

    fn handle(&self) -> *mut rd::rd_kafka_mock_cluster_t {
        // SAFETY: the client is alive; it was made with mock brokers, so the handle is not null.
        unsafe { rd::rd_kafka_handle_mock_cluster(self.carrier.client().native_ptr()) }
    }

    /// Bootstrap servers.
    pub fn servers(&self) -> String {
        // SAFETY: a C string owned by the cluster.
        unsafe { CStr::from_ptr(rd::rd_kafka_mock_cluster_bootstraps(self.handle())) }.to_string_lossy().into_owned()
    }

    /// Creates a topic.
    ///
    /// # Errors
    /// [`KafkaError::Request`] if it exists already or the name is not one.
    pub fn create_topic(&self, name: &str, partitions: i32) -> Result<(), KafkaError> {
        let action = format!("creating topic {name}");
        let topic = CString::new(name).map_err(|error| KafkaError::request(&action, error))?;
        // SAFETY: handle and string are valid for the call.
        let error = unsafe { rd::rd_kafka_mock_topic_create(self.handle(), topic.as_ptr(), partitions, 1) };
        if error.is_error() { Err(KafkaError::request(action, RDKafkaErrorCode::from(error))) } else { Ok(()) }
    }

    /// Has the last of several brokers lead a partition, and answer every request this much later: what a test needs to
    /// have one partition come later than others. The first coordinates the group.
    ///
    /// # Errors
    /// [`KafkaError::Request`] if there is no such partition or broker.
    pub fn slow_down(&self, topic: &str, partition: i32, later: Duration, group: &str) -> Result<(), KafkaError> {
        let action = format!("slowing {topic}/{partition} down");
        let broker = self.brokers;
        let topic = CString::new(topic).map_err(|error| KafkaError::request(&action, error))?;
        let group = CString::new(group).map_err(|error| KafkaError::request(&action, error))?;
        let later = later.as_millis().try_into().unwrap_or(i32::MAX);
        // SAFETY: handle and strings are valid for the calls.
        let errors = unsafe {
            [
                rd::rd_kafka_mock_coordinator_set(self.handle(), c"group".as_ptr(), group.as_ptr(), 1),
                rd::rd_kafka_mock_partition_set_leader(self.handle(), topic.as_ptr(), partition, broker),
                rd::rd_kafka_mock_broker_set_rtt(self.handle(), broker, later),
            ]
        };
        match errors.into_iter().find(IsError::is_error) {
            Some(error) => Err(KafkaError::request(action, RDKafkaErrorCode::from(error))),
            None => Ok(()),
        }
    }

    /// Whether its brokers can be reached; what they hold stays.
    pub fn set_reachable(&self, reachable: bool) {
        for broker in 1..=self.brokers {
            // SAFETY: the handle is valid. An error could only mean that there is no such broker.
            let _ = unsafe {
                if reachable {
                    rd::rd_kafka_mock_broker_set_up(self.handle(), broker)
                } else {
                    rd::rd_kafka_mock_broker_set_down(self.handle(), broker)
                }
            };
        }
    }

    /// A producer for this broker.
    ///
    /// # Errors
    /// As [`Producer::connect`].
    pub fn producer(&self) -> Result<Producer, KafkaError> {
        Producer::connect(&KafkaSettings::new(self.servers(), ""))
    }
}

/// Writes messages: for the demo's simulator and for tests. The product itself never writes to Kafka.
pub struct Producer {
    client: ThreadedProducer<Deliveries>,
}

#[derive(Default)]
struct Deliveries {
    log: ClientLog,
    /// Why the last undelivered message was not delivered, until [`Producer::flush`] reports it.
    failed: Mutex<Option<String>>,
}

impl ClientContext for Deliveries {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, text: &str) {
        self.log.line(level, facility, text);
    }

    fn error(&self, error: NativeError, reason: &str) {
        self.log.error(error, reason);
    }
}

impl ProducerContext for Deliveries {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, (): ()) {
        if let Err((error, message)) = result {
            tracing::warn!(%error, topic = message.topic(), partition = message.partition(), "message not delivered");
            *lock(&self.failed) = Some(error.to_string());
        }
    }
}

impl Producer {
    /// Builds the client. Doesn't connect yet.
    ///
    /// # Errors
    /// [`KafkaError::Setting`] when a setting is refused.
    pub fn connect(settings: &KafkaSettings) -> Result<Self, KafkaError> {
        let client = producer_config(settings)?.create_with_context(Deliveries::default()).map_err(creation_error)?;
        Ok(Self { client })
    }

    /// Queues a message; `partition` `None` = by key. Waits while the local queue is full.
    ///
    /// # Errors
    /// [`KafkaError::Request`] when librdkafka refuses it (unknown partition, too large).
    pub fn send(
        &self,
        topic: &str,
        partition: Option<i32>,
        key: Option<&[u8]>,
        payload: Option<&[u8]>,
        timestamp_ms: Option<i64>,
    ) -> Result<(), KafkaError> {
        let mut record = BaseRecord::<[u8], [u8]>::to(topic);
        record.partition = partition;
        record.key = key;
        record.payload = payload;
        record.timestamp = timestamp_ms;
        loop {
            match self.client.send(record) {
                Ok(()) => return Ok(()),
                Err((NativeError::MessageProduction(RDKafkaErrorCode::QueueFull), back)) => {
                    record = back;
                    std::thread::sleep(Duration::from_millis(5));
                }
                Err((error, _)) => return Err(KafkaError::request(format!("writing to {topic}"), error)),
            }
        }
    }

    /// Waits until everything sent is acknowledged.
    ///
    /// # Errors
    /// [`KafkaError::Request`] if that takes longer than `timeout`, or if a message was not delivered.
    pub fn flush(&self, timeout: Duration) -> Result<(), KafkaError> {
        self.client.flush(timeout).map_err(|error| KafkaError::request("flushing the producer", error))?;
        match lock(&self.client.context().failed).take() {
            Some(trouble) => Err(KafkaError::request("flushing the producer", trouble)),
            None => Ok(()),
        }
    }
}
