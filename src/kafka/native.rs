//! The `unsafe` corner: what the `rdkafka` crate has no safe call for.
//!
//! Two things only: polling the queue of one partition as events (the crate's own partition queue drops the topic and
//! the offset of the end-of-partition mark), and reading the cached watermarks. `rd_kafka_consume_batch_queue` would
//! be faster but moves the resume point past end-of-partition marks; see the module page.
#![allow(unsafe_code)]

use std::any::Any;
use std::ffi::{CStr, CString, c_void};
use std::ptr::NonNull;
use std::sync::Arc;

use rdkafka::bindings as rd;
use rdkafka::error::{IsError, RDKafkaErrorCode};
use rdkafka::types::{RDKafka, RDKafkaQueue, RDKafkaRespErr};

/// What came out of a partition's queue.
pub(super) enum Polled {
    /// A message.
    Message { offset: i64, timestamp_ms: Option<i64>, fetched: Fetched },
    /// Everything below `offset` has been handed out, and at that moment there was nothing at or above it.
    End { offset: i64 },
    /// The partition can't be read at `offset` (negative: no particular one).
    Error { code: RDKafkaErrorCode, offset: i64, reason: String },
}

/// Called by librdkafka's threads when the queue becomes non-empty. Must be quick, must not panic, and must not call
/// into librdkafka (a lock of the queue is held).
pub(super) type Nonempty = Box<dyn Fn() + Send + Sync>;

/// The queue of one partition, cut off from the consumer's shared queue.
pub(super) struct PartitionQueue {
    queue: NonNull<RDKafkaQueue>,
    /// Boxed twice: librdkafka keeps a thin pointer to the inner box, whose place must not move.
    _nonempty: Box<Nonempty>,
    /// The client must outlive its queues and their messages.
    client: Arc<dyn Any + Send + Sync>,
}

// SAFETY: librdkafka's queues are thread-safe, the callback is Send + Sync, and the client handle is Send + Sync.
unsafe impl Send for PartitionQueue {}

unsafe extern "C" fn call_nonempty(_: *mut RDKafka, opaque: *mut c_void) {
    // SAFETY: `opaque` is the `&Nonempty` registered by `open`; it lives until `drop`, which unregisters it first
    // (under the queue's lock, so no call is under way afterwards).
    let nonempty = unsafe { &*opaque.cast::<Nonempty>() };
    nonempty();
}

impl PartitionQueue {
    /// Takes the partition's queue. Must be called before the partition is assigned: only then does librdkafka leave
    /// its messages there from the first one on. `rk` must be the client that `client` keeps alive.
    pub(super) fn open(
        client: Arc<dyn Any + Send + Sync>,
        rk: *mut RDKafka,
        topic: &str,
        partition: i32,
        nonempty: Nonempty,
    ) -> Option<Self> {
        let topic = CString::new(topic).ok()?;
        // SAFETY: `rk` is alive (kept by `client`), `topic` is a C string for the time of the call. The result is
        // null or a new reference to the queue, released in `drop`.
        let queue = NonNull::new(unsafe { rd::rd_kafka_queue_get_partition(rk, topic.as_ptr(), partition) })?;
        let nonempty = Box::new(nonempty);
        // SAFETY: `queue` is valid. A null destination switches forwarding off and marks that as the application's
        // wish. The opaque pointer stays valid until `drop` unregisters it.
        unsafe {
            rd::rd_kafka_queue_forward(queue.as_ptr(), std::ptr::null_mut());
            rd::rd_kafka_queue_cb_event_enable(
                queue.as_ptr(),
                Some(call_nonempty),
                std::ptr::from_ref::<Nonempty>(&nonempty).cast_mut().cast(),
            );
        }
        Some(Self { queue, _nonempty: nonempty, client })
    }

    /// Polls up to `max` entries without waiting and gives each to `take`. Returns how many there were: fewer than
    /// `max` means that the queue was seen empty.
    pub(super) fn poll(&mut self, max: usize, mut take: impl FnMut(Polled)) -> usize {
        for polled in 0..max {
            // SAFETY: `queue` is valid; 0 = don't wait.
            let Some(event) = Event::new(unsafe { rd::rd_kafka_queue_poll(self.queue.as_ptr(), 0) }) else {
                return polled;
            };
            if let Some(entry) = event.read(&self.client) {
                take(entry);
            }
        }
        max
    }

    /// Entries in the queue.
    pub(super) fn len(&self) -> usize {
        // SAFETY: `queue` is valid.
        unsafe { rd::rd_kafka_queue_length(self.queue.as_ptr()) }
    }

    /// Drops what is left in the queue of a partition that is no longer assigned: the memory would stay taken.
    pub(super) fn purge(&mut self) {
        while self.poll(1000, |_| {}) > 0 {}
    }
}

impl Drop for PartitionQueue {
    fn drop(&mut self) {
        // SAFETY: `queue` is valid; the callback is unregistered before its box is freed; our reference is given
        // back once.
        unsafe {
            rd::rd_kafka_queue_cb_event_enable(self.queue.as_ptr(), None, std::ptr::null_mut());
            rd::rd_kafka_queue_destroy(self.queue.as_ptr());
        }
    }
}

/// One event, freed when dropped.
struct Event(NonNull<rd::rd_kafka_event_t>);

impl Event {
    fn new(event: *mut rd::rd_kafka_event_t) -> Option<Self> {
        NonNull::new(event).map(Self)
    }

    /// What it says; a message takes the event along.
    fn read(self, client: &Arc<dyn Any + Send + Sync>) -> Option<Polled> {
        let event = self.0.as_ptr();
        // SAFETY: `event` is valid until `self` is dropped, and so is all that is read from it below.
        match unsafe { rd::rd_kafka_event_type(event) } {
            rd::RD_KAFKA_EVENT_FETCH => {
                // SAFETY: as above. The message belongs to the event.
                let message = unsafe { rd::rd_kafka_event_message_next(event).as_ref()? };
                if message.err.is_error() {
                    let code = RDKafkaErrorCode::from(message.err);
                    return Some(Polled::Error { code, offset: message.offset, reason: code.to_string() });
                }
                let mut kind = rd::rd_kafka_timestamp_type_t::RD_KAFKA_TIMESTAMP_NOT_AVAILABLE;
                // SAFETY: `message` and `kind` are valid for the call.
                let timestamp = unsafe { rd::rd_kafka_message_timestamp(message, &mut kind) };
                let timed = kind != rd::rd_kafka_timestamp_type_t::RD_KAFKA_TIMESTAMP_NOT_AVAILABLE;
                Some(Polled::Message {
                    offset: message.offset,
                    timestamp_ms: (timed && timestamp >= 0).then_some(timestamp),
                    fetched: Fetched {
                        key: span(message.key, message.key_len),
                        payload: span(message.payload, message.len),
                        _event: self,
                        _client: Arc::clone(client),
                    },
                })
            }
            rd::RD_KAFKA_EVENT_ERROR => {
                // SAFETY: as above.
                let error = unsafe { rd::rd_kafka_event_error(event) };
                let offset = self.offset();
                if error == RDKafkaRespErr::RD_KAFKA_RESP_ERR__PARTITION_EOF {
                    return Some(Polled::End { offset: offset? });
                }
                // SAFETY: the string is null or a C string owned by the event.
                let reason = unsafe {
                    let text = rd::rd_kafka_event_error_string(event);
                    if text.is_null() { String::new() } else { CStr::from_ptr(text).to_string_lossy().into_owned() }
                };
                Some(Polled::Error { code: error.into(), offset: offset.unwrap_or(-1), reason })
            }
            _ => None,
        }
    }

    /// Offset of an error event.
    fn offset(&self) -> Option<i64> {
        // SAFETY: null, or a new list element that we own and free once.
        unsafe {
            let element = rd::rd_kafka_event_topic_partition(self.0.as_ptr());
            let offset = element.as_ref()?.offset;
            rd::rd_kafka_topic_partition_destroy(element);
            Some(offset)
        }
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        // SAFETY: we own the event; freed once.
        unsafe { rd::rd_kafka_event_destroy(self.0.as_ptr()) }
    }
}

/// A message where librdkafka fetched it: key and payload are not copied. Frees its share of the fetch when dropped, and
/// keeps the client alive until then.
pub(super) struct Fetched {
    /// Into the fetch that the event holds.
    key: Option<NonNull<[u8]>>,
    payload: Option<NonNull<[u8]>>,
    // In this order: the event must go before its client.
    _event: Event,
    _client: Arc<dyn Any + Send + Sync>,
}

// SAFETY: an event belongs to whoever holds it, on any thread; what it points to is only read, and freed under
// librdkafka's own (atomic) reference counts.
unsafe impl Send for Fetched {}

impl Fetched {
    pub(super) fn key(&self) -> Option<&[u8]> {
        // SAFETY: librdkafka gives pointer and length of one allocation that lives as long as the event; null means
        // null, not empty.
        self.key.map(|bytes| unsafe { bytes.as_ref() })
    }

    pub(super) fn payload(&self) -> Option<&[u8]> {
        // SAFETY: as for the key.
        self.payload.map(|bytes| unsafe { bytes.as_ref() })
    }
}

fn span(start: *mut c_void, length: usize) -> Option<NonNull<[u8]>> {
    NonNull::new(start).map(|start| NonNull::slice_from_raw_parts(start.cast::<u8>(), length))
}

/// The watermarks (low, high) that the last fetch of this partition brought; no network. Only for partitions that are
/// assigned: librdkafka would start to track any other. `None` where nothing is known yet.
pub(super) fn cached_watermarks(rk: *mut RDKafka, topic: &str, partition: i32) -> (Option<i64>, Option<i64>) {
    let Ok(topic) = CString::new(topic) else { return (None, None) };
    let (mut low, mut high) = (-1, -1);
    // SAFETY: the caller holds the client; `topic`, `low` and `high` are valid for the call.
    let error = unsafe { rd::rd_kafka_get_watermark_offsets(rk, topic.as_ptr(), partition, &mut low, &mut high) };
    if error.is_error() {
        return (None, None);
    }
    // Unknown is a negative number (-1001).
    ((low >= 0).then_some(low), (high >= 0).then_some(high))
}
