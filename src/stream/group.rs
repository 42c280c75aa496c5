//! The tasks of one topic on this worker: one thread that reads their partitions in source time order, judges
//! event after event, and keeps one batch open while the one before it is being committed.
//!
//! ```text
//!            claimed                  revoked, fenced
//!  (none) ───────────▶ catching up ─▶ running ─────────▶ closed
//!                          ▲             │ commit failed or undone
//!                          └── rewind ◀──┘
//! ```
//! Whatever goes wrong ends in one of two moves (protocol D3, D4):
//! - **rewind**: drop the overlay and the open batch, read again from the committed positions;
//! - **claim again**: give the partitions up and claim them anew. That waits for a transaction whose outcome is
//!   unknown, and the image store catches up with whatever it did.
//!
//! The batch after the one in flight is built on its overlay, and is sent only once that one is *known* to be
//! committed: pipelining depth is one.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::mpsc;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use crate::postgres::Client;
use metrics::{counter, histogram};
use tokio::runtime::Handle;
use tokio::sync::oneshot;
use uuid::Uuid;

use super::align::Align;
use super::applying::Applying;
use super::chunk::Arrived;
use super::committer::{Committers, Request};
use super::databases::{Database, Databases};
use super::dictionary::Dictionary;
use super::fences::Fences;
use super::images::Images;
use super::lasting::Lasting;
use super::merge::{Turn, next};
use super::resting::Resting;
use super::restore::{Restore, Turns};
use super::settle::REST;
use super::tally::count_messages;
use super::task::Task;
use super::views::Views;
use super::watch::Logs;
use crate::core::batch::{OpenBatch, SealedBatch};
use crate::core::decode::Decoder;
use crate::core::event::Micros;
use crate::core::front::Front;
use crate::core::judge::believable;
use crate::core::overlay::Overlay;
use crate::kafka::{Consumer, FaultKind, Inbox, Message, TopicPartition};
use crate::postgres::client::SinkSettings;
use crate::postgres::commit::{CommitError, Committed};
use crate::postgres::registry::Source;
use crate::telemetry::{Beat, names};

/// Messages that wait for their turn, all partitions together; every partition may have at least [`FEWEST`].
const WAITING: usize = 12_000;
/// Least bound of one partition's lane.
const FEWEST: usize = 250;
/// Messages judged between two looks at commands and commits.
pub(super) const CHUNK: usize = 1_000;
/// What waits longer than this many messages of its topic is copied out of what was fetched with it.
const LONG: u64 = 50_000;
/// How long a partition that is not at its end and has nothing buffered is waited for: longer than a loaded broker
/// takes for a fetch, or than the client backs off after a failed one. What is read without it comes late for it.
const PATIENCE: Duration = Duration::from_secs(2);
/// The same before its first message: the first fetch takes longer.
const FIRST_PATIENCE: Duration = Duration::from_secs(5);
/// Sleep while nothing comes.
const IDLE: Duration = Duration::from_millis(100);
/// A batch that changed nothing is committed after this long, for the position's sake.
const IDLE_LINGER: Duration = Duration::from_secs(1);

/// Limits of a batch.
#[derive(Debug, Clone, Copy)]
pub struct BatchLimits {
    /// Rows.
    pub rows: usize,
    /// Bytes.
    pub bytes: usize,
    /// Time since its first event.
    pub linger: Duration,
}

/// What the ownership callbacks and the supervisor ask of a group.
pub enum Command {
    /// Partitions that were claimed.
    Assigned(Vec<Task>),
    /// Partitions to let go; answered when it is done.
    Revoked {
        /// Which.
        partitions: Vec<i32>,
        /// They are gone already: nothing can be committed for them any more.
        lost: bool,
        /// Answered when nothing of them is in hand.
        done: mpsc::SyncSender<()>,
    },
    /// Give a partition up and have it claimed again: its log is another.
    Reclaim(i32),
    /// Commit what is in hand, then end the thread.
    Stop,
}

/// What a group is made of.
pub struct Parts {
    /// The topic's numbers.
    pub source: Source,
    /// Topic.
    pub topic: Arc<str>,
    /// Sink.
    pub sink: SinkSettings,
    /// Which sink that is.
    pub sink_id: Uuid,
    /// Local records.
    pub images: Images,
    /// Where batches go.
    pub committers: Committers,
    /// Typed views.
    pub views: Views,
    /// Asks.
    pub commands: mpsc::Receiver<Command>,
    /// Messages.
    pub inbox: Arc<Inbox>,
    /// Group member.
    pub consumer: Consumer,
    /// Decoder, with the object's known columns.
    pub decoder: Decoder,
    /// Fields.
    pub dictionary: Dictionary,
    /// Limits.
    pub limits: BatchLimits,
    /// Bytes for the hash front.
    pub front_memory: usize,
    /// Which database feeds which org.
    pub databases: Databases,
    /// Keeps in step with other workers on this topic.
    pub align: Align,
    /// Whose image store is filled next.
    pub turns: Turns,
    /// What the logs are known by.
    pub logs: Logs,
    /// Tells that this thread moves.
    pub beat: Beat,
    /// For database calls from this thread.
    pub runtime: Handle,
}

pub(super) struct InFlight {
    batch: Arc<SealedBatch>,
    answer: oneshot::Receiver<Result<Committed, CommitError>>,
}

/// See the module.
pub struct Group {
    pub(super) parts: Parts,
    pub(super) reader: Option<Client>,
    pub(super) tasks: BTreeMap<i32, Task>,
    pub(super) overlay: Overlay,
    pub(super) open: OpenBatch,
    pub(super) front: Front,
    /// Events of the chunk in hand that the front knew.
    pub(super) repeated: u64,
    /// Our clock, as of the chunk in hand.
    pub(super) now: Micros,
    /// Messages judged since what waits was last looked through.
    judged: u64,
    pub(super) opened: Option<Instant>,
    pub(super) in_flight: Option<InFlight>,
    /// The batch before it, committed and on its way into the image store.
    pub(super) applying: Option<Applying>,
    /// Records on their way back from the sink.
    pub(super) restore: Option<Restore>,
    /// Some partition with more on its way has nothing buffered.
    pub(super) waits: bool,
    /// When lags were shown last, and of which partitions.
    pub(super) shown: Instant,
    pub(super) shown_partitions: BTreeSet<i32>,
    /// The image store has refused what belongs to an older claim.
    pub(super) outdated: bool,
    pub(super) failures: u32,
    /// Why nothing is committed, since the last commit.
    pub(super) trouble: Option<Lasting>,
    pub(super) resting: Resting,
    pub(super) fences: Fences,
    pub(super) database: Database,
    pub(super) stopping: bool,
    pub(super) views_stale: bool,
    /// Another worker may have added fields since the dictionary was read.
    pub(super) dictionary_stale: bool,
    pub(super) warned_types: bool,
    pub(super) warned_reasons: HashSet<&'static str>,
    pub(super) messages: Vec<Message>,
    pub(super) postponed: Vec<Command>,
}

/// The thread must end; nothing can be done any more.
#[derive(Debug)]
pub(super) struct Ended;

impl Group {
    /// Over its parts; `run` does the work.
    pub fn new(parts: Parts) -> Self {
        let front = Front::new(parts.front_memory);
        Group {
            parts,
            reader: None,
            tasks: BTreeMap::new(),
            overlay: Overlay::default(),
            open: OpenBatch::new(1),
            front,
            repeated: 0,
            now: 0,
            judged: 0,
            opened: None,
            in_flight: None,
            applying: None,
            restore: None,
            waits: false,
            shown: Instant::now(),
            shown_partitions: BTreeSet::new(),
            outdated: false,
            failures: 0,
            trouble: None,
            resting: Resting::default(),
            fences: Fences::default(),
            database: Database::default(),
            stopping: false,
            views_stale: true,
            dictionary_stale: true,
            warned_types: false,
            warned_reasons: HashSet::new(),
            messages: Vec::new(),
            postponed: Vec::new(),
        }
    }

    /// Works until told to stop, or until the supervisor is gone.
    pub fn run(mut self) {
        // What should stay at 0 is seen to be 0.
        names::show_zeros(&self.parts.topic);
        while !self.stopping {
            self.parts.beat.now();
            self.obey();
            self.settle_in_flight();
            self.settle_applying();
            self.read();
            self.obey();
            self.settle_outdated();
            self.reclaim_rested();
            self.show_lags();
            let taken = self.work();
            self.seal_if_due();
            self.place_late();
            self.restore();
            if taken == 0 {
                self.wait();
            }
        }
        self.finish(Instant::now() + Duration::from_secs(6));
        self.await_applying();
        self.end_restoring();
        self.hide_lags();
    }

    // ---- asks -------------------------------------------------------------------------------------------

    pub(super) fn obey(&mut self) {
        loop {
            let command =
                if self.postponed.is_empty() { self.parts.commands.try_recv() } else { Ok(self.postponed.remove(0)) };
            match command {
                Ok(Command::Assigned(tasks)) => self.assigned(tasks),
                Ok(Command::Revoked { partitions, lost, done }) => {
                    self.revoked(&partitions, lost);
                    let _ = done.send(());
                }
                Ok(Command::Reclaim(partition)) if self.tasks.contains_key(&partition) => {
                    self.close_and_rest(&[(partition, Duration::ZERO)]);
                }
                Ok(Command::Reclaim(_)) => {}
                Ok(Command::Stop) | Err(mpsc::TryRecvError::Disconnected) => {
                    self.stopping = true;
                    return;
                }
                Err(mpsc::TryRecvError::Empty) => return,
            }
        }
    }

    pub(super) fn assigned(&mut self, tasks: Vec<Task>) {
        self.messages.retain(|message| tasks.iter().all(|task| task.partition != message.partition));
        if tasks.iter().any(|task| self.tasks.contains_key(&task.partition)) {
            // Claimed twice: what is open was built under the older claim.
            for task in &tasks {
                self.tasks.remove(&task.partition);
            }
            let unknown = self.in_flight.is_some();
            self.rewind("a partition was claimed again");
            if unknown {
                self.claim_again("a partition was claimed again while a commit was in flight");
            }
        }
        self.dictionary_stale = true;
        // Others may have written these records since they were ours.
        self.front.clear();
        // What was read of them before this was told went into tasks that are gone.
        let ahead: Vec<(TopicPartition, i64)> = tasks
            .iter()
            .filter(|task| self.parts.inbox.progress(task.partition).is_some_and(|at| at.next != task.read))
            .map(|task| (TopicPartition::new(Arc::clone(&self.parts.topic), task.partition), task.read))
            .collect();
        if !ahead.is_empty()
            && let Err(error) = self.parts.consumer.rewind(&ahead)
        {
            tracing::warn!(topic = %self.parts.topic, %error, "some partitions were revoked while they were assigned");
        }
        for task in tasks {
            tracing::info!(
                topic = %self.parts.topic, partition = task.partition, epoch = task.epoch, next = task.next, "claimed"
            );
            self.tasks.insert(task.partition, task);
        }
    }

    fn revoked(&mut self, partitions: &[i32], lost: bool) {
        let ours = partitions.iter().any(|partition| self.tasks.contains_key(partition));
        if ours && !lost {
            self.finish(Instant::now() + Duration::from_millis(1500));
        }
        // Whoever claims them here next asks the store how far it is.
        self.await_applying();
        self.resting.forget(partitions);
        let unsettled = ours && (self.in_flight.is_some() || !self.open.is_empty());
        self.messages.retain(|message| !partitions.contains(&message.partition));
        for partition in partitions {
            if self.tasks.remove(partition).is_some() {
                tracing::info!(topic = %self.parts.topic, partition, lost, "given up");
            }
        }
        if unsettled {
            // The batch in hand speaks for partitions that are no longer ours.
            self.claim_again("a batch was in hand when partitions were revoked");
        }
    }

    /// Commits what is in hand, if that can be done in time.
    pub(super) fn finish(&mut self, deadline: Instant) {
        loop {
            self.settle_in_flight();
            if self.in_flight.is_none() {
                if self.open.is_empty() {
                    return;
                }
                self.seal();
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            self.await_in_flight(left);
        }
    }

    /// Most messages that may wait in one partition's lane.
    fn lane(&self) -> usize {
        (WAITING / self.tasks.len().max(1)).clamp(FEWEST, CHUNK * 4)
    }

    // ---- reading ----------------------------------------------------------------------------------------

    fn read(&mut self) {
        let most = self.lane();
        let Group { parts, tasks, messages, .. } = self;
        parts.inbox.drain_with(messages, CHUNK * 2, Duration::ZERO, |partition| {
            tasks.get(&partition).map_or(0, |task| most.saturating_sub(task.lane.len()))
        });
        count_messages(&parts.topic, messages);
        let now = Self::now();
        for message in messages.drain(..) {
            let Some(task) = tasks.get_mut(&message.partition) else { continue };
            task.delivered = true;
            task.left_behind = false;
            let peeked = parts.decoder.peek(message.key(), message.payload());
            let turn = match believable(peeked.ts(), now) {
                Some(ts) => Turn::new(Some(ts), peeked.lsn(), peeked.is_delete()),
                None => Turn::AT_ONCE,
            };
            task.lane.push(turn, Box::new(Arrived { message, peeked, meaning: None, waited: false }));
        }
        for fault in self.parts.inbox.take_faults() {
            tracing::error!(
                topic = %self.parts.topic, partition = fault.partition, offset = fault.offset, reason = %fault.reason,
                "the broker does not deliver"
            );
            if fault.kind == FaultKind::OutOfRange {
                // Claiming again looks at what the broker still has and records the gap.
                self.close_and_rest(&[(fault.partition, REST)]);
            }
        }
    }

    /// Whether some partition that has more on its way has to be heard before the next event is chosen.
    fn must_wait(&mut self) -> bool {
        let parts = &self.parts;
        let missing = |task: &Task| {
            let end = || parts.consumer.high_watermark(&parts.topic, task.partition);
            task.is_awaited(parts.inbox.progress(task.partition), end)
        };
        self.waits = false;
        for task in self.tasks.values_mut() {
            if !missing(task) {
                task.silent_since = None;
                continue;
            }
            let patience = if task.delivered { PATIENCE } else { FIRST_PATIENCE };
            if task.silent_since.get_or_insert_with(Instant::now).elapsed() < patience {
                self.waits = true;
            } else {
                task.left_behind = true;
                tracing::debug!(topic = %parts.topic, partition = task.partition, "not waited for any longer: it does not deliver");
                counter!(names::LEFT_BEHIND, "topic" => parts.topic.to_string()).increment(1);
            }
        }
        self.waits
    }

    /// Judges up to a chunk of events in order; returns how many messages it took.
    fn work(&mut self) -> usize {
        if self.full() && self.in_flight.is_some() {
            self.await_in_flight(Duration::from_millis(50));
            return 1;
        }
        let mut chunk = Vec::with_capacity(CHUNK);
        let wait = self.must_wait();
        self.look_at_others();
        let Group { tasks, parts, .. } = self;
        let mut tasks: Vec<&mut Task> = tasks.values_mut().collect();
        let mut turns: Vec<Turn> = tasks.iter().map(|task| task.lane.turn()).collect();
        while chunk.len() < CHUNK && !wait {
            let Some(at) = next(&turns) else { break };
            if !parts.align.takes(tasks[at]) {
                break;
            }
            let lane = &mut tasks[at].lane;
            chunk.extend(lane.pop());
            turns[at] = lane.turn();
            if turns[at] == Turn::NEVER {
                // More of it may be on its way: look before choosing on.
                break;
            }
        }
        if chunk.is_empty() {
            self.pass_tails();
        }
        let taken = chunk.len();
        self.detach_what_waits(taken as u64);
        if taken > 0 {
            if self.opened.is_none() {
                self.opened = Some(Instant::now());
            }
            if self.process(chunk).is_err() {
                // An event was cut off in the middle: its offset stands in the open batch, its outcome does not.
                self.open = OpenBatch::new(self.open.number() + 1);
                self.opened = None;
                self.stopping = true;
            }
        }
        taken
    }

    fn detach_what_waits(&mut self, taken: u64) {
        self.judged += taken;
        if self.judged < LONG {
            return;
        }
        self.judged = 0;
        for one in self.tasks.values_mut().flat_map(|task| task.lane.iter_mut()) {
            if std::mem::replace(&mut one.waited, true) {
                one.message.detach();
            }
        }
    }

    /// Moves positions over control records at their partition's tail, or the lag would never reach zero.
    fn pass_tails(&mut self) {
        for task in self.tasks.values_mut().filter(|task| task.lane.is_empty()) {
            let Some(end) = self.parts.inbox.progress(task.partition).and_then(|progress| progress.end) else {
                continue;
            };
            if task.read < task.catch_up_to {
                task.read = end.min(task.catch_up_to);
            }
            if end > task.read {
                self.open.advance_over_hole(&task.start(), end);
                task.read = end;
                self.opened.get_or_insert_with(Instant::now);
            }
        }
    }

    fn wait(&mut self) {
        if self.in_flight.is_some() {
            self.await_in_flight(Duration::from_millis(20));
            return;
        }
        let wait = match self.opened {
            Some(opened) => self.linger().saturating_sub(opened.elapsed()).min(IDLE),
            None if self.waits => Duration::from_millis(20),
            None => IDLE,
        };
        if wait.is_zero() {
            return;
        }
        // Only to sleep until something comes: `read` takes it, into the right lane.
        let most = self.lane();
        let Group { parts, tasks, messages, .. } = self;
        parts.inbox.drain_with(messages, 1, wait, |partition| {
            usize::from(tasks.get(&partition).is_some_and(|task| task.lane.len() < most))
        });
    }

    // ---- batches ----------------------------------------------------------------------------------------

    fn full(&self) -> bool {
        self.open.rows() >= self.parts.limits.rows || self.open.bytes() >= self.parts.limits.bytes
    }

    fn linger(&self) -> Duration {
        self.parts.align.linger(if self.open.rows() == 0 { IDLE_LINGER } else { self.parts.limits.linger })
    }

    fn seal_if_due(&mut self) {
        let due = self.full()
            || self.parts.align.is_held()
            || self.opened.is_some_and(|opened| opened.elapsed() >= self.linger());
        if due && self.in_flight.is_none() && !self.open.is_empty() {
            self.seal();
        }
    }

    fn seal(&mut self) {
        let after = OpenBatch::new(self.open.number() + 1);
        let open = std::mem::replace(&mut self.open, after);
        self.opened = None;
        histogram!(names::BATCH_EVENTS).record(open.events() as f64);
        histogram!(names::BATCH_ROWS).record(open.rows() as f64);
        let source = &self.parts.source;
        let batch = Arc::new(open.seal(&mut self.overlay, source.source_id, source.object_id));
        let (answer, receiver) = oneshot::channel();
        let inbox = Arc::clone(&self.parts.inbox);
        self.parts.committers.send(Request {
            batch: Arc::clone(&batch),
            held: self.tasks.values().map(|task| (task.position_id, task.held())).collect(),
            answer,
            done: Arc::new(move || inbox.wake()),
        });
        self.in_flight = Some(InFlight { batch, answer: receiver });
    }

    fn await_in_flight(&mut self, most: Duration) {
        let Some(mut in_flight) = self.in_flight.take() else { return };
        let result = self.parts.runtime.block_on(async { tokio::time::timeout(most, &mut in_flight.answer).await });
        match result {
            Err(_) => self.in_flight = Some(in_flight),
            Ok(answer) => self.settled(in_flight.batch, answer.ok()),
        }
    }

    fn settle_in_flight(&mut self) {
        let Some(mut in_flight) = self.in_flight.take() else { return };
        match in_flight.answer.try_recv() {
            Ok(answer) => self.settled(in_flight.batch, Some(answer)),
            Err(oneshot::error::TryRecvError::Closed) => self.settled(in_flight.batch, None),
            Err(oneshot::error::TryRecvError::Empty) => self.in_flight = Some(in_flight),
        }
    }

    /// Our clock.
    pub(super) fn now() -> Micros {
        std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .map_or(0, |since| i64::try_from(since.as_micros()).unwrap_or(i64::MAX))
    }
}

/// Shared between the supervisor and the ownership callbacks: a topic's inbox, once the consumer has made it.
pub type InboxCell = Arc<OnceLock<Arc<Inbox>>>;

#[cfg(test)]
mod tests;
