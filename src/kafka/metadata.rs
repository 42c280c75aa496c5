//! Plain questions to the cluster: topics, partitions, watermarks, id. No group, nothing is subscribed.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use rdkafka::consumer::{BaseConsumer, Consumer as _, ConsumerContext};
use rdkafka::error::KafkaError as NativeError;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use rdkafka::{ClientContext, error::RDKafkaErrorCode};

use super::client::{ClientLog, creation_error, metadata_config};
use super::{KafkaError, KafkaSettings, TopicPartition};

/// A topic of the cluster.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Topic {
    /// Its name.
    pub name: Arc<str>,
    /// How many partitions it has; they are numbered from 0.
    pub partitions: i32,
}

/// The readable range of a partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Watermarks {
    /// The oldest offset the broker still has.
    pub low: i64,
    /// The next offset that will be written.
    pub high: i64,
}

/// A client for questions.
pub struct Metadata {
    client: BaseConsumer<Context>,
    brokers: String,
}

#[derive(Default)]
struct Context(ClientLog);

impl ClientContext for Context {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, text: &str) {
        self.0.line(level, facility, text);
    }

    fn error(&self, error: NativeError, reason: &str) {
        self.0.error(error, reason);
    }
}

impl ConsumerContext for Context {}

impl Metadata {
    /// Builds the client. Doesn't connect yet.
    ///
    /// # Errors
    /// [`KafkaError::Setting`] when a setting is refused.
    pub fn connect(settings: &KafkaSettings) -> Result<Self, KafkaError> {
        let config: ClientConfig = metadata_config(settings)?;
        let client = config.create_with_context(Context::default()).map_err(creation_error)?;
        Ok(Self { client, brokers: settings.brokers.clone() })
    }

    /// The topics whose name `matches`, sorted by name. Topics that this user may not see are not among them.
    ///
    /// # Errors
    /// [`KafkaError::Unreachable`] when no broker answers within `timeout`.
    pub fn topics(&self, timeout: Duration, matches: impl Fn(&str) -> bool) -> Result<Vec<Topic>, KafkaError> {
        let metadata =
            self.client.fetch_metadata(None, timeout).map_err(|error| self.failed("listing topics", error))?;
        let mut topics: Vec<Topic> = metadata
            .topics()
            .iter()
            .filter(|topic| topic.error().is_none() && !topic.partitions().is_empty() && matches(topic.name()))
            .map(|topic| Topic {
                name: topic.name().into(),
                partitions: i32::try_from(topic.partitions().len()).unwrap_or(i32::MAX),
            })
            .collect();
        topics.sort();
        Ok(topics)
    }

    /// The named topics, in the order given.
    ///
    /// # Errors
    /// [`KafkaError::UnknownTopics`] names all that are missing; [`KafkaError::Unreachable`] as above.
    pub fn describe(&self, names: &[Arc<str>], timeout: Duration) -> Result<Vec<Topic>, KafkaError> {
        let wanted: BTreeSet<&str> = names.iter().map(AsRef::as_ref).collect();
        let found = self.topics(timeout, |name| wanted.contains(name))?;
        let (mut known, mut unknown) = (Vec::new(), Vec::new());
        for name in names {
            match found.iter().find(|topic| topic.name == *name) {
                Some(topic) => known.push(topic.clone()),
                None => unknown.push(name.to_string()),
            }
        }
        if unknown.is_empty() { Ok(known) } else { Err(KafkaError::UnknownTopics(unknown)) }
    }

    /// The watermarks of each partition, asked one after the other; `timeout` bounds them all together. A partition
    /// that can't be asked is left out with a warning, so that it holds up no other.
    ///
    /// # Errors
    /// [`KafkaError::Request`] when not one could be asked; it names the last.
    pub fn watermarks(
        &self,
        partitions: &[TopicPartition],
        timeout: Duration,
    ) -> Result<Vec<(TopicPartition, Watermarks)>, KafkaError> {
        let deadline = Instant::now() + timeout;
        // At least 1 ms: zero would mean "don't wait", and the error would say nothing.
        let left = || deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
        // The client remembers how many partitions a topic has: one that grew must be looked at again first.
        let topics: BTreeSet<&str> = partitions.iter().map(|of| of.topic.as_ref()).collect();
        for topic in topics {
            if let Err(error) = self.client.fetch_metadata(Some(topic), left()) {
                tracing::debug!(topic, %error, "metadata not refreshed");
            }
        }
        let mut found = Vec::with_capacity(partitions.len());
        let mut failure = None;
        for of in partitions {
            match self.client.fetch_watermarks(&of.topic, of.partition, left()) {
                Ok((low, high)) => found.push((of.clone(), Watermarks { low, high })),
                Err(error) => {
                    tracing::warn!(partition = %of, %error, "its watermarks can't be asked for");
                    failure = Some(self.failed(&format!("asking for the watermarks of {of}"), error));
                }
            }
        }
        match failure {
            Some(failure) if found.is_empty() => Err(failure),
            _ => Ok(found),
        }
    }

    /// The ends (next offsets to be written) of partitions, in one question to each broker. Those that the broker did
    /// not answer for are left out.
    ///
    /// # Errors
    /// [`KafkaError::Unreachable`], [`KafkaError::Request`] when a topic or partition is gone: then ask for
    /// [`watermarks`](Self::watermarks), one by one.
    pub fn ends(
        &self,
        partitions: &[TopicPartition],
        timeout: Duration,
    ) -> Result<Vec<(TopicPartition, i64)>, KafkaError> {
        if partitions.is_empty() {
            return Ok(Vec::new());
        }
        let mut list = TopicPartitionList::with_capacity(partitions.len());
        for of in partitions {
            // Instead of a time: Kafka's own sign for "the latest".
            list.add_partition_offset(&of.topic, of.partition, Offset::End)
                .map_err(|error| KafkaError::request(format!("naming {of}"), error))?;
        }
        let answer =
            self.client.offsets_for_times(list, timeout).map_err(|error| self.failed("asking for ends", error))?;
        let known = answer.elements();
        Ok(known
            .iter()
            .filter_map(|one| match (one.error(), one.offset()) {
                (Ok(()), Offset::Offset(end)) => Some((TopicPartition::new(one.topic(), one.partition()), end)),
                _ => None,
            })
            .collect())
    }

    /// The cluster's id.
    ///
    /// # Errors
    /// [`KafkaError::Unreachable`] when no broker answers within `timeout` (or the cluster has no id, which only
    /// brokers older than 0.10.1 lack).
    pub fn cluster_id(&self, timeout: Duration) -> Result<String, KafkaError> {
        self.client
            .client()
            .fetch_cluster_id(timeout)
            .filter(|id| !id.is_empty())
            .ok_or_else(|| self.unreachable("no cluster id within the time-out".into()))
    }

    fn failed(&self, action: &str, error: NativeError) -> KafkaError {
        match error.rdkafka_error_code() {
            Some(
                RDKafkaErrorCode::BrokerTransportFailure
                | RDKafkaErrorCode::OperationTimedOut
                | RDKafkaErrorCode::AllBrokersDown,
            ) => self.unreachable(error.to_string()),
            _ => KafkaError::request(action, error),
        }
    }

    fn unreachable(&self, otherwise: String) -> KafkaError {
        // Log lines and connection errors wait in the client's queue until they are polled.
        while let Some(entry) = self.client.poll(Duration::ZERO) {
            if let Err(error) = entry {
                self.client.context().0.note(error.to_string());
            }
        }
        let detail = self.client.context().0.last_trouble().unwrap_or(otherwise);
        KafkaError::Unreachable { brokers: self.brokers.clone(), detail }
    }
}
