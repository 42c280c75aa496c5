//! The group member: one per worker process.
//!
//! ```text
//!            group assigns                claimed                      rewind
//!  (foreign) ────────────▶ Unclaimed ──────────────▶ Assigned ⟲ unassign + assign at the offset
//!      ▲                     ▲   ▲                       │
//!      │ group revokes       │   └── an assign failed ───┤ release
//!      └── from any state    └─────── reclaim ────── Released
//! ```
//! A partition is *ours* when the group says so, and *assigned* only when [`Ownership::claim`] gave an offset for it.
//! What a claim leaves out is asked for again every second: leaving the group and joining again would bring the same
//! assignment back (the assignor is sticky) at the price of a rebalance for all.
//!
//! Locks, outermost first: `group` → an inbox's slots → an inbox's signal. [`Ownership`] is always called without any
//! of them, so its callbacks may use the consumer.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError, RwLock, Weak};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rdkafka::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer as _, ConsumerContext};
use rdkafka::error::{KafkaError as NativeError, KafkaResult};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use rdkafka::types::RDKafkaRespErr;

use super::client::{ClientLog, consumer_config, creation_error};
use super::inbox::{Inbox, lock};
use super::metadata::Metadata;
use super::native::{PartitionQueue, cached_watermarks};
use super::{KafkaError, KafkaSettings, TopicPartition};

/// How long the consumer thread waits for an event before it looks for other work.
const POLL: Duration = Duration::from_millis(50);
/// Pause between two attempts to claim what an earlier claim left out.
const CLAIM_AGAIN: Duration = Duration::from_secs(1);
/// For the check of the topics at start.
const METADATA_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a failed client may take to let its assignment go.
const FAILED_CLEANUP: Duration = Duration::from_secs(5);

/// Decides who may read a partition, and from where. Called from the consumer's own thread only, one call at a time.
///
/// While a call runs, rebalances wait; heartbeats go on. A call must end long before `max.poll.interval.ms` (60 s).
pub trait Ownership: Send + Sync {
    /// The group gave us these partitions: take them over and answer the offset to start at, for each that could be
    /// claimed. What is left out is not read, and is asked for again after about a second; so is, after a failure on our
    /// side, a partition that was answered: claiming twice must do no harm. Other partitions are read on meanwhile.
    /// Aim at 5 s at most: a revocation that arrives meanwhile has to wait.
    fn claim(&self, partitions: &[TopicPartition]) -> Vec<(TopicPartition, i64)>;

    /// The group takes these partitions away (also those that were never claimed, or released): finish or drop what is
    /// in hand. No message of them is drained from an inbox any more. While this waits, **no partition of this
    /// consumer gets messages**, and the new owner has to wait too: 2 s at most. `lost` = they are gone already
    /// (session time-out, fatal error); don't wait at all.
    fn revoked(&self, partitions: &[TopicPartition], lost: bool);

    /// The client is dead: see [`KafkaError::Fatal`]. Called once, after everything was revoked as lost.
    fn failed(&self, error: &KafkaError) {
        let _ = error;
    }
}

/// Where the consumer is in its life.
#[derive(Clone, Debug)]
pub enum ConsumerState {
    /// In the group, or on the way into it.
    Running,
    /// Ended by [`Consumer::stop`].
    Stopped,
    /// Ended by a fatal error.
    Failed(KafkaError),
}

/// Handle on the group member. Cheap to clone; when the last handle is dropped, it leaves the group by itself.
#[derive(Clone)]
pub struct Consumer {
    member: Arc<Member>,
    _last: Arc<LeaveOnDrop>,
}

struct LeaveOnDrop(Arc<Member>);

impl Drop for LeaveOnDrop {
    fn drop(&mut self) {
        self.0.stopping.store(true, Ordering::Release);
    }
}

/// What the handle, the consumer thread and librdkafka's callbacks share.
struct Member {
    /// `None` once closed. Taken out (not only dropped) by the consumer thread, which then destroys the client.
    client: RwLock<Option<Arc<BaseConsumer<Context>>>>,
    inboxes: RwLock<BTreeMap<Arc<str>, Arc<Inbox>>>,
    group: Mutex<Group>,
    ownership: Arc<dyn Ownership>,
    generation: AtomicU64,
    stopping: AtomicBool,
    state: Mutex<ConsumerState>,
    ended: Condvar,
    log: ClientLog,
    thread: Mutex<Option<JoinHandle<()>>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Hold {
    Unclaimed,
    Assigned,
    Released,
}

#[derive(Default)]
struct Group {
    /// What the group says is ours.
    ours: BTreeMap<TopicPartition, Hold>,
    /// A rebalance callback is running: assigning or unassigning now would count as its answer.
    in_callback: bool,
    /// What was asked for meanwhile: assign again at the offset, or (`None`) unassign.
    deferred: BTreeMap<TopicPartition, Option<i64>>,
    /// When to claim what is unclaimed.
    claim_at: Option<Instant>,
}

struct Context {
    /// Weak: the client owns its context.
    member: Weak<Member>,
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

impl Consumer {
    /// Checks that the topics exist, joins the group and subscribes. Returns the inboxes in the order of `topics`.
    /// Blocks for the check only (up to 10 s); partitions come later, through `ownership`.
    ///
    /// # Errors
    /// [`KafkaError::UnknownTopics`], [`KafkaError::Unreachable`], [`KafkaError::Setting`].
    pub fn start(
        settings: &KafkaSettings,
        topics: &[Arc<str>],
        ownership: Arc<dyn Ownership>,
    ) -> Result<(Consumer, Vec<Arc<Inbox>>), KafkaError> {
        let known = Metadata::connect(settings)?.describe(topics, METADATA_TIMEOUT)?;
        let partitions = known.iter().map(|topic| usize::try_from(topic.partitions).unwrap_or(0)).sum();
        let config = consumer_config(settings, partitions)?;
        let inboxes: Vec<_> = topics.iter().map(|topic| Inbox::new(Arc::clone(topic))).collect();
        let member = Arc::new(Member {
            client: RwLock::default(),
            inboxes: RwLock::new(inboxes.iter().map(|inbox| (Arc::clone(inbox.topic()), Arc::clone(inbox))).collect()),
            group: Mutex::default(),
            ownership,
            generation: AtomicU64::new(0),
            stopping: AtomicBool::new(false),
            state: Mutex::new(ConsumerState::Running),
            ended: Condvar::new(),
            log: ClientLog::default(),
            thread: Mutex::default(),
        });
        let client: BaseConsumer<Context> =
            config.create_with_context(Context { member: Arc::downgrade(&member) }).map_err(creation_error)?;
        let client = Arc::new(client);
        // In place before anything can call back.
        *member.client.write().unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(&client));
        member.subscribe(&client)?;
        let running = Arc::clone(&member);
        let thread = thread::Builder::new()
            .name("kafka".into())
            .spawn(move || running.run(client))
            .map_err(|error| KafkaError::request("starting the consumer thread", error))?;
        *lock(&member.thread) = Some(thread);
        let last = Arc::new(LeaveOnDrop(Arc::clone(&member)));
        Ok((Consumer { member, _last: last }, inboxes))
    }

    /// Subscribes to more topics, for example one that appeared since the start. The group rebalances; what is assigned
    /// stays so. Topics that are subscribed already give their inbox again.
    ///
    /// # Errors
    /// [`KafkaError::Stopped`], [`KafkaError::Request`].
    pub fn add_topics(&self, topics: &[Arc<str>]) -> Result<Vec<Arc<Inbox>>, KafkaError> {
        let client = self.member.client()?;
        let (added, grown) = {
            let mut inboxes = self.member.inboxes.write().unwrap_or_else(PoisonError::into_inner);
            let before = inboxes.len();
            let added = topics
                .iter()
                .map(|topic| {
                    let inbox = inboxes.entry(Arc::clone(topic)).or_insert_with(|| Inbox::new(Arc::clone(topic)));
                    Arc::clone(inbox)
                })
                .collect();
            (added, inboxes.len() > before)
        };
        if grown {
            self.member.subscribe(&client)?;
        }
        Ok(added)
    }

    /// Gives the partitions up locally and assigns them again at these offsets: the one recovery path. The group does not
    /// notice. When this returns, no message from before is delivered any more; messages from the offset on
    /// follow, in a new generation, without a hole. May be called from any thread, also while
    /// [`Ownership::revoked`] waits for the calling thread: then the fetching starts after that call.
    ///
    /// # Errors
    /// [`KafkaError::NotAssigned`] names partitions that are not ours any more (the others are rewound);
    /// [`KafkaError::Stopped`]. After [`KafkaError::Request`] the partitions are claimed anew.
    pub fn rewind(&self, offsets: &[(TopicPartition, i64)]) -> Result<(), KafkaError> {
        self.member.rewind(offsets)
    }

    /// Stops reading these partitions, because their task was fenced or halted. They stay ours in the group.
    pub fn release(&self, partitions: &[TopicPartition]) {
        self.member.release(partitions);
    }

    /// Has released partitions claimed again.
    pub fn reclaim(&self, partitions: &[TopicPartition]) {
        let mut group = lock(&self.member.group);
        for of in partitions {
            if let Some(hold @ Hold::Released) = group.ours.get_mut(of) {
                *hold = Hold::Unclaimed;
                group.claim_at = Some(Instant::now());
            }
        }
    }

    /// The end of the partition as of its last fetch: the next offset that will be written. No network. `None` when it
    /// is not assigned or nothing was fetched yet. While a full queue keeps it from being fetched, this gets old.
    pub fn high_watermark(&self, topic: &str, partition: i32) -> Option<i64> {
        let client = self.member.client().ok()?;
        self.member.inbox(topic)?.progress(partition)?;
        cached_watermarks(client.client().native_ptr(), topic, partition).1
    }

    /// The offset of the partition's end, if all before it was drained: it also counts control records of transactions,
    /// which are never delivered. A task may move its position here. See
    /// [`Progress::end`](super::Progress::end).
    pub fn tail_position(&self, topic: &str, partition: i32) -> Option<i64> {
        self.member.inbox(topic)?.progress(partition)?.end
    }

    /// Writes positions to the group, for lag tools only; nothing here reads them. Does not wait; failures are logged at
    /// debug level. Seldom, please: a commit in flight holds back assignments.
    pub fn commit_offsets(&self, offsets: &[(TopicPartition, i64)]) {
        let Ok(client) = self.member.client() else { return };
        if let Err(error) = offset_list(offsets).and_then(|list| {
            client.commit(&list, CommitMode::Async).map_err(|error| KafkaError::request("committing offsets", error))
        }) {
            tracing::debug!(%error, "offsets for lag tools not committed");
        }
    }

    /// Where the consumer is in its life. A fatal error shows here, in [`Ownership::failed`], and wakes all inboxes.
    pub fn state(&self) -> ConsumerState {
        lock(&self.member.state).clone()
    }

    /// The last trouble with a broker connection, for a person: it may be over.
    pub fn last_trouble(&self) -> Option<String> {
        self.member.log.last_trouble()
    }

    /// The partitions that are being read now, sorted.
    pub fn assigned(&self) -> Vec<TopicPartition> {
        let group = lock(&self.member.group);
        group.ours.iter().filter(|(_, hold)| **hold == Hold::Assigned).map(|(of, _)| of.clone()).collect()
    }

    /// Leaves the group: everything is revoked through [`Ownership::revoked`], then the client is closed. A static
    /// member does not leave: its partitions wait for it until the session time-out. Not to be called from
    /// [`Ownership`] itself.
    ///
    /// # Errors
    /// [`KafkaError::StopTimeout`] when that takes longer than `deadline`; it goes on in the background.
    /// [`KafkaError::Fatal`] when the client had failed before.
    pub fn stop(&self, deadline: Duration) -> Result<(), KafkaError> {
        self.member.stopping.store(true, Ordering::Release);
        let until = Instant::now() + deadline;
        let mut state = lock(&self.member.state);
        loop {
            match &*state {
                ConsumerState::Stopped => return Ok(()),
                ConsumerState::Failed(error) => return Err(error.clone()),
                ConsumerState::Running => {}
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(KafkaError::StopTimeout);
            }
            state = self.member.ended.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

/// The consumer thread.
impl Member {
    fn run(&self, client: Arc<BaseConsumer<Context>>) {
        let mut closing = false;
        let failure = loop {
            if !closing && self.stopping.load(Ordering::Acquire) {
                closing = true;
                // Revokes everything through the callback, then leaves.
                if let Err(error) = client.close_queue() {
                    tracing::warn!(%error, "closing the consumer");
                    break None;
                }
            }
            match client.poll(POLL) {
                // Every assigned partition has a queue of its own; nothing else is fetched.
                Some(Ok(_)) => tracing::error!("a message arrived outside of its partition's queue"),
                Some(Err(NativeError::MessageConsumptionFatal(code))) => {
                    let reason = client.client().fatal_error().map_or_else(|| code.to_string(), |(_, reason)| reason);
                    break Some(KafkaError::Fatal(reason));
                }
                Some(Err(error)) => {
                    self.log.note(error.to_string());
                    tracing::warn!(%error, "Kafka consumer");
                }
                None => {}
            }
            if closing {
                if client.closed() {
                    break None;
                }
            } else {
                self.claim_due(&client);
            }
        };
        self.end(client, failure);
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
            // Waits for the client's threads: whoever waits for the end may rely on their being gone.
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
            group.ours.iter().filter(|(_, hold)| **hold == Hold::Unclaimed).map(|(of, _)| of.clone()).collect()
        };
        if unclaimed.is_empty() {
            return;
        }
        let mut claimed = self.ownership.claim(&unclaimed);
        // The callbacks run on this very thread, so what was unclaimed still is.
        claimed.retain(|(of, offset)| unclaimed.contains(of) && *offset >= 0);
        claimed.sort();
        claimed.dedup_by(|a, b| a.0 == b.0);
        let mut group = lock(&self.group);
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
    fn rewind(&self, offsets: &[(TopicPartition, i64)]) -> Result<(), KafkaError> {
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

    fn release(&self, partitions: &[TopicPartition]) {
        let Ok(client) = self.client() else { return };
        let mut group = lock(&self.group);
        let mut going = Vec::new();
        for of in partitions {
            match group.ours.get_mut(of) {
                Some(hold @ Hold::Assigned) => {
                    *hold = Hold::Released;
                    going.push(of.clone());
                }
                Some(hold @ Hold::Unclaimed) => *hold = Hold::Released,
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

    fn client(&self) -> Result<Arc<BaseConsumer<Context>>, KafkaError> {
        self.client.read().unwrap_or_else(PoisonError::into_inner).clone().ok_or(KafkaError::Stopped)
    }

    fn inbox(&self, topic: &str) -> Option<Arc<Inbox>> {
        self.inboxes.read().unwrap_or_else(PoisonError::into_inner).get(topic).cloned()
    }

    fn next_generation(&self) -> u64 {
        self.generation.fetch_add(1, Ordering::Relaxed) + 1
    }

    fn subscribe(&self, client: &BaseConsumer<Context>) -> Result<(), KafkaError> {
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

fn offset_list(offsets: &[(TopicPartition, i64)]) -> Result<TopicPartitionList, KafkaError> {
    let mut list = TopicPartitionList::with_capacity(offsets.len());
    for (of, offset) in offsets {
        list.add_partition_offset(&of.topic, of.partition, Offset::Offset(*offset))
            .map_err(|error| KafkaError::request(format!("naming offset {offset} of {of}"), error))?;
    }
    Ok(list)
}

#[cfg(test)]
#[allow(unsafe_code)]
mod tests {
    use super::super::EmbeddedBroker;
    use super::*;

    #[derive(Default)]
    struct Calls(Mutex<Vec<String>>);

    impl Ownership for Calls {
        fn claim(&self, partitions: &[TopicPartition]) -> Vec<(TopicPartition, i64)> {
            partitions.iter().map(|of| (of.clone(), 0)).collect()
        }

        fn revoked(&self, partitions: &[TopicPartition], lost: bool) {
            lock(&self.0).push(format!("revoked {partitions:?} lost={lost}"));
        }

        fn failed(&self, error: &KafkaError) {
            lock(&self.0).push(error.to_string());
        }
    }

    #[test]
    fn a_fatal_error_loses_everything_and_is_told_once() {
        let broker = EmbeddedBroker::start(1).unwrap();
        broker.create_topic("t", 1).unwrap();
        let calls = Arc::new(Calls::default());
        let settings = KafkaSettings::new(broker.servers(), "g");
        let (consumer, inboxes) = Consumer::start(&settings, &["t".into()], Arc::clone(&calls) as _).unwrap();
        while consumer.assigned().is_empty() {
            thread::yield_now();
        }
        let (code, reason) = (RDKafkaRespErr::RD_KAFKA_RESP_ERR_FENCED_INSTANCE_ID, c"another process joined");
        // SAFETY: the client is alive, the reason is a C string for the time of the call.
        unsafe {
            let client = consumer.member.client().unwrap();
            rdkafka::bindings::rd_kafka_test_fatal_error(client.client().native_ptr(), code, reason.as_ptr());
        }
        // Returns when the consumer wakes it, long before the wait is over.
        inboxes[0].drain(&mut Vec::new(), 1, Duration::from_secs(600));
        let error = consumer.stop(Duration::from_secs(60)).unwrap_err();
        assert!(matches!(&error, KafkaError::Fatal(reason) if reason.contains("another process joined")), "{error}");
        assert!(matches!(consumer.state(), ConsumerState::Failed(_)));
        assert!(matches!(consumer.rewind(&[]), Err(KafkaError::Stopped)));
        // The consumer's thread ends too, and revokes nothing twice.
        lock(&consumer.member.thread).take().unwrap().join().unwrap();
        assert_eq!(*lock(&calls.0), ["revoked [t/0] lost=true".to_owned(), error.to_string()]);
    }
}
