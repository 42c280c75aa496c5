//! The consumer's handle, and the two contracts it lives by: who owns a partition ([`Ownership`]), and what its callers may
//! rely on. The member of the group itself is in `member.rs`.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError, RwLock};
use std::thread;
use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer as _};

use super::client::{ClientLog, consumer_config, creation_error};
use super::inbox::{Inbox, lock};
use super::member::{Context, Hold, Member, offset_list};
use super::metadata::Metadata;
use super::native::cached_watermarks;
use super::{KafkaError, KafkaSettings, TopicPartition};

/// For the check of the topics at start.
const METADATA_TIMEOUT: Duration = Duration::from_secs(10);

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

/// See [`Consumer::holding`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Holding {
    /// Being read.
    pub assigned: usize,
    /// Given by the group, not claimed yet (or refused).
    pub unclaimed: usize,
    /// Released.
    pub released: usize,
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
            polled: Mutex::new(Instant::now()),
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

    /// How many of the partitions that the group gave to us are in each state.
    pub fn holding(&self) -> Holding {
        let group = lock(&self.member.group);
        let mut holding = Holding::default();
        for hold in group.ours.values() {
            *match hold {
                Hold::Unclaimed | Hold::Claiming => &mut holding.unclaimed,
                Hold::Assigned => &mut holding.assigned,
                Hold::Released => &mut holding.released,
            } += 1;
        }
        holding
    }

    /// When the consumer's thread last came round: it does so every 50 ms, unless it waits in [`Ownership`].
    pub fn last_polled(&self) -> Instant {
        *lock(&self.member.polled)
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

#[cfg(test)]
#[allow(unsafe_code)]
mod tests {
    use rdkafka::types::RDKafkaRespErr;

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
