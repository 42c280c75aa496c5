//! The group member behind the handle: its thread, its rebalance callback, and what it owns.
//!
//! ```text
//!            group assigns          asked           claimed                      rewind
//!  (foreign) ────────────▶ Unclaimed ─────▶ Claiming ───────▶ Assigned ⟲ unassign + assign at the offset
//!      ▲                     ▲   ▲   left out  │ │              │
//!      │ group revokes       │   └─────────────┘ │ release      │ release
//!      └── from any state    └──── reclaim ──── Released ◀──────┘
//! ```
//! A claim runs without the lock. What is released meanwhile stays released, whatever the claim answers: its task is
//! gone, and an assignment would deliver to nobody until the next rebalance.
//!
//! A partition is *ours* when the group says so, and *assigned* only when [`Ownership::claim`] gave an offset for it.
//! What a claim leaves out is asked for again every second: leaving the group and joining again would bring the same
//! assignment back (the assignor is sticky) at the price of a rebalance for all.
//!
//! Locks, outermost first: `group` → an inbox's slots → an inbox's signal. [`Ownership`] is always called without any
//! of them, so its callbacks may use the consumer.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError, RwLock, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rdkafka::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, Consumer as _, ConsumerContext};
use rdkafka::error::{KafkaError as NativeError, KafkaResult, RDKafkaErrorCode};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use rdkafka::types::RDKafkaRespErr;

use super::client::ClientLog;
use super::consumer::{ConsumerState, Ownership};
use super::inbox::{Inbox, lock};
use super::native::PartitionQueue;
use super::outage::Outage;
use super::{KafkaError, TopicPartition};

/// How long the consumer thread waits for an event before it looks for other work.
const POLL: Duration = Duration::from_millis(50);
/// How long a broker may take to answer, where none could be reached before.
const ANSWER: Duration = Duration::from_millis(500);
/// Pause between two attempts to claim what an earlier claim left out.
const CLAIM_AGAIN: Duration = Duration::from_secs(1);
/// How long a failed client may take to let its assignment go.
const FAILED_CLEANUP: Duration = Duration::from_secs(5);

/// What the handle, the consumer thread and librdkafka's callbacks share.
pub(super) struct Member {
    /// `None` once closed. Taken out (not only dropped) by the consumer thread, which then destroys the client.
    pub(super) client: RwLock<Option<Arc<BaseConsumer<Context>>>>,
    pub(super) inboxes: RwLock<BTreeMap<Arc<str>, Arc<Inbox>>>,
    pub(super) group: Mutex<Group>,
    pub(super) ownership: Arc<dyn Ownership>,
    pub(super) generation: AtomicU64,
    pub(super) stopping: AtomicBool,
    pub(super) state: Mutex<ConsumerState>,
    pub(super) ended: Condvar,
    pub(super) log: ClientLog,
    pub(super) thread: Mutex<Option<JoinHandle<()>>>,
    /// When the consumer thread last came round.
    pub(super) polled: Mutex<Instant>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Hold {
    Unclaimed,
    Claiming,
    Assigned,
    Released,
}

#[derive(Default)]
pub(super) struct Group {
    /// What the group says is ours.
    pub(super) ours: BTreeMap<TopicPartition, Hold>,
    /// A rebalance callback is running: assigning or unassigning now would count as its answer.
    in_callback: bool,
    /// What was asked for meanwhile: assign again at the offset, or (`None`) unassign.
    deferred: BTreeMap<TopicPartition, Option<i64>>,
    /// When to claim what is unclaimed.
    pub(super) claim_at: Option<Instant>,
}

pub(super) struct Context {
    /// Weak: the client owns its context.
    pub(super) member: Weak<Member>,
}

impl ClientContext for Context {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, text: &str) {
        if let Some(member) = self.member.upgrade() {
            member.log.line(level, facility, text);
        }
    }

    fn error(&self, error: NativeError, reason: &str) {
        if let Some(member) = self.member.upgrade() {
            member.log.error(error, reason);
        }
    }
}

impl ConsumerContext for Context {
    fn rebalance(&self, client: &BaseConsumer<Self>, event: RDKafkaRespErr, partitions: &mut TopicPartitionList) {
        let Some(member) = self.member.upgrade() else { return };
        let partitions = named(partitions);
        if event == RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS {
            member.given(client, &partitions);
        } else {
            let lost = client.assignment_lost();
            member.taken(client, &partitions, lost);
        }
    }

    fn commit_callback(&self, result: KafkaResult<()>, _: &TopicPartitionList) {
        if let Err(error) = result {
            tracing::debug!(%error, "offsets for lag tools not committed");
        }
    }
}

/// The consumer thread.
impl Member {
    pub(super) fn run(&self, client: Arc<BaseConsumer<Context>>) {
        let mut closing = false;
        let mut outage = Outage::default();
        let failure = loop {
            if !closing && self.stopping.load(Ordering::Acquire) {
                closing = true;
                // Revokes everything through the callback, then leaves.
                if let Err(error) = client.close_queue() {
                    tracing::warn!(%error, "closing the consumer");
                    break None;
                }
            }
            *lock(&self.polled) = Instant::now();
            match client.poll(POLL) {
                // Every assigned partition has a queue of its own; nothing else is fetched.
                Some(Ok(_)) => tracing::error!("a message arrived outside of its partition's queue"),
                Some(Err(NativeError::MessageConsumptionFatal(code))) => {
                    let reason = client.client().fatal_error().map_or_else(|| code.to_string(), |(_, reason)| reason);
                    break Some(KafkaError::Fatal(reason));
                }
                Some(Err(error)) => {
                    self.log.note(error.to_string());
                    if error.rdkafka_error_code() != Some(RDKafkaErrorCode::AllBrokersDown) {
                        tracing::warn!(%error, "Kafka consumer");
                    } else if outage.met(Instant::now()) {
                        tracing::warn!(%error, "no broker can be reached; trying again");
                    }
                }
                None => {}
            }
            if closing {
                if client.closed() {
                    break None;
                }
            } else {
                if outage.is_to_be_asked(Instant::now())
                    && self.is_answered(&client)
                    && let Some(after) = outage.over(Instant::now())
                {
                    tracing::info!(?after, "a broker answers again");
                }
                self.claim_due(&client);
            }
        };
        self.end(client, failure);
    }

    /// Whether a broker answers soon.
    fn is_answered(&self, client: &BaseConsumer<Context>) -> bool {
        let topic = self.inboxes.read().unwrap_or_else(PoisonError::into_inner).keys().next().cloned();
        topic.is_some_and(|topic| client.fetch_metadata(Some(&topic), ANSWER).is_ok())
    }

    fn end(&self, client: Arc<BaseConsumer<Context>>, failure: Option<KafkaError>) {
        // After a close nothing is left; after a fatal error everything is, and it is lost.
        let left: Vec<_> = {
            let mut group = lock(&self.group);
            group.deferred.clear();
            std::mem::take(&mut group.ours).into_keys().collect()
        };
        drop(self.close(&left));
        self.client.write().unwrap_or_else(PoisonError::into_inner).take();
        if !left.is_empty() {
            self.ownership.revoked(&left, true);
        }
        let Some(error) = failure else {
            // The group is left. The client itself goes with the last message that a topic's thread still holds.
            drop(client);
            self.ended(ConsumerState::Stopped);
            return;
        };
        tracing::error!(%error, "the Kafka consumer has failed");
        self.ownership.failed(&error);
        self.ended(ConsumerState::Failed(error));
        // Not destroyed: with a fatal error librdkafka 2.12 never finishes that (its main thread spins at 100 % CPU; so
        // it does with the plain client of the crate). Out of the group and without an assignment it only idles.
        client.unsubscribe();
        let deadline = Instant::now() + FAILED_CLEANUP;
        while client.assignment().is_ok_and(|list| list.count() > 0) && Instant::now() < deadline {
            let _ = client.poll(POLL);
        }
        std::mem::forget(client);
    }

    fn ended(&self, state: ConsumerState) {
        *lock(&self.state) = state;
        self.ended.notify_all();
        for inbox in self.inboxes.read().unwrap_or_else(PoisonError::into_inner).values() {
            inbox.wake();
        }
    }

    /// Rebalance callback: the group gives.
    fn given(&self, client: &BaseConsumer<Context>, partitions: &[TopicPartition]) {
        {
            let mut group = lock(&self.group);
            for of in partitions {
                group.ours.insert(of.clone(), Hold::Unclaimed);
            }
            group.claim_at = Some(Instant::now());
        }
        tracing::info!(?partitions, "partitions given by the group");
        // Answered at once, with nothing: all fetching stands still until the answer. They are assigned when claimed.
        if let Err(error) = client.incremental_assign(&TopicPartitionList::new()) {
            tracing::warn!(%error, "answering the rebalance");
        }
    }

    /// Rebalance callback: the group takes.
    fn taken(&self, client: &BaseConsumer<Context>, partitions: &[TopicPartition], lost: bool) {
        let taken: Vec<_> = {
            let mut group = lock(&self.group);
            group.in_callback = true;
            for of in partitions {
                group.deferred.remove(of);
            }
            partitions.iter().filter(|of| group.ours.remove(of).is_some()).cloned().collect()
        };
        let queues = self.close(&taken);
        tracing::info!(partitions = ?taken, lost, "partitions taken by the group");
        if !taken.is_empty() {
            self.ownership.revoked(&taken, lost);
        }
        // Only what is really assigned: one foreign name, and librdkafka refuses the whole list and hangs in the
        // rebalance. An empty list is an answer too.
        let assigned = client.assignment().map(|list| named(&list)).unwrap_or_default();
        let going: Vec<_> = partitions.iter().filter(|of| assigned.contains(of)).cloned().collect();
        if let Err(error) = client.incremental_unassign(&name_list(&going)) {
            tracing::warn!(%error, "answering the rebalance");
        }
        purge(queues);
        self.deferred(client);
    }

    /// What was put off during a rebalance callback.
    fn deferred(&self, client: &BaseConsumer<Context>) {
        let mut group = lock(&self.group);
        group.in_callback = false;
        let deferred = std::mem::take(&mut group.deferred);
        let mut released = Vec::new();
        let mut rewound = Vec::new();
        for (of, offset) in deferred {
            match offset {
                Some(offset) => rewound.push((of, offset)),
                None => released.push(of),
            }
        }
        if !released.is_empty()
            && let Err(error) = client.incremental_unassign(&name_list(&released))
        {
            tracing::warn!(%error, "releasing partitions");
        }
        if !rewound.is_empty()
            && let Err(error) = self.assign_again(client, &mut group, &rewound)
        {
            tracing::warn!(%error, "rewinding after a rebalance; the partitions are claimed anew");
        }
    }

    /// Claims what is unclaimed, if it is time to.
    fn claim_due(&self, client: &Arc<BaseConsumer<Context>>) {
        let unclaimed: Vec<TopicPartition> = {
            let mut group = lock(&self.group);
            if group.claim_at.is_none_or(|at| at > Instant::now()) {
                return;
            }
            group.claim_at = None;
            let unclaimed = group.ours.iter_mut().filter(|(_, hold)| **hold == Hold::Unclaimed);
            unclaimed
                .map(|(of, hold)| {
                    *hold = Hold::Claiming;
                    of.clone()
                })
                .collect()
        };
        if unclaimed.is_empty() {
            return;
        }
        let mut claimed = self.ownership.claim(&unclaimed);
        claimed.sort();
        claimed.dedup_by(|a, b| a.0 == b.0);
        let mut group = lock(&self.group);
        // The callbacks run on this very thread: what was given is still ours. But it may have been released.
        claimed.retain(|(of, offset)| *offset >= 0 && group.ours.get(of) == Some(&Hold::Claiming));
        if !claimed.is_empty() {
            match self.assign(client, &claimed) {
                Ok(()) => {
                    for (of, _) in &claimed {
                        group.ours.insert(of.clone(), Hold::Assigned);
                    }
                }
                Err(error) => tracing::warn!(%error, ?claimed, "assigning claimed partitions; they are claimed anew"),
            }
        }
        for hold in group.ours.values_mut().filter(|hold| **hold == Hold::Claiming) {
            *hold = Hold::Unclaimed;
        }
        if group.ours.values().any(|hold| *hold == Hold::Unclaimed) {
            let again = Instant::now() + CLAIM_AGAIN;
            group.claim_at = Some(group.claim_at.map_or(again, |at| at.min(again)));
        }
    }

    /// Opens the queues, then assigns: in this order, so that the first message already lands in its own queue.
    fn assign(&self, client: &Arc<BaseConsumer<Context>>, offsets: &[(TopicPartition, i64)]) -> Result<(), KafkaError> {
        let list = offset_list(offsets)?;
        let mut opened = Vec::new();
        let result = (|| {
            for (of, offset) in offsets {
                let inbox = self.inbox(&of.topic).ok_or_else(|| KafkaError::UnknownTopics(vec![of.to_string()]))?;
                let (ready, nonempty) = inbox.nonempty();
                let rk = client.client().native_ptr();
                let queue = PartitionQueue::open(Arc::clone(client) as _, rk, &of.topic, of.partition, nonempty)
                    .ok_or_else(|| KafkaError::request(format!("opening {of}"), "no queue"))?;
                inbox.add(of.partition, queue, ready, self.next_generation(), *offset);
                opened.push(of.clone());
            }
            client.incremental_assign(&list).map_err(|error| KafkaError::request("assigning partitions", error))
        })();
        if result.is_err() {
            drop(self.close(&opened));
        }
        result
    }
}

/// Called from any thread.
impl Member {
    pub(super) fn rewind(&self, offsets: &[(TopicPartition, i64)]) -> Result<(), KafkaError> {
        let client = self.client()?;
        let mut group = lock(&self.group);
        let (mut ours, mut foreign) = (Vec::new(), Vec::new());
        for (of, offset) in offsets {
            let assigned = group.ours.get(of) == Some(&Hold::Assigned);
            // From here on nothing old is delivered, whatever happens below.
            let suspended = assigned
                && self
                    .inbox(&of.topic)
                    .is_some_and(|inbox| inbox.suspend(of.partition, self.next_generation(), *offset));
            if suspended {
                ours.push((of.clone(), *offset));
            } else {
                foreign.push(of.clone());
            }
        }
        if group.in_callback {
            group.deferred.extend(ours.into_iter().map(|(of, offset)| (of, Some(offset))));
        } else if !ours.is_empty() {
            self.assign_again(&client, &mut group, &ours)?;
        }
        if foreign.is_empty() { Ok(()) } else { Err(KafkaError::NotAssigned(foreign)) }
    }

    /// The second half of a rewind: the partitions are suspended in their inboxes.
    fn assign_again(
        &self,
        client: &BaseConsumer<Context>,
        group: &mut Group,
        offsets: &[(TopicPartition, i64)],
    ) -> Result<(), KafkaError> {
        let names: Vec<_> = offsets.iter().map(|(of, _)| of.clone()).collect();
        let done = offset_list(offsets).and_then(|list| {
            client
                .incremental_unassign(&name_list(&names))
                .map_err(|error| KafkaError::request("unassigning for a rewind", error))?;
            for of in &names {
                if let Some(inbox) = self.inbox(&of.topic) {
                    inbox.purge(of.partition);
                }
            }
            client.incremental_assign(&list).map_err(|error| KafkaError::request("assigning for a rewind", error))
        });
        if done.is_ok() {
            for of in &names {
                if let Some(inbox) = self.inbox(&of.topic) {
                    inbox.resume(of.partition);
                }
            }
        } else {
            // Neither here nor there: let go of them and claim them from the beginning.
            let assigned = client.assignment().map(|list| named(&list)).unwrap_or_default();
            let half: Vec<_> = names.iter().filter(|of| assigned.contains(of)).cloned().collect();
            if !half.is_empty() {
                let _ = client.incremental_unassign(&name_list(&half));
            }
            drop(self.close(&names));
            for of in names {
                group.ours.insert(of, Hold::Unclaimed);
            }
            group.claim_at = Some(Instant::now());
        }
        done
    }

    pub(super) fn release(&self, partitions: &[TopicPartition]) {
        let Ok(client) = self.client() else { return };
        let mut group = lock(&self.group);
        let mut going = Vec::new();
        for of in partitions {
            match group.ours.get_mut(of) {
                Some(hold @ Hold::Assigned) => {
                    *hold = Hold::Released;
                    going.push(of.clone());
                }
                Some(hold @ (Hold::Unclaimed | Hold::Claiming)) => *hold = Hold::Released,
                Some(Hold::Released) | None => {}
            }
        }
        let queues = self.close(&going);
        if group.in_callback {
            group.deferred.extend(going.into_iter().map(|of| (of, None)));
            // The queues empty themselves when the partition is assigned again, or with the client.
        } else if !going.is_empty() {
            if let Err(error) = client.incremental_unassign(&name_list(&going)) {
                tracing::warn!(%error, "releasing partitions");
            }
            purge(queues);
        }
    }

    pub(super) fn client(&self) -> Result<Arc<BaseConsumer<Context>>, KafkaError> {
        self.client.read().unwrap_or_else(PoisonError::into_inner).clone().ok_or(KafkaError::Stopped)
    }

    pub(super) fn inbox(&self, topic: &str) -> Option<Arc<Inbox>> {
        self.inboxes.read().unwrap_or_else(PoisonError::into_inner).get(topic).cloned()
    }

    fn next_generation(&self) -> u64 {
        self.generation.fetch_add(1, Ordering::Relaxed) + 1
    }

    pub(super) fn subscribe(&self, client: &BaseConsumer<Context>) -> Result<(), KafkaError> {
        let inboxes = self.inboxes.read().unwrap_or_else(PoisonError::into_inner);
        let topics: Vec<&str> = inboxes.keys().map(AsRef::as_ref).collect();
        client.subscribe(&topics).map_err(|error| KafkaError::request("subscribing", error))
    }

    /// Takes partitions out of their inboxes: nothing of them is delivered after this.
    fn close(&self, partitions: &[TopicPartition]) -> Vec<PartitionQueue> {
        partitions.iter().filter_map(|of| self.inbox(&of.topic)?.remove(of.partition)).collect()
    }
}

/// Frees what the queues of unassigned partitions still hold.
fn purge(queues: Vec<PartitionQueue>) {
    for mut queue in queues {
        queue.purge();
    }
}

fn named(list: &TopicPartitionList) -> Vec<TopicPartition> {
    list.elements().iter().map(|element| TopicPartition::new(element.topic(), element.partition())).collect()
}

fn name_list(partitions: &[TopicPartition]) -> TopicPartitionList {
    let mut list = TopicPartitionList::with_capacity(partitions.len());
    for of in partitions {
        list.add_partition(&of.topic, of.partition);
    }
    list
}

pub(super) fn offset_list(offsets: &[(TopicPartition, i64)]) -> Result<TopicPartitionList, KafkaError> {
    let mut list = TopicPartitionList::with_capacity(offsets.len());
    for (of, offset) in offsets {
        list.add_partition_offset(&of.topic, of.partition, Offset::Offset(*offset))
            .map_err(|error| KafkaError::request(format!("naming offset {offset} of {of}"), error))?;
    }
    Ok(list)
}
