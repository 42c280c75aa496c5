//! Looking at single messages, without joining a group and without moving anything: what the broker has at an offset now.

use std::collections::BTreeMap;
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer as _, DefaultConsumerContext};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

use super::client::{creation_error, peek_config};
use super::inbox::{FaultKind, fault_kind, lock};
use super::native::{Nonempty, PartitionQueue, Polled};
use super::{KafkaError, KafkaSettings, TopicPartition};

/// A queue is looked into this often even if nothing woke us: rdkafka's callbacks are a hint.
const ROUND: Duration = Duration::from_millis(20);

/// What the broker has at these offsets: what `look` makes of the first message at the offset or after it (its offset, its
/// time in ms, key, value), by partition.
/// `None` = there is none: the log begins after the offset, ends before it, or has nothing but marks of transactions there.
/// A partition of which nothing was heard within `timeout` is not in the answer. Messages of transactions that were aborted
/// are looked at too: they stand in the log.
///
/// # Errors
/// [`KafkaError::Setting`] when a setting is refused, [`KafkaError::Request`] when the client refuses.
pub fn peek<T>(
    settings: &KafkaSettings,
    wanted: &[(TopicPartition, i64)],
    timeout: Duration,
    look: impl Fn(i64, Option<i64>, Option<&[u8]>, Option<&[u8]>) -> T,
) -> Result<BTreeMap<TopicPartition, Option<T>>, KafkaError> {
    let mut found = BTreeMap::new();
    if wanted.is_empty() {
        return Ok(found);
    }
    let until = Instant::now() + timeout;
    let client: BaseConsumer<DefaultConsumerContext> = peek_config(settings)?.create().map_err(creation_error)?;
    let client = Arc::new(client);
    let woken = Arc::new((Mutex::new(()), Condvar::new()));
    let mut list = TopicPartitionList::with_capacity(wanted.len());
    let mut queues = Vec::with_capacity(wanted.len());
    for (of, offset) in wanted {
        list.add_partition_offset(&of.topic, of.partition, Offset::Offset(*offset))
            .map_err(|error| KafkaError::request(format!("naming {of}"), error))?;
        let wake = Arc::clone(&woken);
        let nonempty: Nonempty = Box::new(move || wake.1.notify_one());
        let rk = client.client().native_ptr();
        // Before it is assigned, see there.
        if let Some(queue) = PartitionQueue::open(Arc::clone(&client) as _, rk, &of.topic, of.partition, nonempty) {
            queues.push((of, queue));
        }
    }
    client.assign(&list).map_err(|error| KafkaError::request("looking at messages", error))?;
    while !queues.is_empty() && Instant::now() < until {
        queues.retain_mut(|(of, queue)| {
            let mut seen = None;
            queue.poll(1, |entry| {
                seen = match entry {
                    Polled::Message { offset, timestamp_ms, fetched } => {
                        Some(Some(look(offset, timestamp_ms, fetched.key(), fetched.payload())))
                    }
                    Polled::End { .. } => Some(None),
                    Polled::Error { code, .. } if fault_kind(code) == FaultKind::OutOfRange => Some(None),
                    // Connections come and go, and leaders move: the time-out bounds it.
                    Polled::Error { .. } => None,
                };
            });
            let open = seen.is_none();
            if let Some(seen) = seen {
                found.insert((*of).clone(), seen);
            }
            open
        });
        if !queues.is_empty() {
            drop(woken.1.wait_timeout(lock(&woken.0), ROUND));
        }
    }
    Ok(found)
}
