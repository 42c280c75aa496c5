//! Kafka: the only module that names `rdkafka`.
//!
//! One [`Consumer`] per worker process, in one consumer group, subscribed to explicit topic names. It hands the
//! messages of each topic to that topic's [`Inbox`], which the topic's processing thread drains. Who may read a
//! partition, and from which offset, is not decided here but by [`Ownership`] (in practice: by Postgres), because
//! the group only *proposes* an owner; offsets stored in Kafka are written for lag tools and never read.
//!
//! | file | holds |
//! | --- | --- |
//! | `client.rs` | settings: what we force on every client, and why |
//! | `consumer.rs` | the handle: start, rewind, release, stop; and [`Ownership`], the contract behind claims |
//! | `member.rs` | the group member: its thread and its rebalance callback |
//! | `inbox.rs` | the messages of one topic, by partition |
//! | `native.rs` | the `unsafe` corner: polling one partition's own queue, cached watermarks |
//! | `outage.rs` | when it is told that no broker can be reached |
//! | `properties.rs` | which of librdkafka's own properties there are |
//! | `metadata.rs` | topics, partitions, watermarks, cluster id: plain questions with time-outs |
//! | `peek.rs` | the message at an offset, without a group |
//! | `embedded.rs` | an in-process broker and a producer, for the demo and the fast tests |
//!
//! # How messages travel
//! Every assigned partition keeps its own queue inside librdkafka (forwarding to the shared consumer queue is switched
//! off before the partition is assigned, and librdkafka remembers that across later assignments). The topic thread
//! polls those queues itself in [`Inbox::drain`]; the consumer thread only serves rebalances and errors. Three
//! things follow:
//! - **Back-pressure needs no pause.** What nobody drains stays in librdkafka, which stops fetching that partition at
//!   its share of [`KafkaSettings::queue_bytes`]. (`pause` would throw the fetched messages away and fetch them again.)
//! - **The end of a partition is known exactly**: the end-of-partition mark arrives in the partition's own queue, after
//!   the messages before it, and carries its offset. That offset also lies behind control records of transactions.
//! - **A slow topic thread delays nobody else**, neither other topics nor the group membership.
//!
//! # Found out about librdkafka 2.12 (each has a test, or is why the code looks as it does)
//! - *Rewinding one partition under cooperative-sticky works* with `incremental_unassign` + `incremental_assign`, from
//!   any thread, while messages are in flight. Each of the two raises the partition's version, and a poll drops what
//!   an older version queued. The group does not notice.
//! - *But both calls also count as the answer to a rebalance that waits for one.* A rewind that ran inside
//!   the revoke callback would give the revoked partitions away before the callback is done. So a rewind during
//!   a callback takes effect on the inbox at once, and on librdkafka when the callback has ended. A rebalance
//!   that is queued but not yet polled can still be answered early; then a partition may be handed on some
//!   milliseconds before its task has stopped, which the epoch in Postgres makes harmless.
//! - *Every rebalance event throws the fetched messages of all partitions away* (they are paused and resumed from the
//!   last polled offset). A callback that waits stops all partitions; therefore partitions are claimed outside
//!   the callback. A message polled while the pause happens comes again: the inbox drops offsets it has passed.
//! - *`rd_kafka_consume_batch_queue` would lose messages here* (read in its source, not run). It also takes an end-of-partition mark at offset N for a
//!   consumed message and moves the resume point to N + 1; after the next rebalance message N would be skipped. The
//!   queues are polled as events, where only messages move it.
//! - *`PartitionEOF` of the safe API names no topic and no offset*, so it could not be used with several topics.
//! - *A group answer must name only partitions that are really assigned*, or librdkafka refuses it and the member
//!   hangs in the rebalance. The callback intersects with the actual assignment and always answers.
//! - *A client with a fatal error can't be destroyed*: its main thread spins for ever, with the crate's own consumer
//!   as well. It is taken out of the group and left behind; the process should end soon.
//! - *An offset commit in flight holds back every new assignment* until it is answered, at worst for
//!   `socket.timeout.ms`. Commit offsets seldom, and not right before a rewind.

mod client;
mod consumer;
mod embedded;
mod inbox;
mod member;
mod metadata;
mod native;
mod outage;
mod peek;
mod properties;

use std::fmt;
use std::sync::Arc;

pub use client::{KafkaSettings, Tls, parse_brokers};
pub use consumer::{Consumer, ConsumerState, Holding, Ownership};
pub use embedded::{EmbeddedBroker, Producer};
pub use inbox::{Fault, FaultKind, Inbox, Message, Progress};
pub use metadata::{Metadata, Topic, Watermarks};
pub use peek::peek;
pub use properties::{PROPERTIES, PropertyFault, check_property};

/// One partition of one topic.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TopicPartition {
    /// Topic name.
    pub topic: Arc<str>,
    /// Partition number, from 0.
    pub partition: i32,
}

impl TopicPartition {
    /// Names a partition.
    pub fn new(topic: impl Into<Arc<str>>, partition: i32) -> Self {
        Self { topic: topic.into(), partition }
    }
}

impl fmt::Display for TopicPartition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.topic, self.partition)
    }
}

impl fmt::Debug for TopicPartition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// What can go wrong between us and Kafka.
#[derive(Clone, Debug, thiserror::Error)]
pub enum KafkaError {
    /// A setting is refused: by us, with the reason, or by librdkafka. Needs a person.
    #[error("Kafka setting {name}: {reason}")]
    Setting {
        /// Name of the setting, as librdkafka spells it.
        name: String,
        /// Why it is refused.
        reason: String,
    },
    /// No broker answered in time. `detail` is the last thing a broker connection said.
    #[error("no answer from Kafka at {brokers}: {detail}")]
    Unreachable {
        /// The bootstrap servers asked.
        brokers: String,
        /// Last connection error, or the time-out.
        detail: String,
    },
    /// Topics that the cluster does not have, or that we may not see. Needs a person, or patience.
    #[error("no such topic on this cluster (or not visible to this user): {}", .0.join(", "))]
    UnknownTopics(Vec<String>),
    /// Partitions that are not assigned to this worker at the moment: they were revoked or released meanwhile.
    #[error("not assigned to this worker: {0:?}")]
    NotAssigned(Vec<TopicPartition>),
    /// A request to the cluster failed.
    #[error("{action}: {reason}")]
    Request {
        /// What we were doing.
        action: String,
        /// What came back.
        reason: String,
    },
    /// The client cannot go on (for example, another process joined with our static group instance id). The process
    /// should end, or build a new consumer.
    #[error("fatal Kafka client error: {0}")]
    Fatal(String),
    /// The consumer has been stopped.
    #[error("the Kafka consumer is stopped")]
    Stopped,
    /// Leaving the group took longer than the deadline. The session time-out will do the rest.
    #[error("the Kafka consumer did not leave the group in time")]
    StopTimeout,
}

impl KafkaError {
    pub(crate) fn request(action: impl Into<String>, reason: impl fmt::Display) -> Self {
        Self::Request { action: action.into(), reason: reason.to_string() }
    }
}
