//! A real Apache Kafka 4.1 (KRaft, broker and controller in one JVM), one per test binary. Tests stay apart by their
//! own topics and groups.

use std::collections::BTreeMap;
use std::sync::OnceLock;
use std::time::Duration;

use afterimage::demo::kafka::{PrivateKafka, Size};
use afterimage::demo::patience::Stop;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{Header, Headers, Message as _, OwnedHeaders};
use rdkafka::producer::{FutureProducer, FutureRecord};
use rdkafka::{Offset, TopicPartitionList};

use super::java::java;
use super::names;
use super::wait::{LONG, wait_blocking};

/// How long one request may take. The broker is local; this only bounds a hang.
const REQUEST: Duration = Duration::from_secs(30);

/// A broker. It ends with its value, or with the process.
pub struct Broker {
    kafka: PrivateKafka,
    producer: OnceLock<FutureProducer>,
}

/// What a broker is for.
#[derive(Clone, Copy)]
enum Kind {
    Test,
    Bench,
}

/// A message on its way into a topic, or read back from one.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Message {
    /// Its partition; always chosen by the test.
    pub partition: i32,
    /// Its offset. Ignored when produced.
    pub offset: i64,
    /// Milliseconds since 1970; `None` lets the producer set its clock's time.
    pub timestamp: Option<i64>,
    /// `None` is Kafka's null key.
    pub key: Option<Vec<u8>>,
    /// `None` is Kafka's null value: a tombstone.
    pub value: Option<Vec<u8>>,
    /// In order; names may repeat.
    pub headers: Vec<(String, Option<Vec<u8>>)>,
}

impl Message {
    /// A message with key and value.
    pub fn new(partition: i32, key: impl Into<Vec<u8>>, value: impl Into<Vec<u8>>) -> Self {
        Message { partition, key: Some(key.into()), value: Some(value.into()), ..Default::default() }
    }

    /// A message with key and null value.
    pub fn tombstone(partition: i32, key: impl Into<Vec<u8>>) -> Self {
        Message { partition, key: Some(key.into()), ..Default::default() }
    }

    /// With this timestamp, in milliseconds.
    pub fn at(mut self, timestamp: i64) -> Self {
        self.timestamp = Some(timestamp);
        self
    }

    /// With one more header.
    pub fn header(mut self, name: &str, value: impl Into<Vec<u8>>) -> Self {
        self.headers.push((name.into(), Some(value.into())));
        self
    }
}

impl Broker {
    /// The broker all tests of this binary share. Never dropped; it and its files go when the process does.
    pub fn shared() -> &'static Broker {
        static BROKER: OnceLock<Broker> = OnceLock::new();
        BROKER.get_or_init(Broker::start)
    }

    /// A broker of the test's own, to be killed and restarted.
    ///
    /// # Panics
    /// When it does not come up, with its log.
    pub fn start() -> Broker {
        Broker::of_size(Size::Small)
    }

    /// A broker with the memory, threads and compiler of a server: one that does not hold up what is measured.
    ///
    /// # Panics
    /// As [`Self::start`].
    pub fn start_for_bench() -> Broker {
        Broker::of_size(Size::Server)
    }

    fn of_size(size: Size) -> Broker {
        let kafka = PrivateKafka::start(&java(), size, &Stop::default()).unwrap_or_else(|error| panic!("{error:#}"));
        Broker { kafka, producer: OnceLock::new() }
    }

    /// `host:port` for clients.
    pub fn bootstrap(&self) -> String {
        self.kafka.bootstrap()
    }

    /// The process.
    ///
    /// # Panics
    /// When it was killed.
    pub fn pid(&self) -> u32 {
        self.kafka.pid().expect("running")
    }

    /// kill -9, and waits for the end. Clients see their connections break.
    pub fn kill(&mut self) {
        self.kafka.kill().unwrap();
    }

    /// Starts the killed broker again, on the same ports and log.
    ///
    /// # Panics
    /// When it is running, or does not come up.
    pub fn restart(&mut self) {
        self.kafka.restart(&Stop::default()).unwrap_or_else(|error| panic!("{error:#}"));
    }

    /// [`Self::restart`] on a machine so busy that the broker may not come up in time: then it is killed and started anew.
    ///
    /// # Panics
    /// When it does not come up five times.
    pub fn restart_at_last(&mut self) {
        for _ in 0..4 {
            if self.kafka.restart(&Stop::default()).is_ok() {
                return;
            }
            self.kill();
        }
        self.restart();
    }

    /// A client configuration that knows where the broker is. `group.id` and the like are the caller's.
    pub fn client(&self) -> ClientConfig {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", self.bootstrap());
        config
    }

    /// Makes a topic and waits until the broker leads all its partitions.
    pub async fn create_topic(&self, name: &str, partitions: i32) {
        self.create_topic_with(name, partitions, &[]).await;
    }

    /// [`Self::create_topic`] with topic settings (`cleanup.policy`, `retention.ms`, …).
    pub async fn create_topic_with(&self, name: &str, partitions: i32, settings: &[(&str, &str)]) {
        let admin: AdminClient<DefaultClientContext> = self.client().create().unwrap();
        let mut topic = NewTopic::new(name, partitions, TopicReplication::Fixed(1));
        for (key, value) in settings {
            topic = topic.set(key, value);
        }
        let options = AdminOptions::new().operation_timeout(Some(REQUEST)).request_timeout(Some(REQUEST));
        for result in admin.create_topics(&[topic], &options).await.unwrap() {
            result.unwrap_or_else(|(name, code)| panic!("topic {name}: {code}"));
        }
        // The answer to a creation may come before the leaders are known to the metadata a client asks for next.
        let (client, name) = (self.client(), name.to_string());
        blocking(move || {
            let consumer: BaseConsumer = client.create().unwrap();
            wait_blocking(&format!("leaders of {name}"), LONG, || leaders(&consumer, &name, partitions))
        })
        .await;
    }

    /// Adds partitions to a topic, up to this number in all.
    pub async fn grow_topic(&self, name: &str, partitions: usize) {
        let admin: AdminClient<DefaultClientContext> = self.client().create().unwrap();
        let wanted = rdkafka::admin::NewPartitions::new(name, partitions);
        for result in admin.create_partitions(&[wanted], &AdminOptions::new()).await.unwrap() {
            result.unwrap_or_else(|(name, code)| panic!("topic {name}: {code}"));
        }
    }

    /// The names of all topics.
    pub async fn topics(&self) -> Vec<String> {
        let client = self.client();
        blocking(move || {
            let consumer: BaseConsumer = client.create().unwrap();
            let metadata = consumer.fetch_metadata(None, REQUEST).unwrap();
            metadata.topics().iter().map(|topic| topic.name().to_string()).collect()
        })
        .await
    }

    /// Deletes a topic.
    pub async fn delete_topic(&self, name: &str) {
        let admin: AdminClient<DefaultClientContext> = self.client().create().unwrap();
        for result in admin.delete_topics(&[name], &AdminOptions::new()).await.unwrap() {
            result.unwrap_or_else(|(name, code)| panic!("topic {name}: {code}"));
        }
    }

    /// Deletes the messages of one partition below `offset`, as retention does.
    pub async fn delete_before(&self, topic: &str, partition: i32, offset: i64) {
        let admin: AdminClient<DefaultClientContext> = self.client().create().unwrap();
        let mut list = TopicPartitionList::new();
        list.add_partition_offset(topic, partition, Offset::Offset(offset)).unwrap();
        let done = admin.delete_records(&list, &AdminOptions::new()).await.unwrap();
        for element in done.elements() {
            element.error().unwrap();
        }
    }

    /// Produces the messages in order, and returns their offsets in that order when the broker has them all.
    pub async fn produce(&self, topic: &str, messages: impl IntoIterator<Item = Message>) -> Vec<i64> {
        let producer = self.producer.get_or_init(|| {
            let mut config = self.client();
            config.set("enable.idempotence", "true").set("linger.ms", "2").set("message.max.bytes", "10000000");
            config.create().unwrap()
        });
        let mut offsets = Vec::new();
        let mut pending = std::collections::VecDeque::new();
        for message in messages {
            let mut record: FutureRecord<'_, [u8], [u8]> = FutureRecord::to(topic).partition(message.partition);
            record.key = message.key.as_deref();
            record.payload = message.value.as_deref();
            record.timestamp = message.timestamp;
            if !message.headers.is_empty() {
                let headers = message
                    .headers
                    .iter()
                    .fold(OwnedHeaders::new(), |all, (key, value)| all.insert(Header { key, value: value.as_deref() }));
                record = record.headers(headers);
            }
            loop {
                match producer.send_result(record) {
                    Ok(delivery) => break pending.push_back(delivery),
                    Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), back)) => {
                        record = back;
                        offsets.push(delivered(pending.pop_front().expect("a full queue holds something")).await);
                    }
                    Err((error, _)) => panic!("{topic}: {error}"),
                }
            }
        }
        for delivery in pending {
            offsets.push(delivered(delivery).await);
        }
        offsets
    }

    /// The end of each partition: the offset the next message will get. Transaction marks count.
    pub async fn end_offsets(&self, topic: &str) -> BTreeMap<i32, i64> {
        let (client, topic) = (self.client(), topic.to_string());
        blocking(move || {
            let consumer: BaseConsumer = client.create().unwrap();
            let partitions = partitions(&consumer, &topic).unwrap();
            partitions.map(|p| (p, consumer.fetch_watermarks(&topic, p, REQUEST).unwrap().1)).collect()
        })
        .await
    }

    /// Everything the topic holds now, partition by partition in offset order; aborted transactions are left out.
    pub async fn read_all(&self, topic: &str) -> Vec<Message> {
        let (mut client, topic) = (self.client(), topic.to_string());
        client.set("group.id", names::unique("reader")).set("enable.auto.commit", "false");
        client.set("enable.partition.eof", "true").set("isolation.level", "read_committed");
        blocking(move || {
            let consumer: BaseConsumer = client.create().unwrap();
            let mut open: Vec<i32> = partitions(&consumer, &topic).unwrap().collect();
            let mut list = TopicPartitionList::new();
            for partition in &open {
                list.add_partition_offset(&topic, *partition, Offset::Beginning).unwrap();
            }
            consumer.assign(&list).unwrap();
            let mut messages: BTreeMap<(i32, i64), Message> = BTreeMap::new();
            while !open.is_empty() {
                match consumer.poll(LONG) {
                    None => panic!("no answer from {topic} in {LONG:?}"),
                    Some(Err(KafkaError::PartitionEOF(partition))) => open.retain(|p| *p != partition),
                    Some(Err(error)) => panic!("{topic}: {error}"),
                    Some(Ok(message)) => {
                        let message = owned(&message);
                        messages.insert((message.partition, message.offset), message);
                    }
                }
            }
            messages.into_values().collect()
        })
        .await
    }

    /// What a group has committed on a topic; partitions without a commit are absent.
    pub async fn committed(&self, group: &str, topic: &str) -> BTreeMap<i32, i64> {
        let (mut client, topic) = (self.client(), topic.to_string());
        client.set("group.id", group);
        blocking(move || {
            let consumer: BaseConsumer = client.create().unwrap();
            let mut list = TopicPartitionList::new();
            for partition in partitions(&consumer, &topic).unwrap() {
                list.add_partition(&topic, partition);
            }
            let committed = consumer.committed_offsets(list, REQUEST).unwrap();
            let elements = committed.elements();
            elements
                .iter()
                .filter_map(|e| Some((e.partition(), e.offset().to_raw().filter(|raw| *raw >= 0)?)))
                .collect()
        })
        .await
    }
}

/// Blocking client calls run off the test's only thread, which has to drive its other futures meanwhile.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(value) => value,
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}

async fn delivered(delivery: rdkafka::producer::DeliveryFuture) -> i64 {
    match delivery.await.expect("the producer lives as long as the broker") {
        Ok(delivery) => delivery.offset,
        Err((error, _)) => panic!("not delivered: {error}"),
    }
}

fn partitions(consumer: &BaseConsumer, topic: &str) -> Result<std::ops::Range<i32>, String> {
    let metadata = consumer.fetch_metadata(Some(topic), REQUEST).map_err(|error| error.to_string())?;
    let topic = metadata.topics().first().ok_or("no such topic")?;
    match topic.error() {
        Some(error) => Err(format!("{}: {:?}", topic.name(), error)),
        None => Ok(0..topic.partitions().len() as i32),
    }
}

fn leaders(consumer: &BaseConsumer, topic: &str, wanted: i32) -> Result<(), String> {
    let metadata = consumer.fetch_metadata(Some(topic), REQUEST).map_err(|error| error.to_string())?;
    let led = metadata.topics().iter().flat_map(|t| t.partitions()).filter(|p| p.leader() >= 0).count();
    if led == wanted as usize { Ok(()) } else { Err(format!("{led} of {wanted} partitions have a leader")) }
}

fn owned(message: &rdkafka::message::BorrowedMessage<'_>) -> Message {
    let headers = message.headers().into_iter().flat_map(|headers| headers.iter());
    Message {
        partition: message.partition(),
        offset: message.offset(),
        timestamp: message.timestamp().to_millis(),
        key: message.key().map(<[u8]>::to_vec),
        value: message.payload().map(<[u8]>::to_vec),
        headers: headers.map(|header| (header.key.to_string(), header.value.map(<[u8]>::to_vec))).collect(),
    }
}
