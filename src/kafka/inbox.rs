//! The messages of one topic on their way from librdkafka to the topic's processing thread.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rdkafka::error::RDKafkaErrorCode as Code;

use super::native::{Fetched, Nonempty, PartitionQueue, Polled};

/// Locks, also after another thread panicked while holding the lock: every critical section here leaves the data
/// consistent at each step, and the panic is reported elsewhere.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One Kafka message. Its bytes stay where librdkafka fetched them until it is dropped or [detached](Message::detach).
pub struct Message {
    /// Partition it was read from; the topic is the inbox's.
    pub partition: i32,
    /// Its offset.
    pub offset: i64,
    /// Milliseconds since 1970, as the producer or the broker (`LogAppendTime`) set it.
    pub timestamp_ms: Option<i64>,
    /// Which assignment of the partition it belongs to. Rises with every claim and rewind; a buffered message with
    /// an older number than [`Progress::generation`] is void.
    pub generation: u64,
    bytes: MessageBytes,
}

enum MessageBytes {
    Fetched(Fetched),
    Own { key: Option<Box<[u8]>>, payload: Option<Box<[u8]>> },
}

impl Message {
    /// Key bytes; `None` = null.
    pub fn key(&self) -> Option<&[u8]> {
        match &self.bytes {
            MessageBytes::Fetched(fetched) => fetched.key(),
            MessageBytes::Own { key, .. } => key.as_deref(),
        }
    }

    /// Value bytes; `None` = null, a tombstone.
    pub fn payload(&self) -> Option<&[u8]> {
        match &self.bytes {
            MessageBytes::Fetched(fetched) => fetched.payload(),
            MessageBytes::Own { payload, .. } => payload.as_deref(),
        }
    }

    /// Copies the bytes, for a message that waits long: where they were fetched lies up to a whole answer of the broker,
    /// with all that it held of other partitions.
    pub fn detach(&mut self) {
        if let MessageBytes::Fetched(fetched) = &self.bytes {
            let (key, payload) = (fetched.key().map(Into::into), fetched.payload().map(Into::into));
            self.bytes = MessageBytes::Own { key, payload };
        }
    }
}

/// Without key and value: records of customers do not belong in logs.
impl fmt::Debug for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { partition, offset, generation, .. } = self;
        write!(f, "Message {partition}/{offset} of generation {generation}")
    }
}

/// How far the draining of one partition has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// The present assignment.
    pub generation: u64,
    /// No message below this offset will be delivered any more in this generation: where it started, or the last
    /// delivered offset + 1.
    pub next: i64,
    /// `Some(end)` when the end of the partition was met after the last delivered message: everything below `end` was
    /// delivered, and `end` may lie above `next`, behind control records. `None` while more is on its way, or not
    /// yet known (it comes up to `fetch.wait.max.ms` after the last message).
    pub end: Option<i64>,
}

impl Progress {
    fn start(generation: u64, next: i64) -> Self {
        Self { generation, next, end: None }
    }

    /// Whether the message at `offset` is to be delivered. After a rebalance librdkafka resumes from the last offset it
    /// saw polled, and a poll at that very moment can be missed: then messages come again.
    fn deliver(&mut self, offset: i64) -> bool {
        if offset < self.next {
            return false;
        }
        self.next = offset + 1;
        self.end = None;
        true
    }

    fn reach_end(&mut self, offset: i64) {
        if offset >= self.next {
            self.end = Some(offset);
        }
    }
}

/// Trouble with one partition. It delivers nothing more until it is rewound or claimed anew, except after
/// [`FaultKind::Other`], where librdkafka goes on trying.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Which partition.
    pub partition: i32,
    /// In which assignment.
    pub generation: u64,
    /// At which offset, if the error names one.
    pub offset: Option<i64>,
    /// What kind.
    pub kind: FaultKind,
    /// librdkafka's words.
    pub reason: String,
}

/// Kinds of partition trouble.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultKind {
    /// The log does not hold the offset: records were deleted before we read them, or the topic was recreated.
    OutOfRange,
    /// The topic or partition is gone.
    Unknown,
    /// This user may not read the topic.
    NotAllowed,
    /// Anything else; librdkafka goes on trying.
    Other,
}

/// The messages of one topic, by partition. Shared with the consumer; drained by one thread.
pub struct Inbox {
    topic: Arc<str>,
    /// Held while polling librdkafka. Never taken by librdkafka's callbacks: they hold a queue's lock.
    slots: Mutex<Slots>,
    signal: Arc<Signal>,
}

#[derive(Default)]
struct Slots {
    slots: Vec<Slot>,
    /// Where the next drain starts, so that a busy partition does not starve the others.
    turn: usize,
    faults: Vec<Fault>,
}

struct Slot {
    partition: i32,
    queue: PartitionQueue,
    ready: Arc<AtomicBool>,
    progress: Progress,
    /// A rewind has begun: nothing may be polled until the partition is assigned again.
    suspended: bool,
}

/// Wakes the draining thread. A leaf lock: nothing else is taken while it is held.
#[derive(Default)]
struct Signal {
    state: Mutex<SignalState>,
    changed: Condvar,
}

#[derive(Default)]
struct SignalState {
    /// Something may be in a queue.
    data: bool,
    /// Someone called [`Inbox::wake`].
    woken: bool,
}

impl Signal {
    fn raise(&self, set: impl FnOnce(&mut SignalState)) {
        set(&mut lock(&self.state));
        self.changed.notify_all();
    }

    /// Waits for data, a wake-up or the deadline; false = deadline.
    fn wait(&self, deadline: Instant) -> bool {
        let mut state = lock(&self.state);
        while !state.data && !state.woken {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            state = self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }
}

impl Inbox {
    pub(super) fn new(topic: Arc<str>) -> Arc<Self> {
        Arc::new(Self { topic, slots: Mutex::default(), signal: Arc::default() })
    }

    /// The topic.
    pub fn topic(&self) -> &Arc<str> {
        &self.topic
    }

    /// Appends up to `max` messages to `into` and returns how many. Waits up to `wait` for the first one; returns early
    /// (perhaps with 0) after [`wake`](Self::wake) and while faults wait to be taken. Messages of one partition
    /// come in offset order, without repeats; partitions take turns.
    pub fn drain(&self, into: &mut Vec<Message>, max: usize, wait: Duration) -> usize {
        self.drain_with(into, max, wait, |_| max)
    }

    /// Like [`drain`](Self::drain), but takes at most `wanted(partition)` messages of each partition: a reader that
    /// merges partitions by time must not fill its memory with one partition while it waits for another.
    pub fn drain_with(
        &self,
        into: &mut Vec<Message>,
        max: usize,
        wait: Duration,
        mut wanted: impl FnMut(i32) -> usize,
    ) -> usize {
        let deadline = Instant::now() + wait;
        loop {
            // Before looking: what arrives while we look must be seen by the wait below.
            lock(&self.signal.state).data = false;
            let (taken, faults) = self.take(into, max, &mut wanted, false);
            if taken > 0 || faults || lock(&self.signal.state).woken {
                lock(&self.signal.state).woken = false;
                return taken;
            }
            if !self.signal.wait(deadline) {
                // The last look ignores the ready marks: a wake-up that got lost costs one wait, not the partition.
                return self.take(into, max, &mut wanted, true).0;
            }
        }
    }

    /// Makes a waiting (or the next) [`drain`](Self::drain) return at once.
    pub fn wake(&self) {
        self.signal.raise(|state| state.woken = true);
    }

    /// Faults since the last call.
    pub fn take_faults(&self) -> Vec<Fault> {
        std::mem::take(&mut lock(&self.slots).faults)
    }

    /// How far a partition is; `None` if it is not assigned to this worker.
    pub fn progress(&self, partition: i32) -> Option<Progress> {
        lock(&self.slots).slots.iter().find(|slot| slot.partition == partition).map(|slot| slot.progress)
    }

    /// How many messages (and marks) of the partition librdkafka has fetched that were not drained; `None` if it is not
    /// assigned.
    pub fn queued(&self, partition: i32) -> Option<usize> {
        lock(&self.slots).slots.iter().find(|slot| slot.partition == partition).map(|slot| slot.queue.len())
    }

    fn take(
        &self,
        into: &mut Vec<Message>,
        max: usize,
        wanted: &mut dyn FnMut(i32) -> usize,
        all: bool,
    ) -> (usize, bool) {
        let mut guard = lock(&self.slots);
        let Slots { slots, turn, faults } = &mut *guard;
        let before = into.len();
        let count = slots.len();
        *turn = if count == 0 { 0 } else { (*turn + 1) % count };
        for step in 0..count {
            let Some(slot) = slots.get_mut((*turn + step) % count) else { break };
            let want = wanted(slot.partition).min(max - (into.len() - before));
            if want == 0 || slot.suspended {
                continue;
            }
            // Cleared before polling: what arrives later marks it again.
            if slot.ready.swap(false, Ordering::AcqRel) || all {
                slot.take(into, want, faults);
            }
        }
        (into.len() - before, !faults.is_empty())
    }

    /// What to call when a queue that is about to be opened has data, and the mark it sets.
    pub(super) fn nonempty(&self) -> (Arc<AtomicBool>, Nonempty) {
        // Set at first: the queue may hold something before the callback is in place.
        let ready = Arc::new(AtomicBool::new(true));
        let (mark, signal) = (Arc::clone(&ready), Arc::clone(&self.signal));
        let nonempty: Nonempty = Box::new(move || {
            mark.store(true, Ordering::Release);
            signal.raise(|state| state.data = true);
        });
        (ready, nonempty)
    }

    /// Takes an assigned partition in. An older slot of the same partition is dropped.
    pub(super) fn add(
        &self,
        partition: i32,
        queue: PartitionQueue,
        ready: Arc<AtomicBool>,
        generation: u64,
        next: i64,
    ) {
        let progress = Progress::start(generation, next);
        let mut guard = lock(&self.slots);
        guard.slots.retain(|slot| slot.partition != partition);
        guard.slots.push(Slot { partition, queue, ready, progress, suspended: false });
    }

    /// Lets a partition go: nothing of it is delivered after this. The queue is for purging once it is unassigned.
    pub(super) fn remove(&self, partition: i32) -> Option<PartitionQueue> {
        let mut guard = lock(&self.slots);
        guard.faults.retain(|fault| fault.partition != partition);
        let index = guard.slots.iter().position(|slot| slot.partition == partition)?;
        Some(guard.slots.remove(index).queue)
    }

    /// Begins a rewind: nothing of the old generation is delivered after this.
    pub(super) fn suspend(&self, partition: i32, generation: u64, next: i64) -> bool {
        let mut guard = lock(&self.slots);
        guard.faults.retain(|fault| fault.partition != partition);
        let Some(slot) = guard.slots.iter_mut().find(|slot| slot.partition == partition) else { return false };
        slot.suspended = true;
        slot.progress = Progress::start(generation, next);
        true
    }

    /// Frees what a suspended partition still holds; it is unassigned at this moment.
    pub(super) fn purge(&self, partition: i32) {
        let mut guard = lock(&self.slots);
        if let Some(slot) = guard.slots.iter_mut().find(|slot| slot.partition == partition && slot.suspended) {
            slot.queue.purge();
        }
    }

    /// Ends a rewind: the partition is assigned again.
    pub(super) fn resume(&self, partition: i32) {
        let mut guard = lock(&self.slots);
        if let Some(slot) = guard.slots.iter_mut().find(|slot| slot.partition == partition) {
            slot.suspended = false;
            slot.ready.store(true, Ordering::Release);
        }
        drop(guard);
        self.signal.raise(|state| state.data = true);
    }
}

impl Slot {
    fn take(&mut self, into: &mut Vec<Message>, want: usize, faults: &mut Vec<Fault>) {
        let Self { partition, queue, ready, progress, .. } = self;
        let polled = queue.poll(want, |entry| match entry {
            Polled::Message { offset, timestamp_ms, fetched } => {
                if progress.deliver(offset) {
                    let (partition, generation) = (*partition, progress.generation);
                    let bytes = MessageBytes::Fetched(fetched);
                    into.push(Message { partition, offset, timestamp_ms, generation, bytes });
                }
            }
            Polled::End { offset } => progress.reach_end(offset),
            Polled::Error { code, offset, reason } => faults.push(Fault {
                partition: *partition,
                generation: progress.generation,
                offset: (offset >= 0).then_some(offset),
                kind: fault_kind(code),
                reason,
            }),
        });
        // Fewer than asked for means that the queue was seen empty; otherwise there may be more.
        if polled == want {
            ready.store(true, Ordering::Release);
        }
    }
}

pub(super) fn fault_kind(code: Code) -> FaultKind {
    match code {
        Code::AutoOffsetReset | Code::OffsetOutOfRange => FaultKind::OutOfRange,
        Code::UnknownTopicOrPartition | Code::UnknownTopic | Code::UnknownPartition => FaultKind::Unknown,
        Code::TopicAuthorizationFailed => FaultKind::NotAllowed,
        _ => FaultKind::Other,
    }
}

impl fmt::Debug for Inbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Inbox").field("topic", &self.topic).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_partition_only_goes_forward_and_jumps_over_holes() {
        let mut progress = Progress::start(7, 5);
        progress.reach_end(4);
        assert_eq!(progress, Progress { generation: 7, next: 5, end: None }, "an end before the start is an old one");
        // 5 and 6 were compacted away; 7 comes again after a rebalance.
        assert!(progress.deliver(7));
        assert!(!progress.deliver(7) && !progress.deliver(6));
        assert_eq!(progress.next, 8);
        // The end lies behind two control records, and is not the end any more after the next message.
        progress.reach_end(10);
        assert!(!progress.deliver(7));
        assert_eq!((progress.next, progress.end), (8, Some(10)));
        assert!(progress.deliver(10));
        assert_eq!((progress.next, progress.end), (11, None));
    }
}
